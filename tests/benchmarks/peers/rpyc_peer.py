"""rpyc: calls of a service. Strings go as they are; other payloads as JSON text, or each access would be a call of its own.

Many in flight and one way are `async_` calls. rpyc answers each of them, and its client reads no answer while it writes: if
more were unanswered than the sockets' buffers hold, both ends would wait for each other.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from time import perf_counter
from typing import Any, Callable, Deque, Dict, Tuple

from common import SECONDS, Spec, Unsupported, Wrong, check_count, main, rate, round_trips, serve_until_told

_ROUND_TRIPS = ('latency', 'request')
_PATTERNS = (*_ROUND_TRIPS, 'pipeline', 'oneway')

_MAX_UNANSWERED = 64
_MAX_UNANSWERED_BYTES = 64 << 10


def _check(spec: Spec) -> None:
    if spec.transport not in ('unix', 'tcp') or spec.pattern not in _PATTERNS:
        raise Unsupported


def _codec(spec: Spec) -> Tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return what reads a payload and what writes it."""
    return (str, str) if spec.payload == 'string' else (json.loads, json.dumps)


def _window(spec: Spec) -> int:
    wanted = spec.window if spec.pattern == 'pipeline' else _MAX_UNANSWERED
    return min(wanted, max(1, _MAX_UNANSWERED_BYTES // len(json.dumps(spec.data()))))


def serve(spec: Spec) -> None:
    """Answer each call with what it was given, or count them."""
    _check(spec)
    import rpyc
    from rpyc.utils.server import ThreadedServer

    payload = spec.data()
    load, dump = _codec(spec)

    class Echo(rpyc.Service):  # type: ignore[misc]
        """One for each connection."""

        handled = wrong = 0

        def exposed_message(self, data: str) -> str:
            """Answer with the same."""
            self.handled += 1
            return str(dump(load(data)))

        def exposed_hear(self, data: str) -> None:
            """Only hear it."""
            self.handled += 1
            self.wrong += load(data) != payload

        def exposed_counts(self) -> Any:
            """Return how many messages there were, and how many wrong."""
            return self.handled, self.wrong

    where = {'socket_path': spec.address} if spec.transport == 'unix' else {'hostname': '127.0.0.1', 'port': 0}
    server = ThreadedServer(Echo, **where)
    threading.Thread(target=server.start, daemon=True).start()
    serve_until_told(0 if spec.transport == 'unix' else server.port)


def measure(spec: Spec) -> Dict[str, Any]:
    """Be the client."""
    _check(spec)
    import rpyc

    version = f'rpyc {rpyc.__version__}'
    config = {'sync_request_timeout': SECONDS}
    if spec.transport == 'unix':
        connection = rpyc.utils.factory.unix_connect(spec.address, config=config)
    else:
        connection = rpyc.connect('127.0.0.1', spec.address, config=config)
    try:
        with connection:
            patterns = {'pipeline': _in_flight, 'oneway': _one_way}
            return patterns.get(spec.pattern, _one_at_a_time)(connection, spec, version)
    except EOFError as error:
        raise Wrong(f'the connection was lost: {error}') from None
    except TimeoutError:
        raise Wrong(f'nothing more has come within {SECONDS:g} s') from None


def _one_at_a_time(connection: Any, spec: Spec, version: str) -> Dict[str, Any]:
    payload = spec.data()
    load, dump = _codec(spec)
    send = connection.root.message
    moments = []
    begin = perf_counter()
    for _ in range(spec.warmup + spec.count):
        if load(send(dump(payload))) != payload:
            raise Wrong('a message came back damaged')
        moments.append(perf_counter())
    _verify(connection, spec.warmup + spec.count)
    return round_trips(version, begin, moments, spec.warmup)


def _in_flight(connection: Any, spec: Spec, version: str) -> Dict[str, Any]:
    import rpyc

    payload = spec.data()
    load, dump = _codec(spec)
    send = rpyc.async_(connection.root.message)
    asked: Deque[Any] = deque()
    window = _window(spec)
    for count in (spec.warmup, spec.count):
        begin = perf_counter()
        for number in range(count + window):
            if number >= window and load(asked.popleft().value) != payload:
                raise Wrong('a message came back damaged')
            if number < count:
                asked.append(send(dump(payload)))
        seconds = perf_counter() - begin
    _verify(connection, spec.warmup + spec.count)
    return rate(version, spec.count, seconds)


def _one_way(connection: Any, spec: Spec, version: str) -> Dict[str, Any]:
    import rpyc

    payload = spec.data()
    _, dump = _codec(spec)
    send = rpyc.async_(connection.root.hear)
    asked: Deque[Any] = deque()
    window = _window(spec)
    total = 0
    for count in (spec.warmup, spec.count):
        total += count
        begin = perf_counter()
        for _ in range(count):
            asked.append(send(dump(payload)))
            if len(asked) >= window:
                asked.popleft().wait()
        _verify(connection, total)
        seconds = perf_counter() - begin
    return rate(version, spec.count, seconds)


def _verify(connection: Any, expected: int) -> None:
    handled, wrong = connection.root.counts()
    check_count('the server has handled', handled, expected)
    if wrong:
        raise Wrong(f'{wrong} messages were damaged on the way to the server')


if __name__ == '__main__':
    main(serve, measure)
