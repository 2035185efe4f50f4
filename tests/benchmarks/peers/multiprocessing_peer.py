"""``multiprocessing.connection`` with JSON in its messages: what a Python program has at hand without any package."""

from __future__ import annotations

import json
import platform
import threading
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from typing import Any, Dict

from common import Line, Spec, Unsupported, Wrong, main, serve_until_told

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


def measure(spec: Spec) -> Dict[str, Any]:
    """Be the client."""
    patterns = {'pipeline': Line.in_flight, **dict.fromkeys(_ROUND_TRIPS, Line.one_at_a_time)}
    patterns.update(dict.fromkeys(_ONE_WAY, Line.one_way))
    if spec.transport not in _FAMILIES or spec.pattern not in patterns:
        raise Unsupported
    address = spec.address if spec.transport == 'unix' else (_HOST, spec.address)
    try:
        with Client(address, _FAMILIES[spec.transport]) as connection:
            return patterns[spec.pattern](Line(_VERSION, partial(_send, connection), partial(_receive, connection)), spec)
    except EOFError:
        raise Wrong('the connection was lost') from None


if __name__ == '__main__':
    main(serve, measure)
