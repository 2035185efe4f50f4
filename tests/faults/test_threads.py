"""Many threads that take turns as often as they can: each one's messages in order, and ends that come in the middle."""

from __future__ import annotations

import functools
import os
import random
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from nodeipc import IPC, EmitTimeout, NotConnectedError, RequestTimeout

from ..certificates import Certificates
from ..conftest import eventually
from .conftest import FULL

_SECONDS = 20.0
_THREADS = 32
_KINDS = ('unix', 'tcp', 'tls')


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class World:
    """A server and clients, each kind in an instance of its own, over any stream transport."""

    def __init__(self, make: Callable[..., IPC], transport: str, certificates: Certificates, **settings: Any) -> None:
        self.transport = transport
        is_tls = transport == 'tls'
        self.ipc = make(tls=certificates.server() if is_tls else None, **settings)
        trust = {'trusted_connections': [certificates.pem('ca')]} if is_tls else None
        self.others = make(id='others', tls=trust, **settings)
        self.server = self.ipc.serve() if transport == 'unix' else self.ipc.serve_net('127.0.0.1', 0)

    def connect(self, id: str) -> Any:
        if self.transport == 'unix':
            return self.others.connect_to(id, self.server.address)
        return self.others.connect_to_net(id, *self.server.address)


@pytest.fixture(params=_KINDS)
def world(request: pytest.FixtureRequest, make: Any) -> Callable[..., World]:
    certificates = request.getfixturevalue('certificates') if request.param == 'tls' else None
    return lambda **settings: World(make, request.param, certificates, **settings)


