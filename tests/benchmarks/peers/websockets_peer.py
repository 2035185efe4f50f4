"""websockets, its ``sync`` side: JSON in text messages, without the compression that only slows a loopback down."""

from __future__ import annotations

import json
import threading
from time import perf_counter
from typing import Any, Dict

from common import SECONDS, Spec, Unsupported, Wrong, check_count, main, rate, round_trips, serve_until_told

_ROUND_TRIPS = ('latency', 'request')
_PATTERNS = (*_ROUND_TRIPS, 'pipeline', 'oneway')

# Both ends: messages of any size, as they are, and no pings in between.
_OPTIONS: Dict[str, Any] = {'compression': None, 'max_size': None, 'ping_interval': None}


def _check(spec: Spec) -> None:
    if spec.transport not in ('unix', 'tcp', 'tls') or spec.pattern not in _PATTERNS:
        raise Unsupported


def serve(spec: Spec) -> None:
    """Answer each message with the same, or count them."""
    _check(spec)
    from websockets.exceptions import ConnectionClosed
    from websockets.sync import server as websockets

    payload = spec.data()
    is_one_way = spec.pattern == 'oneway'

    def answer(connection: Any) -> None:
        handled = wrong = 0
        try:
            for text in connection:
                message = json.loads(text)
                if message['type'] == 'count':
                    connection.send(json.dumps({'type': 'counted', 'data': [handled, wrong]}))
                    continue
                handled += 1
                if not is_one_way:
                    connection.send(json.dumps({'type': 'message', 'data': message['data']}))
                elif message['data'] != payload:
                    wrong += 1
        except ConnectionClosed:
            pass

    options = dict(_OPTIONS)
    if spec.tls:
        import ssl

        options['ssl'] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        options['ssl'].load_cert_chain(spec.tls['cert'], spec.tls['key'])
    if spec.transport == 'unix':
        server = websockets.unix_serve(answer, spec.address, **options)
    else:
        server = websockets.serve(answer, '127.0.0.1', 0, **options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    serve_until_told(0 if spec.transport == 'unix' else server.socket.getsockname()[1])
    server.shutdown()


def measure(spec: Spec) -> Dict[str, Any]:
    """Be the client."""
    _check(spec)
    import websockets
    from websockets.exceptions import ConnectionClosed
    from websockets.sync import client

    version = f'websockets {websockets.__version__}'
    options = dict(_OPTIONS)
    if spec.tls:
        import ssl

        options['ssl'] = ssl.create_default_context(cafile=spec.tls['cert'])
    if spec.transport == 'unix':
        connecting = client.unix_connect(spec.address, **options)
    else:
        scheme = 'wss' if spec.tls else 'ws'
        connecting = client.connect(f'{scheme}://127.0.0.1:{spec.address}', proxy=None, **options)
    patterns = {'pipeline': _in_flight, 'oneway': _one_way}
    try:
        with connecting as connection:
            return patterns.get(spec.pattern, _one_at_a_time)(connection, spec, version)
    except ConnectionClosed as error:
        raise Wrong(f'the connection was lost: {error}') from None
    except TimeoutError:
        raise Wrong(f'nothing more has come within {SECONDS:g} s') from None


def _send(connection: Any, type: str, data: Any) -> None:
    connection.send(json.dumps({'type': type, 'data': data}))


def _receive(connection: Any) -> Any:
    return json.loads(connection.recv())


def _one_at_a_time(connection: Any, spec: Spec, version: str) -> Dict[str, Any]:
    payload = spec.data()
    moments = []
    begin = perf_counter()
    for _ in range(spec.warmup + spec.count):
        _send(connection, 'message', payload)
        if _receive(connection)['data'] != payload:
            raise Wrong('a message came back damaged')
        moments.append(perf_counter())
    _verify(connection, spec.warmup + spec.count)
    return round_trips(version, begin, moments, spec.warmup)


def _in_flight(connection: Any, spec: Spec, version: str) -> Dict[str, Any]:
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
    return rate(version, spec.count, seconds)


def _one_way(connection: Any, spec: Spec, version: str) -> Dict[str, Any]:
    payload = spec.data()
    total = 0
    for count in (spec.warmup, spec.count):
        total += count
        begin = perf_counter()
        for _ in range(count):
            _send(connection, 'message', payload)
        _verify(connection, total)
        seconds = perf_counter() - begin
    return rate(version, spec.count, seconds)


def _verify(connection: Any, expected: int) -> None:
    _send(connection, 'count', 0)
    answer = json.loads(connection.recv(timeout=SECONDS))
    if answer['type'] != 'counted':
        raise Wrong('there are more answers than there should be')
    handled, wrong = answer['data']
    check_count('the server has handled', handled, expected)
    if wrong:
        raise Wrong(f'{wrong} messages were damaged on the way to the server')


if __name__ == '__main__':
    main(serve, measure)
