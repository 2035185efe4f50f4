"""Hostile and broken peers: each costs its own connection and nothing else."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from typing import Any

import pytest

from nodeipc import ProtocolError

from .conftest import Log, eventually

GOOD = b'{"type":"message","data":"good"}\f'


@pytest.fixture
def world(pair: Any) -> Any:
    world = pair(max_message_size=100_000)
    world.log = Log()
    world.server.on('*', world.log)
    return world.start()


def closed_by_server(sock: socket.socket) -> bool:
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_what_was_asked_before_a_bad_frame_is_answered(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('*', log)
    world.server.on('message', lambda data, socket: socket.emit('answer', data))
    world.start()
    with world.raw() as sock:
        sock.sendall(GOOD * 2 + b'nonsense\f' + GOOD + b'x' * 100_000)
        assert sock.makefile('rb').read() == b'{"type":"answer","data":"good"}\f' * 2
    log.wait('socket.disconnected')
    assert [event[0] for event in log.events[2:]] == ['message', 'message', 'error', 'socket.disconnected']


def still_served(world: Any) -> None:
    count = len(world.log.of('message'))
    with world.raw() as fresh:
        fresh.sendall(GOOD)
        world.log.wait('message', count + 1)
    eventually(lambda: not world.server.sockets)


@pytest.mark.parametrize(
    ('bad', 'code'),
    [
        (b'\x00\x01\x02\xff\xfe\f', 'ERR_IPC_INVALID_JSON'),
        (b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n\f', 'ERR_IPC_INVALID_JSON'),
        (b'\f', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":5}\f', 'ERR_IPC_INVALID_EVENT'),
        (b'{}\f', 'ERR_IPC_INVALID_EVENT'),
        (b'[]\f', 'ERR_IPC_INVALID_MESSAGE'),
        (b'null\f', 'ERR_IPC_INVALID_MESSAGE'),
        (b'{"type":"x","data":NaN}\f', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":"\xc3"}\f', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":' + b'[' * 90_000 + b'\f', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":"' + b'y' * 200_000, 'ERR_IPC_FRAME_TOO_LARGE'),
        (b'{"type":"x","data":"' + b'y' * 100_000 + b'"}\f', 'ERR_IPC_FRAME_TOO_LARGE'),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_a_bad_frame_closes_its_connection_alone(world: Any, bad: bytes, code: str) -> None:
    bystander_log = Log()
    bystander = world.connect(bystander_log)
    assert bystander.wait_connected(20)
    world.log.wait('connect')
    with world.raw() as sock:
        try:
            sock.sendall(GOOD + bad + GOOD)
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed while we were still sending
        assert closed_by_server(sock)
    ((error, accepted),) = world.log.wait('error')
    assert isinstance(error, ProtocolError)
    assert error.code == code
    assert 'a client of server' in str(error)
    world.log.wait('socket.disconnected')
    mine = [event[0] for event in world.log.events if accepted in event]
    assert mine == ['connect', 'message', 'error', 'socket.disconnected']  # what came before it was handled
    assert bystander.connected
    bystander.emit('message', 'bystander')
    world.log.wait('message', 2)
    assert bystander_log.of('disconnect') == []
    bystander.disconnect()
    still_served(world)


def test_a_frame_that_the_end_of_the_connection_cuts_is_reported(world: Any) -> None:
    with world.raw() as sock:
        sock.sendall(GOOD + GOOD[:10])
        sock.shutdown(socket.SHUT_WR)
        assert closed_by_server(sock)
    ((error, _),) = world.log.wait('error')
    assert 'ended inside a message, after 10 bytes' in str(error)
    assert len(world.log.of('message')) == 1
    still_served(world)


def test_two_frames_in_a_chunk_and_one_in_a_thousand(world: Any) -> None:
    with world.raw() as sock:
        sock.sendall(GOOD + GOOD)
        frame = b'{"type":"long","data":"' + 'é☃\U0001f600'.encode() * 100 + b'"}\f'
        assert len(frame) > 900
        for byte in frame:  # cuts every multi-byte character in two
            sock.sendall(bytes([byte]))
        ((data, _),) = world.log.wait('long')
        assert data == 'é☃\U0001f600' * 100
        assert len(world.log.of('message')) == 2


def test_arbitrary_bytes_never_harm_the_process(world: Any) -> None:
    rng = random.Random(20261122)
    pieces = [b'\f', b'{', b'}', b'"type"', b':', b'"x"', b'[', b']', b',', b'null', b'1e999', b'\xff', b'"\\ud800"', GOOD]
    for _ in range(150):
        with world.raw() as sock:
            junk = b''.join(rng.choice(pieces) for _ in range(rng.randrange(1, 40)))
            if rng.random() < 0.3:
                junk = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 2000)))
            try:
                sock.sendall(junk)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            assert closed_by_server(sock)
    still_served(world)


def test_a_peer_that_resets_its_connection_is_reported_and_gone(world: Any, transport: str) -> None:
    sock = world.raw()
    sock.sendall(GOOD)
    world.log.wait('message')
    world.server.broadcast('unread')
    if transport == 'tcp':
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
    sock.close()
    world.log.wait('socket.disconnected')
    still_served(world)


def test_a_bad_server_is_an_error_of_its_client_which_comes_back(make: Any, tmp_path: Any) -> None:
    path = str(tmp_path / 'bad.sock')
    log = Log()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        client = make().connect_to('bad', path, lambda client: client.on('*', log))
        for count in (1, 2):
            peer, _ = listener.accept()
            with peer:
                peer.sendall(GOOD + b'nonsense\f')
                ((error,), *_) = reversed(log.wait('error', count))
                assert isinstance(error, ProtocolError)
                assert "client 'bad'" in str(error)
        assert [event[0] for event in log.events][:8] == ['connect', 'message', 'error', 'disconnect'] * 2
        client.disconnect()
    os.unlink(path)


def test_memory_stays_flat_while_a_huge_frame_is_refused(tmp_path: Any) -> None:
    """A peer that sends without end and without delimiter gets 64 MiB and no more; then memory is given back."""
    script = """
import nodeipc, resource, socket, threading
ipc = nodeipc.IPC(id='world', max_message_size=8 << 20)
server = ipc.serve()
done = threading.Event()
server.on('error', lambda error: (print(error.code), done.set()))
server.start()
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(server.address)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        while True:
            sock.sendall(b'y' * (1 << 20))
    except OSError:
        pass
done.wait(20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
ipc.close()
"""
    run = subprocess.run(
        [sys.executable, '-S', '-c', script], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, 'PYTHONPATH': os.getcwd()},
    )  # fmt: skip
    code, grown = run.stdout.split()
    assert code == 'ERR_IPC_FRAME_TOO_LARGE'
    assert int(grown) < 32
