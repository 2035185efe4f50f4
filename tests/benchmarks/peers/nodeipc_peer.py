"""nodeipc, this checkout's: handlers on both sides, with the default configuration."""

from __future__ import annotations

import contextlib
import itertools
import platform
import threading
from functools import partial
from time import perf_counter
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from common import SECONDS, Spec, Unsupported, Wrong, check_count, main, rate, round_trips, serve_until_told

import nodeipc

_HOST = '127.0.0.1'
_VERSION = f'nodeipc {nodeipc.__version__}'
_ONE_WAY = ('oneway', 'batch')


def _make(spec: Spec, tls: Optional[Dict[str, str]]) -> nodeipc.IPC:
    settings: Dict[str, Any] = {'silent': True, 'max_connections': max(100, spec.clients + spec.idle + 1)}
    if spec.pattern == 'workers0':
        settings['workers'] = 0
    if spec.transport == 'tls':
        settings['tls'] = tls
    return nodeipc.IPC(id='world', **settings)


def serve(spec: Spec) -> None:
    """Answer each message with the same, or count them, or broadcast as many as a client asks for."""
    if spec.transport not in ('unix', 'tcp', 'tls', 'udp'):
        raise Unsupported
    payload = spec.data()
    handled = itertools.count()  # from several threads
    asked = itertools.count()
    wrong: List[Any] = []
    errors: List[Any] = []

    def echo(data: Any, socket: Any) -> None:
        next(handled)
        socket.emit('message', data)

    def hear(data: Any) -> None:
        if data != payload:
            wrong.append(data)
        next(handled)

    def send_round(count: int) -> None:
        broadcast = server.broadcast
        for _ in range(count):
            broadcast('message', payload)

    tls = spec.tls and {'private': spec.tls['key'], 'public': spec.tls['cert']}
    with _make(spec, tls) as ipc:
        if spec.transport == 'unix':
            server = ipc.serve(spec.address)
        else:
            server = ipc.serve_net(_HOST, 0, 'udp4' if spec.transport == 'udp' else None)
        server.on('error', lambda error: errors.append(error))
        server.on('message', hear if spec.pattern in _ONE_WAY else echo)
        server.on('round', send_round)
        server.on('join', lambda data, socket: socket.emit('joined'))
        server.on('count', lambda data, socket: socket.emit('counted', [next(handled) - next(asked), len(wrong)]))
        server.start()
        serve_until_told(0 if spec.transport == 'unix' else server.address[1])
    if errors:
        raise Wrong(f'{len(errors)} errors, such as {errors[0]!r}')


