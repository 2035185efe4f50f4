"""How nodeipc's costs grow: ``python -m tests.benchmarks.growth [--json FILE] [--quick]``.

What a message costs with more and more connections, what a byte costs in longer and longer messages, and in messages that
come in small pieces. Both ends are nodeipc in processes of their own, in the default configuration; every answer is
compared with what was sent. Whether a cost is flat is told by the exponent of a power law fitted to the medians, 0 for flat
and 1 for linear, and by the largest median over the smallest. It is told, not asserted: this is no test.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import socket
import statistics
import struct
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .footprint import Bench, Child, add_arguments, allowed_connections, heading, machine, plain_socket, say

_CONNECTIONS = (1, 10, 100, 1000)

# How many messages are under way, over all connections: at least one on each.
_IN_FLIGHT = 64

_KIB, _MIB = 1 << 10, 1 << 20

# The size of a payload, and how many are echoed: enough to take a while.
_SIZES = ((100, 6000), (_KIB, 6000), (10 * _KIB, 2000), (100 * _KIB, 300), (_MIB, 40), (16 * _MIB, 4))

# What is received in pieces, and the pieces.
_WHOLES = (_MIB, 4 * _MIB, 16 * _MIB)
_PIECES = (_KIB, 64 * _KIB)

# A cost grows no more than that where it is called flat: the machines that this runs on are noisy.
_FLAT_EXPONENT = 0.1

# From that size on, what a message costs is what its bytes cost.
_LONG = 100 * _KIB

_SERVER = """
import json, os, sys, time
import nodeipc
ipc = nodeipc.IPC(id='world', silent=True, max_connections=int(sys.argv[2]))
server = ipc.serve(json.loads(sys.argv[1]))
server.on('message', lambda data, socket: socket.emit('message', data))
server.on('length', lambda data, socket: socket.emit('length', len(data)))
server.start()
print(json.dumps(server.address), flush=True)
for line in iter(sys.stdin.readline, ''):
    print(time.process_time(), flush=True)
ipc.close()
"""

_CLIENT = """
import json, sys, threading, time
import nodeipc
where, count = map(json.loads, sys.argv[1:])
ipc = nodeipc.IPC(id='hello', silent=True)
clients = []
for number in range(count):
    clients.append(ipc.connect_to(f'world{number}', where))
    clients[-1].wait_connected(60)

def in_turn(messages, payload):
    for number in range(messages):
        if clients[number % count].request('message', payload, timeout=60) != payload:
            raise SystemExit('the answer is another')

def all_busy(messages, payload, in_flight):
    share, extra = divmod(messages, count)
    lock, done, wrong = threading.Lock(), threading.Event(), []
    unfinished = count
    def start(client, quota):
        sent = answered = 0
        def ask():
            nonlocal sent
            sent += 1
            client.emit('message', payload)
        @client.on('message')
        def answer(data):
            nonlocal answered, unfinished
            answered += 1
            if data != payload:
                wrong.append(data)
            if sent < quota:
                ask()
            elif answered == quota:
                client.off('message', answer)
                with lock:
                    unfinished -= 1
                    if not unfinished:
                        done.set()
        return [ask] * min(quota, in_flight)
    first = [start(client, share + (number < extra)) for number, client in enumerate(clients)]
    for asks in first:
        for ask in asks:
            ask()
    if not done.wait(120) or wrong:
        raise SystemExit(f'{unfinished} connections lack answers, {len(wrong)} answers are wrong')

def measured(function, messages, size, *more):
    payload = 'x' * size
    before, began = time.process_time(), time.perf_counter()
    function(messages, payload, *more)
    return {'seconds': time.perf_counter() - began, 'cpu': time.process_time() - before}

print('true', flush=True)
for line in iter(sys.stdin.readline, ''):
    name, *arguments = json.loads(line)
    print(json.dumps(measured({'in turn': in_turn, 'all busy': all_busy}[name], *arguments)), flush=True)
