"""The soak: half a minute of it, and that it finds what it is there for. FAULTS=full has it find more."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from .conftest import eventually
from .soak import board as fields
from .soak.board import Board
from .soak.judge import BOTH, DOWN, NOTHING, UP, Judge
from .soak.ledger import Findings, Ledger, Span
from .soak.payloads import Payloads, checksum, sign

ROOT = Path(__file__).parent.parent
FULL = os.environ.get('FAULTS') == 'full'

# A small one, of two clients and one server, that is left alone.
SMALL = ('--seconds', '3', '--transports', 'unix', '--no-faults', '--stuck', '5')

WRONG = {
    'lose': 'LOST: ', 'lose-end': 'LOST: ', 'double': 'DUPLICATED: ', 'damage': 'DAMAGED: ', 'leak-thread': 'LEAK: threads',
    'leak-descriptor': 'LEAK: ', 'hang': 'HANG: ', 'grow': 'GROWN: ',
}


@pytest.fixture
def soak() -> Iterator[Any]:
    """Start a soak, whose files are in a directory with a name that is short enough for a socket."""
    directory = tempfile.mkdtemp(prefix='soak-')
    started: List[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(
            [sys.executable, '-m', 'tests.soak', *arguments], cwd=str(ROOT), env={**os.environ, 'TMPDIR': directory},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, encoding='utf-8',
        ))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
    shutil.rmtree(directory, ignore_errors=True)


def children(process: Any) -> List[int]:
    found = []
    for name in os.listdir('/proc'):
        if name.isdigit():
            try:
                stat = Path('/proc', name, 'stat').read_text()
            except OSError:
                continue
            if int(stat.rpartition(')')[2].split()[1]) == process.pid:
                found.append(int(name))
    return found


def lives(pid: int) -> bool:
    try:
        return Path('/proc', str(pid), 'stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def figures(output: str) -> Dict[str, int]:
    """The numbers in the closing lines, by what stands before them."""
    lines = [line for line in output.splitlines() if re.match(r'sent |reconnects ', line)]
    found = [match for line in lines for match in re.findall(r'([a-z ]+?) ([\d,]+)(?:  |$)', line)]
    return {name: int(number.replace(',', '')) for name, number in found}


def test_half_a_minute(soak: Any) -> None:
    process = soak('--seconds', '27')
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    found = figures(output)
    wanted = ('lost', 'duplicated', 'damaged', 'leaked descriptors', 'leaked threads')
    assert {name: found[name] for name in wanted} == dict.fromkeys(wanted, 0), output
    assert found['sent'] == found['delivered'] + found['in flight at a cut'] + found['dropped by goodbyes'], output
    assert found['delivered'] > 1000 and found['reconnects'] > 10, output
    assert re.search(r'^seconds \d+, seed \d+, faults: .*\d+ cuts', output, re.MULTILINE), output
    assert re.search(r'^memory .*server-tcp [\d.]+ MiB at the start, [\d.]+ MiB at the end', output, re.MULTILINE), output


@pytest.mark.parametrize('wrong', WRONG if FULL else ['lose-end', 'damage'])
def test_what_is_wrong_is_found(soak: Any, wrong: str) -> None:
    process = soak(*SMALL, '--seed', '1', '--break', wrong)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert re.search(f'^{WRONG[wrong]}', output, re.MULTILINE), output
    assert re.search(rf'^to repeat it: python -m tests.soak .*--seed 1 .*--break {wrong}$', output, re.MULTILINE), output


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='children are looked for in /proc')
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGINT, signal.SIGTERM] if FULL else [signal.SIGKILL])
def test_no_child_is_left_behind(soak: Any, number: int) -> None:
    process = soak('--seconds', '600', '--transports', 'unix')
    pids = eventually(lambda: len(children(process)) >= 3 and children(process))
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    eventually(lambda: not any(lives(pid) for pid in pids))
    if number != signal.SIGKILL:
        assert process.returncode == 0, output
        assert figures(output)['lost'] == 0, output


class Receiver:
    """A ledger, and what has come of one row by several connections."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.findings = Findings()
        self.ledger = Ledger(board, self.findings)
        self.connections: Dict[str, Dict[int, Span]] = {}

    def take(self, connection: str, *numbers: int, payload: Any = 'x') -> None:
        for number in numbers:
            signature = sign(8, number, checksum('x'))
            self.ledger.take(self.connections.setdefault(connection, {}), 8, number, signature, payload)

    def end(self, connection: str) -> None:
        self.ledger.ended(self.connections[connection])

    def found(self) -> Any:
        taken = self.findings.take()
        return [text.split(':')[0] for text in taken['wrong']], [record['missing'] for record in taken['records']]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    board = Board(str(tmp_path / 'board'))
    yield Receiver(board)
    board.close()


def test_a_gap_in_a_connection_is_a_loss(receiver: Receiver) -> None:
    receiver.take('a', 1, 2, 4)
    assert receiver.found() == (['LOST'], [])
    assert receiver.board.get(8, fields.UP_LOST) == 1


def test_a_number_that_has_come_is_a_duplicate(receiver: Receiver) -> None:
    receiver.take('a', 1, 2, 2)
    receiver.take('b', 2)
    Receiver(receiver.board).take('c', 3)
    assert receiver.found() == (['DUPLICATED'] * 2, [])
    another = Receiver(receiver.board)  # the server was replaced
    another.take('d', 3)
    assert another.found() == (['DUPLICATED'], [])


def test_another_payload_is_damaged(receiver: Receiver) -> None:
    receiver.take('a', 1, payload='y')
    assert receiver.found() == (['DAMAGED'], [])


def test_a_gap_between_connections_is_for_the_judge(receiver: Receiver) -> None:
    receiver.take('a', 1, 2)
    receiver.take('b', 6)
    receiver.take('a', 3)  # the strand of the last connection may be behind that of the next one
    assert receiver.found() == ([], [])
    receiver.end('a')
    assert receiver.found() == ([], [2])


def test_only_what_takes_messages_explains_a_loss() -> None:
    for takes, is_explained in ((BOTH, True), (UP, True), (DOWN, False), (NOTHING, False), (None, False)):
        judge = Judge()
        judge.scopes[8] = ('client', 'server', 'proxy')
        judge.note('another proxy', 'cut', BOTH)
        if takes is not None:
            judge.note('proxy', 'fault', takes)
        began = judge.faults[0].began
        judge.hear({'what': 'up', 'row': 9, 'missing': 3, 'began': began, 'ended': began + 1, 'after': 5})
        assert (judge.unexplained, len(judge.problems)) == ((0, 0) if is_explained else (3, 1))


def test_a_fault_explains_no_loss_before_it() -> None:
    judge = Judge()
    judge.scopes[8] = ('client', 'server')
    judge.note('server', 'kill', BOTH)
    began = judge.faults[0].began
    judge.hear({'what': 'up', 'row': 8, 'missing': 1, 'began': began - 9, 'ended': began - 1, 'after': 5})
    assert judge.unexplained == 1


def test_payloads_are_the_same_again_and_their_checksums_hold() -> None:
    first, second = Payloads('seed'), Payloads('seed')
    picked = [first.pick() for _ in range(200)]
    assert picked == [second.pick() for _ in range(200)]
    assert all(checksum(value) == summed for value, summed in picked)
    assert max(len(str(value)) for value, _ in picked) > 100_000
