"""Who runs handlers: one thread leads and runs them itself, another leads when one is stuck. What a user can rely on then.

Over real sockets. Peers are plain sockets where it matters what comes in one chunk: so the handlers of several events are
run in one go, and what they emit is joined.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import json
import os
import random
import select
import socket
import ssl
import struct
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

import nodeipc
from nodeipc import EmitTimeout, NotConnectedError
from nodeipc.connection import Connection

from .conftest import eventually

# For what must come; on a machine under load.
SECONDS = 20

# Twice as long as a handler can be stuck before another thread leads; so long a sleep has the lead change hands.
LONG = 0.012


class Peer:
    """A plain socket that speaks in events. One thread may send while another reads."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._tls_lock = threading.Lock()  # before Python 3.13 one thread at a time may use an SSLSocket, and nobody says so
        self._received = b''

    def send(self, *events: Tuple[Any, ...]) -> None:
        """Send events, as one chunk."""
        with self._tls_lock if isinstance(self.sock, ssl.SSLSocket) else contextlib.nullcontext():
            self.sock.sendall(b''.join(frame(*event) for event in events))

    def _receive(self) -> bytes:
        if isinstance(self.sock, ssl.SSLSocket):
            if not self.sock.pending():
                assert select.select([self.sock], [], [], SECONDS)[0], 'nothing came'
            with self._tls_lock:
                return self.sock.recv(1 << 16)
        return self.sock.recv(1 << 16)

    def next(self) -> Optional[Tuple[str, Any]]:
        """The next event, or None at the end."""
        while b'\f' not in self._received:
            chunk = self._receive()
            if not chunk:
                assert not self._received
                return None
            self._received += chunk
        one, _, self._received = self._received.partition(b'\f')
        value = json.loads(one)
        return value['type'], value['data']

    def take(self, count: int) -> List[Any]:
        return [self.next() for _ in range(count)]

    def rest(self) -> List[Any]:
        """All that comes until the end."""
        return list(iter(self.next, None))

    def reset(self) -> None:
        """Go without a goodbye."""
        if self.sock.family == socket.AF_INET:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.sock.close()


def frame(type: str, data: Any = None) -> bytes:
    return json.dumps({'type': type, 'data': data}).encode() + b'\f'


class World:
    """A server, its peers, and clients of other servers, over one transport."""

    def __init__(self, make: Any, transport: str, certificates: Any, settings: Dict[str, Any]) -> None:
        self.make = make
        self.transport = transport
        self.certificates = certificates
        self._open = contextlib.ExitStack()
        if transport == 'tls':
            settings = {**settings, 'tls': certificates.server()}
        self.ipc = make(**settings)
        self.server = self.ipc.serve() if transport == 'unix' else self.ipc.serve_net('127.0.0.1', 0)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._open.close()

    def peer(self, before: Callable[[socket.socket], Any] = bool) -> Peer:
        """A plain socket that has connected; the server knows it."""
        count = self.server.stats()['connections_total']
        sock = socket.socket(socket.AF_UNIX if self.transport == 'unix' else socket.AF_INET)
        self._open.callback(sock.close)
        sock.settimeout(SECONDS)
        before(sock)
        sock.connect(self.server.address)
        if self.transport == 'tls':
            context = ssl.create_default_context(cafile=self.certificates.pem('ca'))
            sock = context.wrap_socket(sock, server_hostname='localhost')
            self._open.callback(sock.close)
        eventually(lambda: self.server.stats()['connections_total'] > count)
        return Peer(sock)

    def client(self, callback: Any = None, **settings: Any) -> nodeipc.Client:
        """A client of ours, in an instance of its own."""
        if self.transport == 'tls':
            settings['tls'] = self.certificates.client()
        ipc = self.make(id='client', **settings)
        if self.transport == 'unix':
            return ipc.connect_to('world', self.server.address, callback)  # type: ignore[no-any-return]
        return ipc.connect_to_net('world', *self.server.address, callback)  # type: ignore[no-any-return]

    def of_a_plain_server(self, callback: Any, **settings: Any) -> Tuple[nodeipc.Client, Peer]:
        """A client of ours, and the plain socket at its other end."""
        with socket.socket() as listener:
            listener.settimeout(SECONDS)
            listener.bind(('127.0.0.1', 0))
            listener.listen()
            if self.transport == 'tls':
                settings['tls'] = self.certificates.client()
            client = self.make(id='client', stop_retrying=True, **settings).connect_to_net(
                'plain', *listener.getsockname(), callback
            )
            sock, _ = listener.accept()
        self._open.callback(sock.close)
        sock.settimeout(SECONDS)
        if self.transport == 'tls':
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificates.pem('server'), self.certificates.key('server'))
            sock = context.wrap_socket(sock, server_side=True)
            self._open.callback(sock.close)
        assert client.wait_connected(SECONDS)
        return client, Peer(sock)


@pytest.fixture(params=['unix', 'tcp', 'tls'])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(make: Any, transport: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., World]]:
    """Make a server with handlers to add and to start."""
    with contextlib.ExitStack() as stack:

        def make_world(**settings: Any) -> World:
            certificates = request.getfixturevalue('certificates') if transport == 'tls' else None
            settings.setdefault('workers', 4)
            return stack.enter_context(World(make, transport, certificates, settings))

        yield make_world


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as can be, so that what can come between does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


unix_only = pytest.mark.parametrize('transport', ['unix'], indirect=True)
tcp_only = pytest.mark.parametrize('transport', ['tcp'], indirect=True)


class Stuck:
    """A handler that is stuck until it is let go."""

    def __init__(self) -> None:
        self.inside = 0
        self._lock = threading.Lock()
        self._go_on = threading.Event()

    def __call__(self, *event: Any) -> None:
        with self._lock:
            self.inside += 1
        assert self._go_on.wait(SECONDS), 'nobody let it go'
        with self._lock:
            self.inside -= 1

    def let_go(self) -> None:
        self._go_on.set()


def answer(data: Any, sock: nodeipc.Socket) -> None:
    sock.emit('answer', data)


