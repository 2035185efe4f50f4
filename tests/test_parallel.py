"""The tests are run in several processes, and what came of them is told as one process tells it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List

import pytest

from .conftest import eventually
from .parallel import cores

pytestmark = pytest.mark.skipif(cores() == 1, reason='one core, one process')

Start = Callable[..., 'subprocess.Popen[str]']

CONFTEST = """
import os, pathlib, pytest
@pytest.fixture(scope='session')
def session():
    yield
    (pathlib.Path(__file__).parent / f'ended-{os.getpid()}').touch(exist_ok=False)
"""
ONE = """
import pytest
def test_first(session): pass
@pytest.mark.parametrize('what', [object()], ids=repr)
def test_second(session, what): pass
"""


DYING = """
import atexit, os, time
def child():
    for _ in range(600):
        if os.path.exists('enough'):
            break
        time.sleep(0.1)
    os._exit(0)
def test_death(): %s
"""
# The next file is asked for before the last test, so these are not the last.
WAITING = """
import os, pathlib, time
def test_wait(session):
    (pathlib.Path(__file__).parent / f'waits-{os.getpid()}').write_text('')
    time.sleep(60)
def test_last(): pass
"""


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def start_tests(files: Dict[str, str], *arguments: str) -> subprocess.Popen[str]:
        (tmp_path / 'conftest.py').write_text(CONFTEST)
        for name, text in files.items():
            (tmp_path / f'test_{name}.py').write_text(text)
        command = [sys.executable, '-m', 'pytest', '-p', 'tests.parallel', '-c', os.devnull, f'--rootdir={tmp_path}']
        environment = dict(os.environ, PYTHONPATH=os.getcwd(), PYTEST_ADDOPTS='')
        with (tmp_path / 'stderr').open('w') as stderr:  # no pipe: who is forked may keep it open
            return subprocess.Popen(
                [*command, '-p', 'no:cacheprovider', str(tmp_path), *arguments], cwd=tmp_path, env=environment,
                stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip

    return start_tests


def assert_ended(tmp_path: Path) -> None:
    for path in tmp_path.glob('waits-*'):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name[len('waits-'):]), 0)


def lines(process: subprocess.Popen[str], status: int) -> List[str]:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == status, out
    return out.splitlines()


def test_each_test_is_run_once_and_told_as_usual(start: Start, tmp_path: Path) -> None:
    failing = 'import pytest\ndef test_bad(): assert 1 == 2\n@pytest.mark.skip(reason="why not")\ndef test_skipped(): pass\n'
    output = lines(start({'a': ONE, 'b': ONE, 'c': failing, 'd': ONE}, '-ra'), 1)
    for name in ('a', 'b', 'd'):
        assert any(re.fullmatch(rf'test_{name}\.py \.\. +\[ *\d+%\]', line) for line in output)
    assert any(re.fullmatch(r'test_c\.py Fs +\[ *\d+%\]', line) for line in output)
    assert any(line.split() == ['E', 'assert', '1', '==', '2'] for line in output)
    assert 'SKIPPED [1] test_c.py:3: why not' in output
    assert 'FAILED test_c.py::test_bad - assert 1 == 2' in output
    assert re.fullmatch(r'=+ 1 failed, 6 passed, 1 skipped in .* =+', output[-1])
    assert 1 <= len(list(tmp_path.glob('ended-*'))) <= cores()  # what is there for a session was there once in each


@pytest.mark.parametrize('death', [
    'os._exit(0)',
    'os.fork() and os._exit(0) or child()',  # which has its end of the connection
    'atexit.register(os._exit, 3)',  # after the last test
])  # fmt: skip
def test_a_process_that_dies_fails_the_run(start: Start, tmp_path: Path, death: str) -> None:
    output = lines(start({'a': ONE, 'b': DYING % death, 'c': ONE}), 1)
    (tmp_path / 'enough').touch()
    (told,) = (line for line in output if line.startswith('!'))
    assert re.search(r'ended with status 0, before test_[bc]\.py was done|process has ended with status 3', told)


def test_what_is_known_is_told_when_it_is_interrupted(start: Start, tmp_path: Path) -> None:
    process = start({'a': 'def test_bad(): assert 1 == 2\n' + WAITING, 'b': ONE})
    eventually(lambda: list(tmp_path.glob('waits-*')))
    process.send_signal(signal.SIGINT)
    output = lines(process, 2)
    assert 'FAILED test_a.py::test_bad - assert 1 == 2' in output
    assert_ended(tmp_path)
    assert list(tmp_path.glob('ended-*'))  # and cleaned up


def test_what_cannot_be_collected_or_chosen_is_told_once(start: Start) -> None:
    output = lines(start({'a': ONE, 'b': 'import nowhere_to_be_found\n'}), 2)
    assert sum(line.startswith('E   ModuleNotFoundError') for line in output) == 1
    assert '2 passed, 2 deselected' in lines(start({'b': ONE}, '-k', 'second'), 0)[-1]
    assert '4 deselected' in lines(start({}, '-k', 'nothing'), 5)[-1]


def test_the_first_failure_may_end_it(start: Start, tmp_path: Path) -> None:
    failing = 'import pathlib, time\ndef test_bad():\n'
    failing += '    while not list(pathlib.Path(__file__).parent.glob("waits-*")): time.sleep(0.01)\n'
    failing += '    assert False\ndef test_good(): pass\n'
    began = time.monotonic()
    output = lines(start({'a': WAITING, 'b': failing, 'c': ONE}, '-x'), 1)
    assert time.monotonic() - began < 50
    assert any('stopping after 1 failures' in line for line in output)
    assert_ended(tmp_path)


def test_ctrl_c_ends_all_processes(start: Start, tmp_path: Path) -> None:
    process = start({'a': WAITING, 'b': WAITING})
    eventually(lambda: len(list(tmp_path.glob('waits-*'))) == 2)
    process.send_signal(signal.SIGINT)
    lines(process, 2)
    assert_ended(tmp_path)
