"""Floods and shortages: of connections, descriptors, frames, names, and of peers that say or hear nothing.

Memory stays bounded, whoever is inside is served meanwhile, and when it is over everything is as before.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from typing import Any, Callable, Iterator, List

import pytest

from .conftest import Log, eventually

MIB = 1 << 20
ASK = b'{"type":"ask","data":1}\f'
ANSWER = b'{"type":"answer","data":1}\f'


def is_served(sock: socket.socket, times: int = 1) -> bool:
    for _ in range(times):
        sock.sendall(ASK)
        received = b''
        while len(received) < len(ANSWER):
            chunk = sock.recv(len(ANSWER) - len(received))
            assert chunk, 'the connection ended'
            received += chunk
        assert received == ANSWER
    return True


def hears_the_end(sock: socket.socket) -> bool:
    """Whether the connection ends, and nothing comes before. Never hangs: a timeout raises."""
    try:
        return sock.recv(100) == b''
    except ConnectionError:  # what it has sent already was not read
        return True


def answering(world: Any) -> Any:
    """Have a server answer, note its errors, and start it."""
    world.server.on('ask', lambda data, socket: socket.emit('answer', data))
    world.log = Log()
    for event in ('connect', 'error', 'socket.disconnected'):
        world.server.on(event, lambda *arguments, event=event: world.log(event, *arguments))
    return world.start()


class Mark:
    """Lives as long as what it marks, to which nobody can refer weakly."""


def marked(server: Any) -> Any:
    """Return the set of marks of the server's sockets that are still referred to."""
    marks: Any = weakref.WeakSet()

    def mark(socket: Any) -> None:
        socket.context['mark'] = Mark()
        marks.add(socket.context['mark'])

    server.on('connect', mark)
    return marks


@contextlib.contextmanager
def in_background(work: Callable[[], Any]) -> Iterator[threading.Thread]:
    failures: List[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures, failures


# A server in a process of its own, which can be asked how it does, and told how many more descriptors it may have; none: no
# limit of ours.
CHILD = """
import json, os, resource, socket, sys, threading, time, nodeipc
ipc = nodeipc.IPC(id='child', silent=True, **json.loads(sys.argv[1]))
server = ipc.serve_net('127.0.0.1', 0) if sys.argv[2] == 'tcp' else ipc.serve()
errors = []
server.on('error', lambda error: errors.append(error))
server.on('ask', lambda data, socket: socket.emit('answer', data))
statm = os.open('/proc/self/statm', os.O_RDONLY)

@server.on('report')
def report(data, socket):
    resident = int(os.pread(statm, 1000, 0).split()[1]) * os.sysconf('SC_PAGE_SIZE')
    socket.emit('report', {
        'resident': resident, 'cpu': time.process_time(), 'threads': threading.active_count(),
        'errors': len(errors), 'error': str(errors[-1]) if errors else '', 'stats': server.stats(),
    })

@server.on('descriptors')
def descriptors(data, client):
    hard = limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if data:
        with socket.socket() as lowest:
            limit = lowest.fileno() + data
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    client.emit('descriptors', limit)

server.start()
print(json.dumps(server.address), flush=True)
sys.stdin.read()
ipc.close()
"""


class Child:
    def __init__(self, transport: str, **settings: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, '-S', '-c', CHILD, json.dumps(settings), transport],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': os.getcwd()},
        )  # fmt: skip
        assert self._process.stdout is not None
        self._family = socket.AF_INET if transport == 'tcp' else socket.AF_UNIX
        address = json.loads(self._process.stdout.readline())
        self.address = tuple(address) if transport == 'tcp' else address
        self._sockets: List[socket.socket] = []
        self._line = self.raw()

    def raw(self) -> socket.socket:
        sock = socket.socket(self._family)
        self._sockets.append(sock)
        sock.connect(self.address)  # without a timeout, because Unix would not let us wait in line then
        sock.settimeout(30)
        return sock

    def tell(self, type: str, data: Any = 0) -> Any:
        self._line.sendall(json.dumps({'type': type, 'data': data}).encode() + b'\f')
        received = b''
        while not received.endswith(b'\f'):
            received += self._line.recv(65536)
        return json.loads(received[:-1])['data']

    def report(self) -> Any:
        return self.tell('report')

    def is_served(self, times: int = 1) -> bool:
        return is_served(self._line, times)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            assert self._process.wait(30) == 0
        finally:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    if not os.path.exists('/proc/self/statm'):
        pytest.skip('this system does not tell how much memory a process has')
    children: List[Child] = []

    def make_child(transport: str = 'unix', **settings: Any) -> Child:
        children.append(Child(transport, **settings))
        return children[-1]

    yield make_child
    for one in children:
        one.close()