def our_threads(ipc: nodeipc.IPC) -> int:
    """How many an instance has."""
    engine: Any = ipc._engine
    return sum(thread.is_alive() for thread in list(engine.workers._threads))


def has_parked(ipc: nodeipc.IPC) -> bool:
    """Whether all threads but the one that leads wait for something to do."""
    engine: Any = ipc._engine
    workers = engine.workers
    return workers._watcher is None and len(workers._idle) == len(workers._threads) - 1 and not workers._busy


# A reply leaves, whatever the next handler does


@pytest.mark.parametrize('workers', [1, 8])
@pytest.mark.parametrize('after', [[], ['ask'] * 150])
def test_a_reply_arrives_while_the_next_handler_of_the_same_connection_is_stuck(
    world: Any, workers: int, after: List[str]
) -> None:
    here = world(workers=workers)
    stuck = Stuck()
    here.server.on('ask', answer)
    here.server.on('block', stuck)
    here.server.start()
    peer = here.peer()
    peer.send(('ask', 1), ('ask', 2), ('block',), *((type, 3) for type in after))
    assert peer.take(2) == [('answer', 1), ('answer', 2)]
    stuck.let_go()
    assert peer.take(len(after)) == [('answer', 3)] * len(after)


@pytest.mark.parametrize('workers', [1, 2])
def test_a_reply_arrives_while_the_handler_that_gave_it_is_stuck(world: Any, workers: int) -> None:
    here = world(workers=workers)
    stuck = Stuck()
    here.server.on('ask', answer)
    here.server.on('ask', stuck)
    here.server.start()
    peer = here.peer()
    peer.send(('ask', 1), ('ask', 2))
    assert peer.next() == ('answer', 1)
    stuck.let_go()
    assert peer.next() == ('answer', 2)


@pytest.mark.parametrize('workers', [1, 2])
def test_a_reply_arrives_when_a_handler_gets_stuck_after_many_quick_ones(world: Any, workers: int) -> None:
    here = world(workers=workers)
    here.server.on('ask', answer)
    stuck: List[Stuck] = []
    here.server.on('block', lambda data, sock: stuck[-1]())
    here.server.start()
    peer = here.peer()
    for _ in range(5):
        peer.send(*(('ask', index) for index in range(200)))
        assert peer.take(200) == [('answer', index) for index in range(200)]
        stuck.append(Stuck())
        peer.send(('ask', 'before'), ('block',), ('ask', 'after'))
        assert peer.next() == ('answer', 'before')
        stuck[-1].let_go()
        assert peer.next() == ('answer', 'after')


