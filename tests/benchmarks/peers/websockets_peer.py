"""websockets, its ``sync`` side: JSON in text messages, without the compression that only slows a loopback down."""

from __future__ import annotations

import json
import threading
from functools import partial
from typing import Any, Dict

from common import Line, Spec, Unsupported, Wrong, main, serve_until_told

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
    patterns = {'pipeline': Line.in_flight, 'oneway': Line.one_way}
    try:
        with connecting as connection:
            line = Line(version, partial(_send, connection), partial(_receive, connection))
            return patterns.get(spec.pattern, Line.one_at_a_time)(line, spec)
    except ConnectionClosed as error:
        raise Wrong(f'the connection was lost: {error}') from None


def _send(connection: Any, type: str, data: Any) -> None:
    connection.send(json.dumps({'type': type, 'data': data}))


def _receive(connection: Any) -> Any:
    return json.loads(connection.recv())


if __name__ == '__main__':
    main(serve, measure)
