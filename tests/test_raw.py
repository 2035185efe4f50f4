"""Raw mode: bytes as they are, over Unix, TCP and UDP."""

from __future__ import annotations

import array
import socket
import threading
from typing import Any, Callable, List

import pytest

from nodeipc import IPC, Config, ConfigError, EmitTimeout, ProtocolError

from .conftest import Log, eventually

ALL_BYTES = bytes(range(256))
RAW = [{'raw_buffer': True}, {'parser': 'raw'}]


class Ends:
    """A raw server that echoes, and what talks to it, over any transport."""

    def __init__(self, make: Any, transport: str, **settings: Any) -> None:
        settings = {'raw_buffer': True, **settings}
        self.log, self.answers = Log(), Log()
        ipc, other = make(id='world', **settings), make(id='other', **settings)
        self.server = ipc.serve() if transport == 'unix' else ipc.serve_net('127.0.0.1', 0, transport)
        self.server.on('*', self.log)
        self.server.on('data', lambda data, socket: socket.emit(data))
        self.server.start()
        self.emit: Callable[..., Any]
        if transport == 'udp4':
            server = other.serve_net('127.0.0.1', 0, 'udp4')
            server.on('*', self.answers)
            server.start()
            self.emit = lambda *payload: server.emit(self.server.address, *payload)
        else:
            address = (self.server.address,) if transport == 'unix' else self.server.address
            connect = other.connect_to if transport == 'unix' else other.connect_to_net
            client = connect('world', *address, lambda client: client.on('*', self.answers))
            self.emit = client.emit

    def answered(self, expected: bytes) -> None:
        """A stream may be cut anywhere."""
        eventually(lambda: len(b''.join(event[0] for event in self.answers.of('data'))) >= len(expected))
        for log in self.log, self.answers:
            assert b''.join(event[0] for event in log.of('data')) == expected
            assert all(type(event[0]) is bytes for event in log.of('data'))
        assert not self.log.of('error')
        assert not self.answers.of('error')


@pytest.fixture(params=['unix', 'tcp', 'udp4'])
def ends(request: pytest.FixtureRequest, make: Any) -> Callable[..., Ends]:
    return lambda **settings: Ends(make, None if request.param == 'tcp' else request.param, **settings)


@pytest.mark.parametrize('settings', RAW, ids=str)
def test_all_bytes_arrive_as_they_are(ends: Any, settings: Any) -> None:
    raw = ends(**{'raw_buffer': False, **settings})
    raw.emit(ALL_BYTES)
    raw.answered(ALL_BYTES)


@pytest.mark.parametrize(
    'payload',
    [
        b'hi', bytearray(b'hi'), memoryview(b'hi'), memoryview(b'h.i.')[::2], array.array('B', b'hi'),
        [104, 105], (104, 105), 'hi',
    ],
    ids=lambda value: value.__class__.__name__,
)
def test_every_kind_of_payload(ends: Any, payload: Any) -> None:
    raw = ends()
    raw.emit(payload)
    raw.answered(b'hi')


def test_a_payload_that_changes_after_emit_was_copied(make: Any) -> None:
    raw = Ends(make, 'unix')
    payload = bytearray(b'before')
    raw.emit(payload)
    payload[:] = b'after!'
    raw.answered(b'before')


@pytest.mark.parametrize(
    ('encoding', 'text', 'payload'),
    [
        ('utf8', 'é☃', 'é☃'.encode()),
        ('UTF-8', 'é', 'é'.encode()),
        ('latin1', 'é', b'\xe9'),
        ('binary', 'é', b'\xe9'),
        ('iso-8859-15', '€', b'\xa4'),
        ('ascii', 'e', b'e'),
        ('utf16le', 'é☃', 'é☃'.encode('utf-16-le')),
        ('utf-16le', 'é', 'é'.encode('utf-16-le')),
        ('ucs2', 'é', 'é'.encode('utf-16-le')),
        ('ucs-2', 'é', 'é'.encode('utf-16-le')),
        ('hex', '00ff7F', b'\x00\xff\x7f'),
        ('base64', 'AP9/', b'\x00\xff\x7f'),
        ('base64', 'AP9_', b'\x00\xff\x7f'),
        ('base64url', 'AP8', b'\x00\xff'),
        ('base64', 'A P 8 =\n', b'\x00\xff'),
        ('cp037', 'A', b'\xc1'),
    ],
)
def test_text_is_encoded_as_the_settings_say(make: Any, encoding: str, text: str, payload: bytes) -> None:
    raw = Ends(make, 'unix', encoding=encoding)
    raw.emit(text)
    raw.answered(payload)


@pytest.mark.parametrize('encoding', ['base46', '', 'rot13', 'zip', 'hex_codec ', 'utf\0', None, 8])
def test_an_unknown_encoding_is_refused_where_it_is_set(encoding: Any) -> None:
    with pytest.raises(ConfigError, match="encoding must be a text encoding of Python's or Node's"):
        Config(encoding=encoding)


