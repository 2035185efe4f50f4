"""UDP servers: every end is one. Peers, targets, limits, and datagrams that are not what they should be."""

from __future__ import annotations

import gc
import re
import socket
import sys
import threading
import time
import weakref
from typing import Any, Iterator, List

import pytest

import nodeipc
from nodeipc import EmitTimeout, NotConnectedError, ProtocolError, datagram, lookup, tally
from nodeipc.channel import Channel

from .conftest import Log, eventually

GOOD = b'{"type":"message","data":"good"}\f'
LIMITS = {'udp4': 65507, 'udp6': 65527}


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(('::1', 0))
        return True
    except OSError:
        return False


@pytest.fixture(params=['udp4', 'udp6'])
def udp_type(request: pytest.FixtureRequest) -> str:
    if request.param == 'udp6' and not has_ipv6():
        pytest.skip('this machine has no IPv6')
    return str(request.param)


@pytest.fixture
def serve(make: Any, udp_type: str) -> Any:
    """Make and start a server; its events go to `server.log`."""

    def serve_one(*handlers: Any, **settings: Any) -> Any:
        server = make(**settings).serve_net(0, udp_type)
        server.log = Log()
        server.on('*', server.log)
        for event, handler in handlers:
            server.on(event, handler)
        server.start()
        return server

    return serve_one


