"""Every block of the README is run, by rules that go by what kind of block it is. One that no rule covers fails.

The blocks below one heading are a scene: they run in order, in a directory of their own. The line above a block may name
it, as `world.py`; a named program that serves, or loops for ever, runs beside what follows and is ended by Ctrl-C. A
`text` block is what the program above it prints, or the one that the line above names. A program that is there in Python
and in JavaScript is run in both. Ports and directories that the README names for its readers are exchanged for free ones.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence

import pytest

from .certificates import openssl
from .conftest import eventually
from .interop.peers import MODULES, Missing, find_node
from .test_examples import free_port

ROOT = Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text('utf-8')

# A busy machine starts several interpreters meanwhile. By itself no block takes two.
SECONDS = 30.0

# Scenes at a time: their processes wait for each other more than they compute.
SCENES = 4

PYTHON = (sys.executable, '-S', '-X', 'dev', '-W', 'error')


# Reading


class Block(NamedTuple):
    """A fenced block: where it stands, what it is written in, and the file name above it if there is one."""

    section: str
    line: int
    language: str
    name: Optional[str]
    text: str

    def __str__(self) -> str:
        return f'README.md:{self.line} ({self.name or self.language or "a block"} of {self.section!r})'

    @property
    def stem(self) -> Optional[str]:
        """What a program has in common with those that do the same in other languages."""
        return Path(self.name).stem if self.name else None


def read_blocks(text: str) -> List[Block]:
    blocks = []
    section = above = ''
    is_new_paragraph = True
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if line.startswith('```'):
            inside = itertools.takewhile(lambda numbered: numbered[1] != '```', lines)
            named = re.match(r'`([\w-]+\.\w+)`[^`.\n]*\Z', above)
            body = ''.join(f'{line}\n' for _, line in inside)
            blocks.append(Block(section, number + 1, line[3:].strip(), named and named[1], body))
            above, is_new_paragraph = '', True
        elif line.startswith('#'):
            section, above, is_new_paragraph = line.lstrip('# '), '', True
        elif line:
            above, is_new_paragraph = (line if is_new_paragraph else f'{above}\n{line}'), False
        else:
            is_new_paragraph = True
    return blocks


BLOCKS = read_blocks(README)

SCENES_BY_SECTION: Dict[str, List[Block]] = {
    section: list(blocks) for section, blocks in itertools.groupby(BLOCKS, lambda block: block.section)
}


def rule_of(block: Block, before: Optional[Block]) -> str:
    """Return what is done with a block; `before` is the one before it in its section. AssertionError for no idea."""
    language, name, text = block.language, block.name, block.text
    if language == 'python':
        if name is None:
            return 'script'
        if name.endswith('.py'):
            return 'tests' if name.startswith('test_') else 'file' if name == 'conftest.py' else 'program'
    if language == 'js' and name is not None and name.endswith(('.mjs', '.cjs', '.js')):
        return 'program'
    if language == 'sh':
        if all(re.match(r'make [\w-]+ *(#|$)', line) for line in text.splitlines()):
            return 'targets'
        return 'certificates' if 'openssl' in text else 'shell'
    if language == 'console' and text.startswith('$ '):
        return 'session'
    if language == 'text':
        if ARROWS.search(text):
            return 'diagram'
        if before is not None and rule_of(before, None) in ('program', 'script', 'tests', 'shell'):
            return 'output'
    raise AssertionError(f'{block}: no rule says how such a block is tested; see {__file__}')


ARROWS = re.compile('─▶|◀─')


def stays(block: Block) -> bool:
    """Whether a named program runs until it is interrupted."""
    return is_server(block) or bool(re.search(r'^ *while (True|not \w+\.wait\()', block.text, re.M))


def is_server(block: Block) -> bool:
    return bool(re.search(r'\bserve(_net|Net|_forever)?\(', block.text))


# Running


class Program:
    """A process in the directory of a scene, and what it has said so far."""

    #: What ends it.
    signal = signal.SIGINT

    #: Whether a block may show how it fails.
    may_fail = False

    def __init__(self, title: str, command: Sequence[str], directory: Path, environment: Dict[str, str]) -> None:
        self.title = title
        self._output = directory / f'{title}.out'
        self._errors = directory / f'{title}.err'
        with self._output.open('wb') as stdout, self._errors.open('wb') as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=str(directory), env=environment
            )

    @property
    def said(self) -> str:
        return self._output.read_text('utf-8')

    @property
    def errors(self) -> str:
        return self._errors.read_text('utf-8')

    def ends(self) -> None:
        """Wait for its end, and see that it was a good one."""
        try:
            status = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f'{self.title} goes on and on. It said:\n{self.said}{self.errors}') from None
        assert status == 0, f'{self.title} ended with {status}. It said:\n{self.said}{self.errors}'
        self.is_quiet()

    def is_quiet(self, errors: Optional[str] = None) -> None:
        """See that it complains of nothing; lines that `logging` writes are what a block may be about."""
        errors = self.errors if errors is None else errors
        left = [line for line in errors.splitlines() if not re.match(r'\S* ?(DEBUG|INFO|WARNING|ERROR)\b.*nodeipc', line)]
        assert not left, f'{self.title} complains:\n{errors}'

    def says(self, expected: str) -> None:
        """Wait until it has said this, where an ellipsis stands for anything."""
        pattern = re.compile('.*'.join(map(re.escape, re.split('…', expected))), re.S)
        try:
            eventually(lambda: pattern.fullmatch(self.said) or self.process.poll() is not None)
        except AssertionError:
            pass
        assert pattern.fullmatch(self.said), f'{self.title} was to say:\n{expected}and said:\n{self.said}{self.errors}'

    def interrupt(self) -> None:
        """Press Ctrl-C, and see that it ends as programs do: in peace, or with a KeyboardInterrupt and no other."""
        for _ in range(3):  # CPython does not always notice one that comes just before it begins to wait
            self.process.send_signal(self.signal)
            try:
                status = self.process.wait(SECONDS / 3)
                break
            except subprocess.TimeoutExpired:
                pass
        else:
            raise AssertionError(f'{self.title} does not end. It said:\n{self.said}{self.errors}')
        errors = re.sub('^sending to .* was interrupted; the connection is closed\n', '', self.errors, flags=re.M)
        if status == -signal.SIGINT:
            errors = re.sub(r'Traceback (?:(?!Traceback).)*^KeyboardInterrupt\n\Z', '', errors, flags=re.S | re.M)
        else:
            assert status in (0, 130), f'{self.title} ended with {status}. It said:\n{self.said}{errors}'  # 130: commands
        self.is_quiet(errors)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Scene:
    """Runs blocks in order, in a directory that is theirs. Each rule is a method."""

    def __init__(self, directory: Path, certificates: Future[Path]) -> None:
        directory.mkdir()
        self._directory = directory
        self._certificates = certificates
        self._programs: List[Program] = []
        self._beside: List[Block] = []
        self._ports = {port: str(free_port_of_both()) for port in ('8000', '8001', '9000')}
        self._environment = self._make_environment()

    def play(self, blocks: Sequence[Block]) -> None:
        try:
            for before, block in zip([None, *blocks], blocks):
                if '.pem' in block.text:
                    self._fetch_certificates()
                getattr(self, rule_of(block, before))(block)
            for program in reversed(self._programs):
                if program.process.poll() is None:
                    program.interrupt()
                elif not program.may_fail:
                    program.ends()
            if all(block.language != 'js' for block in blocks):  # node-ipc does not clean up after Ctrl-C
                left = [str(path) for path in self._directory.rglob('*') if path.is_socket()]
                assert not left, f'left behind: {left}'
        finally:
            for program in self._programs:
                program.kill()

    def program(self, block: Block) -> None:
        assert block.name is not None
        path = self._write(block.name, block)
        command = [*PYTHON, str(path)] if block.language == 'python' else [find_node('14.0.0'), str(path)]
        self._run(block, block.name, command)

    def script(self, block: Block) -> None:
        name = f'README-line-{block.line}.py'
        self._run(block, name, [*PYTHON, str(self._write(name, block))])

    def file(self, block: Block) -> None:
        assert block.name is not None
        self._write(block.name, block)

    def tests(self, block: Block) -> None:
        self.file(block)
        assert block.name is not None
        options = ['-q', '-p', 'no:cacheprovider', '--rootdir', str(self._directory)]
        self._run(block, block.name, [sys.executable, *PYTHON[2:], '-m', 'pytest', *options, block.name])
        assert re.search(r'\b[1-9]\d* passed', self._programs[-1].said), f'{block} has no test'

    def shell(self, block: Block) -> None:
        script = f'set -euo pipefail\n{self._exchanged(block.text)}'
        self._run(block, f'README-line-{block.line}.sh', ['bash', '-c', script])

    def session(self, block: Block) -> None:
        """What stands on a terminal. A command that ends in `&` runs beside the others; all say what is shown."""
        shown = []
        for number, (command, expected) in enumerate(commands(self._exchanged(block.text))):
            if needs_world(command):
                self._start_world()
            is_beside = command.endswith('&')
            script = f'exec {command[:-1]}' if is_beside else f'set -o pipefail\n{command}'
            program = self._start(f'README-line-{block.line}-{number}.sh', ['bash', '-c', f'exec 2>&1\n{script}'])
            program.may_fail = True
            shown.append((program, expected))
            if not is_beside:
                program.process.wait(SECONDS)
        for program, expected in shown:
            program.says(expected)

    def output(self, block: Block) -> None:
        program = next((program for program in self._programs if program.title == block.name), self._programs[-1])
        program.says(self._exchanged(block.text))

    def targets(self, block: Block) -> None:
        makefile = (ROOT / 'Makefile').read_text('utf-8')
        for target in re.findall(r'^make ([\w-]+)', block.text, re.M):
            assert re.search(rf'^{target}:', makefile, re.M), f'{block}: the Makefile has no {target}'

    def certificates(self, block: Block) -> None:
        made = self._certificates.result()  # by this block and all like it, in their order
        for name in re.findall(r'-(?:out|keyout) (\S+)', block.text):
            assert (made / name).stat().st_size, f'{block} has not made {name}'

    def diagram(self, block: Block) -> None:
        known = names_in_the_package() | {'socket', 'emit', 'handler'}
        for line in block.text.splitlines():
            if ARROWS.search(line):
                for name in re.findall(r'[a-z]+', re.sub(r'\(.*?\)', '', line)):
                    assert {name, f'{name}s'} & known, f'{block}: there is no {name}'

    def _run(self, block: Block, title: str, command: Sequence[str]) -> None:
        if needs_world(block.text) and not is_server(block):
            self._start_world()
        program = self._start(title, command)
        if block.name is not None and stays(block):
            self._beside.append(block)
            program.signal = signal.SIGTERM if 'SIGTERM' in block.text else signal.SIGINT
            if is_server(block):
                self._await_server(program)
        else:
            program.ends()

    def _start(self, title: str, command: Sequence[str]) -> Program:
        program = Program(title, command, self._directory, self._environment)
        self._programs.append(program)
        return program

    def _start_world(self) -> None:
        """Start the first `world.py` of the README, if nobody here is called so."""
        if not any("'world'" in block.text for block in self._beside):
            self.program(next(block for block in BLOCKS if block.name == 'world.py'))

    def _await_server(self, program: Program) -> None:
        """Wait until it can be found, or clients would try in vain and again half a second later."""
        def is_there() -> bool:
            sockets = [*self._directory.glob('node-ipc/*'), *self._directory.glob('*.sock')]
            return len(sockets) >= len(self._beside) or any(map(in_use, self._ports.values()))

        eventually(lambda: is_there() or program.process.poll() is not None)

    def _write(self, name: str, block: Block) -> Path:
        path = self._directory / name
        path.write_text(self._exchanged(block.text), 'utf-8')
        return path

    def _exchanged(self, text: str) -> str:
        for theirs, ours in self._ports.items():
            text = re.sub(rf'\b{theirs}\b', ours, text)
        return text.replace('example.org', '127.0.0.1').replace('/tmp/', f'{self._directory}/')

    def _fetch_certificates(self) -> None:
        for made in self._certificates.result().iterdir():
            path = self._directory / made.name
            if not path.exists():
                path.symlink_to(made)

    def _make_environment(self) -> Dict[str, str]:
        tools = self._directory / 'bin'
        tools.mkdir()
        python = shlex.join(PYTHON)
        for name, command in {'python3': python, 'nodeipc': f'{python} -m nodeipc'}.items():
            (tools / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (tools / name).chmod(0o755)
        if MODULES.is_dir():
            modules = self._directory / 'node_modules'
            modules.mkdir()
            for module in MODULES.iterdir():
                (modules / module.name).symlink_to(module)
            (modules / 'node-ipc').symlink_to(MODULES / 'node-ipc-14')
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(('NODE_', 'PYTEST_'))},
            'PATH': f'{tools}{os.pathsep}{os.environ["PATH"]}',
            'PYTHONPATH': str(ROOT),
            'PYTHONUNBUFFERED': '1',
            'TMPDIR': str(self._directory),
            'XDG_RUNTIME_DIR': str(self._directory),
        }


def needs_world(text: str) -> bool:
    return bool(re.search(r"\bconnect(_to)?\('world'|\bnodeipc (listen|emit|request|call|describe)\b.* world\b", text))


def commands(text: str) -> Iterator[Sequence[str]]:
    """Split what stands on a terminal into commands and what each prints."""
    yield from re.findall(r'^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)', text, re.M)


def free_port_of_both() -> int:
    """Return a port that neither TCP nor UDP uses."""
    return next(port for port in iter(free_port, None) if not in_use(str(port)))


def in_use(port: str) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(type=kind) as sock:
            if kind == socket.SOCK_STREAM:  # what was connected there a minute ago is no matter
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(('127.0.0.1', int(port)))
            except OSError:
                return True
    return False


def names_in_the_package() -> set[str]:
    """Return the names of its modules and classes, in lower case."""
    names = set()
    for path in (ROOT / 'nodeipc').glob('*.py'):
        names |= {path.stem, *(name.lower() for name in re.findall(r'^class (\w+)', path.read_text('utf-8'), re.M))}
    return names


def variants(blocks: Sequence[Block]) -> Iterator[List[Block]]:
    """Return the ways to play a scene: with each program in one of the languages that it is written in."""
    languages: Dict[str, List[str]] = {}
    for block in blocks:
        if block.stem and block.language != 'text':
            languages.setdefault(block.stem, []).append(block.language)
    for choice in itertools.product(*languages.values()):
        chosen = dict(zip(languages, choice))
        kept: List[Block] = []
        left_out = False
        for block in blocks:
            if block.language != 'text':
                left_out = bool(block.stem) and chosen[str(block.stem)] != block.language
            if not left_out:  # what a program prints goes with it
                kept.append(block)
        yield kept


def play(blocks: Sequence[Block], directory: Path, certificates: Future[Path]) -> None:
    """Run a scene, in all its variants that can be run here. Raises pytest's Skipped if none can."""
    missing: Any = None
    played = 0
    for number, variant in enumerate(variants(blocks)):
        try:
            if any(block.language == 'js' for block in variant):
                find_node('14.0.0')
            Scene(directory / str(number), certificates).play(variant)
            played += 1
        except (Missing, LookupError) as reason:
            missing = reason
    if not played:
        pytest.skip(str(missing))


