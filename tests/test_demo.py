"""``python3 -m nodeipc demo``, run as a process; and the command line around it.

What can only happen when something goes wrong is shown with actors: child processes that play badly.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

import nodeipc
from nodeipc import cli, demo

from .conftest import eventually

ROOT = Path(__file__).parent.parent
COLOR = re.compile(r'\x1b\[[0-9;]*m')
SECONDS = 60


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory for demos, in which no file is left, and no process that was given it."""
    # Not in tmp_path, which is too long already for a socket path.
    directory = Path(tempfile.mkdtemp(prefix='test-demo-'))
    monkeypatch.setenv('TMPDIR', str(directory))
    monkeypatch.setattr(tempfile, 'tempdir', None)  # where this process has looked it up already
    try:
        yield directory
        eventually(lambda: not processes(directory))
        assert list(directory.iterdir()) == []
    finally:
        for pid in processes(directory):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(directory)


def processes(directory: Path) -> List[int]:
    """Return the other processes whose environment names `directory`; none where the system does not tell."""
    found = []
    for entry in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and os.fsencode(directory) in (entry / 'environ').read_bytes():
                found.append(int(entry.name))
    return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a demo, as a shell does: in a process group of its own."""
    started: List[subprocess.Popen] = []

    def start_demo(*command: str, stdout: Any = subprocess.PIPE, **environment: str) -> subprocess.Popen:
        process = subprocess.Popen(
            command or (sys.executable, '-X', 'dev', '-W', 'error', '-m', 'nodeipc', 'demo'),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            encoding='utf-8',
            cwd=str(tmp_path),
            env={
                **os.environ,
                'PYTHONPATH': str(ROOT),
                'PYTHONDEVMODE': '1',
                'PYTHONWARNINGS': 'error',
                'PYTHONIOENCODING': 'utf-8',
                'PYTHONUNBUFFERED': '',  # no help from outside
                **environment,
            },
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start_demo
    for process in started:
        process.kill()
        process.communicate()


def shown_by(process: subprocess.Popen) -> List[str]:
    """Wait until a demo has ended well and return its lines."""
    output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, ''), output
    lines: List[str] = output.splitlines()
    return lines


def check_conversation(lines: List[str], tls: bool = True) -> None:
    """See that what was promised was shown, in the order in which it happens; without TLS also where there is no openssl."""
    assert {line[:7] for line in lines} == {'demo  │', 'world │', 'hello │'}
    conversation = [
        'world │ got a message : hello',
        'hello │ got a message from world : hello world!',
        'hello │ got a broadcast from world : somebody said hello',
        r'hello │ 1,000 pings there and back, median : \d+ µs',
    ]
    connected = 'hello │ ## connected to world ##'
    goodbye = ['hello │ stopping', 'world │ stopping']
    secret = [
        'demo  │ the same over TLS, .*',
        r'world │ pid \d+, listening at 127\.0\.0\.1:\d+',
        connected,
        *conversation,
        *goodbye,
    ] if tls and shutil.which('openssl') else ['demo  │ TLS is left out: .*']
    in_order(
        lines,
        r'demo  │ pid \d+ starts .* Unix socket',
        r'world │ pid \d+, listening at /.*/app\.world',
        r'hello │ pid \d+, connecting to /.*/app\.world',
        connected,
        *conversation,
        'demo  │ world is stopped .*',
        'world │ stopping',
        r'world │ pid \d+, listening at /.*/app\.world',
        *conversation,
        *goodbye,
        'demo  │ the same over TCP',
        r'world │ pid \d+, listening at 127\.0\.0\.1:\d+',
        r'hello │ pid \d+, connecting to 127\.0\.0\.1:\d+',
        connected,
        *conversation,
        *goodbye,
        *secret,
        'demo  │ the same over UDP',
        r'world │ pid \d+, listening at 127\.0\.0\.1:\d+',
        r'hello │ pid \d+, at 127\.0\.0\.1:\d+ emits to .*',
        'world │ heard a new peer : .*',
        *conversation,
        *goodbye,
        'world │ forgot a peer',
    )
    # It may be connected before world has said that it listens.
    in_order(lines, 'demo  │ world is stopped .*', 'hello │ disconnected from world', connected, conversation[0])
    text = '\n'.join(lines)
    assert re.search(  # in UDP, too, the address that one has is the one that the other knows
        r'world │ pid \d+, listening at (\S+)\nhello │ pid \d+, at (\S+) emits to \1\nworld │ heard a new peer : \2\n', text
    )
    acts = 5 if len(secret) > 1 else 4
    assert text.count(', with the certificate of hello\n') == acts - 4
    assert lines.count(connected) == acts - 1
    assert lines.count('hello │ disconnected from world') == acts - 1
    assert lines.count('world │ a client disconnected') == acts - 1
    assert len(set(re.findall(r'^\S+ *│ pid \d+', text, re.MULTILINE))) == 2 * acts  # each process says it once
    medians = re.findall(r'median : (\d+) µs', text)
    assert len(medians) == acts
    del medians[1]  # after the reconnection
    ways = ['the Unix socket', 'TCP', 'TLS', 'UDP']
    if acts == 4:
        ways.remove('TLS')
    named = ', '.join(f'{median} µs over {way}' for median, way in zip(medians, ways))
    assert re.fullmatch(f'demo  │ done: .* {named} .*1,000.*', lines[-1])


def in_order(lines: List[str], *patterns: str) -> None:
    rest = iter(lines)
    for pattern in patterns:
        assert any(re.fullmatch(pattern, line) for line in rest), (pattern, lines)


def test_the_demo_is_plain_in_a_pipe_and_in_colour_on_a_terminal_and_two_at_once_do_not_meet(start: Any) -> None:
    """Both at once, because a demo takes seconds."""
    controller, terminal = os.openpty()
    process = start(stdout=terminal, TERM='xterm')
    os.close(terminal)
    in_a_pipe = start()
    shown = b''
    with contextlib.suppress(OSError):  # EIO: everybody has closed the other end
        while True:
            shown += os.read(controller, 1 << 16)
    os.close(controller)
    assert (process.communicate(timeout=SECONDS)[1], process.returncode) == ('', 0)
    text = shown.decode()
    assert '\x1b[34mgot a message :\x1b[0m hello' in text  # the roles' own colours
    assert '\x1b[36mworld │\x1b[0m' in text  # and those of the labels
    plain = shown_by(in_a_pipe)
    assert not COLOR.search('\n'.join(plain))
    for lines in (COLOR.sub('', text).splitlines(), plain):
        check_conversation(lines)
        clients = re.findall(r'hello │ pid (\d+), connecting to /', '\n'.join(lines))
        assert set(re.findall(r'a client connected : pid (\d+)', '\n'.join(lines))) == set(clients)


def test_the_demo_runs_uninstalled_and_without_openssl_in_a_directory_full_of_traps(start: Any, tmp_path: Path) -> None:
    for trap in ('json.py', 'selectors.py', 'nodeipc.py'):
        (tmp_path / trap).write_text('raise SystemExit("trapped")')
    script = tmp_path / 'bin' / 'demo'
    script.parent.mkdir()
    script.write_text(f'import sys; sys.path.insert(0, {str(ROOT)!r}); from nodeipc.cli import main; sys.exit(main())')
    lines = shown_by(start(sys.executable, str(script), 'demo', PYTHONPATH='', PATH=str(script.parent)))
    check_conversation(lines, tls=False)
    why = 'demo  │ TLS is left out: certificates are made by the openssl command, which'
    assert any(line.startswith(why) for line in lines)
    assert not any('over TLS' in line for line in lines)
    assert 'µs over TCP, ' in lines[-1]


# A demo that begins with a later act: the first ones make no difference to what Ctrl-C does then.
FROM = """
import sys
from nodeipc import cli, demo
def play(stage):
    transport = sys.argv[1]
    if transport == 'tls':
        stage.make_certificates()
    demo._play_again(stage, transport)
