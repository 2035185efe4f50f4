"""Asking and waiting, over real sockets: `request`, `wait_for` and `events` of clients, of sockets and of servers."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

import nodeipc
from nodeipc import EmitTimeout, Event, NotConnectedError, RemoteError, RequestTimeout, connect, serve

from .conftest import Log, eventually

# For what must come; on a machine under load.
SECONDS = 20

# For what must not.
MOMENT = 0.05

MIB = 1 << 20
BLOCK = 'x' * 50_000

unix_only = pytest.mark.parametrize('transport', ['unix'], indirect=True)


def echo(world: Any) -> Any:
    """Have a server answer each `ask` with one."""
    world.server.on('ask', lambda data, socket: socket.emit('ask', data))
    return world.start()


def only_socket(world: Any) -> nodeipc.Socket:
    """Wait for the one client of a server."""
    socket: nodeipc.Socket = eventually(lambda: world.server.sockets)[0]
    return socket


def in_threads(count: int, function: Callable[[int], Any]) -> List[Any]:
    """What `function` returns when called with 0, 1, … in threads, all at once."""
    results: List[Any] = [None] * count
    failures: List[BaseException] = []
    together = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            together.wait(SECONDS)
            results[number] = function(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads)
    return results


def answer_of(client: nodeipc.Client) -> Any:
    """Ask once; None if the connection was lost meanwhile."""
    with contextlib.suppress(NotConnectedError):
        return client.request('ask', 1, timeout=SECONDS)
    return None


class Waiting:
    """A thread that waits for something, and what came of it: a value or an exception."""

    def __init__(self, wait: Callable[[], Any]) -> None:
        self._wait = wait
        self._outcome: List[Any] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append(self._wait())
        except BaseException as error:
            self._outcome.append(error)

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def outcome(self) -> Any:
        self._thread.join(SECONDS)
        assert self._outcome, 'it still waits'
        return self._outcome[0]


def iterators(end: Any) -> List[Any]:
    """The queues that collect events of a client, a socket or a server."""
    waiters = end._waiters_here if isinstance(end, nodeipc.Server) else end._waiters()
    return [queue for queue in waiters._queues if not queue.is_done]


def waiting(end: Any) -> int:
    """How many wait for one event of a client or a socket."""
    waiters = end._waiters()
    lines = [*list(waiters.requests.values()), *list(waiters.waits.values())]
    return len(waiters._arrived) + len(waiters.calls) + sum(map(len, lines))


def nothing_waits(end: Any) -> None:
    """Assert that nothing is left of those who waited for events of a client or a socket."""
    waiters = end._waiters()
    assert (waiters.requests, waiters.waits, waiters.calls, waiting(end)) == ({}, {}, {}, 0)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as can be, so that what can come between does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def plain_server() -> Iterator[Any]:
    """A listening socket of TCP, for servers that are not ours."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        sock.listen()
        sock.settimeout(SECONDS)
        yield sock


def to(plain: socket.socket, **settings: Any) -> nodeipc.Client:
    """A client of a plain server."""
    host, port = plain.getsockname()
    return connect(f'tcp://{host}:{port}', **settings)