# Connections


def test_connections_over_the_limit_are_refused_and_those_inside_served(pair: Any) -> None:
    world = answering(pair(max_connections=2))
    with world.raw() as first, world.raw() as second:
        world.log.wait('connect', 2)
        for number in range(300):
            with world.raw() as refused:
                if number % 2:
                    with contextlib.suppress(ConnectionError):
                        refused.sendall(ASK)
                assert hears_the_end(refused)
            if number % 20 == 0:
                assert is_served(first)
                assert is_served(second)
        ((error, socket_), *_) = world.log.wait('error')
        assert isinstance(error, ConnectionRefusedError)
        assert 'max_connections' in str(error)
        assert socket_ is None
        assert len(world.log.of('connect')) == 2
        assert world.server.stats()['connections_total'] == 2
        first.close()
        world.log.wait('socket.disconnected')
        eventually(lambda: len(world.server._unfinished) == 1)
        with world.raw() as third:
            assert is_served(third, 10)
            assert is_served(second)


def test_refusals_are_told_of_in_few_errors(pair: Any) -> None:
    """However quick the handlers are: a flood must not flood the log."""
    world = answering(pair(max_connections=0))
    began = time.monotonic()
    for _ in range(500):
        with world.raw() as refused:
            assert hears_the_end(refused)
    world.server.stop()
    errors = [str(error) for error, _ in world.log.of('error')]
    assert len(errors) <= 2 + time.monotonic() - began  # the first, one a second, and what is left at the end
    counts = [re.search(r': (?:a|(\d+)) connections? w(?:as|ere) refused', text) for text in errors]
    assert sum(int(count[1] or 1) for count in counts if count) == 500  # all of them are told of


def test_refusals_that_wait_for_a_handler_are_told_of_together(pair: Any) -> None:
    world = pair(max_connections=0)
    gate = threading.Event()
    log = Log()
    world.server.on('error', lambda error: (log('error', error), gate.wait(30)))
    world.start()
    for _ in range(50):
        with world.raw() as refused:
            assert hears_the_end(refused)
    log.wait('error')
    gate.set()
    world.server.stop()
    first, *more = (str(error) for (error,) in log.of('error'))
    assert 'a connection was refused' in first or 'connections were refused' in first
    assert any('connections were refused' in text for text in more)
    assert len(more) <= 2


def test_a_refused_client_of_ours_comes_back_until_there_is_room(pair: Any) -> None:
    world = answering(pair(max_connections=1))
    first = world.connect()
    assert first.wait_connected(20)
    log = Log()
    second = world.connect(log, retry=10)
    log.wait('disconnect', 3)
    assert not log.of('destroy')
    first.disconnect()
    log.wait('connect', 4)
    eventually(lambda: world.server.stats()['connections_total'] == 2)
    second.emit('ask', 2)
    assert log.wait('answer') == [(2,)]


def test_a_flood_of_connections_that_close_at_once(pair: Any) -> None:
    world = answering(pair())
    met = marked(world.server)
    count = 3000 if world.transport == 'unix' else 600
    with world.raw() as bystander:
        assert is_served(bystander)

        def flood() -> None:
            for _ in range(count):
                sock = socket.socket(socket.AF_UNIX if world.transport == 'unix' else socket.AF_INET)
                sock.connect(world.server.address)  # without a timeout, see Child.raw
                if world.transport == 'tcp':  # or the system would remember them for a minute
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
                sock.close()

        with in_background(flood) as flooder:
            while flooder.is_alive():
                assert is_served(bystander)
        assert is_served(bystander, 10)
        eventually(lambda: len(world.server._unfinished) == 1)
        world.log.events.clear()  # which keeps them

        def few() -> bool:
            gc.collect()
            return len(met) <= 1 + world.ipc.config.workers  # what a worker handled last

        eventually(few)
        assert world.server.stats()['connections'] == 1


