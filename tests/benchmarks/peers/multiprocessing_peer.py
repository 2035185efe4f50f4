"""``multiprocessing.connection`` with JSON in its messages: what a Python program has at hand without any package."""

from __future__ import annotations

import json
import platform
import threading
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from time import perf_counter
from typing import Any, Dict

from common import Spec, Unsupported, Wrong, check_count, main, rate, round_trips, serve_until_told

_HOST = '127.0.0.1'
_VERSION = f'multiprocessing of {platform.python_implementation()} {platform.python_version()}'
_ROUND_TRIPS = ('latency', 'request', 'workers0')
_ONE_WAY = ('oneway',)
_FAMILIES = {'unix': 'AF_UNIX', 'tcp': 'AF_INET'}

_encode = partial(json.dumps, ensure_ascii=False, separators=(',', ':'))


def _send(connection: Connection, type: str, data: Any) -> None:
    connection.send_bytes(_encode({'type': type, 'data': data}).encode())


def _receive(connection: Connection) -> Any:
    return json.loads(connection.recv_bytes())


def serve(spec: Spec) -> None:
    """Answer each message with the same, or count them. One client."""
    if spec.transport not in _FAMILIES:
        raise Unsupported
    address = spec.address if spec.transport == 'unix' else (_HOST, 0)
    listener = Listener(address, _FAMILIES[spec.transport])
    threading.Thread(target=_answer, args=(listener, spec), daemon=True).start()
    port = 0 if spec.transport == 'unix' else listener.address[1]
    serve_until_told(port)
    listener.close()


def _answer(listener: Any, spec: Spec) -> None:
    payload = spec.data()
    is_one_way = spec.pattern in _ONE_WAY
    handled = wrong = 0
    with listener.accept() as connection:
        while True:
            try:
                message = _receive(connection)
            except EOFError:
                return
            if message['type'] == 'count':
                _send(connection, 'counted', [handled, wrong])
                continue
            handled += 1
            if not is_one_way:
                _send(connection, 'message', message['data'])
            elif message['data'] != payload:
                wrong += 1


def _verify(connection: Connection, expected: int) -> None:
    _send(connection, 'count', 0)
    answer = _receive(connection)
    if answer['type'] != 'counted':
        raise Wrong('there are more answers than there should be')
    handled, wrong = answer['data']
    check_count('the server has handled', handled, expected)
    if wrong:
        raise Wrong(f'{wrong} messages were damaged on the way to the server')


def _one_at_a_time(connection: Connection, spec: Spec) -> Dict[str, Any]:
    payload = spec.data()
    moments = []
    begin = perf_counter()
    for _ in range(spec.warmup + spec.count):
        _send(connection, 'message', payload)
        if _receive(connection)['data'] != payload:
            raise Wrong('a message came back damaged')
        moments.append(perf_counter())
    _verify(connection, spec.warmup + spec.count)
    return round_trips(_VERSION, begin, moments, spec.warmup)


def _in_flight(connection: Connection, spec: Spec) -> Dict[str, Any]:
    payload = spec.data()
    for count in (spec.warmup, spec.count):
        burst = min(spec.window, count)
        unsent = count - burst
        begin = perf_counter()
        for _ in range(burst):
            _send(connection, 'message', payload)
        for _ in range(count):
            if _receive(connection)['data'] != payload:
                raise Wrong('a message came back damaged')
            if unsent:
                unsent -= 1
                _send(connection, 'message', payload)
        seconds = perf_counter() - begin
    _verify(connection, spec.warmup + spec.count)
    return rate(_VERSION, spec.count, seconds)


def _one_way(connection: Connection, spec: Spec) -> Dict[str, Any]:
    payload = spec.data()
    total = 0
    for count in (spec.warmup, spec.count):
        total += count
        begin = perf_counter()
        for _ in range(count):
            _send(connection, 'message', payload)
        _verify(connection, total)
        seconds = perf_counter() - begin
    return rate(_VERSION, spec.count, seconds)


def measure(spec: Spec) -> Dict[str, Any]:
    """Be the client."""
    patterns = {**dict.fromkeys(_ROUND_TRIPS, _one_at_a_time), **dict.fromkeys(_ONE_WAY, _one_way), 'pipeline': _in_flight}
    if spec.transport not in _FAMILIES or spec.pattern not in patterns:
        raise Unsupported
    address = spec.address if spec.transport == 'unix' else (_HOST, spec.address)
    try:
        with Client(address, _FAMILIES[spec.transport]) as connection:
            return patterns[spec.pattern](connection, spec)
    except EOFError:
        raise Wrong('the connection was lost') from None


if __name__ == '__main__':
    main(serve, measure)
