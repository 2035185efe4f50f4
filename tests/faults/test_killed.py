"""Peers that are killed, stopped for a while, or asked to end with work in progress: what becomes of those who stay.

Victims are processes of their own, see killed_victims.py; the survivors are in this process, where what they leave behind
can be counted. Moments are chosen at random, and what fails names the seed that repeats them, as far as the system lets it.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Set

import pytest

import nodeipc
from nodeipc import EmitTimeout, NotConnectedError

from ..certificates import Certificates
from ..cli_processes import Command
from ..conftest import Log, eventually
from ..interop.peers import SECONDS, Missing, NodePeer, Place, Speaker, find_node
from .killed_victims import Board, Series, Window, connect, filler, serve

ROOT = Path(__file__).parents[2]

# Of all who emit without end: few threads, so that they can be counted.
SETTINGS: Dict[str, Any] = {'workers': 2}

# An instance has so many: one leads, one watches, and those run handlers.
THREADS = 2 + SETTINGS['workers']

Often = Callable[[int, int], int]
Tried = Callable[..., None]
Make = Callable[..., nodeipc.IPC]


class Victims(Speaker):
    """The process that forks victims, and what those complain about."""

    def __init__(self) -> None:
        self.complaints: List[Dict[str, Any]] = []
        self.alive: Set[int] = set()
        self._answers: queue.Queue[Dict[str, Any]] = queue.Queue()
        # CPython 3.8 under -X dev crashes in the child of any fork.
        dev = ['-X', 'dev'] if sys.version_info >= (3, 9) and sys.flags.dev_mode else []
        super().__init__([sys.executable, *dev, '-W', 'error', '-m', f'{__package__}.killed_victims'], cwd=str(ROOT))

    def fork(self, role: str, board: Board, where: Any, **options: Any) -> int:
        """Start a victim; return its pid."""
        pid: int = self._order(fork=role, board=board.path, where=where, **options)['pid']
        self.alive.add(pid)
        return pid

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Kill one, which nothing else has ended before."""
        os.kill(pid, number)  # it is there, if only as a zombie, until it is reaped
        self.alive.discard(pid)
        assert self._order(reap=pid)['status'] == number, f'victim {pid} had ended; {self.complaints}'

    def kill_all(self) -> None:
        """Kill those that are alive."""
        for pid in tuple(self.alive):
            os.kill(pid, signal.SIGKILL)
            self._order(reap=pid)
            self.alive.discard(pid)

    def _order(self, **order: Any) -> Dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b'\n')
        self.process.stdin.flush()
        return self._answers.get(timeout=SECONDS)

    def _hear(self, line: bytes) -> None:
        said = json.loads(line)
        if 'wrong' in said:
            self.complaints.append(said)
        else:
            self._answers.put(said)


@pytest.fixture(scope='module')
def template() -> Iterator[Victims]:
    victims = Victims()
    yield victims
    victims.close()


@pytest.fixture
def victims(template: Victims) -> Iterator[Victims]:
    """Victims of one test, which have had nothing to complain about."""
    template.complaints.clear()
    yield template
    template.kill_all()
    assert not template.complaints


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(str(tmp_path / 'board'))
    yield board
    board.close()


@pytest.fixture
def chance() -> random.Random:
    """Chance, with a seed that is shown if the test fails; KILLED_SEED repeats it."""
    seed = int(os.environ.get('KILLED_SEED') or random.randrange(1 << 32))
    print(f'KILLED_SEED={seed}')
    return random.Random(seed)


# Where TLS makes no difference.
UNIX_AND_TCP = pytest.mark.parametrize('kind', ['unix', 'tcp'])


@pytest.fixture(params=['unix', 'tcp', 'tls'])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tls(kind: str, request: pytest.FixtureRequest) -> Callable[[str], Dict[str, Any]]:
    """The settings that a ``'server'`` or a ``'client'`` of this kind needs."""

    def settings(role: str) -> Dict[str, Any]:
        if kind != 'tls':
            return {}
        certificates: Certificates = request.getfixturevalue('certificates')
        return {'tls': getattr(certificates, role)()}

    return settings


@pytest.fixture
def place(kind: str, tmp_path: Path) -> Iterator[Place]:
    """A path or a port that servers can have one after the other."""
    place = Place('unix' if kind == 'unix' else 'tcp', tmp_path)
    yield place
    place.close()
    if kind == 'unix' and os.path.exists(place.path):  # of a server that was killed last
        os.unlink(place.path)


# Of what the library has for a connection: not what a thread may still hold of the last one that it has worked for, nor
# timers, which are empty and few when they are over and forgotten some time later.
_OF_CONNECTIONS = ('Connection', 'StreamSocket', 'TLSStream', 'Waiters', 'Connector')


