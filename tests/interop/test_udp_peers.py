"""UDP: nodeipc and real node-ipc peers, for each version that is in use. Either end is a server with a port of its own.

Little is sent at a time: a datagram that finds a full buffer is lost, on one machine, too.
"""

from __future__ import annotations

import sys
from typing import Callable, List, Tuple

import pytest

import nodeipc

from ..conftest import Log
from .peers import SECONDS, UDP, NodePeer, digest, echo, messages
from .vectors import ROWS, arriving, emit_row

Make = Callable[..., nodeipc.IPC]
StartNode = Callable[[], NodePeer]
Address = Tuple[str, int]


def serve(make: Make, udp: UDP) -> Tuple[nodeipc.Server, Log]:
    """A Python server to be started, and the log of its events."""
    server = make().serve_net(udp.host, 0, udp.type)
    log = Log()
    server.on('*', log)
    return server, log


def start(server: nodeipc.Server) -> Address:
    """Start a server; return where it is."""
    server.start()
    assert isinstance(server.address, tuple)
    return server.address


# A Python server and Node peers


def test_a_python_server_hears_a_node_peer_and_answers_it(make: Make, udp: UDP, node: NodePeer) -> None:
    server, log = serve(make, udp)
    server.on('question', lambda data, socket: socket.emit('answer', data + '?'))
    server.on('hello', lambda data, socket: server.emit(socket, 'answer', data + '!'))
    address = start(server)
    at = node.serve_udp(udp)
    node.emit_to(address, 'question', 'one')
    assert node.wait('answer') == ['one?']
    node.emit_to(address, 'hello', 'two')
    assert node.wait('answer', 2) == ['one?', 'two!']
    ((peer,),) = log.of('connect')
    assert server.sockets == (peer,)
    assert peer.address == at


def test_a_python_server_answers_only_the_node_peer_that_asked(
    make: Make, udp: UDP, node: NodePeer, start_node: StartNode
) -> None:
    server, _ = serve(make, udp)
    server.on('question', lambda data, socket: socket.emit('answer', data + '?'))
    address = start(server)
    first, second = node, start_node()
    first.serve_udp(udp)
    second.serve_udp(udp)
    first.emit_to(address, 'question', 'one')
    first.wait('answer')
    second.emit_to(address, 'question', 'two')
    second.wait('answer')
    first.emit_to(address, 'question', 'three')
    assert first.wait('answer', 2) == ['one?', 'three?']
    assert second.wait('answer') == ['two?']


def test_a_python_server_broadcasts_to_the_node_and_python_peers_that_it_heard(
    make: Make, udp: UDP, node: NodePeer
) -> None:
    server, log = serve(make, udp)
    address = start(server)
    heard, heard_log = serve(make, udp)
    start(heard)
    silent, silent_log = serve(make, udp)
    silent_address = start(silent)
    node.serve_udp(udp)
    node.emit_to(address, 'hello', 'from Node')
    heard.emit(address, 'hello', 'from Python')
    log.wait('hello', 2, timeout=SECONDS)
    news = {'headline': 'sol \N{BLACK SUN WITH RAYS}'}
    server.broadcast('news', news)
    assert node.wait('news') == [news]
    ((data, peer),) = heard_log.wait('news', timeout=SECONDS)
    assert (data, peer.address) == (news, address)
    server.emit(silent_address, 'end')  # comes after what else was sent there
    silent_log.wait('end', timeout=SECONDS)
    assert not silent_log.of('news')


def test_a_node_peer_learns_what_a_python_server_listens_for_and_broadcasts(
    make: Make, udp: UDP, node: NodePeer
) -> None:
    server, _ = serve(make, udp)
    server.define.listen.message = 'a string'
    server.define.broadcast['weather.today'] = {'degrees': 'a number'}
    address = start(server)
    node.serve_udp(udp)
    node.emit_to(address, 'get.events.listening', {})
    node.emit_to(address, 'get.events.broadcasting', {})
    (listening,) = node.wait('events.listening')
    assert (listening['id'], listening['events']['message']) == ('world', 'a string')
    (broadcasting,) = node.wait('events.broadcasting')
    assert (broadcasting['id'], broadcasting['events']['weather.today']) == ('world', {'degrees': 'a number'})