def make_certificates(directory: Path) -> Path:
    """Run all blocks with openssl lines, one after the other; return where they have made their files."""
    openssl()
    directory.mkdir()
    for block in BLOCKS:
        if block.language == 'sh' and 'openssl' in block.text:
            done = subprocess.run(
                ['bash', '-euc', block.text],
                cwd=str(directory),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
            )
            assert done.returncode == 0, f'{block}: {done.stdout.decode()}'
    return directory


# Tests


@pytest.fixture(scope='module')
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Future[None]]:
    """Scenes of the tests that were asked for, all played: several at a time, for most of it is waiting."""
    sections = [
        item.callspec.params['section'] for item in request.session.items if 'played' in getattr(item, 'fixturenames', ())
    ]
    directory = tmp_path_factory.mktemp('readme')
    with ThreadPoolExecutor(SCENES) as pool:
        certificates = pool.submit(make_certificates, directory / 'certificates')
        futures = {}
        for section in sections:
            where = directory / str(len(futures))
            where.mkdir()
            futures[section] = pool.submit(play, SCENES_BY_SECTION[section], where, certificates)
    return futures


@pytest.mark.parametrize('section', list(SCENES_BY_SECTION))
def test_the_blocks_below_a_heading_do_what_they_say(section: str, played: Dict[str, Future[None]]) -> None:
    played[section].result()


