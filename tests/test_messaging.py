"""Servers and clients exchanging events: the facade's names, the events of the tables, order, statistics."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from typing import Any, Dict, List

import pytest

import nodeipc
from nodeipc import IPC, NotConnectedError, ProtocolError
from nodeipc.address import KNOWS_PEERS

from .conftest import Log, eventually


def echo(world: Any) -> Any:
    """Have a server answer each message with its data."""
    world.server.on('message', lambda data, socket: socket.emit('message', data))
    return world.start()


def test_a_message_and_its_answer(pair: Any) -> None:
    world = pair()
    world.server.on('message', lambda data, socket: socket.emit('message', data + ' world!'))
    world.start()
    log = Log()
    client = world.connect(log)
    client.emit('message', 'hello')
    log.wait('message')
    assert log.events == [('connect',), ('message', 'hello world!')]


def test_data_of_every_kind_arrives_unchanged(pair: Any) -> None:
    world = echo(pair())
    log = Log()
    client = world.connect(log)
    values = [None, True, 0, -1.5, '', 'ünï ☃ \f \u2028', [], {}, [1, [2, {'a': None}]], {'nested': {'x': [1.25]}}, 2**70]
    for value in values:
        client.emit('message', value)
    client.emit('message')
    assert [data for (data,) in log.wait('message', len(values) + 1)] == [*values, {}]


def test_the_events_of_a_server(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('*', log)
    world.start()
    client = world.connect()
    client.emit('message', 1)
    log.wait('message')
    client.disconnect()
    log.wait('socket.disconnected')
    world.server.stop()
    names = [event[0] for event in log.events]
    assert names == ['start', 'connect', 'message', 'socket.disconnected', 'stop']
    start, connect, message, disconnected, stop = log.events
    socket = connect[1]
    assert start == ('start', world.server)
    assert message == ('message', 1, socket)
    assert disconnected == ('socket.disconnected', socket, None)
    assert stop == ('stop',)


def test_the_events_of_a_client(pair: Any) -> None:
    world = pair().start()
    log = Log()
    client = world.connect(log)
    log.wait('connect')
    eventually(lambda: world.server.sockets)
    world.server.broadcast('news', [1])
    log.wait('news')
    client.disconnect()
    assert log.events == [('connect',), ('news', [1]), ('disconnect',), ('destroy',)]


def test_start_is_handled_before_anybody_is_accepted(pair: Any) -> None:
    world = pair()
    log = Log()
    gate = threading.Event()
    world.server.on('start', lambda server: gate.wait(10))
    world.server.on('*', log)
    world.start()
    client = world.connect()
    client.emit('message', 1)  # the kernel has it
    log.wait('start')
    assert [event[0] for event in log.events] == ['start']
    gate.set()
    log.wait('message')
    assert [event[0] for event in log.events] == ['start', 'connect', 'message']


def test_callbacks_run_in_the_calling_thread_before_anything_arrives(make: Any) -> None:
    ipc = make()
    threads: List[Any] = []
    log = Log()

    def serving(server: Any) -> None:
        threads.append(threading.current_thread())
        assert ipc.server is server
        assert not server.listening
        assert os.path.exists(server.address)  # bound
        server.on('*', log)

    def connecting() -> None:
        threads.append(threading.current_thread())
        assert not ipc.of.world.connected
        ipc.of.world.on('*', log)

    ipc.serve(serving)
    assert threads == []
    ipc.server.start()
    client = ipc.connect_to('world', connecting)
    assert threads == [threading.current_thread()] * 2
    assert client is ipc.of.world
    client.emit('message', 'x')
    log.wait('message')
    assert ('start', ipc.server) in log.events


def test_a_callback_that_raises_undoes_what_was_begun(make: Any, tmp_path: Any) -> None:
    ipc = make()

    def fails() -> None:
        raise LookupError('mine')

    server = ipc.serve(fails)
    with pytest.raises(LookupError, match='mine'):
        server.start()
    assert not server.listening
    assert not os.path.exists(server.address)
    with pytest.raises(LookupError, match='mine'):
        ipc.connect_to('world', fails)
    assert 'world' not in ipc.of
    ipc.serve().start()


def test_arguments_may_be_left_out_in_order(make: Any, tmp_path: Any) -> None:
    ipc = make(network_host='127.0.0.9', network_port=1234)
    assert ipc.serve().address == str(tmp_path / 'node-ipc' / 'app.world')
    assert ipc.serve('/x/y').address == '/x/y'
    assert ipc.serve(tmp_path / 'z').address == str(tmp_path / 'z')
    assert ipc.serve_net().address == ('127.0.0.9', 1234)
    assert ipc.serve_net('::1').address == ('::1', 1234)
    assert ipc.serve_net(8001).address == ('127.0.0.9', 8001)
    assert ipc.serve_net('localhost', 0).address == ('localhost', 0)
    assert ipc.serve_net(8001, print).address == ('127.0.0.9', 8001)
    assert ipc.server.address == ('127.0.0.9', 8001)
    for wrong in ((8001, 'localhost'), (print, 8001), (b'host',), (True,)):
        with pytest.raises(TypeError, match='serve_net.* wrong'):
            ipc.serve_net(*wrong)
    with pytest.raises(ValueError, match='0 to 65535'):
        ipc.serve_net(70000)
    with pytest.raises(TypeError, match='connect_to.*: 5 has the wrong type'):
        ipc.connect_to('x', 5)
    with pytest.raises(TypeError, match='id must be a str'):
        ipc.connect_to(None)
    with pytest.raises(ValueError, match='needs the id'):
        ipc.connect_to('')
    assert repr(ipc)


def test_clients_are_found_by_id(make: Any) -> None:
    ipc = make(id='service-1')
    ipc.serve().start()
    client = ipc.connect_to('service-1')
    other = ipc.connect_to('other')
    assert ipc.of['service-1'] is client
    assert ipc.of.other is other
    assert list(ipc.of) == ['service-1', 'other']
    assert ('other' in ipc.of, 'third' in ipc.of, len(ipc.of)) == (True, False, 2)
    with pytest.raises(AttributeError, match="no client 'third'.*connect_to"):
        ipc.of.third  # noqa: B018
    with pytest.raises(KeyError, match='no client'):
        ipc.of['third']
    ipc.disconnect('other')
    ipc.disconnect('never there')
    assert list(ipc.of) == ['service-1']


def test_connecting_twice_returns_the_connected_client(make: Any) -> None:
    ipc = make()
    ipc.serve().start()
    client = ipc.connect_to('world')
    assert client.wait_connected(10)
    log = Log()
    assert ipc.connect_to('world', log) is client
    assert log.events == [(client,)]
    with pytest.raises(ValueError, match='is in use; disconnect it before'):
        ipc.connect_to('world', '/another/path')
    waiting = ipc.connect_to('nobody')
    assert ipc.connect_to('nobody') is waiting
    waiting.disconnect()
    assert ipc.connect_to('nobody') is not waiting


def test_instances_in_one_process_are_independent(make: Any) -> None:
    one, two = make(id='one'), make(id='two')
    logs: Dict[str, Log] = {}
    for ipc in (one, two):
        log = logs[ipc.config.id] = Log()
        ipc.serve().on('*', log)
        ipc.server.start()
    one.connect_to('two').emit('message', 'from one')
    two.connect_to('one').emit('message', 'from two')
    logs['one'].wait('message')
    logs['two'].wait('message')
    one.close()
    assert one.wait(0) is True
    assert two.server.listening
    assert two.of.one is not None
    two.connect_to('two').emit('message', 'still here')
    assert logs['two'].wait('message', 2)[1][0] == 'still here'


def test_a_closed_instance_can_be_used_again(make: Any) -> None:
    ipc = make()
    for _ in range(3):
        log = Log()
        server = ipc.serve()
        server.on('*', log)
        with server:
            client = ipc.connect_to('world')
            client.emit('message', 1)
            log.wait('message')
        ipc.close()
        ipc.close()
        assert len(ipc.of) == 0


def test_a_server_can_be_started_again_with_its_handlers(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('*', log)
    for count in (1, 2, 3):
        world.server.start()
        assert world.server.listening
        with pytest.raises(RuntimeError, match='is listening'):
            world.server.start()
        client = world.connect()
        client.emit('message', count)
        log.wait('message', count)
        client.disconnect()
        world.server.stop()
        world.server.stop()
        assert not world.server.listening
    assert [name for name, *_ in log.events] == ['start', 'connect', 'message', 'socket.disconnected', 'stop'] * 3


def test_context_managers_close_what_they_open(make: Any) -> None:
    log = Log()
    with IPC(id='world') as ipc:
        with ipc.serve() as server:
            server.on('*', log)
            with ipc.connect_to('world') as client:
                client.emit('message', 'x')
            assert 'world' not in ipc.of
            with pytest.raises(NotConnectedError, match=r"client 'world' .* is disconnected"):
                client.emit('message', 'y')
        assert not server.listening
    assert [event[0] for event in log.events if event[0] == 'message'] == ['message']


def test_a_broadcast_reaches_every_client(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('*', log)
    world.start()
    logs = [Log() for _ in range(5)]
    for each in logs:
        world.connect(each)
    log.wait('connect', 5)
    world.server.broadcast('news', {'n': 1})
    world.server.broadcast('bare')
    for each in logs:
        each.wait('bare')
        assert each.events == [('connect',), ('news', {'n': 1}), ('bare', {})]


def test_emit_to_one_client_reaches_that_client_only(pair: Any) -> None:
    world = pair()

    @world.server.on('name')
    def remember(name: str, socket: Any) -> None:
        socket.context['name'] = name

    world.start()
    logs = {}
    for name in 'abc':
        logs[name] = Log()
        client = world.connect(logs[name])
        client.emit('name', name)
    eventually(lambda: sorted(s.context.get('name', '') for s in world.server.sockets) == ['a', 'b', 'c'])
    for socket in world.server.sockets:
        world.server.emit(socket, 'you', socket.context['name'])
    for name, log in logs.items():
        assert log.wait('you') == [(name,)]
    with pytest.raises(TypeError, match='emit takes the socket'):
        world.server.emit('a', 'you', 1)


def test_what_a_socket_tells(pair: Any, transport: str) -> None:
    world = pair()
    log = Log()
    world.server.on('*', log)
    world.start()
    client = world.connect()
    ((socket,),) = log.wait('connect')
    assert socket.connected
    assert socket.pending_bytes == 0
    assert socket.id is None
    assert socket.context == {}
    if transport == 'unix':
        assert socket.address == world.server.address == client.address
        if KNOWS_PEERS:
            assert socket.peer == (os.getpid(), os.getuid(), os.getgid())
            assert socket.peer.pid == os.getpid()
        else:  # PyPy
            assert socket.peer is None
    else:
        assert socket.address[0] == '127.0.0.1'
        assert socket.peer is None
    client.disconnect()
    log.wait('socket.disconnected')
    assert not socket.connected
    with pytest.raises(NotConnectedError, match="is gone; 'late' was not sent"):
        socket.emit('late')
    assert 'closed' in repr(socket)


def test_identify_peer_copies_the_payloads_id(pair: Any) -> None:
    world = pair(identify_peer=True)
    log = Log()
    world.server.on('*', log)
    world.start()
    client = world.connect()
    client.emit('message', {'id': 'client-1', 'value': 7})
    client.emit('message', 'plain')
    client.emit('message', {'value': 8})
    log.wait('message', 3)
    assert world.server.sockets[0].id == 'client-1'
    assert log.of('error') == []
    client.disconnect()
    assert log.wait('socket.disconnected')[0][1] == 'client-1'


def test_a_payloads_id_is_left_alone_unless_asked(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('*', log)
    world.start()
    world.connect().emit('message', {'id': 'client-1'})
    log.wait('message')
    assert world.server.sockets[0].id is None


def test_descriptions_are_sent_to_whoever_asks(pair: Any) -> None:
    world = pair()
    world.server.define.listen.message = 'a string'
    world.server.define.listen['other-event'] = {'data': 'anything'}
    world.server.define.broadcast.news = 'what happened'
    assert world.server.define.listen.message == 'a string'
    with pytest.raises(AttributeError, match='no description'):
        world.server.define.listen.nothing  # noqa: B018
    world.start()
    log = Log()
    client = world.connect(log)
    client.emit('get.events.listening')
    client.emit('get.events.broadcasting')
    assert log.wait('events.listening') == [
        ({'id': 'world', 'events': {'message': 'a string', 'other-event': {'data': 'anything'}}},)
    ]
    assert log.wait('events.broadcasting') == [({'id': 'world', 'events': {'news': 'what happened'}},)]
    del world.server.define.listen.message
    assert 'message' not in world.server.define.listen


def test_one_connections_events_are_handled_in_order_and_one_at_a_time(pair: Any) -> None:
    world = pair(workers=8)
    seen: List[int] = []
    busy = threading.Lock()
    overlaps = []

    @world.server.on('number')
    def handle(number: int) -> None:
        if not busy.acquire(blocking=False):
            overlaps.append(number)
            return
        seen.append(number)
        busy.release()

    world.start()
    client = world.connect()
    for number in range(5000):
        client.emit('number', number)
    eventually(lambda: len(seen) + len(overlaps) == 5000)
    assert seen == list(range(5000))


def test_connections_do_not_wait_for_each_other(pair: Any) -> None:
    world = pair(workers=3)
    gate = threading.Event()

    @world.server.on('wait')
    def wait(data: Any, socket: Any) -> None:
        gate.wait(20)

    @world.server.on('ask')
    def answer(data: Any, socket: Any) -> None:
        socket.emit('answer', data)

    world.start()
    stuck = [world.connect() for _ in range(2)]
    for client in stuck:
        client.emit('wait')
    log = Log()
    free = world.connect(log)
    free.emit('ask', 5)
    try:
        assert log.wait('answer') == [(5,)]
    finally:
        gate.set()


def test_a_connection_with_many_events_lets_others_have_their_turn(pair: Any) -> None:
    world = pair(workers=1)
    handled: List[str] = []
    gate = threading.Event()
    world.server.on('gate', lambda: gate.wait(20))
    world.server.on('name', handled.append)
    world.start()
    busy, other = world.connect(), world.connect()
    busy.emit('gate')
    for _ in range(3000):
        busy.emit('name', 'busy')
    other.emit('name', 'other')
    eventually(lambda: world.server.stats()['messages_in'] == 3002)
    gate.set()
    eventually(lambda: len(handled) == 3001)
    assert handled.index('other') < 1000


def test_emits_of_many_threads_do_not_interleave(pair: Any) -> None:
    world = pair()
    got: List[Any] = []
    world.server.on('message', got.append)
    world.start()
    client = world.connect()
    payloads = {number: chr(97 + number) * (1 + 7919 * number) for number in range(8)}

    def send(number: int) -> None:
        for count in range(40):
            client.emit('message', [number, count, payloads[number]])

    threads = [threading.Thread(target=send, args=(number,)) for number in payloads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: len(got) == 320)
    for number, payload in payloads.items():
        mine = [entry for entry in got if entry[0] == number]
        assert [count for _, count, _ in mine] == list(range(40))
        assert all(text == payload for _, _, text in mine)


def test_a_batch_leaves_in_few_writes(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = pair()
    got: List[Any] = []
    world.server.on('number', got.append)
    world.start()
    client = world.connect()
    assert client.wait_connected(10)
    writes = []
    send = nodeipc.connection.Connection.send

    def counting(self: Any, frame: bytes, *arguments: Any) -> Any:
        writes.append(len(frame))
        return send(self, frame, *arguments)

    monkeypatch.setattr(nodeipc.connection.Connection, 'send', counting)
    with client.batch():
        for number in range(5000):
            client.emit('number', number)
        with client.batch():
            client.emit('number', 5000)
        other = threading.Thread(target=client.emit, args=('number', 'other'))
        other.start()
        other.join()
        client.flush()
    eventually(lambda: len(got) == 5002)
    assert [number for number in got if number != 'other'] == list(range(5001))
    assert len(writes) < 10
    assert client.stats()['messages_out'] == 5002
    with pytest.raises(KeyError), client.batch():
        client.emit('number', 'kept')
        raise KeyError
    eventually(lambda: got[-1] == 'kept')


def test_statistics_count_both_ways(pair: Any) -> None:
    world = echo(pair())
    log = Log()
    client = world.connect(log)
    for _ in range(10):
        client.emit('message', 'x')
    log.wait('message', 10)
    size = 10 * len('{"type":"message","data":"x"}\f')
    eventually(lambda: world.server.stats()['messages_out'] == 10)
    assert client.stats() == {
        'connections': 1, 'messages_in': 10, 'messages_out': 10, 'bytes_in': size, 'bytes_out': size, 'errors': 0,
        'pending_bytes': 0,
    }  # fmt: skip
    expected = {'messages_in': 10, 'messages_out': 10, 'bytes_in': size, 'bytes_out': size, 'errors': 0}
    assert world.server.stats() == {'connections': 1, 'connections_total': 1, 'pending_bytes': 0, **expected}
    client.disconnect()
    eventually(lambda: world.server.stats()['connections'] == 0)
    assert world.server.stats() == {'connections': 0, 'connections_total': 1, 'pending_bytes': 0, **expected}
    assert client.stats()['messages_in'] == 10


def test_a_message_of_many_megabytes_goes_there_and_back(pair: Any) -> None:
    world = echo(pair())
    client = world.connect()
    log = Log()
    client.on('message', lambda data: log('size', len(data), hash(data)))
    text = 'abcdefghij' * 2_000_000
    client.emit('message', text)
    assert log.wait('size') == [(len(text), hash(text))]


def test_a_message_over_the_limit_is_refused_before_it_is_sent(pair: Any) -> None:
    world = echo(pair(max_message_size=1000))
    log = Log()
    client = world.connect(log, max_message_size=1000)
    with pytest.raises(ProtocolError, match='max_message_size') as caught:
        client.emit('message', 'x' * 1000)
    assert caught.value.code == 'ERR_IPC_FRAME_TOO_LARGE'
    client.emit('message', 'fits')
    assert log.wait('message') == [('fits',)]


def test_unserialisable_data_is_refused_at_once_and_disturbs_nothing(pair: Any) -> None:
    world = echo(pair())
    log = Log()
    client = world.connect(log)
    for wrong in (float('nan'), b'bytes', {1}, object()):
        with pytest.raises((TypeError, ValueError), match="event 'message'"):
            client.emit('message', wrong)
        with pytest.raises((TypeError, ValueError), match="event 'news'"):
            world.server.broadcast('news', wrong)
    client.emit('message', 'fine')
    assert log.wait('message') == [('fine',)]


def test_max_connections_are_served_and_more_refused(pair: Any) -> None:
    world = echo(pair(max_connections=2))
    log = Log()
    world.server.on('*', log)
    first = world.connect()
    second = world.connect()
    log.wait('connect', 2)
    third = world.raw()
    assert third.recv(10) == b''
    third.close()
    ((error, socket),) = log.wait('error')
    assert isinstance(error, ConnectionRefusedError)
    assert 'max_connections' in str(error)
    assert socket is None
    answers = Log()
    second.on('*', answers)
    second.emit('message', 1)
    answers.wait('message')
    first.disconnect()
    eventually(lambda: len(world.server.sockets) == 1)
    fourth = world.connect()
    fourth.on('*', answers)
    fourth.emit('message', 4)
    answers.wait('message', 2)


def test_workers_0_handles_on_the_reactor_thread(pair: Any) -> None:
    world = pair(workers=0)
    threads = set()

    @world.server.on('message')
    def answer(data: Any, socket: Any) -> None:
        threads.add(threading.current_thread().name)
        socket.emit('message', data)

    world.start()
    log = Log()
    client = world.connect(log, workers=0)
    for number in range(100):
        client.emit('message', number)
    assert [data for (data,) in log.wait('message', 100)] == list(range(100))
    assert threads == {'nodeipc-reactor'}
    assert not [thread for thread in threading.enumerate() if thread.name == 'nodeipc-worker']


def test_log_prints_values_joined_by_a_space(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ipc = make()
    ipc.log('got', 5, None, {'a': [1]}, ValueError('bad'))
    assert capsys.readouterr().out == "got 5 None {'a': [1]} ValueError: bad\n"
    lines: List[str] = []
    ipc.config.logger = lines.append
    ipc.config.log_depth = 1
    ipc.log({'a': {'b': {'c': 1}}})
    assert lines == ["{'a': {...}}"]
    ipc.config.log_in_color = True
    ipc.log('text', {'a': 1})
    assert lines[-1] == "text \x1b[36m{'a': 1}\x1b[0m"
    ipc.config.log_in_color = False
    ipc.log('\x1b[31mred\x1b[0m')
    assert lines[-1] == 'red'
    ipc.config.silent = True
    ipc.log('nothing')
    assert len(lines) == 3


def test_log_payloads_logs_what_is_sent_and_received(pair: Any) -> None:
    lines: List[str] = []
    world = echo(pair(log_payloads=True, logger=lines.append))
    log = Log()
    client = world.connect(log, log_payloads=True, logger=lines.append)
    client.emit('message', 'secret')
    log.wait('message')
    kinds = [line.split()[0] + ' ' + line.split(': ')[1] for line in lines]
    assert sorted(kinds) == [
        'client emitting message secret', 'client received message secret',
        'server emitting message secret', 'server received message secret',
    ]  # fmt: skip


def test_wait_tells_whether_the_instance_is_closed(make: Any) -> None:
    ipc = make()
    assert ipc.wait(0) is True
    ipc.serve().start()
    assert ipc.wait(0.01) is False
    closer = threading.Timer(0.05, ipc.close)
    closer.start()
    assert ipc.wait(10) is True
    closer.join()


def test_wait_in_a_handler_is_an_error(make: Any) -> None:
    ipc = make()
    errors = Log()
    ipc.serve().on('error', lambda error: errors('error', error))
    ipc.server.on('start', ipc.wait)
    ipc.server.on('start', lambda: ipc.wait())
    ipc.server.start()
    assert 'in a handler' in str(errors.wait('error')[0][0])


def test_later_settings_do_not_change_what_was_made(make: Any) -> None:
    ipc = make()
    log = Log()
    server = ipc.serve()
    client = ipc.connect_to('world', lambda client: client.on('*', log))
    ipc.config.max_connections = 0
    ipc.config.delimiter = '\n'
    ipc.config.stop_retrying = True
    server.on('message', lambda data, socket: socket.emit('message', data))
    server.start()
    client.emit('message', 1)
    assert log.wait('message') == [(1,)]


def test_a_listening_socket_that_somebody_shuts_down_is_no_busy_loop(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: List[int] = []
    ready = nodeipc.acceptor.Acceptor._ready

    def counting(self: Any, mask: int) -> None:
        calls.append(mask)
        ready(self, mask)

    monkeypatch.setattr(nodeipc.acceptor.Acceptor, '_ready', counting)
    monkeypatch.setattr(nodeipc.acceptor, '_PAUSE_SECONDS', 0.05)
    monkeypatch.setattr(nodeipc.tally, '_REPORT_SECONDS', 0.05)
    log = Log()
    import socket

    with socket.socket() as given:
        given.bind(('127.0.0.1', 0))
        server = make().serve_net(sock=given)
        server.on('*', log)
        server.start()
        log.wait('start')
        given.shutdown(socket.SHUT_RDWR)
        assert 'cannot accept connections' in str(log.wait('error', 3)[0][0])
        assert len(calls) <= len(log.of('error')) + 2
        server.stop()


def test_running_out_of_descriptors_pauses_accepting_and_recovers(tmp_path: Any) -> None:
    """In a process of its own, whose limit it is."""
    program = """