demo._play = play
sys.exit(cli.main(['demo']))
"""


@pytest.mark.parametrize(
    ('moment', 'act'),
    [('pid', ''), ('connected to world', ''), ('the same over TCP', ''), ('connected to world', 'tls'), ('emits to', 'udp')]
)
def test_ctrl_c_ends_the_demo_quietly(moment: str, act: str, start: Any) -> None:
    if act == 'tls' and shutil.which('openssl') is None:
        pytest.skip('the openssl command is not here to make certificates with')
    process = start(sys.executable, '-S', '-c', FROM, act) if act else start()
    assert any(moment in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (130, '')
    assert 'done' not in output


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_terminated_ends_as_tidily(number: signal.Signals, start: Any) -> None:
    process = start()
    assert any('connected to world' in line for line in process.stdout)
    process.send_signal(number)
    assert process.communicate(timeout=SECONDS)[1] == ''
    assert process.returncode == 128 + number


def test_a_demo_that_is_killed_takes_its_processes_with_it(start: Any, temporary: Path) -> None:
    process = start()
    assert any('connected to world' in line for line in process.stdout)
    assert len(processes(temporary)) in (0, 3)  # 0: not told
    process.kill()
    process.wait()
    eventually(lambda: not processes(temporary))
    (directory,) = temporary.iterdir()
    assert list(directory.iterdir()) == []  # the socket file is gone too
    directory.rmdir()


def test_a_reader_that_leaves_ends_the_demo_quietly(start: Any) -> None:
    process = start()
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ''
    assert process.wait(SECONDS) == 1


def test_a_child_that_fails_is_heard(start: Any, temporary: Path) -> None:
    long = temporary / ('too-long-for-a-socket-path-' * 4)
    long.mkdir()
    process = start(TMPDIR=str(long))
    errors = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 1
    assert re.match(r'nodeipc demo: world \(pid \d+\) ended with exit code 1, but had more to do\n', errors)
    assert 'OSError: ' in errors
    assert 'the socket path has' in errors
    assert list(long.iterdir()) == []
    long.rmdir()


@pytest.fixture
def act(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Run a demo in this process, whose children do as they are told here; return its exit code."""

    def run(program: str, seconds: float = SECONDS) -> int:
        prelude = '''
import json, os, select, sys, time
role = sys.argv[1]
def tell(what, value):
    os.write(1, json.dumps([role, what, value]).encode() + b'\\n')
def play():
    tell('listening', ['nowhere', 0])
    while not select.select([0], [], [], 0.01)[0]:  # the end of stdin
        tell('round trip', 0.000061)
'''
        monkeypatch.setattr(demo, '_COMMAND', (sys.executable, '-S', '-c', prelude + program))
        monkeypatch.setattr(demo, '_STEP_SECONDS', seconds)
        return demo.run()

    return run