class _Watch:
    """Lets the main thread wait for handlers, and hear what goes wrong there."""

    def __init__(self) -> None:
        self._changed = threading.Event()
        self._lock = threading.Lock()  # handlers of several clients end their parts
        self._parts = 0
        self._reason: Optional[str] = None

    def expect(self, parts: int = 1) -> None:
        """So many ends are to come before `wait` returns."""
        self._parts = parts
        self._changed.clear()

    def end(self) -> None:
        """A part is done."""
        with self._lock:
            self._parts -= 1
            if self._parts:
                return
        self._changed.set()

    def fail(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._changed.set()

    def wait(self) -> None:
        in_time = self._changed.wait(SECONDS)
        if self._reason:
            raise Wrong(self._reason)
        if not in_time:
            raise Wrong(f'nothing more has come within {SECONDS:g} s')


class _Link:
    """One connection, or for UDP one socket and the server's address: `emit`, `on`, and what both products ask of it."""

    def __init__(self, ipc: nodeipc.IPC, spec: Spec, name: str, watch: _Watch) -> None:
        self.watch = watch
        self.counted: Tuple[int, int] = (0, 0)
        self.emit: Callable[[str, Any], None]
        self.role: Any
        if spec.transport == 'udp':
            self.role = ipc.serve_net(_HOST, 0, 'udp4')
            self.role.start()
            self.emit = partial(self.role.emit, (_HOST, spec.address))
        else:
            where = (spec.address,) if spec.transport == 'unix' else (_HOST, spec.address)
            connect = ipc.connect_to if spec.transport == 'unix' else ipc.connect_to_net
            self.role = connect(name, *where, self._watch_over)
            self.emit = self.role.emit
        self.on = self.role.on
        self.on('joined', watch.end)
        self.on('counted', self._hear_count)

    def _watch_over(self, client: Any) -> None:
        client.on('error', lambda error: self.watch.fail(f'{error!r}'))
        client.on('disconnect', lambda: self.watch.fail('the connection was lost'))

    def _hear_count(self, counted: List[int]) -> None:
        self.counted = counted[0], counted[1]
        self.watch.end()

    def verify(self, expected: int) -> None:
        """Have the server say what it has handled, and compare. What it sent before has been handled here then."""
        self.watch.expect()
        self.emit('count', 0)
        self.watch.wait()
        check_count('the server has handled', self.counted[0], expected)
        if self.counted[1]:
            raise Wrong(f'{self.counted[1]} messages were damaged on the way to the server')


@contextlib.contextmanager
def _linked(spec: Spec, count: int) -> Iterator[List[_Link]]:
    """Connect so many, each known to the server."""
    watch = _Watch()
    with _make(spec, spec.tls and {'trusted_connections': spec.tls['cert']}) as ipc:
        watch.expect(count)
        links = [_Link(ipc, spec, f'client{number}', watch) for number in range(count)]
        for link in links:
            link.emit('join', 0)
        watch.wait()
        yield links
        for link in links:
            if spec.transport != 'udp':
                link.role.off('disconnect')


def _one_at_a_time(spec: Spec) -> Dict[str, Any]:
    """The handler of an answer sends the next message."""
    payload = spec.data()
    total = spec.warmup + spec.count
    moments: List[float] = []
    with _linked(spec, 1 + spec.idle) as (link, *_):
        emit, watch, took = link.emit, link.watch, moments.append

        @link.on('message')
        def answered(data: Any) -> None:
            took(perf_counter())
            if data != payload:
                watch.fail('a message came back damaged')
            elif len(moments) < total:
                emit('message', payload)
            else:
                watch.end()

        watch.expect()
        begin = perf_counter()
        emit('message', payload)
        watch.wait()
        link.verify(total)
    check_count('answers', len(moments), total)
    return round_trips(_VERSION, begin, moments, spec.warmup)


class _Flow:
    """One client's messages in flight: each answer sends the next, as long as there are any."""

    def __init__(self, link: _Link, spec: Spec) -> None:
        self._emit = link.emit
        self._watch = link.watch
        self._payload = spec.data()
        self._window = spec.window
        self._unsent = 0
        self._expected = 0
        self.answers = 0
        link.on('message', self._answered)

    def start(self, count: int) -> None:
        burst = min(self._window, count)
        self._expected += count
        self._unsent = count - burst
        for _ in range(burst):
            self._emit('message', self._payload)

    def _answered(self, data: Any) -> None:
        if data != self._payload:
            self._watch.fail('a message came back damaged')
        self.answers += 1
        if self._unsent:
            self._unsent -= 1
            self._emit('message', self._payload)
        elif self.answers == self._expected:
            self._watch.end()


def _in_flight(spec: Spec) -> Dict[str, Any]:
    """`clients` of them, each with `window` messages in flight."""
    counts = [max(1, number // spec.clients) for number in (spec.warmup, spec.count)]
    with _linked(spec, spec.clients) as links:
        flows = [_Flow(link, spec) for link in links]
        watch = links[0].watch
        for count in counts:
            watch.expect(spec.clients)
            begin = perf_counter()
            for flow in flows:
                flow.start(count)
            watch.wait()
            seconds = perf_counter() - begin
        links[0].verify(sum(counts) * spec.clients)
        for link in links[1:]:
            link.verify(sum(counts) * spec.clients)
    for flow in flows:
        check_count('answers', flow.answers, sum(counts))
    return rate(_VERSION, counts[1] * spec.clients, seconds)


def _one_way(spec: Spec) -> Dict[str, Any]:
    """Emit, until the server has counted all."""
    payload = spec.data()
    with _linked(spec, 1) as (link,):
        emit = link.emit
        total = 0
        for count in (spec.warmup, spec.count):
            total += count
            begin = perf_counter()
            with link.role.batch() if spec.pattern == 'batch' else contextlib.nullcontext():
                for _ in range(count):
                    emit('message', payload)
            link.verify(total)
            seconds = perf_counter() - begin
    return rate(_VERSION, spec.count, seconds)


class _Listener:
    """One client of a broadcast; at the end of a round it says so to the others' watch."""

    def __init__(self, link: _Link, spec: Spec) -> None:
        self._watch = link.watch
        self._payload = spec.data()
        self.expected = 0
        self.heard = 0
        link.on('message', self._hear)

    def _hear(self, data: Any) -> None:
        if data != self._payload:
            self._watch.fail('a message came damaged')
        self.heard += 1
        if self.heard == self.expected:
            self._watch.end()


def _broadcast(spec: Spec) -> Dict[str, Any]:
    """All clients in this process. When all have heard `window` messages the next so many are asked for."""
    with _linked(spec, spec.clients) as links:
        listeners = [_Listener(link, spec) for link in links]
        watch, emit = links[0].watch, links[0].emit
        for count in (spec.warmup, spec.count):
            begin = perf_counter()
            for sent in range(0, count, spec.window):
                size = min(spec.window, count - sent)
                watch.expect(spec.clients)
                for listener in listeners:
                    listener.expected += size
                emit('round', size)
                watch.wait()
            seconds = perf_counter() - begin
        for link in links:
            link.verify(0)
    for listener in listeners:
        check_count('heard', listener.heard, spec.warmup + spec.count)
    return rate(_VERSION, spec.count * spec.clients, seconds)


def _request(spec: Spec) -> Dict[str, Any]:
    """Ask in the main thread."""
    payload = spec.data()
    moments: List[float] = []
    with _linked(spec, 1) as (link,):
        request = link.role.request
        begin = perf_counter()
        for _ in range(spec.warmup + spec.count):
            if request('message', payload, timeout=SECONDS) != payload:
                raise Wrong('a message came back damaged')
            moments.append(perf_counter())
        link.verify(spec.warmup + spec.count)
    return round_trips(_VERSION, begin, moments, spec.warmup)


_PATTERNS = {
    'latency': _one_at_a_time,
    'workers0': _one_at_a_time,
    'idle': _one_at_a_time,
    'pipeline': _in_flight,
    'many': _in_flight,
    'oneway': _one_way,
    'batch': _one_way,
    'broadcast': _broadcast,
    'request': _request,
}


def measure(spec: Spec) -> Dict[str, Any]:
    """Be the client."""
    if spec.pattern not in _PATTERNS or (spec.transport == 'udp' and spec.pattern not in ('latency', 'workers0')):
        raise Unsupported
    result = _PATTERNS[spec.pattern](spec)
    result['version'] += f', {platform.python_implementation()} {platform.python_version()}'
    return result


if __name__ == '__main__':
    main(serve, measure)
