"""The soak: half a minute of it, and that it finds what it is there for. FAULTS=full has it find more."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from .conftest import eventually
from .soak import board as fields
from .soak.board import LANE, Board
from .soak.judge import UP, Judge, Lane
from .soak.ledger import Findings, Ledger
from .soak.payloads import Payloads, checksum, sign

ROOT = Path(__file__).parent.parent
FULL = os.environ.get('FAULTS') == 'full'
ROW = LANE

# A small one, of two clients and one server, that is left alone.
SMALL = ('--seconds', '3', '--transports', 'unix', '--no-faults')

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
    process = soak('--seconds', '26')
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    found = figures(output)
    wanted = ('lost', 'duplicated', 'damaged', 'leaked descriptors', 'leaked threads')
    assert {name: found[name] for name in wanted} == dict.fromkeys(wanted, 0), output
    parts = found['delivered'] + found['in flight at a cut'] + found['dropped by goodbyes']
    kills = sum(int(count) for count in re.findall(r'faults: .*?(\d+) kills', output))  # each may be between two counts
    assert abs(found['sent'] - parts) <= kills, output
    assert found['in flight at a cut'] < found['sent'] / 4, output
    assert found['delivered'] > 1000 and found['reconnects'] > 10, output
    assert re.search(r'^seconds \d+, seed \d+, faults: .*\d+ cuts', output, re.MULTILINE), output
    assert re.search(r'^memory .*server-tcp [\d.]+ MiB at the start, .*MiB at the end', output, re.MULTILINE), output


@pytest.mark.parametrize('wrong', WRONG if FULL else ['lose-end', 'damage'])
def test_what_is_wrong_is_found(soak: Any, wrong: str) -> None:
    stuck = ('--stuck', '5') if wrong == 'hang' else ()
    process = soak(*SMALL, *stuck, '--seed', '1', '--break', wrong)
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

    def __init__(self, board: Board, path: Path) -> None:
        self.board = board
        self.path = path
        self.findings = Findings(str(path))
        self.ledger = Ledger(board, self.findings)
        self.connections: Dict[str, Dict[int, int]] = {}

    def take(self, connection: str, *numbers: int, payload: Any = 'x') -> None:
        for number in numbers:
            signature = sign(ROW, number, checksum('x'))
            self.ledger.take(self.connections.setdefault(connection, {}), ROW, number, signature, payload)

    def found(self) -> Any:
        """The kinds of what is wrong, and what else was told."""
        records = [json.loads(line) for line in self.path.read_text().splitlines()]
        wrong = [record['text'].split(':')[0] for record in records if record['what'] == 'wrong']
        return wrong, [(record['what'], *list(record.values())[2:]) for record in records if record['what'] != 'wrong']


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    board = Board(str(tmp_path / 'board'))
    receiver = Receiver(board, tmp_path / 'findings')
    yield receiver
    receiver.findings.close()
    board.close()


def test_a_gap_in_a_connection_is_a_loss(receiver: Receiver) -> None:
    receiver.take('a', 1, 2, 4)
    assert receiver.found() == (['LOST'], [])
    assert receiver.board.get(ROW, fields.UP_LOST) == 1


def test_a_number_that_has_come_is_a_duplicate(receiver: Receiver) -> None:
    receiver.take('a', 1, 2, 2)
    receiver.take('b', 2)
    receiver.take('c', 3)
    receiver.take('d', 1)
    assert receiver.found() == (['DUPLICATED'] * 3, [])
    receiver.ledger = Ledger(receiver.board, receiver.findings)  # the server was replaced
    receiver.take('e', 3)
    assert receiver.found() == (['DUPLICATED'] * 4, [])


def test_another_payload_is_damaged(receiver: Receiver) -> None:
    receiver.take('a', 1, payload='y')
    assert receiver.found() == (['DAMAGED'], [])


def test_a_gap_between_connections_is_for_the_judge(receiver: Receiver) -> None:
    receiver.take('a', 1, 2)
    receiver.take('b', 6)
    receiver.take('a', 3)  # the strand of the last connection may be behind that of the next one
    assert receiver.found() == ([], [('hole', 3, 5), ('filled', 3)])


@pytest.fixture
def judge() -> Judge:
    judge = Judge()
    judge.lanes = {ROW: Lane('client', 'server'), ROW + LANE: Lane('client', 'server')}
    return judge


def end(judge: Judge, accepted: int, planned: str = '', token: int = 0, number: int = 0, news: Any = (0, 0)) -> None:
    """The client tells of the end of a connection of the first lane."""
    judge.hear({
        'what': 'end', 'row': ROW, 'accepted': [accepted], 'tried': [accepted + 1], 'ended': time.monotonic(),
        'planned': planned, 'connection': [token, number, *news],
    })


def verdict(judge: Judge) -> Any:
    judge.turn(all_of_it=True)
    return judge.lost, judge.in_flight, judge.dropped, [problem.split(':')[0] for problem in judge.problems]


def hole(judge: Judge, first: int, last: int) -> None:
    judge.hear({'what': 'hole', 'row': ROW, 'first': first, 'last': last})


def test_only_a_fault_of_its_connection_explains_a_loss(judge: Judge) -> None:
    judge.end_lane(ROW, time.monotonic())
    end(judge, 10)
    end(judge, 20, 'us')
    hole(judge, 8, 11)
    hole(judge, 15, 16)
    assert verdict(judge) == (2, 4, 0, ['LOST'])


def test_a_fault_explains_the_loss_of_one_connection(judge: Judge) -> None:
    judge.end_lane(ROW, time.monotonic())
    end(judge, 10, 'us')
    end(judge, 20, 'us')
    hole(judge, 10, 10)
    hole(judge, 20, 20)
    assert verdict(judge) == (1, 1, 0, ['LOST'])


def test_the_fault_of_another_lane_explains_nothing(judge: Judge) -> None:
    judge.end_lane(ROW + LANE, time.monotonic())
    end(judge, 10)
    hole(judge, 10, 10)
    assert verdict(judge) == (1, 0, 0, ['CUT', 'LOST'])


def test_a_server_that_stops_loses_what_comes_and_nothing_that_it_has_sent(judge: Judge) -> None:
    judge.end_server('server', UP)
    end(judge, 10, token=1, number=4)
    hole(judge, 9, 10)
    judge.hear({'what': 'sent', 'row': ROW, 'connection': [1, 6, 0, 0]})
    assert verdict(judge) == (2, 2, 0, ['LOST'])


def test_a_fault_explains_no_loss_after_it(judge: Judge) -> None:
    judge.end_lane(ROW, time.monotonic())
    time.sleep(0.01)
    for accepted in (10, 20, 30):
        end(judge, accepted, 'us' if accepted > 10 else '')
    hole(judge, 12, 13)
    assert verdict(judge) == (2, 0, 0, ['LOST'])


@pytest.mark.parametrize('planned', ['us', 'asked'])
def test_a_goodbye_of_the_client_drops_what_comes_and_one_of_the_server_nothing(judge: Judge, planned: str) -> None:
    end(judge, 1, planned, token=7, number=5, news=(3, 8))
    judge.hear({'what': 'sent', 'row': ROW, 'connection': [7, 6, 4, 10]})
    assert verdict(judge) == ((0, 0, 3, []) if planned == 'us' else (3, 0, 0, ['LOST']))
    assert judge.uncounted == 1  # the broadcast 3: whether it was sent is not known to the server


def test_the_first_broadcasts_of_a_connection_have_no_excuse(judge: Judge) -> None:
    judge.end_lane(ROW, time.monotonic())
    end(judge, 1, token=7, number=5, news=(5, 8))
    judge.hear({'what': 'sent', 'row': ROW, 'connection': [7, 5, 4, 8]})
    assert verdict(judge)[3] == ['LOST']


def test_a_gap_is_bounded(judge: Judge) -> None:
    judge.end_lane(ROW, time.monotonic())
    end(judge, 1_000_000)
    hole(judge, 1, 100_000)
    assert verdict(judge)[3] == ['LOST']


def test_of_a_connection_that_the_client_never_knew_all_is_missing(judge: Judge) -> None:
    judge.hear({'what': 'sent', 'row': ROW, 'connection': [7, 5, 0, 0]})
    judge.end_lane(ROW, time.monotonic())
    end(judge, 1)
    judge.hear({'what': 'sent', 'row': ROW, 'connection': [8, 5, 0, 0]})
    assert verdict(judge) == (5, 5, 0, ['LOST'])


def test_payloads_are_the_same_again_and_their_checksums_hold() -> None:
    first, second = Payloads('seed'), Payloads('seed')
    picked = [first.pick() for _ in range(200)]
    assert picked == [second.pick() for _ in range(200)]
    assert all(checksum(value) == summed for value, summed in picked)
    assert max(len(str(value)) for value, _ in picked) > 100_000