def test_a_block_that_nobody_knows_how_to_test_fails() -> None:
    text = '# One\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n`run.rb`\n\n```ruby\nputs 2\n```\n```\nanything\n```\n'
    script, output, ruby, bare = read_blocks(text)
    assert rule_of(script, None) == 'script'
    assert rule_of(output, script) == 'output'
    assert (ruby.section, ruby.line, ruby.name, ruby.text) == ('One', 13, 'run.rb', 'puts 2\n')
    for block, before in [(ruby, output), (bare, ruby), (output, None)]:
        with pytest.raises(AssertionError, match='no rule'):
            rule_of(block, before)


def test_each_block_stands_in_a_scene_of_its_own_heading() -> None:
    assert sum(map(len, SCENES_BY_SECTION.values())) == len(BLOCKS) == README.count('\n```') / 2


def test_every_module_has_its_place_in_the_layout() -> None:
    layout = README[README.index('## How the code is laid out'):]
    table = '\n'.join(line for line in layout.splitlines() if line.startswith('| '))
    named = {name for row in table.splitlines()[1:] for name in re.findall('`([a-z_]+)`', row.split('|')[2])}
    assert named == {path.stem for path in (ROOT / 'nodeipc').glob('*.py')}


def test_files_and_headings_that_are_named_exist() -> None:
    for path in re.findall(r'\b((?:examples|tests)/[\w./]*)', README):
        assert (ROOT / path.rstrip('.')).exists(), path
    anchors = {re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in re.findall('^#+ (.*)', README, re.M)}
    assert set(re.findall(r'\]\(#([^)]*)\)', README)) <= anchors
