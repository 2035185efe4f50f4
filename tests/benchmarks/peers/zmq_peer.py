"""pyzmq: REQ and REP for round trips, DEALER and ROUTER for many in flight, PUSH and PULL for one way; JSON in all."""

from __future__ import annotations

import json
import threading
from time import perf_counter
from typing import Any, Dict

from common import SECONDS, Line, Spec, Unsupported, Wrong, check_counted, main, rate, serve_until_told

_ROUND_TRIPS = ('latency', 'request')
_PATTERNS = (*_ROUND_TRIPS, 'pipeline', 'oneway')


def _address(spec: Spec) -> str:
    return f'ipc://{spec.address}' if spec.transport == 'unix' else f'tcp://127.0.0.1:{spec.address or "*"}'


def _check(spec: Spec) -> None:
    if spec.transport not in ('unix', 'tcp') or spec.pattern not in _PATTERNS:
        raise Unsupported


def serve(spec: Spec) -> None:
    """Answer each message with the same, or count them."""
    _check(spec)
    import zmq

    context = zmq.Context()
    types = {'pipeline': zmq.ROUTER, 'oneway': zmq.PULL}
    socket = context.socket(types.get(spec.pattern, zmq.REP))
    socket.bind(_address(spec))
    answer = {'pipeline': _route, 'oneway': _hear}.get(spec.pattern, _reply)
    threading.Thread(target=answer, args=(socket, spec), daemon=True).start()
    port = 0 if spec.transport == 'unix' else int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(':')[2])
    serve_until_told(port)


def _reply(socket: Any, spec: Spec) -> None:
    handled = 0
    while True:
        message = socket.recv_json()
        if message['type'] == 'count':
            socket.send_json({'type': 'counted', 'data': [handled, 0]})
            continue
        handled += 1
        socket.send_json({'type': 'message', 'data': message['data']})


def _route(socket: Any, spec: Spec) -> None:
    handled = 0
    while True:
        sender, frame = socket.recv_multipart()
        message = json.loads(frame)
        answer: Any = {'type': 'counted', 'data': [handled, 0]}
        if message['type'] == 'message':
            handled += 1
            answer = {'type': 'message', 'data': message['data']}
        socket.send_multipart((sender, json.dumps(answer).encode()))


def _hear(socket: Any, spec: Spec) -> None:
    """PULL hears only: who wants to know the count says where it is to be sent."""
    import zmq

    payload = spec.data()
    handled = wrong = 0
    while True:
        message = socket.recv_json()
        if message['type'] == 'message':
            handled += 1
            wrong += message['data'] != payload
            continue
        with socket.context.socket(zmq.PUSH) as answers:
            answers.connect(message['data'])
            answers.send_json({'type': 'counted', 'data': [handled, wrong]})


def measure(spec: Spec) -> Dict[str, Any]:
    """Be the client."""
    _check(spec)
    import zmq

    version = f'pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}'
    types = {'pipeline': zmq.DEALER, 'oneway': zmq.PUSH}
    with zmq.Context() as context, context.socket(types.get(spec.pattern, zmq.REQ)) as socket:
        for option in (zmq.RCVTIMEO, zmq.SNDTIMEO):
            socket.setsockopt(option, int(SECONDS * 1000))
        socket.linger = 0
        socket.connect(_address(spec))
        try:
            if spec.pattern == 'oneway':
                return _one_way(socket, spec, version)
            line = Line(version, lambda type, data: socket.send_json({'type': type, 'data': data}), socket.recv_json)
            return line.in_flight(spec) if spec.pattern == 'pipeline' else line.one_at_a_time(spec)
        except zmq.Again:
            raise Wrong(f'nothing more has come within {SECONDS:g} s') from None


def _one_way(socket: Any, spec: Spec, version: str) -> Dict[str, Any]:
    import zmq

    payload = spec.data()
    total = 0
    with socket.context.socket(zmq.PULL) as answers:
        answers.setsockopt(zmq.RCVTIMEO, int(SECONDS * 1000))
        if spec.transport == 'unix':
            answers.bind(f'ipc://{spec.address}.answers')
        else:
            answers.bind('tcp://127.0.0.1:*')
        where = answers.getsockopt_string(zmq.LAST_ENDPOINT)
        for count in (spec.warmup, spec.count):
            total += count
            begin = perf_counter()
            for _ in range(count):
                socket.send_json({'type': 'message', 'data': payload})
            socket.send_json({'type': 'count', 'data': where})
            answer = answers.recv_json()
            seconds = perf_counter() - begin
            check_counted(answer, total)
    return rate(version, spec.count, seconds)


if __name__ == '__main__':
    main(serve, measure)