def test_a_flood_of_connections_that_stay(pair: Any) -> None:
    """They say nothing, or half of something. The limit holds, and who is inside is served."""
    world = answering(pair(max_connections=50))
    with contextlib.ExitStack() as stack:
        bystander = stack.enter_context(world.raw())
        assert is_served(bystander)
        threads = threading.active_count()
        flood = [stack.enter_context(world.raw()) for _ in range(200)]
        for sock in flood[::2]:
            with contextlib.suppress(ConnectionError):
                sock.sendall(ASK[:10])
        eventually(lambda: world.server.stats()['connections'] == 50)
        assert is_served(bystander, 20)
        assert world.server.stats()['connections_total'] == 50
        assert threading.active_count() <= threads + world.ipc.config.workers
        for sock in flood:
            sock.close()
        eventually(lambda: len(world.server._unfinished) == 1)
        assert is_served(stack.enter_context(world.raw()))
        assert is_served(bystander)


def test_peers_that_say_nothing_cost_nothing_while_they_do(child: Any) -> None:
    one = child(max_connections=300)
    for _ in range(200):
        one.raw()
    eventually(lambda: one.report()['stats']['connections'] == 201)
    before = one.report()
    began = time.monotonic()
    time.sleep(0.5)
    after = one.report()
    assert after['cpu'] - before['cpu'] < 0.05 * (time.monotonic() - began)
    assert after['threads'] == before['threads']


# Descriptors


def answered(sockets: List[socket.socket]) -> List[socket.socket]:
    """Return those to which something has come."""
    return list(select.select(sockets, [], [], 0)[0])


def test_without_descriptors_accepting_pauses_and_recovers(child: Any, transport: str) -> None:
    one = child(transport)
    assert one.is_served()
    one.tell('descriptors', 5)
    waiting = [one.raw() for _ in range(20)]
    for sock in waiting:
        sock.sendall(ASK)
    eventually(lambda: one.report()['errors'])
    eventually(lambda: len(answered(waiting)) == 5)
    before = one.report()
    assert 'Too many open files' in before['error']
    assert 'close some descriptors, or raise the limit' in before['error']
    inside = answered(waiting)
    for sock in inside:
        assert sock.recv(100) == ANSWER
    began = time.monotonic()
    time.sleep(0.6)
    after = one.report()
    passed = time.monotonic() - began
    assert after['errors'] - before['errors'] <= passed / 0.25 + 2  # an attempt in each pause, at most
    assert after['cpu'] - before['cpu'] < 0.05 * passed  # a busy loop would take all that it gets
    for _ in range(20):
        assert one.is_served()
        assert all(map(is_served, inside))
    outside = [sock for sock in waiting if sock not in inside]
    assert not answered(outside)
    for sock in inside:
        sock.close()
    eventually(lambda: len(answered(outside)) == 5)
    one.tell('descriptors', None)
    for sock in outside:
        assert sock.recv(100) == ANSWER
        assert is_served(sock)
    assert one.is_served()
    assert one.report()['stats']['connections'] == 16


