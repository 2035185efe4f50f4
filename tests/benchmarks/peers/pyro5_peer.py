"""Pyro5: calls of an object, with its JSON serializer; one way are ``oneway`` calls, each in a thread of its own there."""

from __future__ import annotations

import threading
from time import perf_counter
from typing import Any, Dict

from common import SECONDS, Spec, Unsupported, Wrong, check_count, main, rate, round_trips, serve_until_told

_ROUND_TRIPS = ('latency', 'request')
_PATTERNS = (*_ROUND_TRIPS, 'oneway')


def _check(spec: Spec) -> None:
    if spec.transport not in ('unix', 'tcp') or spec.pattern not in _PATTERNS:
        raise Unsupported


def serve(spec: Spec) -> None:
    """Answer each call with what it was given, or count them."""
    _check(spec)
    from Pyro5 import api

    api.config.SOCK_NODELAY = True
    payload = spec.data()

    @api.expose
    class Echo:
        """The object that is called; one client."""

        handled = wrong = 0
        changed = threading.Condition()

        def message(self, data: Any) -> Any:
            """Answer with the same."""
            self.handled += 1
            return data

        @api.oneway  # type: ignore[untyped-decorator]
        def hear(self, data: Any) -> None:
            """Only hear it."""
            with self.changed:
                self.handled += 1
                self.wrong += data != payload
                self.changed.notify()

        def counts(self, expected: int) -> Any:
            """Wait for so many messages, and return how many there were, and how many wrong."""
            with self.changed:
                self.changed.wait_for(lambda: self.handled >= expected, SECONDS)
                return self.handled, self.wrong

    with api.Daemon(unixsocket=spec.address) if spec.transport == 'unix' else api.Daemon('127.0.0.1', 0) as daemon:
        daemon.register(Echo(), 'echo')
        threading.Thread(target=daemon.requestLoop, daemon=True).start()
        serve_until_told(0 if spec.transport == 'unix' else int(daemon.locationStr.rpartition(':')[2]))
        daemon.shutdown()


def measure(spec: Spec) -> Dict[str, Any]:
    """Be the client."""
    _check(spec)
    import Pyro5
    from Pyro5 import api, errors

    api.config.SERIALIZER = 'json'
    api.config.SOCK_NODELAY = True
    api.config.COMMTIMEOUT = SECONDS
    where = f'./u:{spec.address}' if spec.transport == 'unix' else f'127.0.0.1:{spec.address}'
    try:
        with api.Proxy(f'PYRO:echo@{where}') as echo:
            measured = _one_way if spec.pattern == 'oneway' else _one_at_a_time
            return measured(echo, spec, f'Pyro5 {Pyro5.__version__}')
    except errors.CommunicationError as error:
        raise Wrong(f'{error!r}') from None


def _one_at_a_time(echo: Any, spec: Spec, version: str) -> Dict[str, Any]:
    payload = spec.data()
    moments = []
    begin = perf_counter()
    for _ in range(spec.warmup + spec.count):
        if echo.message(payload) != payload:
            raise Wrong('a message came back damaged')
        moments.append(perf_counter())
    _verify(echo, spec.warmup + spec.count)
    return round_trips(version, begin, moments, spec.warmup)


def _one_way(echo: Any, spec: Spec, version: str) -> Dict[str, Any]:
    payload = spec.data()
    total = 0
    for count in (spec.warmup, spec.count):
        total += count
        begin = perf_counter()
        for _ in range(count):
            echo.hear(payload)
        _verify(echo, total)
        seconds = perf_counter() - begin
    return rate(version, spec.count, seconds)


def _verify(echo: Any, expected: int) -> None:
    handled, wrong = echo.counts(expected)
    check_count('the server has handled', handled, expected)
    if wrong:
        raise Wrong(f'{wrong} messages were damaged on the way to the server')


if __name__ == '__main__':
    main(serve, measure)