ipc.close()
"""


class Sample(NamedTuple):
    """What so many messages took, in seconds: by the clock, and of the processors of client and server."""

    clock: float
    client: float
    server: float


class Point(NamedTuple):
    """Medians for one message of a series, in microseconds, at its `x`: connections, or bytes."""

    x: int
    clock: float
    client: float
    server: float
    messages: int


class Series(NamedTuple):
    """How a cost grows: `per` is the unit of `x` that costs are divided by in the judgment, if any."""

    name: str
    unit: str
    points: List[Point]
    exponent: float
    ratio: float
    judged: str


# Measurements


def over_connections(bench: Bench) -> List[Series]:
    """The same messages over more and more connections of one client process: one at a time in turn, and all at once."""
    messages = 4000 if bench.quick else 20000
    most = allowed_connections(_CONNECTIONS[-1], bench.notes)
    counts = [min(count, most) for count in _CONNECTIONS]
    patterns = {
        'a round trip, one at a time, each connection in turn': ('in turn', 0),
        'a round trip, all connections busy, one in flight on each': ('all busy', 1),
        f'a round trip, all connections busy, {_IN_FLIGHT} in flight in all, or one on each': ('all busy', _IN_FLIGHT),
    }
    found: Dict[Tuple[str, int], List[Sample]] = {}
    for number in range(3 if bench.quick else 5):
        say(f'connections, round {number + 1}')
        for count in counts:
            with _both(bench, count) as (server, client):
                for name, (pattern, in_flight) in patterns.items():
                    more = in_flight and [max(1, in_flight // count)]
                    sample(server, client, pattern, max(500, count), 64, *more or ())  # a warm-up
                    found.setdefault((name, count), []).append(sample(server, client, pattern, messages, 64, *more or ()))
    return [
        _series(name, 'connections', [_point(count, found[name, count], messages) for count in counts]) for name in patterns
    ]


def over_sizes(bench: Bench) -> List[Series]:
    """Echoes of longer and longer strings, one at a time."""
    found: Dict[int, List[Sample]] = {}
    counts = {size: max(2, count // 4) if bench.quick else count for size, count in _SIZES}
    for number in range(3 if bench.quick else 5):
        say(f'sizes, round {number + 1}')
        with _both(bench, 1) as (server, client):
            for size, count in counts.items():
                sample(server, client, 'in turn', max(1, count // 10), size)
                found.setdefault(size, []).append(sample(server, client, 'in turn', count, size))
    points = [_point(size, found[size], counts[size]) for size in counts]
    return [_series('an echo of a string, one at a time', 'bytes', points, _LONG)]


def in_pieces(bench: Bench) -> List[Series]:
    """Longer and longer messages that a server receives piece by piece: the next is sent when the last was taken."""
    found: Dict[Tuple[int, int], List[Sample]] = {}
    for number in range(1 if bench.quick else 3):
        say(f'pieces, round {number + 1}')
        with _server(bench, 2) as server, plain_socket('unix', server.ready) as sock:
            _send_in_pieces(server, sock, 64 * _KIB, _KIB)
            for whole in _WHOLES:
                for piece in _PIECES:
                    found.setdefault((piece, whole), []).append(_send_in_pieces(server, sock, whole, piece))
    return [
        _series(
            f'a message received in pieces of {_size(piece)}', 'bytes', [_point(w, found[piece, w], 1) for w in _WHOLES], 1,
            lambda point: point.server,
        )
        for piece in _PIECES
    ]  # fmt: skip


def _send_in_pieces(server: Child, sock: socket.socket, whole: int, piece: int) -> Sample:
    message = b'{"type":"length","data":"' + b'x' * whole + b'"}\f'
    wanted = b'{"type":"length","data":%d}\f' % whole
    before, began, own = server.ask(0), time.perf_counter(), time.process_time()
    view = memoryview(message)
    for start in range(0, len(view), piece):
        sock.sendall(view[start:start + piece])
        while _untaken(sock):
            time.sleep(0)  # this thread has nothing better to do
    received = b''
    while len(received) < len(wanted):
        chunk = sock.recv(100)
        if not chunk:
            raise RuntimeError('the server has closed the connection')
        received += chunk
    clock, own = time.perf_counter() - began, time.process_time() - own
    if received != wanted:
        raise RuntimeError(f'{wanted!r} was expected, not {received!r}')
    return Sample(clock, own, server.ask(0) - before)


def _untaken(sock: socket.socket) -> int:
    """Return how much memory what was sent and not received takes; of a Unix socket the kernel knows."""
    return int(struct.unpack('i', fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b'\0\0\0\0'))[0])


def _server(bench: Bench, count: int) -> Any:
    return bench.child(_SERVER, bench.path(), count + 1)


@contextlib.contextmanager
def _both(bench: Bench, count: int) -> Any:
    with _server(bench, count) as server, bench.child(_CLIENT, server.ready, count) as client:
        yield server, client


def sample(server: Child, client: Child, *question: Any) -> Sample:
    """Have a client do something, and see what it takes."""
    before = server.ask(0)
    answer = client.ask(question)
    return Sample(answer['seconds'], answer['cpu'], server.ask(0) - before)


# Judgment


def _point(x: int, samples: Sequence[Sample], messages: int) -> Point:
    clock, client, server = (statistics.median(column) / messages * 1e6 for column in zip(*samples))
    return Point(x, clock, client, server, messages)


def _series(
    name: str, unit: str, points: List[Point], long: int = 0, cost: Callable[[Point], float] = lambda point: point.clock
) -> Series:
    """Judge by `cost`: of a message; or with `long`, of a byte of messages that are at least so long."""
    judged = [point for point in points if point.x >= long]
    costs = [(point.x, cost(point) / (point.x if long else 1)) for point in judged]
    values = [value for _, value in costs]
    what = f'a {"byte" if long else "message"}' + (f' (from {_size(long)} on)' if long > 1 else '')
    return Series(name, unit, points, exponent(costs), max(values) / min(values), what)


def exponent(costs: Sequence[Tuple[float, float]]) -> float:
    """Return by which power of x the costs grow, fitted by least squares to their logarithms.

    >>> round(exponent([(1, 5), (10, 50), (100, 500)]), 3)
    1.0
    >>> exponent([(1, 7), (10, 7)])
    0.0
    """
    logs = [(math.log(x), math.log(max(value, 1e-12))) for x, value in costs]
    mean_x, mean_y = (statistics.mean(column) for column in zip(*logs))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread if spread else 0.0


def _table(series: Series) -> str:
    is_sized = series.unit == 'bytes'
    head = '| size | messages | µs a message | ns a byte | the client\'s CPU | the server\'s CPU |' if is_sized else (
        '| connections | messages a second | µs a message | the client\'s CPU | the server\'s CPU |'
    )
    lines = [f'## {series.name[0].upper()}{series.name[1:]}\n', head, '|' + '---:|' * (head.count('|') - 1)]
    for point in series.points:
        if is_sized:
            costs = [1000 * value / point.x for value in (point.clock, point.client, point.server)]
            lines.append(
                f'| {_size(point.x)} | {point.messages} | {point.clock:,.1f} | {costs[0]:.3g} | {costs[1]:.3g} ns | '
                f'{costs[2]:.3g} ns |'
            )
        else:
            lines.append(
                f'| {point.x} | {1e6 / point.clock:,.0f} | {point.clock:.1f} | {point.client:.1f} µs | '
                f'{point.server:.1f} µs |'
            )
    verdict = 'flat or falling' if series.exponent <= _FLAT_EXPONENT else '**growing**'
    lines.append(
        f'\n{verdict}: the cost of {series.judged} goes with the power {series.exponent:+.2f}; '
        f'the largest median is {series.ratio:.2f} times the smallest.\n'
    )
    return '\n'.join(lines)


def _size(size: int) -> str:
    for unit, name in ((_MIB, 'MiB'), (_KIB, 'KiB')):
        if size >= unit:
            return f'{size // unit} {name}'
    return f'{size} B'


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Measure and print; 0 whatever was found, which the tables tell."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.growth', description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='fewer samples of fewer messages')
    add_arguments(parser)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix='growth-') as directory:
        bench = Bench(directory, chosen.quick, chosen.tree)
        found = [*over_connections(bench), *over_sizes(bench), *in_pieces(bench)]
    where = machine(chosen.tree)
    print(heading('Growth', where) + '\n'.join(map(_table, found)))
    for note in bench.notes:
        print(f'\n{note}')
    if chosen.json:
        series = [{**one._asdict(), 'points': [point._asdict() for point in one.points]} for one in found]
        result = {'machine': where, 'series': series, 'notes': bench.notes}
        Path(chosen.json).write_text(json.dumps(result, indent=2, ensure_ascii=False) + '\n', 'utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
