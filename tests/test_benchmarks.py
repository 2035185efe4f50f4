"""The benchmark itself: each lane can be run, what it says is well-formed, and no loss or damage goes unnoticed."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import pytest

from .benchmarks import __main__ as runner
from .benchmarks import faulty, machine, sample
from .benchmarks.lanes import LANES, NODE, OURS, Lane
from .benchmarks.report import Outcome, others_table, table
from .interop.peers import Missing, find_node

SECONDS = 60.0

# What one may wait for what never comes.
SHORT = 1.0

# Starting interpreters takes more than running such samples.
AT_ONCE = 4

BY_NAME = {lane.name: lane for lane in LANES}


def tiny(lane: Lane) -> Lane:
    """The lane with few messages and clients."""
    clients = min(lane.clients, 3)
    return lane._replace(
        count=8 * clients, quick=8 * clients, clients=clients, idle=min(lane.idle, 3), size=min(lane.size, 1 << 20)
    )


def covering(lanes: Sequence[Lane]) -> List[Lane]:
    """So few of them that there is each pattern, each transport, each payload and each size."""
    found: List[Lane] = []
    seen: Set[Tuple[str, Any]] = set()
    for lane in lanes:
        traits = {(name, getattr(lane, name)) for name in ('pattern', 'transport', 'payload', 'size')}
        if not traits <= seen:
            found.append(lane)
        seen |= traits
    return found


TINY = covering([tiny(lane) for lane in LANES])


def measure(lane: Lane, peer: str, command: List[str], tls: Any = None, seconds: float = SECONDS) -> Any:
    """Return the result of a sample, or what it raised."""
    spec = lane.spec(peer, True, tls)
    try:
        return sample.run(command, spec, lane.messages(spec), seconds)
    except (sample.Failed, sample.Unsupported) as error:
        return error


def measure_all(rows: Sequence[Tuple[Any, ...]]) -> List[Any]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda row: measure(*row), rows))


def check_result(lane: Lane, result: Any) -> None:
    assert isinstance(result, sample.Result), f'{lane.name}: {result!r}'
    assert result.messages == lane.messages(lane.spec(OURS, True, None))
    assert result.seconds > 0
    assert result.mean > 0
    if 'p50' in lane.metrics:
        assert result.p50 is not None and result.p99 is not None
        assert 0 < result.p50 <= result.p99
    else:
        assert result.p50 is None and result.p99 is None


@pytest.fixture
def tls(tmp_path: Path) -> Optional[Dict[str, str]]:
    try:
        return runner._make_tls(str(tmp_path))
    except LookupError:
        return None


@pytest.fixture(scope='module')
def node_command() -> List[str]:
    try:
        return sample.node_peer(find_node('14.0.0'))
    except Missing as reason:
        pytest.skip(str(reason))


def test_each_lane_can_be_run(tls: Optional[Dict[str, str]]) -> None:
    lanes = [lane for lane in TINY if tls or lane.transport != 'tls']
    command = sample.python_peer(OURS)
    for lane, result in zip(lanes, measure_all([(lane, OURS, command, tls) for lane in lanes])):
        check_result(lane, result)


def test_node_ipc_runs_the_same_lanes(node_command: List[str]) -> None:
    lanes = [tiny(BY_NAME[name]) for name in ('batch-tcp', 'broadcast-unix', 'latency-udp')]
    for lane, result in zip(lanes, measure_all([(lane, NODE, node_command) for lane in lanes])):
        check_result(lane, result)


def test_the_others_that_need_no_package_run_what_they_can() -> None:
    lanes = [tiny(BY_NAME[name]) for name in ('pipeline-tcp', 'oneway-unix', 'many')]
    peers = ['socket', 'multiprocessing']
    rows = [(lane, peer, sample.python_peer(peer)) for peer in peers for lane in lanes]
    for (lane, *_), result in zip(rows, measure_all(rows)):
        if lane.pattern == 'many':
            assert isinstance(result, sample.Unsupported)
        else:
            check_result(lane, result)


# What must not pass

FAULTS = [
    ('latency-unix', 'damage-down-3', 'damaged'),
    ('latency-unix', 'repeat-down-3', 'messages'),
    ('latency-unix', 'repeat-down-10', 'answers: 11 of 10 messages'),  # the last one
    ('pipeline-unix', 'lose-down-3', f'taken more than {SHORT:g} s'),
    ('oneway-unix', 'lose-up-3', '9 of 10 messages'),
    ('oneway-unix', 'damage-up-3', '1 messages were damaged on the way to the server'),
    ('broadcast-unix', 'damage-down-3', 'damaged'),
]


def check_faults(peer: str, command: List[str], table: Sequence[Tuple[str, str, str]]) -> None:
    rows = []
    for name, fault, words in table:
        seconds = SHORT if words.startswith('taken') else SECONDS
        faulty_command = [sys.executable, faulty.__file__, fault, *command]
        rows.append((tiny(BY_NAME[name]), peer, faulty_command, None, seconds))
    for (name, fault, words), error in zip(table, measure_all(rows)):
        assert isinstance(error, sample.Failed), f'{name} {fault}: {error!r}'
        assert words in str(error), f'{name} {fault}: {error}'


def test_no_loss_damage_or_repetition_goes_unnoticed() -> None:
    check_faults(OURS, sample.python_peer(OURS), FAULTS)


def test_nor_does_it_with_node_ipc(node_command: List[str]) -> None:
    check_faults(NODE, node_command, [FAULTS[0], FAULTS[2], FAULTS[4]])


def test_a_proxy_that_does_no_harm_changes_nothing() -> None:
    # or the tests above would prove nothing
    lane = tiny(BY_NAME['oneway-unix'])
    command = [sys.executable, faulty.__file__, 'none-up-3', *sample.python_peer(OURS)]
    check_result(lane, measure(lane, OURS, command))


def write_program(path: Path, text: str) -> List[str]:
    path.write_text('import os, sys, time\nrole = sys.argv[1]\n' + text)
    return [sys.executable, '-S', str(path)]


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('sys.exit("no such luck")', 'the server has ended with status 1: no such luck'),
        ('print("unready", flush=True); time.sleep(1)', "the server has said b'unready"),
        ('if role == "server": print("ready 0", flush=True); sys.stdin.read()', 'the client has printed'),
        (
            'print("ready 0" if role == "server" else \'{"messages": 7, "seconds": 1, "p50_us": 1, "p99_us": 1, '
            '"version": ""}\', flush=True); role == "server" and sys.stdin.read()',
            'the client has measured 7 messages and should have measured 8',
        ),
    ],
    ids=['fails', 'unready', 'silent', 'miscounts'],
)
def test_a_peer_that_does_not_keep_to_the_rules_is_told_of(tmp_path: Path, text: str, words: str) -> None:
    result = measure(tiny(BY_NAME['latency-unix']), OURS, write_program(tmp_path / 'peer.py', text))
    assert isinstance(result, sample.Failed)
    assert words in str(result)


def test_a_peer_that_does_not_do_this_says_so(tmp_path: Path) -> None:
    result = measure(tiny(BY_NAME['latency-unix']), OURS, write_program(tmp_path / 'peer.py', 'sys.exit(3)'))
    assert isinstance(result, sample.Unsupported)


def test_no_process_outlives_its_sample(tmp_path: Path) -> None:
    text = (
        f'open(os.path.join({str(tmp_path)!r}, role), "w").write(str(os.getpid()))\n'
        'print("ready 0", flush=True)\n'
        'time.sleep(1000)'
    )
    result = measure(tiny(BY_NAME['latency-unix']), OURS, write_program(tmp_path / 'peer.py', text), seconds=0.5)
    assert isinstance(result, sample.Failed)
    for role in 'server', 'client':
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / role).read_text()), 0)


# What is said of it


def test_a_run_ends_with_tables_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, 'LANES', [tiny(lane) for lane in LANES])
    file = tmp_path / 'results' / 'run.json'
    lanes = 'request,idle-crowd'
    arguments = ['--lanes', lanes, '--peers', 'multiprocessing,socket', '--pairs', '1', '--json', str(file)]
    assert runner.main(arguments) == 0
    output, progress = capsys.readouterr()
    found = json.loads(file.read_text('utf-8'))
    assert found['pairs'] == 1
    assert {'commit', 'dirty', 'cpu', 'cores', 'system', 'date', 'load'} <= set(found)
    (run,) = found['runs']
    idle, request = run['lanes']
    assert [idle['lane']['name'], request['lane']['name']] == ['idle-crowd', 'request']
    assert set(idle['peers']) == {OURS, 'alone'}
    assert {peer: len(measured['samples']) for peer, measured in request['peers'].items()} == {
        OURS: 1, 'multiprocessing': 1, 'socket': 1
    }
    ratio = request['peers']['multiprocessing']['ratio']['p50']
    assert 0 < ratio['least'] <= ratio['median'] <= ratio['most']
    assert request['targets'][0]['met'] == (ratio['median'] <= 1.0)
    for line in '| idle-crowd | p50 |', '| request | p50 |', '| lane | | nodeipc | bare sockets |':
        assert line in output
    assert [line.partition(':')[0] for line in progress.splitlines()[:2]] == lanes.split(',')[::-1]


def test_a_lane_that_fails_is_repeated_once_and_then_said_to_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = write_program(tmp_path / 'peer.py', f'open({str(tmp_path / "tries")!r}, "a").write("x"); sys.exit("no luck")')
    monkeypatch.setattr(runner, 'python_peer', lambda *arguments: program)
    assert runner.main(['--lanes', 'request', '--peers', 'multiprocessing', '--pairs', '2']) == 1
    assert (tmp_path / 'tries').read_text() == 'xx' * 2  # ours and theirs, each of them twice
    assert 'FAILED: the server has ended with status 1: no luck' in capsys.readouterr().out


def result(microseconds: float) -> sample.Result:
    return sample.Result(microseconds, microseconds, 2 * microseconds, 10, 1.0, '')


def test_ratios_are_those_of_the_pairs() -> None:
    outcome = Outcome(BY_NAME['latency-unix'])
    outcome.samples = {OURS: [result(10), result(30), result(20)], NODE: [result(10), result(10), result(40)]}
    assert outcome.ratio(NODE, 'p50') == (1.0, 0.5, 3.0)
    assert outcome.is_met('p50', 1.0)
    assert not outcome.is_met('p50', 0.9)
    assert outcome.ratio('zmq', 'p50') is None
    first, second = table([outcome]).splitlines()[2:]
    assert first.startswith('| latency-unix | p50 | 20 µs | node-ipc 14 | 10 µs | 1.00 (0.50')
    assert first.endswith('| 1 | met |')
    assert second.startswith('| latency-unix | p99 | 40 µs |')
    assert others_table([outcome]) == ''


def test_what_is_not_here_is_said_and_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, 'LANES', [tiny(lane) for lane in LANES])
    monkeypatch.setattr(machine, 'VENV_PYTHON', tmp_path / 'nowhere')
    monkeypatch.setattr(machine, '_MODULES', tmp_path)
    assert runner.main(['--lanes', 'workers0', '--peers', 'node,zmq,socket', '--pairs', '1']) == 0
    output, progress = capsys.readouterr()
    assert 'node is skipped: node-ipc 14.0.0 is not installed; run `make interop`' in progress
    assert 'zmq is skipped: its packages are not installed' in progress
    assert '| workers0 | p50 |' in output
