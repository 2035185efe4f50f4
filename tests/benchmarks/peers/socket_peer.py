"""Bare blocking sockets that exchange the very bytes that nodeipc does, without looking into them: the floor."""

from __future__ import annotations

import json
import platform
import socket
import ssl
import threading
from time import perf_counter
from typing import Any, Callable, Dict, List

from common import SECONDS, Spec, Unsupported, Wrong, check_count, main, rate, round_trips, serve_until_told

_HOST = '127.0.0.1'
_VERSION = f'sockets of {platform.python_implementation()} {platform.python_version()}'
_ROUND_TRIPS = ('latency', 'request', 'workers0')
_ONE_WAY = ('oneway', 'batch')
_END = b'\f'
_READ_BYTES = 65536

# What `batch` joins in one write.
_BATCH_BYTES = 65536


def _frame(spec: Spec) -> bytes:
    message = {'type': 'message', 'data': spec.data()}
    return json.dumps(message, ensure_ascii=False, separators=(',', ':')).encode() + _END


def _make_socket(spec: Spec) -> socket.socket:
    family = socket.AF_UNIX if spec.transport == 'unix' else socket.AF_INET
    return socket.socket(family, socket.SOCK_DGRAM if spec.transport == 'udp' else socket.SOCK_STREAM)


def _check_supported(spec: Spec) -> None:
    patterns = [*_ROUND_TRIPS] if spec.transport == 'udp' else [*_ROUND_TRIPS, *_ONE_WAY, 'pipeline', 'broadcast']
    if spec.transport not in ('unix', 'tcp', 'tls', 'udp') or spec.pattern not in patterns:
        raise Unsupported


def serve(spec: Spec) -> None:
    """Send back what comes, or count it, or send rounds of messages to all."""
    _check_supported(spec)
    listener = _make_socket(spec)
    listener.bind(spec.address if spec.transport == 'unix' else (_HOST, 0))
    if spec.transport == 'udp':
        target: Callable[..., None] = _echo_datagrams
    else:
        listener.listen(spec.clients)
        target = _serve_streams
    threading.Thread(target=target, args=(listener, spec), daemon=True).start()
    serve_until_told(0 if spec.transport == 'unix' else listener.getsockname()[1])


def _echo_datagrams(sock: socket.socket, spec: Spec) -> None:
    while True:
        sock.sendto(*sock.recvfrom(_READ_BYTES))


def _serve_streams(listener: socket.socket, spec: Spec) -> None:
    socks = []
    for _ in range(spec.clients):
        sock, _ = listener.accept()
        if spec.transport != 'unix':
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if spec.transport == 'tls' and spec.tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(spec.tls['cert'], spec.tls['key'])
            sock = context.wrap_socket(sock, server_side=True)
        socks.append(sock)
    if spec.pattern == 'broadcast':
        _broadcast_rounds(socks, _frame(spec))
    elif spec.pattern in _ONE_WAY:
        _count(socks[0], spec)
    else:
        _echo(socks[0])


def _broadcast_rounds(socks: List[socket.socket], frame: bytes) -> None:
    requests = socks[0].makefile('rb')
    for line in requests:
        for _ in range(int(line)):
            for sock in socks:
                sock.sendall(frame)


def _count(sock: socket.socket, spec: Spec) -> None:
    """Answer with a byte when a phase is complete: all bytes are there, and are what they should be."""
    frame = _frame(spec)
    check = _Checker(frame)
    for count in (spec.warmup, spec.count):
        while check.frames < count:
            chunk = sock.recv(_READ_BYTES)
            if not chunk:
                return
            check.take(chunk)
        check_count('the server has received', check.frames, count)
        check.frames = 0
        sock.sendall(_END)


def _echo(sock: socket.socket) -> None:
    """Whole messages, or two who write and do not read would wait for each other."""
    parts: List[bytes] = []
    while True:
        chunk = sock.recv(_READ_BYTES)
        if not chunk:
            return
        end = chunk.rfind(_END) + 1
        if end:
            parts.append(chunk[:end])
            sock.sendall(b''.join(parts) if len(parts) > 1 else parts[0])
            parts = [chunk[end:]] if end < len(chunk) else []
        else:
            parts.append(chunk)


