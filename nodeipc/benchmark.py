"""The command `bench`: how long round trips take, and how many messages there are in a second, told in figures and bars.

The other end is a process of its own, at the end of this file, or a server somewhere that answers each event with one of
the same type. Measured is what a program sees: `request`, handlers, and `emit`, with all that is between.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from array import array
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator, NamedTuple, Optional, Sequence

from . import connect, serve
from .client import Client
from .errors import EmitTimeout, NotConnectedError, RequestTimeout
from .jsonlines import STDOUT
from .options import UsageError, settings
from .supervisor import CommandError, Session

# Of our own server: what it answers, and what it only hears.
_ECHO, _SINK = 'message', 'sink'

_COMMAND = (sys.executable, '-m', f'{__package__}.benchmark')

# What the start of our own server may take: far more than on the slowest machine.
_START_SECONDS = 15.0

# What may be in flight. With more than max_pending_bytes a handler of ours and one of theirs could wait for each other.
_MAX_FLIGHT_BYTES = 4 << 20

# A terminal is told that often how far it is.
_SHOW_SECONDS = 0.1

_PERCENTILES = {'p50': 0.5, 'p90': 0.9, 'p99': 0.99}

# Where the bars of the histogram begin, in any decade, and how long the longest is.
_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
_BAR_CHARACTERS = 40

# Slower ones share the last bar.
_LAST_BAR = 0.999


class Rate(NamedTuple):
    """So many messages in so many seconds, and how long each took, in seconds, if that is known."""

    messages: int
    seconds: float
    times: Sequence[float]

    @property
    def per_second(self) -> float:
        """Messages in a second."""
        return self.messages / self.seconds

    def figures(self) -> Dict[str, float]:
        """Return what there is to say, for a program: microseconds but for the rate."""
        found = {'messages': self.messages, 'per_second': round(self.per_second, 1)}
        if self.times:
            times = sorted(self.times)
            found.update({f'{name}_us': round(percentile(times, share) * 1e6, 1) for name, share in _PERCENTILES.items()})
            found['max_us'] = round(times[-1] * 1e6, 1)
        return found


def bench(arguments: Namespace, session: Session) -> int:
    """Measure and print."""
    is_own = arguments.address is None
    if not is_own and arguments.address.startswith('udp:'):
        raise UsageError('UDP loses messages, and waiting for them is no measurement; use another transport')
    chosen = settings(arguments, arguments.type)
    if is_own and chosen['parser'] == 'assured':
        raise UsageError('--profile assured needs an ADDRESS: a server that has certificates, or a secured socket')
    with _own_server(arguments.transport, chosen) if is_own else contextlib.nullcontext(arguments.address) as address:
        results = _Bench(address, chosen, arguments, session).run()
    if arguments.json:
        figures = {name: rate.figures() for name, rate in results.items()}
        session.print({'address': arguments.address or arguments.transport, 'size': arguments.size, **figures})
    else:
        session.write(_report(arguments, results))
    return 0


def _window(arguments: Namespace) -> int:
    return int(min(arguments.in_flight, max(1, _MAX_FLIGHT_BYTES // (arguments.size + 64))))


class _Bench:
    """Three measurements, each with a connection of its own: what comes late in one must not count in the next."""

    def __init__(self, address: str, chosen: Dict[str, Any], arguments: Namespace, session: Session) -> None:
        self._address = address
        self._chosen = chosen
        self._window = _window(arguments)
        self._has_sink = arguments.address is None
        self._echo = _ECHO if self._has_sink else arguments.type
        self._payload = 'x' * arguments.size
        self._seconds = arguments.seconds
        self._timeout: Optional[float] = arguments.timeout
        self._session = session
        self._lost = threading.Event()  # the connection, of which a client would make a new one
        self._shown = 0.0

    def run(self) -> Dict[str, Rate]:
        """Return what was measured, by name."""
        results: Dict[str, Rate] = {}
        for measure in (self.one_at_a_time, self.in_flight, self.one_way):
            self._lost.clear()
            with self._session.add(connect(self._address, **self._chosen)) as client:
                client.on('disconnect', self._lost.set)
                results[measure.__name__] = measure(client)
        return results

    def one_at_a_time(self, client: Client) -> Rate:
        """Ask, wait for the answer, ask again."""
        echo, payload, timeout = self._echo, self._payload, self._timeout
        try:
            client.request(echo, payload, timeout=timeout)
        except RequestTimeout as error:
            why = f'it takes a server that answers each {echo!r} with one: nodeipc serve ADDRESS --echo, or see --type'
            raise RequestTimeout(f'{error} {why}') from error
        times = array('d')
        begin = now = time.perf_counter()
        end = begin + self._seconds
        while now < end:
            before = time.perf_counter()
            client.request(echo, payload, timeout=timeout)
            now = time.perf_counter()
            times.append(now - before)
            self._check(client, len(times))
            self._show('one at a time', begin, now)
        return Rate(len(times), now - begin, times)

    def in_flight(self, client: Client) -> Rate:
        """Have so many unanswered at any time; an answer is followed by the next message."""
        echo, payload = self._echo, self._payload
        times = array('d')
        sent: Deque[float] = deque()
        done = threading.Event()

        @client.on(echo)
        def answered() -> None:
            now = time.perf_counter()
            times.append(now - sent.popleft())  # a server answers in order
            if now < end:
                sent.append(now)
                try:
                    client.emit(echo, payload)
                except (EmitTimeout, NotConnectedError):
                    pass  # whoever waits for the answers finds out
            elif not sent:
                done.set()

        client.wait_connected(self._timeout)
        begin = time.perf_counter()
        end = begin + self._seconds
        for _ in range(self._window):
            sent.append(time.perf_counter())
            client.emit(echo, payload)
        self._wait(client, f'{self._window} in flight', begin, done, lambda: len(times))
        return Rate(len(times), time.perf_counter() - begin, times)

    def one_way(self, client: Client) -> Rate:
        """Send without waiting, until all was handled. A server that is not ours answers each, and that is counted."""
        type = _SINK if self._has_sink else self._echo
        payload = self._payload
        sent = answers = 0
        is_sent = False
        done = threading.Event()

        @client.on(self._echo)
        def answered() -> None:
            nonlocal answers
            answers += 1
            if is_sent and answers >= sent:
                done.set()

        client.wait_connected(self._timeout)
        begin = now = time.perf_counter()
        end = begin + self._seconds
        while now < end:
            client.emit(type, payload)
            sent += 1
            now = time.perf_counter()
            self._check(client, answers)
            self._show('one way', begin, now)
        messages = sent
        if self._has_sink:
            sent = 1  # what is answered after all of them were handled
            client.emit(self._echo, payload)
        is_sent = True
        if answers < sent:
            self._wait(client, 'one way', begin, done, lambda: answers)
        return Rate(messages, time.perf_counter() - begin, ())

    def _wait(self, client: Client, what: str, begin: float, done: threading.Event, answers: Callable[[], int]) -> None:
        """Wait until it is done, as long as there is some progress in each timeout and the connection stands."""
        before, since = answers(), time.perf_counter()
        while not done.wait(_SHOW_SECONDS):
            now, count = time.perf_counter(), answers()
            self._show(what, begin, now)
            self._check(client, count)
            if count != before:
                before, since = count, now
            elif self._timeout is not None and now - since > self._timeout:
                raise RequestTimeout(f'{client}: no answer came for {self._timeout:g} s, after {count} of them')

    def _check(self, client: Client, answers: int) -> None:
        if self._lost.is_set():
            raise NotConnectedError(f'{client}: the connection was lost after {answers} answers')

    def _show(self, what: str, begin: float, now: float) -> None:
        if now - self._shown > _SHOW_SECONDS:
            self._shown = now
            share = min(1.0, (now - begin) / self._seconds)
            self._session.show(f'{what:16} {"#" * round(share * 20):20} {share:4.0%}')


# What is said of it


def percentile(times: Sequence[float], share: float) -> float:
    """Return the time that this share of `times`, which are sorted, do not exceed.

    >>> percentile([1, 2, 3, 4], 0.5)
    2
    """
    return times[max(0, math.ceil(share * len(times)) - 1)]


def _report(arguments: Namespace, results: Dict[str, Rate]) -> str:
    address = arguments.address
    where = f'a server process of its own, {arguments.transport}' if address is None else address
    names = {'one_at_a_time': 'one at a time', 'in_flight': f'{_window(arguments)} in flight', 'one_way': 'one way'}
    python = f'{sys.implementation.name} {sys.version.split()[0]}'
    return (
        f'{where}; {arguments.size} bytes of data; {python}, {os.cpu_count()} cores\n\n'
        f'{"":17}{"messages":>9}  {"a second":>9}  {"p50":>9}{"p90":>9}{"p99":>9}{"max":>9}\n'
        + ''.join(_line(name, results[key]) for key, name in names.items())
        + ('' if address is None else '                 (each of them answered, too)\n')
        + f'\nround trips, one at a time\n{histogram(results["one_at_a_time"].times)}'
    )


def _line(name: str, rate: Rate) -> str:
    line = f'{name:17}{rate.messages:9,}  {rate.per_second:9,.0f}'
    if rate.times:
        times = sorted(rate.times)
        line += '  ' + ''.join(f'{_readable(percentile(times, share)):>9}' for share in (*_PERCENTILES.values(), 1))
    return line + '\n'


def _readable(seconds: float) -> str:
    for unit, size in (('s', 1.0), ('ms', 1e-3)):
        if seconds >= size:
            return f'{seconds / size:.3g} {unit}' if seconds < 1000 * size else f'{seconds / size:.0f} {unit}'
    return f'{seconds * 1e6:.0f} µs'


def histogram(times: Sequence[float]) -> str:
    """Return bars that show how many of `times` are how long. Each begins at what its line says.

    >>> print(histogram([0.00005] * 30 + [0.00006] * 10 + [0.0001] * 15), end='')
        50 µs  ████████████████████████████████████████ 40
        70 µs  0
       100 µs  ███████████████ 15
    """
    ordered = sorted(times)
    first, last = _bar_of(ordered[0]), _bar_of(percentile(ordered, _LAST_BAR))
    counts = [0] * (last - first + 1)
    for value in ordered:
        counts[min(_bar_of(value), last) - first] += 1
    text = ''
    for index, count in enumerate(counts):
        bar = '█' * round(count / max(counts) * _BAR_CHARACTERS)
        more = f', up to {_readable(ordered[-1])}' if first + index == last and _bar_of(ordered[-1]) > last else ''
        text += f'{_readable(_begin_of(first + index)):>9}  {bar}{" " if bar else ""}{count:,}{more}\n'
    return text


def _bar_of(seconds: float) -> int:
    nanoseconds = max(1.0, seconds * 1e9)
    decade = math.floor(math.log10(nanoseconds) + 1e-9)
    step = sum(nanoseconds >= begin * 10 ** decade * (1 - 1e-9) for begin in _STEPS) - 1
    return int(decade * len(_STEPS) + max(0, step))


def _begin_of(bar: int) -> float:
    decade, step = divmod(bar, len(_STEPS))
    return _STEPS[step] * 10.0 ** decade / 1e9


# Our own server


@contextlib.contextmanager
def _own_server(transport: str, chosen: Dict[str, Any]) -> Iterator[str]:
    """Start a server process and yield its address. It ends when its stdin does: when we say so, or end in whatever way."""
    shared = {name: chosen[name] for name in ('delimiter', 'parser') if name in chosen}
    try:
        process = subprocess.Popen(
            (*_COMMAND, transport, json.dumps(shared)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),  # where it finds this very package
            start_new_session=True,  # a Ctrl-C is for us alone
        )
    except OSError as error:
        raise CommandError(f'a server process cannot be started: {error}') from error
    with process:
        assert process.stdout is not None and process.stdin is not None
        try:
            if not select.select((process.stdout,), (), (), _START_SECONDS)[0]:
                raise CommandError(f'our own server has not started within {_START_SECONDS:g} s')
            address = process.stdout.readline().decode().strip()
            if not address:
                raise CommandError('our own server has failed')
            yield address
        finally:
            process.stdin.close()
            try:
                process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _main(transport: str, shared: str) -> None:
    with tempfile.TemporaryDirectory(prefix='nodeipc-bench-') as directory:
        server = serve('tcp://127.0.0.1:0' if transport == 'tcp' else f'{directory}/bench', **json.loads(shared))
        server.on(_ECHO, lambda data, socket: socket.emit(_ECHO, data))
        server.on(_SINK, lambda: None)
        with server, contextlib.suppress(BrokenPipeError):  # whoever has started us may have ended already
            address = server.address
            address = address if isinstance(address, str) else f'tcp://{address[0]}:{address[1]}'
            os.write(STDOUT, address.encode() + b'\n')
            sys.stdin.read()


if __name__ == '__main__':
    _main(*sys.argv[1:])