def test_a_client_without_descriptors_tries_again_until_there_are_some(child: Any, transport: str) -> None:
    """In a process of its own, whose limit it is."""
    one = child(transport)
    program = """
import json, resource, socket, sys, threading, nodeipc
address = json.loads(sys.argv[1])
ipc = nodeipc.IPC(id='client', retry=5, silent=True)
failed, answered = threading.Event(), threading.Event()
def added(client):
    client.on('error', lambda error: (print(error), failed.set()))
    client.on('answer', answered.set)
with nodeipc.IPC(id='first', silent=True) as first, first.serve():  # whatever else it needs descriptors for
    pass
ipc.serve_net('127.0.0.1', 0).start()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
with socket.socket() as lowest:
    limit = lowest.fileno()
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
connect = ipc.connect_to if isinstance(address, str) else ipc.connect_to_net
client = connect('child', *([address] if isinstance(address, str) else address), added)
assert failed.wait(30)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
client.emit('ask')
assert answered.wait(30)
ipc.close()
"""
    run = subprocess.run(
        [sys.executable, '-S', '-c', program, json.dumps(one.address)], capture_output=True, text=True, check=False,
        timeout=60, env={**os.environ, 'PYTHONPATH': os.getcwd()},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert 'Too many open files' in run.stdout


# Frames


@pytest.mark.parametrize('parser', ['fast', 'guarded'])
def test_a_hundred_thousand_tiny_messages_bound_memory_and_starve_nobody(child: Any, parser: str) -> None:
    one = child(parser=parser)
    assert one.is_served(10)
    before = one.report()['resident']
    flooder = one.raw()
    most = [before]

    def flood() -> None:
        for _ in range(100):
            flooder.sendall(b'{"type":"x"}\f' * 1000)

    with in_background(flood) as thread:
        while thread.is_alive():
            assert one.is_served()
            most.append(one.report()['resident'])
    eventually(lambda: one.report()['stats']['messages_in'] > 100_000)
    most.append(one.report()['resident'])
    assert is_served(flooder)
    assert max(most) - before < 40 * MIB


def test_tiny_messages_while_their_handler_is_stuck_bound_memory(pair: Any) -> None:
    world = pair()
    gate = threading.Event()
    world.server.on('x', lambda: gate.wait(60))
    answering(world)
    sent = [0]
    with world.raw() as flooder, world.raw() as bystander:
        flooder.settimeout(0.2)
        with contextlib.suppress(socket.timeout):
            while sent[0] < 3 * MIB:  # or until nothing is taken any more
                sent[0] += flooder.send(b'{"type":"x"}\f' * 5000)
        try:
            eventually(lambda: world.server.stats()['bytes_in'] > 200_000)
            assert is_served(bystander, 20)
            assert world.server.stats()['bytes_in'] < MIB
        finally:
            gate.set()
        eventually(lambda: world.server.stats()['bytes_in'] >= sent[0])


@pytest.mark.parametrize('parser', ['fast', 'guarded'])
def test_names_that_were_never_seen_before_are_not_kept(make: Any, parser: str) -> None:
    """Neither where they are emitted nor where they arrive and are answered."""
    if not hasattr(sys, 'getallocatedblocks'):
        pytest.skip('this Python does not tell what is allocated')
    server = make(parser=parser).serve()
    count = [0, 0]

    def echo(type: str, data: Any = None, socket: Any = None) -> None:
        if type.startswith('name'):
            count[0] += 1
            socket.emit(type, data)

    def note(type: str, *arguments: Any) -> None:
        count[1] += type.startswith('name')

    server.on('*', echo)
    server.start()
    client = make(id='client', parser=parser).connect_to('world', server.address, lambda client: client.on('*', note))

    def emit(first: int, last: int) -> None:
        with client.batch():
            for number in range(first, last):
                client.emit(f'name{number:x}', number)
        eventually(lambda: count == [last, last])
        gc.collect()

    emit(0, 5_000)  # which fill what is kept
    before = sys.getallocatedblocks()
    emit(5_000, 17_500)  # each of which is emitted twice, and arrives twice
    assert sys.getallocatedblocks() - before < 5_000


def test_long_names_are_not_kept(make: Any) -> None:
    server = make().serve()
    server.on('*', lambda type, data=None, socket=None: len(type) > 1000 and socket.emit(type, data))
    server.start()
    answers = [0]

    def note(type: str, data: Any = None) -> None:
        answers[0] += len(type) > 1000

    client = make(id='client').connect_to('world', server.address, lambda client: client.on('*', note))
    tracemalloc = pytest.importorskip('tracemalloc')  # not on PyPy
    tracemalloc.start()
    try:
        for number in range(100):
            client.emit(f'{number}' + 'x' * 100_000)
        eventually(lambda: answers[0] == 100)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
        assert kept < 3 * MIB  # and not twice 10
    finally:
        tracemalloc.stop()


# Peers that say half, or hear nothing


def test_who_stops_in_the_middle_of_large_messages_is_gone_with_them(pair: Any) -> None:
    world = answering(pair(parser='guarded', message_timeout=300))
    with contextlib.ExitStack() as stack:
        bystander = stack.enter_context(world.raw())
        assert is_served(bystander)
        met = marked(world.server)
        peers = [stack.enter_context(world.raw()) for _ in range(20)]
        half = b'{"type":"ask","data":"' + b'x' * 50_000
        for peer in peers:
            peer.sendall(half)
        eventually(lambda: world.server.stats()['bytes_in'] >= 20 * len(half))
        assert is_served(bystander, 10)
        assert all(map(hears_the_end, peers))
        assert {error.code for error, _ in world.log.wait('error', 20)} == {'ERR_IPC_MESSAGE_TIMEOUT'}
        assert is_served(bystander)
        eventually(lambda: len(world.server._unfinished) == 1)
        world.log.events.clear()

        def few() -> bool:
            gc.collect()
            return len(met) <= world.ipc.config.workers

        eventually(few)


def test_who_half_closes_and_never_reads_is_gone_after_the_stall_timeout(pair: Any) -> None:
    world = pair(stall_timeout=200, max_pending_bytes=100 * MIB)
    world.server.on('more', lambda data, socket: socket.emit('answer', 'x' * 200_000))
    answering(world)
    with world.raw() as deaf, world.raw() as bystander:
        began = time.monotonic()
        deaf.sendall(b'{"type":"more"}\f' * 50)
        deaf.shutdown(socket.SHUT_WR)
        ((_, _),) = world.log.wait('socket.disconnected')
        assert time.monotonic() - began >= 0.2
        assert world.log.of('error')
        assert is_served(bystander, 5)
    eventually(lambda: world.server.stats()['pending_bytes'] == 0)


@pytest.mark.parametrize('parser', ['fast', 'guarded'])
def test_as_many_who_ask_and_never_read_as_there_are_workers_keep_nobody_else_from_being_served(
    pair: Any, parser: str
) -> None:
    def workers() -> int:
        return sum(thread.name.startswith('nodeipc') for thread in threading.enumerate()) - 1  # who leads

    world = pair(parser=parser, workers=2, max_pending_bytes=MIB, emit_timeout=60_000, stall_timeout=60_000)
    world.server.on('more', lambda data, socket: socket.emit('answer', 'x' * 200_000))
    answering(world)
    with contextlib.ExitStack() as stack:
        deaf = [stack.enter_context(world.raw()) for _ in range(5)]
        for sock in deaf:
            sock.sendall(b'{"type":"more"}\f' * 50)
        bystander = stack.enter_context(world.raw())
        eventually(lambda: sum(socket.pending_bytes > MIB for socket in world.server.sockets) == 5)
        assert is_served(bystander, 20)
        assert workers() <= 2 + 5  # one for each that waits
        assert world.server.stats()['pending_bytes'] <= 5 * (MIB + 200_100)
        for sock in deaf:
            sock.close()
        eventually(lambda: world.server.stats()['connections'] == 1)
        assert is_served(bystander, 20)
        # Those who stood in for the handlers that waited are not needed any more.
        eventually(lambda: workers() <= 2)


def test_one_worker_handles_one_event_at_a_time_also_while_it_waits(pair: Any) -> None:
    """Whoever sets workers=1 relies on that; then one peer that does not read can hold up the others."""
    world = pair(workers=1, max_pending_bytes=MIB, emit_timeout=150)
    order: List[str] = []

    def more(data: Any, socket: Any) -> None:
        order.append('begins')
        try:
            while True:
                socket.emit('answer', 'x' * 200_000)
        finally:
            order.append('gives up')

    world.server.on('more', more)
    world.server.on('ask', lambda: order.append('asked'))
    answering(world)
    with world.raw() as deaf, world.raw() as other:
        deaf.sendall(b'{"type":"more"}\f')
        eventually(lambda: any(socket.pending_bytes > MIB for socket in world.server.sockets))
        other.sendall(b'{"type":"ask"}\f')
        eventually(lambda: 'asked' in order)
    assert order == ['begins', 'gives up', 'asked']


# Datagrams


def test_a_known_peer_is_served_while_many_strangers_flood(make: Any) -> None:
    server = make(parser='guarded', max_connections=20).serve_net('127.0.0.1', 0, 'udp4')
    server.on('ask', lambda data, socket: socket.emit('answer', data))
    server.start()
    with contextlib.ExitStack() as stack:

        def sender() -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.settimeout(20)
            return sock

        known, strangers = sender(), [sender() for _ in range(100)]
        sent = 0
        for turn in range(20):
            for stranger in strangers:
                datagram = (b'{"type":"x"}\f', b'{"type":"connect"}\f', b'{"type":"x"', b'')[turn % 4]
                stranger.sendto(datagram, server.address)
                sent += len(datagram)
                if stranger is strangers[50]:
                    eventually(lambda: server.stats()['bytes_in'] >= sent)  # noqa: B023  what the system buffers is little
            eventually(lambda: server.stats()['bytes_in'] >= sent)  # noqa: B023
            known.sendto(ASK, server.address)
            sent += len(ASK)
            assert known.recv(100) == ANSWER
        assert len(server.sockets) <= 20
        eventually(lambda: len(server._unfinished) <= 20)
