"""What the Python peers of the benchmark share: the specification they are given, the payload, and the lines they print.

A peer is a program, ``PROGRAM ROLE SPEC``, with ROLE ``server`` or ``client`` and SPEC a JSON object. The server prints
``ready PORT``, serves, and ends when its stdin does. The client warms up, measures, verifies every count and payload, and
prints a JSON line with the result. Exit status: 0 for done, 1 for wrong (the reason is on stderr), 3 for what this peer
does not support.
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from pathlib import Path
from time import perf_counter
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence

# How long a client waits for what must come. The runner may well lose its patience before.
SECONDS = 100.0

_UNSUPPORTED = 3


class Wrong(Exception):
    """A message was lost, damaged or came twice, or the peer cannot go on for another reason."""


class Unsupported(Exception):
    """This peer does not do such a pattern, or not over such a transport."""


class Spec(NamedTuple):
    """What to do; see the JSON object in `tests.benchmarks.lanes.Lane.spec`."""

    pattern: str
    transport: str
    address: Any
    payload: str
    size: int
    count: int
    warmup: int
    window: int
    clients: int
    idle: int
    tls: Optional[Dict[str, str]]

    def data(self) -> Any:
        """What each message carries."""
        if self.payload == 'structured':
            return json.loads((Path(__file__).parent / 'structured.json').read_text('utf-8'))
        return ('0123456789 abcdefghijklmnopqrstuvwxyz ' * (self.size // 38 + 1))[:self.size]


def main(server: Callable[[Spec], None], client: Callable[[Spec], Dict[str, Any]]) -> None:
    """Be the program: call one of the two."""
    role, text = sys.argv[1:]
    spec = Spec(**json.loads(text))
    try:
        if role == 'server':
            server(spec)
        else:
            print(json.dumps(client(spec)), flush=True)
    except Unsupported:
        sys.exit(_UNSUPPORTED)
    except Wrong as reason:
        sys.exit(f'{Path(sys.argv[0]).name} {role}: {reason}')


def serve_until_told(port: int) -> None:
    """Say that the server can be reached, and return when it is to end."""
    print(f'ready {port}', flush=True)
    sys.stdin.read()


def check_count(what: str, found: int, expected: int) -> None:
    """Raise `Wrong` unless it is what it should be."""
    if found != expected:
        raise Wrong(f'{what}: {found} of {expected} messages')


def check_counted(answer: Any, expected: int) -> None:
    """Raise `Wrong` unless `answer` is the server's last, and says that it has handled so many, whole."""
    if answer['type'] != 'counted':
        raise Wrong('there are more answers than there should be')
    handled, wrong = answer['data']
    check_count('the server has handled', handled, expected)
    if wrong:
        raise Wrong(f'{wrong} messages were damaged on the way to the server')


def rate(version: str, messages: int, seconds: float) -> Dict[str, Any]:
    """The result of what was not timed message by message."""
    return {'messages': messages, 'seconds': seconds, 'p50_us': None, 'p99_us': None, 'version': version}


def round_trips(version: str, begin: float, ends: Sequence[float], warmup: int) -> Dict[str, Any]:
    """The result of round trips, one at a time: when the first began, when each ended, and how many do not count."""
    moments = array('d', [begin, *ends])[warmup:]
    times = sorted(after - before for before, after in zip(moments, moments[1:]))

    def percentile(share: float) -> float:
        return round(times[max(0, math.ceil(share * len(times)) - 1)] * 1e6, 3)

    result = rate(version, len(times), moments[-1] - moments[0])
    result.update(p50_us=percentile(0.5), p99_us=percentile(0.99))
    return result


class Line(NamedTuple):
    """A blocking connection, for the patterns that are the same whatever it is made of."""

    version: str
    send: Callable[[str, Any], Any]  # type and data
    receive: Callable[[], Any]  # the next answer: {'type': …, 'data': …}

    def one_at_a_time(self, spec: Spec) -> Dict[str, Any]:
        """Ask, wait for the answer, ask again."""
        payload, send, receive = spec.data(), self.send, self.receive
        moments = []
        begin = perf_counter()
        for _ in range(spec.warmup + spec.count):
            send('message', payload)
            if receive()['data'] != payload:
                raise Wrong('a message came back damaged')
            moments.append(perf_counter())
        self._verify(spec.warmup + spec.count)
        return round_trips(self.version, begin, moments, spec.warmup)

    def in_flight(self, spec: Spec) -> Dict[str, Any]:
        """`window` messages in flight; each answer sends the next."""
        payload, send, receive = spec.data(), self.send, self.receive
        for count in (spec.warmup, spec.count):
            burst = min(spec.window, count)
            unsent = count - burst
            begin = perf_counter()
            for _ in range(burst):
                send('message', payload)
            for _ in range(count):
                if receive()['data'] != payload:
                    raise Wrong('a message came back damaged')
                if unsent:
                    unsent -= 1
                    send('message', payload)
            seconds = perf_counter() - begin
        self._verify(spec.warmup + spec.count)
        return rate(self.version, spec.count, seconds)

    def one_way(self, spec: Spec) -> Dict[str, Any]:
        """Send, until the server has counted all."""
        payload, send = spec.data(), self.send
        total = 0
        for count in (spec.warmup, spec.count):
            total += count
            begin = perf_counter()
            for _ in range(count):
                send('message', payload)
            self._verify(total)
            seconds = perf_counter() - begin
        return rate(self.version, spec.count, seconds)

    def _verify(self, expected: int) -> None:
        self.send('count', 0)
        check_counted(self.receive(), expected)