@pytest.mark.parametrize(
    ('encoding', 'text'),
    [('ascii', 'é'), ('hex', 'abc'), ('hex', 'xy'), ('base64', '$$$$'), ('base64', 'A'), ('utf8', '\ud800')],
)
def test_text_that_the_encoding_cannot_carry_is_refused(make: Any, encoding: str, text: str) -> None:
    raw = Ends(make, 'unix', encoding=encoding)
    with pytest.raises(ValueError, match=f"config.encoding '{encoding}' cannot carry"):
        raw.emit(text)
    raw.emit(b'good')
    raw.answered(b'good')


@pytest.mark.parametrize('payload', [5, None, 1.5, {}, {1}, ['a'], [256], [-1], object], ids=repr)
def test_what_is_no_payload_is_refused(ends: Any, payload: Any) -> None:
    raw = ends()
    with pytest.raises((TypeError, ValueError), match='raw mode emits a bytes-like object, a str .* or a list of ints'):
        raw.emit(payload)


def test_an_event_with_data_is_refused(ends: Any) -> None:
    raw = ends()
    with pytest.raises(TypeError, match=r'raw mode sends bytes and no events: emit\(payload\)'):
        raw.emit('message', {})
    with pytest.raises(TypeError, match='raw mode sends bytes'):
        raw.server.broadcast('message', 'hello')


def test_broadcast(ends: Any) -> None:
    raw = ends()
    raw.emit(b'hello')
    raw.answered(b'hello')
    raw.server.broadcast(b'!')
    eventually(lambda: b''.join(data for (data, *_) in raw.answers.of('data')) == b'hello!')


def test_a_stream_has_no_limit_but_the_pending_one(pair: Any) -> None:
    world = pair(raw_buffer=True, max_message_size=10)
    total = [0]
    world.server.on('data', lambda data: total.__setitem__(0, total[0] + len(data)))
    world.start()
    client = world.connect(raw_buffer=True, max_message_size=10)
    client.emit(b'x' * (32 << 20), timeout=20)
    client.emit(b'y', timeout=20)
    eventually(lambda: total[0] == (32 << 20) + 1)


def test_a_slow_handler_makes_a_raw_peer_wait(pair: Any) -> None:
    world = pair(raw_buffer=True)
    gate = threading.Event()
    world.server.on('data', lambda: gate.wait(30))
    world.start()
    client = world.connect(raw_buffer=True, max_pending_bytes=100_000)
    assert client.wait_connected(20)
    with pytest.raises(EmitTimeout):
        for _ in range(10_000):
            client.emit(b'x' * 10_000, timeout=0.1)
    try:
        assert world.server.stats()['bytes_in'] < 2 << 20
    finally:
        gate.set()


def test_a_datagram_is_an_event_and_an_empty_one_too(make: Any) -> None:
    server = make(raw_buffer=True).serve_net(0, 'udp4')
    log = Log()
    server.on('*', log)
    server.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in b'one', b'', b'x' * 65507:
            sock.sendto(datagram, server.address)
        assert [data for data, _ in log.wait('data', 3)] == [b'one', b'', b'x' * 65507]
        with pytest.raises(ProtocolError, match='65507'):
            server.emit(sock.getsockname(), b'x' * 65508)
        server.emit(sock.getsockname(), [])
        sock.settimeout(20)
        assert sock.recv(10) == b''


def test_what_was_emitted_is_delivered_before_the_end(pair: Any) -> None:
    world = pair(raw_buffer=True)
    got: List[bytes] = []
    world.server.on('data', got.append)
    world.start()
    client = world.connect(raw_buffer=True)
    for number in range(100):
        client.emit([number] * 1000)
    client.disconnect()
    eventually(lambda: b''.join(got) == b''.join(bytes([number]) * 1000 for number in range(100)))


def test_a_connection_may_end_anywhere(pair: Any) -> None:
    world = pair(raw_buffer=True)
    log = Log()
    world.server.on('*', log)
    world.start()
    with world.raw() as sock:
        sock.sendall(b'{"type":')
        log.wait('data')
    log.wait('socket.disconnected')
    assert not log.of('error')


def test_frames_are_not_looked_for(pair: Any) -> None:
    world = pair(raw_buffer=True)
    log = Log()
    world.server.on('*', log)
    world.start()
    with world.raw() as sock:
        sock.sendall(b'{"type":"message","data":1}\f')
        log.wait('data')
        assert not log.of('message')


def test_batches_and_payload_logs(make: Any) -> None:
    lines: List[str] = []
    settings: Any = {'parser': 'raw', 'log_payloads': True, 'logger': lines.append, 'log_in_color': False}
    with IPC(id='raw', **settings) as ipc, ipc.serve() as server:
        got: List[bytes] = []
        server.on('data', got.append)
        client = ipc.connect_to('raw')
        with client.batch():
            client.emit(b'one')
            client.emit('two')
        eventually(lambda: b''.join(got) == b'onetwo')
    assert any("emitting b'one'" in line for line in lines)
    assert any("received data b'one" in line for line in lines)