import resource, socket, time, nodeipc
ipc = nodeipc.IPC(id='world')
server = ipc.serve()
errors, got = [], []
server.on('error', lambda error: errors.append(error))
server.on('message', got.append)
server.start()
client = socket.socket(socket.AF_UNIX)
used = client.fileno()
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
client.connect(server.address)
client.sendall(b'{"type":"message","data":1}\\f')
while not errors: time.sleep(0.001)
print(errors[0])
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
while not got: time.sleep(0.001)
client.close()
ipc.close()
"""
    run = subprocess.run(
        [sys.executable, '-S', '-c', program], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, 'PYTHONPATH': os.getcwd()},
    )  # fmt: skip
    assert 'Too many open files' in run.stdout, run.stderr
    assert 'raise the limit' in run.stdout


def test_a_log_sink_that_blocks_holds_up_no_connection(pair: Any) -> None:
    gate = threading.Event()

    class Sink(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            gate.wait(20)

    world = echo(pair())
    log = Log()
    client = world.connect(log)
    client.emit('message', 1)
    log.wait('message')
    sink = Sink(logging.WARNING)
    logging.getLogger('nodeipc').addHandler(sink)
    try:
        with world.raw() as bad:
            bad.sendall(b'nonsense\f')
            assert bad.recv(10) == b''
            client.emit('message', 2)
            log.wait('message', 2)
    finally:
        gate.set()
        world.server.stop()
        logging.getLogger('nodeipc').removeHandler(sink)