def in_threads(functions: List[Callable[[], Any]], seconds: float = 3 * _SECONDS) -> List[BaseException]:
    """Run all at once, wait for all, and return what was raised."""
    raised: List[BaseException] = []

    def run(function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not [thread for thread in threads if thread.is_alive()]
    return raised


def test_what_32_threads_send_arrives_once_and_in_each_ones_order(world: Any, often: Any, tried: Any) -> None:
    """Both ways at once: emitted, in batches, and as requests, which are answered to who asked."""
    here = world(workers=3)
    count = often(24, 200)
    there: Dict[int, List[int]] = {which: [] for which in range(_THREADS)}
    back: Dict[int, List[int]] = {which: [] for which in range(_THREADS)}
    told: Dict[int, List[int]] = {which: [] for which in range(_THREADS)}

    def answer(data: Any, socket: Any) -> None:
        which, number = data
        there[which].append(number)
        socket.emit(f'answer {which}' if which % 3 == 2 else 'back', data)

    here.server.on('number', answer)
    here.server.start()
    clients = [here.connect(f'client-{number}') for number in range(3)]
    for client in clients:
        client.on('back', lambda data: back[data[0]].append(data[1]))
        client.on('told', lambda data: told[data[0]].append(data[1]))
        assert client.wait_connected(_SECONDS)
    eventually(lambda: len(here.server.sockets) == 3)
    sockets = here.server.sockets

    def send(which: int) -> None:
        client, socket = clients[which // 3 % 3], sockets[which % 3]
        for start in range(0, count, 8):
            numbers = range(start, start + 8)
            if which % 3 == 0:
                for number in numbers:
                    client.emit('number', [which, number])
            elif which % 3 == 1:
                with client.batch():
                    for number in numbers:
                        client.emit('number', [which, number])
            else:
                for number in numbers:
                    data = [which, number]
                    assert client.request('number', data, reply=f'answer {which}', timeout=_SECONDS) == data
                    back[which].append(number)
            for number in numbers:
                socket.emit('told', [which, number])

    assert not in_threads([lambda which=which: send(which) for which in range(_THREADS)])
    expected = {which: list(range(count)) for which in range(_THREADS)}
    for got in (there, back, told):
        eventually(lambda got=got: sum(map(len, got.values())) >= _THREADS * count)
        assert got == expected
    tried(f'32 threads that emit, batch and ask at once, both ways, {here.transport}', 1, 3 * _THREADS * count)


def test_handlers_that_come_and_go_during_dispatch(world: Any, often: Any) -> None:
    """One that stays has every event once; one that is there has what is emitted from then on; one that is gone, nothing."""
    here = world(workers=3)
    stays: List[Any] = []
    onces: List[int] = []
    here.server.on('message', lambda data, socket: (stays.append(data), socket.emit('message', data)))
    here.server.start()
    clients = [here.connect(f'client-{which}') for which in range(6)]
    rounds = often(15, 150)

    def churn(which: int) -> None:
        client = clients[which]
        other: List[Any] = []

        def handler(data: Any, socket: Any) -> None:
            if data[0] == which:
                other.append(data[1])

        for number in range(0, 3 * rounds, 3):
            here.server.on('message', handler)
            here.server.once('message', lambda: onces.append(which))
            assert client.request('message', [which, number], timeout=_SECONDS) == [which, number]
            client.request('message', [which, number + 1], timeout=_SECONDS)  # the handlers of the first have returned
            here.server.off('message', handler)
            assert number in other
            client.request('message', [which, number + 2], timeout=_SECONDS)
            assert number + 2 not in other
        assert [number for number in other if number % 3 == 0] == list(range(0, 3 * rounds, 3))

    assert not in_threads([lambda which=which: churn(which) for which in range(6)])
    for which in range(6):
        assert [number for who, number in stays if who == which] == list(range(3 * rounds))
    eventually(lambda: len(onces) >= 6 * rounds)
    assert sorted(onces) == sorted(list(range(6)) * rounds)


_ENDS = ('close others', 'close server', 'stop', 'disconnect', 'all')


def _end(here: World, how: str, clients: List[Any]) -> List[Callable[[], Any]]:
    if how == 'close others':
        return [here.others.close, here.others.close]
    if how == 'close server':
        return [here.ipc.close, lambda: here.ipc.close(0.5)]
    if how == 'stop':
        return [here.server.stop, lambda: here.server.stop(0.5)]
    if how == 'disconnect':
        return [client.disconnect for client in clients] + [lambda: clients[0].disconnect(0.1)]
    return [here.ipc.close, here.others.close, here.server.stop, clients[0].disconnect]


@pytest.mark.parametrize(
    ('world', 'how'),
    [(kind, how) for kind in _KINDS for how in _ENDS] if FULL else list(zip(('unix', 'tls', 'tcp', 'unix', 'tls'), _ENDS)),
    indirect=['world'],
)
def test_an_end_during_everything(world: Any, how: str, often: Any, tried: Any) -> None:
    """Emits, requests, attempts and handshakes, batches, flushes, iterations and broadcasts all end as they should."""
    times = often(1, 25)
    for seed in range(times):
        chance = random.Random(f'{how} {seed}')
        here = world(emit_timeout=300, retry=5, stall_timeout=1000, workers=chance.choice((0, 1, 4)), silent=True)
        here.server.on('message', lambda data, socket: socket.emit('message', data))
        here.server.start()
        clients = [here.connect(f'client-{number}') for number in range(2)]
        for client in clients:
            client.wait_connected(_SECONDS)
        over = threading.Event()
        turns: List[int] = []

        def emit(client: Any) -> None:
            client.emit('message', 'x' * 1000)

        def batch(client: Any) -> None:
            with client.batch():
                for _ in range(20):
                    client.emit('noise', 'x' * 1000)

        def iterate(client: Any) -> None:
            with client.events('news', timeout=0.3) as events:
                for _ in range(3):
                    next(events)

        def connect(which: int, here: World = here) -> None:
            client = here.connect(f'more-{which}')
            client.wait_connected(0.3)
            client.disconnect()

        def attempt(which: int, here: World = here) -> None:  # which is left when it stands in the middle
            here.connect(f'more-{which}').disconnect()

        acts: List[Tuple[Callable[..., Any], Any]] = []
        for client in clients:
            acts += [(emit, client), (batch, client), (iterate, client), (lambda client: client.flush(0.3), client)]
            acts.append((lambda client: client.request('message', timeout=0.3), client))
        acts += [(connect, 0), (attempt, 1), (lambda server: server.broadcast('news', 'x' * 1000), here.server)]

        def drive(act: Callable[..., Any], argument: Any, over: Any = over, turns: List[int] = turns) -> None:
            while not over.is_set():
                try:
                    act(argument)
                except (NotConnectedError, EmitTimeout, RequestTimeout, StopIteration):
                    if over.is_set():
                        return
                turns.append(1)

        def end(here: World = here, clients: Any = clients, over: Any = over, turns: Any = turns, after: int = 0) -> None:
            eventually(lambda: len(turns) > after)
            raised = in_threads(_end(here, how, clients))
            over.set()
            assert not raised

        after = chance.randrange(20, 60)
        drivers = [functools.partial(drive, *act) for act in acts]
        raised = in_threads([*drivers, functools.partial(end, after=after)])
        assert not raised
        here.others.close(_SECONDS)
        here.ipc.close(_SECONDS)
    tried(f'{how} while 13 threads do everything else', times)


def test_starts_and_stops_of_many_threads(make: Any, often: Any) -> None:
    """Who starts it when it runs is told so; when all is over it runs or not, as it says, with its socket file or not."""
    ipc = make(retry=5)
    server = ipc.serve()
    client = make(id='client', retry=5, emit_timeout=300).connect_to('world', server.address)
    server.on('message', lambda data, socket: socket.emit('message', data))
    for seed in range(often(6, 80)):
        chance = random.Random(seed)
        refused: List[str] = []

        def start(refused: List[str] = refused) -> None:
            try:
                server.start()
            except (RuntimeError, NotConnectedError) as error:  # or the instance is just being closed by who ran last
                refused.append(str(error))

        functions = chance.choices([start, server.stop, lambda: server.stop(0), lambda: server.stats()], k=8)
        assert not in_threads(functions)
        for text in refused:
            assert 'start it again' in text or 'before starting' in text or 'stopped while' in text or 'closed' in text, text
        assert os.path.exists(server.address) is server.listening
        if not server.listening:
            server.start()
        eventually(lambda: client.connected)
        assert client.request('message', seed, timeout=_SECONDS) == seed
        server.stop()
        assert not os.path.exists(server.address)