def test_every_vector_goes_from_a_node_peer_to_a_python_server_and_back(
    make: Make, udp: UDP, node: NodePeer, version: str
) -> None:
    server, log = serve(make, udp)
    echo(server)
    address = start(server)
    node.serve_udp(udp)
    for row in ROWS:
        node.emit_to(address, row['type'], row['data'])
    node.emit_to(address, 'end', True)
    node.wait('end')
    expected = [*(arriving(row, version) for row in ROWS), ('end', 'true')]
    assert messages(log.events) == expected
    assert messages(node.reports) == expected


def test_several_frames_in_a_datagram_of_node_are_events_of_one_peer(make: Make, udp: UDP, node: NodePeer) -> None:
    server, log = serve(make, udp)
    echo(server)
    address = start(server)
    node.serve_udp(udp)
    node.send_datagram(address, b'{"type":"message","data":1}\f{"type":"news"}\f{"type":"end","data":[null]}\f')
    node.wait('end')
    expected = [('message', '1'), ('news', '{}'), ('end', '[null]')]
    assert messages(log.events) == expected
    assert messages(node.reports) == expected
    assert len({event[2] for event in log.events if event[0] in ('message', 'news', 'end')}) == 1


def test_garbage_from_a_node_peer_does_not_stop_a_python_server(make: Make, udp: UDP, node: NodePeer) -> None:
    server, log = serve(make, udp)
    echo(server)
    address = start(server)
    node.serve_udp(udp)
    garbage = [
        b'', b'\f', b'\0' * 1000, b'no JSON\f', b'"no object"\f', b'{"data":"no type"}\f', b'{"type":"not ended"', b'}\f',
        b'{"type":"message","data":"\xff"}\f', b'[' * 10000 + b'\f',
    ]
    for number, datagram in enumerate(garbage, 1):
        node.send_datagram(address, datagram)
        node.emit_to(address, 'message', number)
        assert node.wait('message', number)[-1] == number
    assert [data for data, _ in log.of('message')] == list(range(1, len(garbage) + 1))
    error, _ = log.wait('error', timeout=SECONDS)[0]  # which may tell of the first only, and another of all the rest
    assert isinstance(error, nodeipc.ProtocolError)
    assert [event[0] for event in log.events if event[0] not in ('message', 'error')] == ['start', 'connect']


# A Node server and Python peers


def test_a_node_server_hears_a_python_peer_and_answers_it(make: Make, udp: UDP, node: NodePeer) -> None:
    node.do('echo')
    host, port = node.serve_udp(udp)
    server, log = serve(make, udp)
    start(server)
    server.emit((host, port), 'question', 'one')
    ((_, peer),) = log.wait('question', timeout=SECONDS)
    server.emit({'address': 'localhost', 'port': port}, 'question', 'two')
    log.wait('question', 2, timeout=SECONDS)
    server.emit(peer, 'question', 'three')
    log.wait('question', 3, timeout=SECONDS)
    peer.emit('question', 'four')
    answers = log.wait('question', 4, timeout=SECONDS)
    assert [data for data, _ in answers] == node.wait('question', 4) == ['one', 'two', 'three', 'four']
    assert {socket for _, socket in answers} == {peer}
    assert server.sockets == (peer,)
    assert peer.address == (host, port)


def test_a_node_server_broadcasts_to_the_python_peers_that_it_heard(
    make: Make, udp: UDP, node: NodePeer, version: str
) -> None:
    node_address = node.serve_udp(udp)
    logs: List[Log] = []
    for number in range(2):
        server, log = serve(make, udp)
        host, port = start(server)
        server.emit(node_address, 'hello', number)
        if version != '14.0.0':
            # 9 and 10 remember nobody, so that their broadcasts reach only whom the application has put there.
            node.do('addPeer', to={'address': host, 'port': port})
        logs.append(log)
    node.wait('hello', 2)
    news = {'headline': 'sol \N{BLACK SUN WITH RAYS}'}
    node.do('broadcast', type='news', data=news)
    for log in logs:
        ((data, peer),) = log.wait('news', timeout=SECONDS)
        assert (data, peer.address) == (news, node_address)


