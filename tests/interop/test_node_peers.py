"""nodeipc and real node-ipc peers, either one as the server, over Unix and TCP, for each version that is in use."""

from __future__ import annotations

import socket as socket_module
from pathlib import Path
from typing import Callable, List, Tuple

import pytest

import nodeipc

from ..conftest import Log
from .peers import SECONDS, NodePeer, Place, PythonPeer, digest, echo, messages
from .vectors import ROWS, arriving, emit_row

Make = Callable[..., nodeipc.IPC]
StartNode = Callable[[], NodePeer]
StartPython = Callable[[str, Place], PythonPeer]

# 5 MiB of UTF-8. Characters of 3, 4 and 1 bytes, so that chunks end within some.
LARGE_PARTS = ('\N{SNOWMAN}\N{GRINNING FACE}x', (5 << 20) // 8)
LARGE = LARGE_PARTS[0] * LARGE_PARTS[1]

MANY = 10_000


def python_server(make: Make, place: Place) -> Tuple[nodeipc.Server, Log]:
    """A running server and the log of its events."""
    server = place.serve(make())
    log = Log()
    server.on('*', log)
    server.start()
    return server, log


def python_client(make: Make, place: Place) -> Tuple[nodeipc.Client, Log]:
    """A connected client and the log of its events."""
    log = Log()
    client = place.connect(make(), lambda client: client.on('*', log))
    log.wait('connect', timeout=SECONDS)
    return client, log


# A Python server and Node clients


def test_a_python_server_sees_node_clients_come_and_go(make: Make, place: Place, node: NodePeer) -> None:
    server, log = python_server(make, place)
    node.connect(place)
    node.wait('connect')
    ((socket,),) = log.wait('connect', timeout=SECONDS)
    assert server.sockets == (socket,)
    node.do('disconnect', id='world')
    assert log.wait('socket.disconnected', timeout=SECONDS) == [(socket, None)]
    assert not server.sockets


def test_a_python_server_answers_only_the_node_client_that_asked(make: Make, place: Place, node: NodePeer) -> None:
    server = place.serve(make())
    server.on('question', lambda data, socket: socket.emit('answer', data + '?'))
    server.start()
    node.connect(place, 'first')
    node.connect(place, 'second')
    node.emit('question', 'one', id='first')
    assert node.wait('answer', of='first') == ['one?']
    node.emit('question', 'two', id='second')
    assert node.wait('answer', of='second') == ['two?']
    node.emit('question', 'three', id='first')
    assert node.wait('answer', 2, of='first') == ['one?', 'three?']


def test_a_python_server_broadcasts_to_node_and_python_clients(make: Make, place: Place, node: NodePeer) -> None:
    server, log = python_server(make, place)
    node.connect(place, 'first')
    node.connect(place, 'second')
    _, python_log = python_client(make, place)
    log.wait('connect', 3, timeout=SECONDS)
    news = {'headline': 'sol \N{BLACK SUN WITH RAYS}'}
    server.broadcast('news', news)
    server.broadcast('end', True)
    node.wait('end', 2)
    python_log.wait('end', timeout=SECONDS)
    assert (node.wait('news', of='first'), node.wait('news', of='second')) == ([news], [news])
    assert python_log.of('news') == [(news,)]


def test_a_node_client_learns_what_a_python_server_listens_for_and_broadcasts(
    make: Make, place: Place, node: NodePeer
) -> None:
    server = place.serve(make())
    server.define.listen.message = 'a string'
    server.define.broadcast['weather.today'] = {'degrees': 'a number'}
    server.start()
    node.connect(place)
    node.emit('get.events.listening', {})
    node.emit('get.events.broadcasting', {})
    (listening,) = node.wait('events.listening')
    assert listening['id'] == 'world'
    assert listening['events']['message'] == 'a string'
    (broadcasting,) = node.wait('events.broadcasting')
    assert broadcasting['id'] == 'world'
    assert broadcasting['events']['weather.today'] == {'degrees': 'a number'}


def test_a_node_client_returns_to_a_python_server_that_was_killed(
    place: Place, node: NodePeer, start_python: StartPython
) -> None:
    server = start_python('serve', place)
    node.connect(place)
    node.wait('connect')
    node.emit('message', 'before')
    assert node.wait('message') == ['before']
    server.kill()
    node.wait('disconnect')
    start_python('serve', place)
    node.wait('connect', 2)
    node.emit('message', 'after')
    assert node.wait('message', 2) == ['before', 'after']


def test_a_python_server_outlives_a_killed_node_client_and_serves_the_next(
    make: Make, place: Place, start_node: StartNode, node: NodePeer
) -> None:
    server, log = python_server(make, place)
    _, bystander_log = python_client(make, place)
    killed = start_node()
    for time, peer in enumerate([killed, node], 1):
        peer.connect(place)
        log.wait('connect', time + 1, timeout=SECONDS)
        peer.emit('message', time)
        log.wait('message', time, timeout=SECONDS)
        if peer is killed:
            peer.kill()
            log.wait('socket.disconnected', timeout=SECONDS)
    assert [data for data, _ in log.of('message')] == [1, 2]
    server.broadcast('news', 'still here')
    assert bystander_log.wait('news', timeout=SECONDS) == [('still here',)]
    assert not bystander_log.of('disconnect')


def test_every_vector_goes_from_a_node_client_to_a_python_server_and_back(
    make: Make, place: Place, node: NodePeer, version: str
) -> None:
    server, log = python_server(make, place)
    echo(server)
    node.connect(place)
    node.wait('connect')
    for row in ROWS:
        node.emit(row['type'], row['data'])
    node.emit('end', True)
    node.wait('end')
    expected = [*(arriving(row, version) for row in ROWS), ('end', 'true')]
    assert messages(log.events) == expected
    assert messages(node.reports) == expected


def test_5_mib_go_from_a_node_client_to_a_python_server_and_back(make: Make, place: Place, node: NodePeer) -> None:
    server, log = python_server(make, place)
    echo(server)
    node.connect(place)
    node.wait('connect')
    node.emit('large', {'$repeat': LARGE_PARTS})
    assert node.wait('large') == [digest(LARGE)]
    ((data, _),) = log.of('large')
    assert data == LARGE


def test_10000_messages_go_in_order_from_a_node_client_to_a_python_server_and_back(
    make: Make, place: Place, node: NodePeer
) -> None:
    server = place.serve(make())
    numbers: List[int] = []
    server.on('number', lambda data: numbers.append(data))
    echo(server)
    server.start()
    node.connect(place)
    node.wait('connect')
    node.do('emitNumbers', id='world', type='number', count=MANY)
    node.emit('end', True)
    node.wait('end')
    assert numbers == list(range(MANY))
    assert node.wait('number', MANY) == list(range(MANY))


# A Node server and Python clients


def test_a_python_client_sees_a_node_server_come_and_go(make: Make, place: Place, start_node: StartNode) -> None:
    node = start_node()
    log = Log()
    client = place.connect(make(), lambda client: client.on('*', log))
    log.wait('error', timeout=SECONDS)  # nobody is there yet
    node.serve(place)
    log.wait('connect', timeout=SECONDS)
    assert client.connected
    node.wait('connect')
    node.close()
    log.wait('disconnect', timeout=SECONDS)
    assert not client.connected
    assert [event for event, *_ in log.events if event != 'error'] == ['connect', 'disconnect']


def test_a_node_server_sees_python_clients_come_and_go(make: Make, place: Place, node: NodePeer) -> None:
    node.serve(place)
    client, log = python_client(make, place)
    node.wait('connect')
    client.emit('message', 'said just before leaving')
    client.disconnect()
    node.wait('socket.disconnected')
    assert messages(node.reports) == [('message', '"said just before leaving"')]
    log.wait('destroy', timeout=SECONDS)
    assert [event for event, *_ in log.events] == ['connect', 'disconnect', 'destroy']


def test_a_node_server_answers_only_the_python_client_that_asked(make: Make, place: Place, node: NodePeer) -> None:
    node.do('echo')
    node.serve(place)
    (first, first_log), (second, second_log) = python_client(make, place), python_client(make, place)
    first.emit('question', 'one')
    first_log.wait('question', timeout=SECONDS)
    second.emit('question', 'two')
    assert second_log.wait('question', timeout=SECONDS) == [('two',)]
    first.emit('question', 'three')
    assert first_log.wait('question', 2, timeout=SECONDS) == [('one',), ('three',)]


def test_a_node_server_broadcasts_to_node_and_python_clients(
    make: Make, place: Place, node: NodePeer, start_node: StartNode
) -> None:
    node.serve(place)
    other = start_node()
    other.connect(place)
    logs = [python_client(make, place)[1] for _ in range(2)]
    node.wait('connect', 3)
    news = {'headline': 'sol \N{BLACK SUN WITH RAYS}'}
    node.do('broadcast', type='news', data=news)
    node.do('broadcast', type='end', data=True)
    other.wait('end')
    assert other.wait('news') == [news]
    for log in logs:
        log.wait('end', timeout=SECONDS)
        assert log.of('news') == [(news,)]


def test_a_python_client_returns_to_a_node_server_that_was_killed(
    make: Make, place: Place, start_node: StartNode, node: NodePeer
) -> None:
    first, second = start_node(), node
    first.serve(place)
    client, log = python_client(make, place)
    client.emit('message', 'before')
    assert first.wait('message') == ['before']
    first.kill()
    log.wait('disconnect', timeout=SECONDS)
    second.do('echo')
    second.serve(place)
    log.wait('connect', 2, timeout=SECONDS)
    client.emit('message', 'after')
    assert log.wait('message', timeout=SECONDS) == [('after',)]


def test_a_python_client_can_emit_while_a_killed_node_server_is_away(
    make: Make, place: Place, start_node: StartNode, node: NodePeer
) -> None:
    first, second = start_node(), node
    first.serve(place)
    client, log = python_client(make, place)
    first.kill()
    log.wait('disconnect', timeout=SECONDS)
    second.serve(place, wait=False)
    client.emit('message', 'while you were out', timeout=SECONDS)
    assert second.wait('message') == ['while you were out']


def test_a_node_server_outlives_a_killed_python_client_and_serves_the_next(
    place: Place, node: NodePeer, start_python: StartPython
) -> None:
    node.serve(place)
    for time in 1, 2:
        client = start_python('connect', place)
        node.wait('hello', time)
        client.kill()
        node.wait('socket.disconnected', time)
    assert len(set(node.wait('hello', 2))) == 2


def test_every_vector_goes_from_a_python_client_to_a_node_server_and_back(
    make: Make, place: Place, node: NodePeer, version: str
) -> None:
    node.do('echo')
    node.serve(place)
    client, log = python_client(make, place)
    for row in ROWS:
        emit_row(client.emit, row)
    client.emit('end', True)
    log.wait('end', timeout=SECONDS)
    node.wait('end')
    assert messages(node.reports) == [*(arriving(row, '14.0.0') for row in ROWS), ('end', 'true')]
    assert messages(log.events) == [*(arriving(row, version) for row in ROWS), ('end', 'true')]


def test_5_mib_go_from_a_python_client_to_a_node_server_and_back(make: Make, place: Place, node: NodePeer) -> None:
    node.do('echo')
    node.serve(place)
    client, log = python_client(make, place)
    client.emit('large', LARGE, timeout=SECONDS)
    ((data,),) = log.wait('large', timeout=SECONDS)
    assert data == LARGE
    assert node.wait('large') == [digest(LARGE)]


def test_10000_messages_go_in_order_from_a_python_client_to_a_node_server_and_back(
    make: Make, place: Place, node: NodePeer
) -> None:
    node.do('echo')
    node.serve(place)
    client = place.connect(make())
    numbers: List[int] = []
    end = Log()
    client.on('number', lambda data: numbers.append(data))
    client.on('end', lambda data: end('end', data))
    for number in range(MANY):
        client.emit('number', number, timeout=SECONDS)
    client.emit('end', True)
    end.wait('end', timeout=SECONDS)
    assert node.wait('number', MANY) == list(range(MANY))
    assert numbers == list(range(MANY))


# Meeting without a path


@pytest.fixture(params=['XDG_RUNTIME_DIR', 'TMPDIR'])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where both put their sockets when nothing is configured: in the run-time directory, else the temporary one."""
    for name in 'XDG_RUNTIME_DIR', 'TMPDIR', 'TMP', 'TEMP':
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(request.param, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize('version', ['14.0.0'], indirect=True)
def test_an_unconfigured_node_ipc_14_client_finds_an_unconfigured_python_server(
    root: Path, start_node: StartNode
) -> None:
    with nodeipc.IPC() as ipc:
        server = ipc.serve()
        server.on('message', lambda data, socket: socket.emit('message', data))
        server.start()
        assert root in Path(str(server.address)).parents
        node = start_node()
        node.do('connectTo', id=socket_module.gethostname())
        node.emit('message', 'hello', id=socket_module.gethostname())
        assert node.wait('message') == ['hello']


@pytest.mark.parametrize('version', ['14.0.0'], indirect=True)
def test_an_unconfigured_python_client_finds_an_unconfigured_node_ipc_14_server(
    root: Path, start_node: StartNode
) -> None:
    node = start_node()
    node.do('serve')
    node.wait('start')
    with nodeipc.IPC() as ipc:
        client = ipc.connect_to(socket_module.gethostname())
        assert root in Path(str(client.address)).parents
        client.emit('message', 'hello', timeout=SECONDS)
        assert node.wait('message') == ['hello']


@pytest.mark.parametrize('version', ['9.2.1', '10.1.0'], indirect=True)
def test_older_peers_meet_by_id_in_a_common_socket_root(make: Make, tmp_path: Path, node: NodePeer) -> None:
    node.do('configure', settings={'socketRoot': f'{tmp_path}/', 'id': 'node'})
    node.do('serve')
    node.wait('start')
    ipc = make(socket_root=f'{tmp_path}/', id='python')
    server = ipc.serve()
    server.on('message', lambda data, socket: socket.emit('message', data))
    server.start()
    node.do('connectTo', id='python')
    node.emit('message', 'from node', id='python')
    assert node.wait('message', of='python') == ['from node']
    ipc.connect_to('node').emit('message', 'from python')
    assert node.wait('message', of='server') == ['from python']
