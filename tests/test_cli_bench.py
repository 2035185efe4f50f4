"""``nodeipc bench``: against a server process of its own and against others, and what it shows meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Iterator, List

import pytest

import nodeipc
from nodeipc import benchmark, cli

from .cli_processes import Command
from .conftest import eventually

QUICKLY = ('--seconds', '0.05')


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory for the server process, which is to be left empty."""
    with tempfile.TemporaryDirectory(prefix='test-bench-') as directory:  # tmp_path is too long for a socket path
        monkeypatch.setenv('TMPDIR', directory)
        yield Path(directory)
        eventually(lambda: not list(Path(directory).iterdir()))


def bench(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run it in this process; return the figures."""
    code = cli.main(['bench', *QUICKLY, '--json', *arguments])
    output, errors = capfd.readouterr()
    assert (code, errors) == (0, '')
    return json.loads(output)


@pytest.mark.parametrize('options', ['', '--transport tcp --size 10000 --in-flight 3', r'--delimiter \n --profile guarded'])
def test_it_measures_a_server_process_of_its_own(
    options: str, temporary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    figures = bench(capfd, *options.split())
    assert figures['address'] == ('tcp' if 'tcp' in options else 'unix')
    assert figures['size'] == (10000 if 'size' in options else 64)
    for part in ('one_at_a_time', 'in_flight'):
        found = figures[part]
        assert found['messages'] >= 1
        assert 0 < found['p50_us'] <= found['p90_us'] <= found['p99_us'] <= found['max_us']
        assert found['per_second'] > 0
    assert figures['one_way']['messages'] >= 1
    one = figures['one_at_a_time']
    assert one['per_second'] < 2.1e6 / one['p50_us']  # half of them took that long or longer, one after the other


def test_it_measures_any_server_that_answers(capfd: pytest.CaptureFixture[str]) -> None:
    server = nodeipc.serve('world')
    server.on('question', lambda data, socket: socket.emit('question', [data, 'and more']))
    with server:
        figures = bench(capfd, 'world', '--type', 'question')
        assert all(figures[part]['messages'] for part in ('one_at_a_time', 'in_flight', 'one_way'))
        assert cli.main(['bench', 'world', '--timeout', '0.1']) == 3
    assert re.fullmatch(r"nodeipc bench: .*'message' was sent.* nodeipc serve ADDRESS --echo.*\n", capfd.readouterr().err)


@pytest.mark.parametrize('part', [1, 2, 3])
def test_a_server_that_leaves_in_the_middle_ends_it(part: int, capfd: pytest.CaptureFixture[str]) -> None:
    clients: List[nodeipc.Socket] = []

    def answer(data: Any, socket: nodeipc.Socket) -> None:
        count = socket.context['count'] = socket.context.get('count', 0) + 1
        leaves = len(clients) == part and count == (20 if part < 3 else 1)
        if part < 3 or not leaves:
            socket.emit('message', data)
        if leaves:
            socket.close()

    server = nodeipc.serve('world')
    server.on('connect', clients.append)
    server.on('message', answer)
    with server:
        assert cli.main(['bench', 'world', '--seconds', '0.02' if part > 1 else '5']) == 1
    output, errors = capfd.readouterr()
    assert (output, errors.count('\n')) == ('', 1), errors


def test_the_report_is_for_people_and_a_terminal_sees_how_far_it_is(temporary: Path) -> None:
    controller, terminal = os.openpty()
    command = Command('bench', '--seconds', '0.2', stderr=terminal)
    os.close(terminal)
    try:
        code, output, _ = command.ends()
    finally:
        command.close()
    shown = b''
    with os.fdopen(controller, 'rb', 0) as screen, contextlib.suppress(OSError):  # EIO: its end
        while True:
            shown += screen.read(4096)
    assert code == 0
    figure = r' +\d[\d,.]*(?: µs| ms| s)?'
    for part, columns in (('one at a time', 6), ('64 in flight', 6), ('one way', 2)):
        assert re.search(rf'^{part}(?:{figure}){{{columns}}}$', output, re.MULTILINE), output
    assert re.match(r'a server process of its own, unix; 64 bytes of data; \w+ 3[.\d]+\S*, \d+ cores\n', output)
    bars = output.partition('round trips, one at a time\n')[2].splitlines()
    assert bars and all(re.fullmatch(rf'{figure}  (?:█+ )?\d[\d,]*(?:, up to{figure})?', bar) for bar in bars)
    progress = re.findall(r'\r(one at a time|64 in flight|one way) +#* +\d+%', shown.decode())
    assert progress[0] == 'one at a time'
    assert shown.endswith(b'\r\x1b[K')  # and nothing is left of it


def test_ctrl_c_leaves_nothing(temporary: Path) -> None:
    command = Command('bench', '--seconds', '60')
    try:
        eventually(lambda: list(temporary.glob('*/bench')))
        command.interrupt()
        assert command.ends() == [130, '', '']
    finally:
        command.close()


def test_a_server_process_that_fails_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, '_COMMAND', ('false',))
    assert cli.main(['bench']) == 1
    assert capfd.readouterr().err == 'nodeipc bench: our own server has failed\n'
    monkeypatch.setattr(benchmark, '_COMMAND', ('/nonexistent/python',))
    assert cli.main(['bench']) == 1
    assert capfd.readouterr().err.startswith('nodeipc bench: a server process cannot be started: ')


def test_percentiles_and_bars() -> None:
    times = [number / 1e6 for number in range(1, 101)]
    assert [benchmark.percentile(times, share) for share in (0.5, 0.9, 0.99, 1)] == [50e-6, 90e-6, 99e-6, 100e-6]
    assert benchmark.percentile([7], 0.5) == 7
    assert benchmark.histogram([0.001] * 2000 + [3.5]) == '     1 ms  ' + '█' * 40 + ' 2,001, up to 3.5 s\n'
    assert benchmark.histogram([1e-9, 2e-9]).splitlines()[0].endswith(' 1')
    for microseconds in (1, 1.5, 2, 3, 4, 5, 7, 10, 100, 1000, 1e6, 1e7):  # each begins a bar
        text = benchmark.histogram([microseconds * 1e-6])
        assert text.count('\n') == 1 and text.startswith(f'{benchmark._readable(microseconds * 1e-6):>9}  ')