class Holdings:
    """What this process has: descriptors, threads, what the library has for connections, and memory.

    There may be as many `threads` as the instances may start, which need not be all when this is made.
    """

    def __init__(self, threads: int = 0) -> None:
        gc.collect()
        self.descriptors = len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else 0
        self.threads = max(threads, threading.active_count())
        self.objects: Dict[str, int] = collections.Counter(
            type(thing).__name__
            for thing in gc.get_objects()
            if type(thing).__module__.startswith('nodeipc.') and type(thing).__name__ in _OF_CONNECTIONS
        )
        self.resident = 0
        with contextlib.suppress(OSError), open('/proc/self/statm', 'rb') as statm:
            self.resident = int(statm.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')

    def __repr__(self) -> str:
        return f'{self.descriptors} descriptors, {self.threads} threads, {self.resident >> 20} MiB, {dict(self.objects)}'

    def are_no_more_than(self, before: Holdings) -> bool:
        return (
            self.descriptors <= before.descriptors
            and self.threads <= before.threads
            and all(count <= before.objects[name] for name, count in self.objects.items())
            and self.resident <= before.resident + _FLAT
        )


# A hundred kills that cost as much as a connection has room for would be many times that.
_FLAT = 24 << 20


def same_as_before(before: Holdings) -> None:
    """Wait until this process has no more than it had."""
    now: List[Holdings] = []

    def is_so() -> bool:
        now[:] = [Holdings()]
        return now[0].are_no_more_than(before)

    try:
        eventually(is_so)
    except AssertionError:
        raise AssertionError(f'{now[0]} where there were {before}') from None


class Survivor:
    """A server that stays while its clients are killed, and checks what each of them says."""

    def __init__(self, ipc: nodeipc.IPC, kind: str, path: str) -> None:
        self.server = serve(ipc, path if kind == 'unix' else ['127.0.0.1', 0])
        self.wrong: List[str] = []  # not the exceptions themselves, which refer to all that was there
        self.handled: Dict[str, int] = {}  # by the names of clients
        self.gone: List[str] = []
        self.cut_off = 0
        for event in ('connect', 'number', 'socket.disconnected', 'error'):
            self.server.on(event, getattr(self, f'_{event.split(".")[-1]}'))
        self.server.on('ask', lambda data, socket: socket.emit('ask', data))
        self.server.start()
        self.where = self.server.address

    def _connect(self, socket: Any) -> None:
        socket.context.update(series=Series(), name='', pushed=0, over=False)

    def _number(self, data: Any, socket: Any) -> None:
        context = socket.context
        name, number, text = data
        wrong = context['series'].take(number, text)
        if wrong or context['over'] or context['name'] not in ('', name):
            self.wrong.append(f'{name}: {wrong or "after its end"}')
        context['name'] = name
        self.handled[name] = number + 1
        socket.emit('push', [context['pushed'], filler(context['pushed'])])
        context['pushed'] += 1

    def _disconnected(self, socket: Any) -> None:
        context = socket.context
        if context['over']:
            self.wrong.append(f'{context["name"]} left twice')
        context['over'] = True
        self.gone.append(context['name'])

    def _error(self, error: BaseException, socket: Any) -> None:
        # Gone, cut off inside a message, or stopped for too long.
        if getattr(error, 'code', None) == 'ERR_IPC_BACKPRESSURE':
            self.cut_off += 1
        elif not isinstance(error, (NotConnectedError, ConnectionError)) and 'ended inside a message' not in str(error):
            self.wrong.append(repr(error))


def asks_on(client: Any) -> None:
    """A bystander is served."""
    assert client.request('ask', 'still there', timeout=SECONDS) == 'still there'


@contextlib.contextmanager
def meanwhile(work: Callable[[], Any]) -> Iterator[None]:
    """Do something again and again in a thread."""
    stop = threading.Event()
    failures: List[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert not failures, failures


def test_clients_that_are_killed_under_load(
    kind: str, tls: Any, make: Make, victims: Victims, board: Board, chance: Any, often: Often, tried: Tried, tmp_path: Path
) -> None:
    kills = often({'unix': 24, 'tcp': 18, 'tls': 8}[kind], 200)
    threads = threading.active_count()
    survivor = Survivor(make(**SETTINGS, **tls('server')), kind, str(tmp_path / 'survivor'))
    server = survivor.server
    bystander = connect(make(id='bystander', **SETTINGS, **tls('client')), survivor.where, None)
    asks_on(bystander)
    settings = {**SETTINGS, **tls('client')}
    names: Dict[int, str] = {}
    number = 0

    def start() -> int:
        nonlocal number
        number += 1
        slot, name = number % 400, f'client {number}'
        board[slot] = 0
        pid = victims.fork('emitter', board, survivor.where, slot=slot, name=name, lives=False, settings=settings)
        names[pid] = name
        return pid

    def kill(pid: int, name: str) -> int:
        victims.kill(pid)
        eventually(lambda: name in survivor.gone, SECONDS)
        asks_on(bystander)
        # What a Unix socket has taken it gives, whoever is dead. TCP resets, if the dead had something to read.
        if kind == 'unix':
            assert survivor.handled[name] >= board[int(name.split()[1]) % 400]
        return survivor.handled[name]

    news = 0

    def tell() -> None:
        nonlocal news
        server.broadcast('news', [news, filler(news)])
        news += 1
        time.sleep(0.003)

    def kill_some(count: int) -> int:
        """Kill one of four again and again, and the four in the end; return how many messages were handled."""
        alive = [start() for _ in range(4)]
        messages = 0
        with meanwhile(tell):
            for left in range(count, 0, -1):
                pid = alive.pop(chance.randrange(len(alive)))
                name = names.pop(pid)
                enough = chance.randrange(1, 40)
                eventually(lambda name=name, enough=enough: survivor.handled.get(name, 0) >= enough, SECONDS)
                time.sleep(chance.random() * 0.005)
                messages += kill(pid, name)
                if left > 4:
                    alive.append(start())
        return messages

    messages = kill_some(4)  # by then all threads have been started
    eventually(lambda: len(server.sockets) == 1, SECONDS)
    before = Holdings(threads + 2 * THREADS)
    living = victims.fork(
        'emitter', board, survivor.where, slot=401, name='one that lives', lives=True, settings=settings
    )
    messages += kill_some(kills - 4)
    victims.kill(living)
    eventually(lambda: 'one that lives' in survivor.gone)
    eventually(lambda: len(server.sockets) == 1, SECONDS)
    same_as_before(before)
    assert not survivor.wrong and not survivor.cut_off
    assert server.stats()['connections_total'] == kills + 2
    asks_on(bystander)
    assert bystander.stats()['connections'] == 1
    tried(f'SIGKILL of a client under load, {kind}', kills + 1, messages)


class Traveller:
    """A client that stays while its servers are killed: emits, asks and is sent numbers, and checks them.

    What it emits is numbered for good, what it is sent begins anew with each connection.
    """

    def __init__(self, ipc: nodeipc.IPC, where: Any, slot: int) -> None:
        self.slot = slot
        self.series = Series()
        self.window = Window()
        self.generation = -1
        self.wrong: List[str] = []
        self.lives: List[str] = []  # 'connect', 'disconnect' and so on
        self.emitted = self.answered = self.asked_in_vain = 0

        def prepare(client: Any) -> None:
            client.on('connect', lambda: self._connection('connect'))
            client.on('disconnect', lambda: self._connection('disconnect'))
            client.on('push', self._push)
            client.on('error', self._error)

        self.client = connect(ipc, where, prepare, f'world, for {slot}')

    def emit(self) -> None:
        """Emit the next number; blocks while there is no server, or it is behind."""
        if not self.window.enter(0.1):
            return
        self.client.emit('number', [self.slot, self.emitted, filler(self.emitted)], timeout=SECONDS)
        self.emitted += 1

    def ask(self) -> None:
        """Ask, and see that the answer is that to the question."""
        question = self.answered + self.asked_in_vain
        try:
            answer, _ = self.client.request('ask', question, timeout=SECONDS)
        except NotConnectedError:  # at once, and not when time is up
            self.asked_in_vain += 1
            return
        if answer != question:
            self.wrong.append(f'{answer} was the answer to {question}')
        self.answered += 1

    def is_served_by(self, generation: int) -> None:
        """Wait until that server answers."""
        eventually(lambda: self._asks_whom() == generation, SECONDS)

    def _asks_whom(self) -> int:
        try:
            return int(self.client.request('ask', None, timeout=SECONDS)[1])
        except NotConnectedError:
            return -1

    def _connection(self, event: str) -> None:
        if self.lives[-1:] == [event] or (not self.lives and event != 'connect'):
            self.wrong.append(f'{event} after {self.lives[-1:]}')
        self.lives.append(event)
        self.series = Series()
        self.window.leave(all_of_them=True)

    def _error(self, error: BaseException) -> None:
        if not isinstance(error, (OSError, NotConnectedError)) and 'ended inside a message' not in str(error):
            self.wrong.append(repr(error))

    def _push(self, data: Any) -> None:
        generation, number, text = data
        wrong = self.series.take(number, text)
        if generation <= self.generation if number == 0 else generation != self.generation:
            wrong = f'number {number} of server {generation} after one of {self.generation}'
        self.generation = generation
        self.window.leave()
        if wrong:
            self.wrong.append(wrong)


def test_servers_that_are_killed_under_load(
    kind: str, tls: Any, make: Make, victims: Victims, board: Board, place: Place, chance: Any, often: Often, tried: Tried
) -> None:
    kills = often({'unix': 24, 'tcp': 18, 'tls': 8}[kind], 200)
    where = place.address
    generation = 0

    def start() -> int:
        nonlocal generation
        generation += 1
        return victims.fork('answerer', board, where, generation=generation, settings={**SETTINGS, **tls('server')})

    pid = start()
    # One of the travellers takes turns.
    threads = threading.active_count()
    ipcs = [make(id='traveller', retry=5, sync=sync, **SETTINGS, **tls('client')) for sync in (False, True)]
    travellers = [Traveller(ipc, where, 2 * slot) for slot, ipc in enumerate((ipcs[0], ipcs[0], ipcs[1]))]

    def kill_some(count: int) -> None:
        nonlocal pid
        with contextlib.ExitStack() as working:
            for traveller in travellers:
                working.enter_context(meanwhile(traveller.emit))
                if traveller is not travellers[-1]:
                    working.enter_context(meanwhile(traveller.ask))
            for _ in range(count):
                before = [asker.answered for asker in travellers[:2]]
                eventually(lambda before=before: all(a.answered > b for a, b in zip(travellers, before)), SECONDS)
                traveller = chance.choice(travellers)
                losses = traveller.lives.count('disconnect')
                enough = board[traveller.slot + 1] + chance.randrange(1, 40)
                eventually(lambda traveller=traveller, enough=enough: board[traveller.slot + 1] >= enough, SECONDS)
                time.sleep(chance.random() * 0.005)
                victims.kill(pid)
                if kind == 'unix':
                    assert os.path.exists(where)
                eventually(lambda t=traveller, losses=losses: t.lives.count('disconnect') > losses, SECONDS)
                pid = start()
        for traveller in travellers:
            traveller.is_served_by(generation)

    for traveller in travellers:
        traveller.is_served_by(1)
    kill_some(4)  # by then all threads have been started
    before = Holdings(threads + len(ipcs) * THREADS)
    kill_some(kills - 4)
    same_as_before(before)
    for traveller in travellers:
        eventually(lambda traveller=traveller: board[traveller.slot] == traveller.emitted, SECONDS)  # nothing is under way
        assert not traveller.wrong
        assert traveller.lives[-1] == 'connect'
        # It may be more than the servers: who is being killed may listen for longer than its connections last.
        assert traveller.client.stats()['connections'] == traveller.lives.count('connect') > 1
    assert all(traveller.answered >= kills for traveller in travellers[:2])
    tried(f'SIGKILL of a server under load, {kind}', kills, sum(board[traveller.slot + 1] for traveller in travellers))


@pytest.mark.parametrize('who', ['client', 'server'])
def test_who_is_killed_in_the_middle_of_a_large_message(
    who: str, kind: str, tls: Any, make: Make, victims: Victims, board: Board, place: Place, often: Often, tried: Tried
) -> None:
    """Nothing of the message is handled, the end of it is reported, and its bytes are forgotten."""
    times = often(1, 10)
    ipc = make(id='survivor', workers=2, **tls('server' if who == 'client' else 'client'))
    for _ in range(times):
        _kill_inside_a_large_message(who, ipc, victims, board, place.address, tls(who))
        eventually(lambda: not any(Holdings().objects[name] for name in ('Connection', 'StreamSocket', 'TLSStream')))
    tried(f'SIGKILL of a {who} inside a large message, {kind}', times)


def _kill_inside_a_large_message(
    who: str, ipc: nodeipc.IPC, victims: Victims, board: Board, where: Any, settings: Dict[str, Any]
) -> None:
    log = Log()
    if who == 'client':
        endpoint: Any = serve(ipc, where)
        endpoint.on('socket.disconnected', lambda: log('gone'))
    else:
        endpoint = connect(ipc, where, None)
        endpoint.on('disconnect', lambda: log('gone'))
    endpoint.on('giant', lambda: log('giant'))
    endpoint.on('error', lambda error: log('error', type(error), str(error)))
    if who == 'client':
        endpoint.start()
        pid = victims.fork('giant', board, where, size=40 << 20, settings=settings)
    else:
        pid = victims.fork('answerer', board, where, generation=0, settings=settings)
        endpoint.emit('giant', 40 << 20, timeout=SECONDS)
    log.wait('gone')
    victims.kill(pid)  # which has done so itself, to be sure that it was in the middle
    # A client tells of attempts before and after, too.
    ends = [(kind_, why) for kind_, why in log.of('error') if 'cannot connect' not in why]
    assert not log.of('giant')
    assert len(ends) == 1
    assert 'ended inside a message' in ends[0][1] or issubclass(ends[0][0], ConnectionError)
    (endpoint.stop if who == 'client' else endpoint.disconnect)()


@UNIX_AND_TCP
@pytest.mark.parametrize('how', ['script', 'sync'])
def test_a_script_that_is_killed_while_it_waits_for_an_answer(
    how: str, kind: str, tls: Any, make: Make, victims: Victims, board: Board, tmp_path: Path, tried: Tried
) -> None:
    """Who answers is told, sooner or later, and the others are served meanwhile."""
    survivor = Survivor(make(workers=4), kind, str(tmp_path / 'survivor'))
    server, log, gate = survivor.server, Log(), threading.Event()

    @server.on('slow')
    def slow(data: Any, socket: Any) -> None:
        log('begun')
        gate.wait(SECONDS)
        with contextlib.suppress(NotConnectedError):
            while True:  # TCP takes what comes first, for who has closed one side may read
                socket.emit('slow', 'x' * 100_000)
        eventually(lambda: socket not in server.sockets)
        log('ended', socket.context['over'])

    victim = victims.fork('asker', board, survivor.where, how=how, settings={})
    log.wait('begun')
    victims.kill(victim)
    asks_on(connect(make(id='bystander'), survivor.where, None))
    gate.set()
    eventually(lambda: survivor.gone)
    assert log.of('ended') == [(False,)]  # it is gone when its handler has returned
    assert not survivor.wrong
    tried(f'SIGKILL of a client in a request, {kind}')


def test_a_udp_peer_that_is_killed(make: Make, victims: Victims, board: Board, tried: Tried) -> None:
    """Nobody tells of it: a server goes on, a client is told when it asks again, and the next peer may have the port."""
    server = make(id='survivor').serve_net(0, 'udp4')
    log = Log()
    server.on('*', log)
    server.start()
    other = make(id='other').serve_net(0, 'udp4')
    other.on('message', lambda data, socket: socket.emit('message', data))
    other.start()
    victim = victims.fork('datagrams', board, ['127.0.0.1', 0], settings={})
    eventually(lambda: board[0])
    where = ('127.0.0.1', board[0])
    with nodeipc.connect(f'udp://127.0.0.1:{board[0]}') as client:
        assert client.request('message', 1, timeout=SECONDS) == 1
        server.emit(where, 'message', 1)
        log.wait('message')
        victims.kill(victim)
        for number in range(2, 5):  # the system says that nobody is there, whom it does not say to a server
            server.emit(where, 'message', number)
            server.emit(other.address, 'message', number)
            log.wait('message', number)
        assert [data for data, _ in log.of('message')] == [1, 2, 3, 4]
        with pytest.raises(NotConnectedError):
            client.request('message', 2, timeout=SECONDS)
        board[0] = 0
        victims.fork('datagrams', board, list(where), settings={})
        eventually(lambda: board[0])
        assert client.request('message', 3, timeout=SECONDS) == 3
        server.emit(where, 'message', 5)
        assert [data for data, _ in log.wait('message', 5)] == [1, 2, 3, 4, 5]
    assert not log.of('error')
    tried('SIGKILL of a UDP peer')


# Stopped and continued


def test_a_server_that_is_stopped_for_a_while(
    kind: str, tls: Any, make: Make, victims: Victims, board: Board, place: Place, often: Often, tried: Tried
) -> None:
    """An emit blocks, and may run out of time; then all arrives once, in order, by the connection that there was."""
    victim = victims.fork('answerer', board, place.address, generation=0, settings=tls('server'))
    limit = 300_000
    parser = 'guarded' if kind == 'tcp' else 'fast'  # which cuts nobody off
    ipc = make(id='client', max_pending_bytes=limit, parser=parser, stall_timeout=60_000, **tls('client'))
    traveller = Traveller(ipc, place.address, 0)
    traveller.ask()
    os.kill(victim, signal.SIGSTOP)
    try:
        with pytest.raises(EmitTimeout):
            for _ in range(20_000):  # the system takes some, and we do
                number = traveller.emitted
                traveller.client.emit('number', [0, number, filler(number)], timeout=often(1, 10) / 2)
                traveller.emitted += 1
        handled = board[0]
        assert traveller.client.stats()['pending_bytes'] > limit
        sender = threading.Thread(target=traveller.client.emit, args=('number', [0, number, filler(number)]))
        sender.start()
        assert board[0] == handled < number
    finally:
        os.kill(victim, signal.SIGCONT)
    sender.join(SECONDS)
    assert not sender.is_alive()
    eventually(lambda: board[0] == number + 1)
    assert board[1] == number + 1
    eventually(lambda: traveller.series.next == number + 1)  # and what it answers
    assert traveller.lives == ['connect'] and not traveller.wrong
    tried(f'SIGSTOP of a server, {kind}', 1, 2 * number + 2)


def test_a_server_that_is_stopped_for_longer_than_the_stall_timeout(
    kind: str, tls: Any, make: Make, victims: Victims, board: Board, place: Place, tried: Tried
) -> None:
    """With parser='guarded' the client leaves, says what was not delivered, and waits for the server to accept it again."""
    victim = victims.fork('answerer', board, place.address, generation=0, settings=tls('server'))
    ipc = make(id='client', max_pending_bytes=300_000, parser='guarded', stall_timeout=300, retry=20, **tls('client'))
    log = Log()
    traveller = Traveller(ipc, place.address, 0)
    traveller.client.on('error', lambda error: log(getattr(error, 'code', 'other')))
    traveller.ask()
    os.kill(victim, signal.SIGSTOP)
    try:
        timeouts = 0
        while not log.of('ERR_IPC_BACKPRESSURE'):
            try:
                number = traveller.emitted
                traveller.client.emit('number', [0, number, filler(number)], timeout=0.5)
                traveller.emitted += 1
            except EmitTimeout:
                timeouts += 1
                assert timeouts < 2 * SECONDS
        eventually(lambda: 'disconnect' in traveller.lives)
    finally:
        os.kill(victim, signal.SIGCONT)
    traveller.is_served_by(0)
    after = traveller.emitted
    for _ in range(100):
        while traveller.emitted == after:
            traveller.emit()
        after += 1
    eventually(lambda: board[0] == traveller.emitted, SECONDS)
    lives = traveller.lives
    assert lives == ['connect', 'disconnect'] * (len(lives) // 2) + ['connect']
    tried(f'SIGSTOP of a server for longer than the stall timeout, {kind}', 1, board[1])


@pytest.mark.parametrize('is_longer', [False, True])
def test_a_client_that_is_stopped_for_a_while(
    is_longer: bool, kind: str, tls: Any, make: Make, victims: Victims, board: Board, tmp_path: Path, often: Often,
    tried: Tried,
) -> None:
    """The others are served. A broadcast waits for it as long as the stall timeout; all it is sent it has once, in order."""
    stall = 300 if is_longer else 60_000
    settings = {'max_pending_bytes': 300_000, 'stall_timeout': stall}
    survivor = Survivor(make(**settings, **tls('server')), kind, str(tmp_path / 'survivor'))
    server = survivor.server
    victim = victims.fork('listener', board, survivor.where, slot=0, settings=tls('client'))
    eventually(lambda: len(server.sockets) == 1)
    other = connect(make(id='other', **tls('client')), survivor.where, None)
    series, wrong = Series(), Log()
    other.on('push', lambda data: series.take(*data) and wrong('wrong', data))
    asks_on(other)
    told = 0

    def tell(count: int) -> None:
        nonlocal told
        for _ in range(count):
            server.broadcast('push', [told, filler(told)])
            told += 1

    tell(50)
    eventually(lambda: board[0] == 50)
    os.kill(victim, signal.SIGSTOP)
    try:
        # More than the system and the queue take.
        teller = threading.Thread(target=tell, args=(5000,))
        teller.start()
        if is_longer:
            teller.join(SECONDS)
            eventually(lambda: series.next == told)
            assert told == 5050 and len(server.sockets) == 1
        else:
            eventually(lambda: any(socket.pending_bytes > 300_000 for socket in server.sockets))
            seen = told
            eventually(lambda: (series.next or 0) >= seen)
            for _ in range(20):
                asks_on(other)
            teller.join(often(3, 50) / 10)  # that is how long it is stopped
            assert teller.is_alive() and len(server.sockets) == 2
    finally:
        os.kill(victim, signal.SIGCONT)
    teller.join(SECONDS)
    assert not teller.is_alive()
    if is_longer:
        eventually(lambda: list(map(board.__getitem__, (1, 2))) == [2, 1], SECONDS)  # it has come back
        eventually(lambda: len(server.sockets) == 2)
        before = board[0]
        tell(50)
        eventually(lambda: board[0] == before + 50)
    else:
        eventually(lambda: board[0] == told, SECONDS)
        assert list(map(board.__getitem__, (1, 2))) == [1, 0]
    eventually(lambda: series.next == told)
    assert wrong.events == [] and survivor.wrong == [] and survivor.cut_off == is_longer
    assert other.stats()['connections'] == 1
    how = 'longer than' if is_longer else 'less than'
    tried(f'SIGSTOP of a client for {how} the stall timeout, {kind}', 1, board[0] + told)


# Asked to end

SERVER = """
import json, os, signal, sys, time, nodeipc
settings, where, how = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
if how == 'script':
    server = nodeipc.serve(where, **settings)
else:
    ipc = nodeipc.IPC(id='world', **settings)
    server = ipc.serve(where) if isinstance(where, str) else ipc.serve_net(*where)
end = {'exit': lambda *_: sys.exit(0), 'close': lambda *_: ipc.close(), 'script': lambda *_: server.stop()}[how]
signal.signal(signal.SIGTERM, end)

@server.on('work')
def work(data, socket):
    os.write(1, b'begun %d\\n' % data[0])
    time.sleep(0.05)
    socket.emit('work', [data, 'x' * 300_000])

server.start()
print(json.dumps(server.address), flush=True)
(server if how == 'script' else ipc).wait()
"""


@pytest.mark.parametrize(
    ('how', 'kind'), [('exit', 'unix'), ('close', 'unix'), ('script', 'unix'), ('close', 'tcp'), ('exit', 'tls')]
)
def test_a_server_that_is_asked_to_end_with_work_in_progress(
    how: str, kind: str, tls: Any, make: Make, tmp_path: Path, tried: Tried
) -> None:
    """What had arrived is handled, the replies leave, and it ends as if it had been done."""
    path = str(tmp_path / 'world')
    where = path if kind == 'unix' else ['127.0.0.1', 0]
    process = subprocess.Popen(
        [sys.executable, '-W', 'error', '-c', SERVER, json.dumps(tls('server')), json.dumps(where), how],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=str(ROOT), bufsize=0,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())
        ipc, logs = make(id='clients', **tls('client')), [Log() for _ in range(3)]
        for number, log in enumerate(logs):
            client = connect(ipc, address, lambda client, log=log: client.on('*', log), f'world {number}')
            with client.batch():  # they come together
                for task in range(4):
                    client.emit('work', [number, task])
        begun: List[bytes] = []
        while len(set(begun)) < len(logs):
            begun.append(process.stdout.readline())
        process.terminate()
        output, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (0, b'')
    assert len(begun) + output.count(b'begun') == 12
    assert not os.path.exists(path)
    for number, log in enumerate(logs):
        log.wait('disconnect')
        assert [event[0] for event in log.events][:6] == ['connect', 'work', 'work', 'work', 'work', 'disconnect']
        assert log.of('work') == [([[number, task], 'x' * 300_000],) for task in range(4)]
    tried(f'SIGTERM of a server with work in progress, {kind}', 1, 12)


@UNIX_AND_TCP
def test_the_command_serve_that_is_asked_to_end_under_load(
    kind: str, tls: Any, make: Make, tmp_path: Path, tried: Tried
) -> None:
    """Each event that it has printed it has echoed."""
    path = str(tmp_path / 'world')
    command = Command('serve', path if kind == 'unix' else 'tcp://127.0.0.1:0', '--echo')
    output: List[bytes] = []
    reader = threading.Thread(target=lambda: output.extend(command.process.stdout or ()))
    try:
        where: Any = command.listening()[len('unix:' if kind == 'unix' else 'tcp://'):]
        if kind == 'tcp':
            host, _, port = where.rpartition(':')
            where = [host, int(port)]
        reader.start()
        ipc, logs = make(id='clients', emit_timeout=100), [Log() for _ in range(3)]
        clients = [connect(ipc, where, lambda c, log=log: c.on('*', log), f'world {i}') for i, log in enumerate(logs)]
        with contextlib.ExitStack() as working:
            for number, client in enumerate(clients):
                # Or more would be under way than it can do in the second that it gives itself.
                count, window = iter(range(1 << 30)), Window()
                client.on('number', lambda window=window: window.leave())

                def emit(client: Any = client, number: int = number, count: Any = count, window: Any = window) -> None:
                    with contextlib.suppress(EmitTimeout):
                        if window.enter(0.1):
                            client.emit('number', [number, next(count), 'x' * 1000])

                working.enter_context(meanwhile(emit))
            for log in logs:
                log.wait('number', 50)
            command.interrupt(signal.SIGTERM)
            assert command.process.wait(SECONDS) == 128 + signal.SIGTERM
        reader.join(SECONDS)
        assert command.complaint() == ''
    finally:
        command.process.kill()
        if reader.ident is not None:
            reader.join(SECONDS)
        command.close()
    assert not os.path.exists(path)
    printed = [json.loads(line)['data'] for line in output]
    for number, log in enumerate(logs):
        log.wait('disconnect')
        own = [data for data in printed if data[0] == number]
        assert [data for data, in log.of('number')] == own
        assert [count for _, count, _ in own] == list(range(len(own)))
    tried(f'SIGTERM of the command serve under load, {kind}', 1, len(printed))


CLIENT = """
import os, signal, sys, nodeipc
from tests.faults.killed_victims import filler
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ipc = nodeipc.IPC(id='client')
client = ipc.connect_to('world', sys.argv[1])
client.on('error', lambda error: os.write(2, f'{error}\\n'.encode()))
number = 0
try:
    while True:
        client.emit('number', ['script', number, filler(number)])
        number += 1
finally:
    print(number, flush=True)
"""


def test_a_client_that_is_asked_to_end_while_it_emits(
    make: Make, tmp_path: Path, chance: Any, often: Often, tried: Tried
) -> None:
    """What an emit has accepted arrives; if the emit itself was interrupted half-way, it says so and nothing is damaged."""
    survivor = Survivor(make(), 'unix', str(tmp_path / 'survivor'))
    times, messages = often(4, 50), 0
    for time_ in range(1, times + 1):
        survivor.handled.clear()
        process = subprocess.Popen(
            [sys.executable, '-W', 'error', '-c', CLIENT, survivor.where],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=str(ROOT),
        )  # fmt: skip
        try:
            eventually(lambda: survivor.handled, SECONDS)
            time.sleep(chance.random() * 0.05)
            process.terminate()
            output, errors = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 0
        eventually(lambda time_=time_: len(survivor.gone) == time_)
        handled, emitted = survivor.handled['script'], int(output)
        assert handled <= emitted + 1
        if b'was interrupted' not in errors:
            assert handled >= emitted and errors == b''
        assert not survivor.wrong
        messages += handled
    tried('SIGTERM of a client that emits, unix', times, messages)


# node-ipc


@pytest.fixture
def start_node() -> Iterator[Callable[[], NodePeer]]:
    """Start node-ipc 14 in a process of its own."""
    try:
        find_node('14.0.0')
    except Missing as reason:
        pytest.skip(str(reason))
    with contextlib.ExitStack() as started:

        def start() -> NodePeer:
            peer = NodePeer('14.0.0')
            started.callback(peer.close)
            return peer

        yield start


@UNIX_AND_TCP
def test_a_node_client_that_is_killed_under_load(
    kind: str, make: Make, place: Place, start_node: Any, often: Often, tried: Tried
) -> None:
    server = serve(make(**SETTINGS), place.address)
    handled: List[int] = []
    times, messages = often(1, 10), 0
    server.on('message', lambda data, socket: (handled.append(data), socket.emit('message', data)))
    server.on('socket.disconnected', lambda: handled.append(-1))
    server.start()
    for time_ in range(1, times + 1):
        handled.clear()
        node = start_node()
        node.connect(place)
        node.do('emitNumbers', id='world', type='message', count=100_000)
        eventually(lambda: len(handled) > 1000)
        node.kill()
        eventually(lambda: -1 in handled[-2:])
        assert handled == [*range(len(handled) - 1), -1]
        messages += len(handled) - 1
        assert server.stats()['connections_total'] == time_
    tried(f'SIGKILL of a node-ipc client under load, {kind}', times, messages)


@UNIX_AND_TCP
def test_a_node_server_that_is_killed_under_load(
    kind: str, make: Make, place: Place, start_node: Any, often: Often, tried: Tried
) -> None:
    ipc = make(id='traveller', retry=5, **SETTINGS)
    log, times, window = Log(), often(1, 10), Window()

    def prepare(client: Any) -> None:
        client.on('message', lambda data: (log('message', data), window.leave()))
        client.on('connect', lambda: (log('connect'), window.leave(all_of_them=True)))
        client.on('disconnect', lambda: log('disconnect'))

    client = connect(ipc, place.address, prepare)
    count = iter(range(1 << 30))

    def emit() -> None:
        if window.enter(0.1):
            client.emit('message', next(count), timeout=SECONDS)

    with contextlib.ExitStack() as working:
        for time_ in range(1, times + 2):
            node = start_node()
            node.do('echo')
            node.serve(place)
            if time_ == 1:
                working.enter_context(meanwhile(emit))
            log.wait('connect', time_)
            log.wait('message', len(log.of('message')) + 300)
            if time_ <= times:
                node.kill()
                log.wait('disconnect', time_)
    series: Any = None
    last = -1
    for event, *data in log.events:
        if event == 'message':
            assert data[0] == last + 1 if series else data[0] > last
            series, last = True, data[0]
        else:
            series = None
    assert [event[0] for event in log.events if event[0] != 'message'] == ['connect', 'disconnect'] * times + ['connect']
    tried(f'SIGKILL of a node-ipc server under load, {kind}', times, len(log.of('message')))