@pytest.mark.parametrize('workers', [1, 2])
def test_a_reply_arrives_when_a_handler_gets_stuck_while_other_threads_emit(world: Any, workers: int) -> None:
    here = world(workers=workers)
    here.server.on('ask', answer)
    stuck: List[Stuck] = []
    here.server.on('block', lambda data, sock: stuck[-1]())
    here.server.start()
    peer = here.peer()
    (sock,) = here.server.sockets
    enough = threading.Event()

    def emit() -> None:
        number = 0
        while not enough.wait(0.0005):
            sock.emit('noise', number)
            number += 1

    def next_answer() -> Any:
        return next(event for event in iter(peer.next, None) if event[0] == 'answer')[1]

    threads = [threading.Thread(target=emit) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            stuck.append(Stuck())
            peer.send(('ask', number), ('block',), ('ask', 'after'))
            assert next_answer() == number
            stuck[-1].let_go()
            assert next_answer() == 'after'
    finally:
        enough.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize('transport', ['tcp', 'tls'], indirect=True)
def test_what_a_client_emits_arrives_while_its_next_handler_is_stuck(world: Any, workers: int) -> None:
    here = world()
    stuck = Stuck()

    def handle(client: nodeipc.Client) -> None:
        client.on('ask', lambda data: client.emit('answer', data))
        client.on('block', stuck)

    client, peer = here.of_a_plain_server(handle, workers=workers)
    for number in range(100):
        peer.send(('ask', number))
    assert peer.take(100) == [('answer', number) for number in range(100)]
    peer.send(('ask', 'before'), ('block',), ('ask', 'after'))
    assert peer.next() == ('answer', 'before')
    stuck.let_go()
    assert peer.next() == ('answer', 'after')
    peer.sock.close()
    client.disconnect()


@unix_only
def test_a_reply_arrives_when_the_lead_is_lost_just_before_replies_are_joined(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that leads is not scheduled for some time, when it has begun to run a strand."""
    here = world()
    cork = Connection.cork

    def late(self: Any) -> None:
        with contextlib.suppress(AssertionError):
            eventually(lambda: not self._reactor.in_thread, 0.5)
        time.sleep(0.02)  # for what the new leader does first
        cork(self)

    monkeypatch.setattr(Connection, 'cork', late)
    stuck = Stuck()
    here.server.on('ask', answer)
    here.server.on('ask', stuck)
    here.server.start()
    peer = here.peer()
    peer.send(('ask', 1), ('ask', 2))
    assert peer.next() == ('answer', 1)
    stuck.let_go()
    assert peer.next() == ('answer', 2)


# A stuck handler holds up nobody else


@pytest.mark.parametrize('workers', [1, 2])
def test_a_stuck_handler_holds_up_nothing_but_its_place(world: Any, workers: int) -> None:
    here = world(workers=workers)
    stuck = Stuck()
    here.server.on('ask', answer)
    here.server.on('block', stuck)
    here.server.start()
    first, second = here.peer(), here.peer()
    first.send(('block',), ('ask', 1))
    eventually(lambda: stuck.inside)
    for number in range(3):
        second.send(('ask', number))
        if workers > 1:
            assert second.next() == ('answer', number)
    third = here.peer()  # it is accepted
    here.server.broadcast('news', 1)
    for sock in here.server.sockets:
        sock.emit('news', 2)
    for peer in (first, second, third):
        assert peer.take(2) == [('news', 1), ('news', 2)]
    here.server.broadcast('news', 3)  # what is not read makes a reset of the end, for Unix sockets
    third.reset()
    eventually(lambda: len(here.server.sockets) == 2)
    stuck.let_go()
    assert first.take(2) == [('news', 3), ('answer', 1)]
    assert second.next() == ('news', 3)
    if workers == 1:
        assert second.take(3) == [('answer', number) for number in range(3)]


@tcp_only
@pytest.mark.parametrize('workers', [1, 2])
def test_clients_of_the_same_instance_reconnect_and_are_answered_beside_a_stuck_handler(world: Any, workers: int) -> None:
    here = world(workers=workers)
    stuck = Stuck()
    here.server.on('block', stuck)
    here.server.start()
    peer = here.peer()
    with socket.socket() as listener:
        listener.settimeout(SECONDS)
        listener.bind(('127.0.0.1', 0))
        listener.listen()
        client = here.ipc.connect_to_net('plain', *listener.getsockname())
        sock, _ = listener.accept()
        assert client.wait_connected(SECONDS)
        peer.send(('block',))
        eventually(lambda: stuck.inside)
        for _ in range(2):
            sock.close()
            sock, _ = listener.accept()  # by a timer
            sock.settimeout(SECONDS)
            client.emit('one')
            assert Peer(sock).next() == ('one', {})
        with client.events('answer', timeout=SECONDS) as events:
            sock.sendall(frame('answer', 5))
            assert next(events).data == 5
        client.disconnect(0.01)  # its handlers wait, if there is one worker
        sock.close()
    stuck.let_go()


@pytest.mark.parametrize('count', [1, 7])
def test_one_more_worker_than_stuck_handlers_is_enough(world: Any, count: int) -> None:
    here = world(workers=count + 1)
    stuck = Stuck()
    here.server.on('ask', answer)
    here.server.on('block', stuck)
    here.server.start()
    peers = [here.peer() for _ in range(count)]
    others = [here.peer() for _ in range(2)]
    for peer in peers:
        peer.send(('block',), ('ask', 0))
    eventually(lambda: stuck.inside == count)
    for number in range(50):
        for peer in others:
            peer.send(('ask', number), ('ask', -number))
        for peer in others:
            assert peer.take(2) == [('answer', number), ('answer', -number)]
    stuck.let_go()
    for peer in peers:
        assert peer.next() == ('answer', 0)


@pytest.mark.parametrize('workers', [1, 4])
def test_with_all_workers_stuck_the_rest_goes_on_and_then_everything(world: Any, workers: int) -> None:
    here = world(workers=workers)
    stuck = Stuck()
    here.server.on('ask', answer)
    here.server.on('block', stuck)
    left: List[Any] = []
    here.server.on('socket.disconnected', lambda sock: left.append(sock))
    here.server.start()
    peers = [here.peer() for _ in range(workers)]
    for peer in peers:
        peer.send(('block',), ('ask', 1))
    eventually(lambda: stuck.inside == workers)
    more = [here.peer() for _ in range(4)]
    for peer in more:
        peer.send(('block',), ('ask', 2))
    eventually(lambda: here.server.stats()['messages_in'] == 2 * workers + 8)  # it reads
    here.server.broadcast('news', 'x' * 100_000)
    gone = more.pop()
    for peer in (*peers, *more):
        assert peer.next() == ('news', 'x' * 100_000)
    gone.reset()
    eventually(lambda: len(here.server.sockets) == workers + 3)
    assert stuck.inside == workers and not left
    stuck.let_go()
    for peer in peers:
        assert peer.next() == ('answer', 1)
    for peer in more:
        assert peer.next() == ('answer', 2)
    eventually(lambda: left)


@unix_only
def test_what_becomes_ready_when_the_only_worker_parks_is_run(world: Any) -> None:
    """A worker has seen that nothing is ready, and is not scheduled while something comes and the leader finds it busy."""
    here = world(workers=1)
    stuck = Stuck()
    here.server.on('block', stuck)
    here.server.on('ask', answer)
    here.server.start()
    first, second = here.peer(), here.peer()
    first.send(('ask', 1))
    assert first.next() == ('answer', 1)
    engine = here.ipc._engine
    eventually(lambda: has_parked(here.ipc))
    first.send(('block',))
    eventually(lambda: stuck.inside and engine.workers._busy)
    held = []

    class Ready(collections.deque):  # type: ignore[type-arg]
        def __bool__(self) -> bool:
            something = len(self) > 0
            if not something and sys._getframe(1).f_code.co_name == '_next' and not held:
                held.append(threading.current_thread())
                second.send(('ask', 2))
                eventually(lambda: len(self))  # the leader has read it
                time.sleep(0.05)  # and looks for a place, and waits
            return something

    engine.workers.ready = engine.reactor.ready = Ready()
    stuck.let_go()
    assert second.next() == ('answer', 2)
    assert held


@unix_only
def test_a_collected_object_that_emits_and_waits_holds_up_nobody(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may run a `__del__` wherever something is allocated: also where the leader starts a thread."""
    here = world()
    here.server.on('ask', answer)
    elsewhere = here.make(id='nobody', retry=10**9)
    nobody = elsewhere.connect_to('nobody')  # it never connects
    eventually(lambda: our_threads(elsewhere) > 1 and has_parked(elsewhere))
    outcomes: List[Any] = []

    class Last:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            try:
                nobody.emit('last', timeout=0.01)
                outcomes.append(None)
            except BaseException as error:
                outcomes.append(error)

    start = threading.Thread.start

    def collect(self: threading.Thread) -> None:
        if self.name == 'nodeipc-worker' and not outcomes:
            Last()
            gc.collect()
        start(self)

    monkeypatch.setattr(threading.Thread, 'start', collect)
    gc.disable()  # for nobody else is to collect it
    try:
        here.server.start()
        peer = here.peer()
        peer.send(('ask', 1))
        assert peer.next() == ('answer', 1)
    finally:
        gc.enable()
    assert [type(outcome) for outcome in outcomes] == [RuntimeError], outcomes  # it may not wait there


# How many run at once


@pytest.mark.parametrize('workers', [2, 8])
def test_so_many_handlers_run_in_parallel(world: Any, workers: int) -> None:
    here = world(workers=workers)
    together = threading.Barrier(workers)

    def meet(data: Any, sock: nodeipc.Socket) -> None:
        together.wait(SECONDS)
        sock.emit('met', data)

    here.server.on('meet', meet)
    here.server.start()
    peers = [here.peer() for _ in range(workers)]
    for number in range(3):
        for peer in peers:
            peer.send(('meet', number))
        for peer in peers:
            assert peer.next() == ('met', number)


class Crowd:
    """Counts who is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = self.total = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *exc_info: Any) -> None:
        with self._lock:
            self.now -= 1


@unix_only
@pytest.mark.parametrize('workers', [1, 3])
def test_no_more_handlers_run_at_once_than_there_may_be(world: Any, workers: int, frequent_switches: None) -> None:
    here = world(workers=workers)
    crowd = Crowd()
    most_threads = [0]
    engines: List[Any] = []

    def handle(data: Any, sock: nodeipc.Socket) -> None:
        with crowd:
            if data:
                time.sleep(data)
                most_threads[0] = max(most_threads[0], our_threads(here.ipc))

    here.server.on('sleep', handle)
    here.server.start()
    engines.append(here.ipc._engine)
    rng = random.Random(workers)
    peers = [here.peer() for _ in range(8)]
    count = 0
    for _ in range(12):
        for peer in peers:
            events = [('sleep', rng.choice([0, 0, 0, 0, 0, 0.0003, 0.001, 0.004 + rng.random() / 120])) for _ in range(6)]
            count += len(events)
            peer.send(*events)
        time.sleep(rng.random() / 200)  # so that some find it idle
    eventually(lambda: crowd.total == count and not crowd.now)
    assert crowd.most == workers
    assert most_threads[0] <= workers + 1


@unix_only
def test_one_worker_runs_one_handler_at_a_time_ever(world: Any) -> None:
    here = world(workers=1)
    crowd = Crowd()

    def handle(data: Any, sock: nodeipc.Socket) -> None:
        with crowd:
            if data:
                time.sleep(data)

    here.server.on('sleep', handle)
    here.server.start()
    peers = [here.peer() for _ in range(8)]
    rng = random.Random(1)
    for _ in range(50):
        for peer in peers:
            events = [('sleep', 0)] * 25
            if rng.random() < 0.1:
                events[rng.randrange(25)] = ('sleep', rng.uniform(0.5, 1.5) * LONG)
            peer.send(*events)
    eventually(lambda: crowd.total == 10_000 and not crowd.now)
    assert crowd.most == 1


@unix_only
def test_events_of_many_connections_leave_room_for_what_else_there_is_to_do(world: Any) -> None:
    """All have many quick ones waiting: whoever connects meanwhile does not wait until it was everybody's turn."""
    here = world(workers=2, max_connections=200)
    spins = here.server
    handled = [0]
    handled_before: List[int] = []
    newcomer: List[Any] = []

    def spin(data: Any, sock: nodeipc.Socket) -> None:
        if not handled[0]:
            late = socket.socket(socket.AF_UNIX)
            late.connect(here.server.address)
            newcomer.append(late)
        handled[0] += 1
        if not handled_before and here.server.stats()['connections_total'] > 100:
            handled_before.append(handled[0])
        end = time.perf_counter() + 0.0001
        while time.perf_counter() < end:
            pass

    spins.on('spin', spin)
    spins.start()
    peers = [here.peer() for _ in range(100)]
    go_on = hold(here.ipc)
    for peer in peers:
        peer.send(*[('spin',)] * 20)
    go_on.set()
    eventually(lambda: handled[0] == 2000)
    newcomer[0].close()
    assert handled_before and handled_before[0] < 1500


def hold(ipc: nodeipc.IPC) -> threading.Event:
    """Have the reactor wait until this is set, so that all that is sent meanwhile is found in one turn."""
    go_on = threading.Event()
    engine: Any = ipc._engine
    eventually(lambda: has_parked(ipc))
    engine.reactor.call(go_on.wait, SECONDS)
    return go_on


@unix_only
def test_a_connection_with_much_to_do_lets_the_others_have_their_turn(world: Any) -> None:
    here = world(workers=1)
    handled: List[Any] = []
    here.server.on('much', lambda data, sock: handled.append(data))
    here.server.start()
    first, second = here.peer(), here.peer()
    go_on = hold(here.ipc)
    first.send(*[('much', 1)] * 1000)
    second.send(('much', 2))
    go_on.set()
    eventually(lambda: len(handled) == 1001)
    assert handled.index(2) < 1000


@unix_only
def test_replies_arrive_while_the_next_connection_has_its_turn_and_is_stuck(world: Any) -> None:
    here = world(workers=1)
    stuck = Stuck()
    answered: List[Any] = []

    def ask(data: Any, sock: nodeipc.Socket) -> None:
        sock.emit('answer', data)
        answered.append(data)

    here.server.on('ask', ask)
    here.server.on('block', stuck)
    here.server.start()
    first, second = here.peer(), here.peer()
    go_on = hold(here.ipc)
    first.send(*(('ask', number) for number in range(1000)))
    second.send(('block',))
    go_on.set()
    eventually(lambda: stuck.inside)
    assert first.take(len(answered)) == [('answer', number) for number in answered]
    stuck.let_go()
    assert first.take(1000 - len(answered))[-1] == ('answer', 999)


@unix_only
@pytest.mark.parametrize('workers', [1, 3])
def test_slow_handlers_are_shared_out_and_quick_ones_are_watched_again(world: Any, workers: int) -> None:
    here = world(workers=workers)
    crowd = Crowd()
    stuck = Stuck()
    threads: List[int] = []

    def sleep(data: Any, sock: nodeipc.Socket) -> None:
        with crowd:
            time.sleep(0.001)
            threads.append(our_threads(here.ipc))

    here.server.on('sleep', sleep)
    here.server.on('ask', answer)
    here.server.on('block', stuck)
    here.server.start()
    peers = [here.peer() for _ in range(8)]
    count = 0
    for _ in range(10):
        for peer in peers:
            peer.send(*[('sleep',)] * 3)
        count += 24
        eventually(lambda count=count: crowd.total >= count - 4)
    for peer in peers:
        peer.send(('ask', 1))
        assert peer.next() == ('answer', 1)
    assert crowd.most == workers
    assert max(threads) <= workers + 1
    eventually(lambda: has_parked(here.ipc))
    engine: Any = here.ipc._engine
    assert engine.workers._slow_until > time.monotonic()  # it knows that they were slow
    engine.workers._slow_until = 0.0  # and has forgotten it
    peers[0].send(('ask', 2), ('block',), ('ask', 3))
    assert peers[0].next() == ('answer', 2)
    stuck.let_go()
    assert peers[0].next() == ('answer', 3)


# Order, while the lead changes hands


@pytest.mark.filterwarnings('ignore:.*multi-threaded:DeprecationWarning')
@pytest.mark.parametrize('workers', [1, 8])
@unix_only
def test_events_of_one_connection_stay_in_order_whatever_handlers_do(world: Any, workers: int) -> None:
    here = world(workers=workers, max_pending_bytes=2000)
    rng = random.Random(workers)
    deaf: List[Any] = []
    got: Dict[Any, List[int]] = {}

    def sleep(sock: nodeipc.Socket) -> None:
        time.sleep(rng.uniform(0.5, 1) * LONG)

    def ask_back(sock: nodeipc.Socket) -> None:
        assert sock.request('back', 1, timeout=SECONDS) == 1

    def emit_to_the_deaf(sock: nodeipc.Socket) -> None:
        with contextlib.suppress(EmitTimeout):
            while True:
                deaf[0].emit('much', 'x' * 10_000, timeout=0.008)

    def register(sock: nodeipc.Socket) -> None:
        here.server.off('other', here.server.on('other', lambda data: None))

    def start_another(sock: nodeipc.Socket) -> None:
        with nodeipc.IPC(id=f'other{threading.get_ident()}') as other:
            other.serve().on('ask', answer)
            other.server.start()
            assert other.connect_to(other.config.id).request('ask', 2, reply='answer', timeout=SECONDS) == 2

    def fork(sock: nodeipc.Socket) -> None:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)

    actions = [bool, bool, bool, sleep, sleep, ask_back, emit_to_the_deaf, register]
    rare = [start_another, fork] if hasattr(os, 'fork') else [start_another]

    def step(data: Any, sock: nodeipc.Socket) -> None:
        number, name = data
        assert not sock.context.get('busy')
        sock.context['busy'] = True
        sock.emit('began', number)
        next(action for action in (*actions, *rare) if action.__name__ == name)(sock)
        got[sock].append(number)
        sock.emit('done', number)
        sock.context['busy'] = False

    failures: List[Any] = []
    here.server.on('error', lambda error, sock: failures.append(error))
    here.server.on('step', step)
    here.server.start()
    silent = here.peer()
    deaf.extend(here.server.sockets)
    heard: List[List[Any]] = []
    clients = []
    for _ in range(4):
        news: List[Any] = []

        def listen(client: Any, news: List[Any] = news) -> None:
            client.on('back', lambda data: client.emit('back', data))
            client.on('*', lambda *event: news.append(event))

        clients.append(here.client(listen))
        heard.append(news)
    got.update((sock, []) for sock in eventually(lambda: len(here.server.sockets) == 5 and here.server.sockets))
    count = 30
    for number in range(count):
        for client in clients:
            pick = rng.choice(actions) if number % 15 != 7 else rng.choice(rare)
            client.emit('step', [number, pick.__name__])
    numbers = list(range(count))
    eventually(lambda: all(len(got[sock]) == count for sock in got if sock is not deaf[0]) or failures)
    assert not failures
    assert all(got[sock] == numbers for sock in got if sock is not deaf[0])
    told = [(event, number) for number in numbers for event in ('began', 'done')]
    for news in heard:
        eventually(lambda news=news: ('done', count - 1) in news)
        assert [event for event in news if event[0] in ('began', 'done')] == told
    silent.sock.close()


@pytest.mark.parametrize('pause', [0, LONG])
def test_a_handler_that_closes_its_socket_has_delivered_what_it_emitted(world: Any, pause: float) -> None:
    here = world()
    handled: List[int] = []

    def handle(data: Any, sock: nodeipc.Socket) -> None:
        handled.append(data)
        sock.emit('answer', data)
        if data == 5:
            time.sleep(pause)
            sock.emit('answer', 'last')
            sock.close()

    here.server.on('ask', handle)
    here.server.start()
    for _ in range(5):
        handled.clear()
        peer = here.peer()
        peer.send(*(('ask', number) for number in range(20)))
        assert peer.rest() == [*(('answer', number) for number in range(6)), ('answer', 'last')]
        assert handled == list(range(6))
        peer.sock.close()


@pytest.mark.parametrize('pause', [0, LONG])
@pytest.mark.parametrize('transport', ['tcp', 'tls'], indirect=True)
def test_a_handler_that_disconnects_its_client_has_delivered_what_it_emitted(world: Any, pause: float) -> None:
    here = world()

    def handle(client: nodeipc.Client) -> None:
        def ask(data: Any) -> None:
            client.emit('answer', data)
            if data == 5:
                time.sleep(pause)
                client.emit('answer', 'last')
                client.disconnect()

        client.on('ask', ask)

    client, peer = here.of_a_plain_server(handle)
    peer.send(*(('ask', number) for number in range(20)))
    assert peer.rest() == [*(('answer', number) for number in range(6)), ('answer', 'last')]
    peer.sock.close()
    assert client.wait(SECONDS)


@pytest.mark.parametrize('how', ['stop', 'close'])
@pytest.mark.parametrize('pause', [0, LONG])
def test_a_handler_that_stops_the_server_is_followed_by_those_of_what_had_come(world: Any, how: str, pause: float) -> None:
    here = world()
    peers: List[Peer] = []

    def handle(data: Any, sock: nodeipc.Socket) -> None:
        sock.emit('answer', data)
        if data == 5:
            if how == 'stop':
                here.server.stop()
            else:
                here.ipc.close()
            time.sleep(pause)

    here.server.on('ask', handle)
    here.server.start()
    peers.extend(here.peer() for _ in range(3))
    for peer in peers[1:]:
        peer.send(('ask', 0), ('ask', 1))
        assert peer.take(2) == [('answer', 0), ('answer', 1)]
    peers[0].send(*(('ask', number) for number in range(20)))
    assert peers[0].rest() == [('answer', number) for number in range(20)]
    for peer in peers[1:]:
        assert peer.rest() == []
    for peer in peers:
        peer.sock.close()
    assert here.ipc.wait(SECONDS) if how == 'close' else eventually(lambda: not here.server.listening)


# Threads


@pytest.mark.parametrize('workers', [1, 2])
@unix_only
def test_close_while_a_handler_is_stuck_ends_with_its_timeout(world: Any, workers: int) -> None:
    here = world(workers=workers)
    stuck = Stuck()
    here.server.on('block', stuck)
    here.server.start()
    peers = [here.peer() for _ in range(3)]
    for peer in peers:
        peer.send(('block',), ('block',))
    eventually(lambda: stuck.inside == workers)
    here.ipc.close(0.05)
    assert stuck.inside == workers
    for peer in peers:
        peer.sock.close()
    stuck.let_go()


def test_close_leaves_nothing_whenever_it_comes(make: Any) -> None:
    rng = random.Random(5)
    before = threading.active_count()
    for number in range(60):
        ipc = make(workers=rng.choice([1, 2, 4]))
        pause = rng.choice([0, 0, 0.004, 0.006, 0.008])

        def handle(data: Any, sock: nodeipc.Socket, pause: float = pause, ipc: Any = ipc) -> None:
            sock.emit('answer', data)
            if data == 1:
                time.sleep(pause)
            if data == 2:
                ipc.close()

        ipc.serve().on('ask', handle)
        ipc.server.start()
        socks = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for sock in socks:
            sock.connect(ipc.server.address)
            last = 2 if number % 4 == 3 and sock is socks[1] else 0
            sock.sendall(frame('ask', 0) + frame('ask', 1) + frame('ask', last))
        time.sleep(rng.random() * 0.006)
        if number % 2:
            for sock in socks:
                sock.close()
        else:
            threading.Timer(0.001, lambda socks=socks: [sock.close() for sock in socks]).start()  # type: ignore[misc]
        ipc.close(SECONDS)
        eventually(lambda ipc=ipc: not ipc._engine)
    eventually(lambda: threading.active_count() <= before)


@unix_only
def test_threads_of_waiting_handlers_are_gone_when_they_have_got_their_answers(world: Any) -> None:
    here = world(workers=2)
    together = threading.Barrier(6)

    def ask(data: Any, sock: nodeipc.Socket) -> None:
        sock.emit('answer', sock.request('back', timeout=SECONDS))

    here.server.on('ask', ask)
    here.server.start()

    def back(client: Any) -> None:
        def meet(data: Any) -> None:
            together.wait(SECONDS)  # all six are asked, before any is answered
            client.emit('back', 1)

        client.on('back', meet)

        client.on('answer', answers.append)

    answers: List[Any] = []
    clients = [here.client(back) for _ in range(6)]
    for client in clients:
        client.emit('ask')
    eventually(lambda: len(answers) == 6)
    eventually(lambda: our_threads(here.ipc) <= 3)


def test_without_threads_to_be_had_one_does_everything(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == 'nodeipc-worker':
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, 'start', refuse)
    here = world(max_pending_bytes=1000)
    crowd = Crowd()

    def ask(data: Any, sock: nodeipc.Socket) -> None:
        with crowd:
            answer(data, sock)

    def ask_back(data: Any, sock: nodeipc.Socket) -> None:
        with crowd:
            answer(sock.request('back', data, timeout=SECONDS), sock)

    def much(data: Any, sock: nodeipc.Socket) -> None:
        for _ in range(100):
            sock.emit('block', 'x' * 10_000)

    here.server.on('ask', ask)
    here.server.on('sleep', lambda data, sock: time.sleep(0.002))
    here.server.on('ask back', ask_back)
    here.server.on('much', much)
    here.server.start()
    peers = [here.peer() for _ in range(3)]
    for round in range(2):
        for peer in peers:
            peer.send(*(('ask', number) for number in range(150)))
        for peer in peers:
            assert peer.take(150) == [('answer', number) for number in range(150)]
            peer.send(('ask back', 5), ('ask', 6))
            assert peer.next() == ('back', 5)
            peers[0].send(('ask', 7)) if peer is not peers[0] else None
            peer.send(('back', 8))
            assert peer.take(2) == [('answer', 8), ('answer', 6)]
            if peer is not peers[0]:
                assert peers[0].next() == ('answer', 7)
        peers[0].send(('much',), ('ask', 1))
        peers[1].send(('ask', 2))
        assert peers[0].take(100) == [('block', 'x' * 10_000)] * 100
        assert peers[0].next() == ('answer', 1)
        assert peers[1].next() == ('answer', 2)
        for _ in range(15):  # until they are known to be slow
            for peer in peers:
                peer.send(*[('sleep',)] * 2, ('ask', 3))
            for peer in peers:
                assert peer.next() == ('answer', 3)
        assert (our_threads(here.ipc) == 1) == (round == 0)
        assert round or crowd.most == 1
        monkeypatch.undo()


@unix_only
def test_whoever_has_nothing_to_do_parks_soon_after_a_burst(world: Any) -> None:
    """No thread looks at a clock then; test_footprint counts system calls."""
    here = world(workers=3)
    here.server.on('ask', answer)
    here.server.on('sleep', lambda data, sock: time.sleep(data))
    here.server.start()
    peers = [here.peer() for _ in range(4)]
    for burst in ([('ask', 1)], [('ask', 1)] * 200, [('sleep', LONG)] * 3, [('sleep', 0.001)] * 60):
        for peer in peers:
            peer.send(*burst, ('ask', 'end'))
        for peer in peers:
            assert next(event for event in iter(peer.next, None) if event[1] == 'end')
        eventually(lambda: has_parked(here.ipc))


# What handlers emit leaves together


class Numbers:
    """What each source has emitted, to be found again once and in order."""

    def __init__(self) -> None:
        self.next: Dict[str, int] = collections.defaultdict(int)

    def emit(self, source: str, emit: Callable[..., Any]) -> None:
        """Emit the next number of `source`, which is one thread at a time."""
        emit(source, self.next[source])
        self.next[source] += 1

    def check(self, events: List[Any]) -> None:
        for source, count in self.next.items():
            assert [data for type, data in events if type == source] == list(range(count))
        assert len(events) == sum(self.next.values())


@pytest.mark.parametrize('limit', [1, 8 << 20])
def test_what_is_emitted_from_everywhere_arrives_once_and_in_order(world: Any, limit: int) -> None:
    here = world(max_pending_bytes=limit)
    numbers = Numbers()
    target: List[nodeipc.Socket] = []
    rng = random.Random(limit)

    handled: List[Any] = []

    def ask(data: Any, sock: nodeipc.Socket) -> None:
        try:
            numbers.emit('own', sock.emit)
            act(data, sock)
        finally:
            handled.append(data)

    def act(data: Any, sock: nodeipc.Socket) -> None:
        if data == 'raise':
            raise LookupError('for the test')
        if data == 'sleep':
            time.sleep(LONG)
        if data == 'twice':
            numbers.emit('own', lambda *event: here.server.emit(sock, *event))
        if data == 'wait':
            assert sock.request('back', 1, timeout=SECONDS) == 1

    here.server.on('ask', ask)
    here.server.on('relay', lambda data, sock: numbers.emit(data, target[0].emit))
    here.server.start()
    client_side = here.peer()
    target.extend(here.server.sockets)
    others = [here.peer() for _ in range(2)]
    got: List[Any] = []

    def read() -> None:
        for event in iter(client_side.next, None):
            if event[0] == 'back':
                client_side.send(('back', event[1]))
            else:
                got.append(event)

    reader = threading.Thread(target=read)
    reader.start()
    broadcaster = threading.Thread(
        target=lambda: collections.deque(numbers.emit('broadcast', here.server.broadcast) for _ in range(100))
    )
    broadcaster.start()
    for number in range(40):
        kinds = [rng.choice(['', '', '', '', 'raise', 'twice']) for _ in range(10)]
        if number % 8 == 0:
            kinds[5] = rng.choice(['sleep', 'wait'])
        client_side.send(*(('ask', kind) for kind in kinds))
        for index, peer in enumerate(others):
            peer.send(*[('relay', f'relay {index}')] * 3)
        numbers.emit('main', target[0].emit)
    broadcaster.join()
    relayed = numbers.next
    eventually(lambda: len(handled) == 400 and relayed['relay 0'] == relayed['relay 1'] == 120)
    target[0].close()
    reader.join(SECONDS)
    assert not reader.is_alive()
    numbers.check(got)


def test_what_another_thread_emits_later_arrives_later(world: Any) -> None:
    here = world()

    def ask(data: Any, sock: nodeipc.Socket) -> None:
        sock.emit('before', data)
        other = threading.Thread(target=sock.emit, args=('other', data))
        other.start()
        other.join()
        sock.emit('after', data)

    here.server.on('ask', ask)
    here.server.start()
    peer = here.peer()
    peer.send(*(('ask', number) for number in range(30)))
    assert peer.take(90) == [(type, number) for number in range(30) for type in ('before', 'other', 'after')]


@pytest.mark.parametrize('limit', [1, 100_000])
def test_a_peer_that_does_not_read_for_a_while_misses_nothing(world: Any, limit: int) -> None:
    here = world(max_pending_bytes=limit, workers=2)
    block = 'x' * 20_000
    handled: List[int] = []

    def ask(data: Any, sock: nodeipc.Socket) -> None:
        sock.emit('answer', [data, block])
        handled.append(data)

    here.server.on('ask', ask)
    here.server.start()
    peer, other = here.peer(), here.peer()
    (sock, *_) = here.server.sockets
    asked = threading.Thread(target=peer.send, args=[('ask', number) for number in range(400)])
    asked.start()
    eventually(lambda: sock.pending_bytes > limit)
    for number in range(20):  # while that handler waits
        other.send(('ask', -number), ('ask', -number))
        assert other.take(2) == [('answer', [-number, block])] * 2
    assert peer.take(400) == [('answer', [number, block]) for number in range(400)]
    asked.join()


@pytest.mark.parametrize('workers', [1, 4])
def test_a_handler_that_emits_can_flush_ask_and_fail(world: Any, workers: int) -> None:
    here = world()
    outcomes: List[Any] = []

    def handle(client: nodeipc.Client) -> None:
        def flush(data: Any) -> None:
            client.emit('answer', data)
            client.flush(SECONDS)
            outcomes.append(client.stats()['pending_bytes'])

        def ask(data: Any) -> None:
            client.emit('answer', data)
            client.emit('answer', client.request('question', timeout=SECONDS))

        def fail(data: Any) -> None:
            client.emit('answer', data)
            raise LookupError('for the test')

        client.on('flush', flush)
        client.on('ask', ask)
        client.on('fail', fail)

    here.server.on('question', lambda data, sock: sock.emit('question', 'reply'))
    got: List[Any] = []
    here.server.on('answer', lambda data, sock: got.append(data))

    def begin(sock: Any) -> None:
        for number in range(20):
            for type in ('flush', 'fail', 'ask', 'fail'):
                sock.emit(type, number)

    here.server.on('connect', begin)
    here.server.start()
    client = here.client(handle, workers=workers)
    eventually(lambda: len(got) == 100)
    assert got == [data for number in range(20) for data in (number, number, number, 'reply', number)]
    assert outcomes == [0] * 20
    client.disconnect()


@unix_only
@pytest.mark.parametrize('limit', [1, 1000])
def test_what_is_joined_does_not_stand_in_the_way_of_those_who_do_not_wait(world: Any, limit: int) -> None:
    """The peer reads, so there is room for each message, also of handlers that emit for themselves."""
    here = world(max_pending_bytes=limit)
    failures: List[Any] = []
    here.server.on('error', lambda error, sock: failures.append(error))
    here.server.on('ask', lambda data, sock: [sock.emit('answer', [data, index], timeout=0) for index in range(50)])
    here.server.start()
    peer = here.peer()
    for number in range(5):
        peer.send(('ask', number), ('ask', -number), ('ask', number))
        answers = [peer.next() for _ in range(150) if not failures]
        assert not failures
        assert answers == [('answer', [data, index]) for data in (number, -number, number) for index in range(50)]


@tcp_only
def test_flush_in_a_handler_need_not_wait_for_what_can_be_written(world: Any) -> None:
    here = world()
    failures: List[Any] = []

    def handle(client: nodeipc.Client) -> None:
        def ask(data: Any) -> None:
            client.emit('answer', data)
            client.flush(0)

        client.on('ask', ask)
        client.on('error', failures.append)

    client, peer = here.of_a_plain_server(handle)
    peer.send(('ask', 1), ('ask', 2), ('ask', 3))
    assert peer.take(3) == [('answer', 1), ('answer', 2), ('answer', 3)]
    assert not failures
    peer.sock.close()
    client.disconnect()


@pytest.mark.parametrize('pause', [0, LONG])
def test_a_peer_that_is_reset_in_the_middle_is_nobody_elses_matter(world: Any, pause: float) -> None:
    here = world()
    left: List[Any] = []
    unexpected: List[Any] = []
    entered = threading.Event()
    gone = threading.Event()

    def ask(data: Any, sock: nodeipc.Socket) -> None:
        if data == 1:
            entered.set()
            assert gone.wait(SECONDS)
            time.sleep(pause)
        sock.emit('answer', data)

    here.server.on('ask', ask)
    here.server.on('error', lambda error, sock: isinstance(error, OSError) or unexpected.append(error))
    here.server.on('socket.disconnected', lambda sock: left.append(sock))
    here.server.start()
    other = here.peer()
    for number in range(10):
        entered.clear()
        gone.clear()
        peer = here.peer()
        peer.send(('ask', 0), ('ask', 1), *(('ask', 2) for _ in range(20)))
        assert entered.wait(SECONDS)
        peer.reset()
        gone.set()
        other.send(('ask', 5), ('ask', 6))
        assert other.take(2) == [('answer', 5), ('answer', 6)]
        eventually(lambda number=number: len(left) == number + 1)
    assert not unexpected


@tcp_only
def test_a_goodbye_is_said_although_another_thread_has_written_the_last(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a socket could not take is written by the thread of a handler when the leader is about to."""
    here = world(stall_timeout=10 * SECONDS * 1000, max_pending_bytes=1 << 30)
    written: List[int] = []
    update = Connection._update

    def late(self: Any) -> None:
        if self._discard and self._pending and not written:
            written.append(self._pending)
            while self._pending:  # the peer reads
                self.uncork()
        update(self)

    monkeypatch.setattr(Connection, '_update', late)
    block = 'x' * (20 << 20)
    closed = threading.Event()

    def handle(data: Any, sock: nodeipc.Socket) -> None:
        sock.emit('answer', block)
        sock.close()
        closed.set()

    here.server.on('ask', handle)
    here.server.start()
    peer = here.peer()
    peer.send(('ask', 1))
    assert closed.wait(SECONDS)
    received, wanted = 0, len(frame('answer', block).replace(b' ', b''))
    while received < wanted:
        received += len(peer.sock.recv(1 << 20))
    assert written
    assert select.select([peer.sock], [], [], SECONDS)[0] and not peer.sock.recv(1)


# Everything at once


@pytest.mark.parametrize('workers', [1, 8])
def test_everything_at_once(world: Any, workers: int, frequent_switches: None) -> None:
    here = world(workers=workers, max_pending_bytes=3000, max_connections=1000)
    rng = random.Random(workers)
    crowd = Crowd()
    wrong: List[Any] = []

    def ask(data: Any, sock: nodeipc.Socket) -> None:
        number, what = data
        waits = what == 'back'
        with contextlib.nullcontext() if waits else crowd:
            if sock.context.get('last', -1) + 1 != number or sock.context.get('busy'):
                wrong.append((sock, number, dict(sock.context)))
            sock.context.update(last=number, busy=True)
            try:
                act(number, what, sock)
            finally:
                sock.context['busy'] = False

    def act(number: int, what: str, sock: nodeipc.Socket) -> None:
        sock.emit('answer', number)
        if what == 'sleep':
            time.sleep(LONG)
        elif what == 'short':
            time.sleep(0.0005)
        elif what == 'back' and sock.request('back', number, timeout=SECONDS) != number:
            wrong.append('back')
        elif what == 'others':
            for other in here.server.sockets:
                with contextlib.suppress(NotConnectedError):
                    other.emit('news', number)
        elif what == 'fail':
            raise LookupError('for the test')
        elif what == 'close':
            sock.close()

    here.server.on('ask', ask)
    here.server.start()
    failures: List[BaseException] = []

    def talk(seed: int) -> None:
        mine = random.Random(seed)
        try:
            for _ in range(3):
                peer = here.peer()
                with peer.sock:
                    number, ends = 0, False
                    while not ends and number < 60:
                        kinds = mine.choices(['', 'sleep', 'short', 'back', 'others', 'fail'], [30, 1, 3, 2, 2, 1], k=10)
                        ends = mine.random() < 0.1
                        if ends:
                            kinds[-1] = 'close'
                        peer.send(*(('ask', [number + index, kind]) for index, kind in enumerate(kinds)))
                        wanted = list(range(number, number + len(kinds)))
                        number += len(kinds)
                        if mine.random() < 0.05:
                            peer.reset()
                            break
                        while wanted:
                            type, data = peer.next() or ('end', None)
                            if type == 'back':
                                peer.send(('back', data))
                            elif type == 'answer':
                                assert data == wanted.pop(0)
                            else:
                                assert type == 'news'
                        if ends:
                            assert {type for type, _ in peer.rest()} <= {'news'}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(rng.random(),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        here.server.broadcast('news', 'main')
        time.sleep(0.002)
    if failures:
        raise failures[0]
    assert not wrong
    assert workers > 1 or crowd.most == 1  # those that wait give their places to others
    eventually(lambda: our_threads(here.ipc) <= workers + 1)