class _Checker:
    """Counts frames in chunks of a stream, each of which has to be the expected one."""

    def __init__(self, frame: bytes) -> None:
        self._frame = frame
        self._ring = frame * (_READ_BYTES // len(frame) + 2)
        self._offset = 0  # in the frame
        self.frames = 0

    def take(self, chunk: bytes) -> int:
        """Return how many frames are complete with this chunk."""
        end = self._offset + len(chunk)
        if chunk != self._ring[self._offset:end]:
            raise Wrong('bytes came damaged')
        complete, self._offset = divmod(end, len(self._frame))
        self.frames += complete
        return complete


# The client


def _connect(spec: Spec) -> socket.socket:
    sock = _make_socket(spec)
    sock.settimeout(SECONDS)
    sock.connect(spec.address if spec.transport == 'unix' else (_HOST, spec.address))
    sock.settimeout(None)
    if spec.transport in ('tcp', 'tls'):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if spec.transport == 'tls' and spec.tls is not None:
        return ssl.create_default_context(cafile=spec.tls['cert']).wrap_socket(sock, server_hostname=_HOST)
    return sock


def _receive(sock: socket.socket) -> bytes:
    chunk = sock.recv(_READ_BYTES)
    if not chunk:
        raise Wrong('the connection was lost')
    return chunk


def _one_at_a_time(sock: socket.socket, spec: Spec) -> Dict[str, Any]:
    frame = _frame(spec)
    check = _Checker(frame)
    moments = []
    total = spec.warmup + spec.count
    begin = perf_counter()
    for number in range(1, total + 1):
        sock.sendall(frame)
        while check.frames < number:
            check.take(_receive(sock))
        moments.append(perf_counter())
    check_count('answers', check.frames, total)
    return round_trips(_VERSION, begin, moments, spec.warmup)


def _in_flight(sock: socket.socket, spec: Spec) -> Dict[str, Any]:
    frame = _frame(spec)
    check = _Checker(frame)
    for count in (spec.warmup, spec.count):
        check.frames = 0
        burst = min(spec.window, count)
        unsent = count - burst
        begin = perf_counter()
        sock.sendall(frame * burst)
        while check.frames < count:
            complete = min(check.take(_receive(sock)), unsent)
            if complete:
                unsent -= complete
                sock.sendall(frame * complete)
        seconds = perf_counter() - begin
        check_count('answers', check.frames, count)
    return rate(_VERSION, spec.count, seconds)


def _one_way(sock: socket.socket, spec: Spec) -> Dict[str, Any]:
    frame = _frame(spec)
    joined = max(1, _BATCH_BYTES // len(frame)) if spec.pattern == 'batch' else 1
    for count in (spec.warmup, spec.count):
        begin = perf_counter()
        many = frame * joined
        for _ in range(count // joined):
            sock.sendall(many)
        if count % joined:
            sock.sendall(frame * (count % joined))
        if _receive(sock) != _END:
            raise Wrong('the server has not answered with its count')
        seconds = perf_counter() - begin
    return rate(_VERSION, spec.count, seconds)


def _broadcast(first: socket.socket, spec: Spec) -> Dict[str, Any]:
    socks = [first, *(_connect(spec) for _ in range(spec.clients - 1))]
    checks = [_Checker(_frame(spec)) for _ in socks]
    expected = 0
    for count in (spec.warmup, spec.count):
        begin = perf_counter()
        for sent in range(0, count, spec.window):
            size = min(spec.window, count - sent)
            expected += size
            first.sendall(b'%d\n' % size)
            for sock, check in zip(socks, checks):
                while check.frames < expected:
                    check.take(_receive(sock))
        seconds = perf_counter() - begin
    for check in checks:
        check_count('heard', check.frames, expected)
    for sock in socks:
        sock.close()
    return rate(_VERSION, spec.count * spec.clients, seconds)


def measure(spec: Spec) -> Dict[str, Any]:
    """Be the client."""
    _check_supported(spec)
    patterns: Dict[str, Callable[[socket.socket, Spec], Dict[str, Any]]] = {
        **dict.fromkeys(_ROUND_TRIPS, _one_at_a_time),
        **dict.fromkeys(_ONE_WAY, _one_way),
        'pipeline': _in_flight,
        'broadcast': _broadcast,
    }
    with _connect(spec) as sock:
        return patterns[spec.pattern](sock, spec)


if __name__ == '__main__':
    main(serve, measure)