def reset(sock: socket.socket) -> None:
    """Close a connection with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    sock.close()


# Requests


def test_request_returns_the_data_of_the_answer(pair: Any) -> None:
    world = pair()
    world.server.on('double', lambda data, socket: socket.emit('doubled', 2 * data))
    client = echo(world).connect()
    assert client.request('ask', {'a': [1, None]}, timeout=SECONDS) == {'a': [1, None]}
    assert client.request('ask', timeout=SECONDS) == {}
    assert client.request('ask', None, timeout=SECONDS) is None
    assert client.request('ask', 5, timeout=None) == 5
    assert client.request('double', 4, reply='doubled', timeout=SECONDS) == 8
    nothing_waits(client)


def test_a_server_asks_its_clients(pair: Any) -> None:
    world = pair().start()
    clients = [world.connect(Log()) for _ in range(2)]
    for number, client in enumerate(clients):
        client.on('name', lambda data, client=client, number=number: client.emit('name', [number, data]))
    eventually(lambda: len(world.server.sockets) == 2)
    answers = sorted(socket.request('name', 'who', timeout=SECONDS) for socket in world.server.sockets)
    assert answers == [[0, 'who'], [1, 'who']]
    for peer in world.server.sockets:
        nothing_waits(peer)


@unix_only
def test_the_waiter_stands_before_the_request_leaves(pair: Any, frequent_switches: None) -> None:
    """The server answers at once, many times, and no answer finds nobody."""
    client = echo(pair()).connect()
    for number in range(5000):
        assert client.request('ask', number, timeout=SECONDS) == number
    nothing_waits(client)


def test_requests_at_once_are_answered_in_the_order_in_which_they_leave(pair: Any, frequent_switches: None) -> None:
    client = echo(pair()).connect()

    def ask(number: int) -> List[Any]:
        return [client.request('ask', [number, turn], timeout=SECONDS) for turn in range(50)]

    assert in_threads(16, ask) == [[[number, turn] for turn in range(50)] for number in range(16)]
    nothing_waits(client)


def test_different_answers_do_not_wait_for_each_other(pair: Any) -> None:
    world = pair()
    asked: List[Any] = []
    world.server.on('*', lambda type, data=None, socket=None: asked.append((type, socket)))
    client = world.start().connect()
    slow = Waiting(lambda: client.request('slow', timeout=SECONDS))
    eventually(lambda: [socket for type, socket in asked if type == 'slow'])
    quick = Waiting(lambda: client.request('quick', timeout=SECONDS))
    eventually(lambda: [socket for type, socket in asked if type == 'quick'])
    only_socket(world).emit('quick', 1)
    assert quick.outcome() == 1
    assert not slow.is_over
    only_socket(world).emit('slow', 2)
    assert slow.outcome() == 2


@unix_only
def test_a_timeout_says_what_did_not_come_and_leaves_nothing(pair: Any) -> None:
    world = pair().start()
    client = world.connect()
    assert client.wait_connected(SECONDS)
    for _ in range(3):
        with pytest.raises(RequestTimeout, match=r"client 'world' \(unix:.*\): 'question' was sent, and no 'answer' came"):
            client.request('question', reply='answer', timeout=0.01)
        with pytest.raises(RequestTimeout):
            only_socket(world).request('question', timeout=0)
        with pytest.raises(RequestTimeout, match="no 'news' came within 0.01 s"):
            client.wait_for('news', timeout=0.01)
        with pytest.raises(RequestTimeout):
            client.wait_for('news', timeout=0)
    nothing_waits(client)
    nothing_waits(only_socket(world))


def test_a_request_that_cannot_leave_in_time_is_not_sent() -> None:
    with connect('world', retry=1) as client:
        with pytest.raises(EmitTimeout, match='nothing was sent'):
            client.request('ask', 1, timeout=MOMENT)
        nothing_waits(client)
        with serve('world') as server:
            client.emit('ask', 2)
            assert next(server.events(timeout=SECONDS)).data == 2


def test_data_that_cannot_be_sent_leaves_nothing(pair: Any) -> None:
    client = pair().start().connect()
    with pytest.raises(TypeError, match="'ask'"):
        client.request('ask', {1, 2})
    with pytest.raises(ValueError, match="'ask'"):
        client.request('ask', float('nan'))
    nothing_waits(client)


@unix_only
def test_a_request_in_a_batch_takes_what_was_collected_with_it(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('*', log)
    client = echo(world).connect()
    with client.batch():
        client.emit('before', 1)
        assert client.request('ask', 2, timeout=SECONDS) == 2
        client.emit('after', 3)
        assert log.of('after') == []
    log.wait('after')
    assert [event[0] for event in log.events if event[0] != 'start'] == ['connect', 'before', 'ask', 'after']


@unix_only
def test_who_waits_in_a_batch_lets_it_leave(pair: Any) -> None:
    client = echo(pair()).connect()
    with client.events('ask', timeout=SECONDS) as events, client.batch():
        client.emit('ask', 1)
        assert next(events).data == 1
        client.emit('ask', 2)
        assert client.wait_for('ask', timeout=SECONDS) == 2


@unix_only
def test_an_answer_is_everybodys(pair: Any) -> None:
    """Handlers, iterators and whoever waits get it, too; and a request only one."""
    client = echo(pair()).connect()
    log = Log()
    client.on('ask', lambda data: log('ask', data))
    with client.events('ask', timeout=SECONDS) as events:
        waits = [Waiting(lambda: client.wait_for('ask', timeout=SECONDS)) for _ in range(3)]
        eventually(lambda: waiting(client) == 3)
        assert client.request('ask', 1, timeout=SECONDS) == 1
        assert [wait.outcome() for wait in waits] == [1, 1, 1]
        assert next(events).data == 1
        assert log.wait('ask') == [(1,)]


@unix_only
def test_wait_for_returns_the_next_one_of_its_type(pair: Any) -> None:
    world = pair().start()
    client = world.connect()
    assert client.wait_connected(SECONDS)
    only_socket(world).emit('news', 'old')
    eventually(lambda: client.stats()['messages_in'] == 1)
    wait = Waiting(lambda: client.wait_for('news', timeout=SECONDS))
    eventually(lambda: waiting(client))
    only_socket(world).emit('other', 'other')
    only_socket(world).emit('news', 'new')
    only_socket(world).emit('news', 'newer')
    assert wait.outcome() == 'new'
    wait = Waiting(lambda: only_socket(world).wait_for('news', timeout=SECONDS))
    eventually(lambda: waiting(only_socket(world)))
    client.emit('news', 'from the client')
    assert wait.outcome() == 'from the client'


@pytest.mark.parametrize('parser', ['raw', 'guarded', 'assured'])
@unix_only
def test_every_parser_is_asked(pair: Any, parser: str) -> None:
    settings: Any = {} if parser == 'raw' else {'allowed_events': ['ask']}
    world = pair(parser=parser, **settings)
    if parser == 'raw':
        world.server.on('data', lambda data, socket: socket.emit(data + b' world!'))
    client = echo(world).connect(parser=parser, **settings)
    if parser == 'raw':
        assert client.request('hello', timeout=SECONDS) == b'hello world!'
        with client.events(timeout=SECONDS) as events:
            client.emit('bye')
            assert tuple(next(events)) == ('data', b'bye world!', client)
    else:
        assert client.request('ask', 1, timeout=SECONDS) == 1


# Handlers that ask


@pytest.mark.parametrize('workers', [0, 1, 4])
@unix_only
def test_a_handler_may_ask(pair: Any, workers: int) -> None:
    """Also the peer whose event it handles, and wait, and iterate."""
    world = pair(workers=workers)
    log = Log()

    @world.server.on('hello')
    def ask_back(data: Any, socket: nodeipc.Socket) -> None:
        log('server', socket.request('name', 'who', timeout=SECONDS))
        with socket.events('number', timeout=SECONDS) as events:
            socket.emit('count')
            log('server', [next(events).data for _ in range(3)])

    client = echo(world).connect(workers=workers)
    client.on('name', lambda data: client.emit('name', [data, 'client']))
    client.on('count', lambda: [client.emit('number', number) for number in range(3)])
    client.on('news', lambda data: log('client', client.request('ask', data, timeout=SECONDS)))
    client.on('wait', lambda: log('client', client.wait_for('late', timeout=SECONDS)))
    client.emit('hello')
    assert log.wait('server', 2) == [(['who', 'client'],), ([0, 1, 2],)]
    only_socket(world).emit('news', 5)
    assert log.wait('client') == [(5,)]
    only_socket(world).emit('wait')
    eventually(lambda: waiting(client))
    only_socket(world).emit('late', 'waited for')
    assert log.wait('client', 2)[1] == ('waited for',)


@unix_only
def test_an_answer_is_read_while_handlers_are_behind(pair: Any) -> None:
    world = pair(max_pending_bytes=100_000)
    gate = threading.Event()
    log = Log()
    client = echo(world).connect()
    asked = threading.Event()

    @client.on('block')
    def behind(data: Any) -> None:
        if not asked.is_set():
            asked.set()
            gate.wait(SECONDS)
            log('answer', client.request('ask', 'in the handler', timeout=SECONDS))

    blocked(only_socket(world) if client.wait_connected(SECONDS) else None)
    assert client.request('ask', 'beside it', timeout=SECONDS) == 'beside it'
    blocked(only_socket(world))
    gate.set()
    assert log.wait('answer') == [('in the handler',)]
    eventually(lambda: only_socket(world).pending_bytes == 0)


@unix_only
def test_an_answer_behind_too_much_ends_the_request_with_a_clear_error(pair: Any) -> None:
    world = pair(max_pending_bytes=100_000)
    gate = threading.Event()
    flooded = threading.Event()

    @world.server.on('flood')
    def flood(data: Any, socket: nodeipc.Socket) -> None:
        for _ in range(40):
            socket.emit('block', BLOCK)
        socket.emit('flood', data)

    client = world.start().connect(max_pending_bytes=500_000)
    handled: List[Any] = []
    client.on('block', lambda data: (flooded.set(), gate.wait(SECONDS), handled.append(data)))
    with pytest.raises(NotConnectedError, match=r"client 'world'.*max_pending_bytes"):
        client.request('flood', 1, timeout=SECONDS)
    assert flooded.is_set()
    assert client.connected
    assert client.stats()['bytes_in'] < 1.5 * MIB
    gate.set()
    eventually(lambda: len(handled) == 40)
    nothing_waits(client)


# What ends a wait


def loss_of(how: str, plain: socket.socket) -> str:
    """Lose an accepted connection, in this way; return what its client is to be told."""
    if how == 'closed':
        plain.close()
        return 'the other end has closed the connection'
    if how == 'reset':
        reset(plain)
        return 'reset by peer'
    plain.sendall(b'this is not JSON\f' if how == 'violation' else b'{"type":"unfinished')
    if how == 'violation':
        return 'ERR_IPC_INVALID_JSON'
    plain.close()
    return 'ERR_IPC_INVALID_MESSAGE'


WAITS: Dict[str, Callable[..., Any]] = {
    'request': lambda end, timeout=SECONDS: end.request('ask', timeout=timeout),
    'call': lambda end, timeout=SECONDS: end.call('add', 1, 2, timeout=timeout),
    'wait_for': lambda end, timeout=SECONDS: end.wait_for('news', timeout=timeout),
    'events': lambda end, timeout=SECONDS: next(end.events('news', timeout=timeout)),
}


@pytest.mark.parametrize('how', ['closed', 'reset', 'violation', 'unfinished'])
def test_a_lost_connection_ends_every_wait_with_its_cause(plain_server: Any, how: str) -> None:
    with to(plain_server, retry=600_000) as client:
        waits = {name: Waiting(lambda wait=wait: wait(client)) for name, wait in WAITS.items()}
        plain, _ = plain_server.accept()
        plain.settimeout(SECONDS)
        got = b''
        while got.count(b'\f') < 2:
            got += plain.recv(1000)
        eventually(lambda: waiting(client) == 3 and iterators(client))
        cause = loss_of(how, plain)
        for name, wait in waits.items():
            error = wait.outcome()
            assert isinstance(error, NotConnectedError), (name, error)
            assert cause in str(error) and 'client of tcp://127.0.0.1:' in str(error)
        plain.close()
        nothing_waits(client)


@pytest.mark.parametrize('how', ['closed', 'reset', 'violation'])
def test_a_server_is_told_of_a_client_that_is_lost(how: str) -> None:
    with serve('tcp://127.0.0.1:0') as server:
        plain = socket.create_connection(server.address)
        plain.sendall(b'{"type":"hello"}\f')
        peer = next(server.events('hello', timeout=SECONDS)).socket
        waits = [Waiting(lambda wait=wait: wait(peer)) for wait in WAITS.values()]  # type: ignore[misc]
        eventually(lambda: waiting(peer) == 3 and iterators(peer) and peer.connected)
        while plain.recv(1000).count(b'\f') == 0:
            pass
        cause = loss_of(how, plain)
        *errors, iterator = [wait.outcome() for wait in waits]
        for error in errors:
            assert isinstance(error, NotConnectedError) and cause in str(error), error
        if how == 'closed':
            assert isinstance(iterator, StopIteration)
        else:
            assert isinstance(iterator, NotConnectedError) and cause in str(iterator)
        plain.close()
        # And who comes later is told the same.
        eventually(lambda: not peer.connected)
        for name in ('request', 'call', 'wait_for'):
            with pytest.raises(NotConnectedError):
                WAITS[name](peer)
        assert list(peer.events('news', timeout=SECONDS)) == []
        nothing_waits(peer)


def test_what_had_come_is_given_before_the_loss_is_told(plain_server: Any) -> None:
    with to(plain_server, retry=600_000) as client, client.events(timeout=SECONDS) as events:
        plain, _ = plain_server.accept()
        plain.sendall(b'{"type":"a"}\f{"type":"b"}\f')
        eventually(lambda: client.stats()['messages_in'] == 2)
        reset(plain)
        eventually(lambda: not client.connected)
        assert [next(events).type for _ in range(2)] == ['a', 'b']
        with pytest.raises(NotConnectedError, match='reset'):
            next(events)


def test_a_client_that_is_iterated_on_gives_the_events_of_the_next_connection(plain_server: Any) -> None:
    with to(plain_server, retry=1) as client, client.events('news', timeout=SECONDS) as events:
        got: List[Any] = []
        for turn in range(5):
            plain, _ = plain_server.accept()
            plain.sendall(b'{"type":"news","data":%d}\f' % turn)
            got.append(next(events).data)
            plain.close()
            with pytest.raises(NotConnectedError, match='closed'):
                next(events)
        assert got == [0, 1, 2, 3, 4]
        nothing_waits(client)


def test_losses_that_nobody_is_told_of_do_not_pile_up(plain_server: Any) -> None:
    with to(plain_server, retry=1) as client, client.events('news', timeout=SECONDS) as events:
        for _ in range(5):
            plain_server.accept()[0].close()
        plain, _ = plain_server.accept()
        plain.sendall(b'{"type":"news"}\f')
        with pytest.raises(NotConnectedError):
            next(events)
        assert next(events).type == 'news'
        plain.close()


@pytest.mark.parametrize('name', list(WAITS))
def test_a_client_that_gives_up_ends_every_wait(name: str) -> None:
    with connect('nobody', retry=1, max_retries=2) as client:
        for _ in range(2):  # the second begins when it has given up
            with pytest.raises(NotConnectedError, match='no retries.*No such file'):
                WAITS[name](client)
        nothing_waits(client)


@pytest.mark.parametrize('name', list(WAITS))
def test_disconnect_ends_every_wait(name: str) -> None:
    with serve('world') as server, connect('world') as client:
        server.on('rpc', lambda: None)  # so that calls are not refused
        wait = Waiting(lambda: WAITS[name](client))
        eventually(lambda: waiting(client) or iterators(client))
        client.disconnect()
        outcome = wait.outcome()
        if name == 'events':
            assert isinstance(outcome, StopIteration)
            assert list(client.events(timeout=SECONDS)) == []
        else:
            assert isinstance(outcome, NotConnectedError) and 'disconnected' in str(outcome)
            with pytest.raises(NotConnectedError, match='disconnected'):
                WAITS[name](client)


# Iterators


def blocked(socket: Any) -> int:
    """Emit blocks of a peer until it takes no more; return how many were taken."""
    count = 0
    with contextlib.suppress(EmitTimeout):
        while True:
            socket.emit('block', BLOCK, timeout=MOMENT)
            count += 1
    return count


def test_events_are_given_in_order_and_say_what_they_are(pair: Any) -> None:
    world = pair().start()
    client = world.connect()
    assert client.wait_connected(SECONDS)
    with client.events('a', 'b', timeout=SECONDS) as events, client.events() as every:
        for number, type in enumerate('abcab'):
            only_socket(world).emit(type, number)
        assert [(event.type, event.data, event.socket) for _, event in zip(range(4), events)] == [
            ('a', 0, client), ('b', 1, client), ('a', 3, client), ('b', 4, client)
        ]
        assert [data for _, (type, data, socket) in zip(range(5), every)] == [0, 1, 2, 3, 4]
    with only_socket(world).events(timeout=SECONDS) as events:
        client.emit('hello', 1)
        assert next(events) == ('hello', 1, only_socket(world))


def test_events_collects_from_when_it_is_called(pair: Any) -> None:
    client = echo(pair()).connect()
    events = client.events('ask', timeout=SECONDS)
    for number in range(3):
        client.request('ask', number, timeout=SECONDS)
    assert [next(events).data for _ in range(3)] == [0, 1, 2]


@unix_only
def test_the_timeout_of_an_iterator_is_for_each_event_and_no_end(pair: Any) -> None:
    client = echo(pair()).connect()
    assert client.wait_connected(SECONDS)
    with client.events('ask', timeout=MOMENT) as events:
        for number in range(3):
            with pytest.raises(RequestTimeout, match="client 'world'.*none of 'ask' came within 0.05 s"):
                next(events)
            assert client.request('ask', number, timeout=SECONDS) == number
            assert next(events).data == number
    with client.events(timeout=0) as events, pytest.raises(RequestTimeout, match='no event came'):
        next(events)


def test_a_closed_iterator_ends_and_wakes_who_waits(pair: Any) -> None:
    client = echo(pair()).connect()
    events = client.events('ask')
    got: List[Any] = []
    takers = [Waiting(lambda: [got.append(event.data) for event in events]) for _ in range(3)]
    assert client.request('ask', 1, timeout=SECONDS) == 1
    eventually(lambda: got)
    events.close()
    assert sorted(len(each.outcome()) for each in takers) == [0, 0, 1]
    events.close()
    assert list(events) == []
    client.request('ask', 2, timeout=SECONDS)
    assert list(events) == []


def test_several_threads_take_each_event_once(pair: Any, frequent_switches: None) -> None:
    world = pair().start()
    client = world.connect()
    assert client.wait_connected(SECONDS)
    events = client.events('number')
    takers = [Waiting(lambda: [event.data for event in events]) for _ in range(6)]
    for number in range(2000):
        only_socket(world).emit('number', number)
    eventually(lambda: client.stats()['messages_in'] == 2000)
    eventually(lambda: not events._queue._sources)
    events.close()
    taken = [taker.outcome() for taker in takers]
    assert sorted(number for each in taken for number in each) == list(range(2000))
    for each in taken:
        assert each == sorted(each)


def test_as_many_threads_are_woken_as_events_come(pair: Any) -> None:
    world = pair().start()
    client = world.connect()
    assert client.wait_connected(SECONDS)
    events = only_socket(world).events('number', timeout=SECONDS)
    for _ in range(5):
        takers = [Waiting(lambda: next(events).data) for _ in range(4)]
        with client.batch():
            for number in range(4):
                client.emit('number', number)
        assert sorted(taker.outcome() for taker in takers) == [0, 1, 2, 3]


def test_every_iterator_has_all_events_for_itself(pair: Any) -> None:
    client = echo(pair()).connect()
    iterators = [client.events('ask', timeout=SECONDS) for _ in range(4)]
    for number in range(20):
        client.emit('ask', number)
    assert in_threads(4, lambda index: [next(iterators[index]).data for _ in range(20)]) == [list(range(20))] * 4


@pytest.mark.parametrize('consumer', ['client', 'socket', 'server'])
def test_a_flood_waits_for_its_consumer_and_nothing_is_lost(pair: Any, consumer: str) -> None:
    world = pair(max_pending_bytes=MIB).start()
    client = world.connect(max_pending_bytes=MIB)
    assert client.wait_connected(SECONDS)
    reader, writer = (client, only_socket(world)) if consumer == 'client' else (only_socket(world), client)
    if consumer == 'server':
        reader = world.server
    count = 400  # 20 MB
    events = reader.events('block', timeout=SECONDS)
    done = Waiting(lambda: [writer.emit('block', [number, BLOCK], timeout=SECONDS) for number in range(count)])
    pending = (lambda: writer.pending_bytes) if consumer == 'client' else (lambda: client.stats()['pending_bytes'])
    stats = (client if consumer == 'client' else world.server).stats
    eventually(lambda: pending() > MIB)
    read = 0
    while read != stats()['bytes_in']:  # until it is quiet
        read = stats()['bytes_in']
        time.sleep(MOMENT)
    assert read < MIB
    assert not done.is_over
    assert [next(events).data[0] for _ in range(count)] == list(range(count))
    assert isinstance(done.outcome(), list)
    with pytest.raises(RequestTimeout):
        events._timeout = MOMENT
        next(events)


def forget_in_a_loop(client: nodeipc.Client) -> None:
    for _ in client.events('block'):
        break


def forget_by_an_exception(client: nodeipc.Client) -> None:
    with pytest.raises(LookupError), client.events('block') as events:
        next(events)
        raise LookupError


def forget_by_close(client: nodeipc.Client) -> None:
    events = client.events('block')
    next(events)
    events.close()


def forget_in_a_cycle(client: nodeipc.Client) -> None:
    cycle: List[Any] = [client.events('block')]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    in_threads(1, lambda number: gc.collect())


@pytest.mark.parametrize('forget', [forget_in_a_loop, forget_by_an_exception, forget_by_close, forget_in_a_cycle])
def test_an_iterator_that_is_abandoned_lets_the_connection_be_read_on(pair: Any, forget: Callable[[Any], None]) -> None:
    world = pair(max_pending_bytes=100_000).start()
    client = world.connect()
    assert client.wait_connected(SECONDS)
    peer = only_socket(world)
    wait = threading.Event()
    full = Waiting(lambda: (blocked(peer), wait.set()))
    events = client.events('block')  # which holds it until the other has begun
    eventually(lambda: wait.is_set())
    full.outcome()
    assert peer.pending_bytes > 100_000
    forgetting = Waiting(lambda: forget(client))
    eventually(lambda: len(iterators(client)) == 2)
    del events
    forgetting.outcome()
    eventually(lambda: peer.pending_bytes == 0)
    peer.emit('block', 'after')
    eventually(lambda: not iterators(client))


def test_a_request_is_answered_while_the_iterator_of_its_connection_is_full(pair: Any) -> None:
    world = echo(pair(max_pending_bytes=100_000))
    client = world.connect(max_pending_bytes=256 * MIB)  # TCP holds megabytes
    assert client.wait_connected(SECONDS)
    peer = only_socket(world)
    with client.events('block', timeout=SECONDS) as events:
        count = blocked(peer)
        for number in range(3):
            assert client.request('ask', number, timeout=SECONDS) == number
        count += blocked(peer)
        wait = Waiting(lambda: client.wait_for('late', timeout=SECONDS))
        eventually(lambda: waiting(client))
        peer.emit('late', 5, timeout=SECONDS)
        assert wait.outcome() == 5
        count += blocked(peer)
        assert len([next(events) for _ in range(count)]) == count
        assert client.request('ask', 'last', timeout=SECONDS) == 'last'
    nothing_waits(client)


@unix_only
def test_a_full_iterator_and_requests_have_a_limit(pair: Any) -> None:
    world = echo(pair(max_pending_bytes=100_000))
    client = world.connect(max_pending_bytes=400_000)
    assert client.wait_connected(SECONDS)
    with client.events('block', timeout=SECONDS):
        with pytest.raises(NotConnectedError, match='max_pending_bytes'):
            while True:
                blocked(only_socket(world))
                client.request('ask', timeout=SECONDS)
        assert client.stats()['bytes_in'] < 1.5 * MIB
    eventually(lambda: answer_of(client) is not None)  # when it is read on


def test_a_new_connection_is_not_read_while_the_queue_is_full_of_the_last(plain_server: Any) -> None:
    with to(plain_server, retry=1) as client, client.events('block', timeout=SECONDS) as events:
        plain, _ = plain_server.accept()
        with plain:
            # One message: of several, the last would not be read if those before came in chunks that fill the queue.
            plain.sendall(b'{"type":"block","data":"%s"}\f' % (BLOCK.encode() * 6))
            eventually(lambda: client.stats()['messages_in'] == 1)
            reset(plain)
        while client.stats()['connections'] < 2:  # it finds out by writing, for it does not read
            client.emit('message')
        plain, _ = plain_server.accept()
        with plain:
            plain.sendall(b'{"type":"block","data":"next"}\f')
            eventually(lambda: client.connected)
            time.sleep(MOMENT)
            assert client.stats()['messages_in'] == 1
            assert len(next(events).data) == 6 * len(BLOCK)
            with pytest.raises(NotConnectedError):
                next(events)
            assert next(events).data == 'next'
            plain_server.close()  # or the client may find it once more, and have nobody to say goodbye to


def test_a_release_that_comes_late_does_not_undo_a_later_hold(plain_server: Any) -> None:
    """The last is taken while the reactor is busy, and what fills the queue again is read before it hears of that."""
    block = b'{"type":"block","data":"%s"}\f' % (BLOCK.encode() * 6)
    with to(plain_server, retry=1) as client, client.events('block', timeout=SECONDS) as events:
        plain, _ = plain_server.accept()
        with plain:
            wait = Waiting(lambda: client.wait_for('late', timeout=SECONDS))  # so that it is read although it is full
            eventually(lambda: waiting(client))
            plain.sendall(block + block[:-1])
            eventually(lambda: client.stats()['bytes_in'] == 2 * len(block) - 1)
            busy, go_on = threading.Event(), threading.Event()
            client._reactor.call(lambda: (busy.set(), go_on.wait(SECONDS)))  # type: ignore[attr-defined]
            assert busy.wait(SECONDS)
            next(events)
            plain.sendall(block[-1:])
            connection: Any = client._socket  # type: ignore[attr-defined]
            assert select.select((connection._sock,), (), (), SECONDS)[0]  # it has arrived
            go_on.set()
            eventually(lambda: client.stats()['messages_in'] == 2)
            plain.sendall(b'{"type":"late","data":1}\f')
            assert wait.outcome() == 1
            plain.sendall(block)  # the release that came late lets this in, but nothing after it
            eventually(lambda: connection._holders and not (connection._behind or connection._reading))
            assert [len(next(events).data) for _ in range(2)] == [6 * len(BLOCK)] * 2
            plain.sendall(b'{"type":"block","data":"after"}\f')
            assert next(events).data == 'after'


# Iterators of servers


def test_a_loop_is_a_whole_server() -> None:
    server = serve('world')
    answers: List[Any] = []

    def ask() -> None:
        with connect('world') as client:
            answers.extend(client.request('message', number, timeout=SECONDS) for number in range(3))
            client.emit('end')

    asking = Waiting(ask)
    for type, data, peer in server.events('message', 'end'):  # which starts it
        if type == 'end':
            server.stop()
        else:
            peer.emit('message', [data])
    assert asking.outcome() is None
    assert answers == [[0], [1], [2]]
    assert not server.listening


def test_a_loop_ends_when_another_thread_stops_the_server() -> None:
    with serve('world') as server, connect('world'):
        loop = Waiting(lambda: list(server.events('message')))
        eventually(lambda: iterators(server))
        server.stop()
        assert loop.outcome() == []


def test_peers_and_their_ends_are_events_if_they_are_named() -> None:
    with serve('world') as server:
        named = server.events('connect', 'message', 'socket.disconnected', timeout=SECONDS)
        every = server.events(timeout=SECONDS)
        with connect('world') as client:
            client.emit('message', 'hello')
            client.flush(SECONDS)
        events = [next(named) for _ in range(3)]
        assert [event[:2] for event in events] == [
            ('connect', None), ('message', 'hello'), ('socket.disconnected', None)
        ]
        assert len({event.socket for event in events}) == 1
        with connect('world') as client:
            client.emit('message', 'bye')
            assert [next(every).data for _ in range(2)] == ['hello', 'bye']


def test_peers_are_heard_in_turn(pair: Any) -> None:
    world = pair().start()
    events = world.server.events('block', 'quiet', timeout=SECONDS)
    loud = [world.connect(max_pending_bytes=100_000) for _ in range(2)]
    for client in loud:
        blocked(client)
    quiet = world.connect()
    quiet.emit('quiet')
    eventually(lambda: world.server.stats()['connections'] == 3)
    eventually(lambda: len(events._queue._turns) == 3)
    assert 'quiet' in [next(events).type for _ in range(3)]


def test_close_drops_what_was_not_taken_of_a_peer(pair: Any) -> None:
    world = pair().start()
    events = world.server.events('number', timeout=SECONDS)
    rude, polite = world.connect(stop_retrying=True), world.connect()
    for number in range(10):
        rude.emit('number', number)
    eventually(lambda: world.server.stats()['messages_in'] == 10)
    event = next(events)
    theirs = event.socket.events(timeout=SECONDS)
    event.socket.close()
    polite.emit('number', 'polite')
    assert next(events).data == 'polite'
    assert list(theirs) == []


def test_the_end_of_a_peer_ends_its_iterators_after_what_had_come(pair: Any) -> None:
    world = pair().start()
    client = world.connect()
    client.emit('hello')
    peer = only_socket(world)
    events = peer.events('number', timeout=SECONDS)
    for number in range(5):
        client.emit('number', number)
    client.disconnect()
    eventually(lambda: not peer.connected)
    assert [event.data for event in events] == [0, 1, 2, 3, 4]
    assert list(events) == []


@pytest.mark.parametrize('side', ['client', 'server'])
@unix_only
def test_ones_own_end_drops_what_was_not_taken(pair: Any, side: str) -> None:
    world = pair().start()
    client = world.connect()
    assert client.wait_connected(SECONDS)
    ends = {'client': client, 'server': world.server}
    events = ends[side].events('number', timeout=SECONDS)
    for number in range(5):
        (only_socket(world) if side == 'client' else client).emit('number', number)
    eventually(lambda: ends[side].stats()['messages_in'] == 5)
    assert next(events).data == 0
    client.disconnect() if side == 'client' else world.server.stop()
    assert list(events) == []


@unix_only
def test_who_a_peer_says_it_is_is_known_when_its_event_is_taken(pair: Any) -> None:
    world = pair(identify_peer=True).start()
    client = world.connect()
    with world.server.events('hello', timeout=SECONDS) as events:
        client.emit('hello', {'id': 'bob'})
        assert next(events).socket.id == 'bob'


def test_the_events_of_a_server_that_is_stopped() -> None:
    """A loop that has ended does so again; one that is begun then says what to do."""
    server = serve('world')
    with server:
        before = server.events('message')
    assert list(before) == []
    after = server.events('message')
    wait = Waiting(lambda: next(after))
    assert isinstance(wait.outcome(), (NotConnectedError, StopIteration))
    with server, connect('world') as client:
        events = server.events('message', timeout=SECONDS)
        client.emit('message', 'again')
        assert next(events).data == 'again'


@pytest.mark.parametrize('turn', range(10))
def test_threads_that_begin_to_iterate_at_once_start_the_server_once(frequent_switches: None, turn: int) -> None:
    server = serve('world')
    events = server.events('message')
    takers = [Waiting(lambda: [event.data for event in events]) for _ in range(4)]
    with connect('world', retry=1) as client:
        for number in range(8):
            client.emit('message', number)
        eventually(lambda: server.stats()['messages_in'] == 8)
        eventually(lambda: not events._queue._sources)
    server.stop()
    taken = [taker.outcome() for taker in takers]
    assert not [outcome for outcome in taken if not isinstance(outcome, list)], taken
    assert sorted(number for each in taken for number in each) == list(range(8))


def test_peers_that_come_and_go_do_not_fill_the_memory() -> None:
    server = serve('world', max_connections=5)
    server.on('ask', lambda data, socket: socket.emit('ask', data))
    with server:
        events = server.events('block')
        for _ in range(60):
            with socket.socket(socket.AF_UNIX) as visitor, contextlib.suppress(OSError):
                visitor.settimeout(SECONDS)
                visitor.connect(server.address)
                visitor.sendall(b'{"type":"block","data":"%s"}\f' % (b'x' * 200_000))
                visitor.shutdown(socket.SHUT_WR)
                visitor.recv(1)  # the server's end
        assert server.stats()['bytes_in'] < 3 * MIB
        events.close()
        with connect('world', retry=1) as client:
            eventually(lambda: answer_of(client) == 1)  # the last visitors may be on their way out still


# UDP


def test_udp_peers_are_asked_and_iterated_over() -> None:
    with serve('udp://127.0.0.1:0') as server, serve('udp://127.0.0.1:0') as other:
        with server.events('hello', timeout=SECONDS) as events:
            other.emit(server.address, 'hello', 1)
            event = next(events)
        assert (event.data, event.socket.address) == (1, other.address)
        other.on('name', lambda data, socket: socket.emit('name', [data]))
        assert event.socket.request('name', 'who', timeout=SECONDS) == ['who']
        wait = Waiting(lambda: event.socket.wait_for('news', timeout=SECONDS))
        iterator = event.socket.events('news', timeout=SECONDS)
        eventually(lambda: waiting(event.socket))
        other.emit(server.address, 'news', 2)
        assert (wait.outcome(), next(iterator).data) == (2, 2)
        with pytest.raises(RequestTimeout):
            event.socket.request('nothing', timeout=MOMENT)
        nothing_waits(event.socket)
        event.socket.close()
        assert list(iterator) == []


def test_a_udp_peer_that_is_not_kept_up_with_loses_datagrams_and_others_do_not() -> None:
    log = Log()
    with serve('udp://127.0.0.1:0') as server:
        server.on('error', lambda error: log('error', error))
        events = server.events('block', timeout=SECONDS)
        address = f'udp://127.0.0.1:{server.address[1]}'
        with connect(address) as loud, connect(address) as quiet:
            for number in range(40):
                loud.emit('block', [number, BLOCK])
                eventually(lambda number=number: server.stats()['bytes_in'] > (number + 1) * len(BLOCK))
            quiet.emit('block', ['quiet'])
            assert 'have not kept up' in str(log.wait('error')[0][0])
            eventually(lambda: len(events._queue._turns) == 2)
            taken = []
            with contextlib.suppress(RequestTimeout):
                events._timeout = 0.2
                while True:
                    taken.append(next(events).data[0])
            assert 'quiet' in taken[:2]
            assert 2 <= len(taken) < 12
            loud.emit('block', ['after'])
            events._timeout = SECONDS
            assert next(events).data == ['after']


# One at a time


@unix_only
def test_a_sync_client_asks(pair: Any) -> None:
    client = echo(pair()).connect(sync=True)
    assert in_threads(8, lambda number: [client.request('ask', [number, i], timeout=SECONDS) for i in range(10)]) == [
        [[number, i] for i in range(10)] for number in range(8)
    ]
    with client.events('ask', timeout=SECONDS) as events:
        client.emit('ask', 1)
        assert next(events).data == 1
    nothing_waits(client)


@unix_only
def test_a_sync_client_cannot_ask_in_a_handler(pair: Any) -> None:
    client = echo(pair()).connect(sync=True)
    refused: List[Any] = []

    @client.on('ask')
    def ask_again() -> None:
        try:
            refused.append(client.request('ask', 2, timeout=SECONDS))
        except RuntimeError as error:
            refused.append(error)

    assert client.request('ask', 1, timeout=SECONDS) == 1
    eventually(lambda: refused)
    assert isinstance(refused[0], RuntimeError) and 'config.sync' in str(refused[0])
    client.off('ask')
    assert client.request('ask', 3, timeout=SECONDS) == 3


# Interruptions


@pytest.mark.parametrize('name', [*WAITS, 'server.events', 'socket.request', 'timeouts'])
def test_ctrl_c_interrupts_a_wait_and_leaves_nothing(name: str) -> None:
    with serve('world') as server, connect('world') as client:
        server.on('rpc', lambda: None)  # so that calls are not refused
        client.emit('hello')
        peer = next(server.events('hello', timeout=SECONDS)).socket
        wait: Callable[[], Any] = {
            'server.events': lambda: next(server.events('message')),
            'socket.request': lambda: peer.request('ask'),
            'timeouts': lambda: client.wait_for('news', timeout=600),
        }.get(name) or (lambda: WAITS[name](client, None))
        previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                wait()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        nothing_waits(client)
        nothing_waits(peer)
        server.on('after', lambda data, socket: socket.emit('after', data))
        assert client.request('after', 5, timeout=SECONDS) == 5


def test_ctrl_c_ends_a_loop(tmp_path: Path) -> None:
    script = """