@pytest.fixture
def plain(udp_type: str) -> Iterator[socket.socket]:
    """A socket of nobody in particular."""
    with socket.socket(socket.AF_INET if udp_type == 'udp4' else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.bind(('127.0.0.1' if udp_type == 'udp4' else '::1', 0))
        yield sock


def heard(server: Any) -> List[Any]:
    return [data for data, _ in server.log.of('message')]


# Talking


def test_two_servers_talk(serve: Any) -> None:
    world = serve(('message', lambda data, socket: socket.emit('message', data + ' world!')), id='world')
    hello = serve(id='hello')
    hello.emit(world.address, 'message', 'hello')
    ((answer, socket),) = hello.log.wait('message')
    assert answer == 'hello world!'
    assert socket.address == world.address
    ((_, asker),) = world.log.of('message')
    assert asker.address == hello.address
    assert (asker.connected, asker.peer, asker.pending_bytes) == (True, None, 0)


@pytest.mark.parametrize('form', ['peer', 'tuple', 'list', 'mapping', 'name'])
def test_every_form_of_target(serve: Any, plain: socket.socket, form: str) -> None:
    server = serve()
    host, port = plain.getsockname()[:2]
    plain.sendto(GOOD, server.address)
    ((_, peer),) = server.log.wait('message')
    target = {
        'peer': peer,
        'tuple': (host, port),
        'list': [host, port],
        'mapping': {'address': host, 'port': port, 'family': 'IPv4', 'size': 33},
        'name': {'address': 'localhost', 'port': port},
    }[form]
    server.emit(target, 'message', 'for you')
    assert plain.recv(100) == b'{"type":"message","data":"for you"}\f'


def test_a_peer_keeps_its_context_and_its_order(serve: Any, plain: socket.socket) -> None:
    def count(data: int, socket: Any) -> None:
        socket.context.setdefault('seen', []).append(data)

    server = serve(('n', count))
    for number in range(100):
        plain.sendto(b'{"type":"n","data":%d}\f' % number, server.address)
    ((_, socket),) = server.log.wait('n', 100)[-1:]
    eventually(lambda: socket.context['seen'] == list(range(100)))
    assert server.sockets == (socket,)
    assert [event for event in server.log.events if event[0] == 'connect'] == [('connect', socket)]
    assert [event[0] for event in server.log.events][:3] == ['start', 'connect', 'n']


def test_several_frames_in_a_datagram_are_several_events(serve: Any, plain: socket.socket) -> None:
    server = serve()
    plain.sendto(GOOD * 3, server.address)
    server.log.wait('message', 3)
    assert server.stats()['messages_in'] == 3


def test_broadcast_goes_to_the_peers_that_were_heard(serve: Any, plain: socket.socket) -> None:
    world = serve()
    others = [serve(id=f'other {n}') for n in range(3)]
    silent = serve(id='silent')
    for other in others:
        other.emit(world.address, 'message', 1)
    plain.sendto(GOOD, world.address)
    world.log.wait('message', 4)
    world.broadcast('news', 'sun')
    for other in others:
        assert [data for data, _ in other.log.wait('news')] == ['sun']
    assert b'"news"' in plain.recv(100)
    assert not silent.log.of('news')


def test_broadcast_to_nobody_is_fine(serve: Any) -> None:
    serve().broadcast('news')


def test_a_peer_that_cannot_be_reached_does_not_keep_a_broadcast_from_the_others(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = serve()
    others = [serve(id=f'other {n}') for n in range(3)]
    for other in others:
        other.emit(world.address, 'message', 1)
    world.log.wait('message', 3)
    write = Channel._write

    def fail_for_one(self: Any, datagram: bytes, where: Any) -> bool:
        if where[1] == others[0].address[1]:
            raise OSError(101, 'Network is unreachable')
        return write(self, datagram, where)

    monkeypatch.setattr(Channel, '_write', fail_for_one)
    world.broadcast('news', 1)
    others[1].log.wait('news')
    others[2].log.wait('news')
    ((error, peer),) = world.log.wait('error')
    assert (error.errno, peer.address) == (101, others[0].address)


def test_the_callback_can_emit_and_hear_the_answer(make: Any, serve: Any, udp_type: str) -> None:
    world = serve(('message', lambda data, socket: socket.emit('message', data + '!')))
    ipc = make(id='hello')
    log = Log()

    def ready(server: Any) -> None:
        assert server.address[1]
        server.on('message', lambda data: log('message', data))
        ipc.server.emit({'address': 'localhost', 'port': world.address[1]}, 'message', 'Hello')

    ipc.serve_net(0, udp_type, ready).start()
    assert log.wait('message') == [('Hello!',)]


def test_define_is_told_to_whoever_asks(serve: Any) -> None:
    world = serve(id='world')
    world.define.listen.message = 'a string'
    world.define.broadcast['the.news'] = ['all', 'of it']
    hello = serve(id='hello')
    hello.emit(world.address, 'get.events.listening')
    hello.emit(world.address, 'get.events.broadcasting')
    ((listening, _),) = hello.log.wait('events.listening')
    ((broadcasting, _),) = hello.log.wait('events.broadcasting')
    assert listening == {'id': 'world', 'events': {'message': 'a string'}}
    assert broadcasting == {'id': 'world', 'events': {'the.news': ['all', 'of it']}}


def test_identify_peer(serve: Any, plain: socket.socket) -> None:
    server = serve(identify_peer=True)
    plain.sendto(b'{"type":"message","data":{"id":"me"}}\f', server.address)
    ((_, peer),) = server.log.wait('message')
    assert peer.id == 'me'
    peer.close()
    assert server.log.wait('socket.disconnected') == [(peer, 'me')]


@pytest.mark.parametrize('workers', [0, 1, 4])
def test_handlers_may_do_anything(make: Any, udp_type: str, workers: int) -> None:
    """Emit, look a name up, broadcast, close the peer and stop the server, on whatever thread."""
    world = make(id='world', workers=workers).serve_net(0, udp_type)
    hello = make(id='hello', workers=workers).serve_net(0, udp_type)
    log, hello_log = Log(), Log()
    world.on('*', log)
    hello.on('*', hello_log)

    @world.on('message')
    def message(data: Any, socket: Any) -> None:
        world.emit(('localhost', socket.address[1]), 'first', data)
        world.broadcast('second', data)
        socket.emit('third', data)
        socket.close()
        world.stop()

    world.start()
    hello.start()
    hello.emit(world.address, 'message', 1)
    for type in 'first', 'second', 'third':
        hello_log.wait(type)
    log.wait('stop')
    assert not log.of('error')


# Arguments


@pytest.mark.parametrize('arguments', [('udp4',), ('UDP4',), ('127.0.0.1', 'udp4'), ('127.0.0.1', 0, 'udp4'), (0, 'udp4')])
def test_arguments_may_be_left_out(make: Any, arguments: Any) -> None:
    ipc = make(network_port=0)
    called: List[Any] = []
    with ipc.serve_net(*arguments, called.append) as server:
        assert called == [server]
        assert server.address[0] == '127.0.0.1'
        assert str(server) == f"server 'world' (udp://127.0.0.1:{server.address[1]})"
    with ipc.serve_net(udp_type='udp4', host='127.0.0.1', port=0) as server:
        assert ipc.server is server
        assert server.listening
    assert not server.listening


def test_a_loopback_address_stands_for_that_of_the_other_version(make: Any) -> None:
    assert make().serve_net('::1', 0, 'udp4').address == ('127.0.0.1', 0)
    assert make().serve_net('udp6').address == ('::1', 8000)
    assert make().serve_net('udp4').address == ('127.0.0.1', 8000)


@pytest.mark.parametrize('bad', ['udp5', 'tcp', 4, True])
def test_a_wrong_udp_type_is_refused(make: Any, bad: Any) -> None:
    with pytest.raises(TypeError, match="'udp4' or 'udp6'"):
        make().serve_net('127.0.0.1', 8000, bad)


@pytest.mark.parametrize(
    'target',
    [
        None, 5, 'localhost', ('localhost',), ('localhost', '8000'), ('', 8000), ('localhost', 0), ('localhost', 65536),
        ('localhost', 8000, 0), ('localhost', True),
        {'address': 'localhost'}, {'port': 8000}, {'host': 'localhost', 'port': 8000}, (5, 8000),
    ],
    ids=repr,
)
def test_a_wrong_target_is_refused(serve: Any, target: Any) -> None:
    with pytest.raises(TypeError, match=r"server 'world' .* emit takes a peer, \(host, port\) or \{'address'"):
        serve().emit(target, 'message', 1)


def test_what_json_cannot_carry_is_refused(serve: Any) -> None:
    server = serve()
    with pytest.raises(TypeError, match="event 'message'"):
        server.emit(server.address, 'message', {1, 2})
    with pytest.raises(ValueError, match="event 'message'"):
        server.broadcast('message', float('nan'))
    assert server.stats()['messages_out'] == 0


def test_a_message_too_large_for_a_datagram_is_refused_before_it_is_sent(
    serve: Any, plain: socket.socket, udp_type: str
) -> None:
    server = serve()
    target = plain.getsockname()[:2]
    limit = LIMITS[udp_type]
    frame = len(b'{"type":"x","data":""}\f')
    for emit in (
        lambda data: server.emit(target, 'x', data),
        lambda data: server.emit(('localhost', target[1]), 'x', data),
    ):
        with pytest.raises(ProtocolError, match=rf'{limit + 1} bytes is more than the {limit} .*nothing was sent') as caught:
            emit('y' * (limit - frame + 1))
        assert caught.value.code == 'ERR_IPC_FRAME_TOO_LARGE'
        assert str(server) in str(caught.value)
        emit('y' * (limit - frame))
        assert len(plain.recv(1 << 17)) == limit
    plain.sendto(GOOD, server.address)
    server.log.wait('message')
    with pytest.raises(ProtocolError, match=str(limit)):
        server.broadcast('x', 'y' * limit)
    with pytest.raises(ProtocolError, match=str(limit)):
        server.sockets[0].emit('x', 'y' * limit)
    with pytest.raises(ProtocolError, match='max_message_size'):
        serve(max_message_size=100).emit(target, 'x', 'y' * 100)


def test_an_address_in_use_is_said_clearly(serve: Any, make: Any, udp_type: str) -> None:
    first = serve()
    host, port = first.address
    second = make(id='second').serve_net(host, port, udp_type)
    with pytest.raises(OSError, match=r'cannot listen on udp://.*in use.*choose another'):
        second.start()
    assert not second.listening
    with pytest.raises(NotConnectedError, match='not bound'):
        second.emit(first.address, 'x')
    first.stop()
    second.start()
    assert second.address == (host, port)


def test_a_host_of_the_wrong_version_is_said_clearly(make: Any) -> None:
    with pytest.raises(OSError, match='cannot listen on udp://'):
        make().serve_net('::2', 0, 'udp4').start()


@pytest.mark.parametrize('udp_type', ['udp4'])
def test_an_emit_that_the_system_refuses_says_where_it_was_to_go(serve: Any) -> None:
    with pytest.raises(OSError, match=r"server 'world' .*cannot send to 255\.255\.255\.255:9: Permission denied"):
        serve().emit(('255.255.255.255', 9), 'x')


# Names


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, plain: socket.socket) -> List[str]:
    """The names that were looked up; each leads to `plain`, but those that end in .invalid, which nobody has."""
    asked: List[str] = []
    resolve = lookup.resolve

    def answer(address: Any, family: Any = None, numeric: bool = False) -> Any:
        if numeric:
            return resolve(address, family, True)
        asked.append(address.host)
        if address.host.endswith('.invalid'):
            raise socket.gaierror(-2, 'Name or service not known')
        return [(plain.family, plain.getsockname())]

    monkeypatch.setattr(lookup, 'resolve', answer)
    return asked


def test_a_name_is_looked_up_once_for_a_while(
    serve: Any, plain: socket.socket, asked: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    for _ in range(20):
        server.emit(('name.test', 9), 'x')
        assert plain.recv(100)
    assert asked == ['name.test']
    now = time.monotonic()
    monkeypatch.setattr('nodeipc.lookup.time.monotonic', lambda: now + 3600)
    server.emit(('name.test', 9), 'x')
    assert asked == ['name.test', 'name.test']


def test_a_name_that_nobody_has_is_said_clearly_and_asked_for_again(serve: Any, asked: List[str]) -> None:
    server = serve()
    for times in 1, 2:
        with pytest.raises(OSError, match=r"server 'world' .*cannot look up 'no.invalid': Name or service not known"):
            server.emit({'address': 'no.invalid', 'port': 9}, 'x')
        assert asked == ['no.invalid'] * times


def test_names_that_were_looked_up_do_not_pile_up(
    serve: Any, asked: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.setattr(lookup, '_MAX_REMEMBERED', 5)
    for number in range(20):
        server.emit((f'{number}.test', 9), 'x')
    assert asked == [f'{number}.test' for number in range(20)]
    assert len(server._door._names._known) == 5
    assert not server._door._names._asked


def test_many_threads_that_ask_for_a_name_at_once_ask_once(
    serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    gate = threading.Event()
    asked: List[str] = []
    resolve = lookup.resolve

    def answer(address: Any, family: Any = None, numeric: bool = False) -> Any:
        if numeric:
            return resolve(address, family, True)
        asked.append(address.host)
        assert gate.wait(30)
        return [(plain.family, plain.getsockname())]

    monkeypatch.setattr(lookup, 'resolve', answer)
    threads = [threading.Thread(target=server.emit, args=(('name.test', 9), 'n', n)) for n in range(10)]
    for thread in threads:
        thread.start()
    eventually(lambda: asked)
    gate.set()
    assert len({plain.recv(100) for _ in threads}) == 10
    for thread in threads:
        thread.join(20)
    assert asked == ['name.test']


def test_a_slow_look_up_holds_up_nobody_else(
    make: Any, udp_type: str, plain: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    resolve = lookup.resolve

    def slow(address: Any, family: Any = None, numeric: bool = False) -> Any:
        if not numeric and address.host == 'slow.invalid':
            assert gate.wait(30)
            raise OSError(-2, 'Name or service not known')
        return resolve(address, family, numeric)

    monkeypatch.setattr(lookup, 'resolve', slow)
    # With one worker, and with none, whose handlers run on the reactor thread: it serves the sockets meanwhile.
    for workers in 1, 0:
        gate.clear()
        server = make(workers=workers).serve_net(0, udp_type)
        log = Log()
        server.on('*', log)

        emit = server.emit
        server.on('slow', lambda: emit(('slow.invalid', 9), 'x', timeout=60))  # noqa: B023
        server.start()
        server.emit(server.address, 'slow')
        log.wait('slow')
        with pytest.raises(EmitTimeout, match="'slow.invalid' could not be looked up within 0.05 s; nothing was sent"):
            server.emit(('slow.invalid', 9), 'x', timeout=0.05)
        server.emit(plain.getsockname()[:2], 'x')
        assert plain.recv(100)
        plain.sendto(GOOD, server.address)
        eventually(lambda: server.stats()['messages_in'] == 2)  # noqa: B023
        gate.set()
        ((error, _),) = log.wait('error')
        assert "cannot look up 'slow.invalid': Name or service not known; nothing was sent" in str(error)
        log.wait('message')
        server.stop()


# Datagrams that are not what they should be


@pytest.mark.parametrize(
    ('bad', 'code'),
    [
        (b'xx', 'ERR_IPC_INVALID_MESSAGE'),
        (GOOD[:-1], 'ERR_IPC_INVALID_MESSAGE'),
        (GOOD + b'{"type":', 'ERR_IPC_INVALID_MESSAGE'),
        (GOOD + b'[]\f' + GOOD, 'ERR_IPC_INVALID_MESSAGE'),
        (b'\xff\xfe\f', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":NaN}\f', 'ERR_IPC_INVALID_JSON'),
        (b'{"data":1}\f', 'ERR_IPC_INVALID_EVENT'),
        (b'{"type":"x","data":' + b'[' * 20_000 + b'\f', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":"' + b'y' * 50_000 + b'"}\f', 'ERR_IPC_FRAME_TOO_LARGE'),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_a_bad_datagram_is_dropped_whole_and_reported(
    serve: Any, plain: socket.socket, bad: bytes, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, '_REPORT_SECONDS', 0.01)
    server = serve(max_message_size=40_000)
    plain.sendto(bad, server.address)
    ((error, peer),) = server.log.wait('error')
    assert isinstance(error, ProtocolError)
    assert error.code == code
    assert f'{plain.getsockname()[1]}, a peer of {server}' in str(error)
    assert 'dropped' in str(error)
    assert peer is None  # somebody who has not said anything that can be understood is no peer
    assert not server.sockets
    plain.sendto(GOOD, server.address)
    ((_, peer),) = server.log.wait('message')
    eventually(lambda: server._dropped.is_resting)
    plain.sendto(bad, server.address)
    assert server.log.wait('error', 2)[1][1] is peer
    plain.sendto(GOOD, server.address)
    server.log.wait('message', 2)
    assert heard(server) == ['good', 'good']


def test_an_empty_datagram_is_nothing(serve: Any, plain: socket.socket) -> None:
    server = serve()
    plain.sendto(b'', server.address)
    server.emit(server.address, 'message', 'good')
    server.log.wait('message')
    assert not server.log.of('error')
    assert len(server.log.of('connect')) == 1


def test_a_flood_of_garbage_is_reported_in_few_errors(serve: Any, plain: socket.socket, monkeypatch: Any) -> None:
    monkeypatch.setattr(tally, '_REPORT_SECONDS', 0.5)  # far longer than the flood
    server = serve()
    gate = threading.Event()
    server.on('error', lambda: gate.wait(30))
    for sent in range(500):
        plain.sendto(b'garbage', server.address)
        if sent % 50 == 49:  # what the system buffers is little
            eventually(lambda: server.stats()['bytes_in'] == (sent + 1) * len(b'garbage'))  # noqa: B023
    plain.sendto(GOOD, server.address)
    server.log.wait('message')
    gate.set()
    first, second = (str(error) for error, _ in server.log.wait('error', 2)[:2])
    assert 'a peer of server' in first
    assert '499 more datagrams were dropped' in second


def test_a_flood_of_garbage_does_not_flood_the_log(serve: Any, plain: socket.socket) -> None:
    """With handlers that are quick, too. What was not told of before the end is told of at the end."""
    server = serve()
    for sent in range(200):
        plain.sendto(b'garbage', server.address)
        eventually(lambda: server.stats()['bytes_in'] == (sent + 1) * len(b'garbage'))  # noqa: B023
    server.stop()
    errors = [str(error) for error, _ in server.log.of('error')]
    assert 2 <= len(errors) < 20
    told = [re.search(r'(\d+) more datagrams', error) for error in errors]
    assert sum(int(several[1]) if several else 1 for several in told) == 200


def test_a_restart_does_not_multiply_the_reports(
    serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, '_REPORT_SECONDS', 60.0)
    server = serve()
    for times in 1, 2, 3:
        plain.sendto(b'garbage', server.address)
        server.log.wait('error', times)
        reactor = server._engine.reactor
        server.stop()
        assert not [timer for _, _, timer in reactor._timers if timer.callback is not None]
        server.start()


def test_drops_are_reported_again_when_there_were_none_for_a_while(
    serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, '_REPORT_SECONDS', 0.01)
    server = serve()
    for times in 1, 2, 3:
        plain.sendto(b'garbage', server.address)
        assert 'a peer of server' in str(server.log.wait('error', times)[-1][0])
        eventually(lambda: server._dropped.is_resting)


# Bounds


def test_the_least_recently_heard_peer_is_forgotten_first(serve: Any, udp_type: str) -> None:
    world = serve(max_connections=3)
    senders = [serve(id=f'{n}') for n in range(4)]
    for n in 0, 1, 2, 0, 3:
        senders[n].emit(world.address, 'message', n)
        eventually(lambda n=n: heard(world)[-1:] == [n])
    world.log.wait('socket.disconnected')
    ports = {socket.address[1] for socket in world.sockets}
    assert ports == {senders[n].address[1] for n in (0, 2, 3)}
    ((gone, _),) = world.log.of('socket.disconnected')
    assert gone.address == senders[1].address
    assert not gone.connected
    gone.emit('message', 'UDP needs no connection')
    senders[1].log.wait('message')
    senders[1].emit(world.address, 'message', 'back')
    eventually(lambda: heard(world)[-1] == 'back')
    assert len(world.log.of('connect')) == 5


def test_forged_senders_cannot_grow_the_table(serve: Any, udp_type: str) -> None:
    world = serve(max_connections=10)
    family, host = (socket.AF_INET, '127.0.0.1') if udp_type == 'udp4' else (socket.AF_INET6, '::1')
    peers: List[Any] = []
    world.on('connect', lambda socket: peers.append(weakref.ref(socket)))
    world.off('*')
    for n in range(100):
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.bind((host, 0))
            sender.sendto(GOOD, world.address)
        eventually(lambda n=n: world.stats()['bytes_in'] == len(GOOD) * (n + 1))
    assert len(world.sockets) <= 10
    eventually(lambda: len(world._unfinished) <= 10)
    gc.collect()
    assert sum(peer() is not None for peer in peers) <= 11  # and what the last handler was given


def test_new_peers_are_refused_while_handlers_of_many_forgotten_ones_are_stuck(serve: Any, udp_type: str) -> None:
    world = serve(max_connections=2)
    gate = threading.Event()
    world.on('message', lambda: gate.wait(30))
    family, host = (socket.AF_INET, '127.0.0.1') if udp_type == 'udp4' else (socket.AF_INET6, '::1')
    try:
        for n in range(20):
            with socket.socket(family, socket.SOCK_DGRAM) as sender:
                sender.bind((host, 0))
                sender.sendto(GOOD, world.address)
            eventually(lambda n=n: world.stats()['bytes_in'] == len(GOOD) * (n + 1))
        assert len(world._unfinished) <= 4
        ((error, _), *_) = world.log.wait('error')
        assert error.code == 'ERR_IPC_BACKPRESSURE'
        assert 'handlers have not kept up' in str(error)
    finally:
        gate.set()


def test_a_peer_whose_handlers_are_slow_costs_only_itself(serve: Any, plain: socket.socket) -> None:
    world = serve()
    gate = threading.Event()

    @world.on('slow')
    def slow() -> None:
        gate.wait(30)

    block = b'{"type":"slow","data":"' + b'x' * 50_000 + b'"}\f'
    try:
        sent = 0
        while not world.log.of('error'):
            plain.sendto(block, world.address)
            sent += 1
            eventually(lambda: world.stats()['bytes_in'] == sent * len(block))  # noqa: B023
            assert sent < 100
        ((error, peer), *_) = world.log.of('error')
        assert error.code == 'ERR_IPC_BACKPRESSURE'
        assert peer in world.sockets
        other = serve(id='other')
        other.emit(world.address, 'message', 'served')
        world.log.wait('message')
    finally:
        gate.set()
    eventually(lambda: len(world.log.of('slow')) == world.stats()['messages_in'] - 1)
    plain.sendto(GOOD, world.address)
    eventually(lambda: heard(world) == ['served', 'good'])  # it is heard again


def test_what_waits_to_be_sent_is_bounded(serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(max_pending_bytes=1000)
    write = Channel._write
    stuck = threading.Event()
    stuck.set()
    monkeypatch.setattr(Channel, '_write', lambda self, *datagram: not stuck.is_set() and write(self, *datagram))
    target = plain.getsockname()[:2]
    plain.sendto(GOOD, server.address)
    ((_, peer),) = server.log.wait('message')
    emitted = 0
    with pytest.raises(EmitTimeout, match=r"server 'world' .*can send no more: .* no room came within 0.05 s"):
        while True:
            server.emit(target, 'n', emitted, timeout=0.05)
            emitted += 1
    assert 1000 < server.stats()['pending_bytes'] < 1100
    assert peer.pending_bytes == server.stats()['pending_bytes']
    late: List[Any] = []
    waiting = threading.Thread(target=lambda: late.append(server.emit(target, 'n', 'late', timeout=20)))
    waiting.start()
    stuck.clear()
    waiting.join(20)
    assert late == [None]
    got = [plain.recv(100) for _ in range(emitted + 1)]
    assert got == [b'{"type":"n","data":%d}\f' % n for n in range(emitted)] + [b'{"type":"n","data":"late"}\f']
    assert server.stats()['pending_bytes'] == 0


class Scripted:
    """A channel's socket, whose `sendto` and `recvfrom` first raise what the test says."""

    def __init__(self, server: Any, *, send: Any = (), receive: Any = ()) -> None:
        self.socket = server._door._sock
        self.send, self.receive = list(send), list(receive)
        server._door._sock = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)

    def sendto(self, *arguments: Any) -> int:
        if self.send:
            error = self.send.pop(0)
            if error:
                raise error
        return int(self.socket.sendto(*arguments))

    def recvfrom(self, *arguments: Any) -> Any:
        if self.receive:
            raise self.receive.pop(0)
        return self.socket.recvfrom(*arguments)


def test_what_the_system_does_not_take_at_once_waits_and_leaves_in_order(serve: Any, plain: socket.socket) -> None:
    server = serve()
    Scripted(server, send=[BlockingIOError(), BlockingIOError(), InterruptedError()])
    target = plain.getsockname()[:2]
    for n in range(20):
        server.emit(target, 'n', n)
    assert [plain.recv(100) for _ in range(20)] == [b'{"type":"n","data":%d}\f' % n for n in range(20)]
    eventually(lambda: server.stats()['pending_bytes'] == 0)
    assert server.stats()['messages_out'] == 20


def test_pending_bytes_are_a_peers_own(serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    other = serve(id='other')
    plain.sendto(GOOD, server.address)
    other.emit(server.address, 'message', 1)
    server.log.wait('message', 2)
    monkeypatch.setattr(Channel, '_write', lambda self, *datagram: False)
    by_port = {peer.address[1]: peer for peer in server.sockets}
    by_port[other.address[1]].emit('x')
    assert by_port[other.address[1]].pending_bytes == len(b'{"type":"x","data":{}}\f')
    assert by_port[plain.getsockname()[1]].pending_bytes == 0
    server.stop(0.05)


@pytest.mark.parametrize(
    ('refusal', 'expected'),
    [(OSError(90, 'Message too long'), ProtocolError), (OSError(101, 'Network is unreachable'), OSError)],
)
def test_what_the_system_refuses_is_raised_or_reported(
    serve: Any, plain: socket.socket, refusal: OSError, expected: Any
) -> None:
    server = serve()
    target = plain.getsockname()[:2]
    Scripted(server, send=[refusal])
    with pytest.raises(expected, match=r"server 'world' .*(more than this system|cannot send to .*unreachable)"):
        server.emit(target, 'n', 0)
    Scripted(server, send=[BlockingIOError(), refusal])  # when it is sent later
    server.emit(target, 'n', 1)
    server.emit(target, 'n', 2)
    assert plain.recv(100) == b'{"type":"n","data":2}\f'
    ((error, _),) = server.log.wait('error')
    assert isinstance(error, expected)


def test_an_error_of_reading_is_reported_and_reading_goes_on(serve: Any, plain: socket.socket) -> None:
    server = serve()
    Scripted(server, receive=[OSError(111, 'Connection refused')])
    plain.sendto(GOOD, server.address)
    ((error, _),) = server.log.wait('error')
    assert error.errno == 111
    assert str(server) in str(error)
    server.log.wait('message')


def test_a_broken_socket_ends_the_server_and_can_be_stopped(serve: Any, plain: socket.socket) -> None:
    server = serve()
    plain.sendto(GOOD, server.address)
    server.log.wait('message')
    Scripted(server, receive=[OSError(9, 'Bad file descriptor')])
    plain.sendto(GOOD, server.address)
    server.log.wait('error')
    server.log.wait('socket.disconnected')
    eventually(lambda: not server.listening)
    server.stop()
    assert server.log.events[-1] == ('stop',)
    server.start()
    plain.sendto(GOOD, server.address)
    server.log.wait('message', 2)


def test_a_decoder_that_runs_out_of_memory_costs_a_datagram(
    serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    decode = server._parser.decode_datagram
    errors = [MemoryError()]

    class Parser:
        def decode_datagram(self, datagram: bytes) -> Any:
            if errors:
                raise errors.pop()
            return decode(datagram)

    monkeypatch.setattr(server, '_parser', Parser())
    plain.sendto(GOOD, server.address)
    assert isinstance(server.log.wait('error')[0][0], MemoryError)
    plain.sendto(GOOD, server.address)
    server.log.wait('message')


def test_close_drops_what_waits_for_handlers_and_forgets_the_peer(serve: Any, plain: socket.socket) -> None:
    gate = threading.Event()
    server = serve(('first', lambda: gate.wait(20)))
    plain.sendto(b'{"type":"first"}\f' + GOOD, server.address)
    plain.sendto(GOOD, server.address)
    ((_, peer),) = server.log.wait('first')
    eventually(lambda: server.stats()['messages_in'] == 3)
    peer.close()
    peer.close()
    gate.set()
    server.log.wait('socket.disconnected')
    assert not server.log.of('message')
    assert not peer.connected
    plain.sendto(GOOD, server.address)
    ((_, again),) = server.log.wait('message')
    assert again is not peer
    assert (peer.connected, again.connected) == (False, True)
    peer.close()  # which is not there any more
    plain.sendto(GOOD, server.address)
    server.log.wait('message', 2)
    assert server.sockets == (again,)


def test_a_peer_that_keeps_up_is_never_dropped(serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram, '_MAX_BACKLOG_BYTES', 20_000)
    server = serve()
    for n in range(100):
        plain.sendto(GOOD, server.address)
        server.log.wait('message', n + 1)
    assert not server.log.of('error')
    monkeypatch.setattr(datagram, '_MAX_BACKLOG_BYTES', 20 * datagram._OVERHEAD_BYTES)  # tiny ones have a price, too
    gate = threading.Event()
    server.on('stuck', lambda: gate.wait(20))
    for _ in range(40):
        plain.sendto(b'{"type":"stuck"}\f', server.address)
    server.log.wait('error')
    gate.set()


def test_a_logger_that_raises_shuts_nobody_out(serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datagram, '_MAX_BACKLOG_BYTES', 10 * datagram._OVERHEAD_BYTES)

    def fail(line: str) -> None:
        raise BrokenPipeError(32, 'Broken pipe')

    server = serve(log_payloads=True, logger=fail)
    for n in range(30):
        plain.sendto(GOOD * 2, server.address)
        eventually(lambda n=n: server.stats()['messages_in'] == 2 * (n + 1))
        eventually(lambda: all(peer._backlog._taken == peer._backlog._handled for peer in server.sockets))


def test_the_timeout_of_an_emit_to_a_peer_counts(
    serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(max_pending_bytes=1)
    plain.sendto(GOOD, server.address)
    ((_, peer),) = server.log.wait('message')
    monkeypatch.setattr(Channel, '_write', lambda self, *datagram: False)
    peer.emit('x')
    for emit in (
        lambda: peer.emit('x', timeout=0.02),
        lambda: server.emit(peer, 'x', timeout=0.02),
        lambda: server.emit(peer.address, 'x', timeout=0.02),
    ):
        with pytest.raises(EmitTimeout, match='within 0.02 s'):
            emit()
    waiting: List[Any] = []

    def wait() -> None:
        try:
            peer.emit('x', timeout=20)
        except NotConnectedError as error:
            waiting.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    server.stop(0.05)  # which ends the wait
    thread.join(20)
    assert len(waiting) == 1


def test_stop_ends_a_wait_for_a_name(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    resolve = lookup.resolve

    def slow(address: Any, family: Any = None, numeric: bool = False) -> Any:
        if numeric:
            return resolve(address, family, True)
        assert gate.wait(20)
        return []

    monkeypatch.setattr(lookup, 'resolve', slow)
    server = serve(emit_timeout=None)
    errors: List[BaseException] = []

    def emit(n: int) -> None:
        try:
            server.emit((f'{n}.test', 9), 'x')
        except NotConnectedError as error:
            errors.append(error)

    threads = [threading.Thread(target=emit, args=(n,)) for n in range(2 * lookup._MAX_QUESTIONS)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(server._door._names._asked) == lookup._MAX_QUESTIONS)
    eventually(  # they are asked before their threads run
        lambda: [thread.name for thread in threading.enumerate()].count('nodeipc-lookup') == lookup._MAX_QUESTIONS
    )
    server.stop()
    for thread in threads:
        thread.join(20)
    assert len(errors) == len(threads)
    assert all('was stopped while' in str(error) or 'is stopped' in str(error) for error in errors)
    gate.set()


@pytest.mark.parametrize('host', ['a..b', 'a' * 70, '\udcff', 'a\0b'])
def test_what_cannot_be_a_host_is_said_clearly(serve: Any, make: Any, host: str) -> None:
    server = serve()
    with pytest.raises(OSError, match=r"server 'world' .*cannot look up"):
        server.emit((host, 9), 'x')
    with pytest.raises(OSError, match='cannot listen on udp://'):
        make().serve_net(host, 0, 'udp4').start()
    with pytest.raises(OSError, match='cannot listen on tcp://'):
        make().serve_net(host, 0).start()


# The end


def test_stop_handles_what_arrived_and_sends_the_replies(serve: Any, plain: socket.socket) -> None:
    gate = threading.Event()

    def slow(data: Any, socket: Any) -> None:
        gate.wait(30)
        socket.emit('answer', data)

    server = serve(('ask', slow))
    for n in range(5):
        plain.sendto(b'{"type":"ask","data":%d}\f' % n, server.address)
    eventually(lambda: server.stats()['messages_in'] == 5)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    eventually(lambda: not server.listening)
    gate.set()
    stopping.join(20)
    assert not stopping.is_alive()
    assert [plain.recv(100) for _ in range(5)] == [b'{"type":"answer","data":%d}\f' % n for n in range(5)]
    assert [event[0] for event in server.log.events][-2:] == ['socket.disconnected', 'stop']
    with pytest.raises(NotConnectedError, match='start'):
        server.emit(server.address, 'x')


def test_stop_sends_what_waits(serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    write = Channel._write
    refusals = iter([False] * 4)
    monkeypatch.setattr(Channel, '_write', lambda self, *datagram: next(refusals, True) and write(self, *datagram))
    server.emit(plain.getsockname()[:2], 'n', 1)
    server.emit(plain.getsockname()[:2], 'n', 2)
    server.stop()
    assert [plain.recv(100), plain.recv(100)] == [b'{"type":"n","data":1}\f', b'{"type":"n","data":2}\f']


@pytest.mark.parametrize('timeout', [None, 0.05])
def test_stop_gives_up_and_reports_what_cannot_be_sent(
    serve: Any, plain: socket.socket, monkeypatch: pytest.MonkeyPatch, timeout: Any
) -> None:
    server = serve(stall_timeout=50 if timeout is None else 60_000)
    monkeypatch.setattr(Channel, '_write', lambda self, *datagram: False)
    server.emit(plain.getsockname()[:2], 'n', 1)
    server.stop(timeout)
    errors = [error for error, _ in server.log.wait('error', 2)]
    assert 'bytes that server' in str(errors[1])
    server.log.wait('stop')
    assert server.log.events[-1] == ('stop',)


def test_a_stuck_handler_does_not_outlast_the_timeout_of_stop(serve: Any, plain: socket.socket) -> None:
    gate = threading.Event()
    server = serve(('message', lambda: gate.wait(30)))
    plain.sendto(GOOD, server.address)
    server.log.wait('message')
    server.stop(0.1)
    assert not server.listening
    server.start()
    server.stop(0.1)
    gate.set()


def test_it_can_be_started_again(serve: Any, plain: socket.socket) -> None:
    server = serve()
    for run in 1, 2, 3:
        plain.sendto(GOOD, server.address)
        server.log.wait('message', run)
        server.stop()
        server.start()
    assert server.stats()['messages_in'] == 3
    assert server.stats()['connections_total'] == 3
    with pytest.raises(RuntimeError, match='listening'):
        server.start()


def test_a_failing_callback_leaves_nothing(make: Any, udp_type: str) -> None:
    def ready(server: Any) -> None:
        server.emit(server.address, 'x')
        raise RuntimeError('no')

    ipc = make()
    server = ipc.serve_net(0, udp_type, ready)
    for _ in range(2):
        with pytest.raises(RuntimeError, match='no'):
            server.start()
        assert not server.listening
        with pytest.raises(NotConnectedError):
            server.emit(('127.0.0.1', 9), 'x')
    assert [thread for thread in threading.enumerate() if thread.name.startswith('nodeipc')] == []


def test_a_socket_that_is_bound_already_can_be_given(make: Any, plain: socket.socket, udp_type: str) -> None:
    bound = socket.socket(plain.family, socket.SOCK_DGRAM)
    bound.bind((plain.getsockname()[0], 0))
    where = bound.getsockname()[:2]
    ipc = make()
    server = ipc.serve_net(sock=bound)
    assert server.address == where
    log = Log()
    server.on('*', log)
    server.start()
    plain.sendto(GOOD, where)
    log.wait('message')
    server.stop()
    assert bound.fileno() < 0
    with pytest.raises(OSError, match='closed'):
        server.start()
    with pytest.raises(TypeError, match='sock= is bound already'):
        ipc.serve_net(0, 'udp4', sock=plain)


def test_a_given_socket_that_somebody_closes_keeps_stop_from_nothing(make: Any) -> None:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(('127.0.0.1', 0))
    server = make().serve_net(sock=bound)
    server.start()
    bound.close()
    server.stop()
    assert not server.listening


def test_log_payloads(serve: Any, plain: socket.socket) -> None:
    lines: List[str] = []
    server = serve(log_payloads=True, logger=lines.append, log_in_color=False)
    plain.sendto(GOOD, server.address)
    server.log.wait('message')
    server.emit(plain.getsockname()[:2], 'answer', 1)
    assert any('received message good' in line for line in lines)
    assert any('emitting answer 1' in line for line in lines)


def test_many_threads_and_a_short_switch_interval(serve: Any) -> None:
    """Emits from many threads, peers that come and go, and stop in the middle of it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        world = serve(('n', lambda data, socket: socket.emit('n', data)))
        senders = [serve(id=f'{n}') for n in range(6)]
        failures: List[BaseException] = []

        def emit(sender: Any) -> None:
            try:
                for n in range(100):
                    sender.emit(('localhost', world.address[1]), 'n', n)
                    if n % 10 == 0:
                        world.broadcast('b', n)
            except NotConnectedError:
                pass
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=emit, args=(sender,)) for sender in senders]
        for thread in threads:
            thread.start()
        eventually(lambda: world.stats()['messages_in'] > 100)
        world.stop()
        for thread in threads:
            thread.join(20)
        assert not failures
        for sender in senders:
            sender.stop()
            numbers = [data for data, _ in sender.log.of('n')]
            assert numbers == sorted(numbers)  # in order, if not all
    finally:
        sys.setswitchinterval(interval)


def test_a_loop_of_starts_leaves_nothing(make: Any) -> None:
    ipc = nodeipc.IPC(id='loop')
    for _ in range(30):
        with ipc.serve_net(0, 'udp4') as server:
            server.emit(server.address, 'x')
    ipc.close()