def test_a_child_that_hangs_is_given_up(act: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert act('sys.stderr.write("I am waiting"); sys.stderr.flush(); time.sleep(600)', seconds=0.5) == 1
    errors = capsys.readouterr().err
    assert re.match(r"nodeipc demo: world \(pid \d+\) has not come to 'listening' within 0.5 s\n", errors)
    assert 'I am waiting' in errors


def test_a_child_that_chatters_for_ever_is_given_up(act: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert act('while True: tell("says", "patience")', seconds=0.5) == 1
    output, errors = capsys.readouterr()
    assert 'has not come to' in errors
    assert 'world │ patience\n' in output


def test_an_act_whose_datagrams_are_lost_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = """
import os, socket, sys
def sendto(self, datagram, where):
    os.write(1, b'["hello", "lost", null]\\n')
    return len(datagram)
socket.socket.sendto = sendto
from nodeipc import demo
demo._main(*sys.argv[1:])
"""

    def play(stage: Any) -> None:
        stage.wait_for(stage.enter('world', 'udp'), 'listening')
        hello = stage.enter('hello', 'udp', 9)
        stage.wait_for(hello, 'lost')
        monkeypatch.setattr(demo, '_STEP_SECONDS', 0.3)
        stage.wait_for(hello, 'round trip')

    monkeypatch.setattr(demo, '_COMMAND', (sys.executable, '-S', '-c', program))
    monkeypatch.setattr(demo, '_play', play)
    assert demo.run() == 1
    output, errors = capsys.readouterr()
    assert 'emits to 127.0.0.1:' in output
    assert re.fullmatch(r"nodeipc demo: hello \(pid \d+\) has not come to 'round trip' within 0.3 s\n", errors)


def test_a_child_that_does_not_end_is_given_up(act: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert act('play(); time.sleep(600)', seconds=0.5) == 1
    assert re.match(r'nodeipc demo: world \(pid \d+\) has not ended within 0.5 s\n', capsys.readouterr().err)


def test_a_child_that_fails_at_its_end_fails_the_demo(act: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert act('play(); tell("says", "farewell"); sys.exit("no, I failed")') == 1
    output, errors = capsys.readouterr()
    assert 'world │ farewell\n' in output  # nothing that was said is lost
    assert re.match(r'nodeipc demo: world \(pid \d+\) ended with exit code 1\n', errors)
    assert 'no, I failed' in errors


def test_what_a_child_complains_of_is_shown_though_it_ends_well(act: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert act('sys.stderr.write(f"a warning from {role}"); play()') == 0
    errors = capsys.readouterr().err
    acts = 5 if shutil.which('openssl') else 4
    assert errors.count('a warning from world') == acts
    assert errors.count('a warning from hello') == acts - 1


def test_a_child_that_cannot_be_started_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, '_COMMAND', ('/nonexistent/python',))
    assert demo.run() == 1
    assert capsys.readouterr().err.startswith('nodeipc demo: world cannot be started: ')


def test_an_output_without_our_characters_gets_others(act: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        output = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
        patch.setattr(sys, 'stdout', output)
        assert act('tell("says", "n\\u00e4mlich"); play()') == 0
    lines = output.buffer.getvalue().decode('ascii').splitlines()  # type: ignore[attr-defined]
    assert 'world | n\\xe4mlich' in lines
    assert '61 us over the Unix socket, 61 us over TCP, ' in lines[-1]


def test_a_demo_leaves_signals_as_they_were(act: Any) -> None:
    def handle(number: int, frame: Any) -> None:
        pass

    before = {number: signal.signal(number, handler) for number, handler in (
        (signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGHUP, handle)
    )}
    try:
        assert act('play()') == 0
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(before)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is handle
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_command_line_without_a_command_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    output, errors = capsys.readouterr()
    assert output == ''
    assert errors.startswith('usage: nodeipc ')
    assert re.search(r'\n +demo +\S', errors)


def test_the_command_line_tells_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(['--version'])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f'nodeipc {nodeipc.__version__}\n'


@pytest.mark.parametrize('arguments', [['dmeo'], ['demo', 'fast'], ['--verson']])
def test_wrong_usage_is_exit_code_2(arguments: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith('usage: nodeipc ')


def test_a_system_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, 'No space left on device', '/tmp/x')

    monkeypatch.setattr(tempfile, 'mkdtemp', fail)
    assert cli.main(['demo']) == 1
    assert capsys.readouterr().err == "nodeipc demo: [Errno 28] No space left on device: '/tmp/x'\n"
