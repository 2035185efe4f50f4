"""The bytes on real sockets against those recorded from node-ipc; no Node.js is needed."""

from __future__ import annotations

import json
import socket
from typing import Any, Callable, Dict, List

import pytest

import nodeipc

from ..conftest import Log
from .peers import SECONDS, VERSIONS, Place, messages
from .vectors import FILE, ROWS, arriving, emit_row, recorded

Make = Callable[..., nodeipc.IPC]


def comparable(row: Dict[str, Any], frame: bytes) -> Any:
    """A frame as it is, except that floats are compared by value.

    Python writes the shortest digits of a float as JavaScript does, but not the exponent: 1e-07 for 1e-7. JSON readers
    see the same number.
    """
    return json.loads(frame[:-1].decode()) if isinstance(row['data'], float) else frame


def read_frames(sock: socket.socket) -> List[bytes]:
    """As many frames as there are rows. A form feed cannot stand inside of one."""
    received = b''
    while received.count(b'\f') < len(ROWS):
        chunk = sock.recv(65536)
        assert chunk, f'the connection ended after {received!r}'
        received += chunk
    *frames, rest = received.split(b'\f')
    assert rest == b''
    return [frame + b'\f' for frame in frames]


def assert_as_node_ipc_14(frames: List[bytes]) -> None:
    expected = [comparable(row, recorded(row, '14.0.0')) for row in ROWS]
    assert len(frames) == len(ROWS)
    assert [comparable(row, frame) for row, frame in zip(ROWS, frames)] == expected


def test_a_python_client_writes_the_bytes_of_node_ipc_14(make: Make, place: Place) -> None:
    with place.listener() as listener:
        client = place.connect(make())
        with listener.accept()[0] as connection:
            connection.settimeout(SECONDS)
            for row in ROWS:
                emit_row(client.emit, row)
            assert_as_node_ipc_14(read_frames(connection))


@pytest.mark.parametrize('broadcasting', [False, True], ids=['emit', 'broadcast'])
def test_a_python_server_writes_the_bytes_of_node_ipc_14(make: Make, place: Place, broadcasting: bool) -> None:
    server = place.serve(make())
    log = Log()
    server.on('connect', lambda socket: log('connect', socket))
    server.start()
    with place.plain_socket() as connection:
        connection.connect(place.address)
        ((peer,),) = log.wait('connect', timeout=SECONDS)
        emit: Callable[..., None] = server.broadcast if broadcasting else peer.emit
        for row in ROWS:
            emit_row(emit, row)
        assert_as_node_ipc_14(read_frames(connection))


@pytest.mark.parametrize('recorder', list(VERSIONS))
def test_a_python_server_reads_the_bytes_of_every_version(make: Make, place: Place, recorder: str) -> None:
    server = place.serve(make())
    log = Log()
    server.on('*', log)
    server.start()
    with place.plain_socket() as connection:
        connection.connect(place.address)
        connection.sendall(b''.join(recorded(row, recorder) for row in ROWS))
        log.wait('date', timeout=SECONDS)  # the last row
    assert messages(log.events) == [arriving(row, recorder) for row in ROWS]


@pytest.mark.parametrize('recorder', list(VERSIONS))
def test_a_python_client_reads_the_bytes_of_every_version(make: Make, place: Place, recorder: str) -> None:
    with place.listener() as listener:
        log = Log()
        place.connect(make(), lambda client: client.on('*', log))
        with listener.accept()[0] as connection:
            connection.sendall(b''.join(recorded(row, recorder) for row in ROWS))
            log.wait('date', timeout=SECONDS)  # the last row
    assert messages(log.events) == [arriving(row, recorder) for row in ROWS]


def test_the_vectors_are_those_of_the_contract() -> None:
    contract = FILE.parents[2] / 'shared' / 'wire' / 'vectors.json'
    if not contract.exists():
        pytest.skip('the contract is not beside this checkout')
    assert json.loads(contract.read_text('utf-8'))['rows'] == ROWS