def test_every_vector_goes_from_a_python_peer_to_a_node_server_and_back(
    make: Make, udp: UDP, node: NodePeer, version: str
) -> None:
    node.do('echo')
    node_address = node.serve_udp(udp)
    server, log = serve(make, udp)
    start(server)
    for row in ROWS:
        emit_row(lambda *event: server.emit(node_address, *event), row)
    server.emit(node_address, 'end', True)
    node.wait('end')
    log.wait('end', timeout=SECONDS)
    assert messages(node.reports) == [*(arriving(row, '14.0.0') for row in ROWS), ('end', 'true')]
    assert messages(log.events) == [*(arriving(row, version) for row in ROWS), ('end', 'true')]


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the largest datagram is smaller elsewhere')
def test_the_largest_datagram_goes_from_a_python_peer_to_a_node_server_and_back(
    make: Make, udp: UDP, node: NodePeer
) -> None:
    node.do('echo')
    node_address = node.serve_udp(udp)
    server, log = serve(make, udp)
    start(server)
    data = 'x' * (udp.max_datagram - len('{"type":"large","data":""}\f'))
    server.emit(node_address, 'large', data)
    ((answer, _),) = log.wait('large', timeout=SECONDS)
    assert answer == data
    assert node.wait('large') == [digest(data)]
    with pytest.raises(nodeipc.ProtocolError, match='datagram'):
        server.emit(node_address, 'large', data + 'x')


def test_several_frames_in_a_datagram_are_events_of_a_node_server(udp: UDP, node: NodePeer) -> None:
    node.do('echo')
    node_address = node.serve_udp(udp)
    frames = [b'{"type":"message","data":1}\f', b'{"type":"news","data":{}}\f', b'{"type":"end","data":[null]}\f']
    with udp.plain_socket() as sock:
        sock.sendto(b''.join(frames), node_address)
        assert [sock.recv(65536) for _ in frames] == frames


def test_a_python_peer_reaches_a_node_server_that_was_killed_and_is_back(
    make: Make, udp: UDP, start_node: StartNode, node: NodePeer
) -> None:
    first, second = start_node(), node
    node_address = first.serve_udp(udp)
    server, log = serve(make, udp)
    address = start(server)
    server.emit(node_address, 'message', 'before')
    assert first.wait('message') == ['before']
    first.kill()
    server.emit(node_address, 'message', 'while nobody is there')
    second.do('echo')
    assert second.serve_udp(udp, node_address[1]) == node_address
    server.emit(node_address, 'message', 'after')
    assert second.wait('message') == ['after']
    log.wait('message', timeout=SECONDS)
    second.emit_to(address, 'end', {})
    log.wait('end', timeout=SECONDS)
    assert messages(log.events) == [('message', '"after"'), ('end', '{}')]


# Python peers


def test_a_python_peer_learns_what_a_python_server_listens_for_and_broadcasts(make: Make, udp: UDP) -> None:
    server, _ = serve(make, udp)
    server.define.listen.message = 'a string'
    server.define.broadcast['weather.today'] = {'degrees': 'a number'}
    address = start(server)
    asking, log = serve(make, udp)
    start(asking)
    asking.emit(address, 'get.events.listening')
    asking.emit(address, 'get.events.broadcasting')
    ((listening, peer),) = log.wait('events.listening', timeout=SECONDS)
    assert peer.address == address
    assert (listening['id'], listening['events']['message']) == ('world', 'a string')
    ((broadcasting, _),) = log.wait('events.broadcasting', timeout=SECONDS)
    assert (broadcasting['id'], broadcasting['events']['weather.today']) == ('world', {'degrees': 'a number'})