import nodeipc
with nodeipc.serve('./world') as server, nodeipc.connect('./world') as client:
    client.emit('message')
    try:
        for event in server.events('message'):
            print('ready', flush=True)
    except KeyboardInterrupt:
        print('interrupted', flush=True)
"""
    environment = {**os.environ, 'PYTHONPATH': str(Path(nodeipc.__file__).parent.parent)}
    process = subprocess.Popen(
        (sys.executable, '-S', '-X', 'dev', '-W', 'error', '-c', script),
        cwd=str(tmp_path), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b'ready\n'
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    assert (output, errors, process.returncode) == (b'interrupted\n', b'', 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='a child is made by fork')
@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded')
def test_who_waits_in_a_child_made_by_fork_is_told_whose_it_is() -> None:
    with serve('world') as server, connect('world') as client:
        client.emit('hello')
        peer = next(server.events('hello', timeout=SECONDS)).socket
        iterators = [server.events('news'), client.events('news'), peer.events('news')]
        waits: List[Callable[[], Any]] = [lambda each=each: next(each) for each in iterators]  # type: ignore[misc]
        waits += [lambda each=each: next(each.events('news')) for each in (server, client, peer)]  # type: ignore[misc]
        waits += [lambda end=end: end.wait_for('news') for end in (client, peer)]  # type: ignore[misc]
        waits += [lambda end=end: end.request('ask') for end in (client, peer)]  # type: ignore[misc]
        for number, wait in enumerate(waits):
            child = os.fork()
            if not child:
                signal.alarm(SECONDS)
                code = 1
                try:
                    wait()
                except NotConnectedError:
                    code = 0
                except StopIteration:
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0)[1] == 0, number
        client.emit('news', 1)
        assert [next(each).data for each in (iterators[0], iterators[2])] == [1, 1]
        peer.emit('news', 2)
        assert next(iterators[1]).data == 2


# Values


def test_events_and_errors_can_be_copied_and_pickled() -> None:
    error = RemoteError(-32000, 'in a method', {'more': [1]})
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(copied) is RemoteError
        assert (copied.code, copied.message, copied.data) == (-32000, 'in a method', {'more': [1]})
        assert str(copied) == 'in a method [-32000]'
    for timeout in (RequestTimeout('late'), NotConnectedError('gone')):
        assert str(pickle.loads(pickle.dumps(timeout))) == str(timeout)
    event = Event('message', {'a': [1]}, None)
    for same in (pickle.loads(pickle.dumps(event)), copy.copy(event), copy.deepcopy(event)):
        assert (type(same), same) == (Event, event)
    assert repr(event) == "Event(type='message', data={'a': [1]}, socket=None)"


@pytest.mark.parametrize('timeout', [float('inf'), 1e12])
def test_long_timeouts_are_long(timeout: float) -> None:
    with serve('world') as server, connect('world') as client:
        server.on('ask', lambda data, socket: socket.emit('ask', data))
        assert client.request('ask', 1, timeout=timeout) == 1
        waits = [
            Waiting(lambda: client.wait_for('ask', timeout=timeout)),
            Waiting(lambda: next(client.events(timeout=timeout))),
        ]
        eventually(lambda: waiting(client) and iterators(client))
        client.emit('ask', 2)
        assert waits[0].outcome() == 2
        assert waits[1].outcome().data == 2


def test_local_events_are_no_messages_of_a_peer() -> None:
    with serve('world') as server, connect('world') as client:
        client.emit('hello')
        peer = next(server.events('hello', timeout=SECONDS)).socket
        local = {
            client: ('connect', 'disconnect', 'error', 'destroy'),
            peer: ('connect', 'socket.disconnected', 'error', 'start', 'stop'),
            server: ('error', 'start', 'stop'),
        }
        for end, names in local.items():
            for name in names:
                with pytest.raises(ValueError, match=rf"'{name}' is a local event.*on\('{name}', handler\)"):
                    end.events('message', name)  # type: ignore[attr-defined]
                if end is not server:
                    with pytest.raises(ValueError, match='local event'):
                        end.wait_for(name)  # type: ignore[attr-defined]
        nothing_waits(client)
        assert not iterators(server)


def test_what_is_no_name_of_an_event_is_refused() -> None:
    with serve('world') as server, connect('world') as client:
        assert client.wait_connected(SECONDS)
        for wrong, error in ((5, TypeError), (None, TypeError), (b'x', TypeError), (['x'], TypeError), ('', ValueError)):
            for ask in (client.events, client.wait_for, server.events, client.request):
                with pytest.raises(error):
                    ask(wrong)  # type: ignore[operator]
            if wrong is not None:
                with pytest.raises(error):
                    client.request('ask', reply=wrong)
        nothing_waits(client)


@pytest.mark.parametrize('name', ['request', 'wait_for', 'events', 'server.events'])
def test_what_is_no_timeout_is_refused(name: str) -> None:
    with serve('world') as server, connect('world') as client:
        assert client.wait_connected(SECONDS)
        end = server if name == 'server.events' else client
        with pytest.raises(TypeError, match='timeout must be a number of seconds'):
            getattr(end, name.split('.')[-1])('ask', timeout='1')
        nothing_waits(client)
        assert not iterators(end)


def test_an_iterator_says_what_it_is() -> None:
    with connect('world') as client:
        assert repr(client.events('b', 'a')).startswith("<nodeipc.EventIterator ['a', 'b'] of client 'world' (unix:")
        assert 'of all events' in repr(client.events())


# Everything at once


def test_nothing_is_lost_or_left_when_everything_happens_at_once(
    frequent_switches: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests, waits, iterators that come and go, and losses, in many threads."""
    server = serve('world')
    server.on('ask', lambda data, socket: (socket.emit('news', data), socket.emit('ask', data)))
    server.on('leave', lambda data, socket: socket.close())
    over = threading.Event()
    asked: List[int] = []

    with server, connect('world', retry=1) as client:

        def ask(number: int) -> None:
            while not over.is_set():
                try:
                    client.request('ask', number, timeout=SECONDS)
                    asked.append(number)
                except NotConnectedError:
                    pass

        def iterate(number: int) -> None:
            while not over.is_set():
                try:
                    for _, event in zip(range(number + 2), client.events('news', timeout=0.2)):
                        assert event.socket is client
                except (NotConnectedError, RequestTimeout):
                    pass

        def wait(number: int) -> None:
            while not over.is_set():
                with contextlib.suppress(NotConnectedError, RequestTimeout):
                    client.wait_for('news', timeout=0.001 * number)

        def lose(number: int) -> None:
            for _ in range(10):
                count = len(asked)
                eventually(lambda count=count: len(asked) > count + 20)  # type: ignore[misc]
                client.emit('leave')
            over.set()

        jobs = [ask, ask, ask, iterate, iterate, wait, wait, lose]
        try:
            in_threads(len(jobs), lambda number: jobs[number](number))
        finally:
            over.set()
        gc.collect()
        nothing_waits(client)

        eventually(lambda: answer_of(client) == 1)  # when it has left for the last time
        eventually(lambda: not iterators(client))
    assert not [record for record in caplog.records if 'please report' in record.getMessage()]
