"""Handlers that do what they should not, on either side and however many threads there are; consumers that do not keep up.

What is shown elsewhere is not repeated: ``workers`` that are stuck beside others in test_leading.py, clients that never read
in test_flow.py and test_resources.py, handlers that raise event by event in test_events.py.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List

import pytest

import nodeipc

from ..conftest import Log, Pair, eventually
from . import stuck_programs
from .stuck_running import Programs, findings, heard

SECONDS = 40

each_side = pytest.mark.parametrize('side', ['server', 'client'])
each_number = pytest.mark.parametrize('workers', [0, 1, 4])


class Scene:
    """A server and its clients, in two instances. `side` says whose handlers misbehave, on so many `workers`.

    Handlers are called with the data and the end of the connection that is theirs. `peers` are the other ends.
    """

    def __init__(self, make: Callable[..., nodeipc.IPC], side: str, workers: int, **settings: Any) -> None:
        self.side = side
        self.mine = make(id='mine', workers=workers, **settings)
        self.others = make(id='others', workers=4, **settings)
        self.server = (self.mine if side == 'server' else self.others).serve()
        self.clients: List[Any] = []
        self.errors: List[BaseException] = []
        self.peers: List[Any] = []
        self.peers_log = Log()
        self._handlers: Dict[str, Callable[..., Any]] = {'ask': lambda data, end: end.emit('answer', data)}

    def on(self, event: str, handler: Callable[..., Any]) -> None:
        self._handlers[event] = handler

    def start(self, connections: int = 1) -> Scene:
        if self.side == 'server':
            for event, handler in self._handlers.items():
                self.server.on(event, handler)
            self.server.on('error', lambda error: self.errors.append(error))
        else:
            self.server.on('*', self.peers_log)
        self.server.start()
        for number in range(connections):
            clients = self.others if self.side == 'server' else self.mine
            client = clients.connect_to(f'client-{number}', self.server.address, self._prepare)
            self.clients.append(client)
            eventually(lambda number=number: len(self.server.sockets) > number)
            self.peers.append(client if self.side == 'server' else self.server.sockets[-1])
        return self

    def _prepare(self, client: Any) -> None:
        if self.side == 'server':
            client.on('*', self.peers_log)
            return
        for event, handler in self._handlers.items():
            client.on(event, lambda data=None, handler=handler: handler(data, client))
        client.on('error', self.errors.append)

    def is_served(self, peer: Any, number: int = 1) -> bool:
        return bool(peer.request('ask', number, reply='answer', timeout=SECONDS) == number)


@pytest.fixture
def scene(make: Callable[..., nodeipc.IPC]) -> Callable[..., Scene]:
    def make_scene(side: str, workers: int, **settings: Any) -> Scene:
        return Scene(make, side, workers, **settings)

    return make_scene


@pytest.fixture
def program() -> Iterator[Programs]:
    programs = Programs(stuck_programs.__name__)
    yield programs
    programs.end()


# Handlers that raise


class Private(BaseException):
    """What nobody catches by name."""


RAISED = (ValueError, MemoryError, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError, Private)


@each_number
@each_side
def test_whatever_a_handler_raises_is_reported_and_costs_nothing(
    scene: Callable[..., Scene], side: str, workers: int, caplog: pytest.LogCaptureFixture, tried: Any
) -> None:
    here = scene(side, workers)

    def fail(data: Any, end: Any) -> None:
        raise RAISED[data](data)

    here.on('do', fail)
    first, second = here.start(2).peers
    for which in range(len(RAISED)):
        first.emit('do', which)
        assert here.is_served(first, which)
        assert here.is_served(second, which)
    eventually(lambda: len(here.errors) == len(RAISED))
    assert [type(error) for error in here.errors] == list(RAISED)
    assert caplog.text.count('Traceback') == len(RAISED)
    assert here.server.stats()['connections_total'] == 2
    tried('a handler that raises', len(RAISED), 3 * len(RAISED))


@pytest.mark.parametrize('raised', [ValueError, SystemExit])
@each_number
def test_a_log_sink_that_raises_costs_nothing_but_its_line(make: Any, workers: int, raised: Any) -> None:
    """It runs where handlers do, and what it was told of is handled nevertheless."""
    told: List[str] = []
    done: List[Any] = []

    def sink(line: str) -> None:
        told.append(line)
        if "'do'" in line or ' do ' in f'{line} ':
            raise raised

    ipc = make(id='world', workers=workers, log_payloads=True, logger=sink, log_in_color=False)
    server = ipc.serve()
    server.on('do', done.append)
    server.on('ask', lambda data, socket: socket.emit('answer', data))
    server.start()
    first, second = (make(id=name).connect_to('world') for name in ('first', 'second'))
    closed = threading.Event()
    try:
        for number in range(3):
            first.emit('do')
            assert first.request('ask', number, reply='answer', timeout=SECONDS) == number
            assert second.request('ask', number, reply='answer', timeout=SECONDS) == number
        assert sum(' do' in line for line in told) == 3
        assert len(done) == 3
    finally:
        threading.Thread(target=lambda: (ipc.close(5), closed.set()), daemon=True).start()
        assert closed.wait(SECONDS), 'close() hangs'


# Handlers that take long, or for ever


@each_number
@each_side
def test_what_comes_while_every_worker_is_stuck_is_handled_afterwards_in_order(
    scene: Callable[..., Scene], side: str, workers: int, tried: Any
) -> None:
    here = scene(side, workers)
    stuck = max(1, workers)
    gate = threading.Event()
    begun: List[int] = []
    here.on('do', lambda data, end: (begun.append(data), gate.wait(SECONDS)))
    peers = here.start(stuck + 1).peers
    for number, peer in enumerate(peers[:stuck]):
        if workers < 2 or number < stuck - 1:
            peer.emit('do', number)
    bystander = peers[-1]
    try:
        if workers > 1:
            eventually(lambda: len(begun) == stuck - 1)
            assert here.is_served(bystander)  # one worker is left
            peers[stuck - 1].emit('do', stuck - 1)
        eventually(lambda: len(begun) == stuck)
        for number in range(100):
            for peer in peers:
                peer.emit('ask', number, timeout=SECONDS)
    finally:
        gate.set()
    answers = here.peers_log
    eventually(lambda: len(answers.of('answer')) >= 100 * len(peers) + (workers > 1))
    if side == 'server':
        assert sorted(data for (data,) in answers.of('answer')) == sorted([*range(100)] * len(peers) + [1] * (workers > 1))
    else:
        for peer in peers:
            got = [data for data, socket in answers.of('answer') if socket is peer]
            assert got[-100:] == list(range(100))
    assert not here.errors
    tried('every worker stuck in a handler', 1, 100 * len(peers))


@each_number
@each_side
def test_a_handler_that_never_returns_does_not_hold_up_close(
    scene: Callable[..., Scene], side: str, workers: int, tried: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck_programs.be_impatient(monkeypatch.setattr)
    here = scene(side, workers, stall_timeout=300)
    gate, begun, closed = threading.Event(), threading.Event(), threading.Event()
    here.on('do', lambda data, end: (begun.set(), gate.wait(3 * SECONDS)))
    here.start().peers[0].emit('do')
    assert begun.wait(SECONDS)
    closer = threading.Thread(target=lambda: (here.mine.close(0.1), closed.set()))
    closer.start()
    try:
        assert closed.wait(SECONDS), 'close(0.1) waits for a handler that does not return'
    finally:
        gate.set()
        closer.join(SECONDS)
    tried('a handler that never returns, and close')


def test_a_handler_that_never_returns_does_not_hold_up_the_end_of_the_script(program: Programs, tried: Any) -> None:
    which = [(side, workers) for side in ('server', 'client') for workers in (0, 1, 4)]
    programs = [program('never_returns', side, workers) for side, workers in which]
    stuck = []
    for where, process in zip(which, programs):
        try:
            assert findings(process) == ['ends']
        except AssertionError as error:
            stuck.append(f'{where}: {error}')
    assert not stuck, stuck
    tried('a handler that never returns, and the end of the script', len(which))


# Handlers that emit, and by that call themselves


@each_number
@each_side
def test_handlers_that_call_each_other_for_ever_starve_nobody(
    scene: Callable[..., Scene], side: str, workers: int, tried: Any
) -> None:
    """A ball that is thrown back and forth, a thousand times; and one that becomes two each time."""
    here = scene(side, workers)
    count = [0, 0]

    def back(data: Any, end: Any) -> None:
        if data:
            end.emit('ball', data - 1)
        count[0] += 1

    def split(data: Any, end: Any) -> None:
        if data:
            end.emit('split', data - 1)
            end.emit('split', data - 1)
        count[1] += 1

    lock = threading.Lock()

    def locked(handler: Callable[..., Any]) -> Callable[..., Any]:
        def call(data: Any, end: Any) -> None:
            with lock:
                handler(data, end)

        return call

    here.on('ball', locked(back))
    here.on('split', locked(split))
    first, second = here.start(2).peers
    if side == 'server':
        first.on('ball', lambda data: locked(back)(data, first))
        first.on('split', lambda data: locked(split)(data, first))
    else:
        here.server.on('ball', lambda data, socket: locked(back)(data, socket))
        here.server.on('split', lambda data, socket: locked(split)(data, socket))
    first.emit('ball', 1000)
    first.emit('split', 9)
    for number in range(20):
        assert here.is_served(second, number)
    eventually(lambda: count == [1001, 2 ** 10 - 1])
    assert not here.errors
    tried('handlers that call each other by emitting', 1, sum(count))


@each_number
@each_side
def test_an_error_handler_may_cause_the_next_error(
    scene: Callable[..., Scene], side: str, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It emits, and the answer is another failure; and itself it raises each time, which nobody is told of but the log."""
    caplog.set_level(logging.CRITICAL + 1, 'nodeipc')
    here = scene(side, workers)
    rounds = 100

    def fail(data: Any, end: Any) -> None:
        raise LookupError(data)

    here.on('do', fail)
    failed = [0]

    def error(problem: BaseException, end: Any) -> None:
        failed[0] += 1
        end.emit('failed', problem.args[0])
        raise ValueError('in the handler of error')

    first, second = here.start(2).peers
    again = Log()
    if side == 'server':
        here.server.on('error', error)
        first.on('failed', lambda data: (again('failed', data), data and first.emit('do', data - 1)))
    else:
        here.clients[0].on('error', lambda problem: error(problem, here.clients[0]))
        here.server.on('failed', lambda data, socket: (again('failed', data), data and socket.emit('do', data - 1)))
    first.emit('do', rounds)
    assert here.is_served(second)
    eventually(lambda: len(again.of('failed')) == rounds + 1)
    assert here.is_served(first)
    assert failed == [rounds + 1]
    assert [problem.args[0] for problem in here.errors] == list(range(rounds, -1, -1))


@each_number
@each_side
def test_two_handlers_that_flood_each_other_are_told_and_nothing_accepted_is_lost(
    scene: Callable[..., Scene], side: str, workers: int, tried: Any
) -> None:
    """Neither reads while its handler emits, so both queues are full, and one of them has to give up."""
    here = scene(side, workers, max_pending_bytes=100_000, emit_timeout=100, stall_timeout=SECONDS * 1000)
    both = threading.Barrier(2)
    accepted: Dict[str, int] = {'mine': 0, 'theirs': 0}
    told: List[Any] = []
    done = Log()
    blocks: Dict[str, List[int]] = {'mine': [], 'theirs': []}

    def flood(who: str, end: Any) -> None:
        both.wait(SECONDS)
        try:
            for number in range(400):
                end.emit('block', [number, 'x' * 10_000])
                accepted[who] += 1
        except nodeipc.EmitTimeout as error:
            told.append(error)
        finally:
            done(who)

    here.on('flood', lambda data, end: flood('mine', end))
    here.on('block', lambda data, end: blocks['theirs'].append(data[0]))
    (peer,) = here.start().peers
    if side == 'server':
        peer.on('flood', lambda: flood('theirs', peer))
        peer.on('block', lambda data: blocks['mine'].append(data[0]))
        own = here.server.sockets[0]
    else:
        here.server.on('flood', lambda data, socket: flood('theirs', socket))
        here.server.on('block', lambda data, socket: blocks['mine'].append(data[0]))
        own = here.clients[0]
    own.emit('flood')
    peer.emit('flood')
    eventually(lambda: len(done.events) == 2)
    assert here.is_served(peer)
    assert told
    for who in ('mine', 'theirs'):
        eventually(lambda who=who: len(blocks[who]) >= accepted[who])
        assert blocks[who] == list(range(accepted[who]))
    assert here.server.stats()['connections_total'] == 1
    tried('two handlers that flood each other', 1, sum(accepted.values()))


@pytest.mark.parametrize('size', [10, 3_000_000], ids=['small', 'large'])
@each_side
def test_an_emit_that_runs_out_of_stack_is_done_or_undone_or_told(program: Programs, side: str, size: int) -> None:
    """From every depth near the recursion limit: the connection stands or is lost, and never neither."""
    for process in [program('recursion', side, workers, size) for workers in (0, 4)]:
        ((standing, undamaged, outcomes),) = findings(process)
        assert standing == 40
        assert undamaged
        assert outcomes == ['emitted', 'refused']


# Handlers that end what they run in


def _stop_server(here: Scene, end: Any) -> None:
    here.server.stop()


def _close_own_end(here: Scene, end: Any) -> None:
    end.close() if here.side == 'server' else end.disconnect()


def _close_other_end(here: Scene, end: Any) -> None:
    here.peers[0].close() if here.side == 'client' else here.peers[0].disconnect()


def _close_own_instance(here: Scene, end: Any) -> None:
    here.mine.close()


def _close_other_instance(here: Scene, end: Any) -> None:
    here.others.close()


@pytest.mark.parametrize(
    'act', [_stop_server, _close_own_end, _close_other_end, _close_own_instance, _close_other_instance],
    ids=lambda act: act.__name__[1:],
)  # fmt: skip
@each_number
@each_side
def test_a_handler_may_end_what_it_runs_in(
    scene: Callable[..., Scene], side: str, workers: int, act: Callable[[Scene, Any], None], tried: Any
) -> None:
    """What it emitted before that is delivered, it returns, and whatever is left can be closed."""
    here = scene(side, workers, stall_timeout=300)
    returned = threading.Event()

    def do(data: Any, end: Any) -> None:
        end.emit('last', data)
        act(here, end)
        returned.set()

    here.on('do', do)
    here.start(2).peers[0].emit('do', 5)
    assert returned.wait(SECONDS)
    if act not in (_close_other_end, _close_other_instance):  # what comes to them then is dropped
        here.peers_log.wait('last')
    for ipc in (here.mine, here.others):
        ipc.close(SECONDS)
        assert ipc.wait(SECONDS)
    assert not here.server.listening
    assert not os.path.exists(here.server.address)
    assert not [error for error in here.errors if not isinstance(error, OSError)]  # a client may have tried to come back
    tried('a handler that ends its connection, server or instance')


# Handlers that start something


@each_number
@each_side
def test_a_handler_may_have_an_instance_of_its_own(scene: Callable[..., Scene], side: str, workers: int, tried: Any) -> None:
    here = scene(side, workers)

    def do(data: Any, end: Any) -> None:
        with nodeipc.IPC(id='inner', workers=workers) as inner, inner.serve() as server:
            server.on('ask', lambda data, socket: socket.emit('answer', data + 1))
            answer = inner.connect_to('inner').request('ask', data, reply='answer', timeout=SECONDS)
        assert inner.wait(0)  # close() has waited, for this is not its own handler
        end.emit('done', answer)

    here.on('do', do)
    first, second = here.start(2).peers
    for number in range(3):
        assert first.request('do', number, reply='done', timeout=SECONDS) == number + 1
        assert here.is_served(second, number)
    assert not here.errors
    tried('a handler with an instance of its own', 3, 12)


@each_number
@each_side
def test_a_handler_may_run_a_program(scene: Callable[..., Scene], side: str, workers: int, tried: Any) -> None:
    """Which inherits none of our sockets, not even if all is to be inherited."""
    here = scene(side, workers)
    program = (
        'import os\n'
        'names = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []\n'
        'links = [os.readlink(f"/proc/self/fd/{name}") for name in names if os.path.lexists(f"/proc/self/fd/{name}")]\n'
        'print(sum(link.startswith("socket:") for link in links))'
    )

    def do(data: Any, end: Any) -> None:
        run = subprocess.run(
            [sys.executable, '-S', '-c', program], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
            close_fds=False, timeout=SECONDS,
        )  # fmt: skip
        end.emit('done', run.stdout)

    here.on('do', do)
    first, second = here.start(2).peers
    assert first.request('do', reply='done', timeout=SECONDS) == '0\n'
    assert here.is_served(second)
    assert not here.errors
    tried('a handler that runs a program', 1, 4)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_handler_may_fork(program: Programs, tried: Any) -> None:
    """In processes of their own, for the test's has threads."""
    for process in [program('forks', side, workers) for side in ('server', 'client') for workers in (0, 1, 4)]:
        ((statuses, answered, connections, is_there),) = findings(process)
        assert statuses == [0] * 6
        assert answered
        assert connections == 2
        assert is_there
        tried('a handler that forks', 6, 36)


# Consumers that do not keep up


@each_number
def test_a_handler_that_broadcasts_past_a_client_that_never_reads(make: Any, workers: int, tried: Any) -> None:
    """Whoever reads gets everything; the other is cut off after the stall timeout; others are answered after that."""
    world = Pair(make, 'unix', workers=workers, max_pending_bytes=200_000, stall_timeout=200)
    errors = Log()
    world.server.on('error', lambda error, socket: errors('error', error))
    world.server.on('do', lambda: [world.server.broadcast('block', [number, 'x' * 20_000]) for number in range(100)])
    world.server.on('ask', lambda data, socket: socket.emit('answer', data))
    world.start()
    got: List[int] = []
    with world.raw():
        eventually(lambda: len(world.server.sockets) == 1)
        reader = world.connect()
        reader.on('block', lambda data: got.append(data[0]))
        bystander = world.connect()
        assert bystander.wait_connected(SECONDS)
        eventually(lambda: len(world.server.sockets) == 3)
        reader.emit('do')
        eventually(lambda: len(got) >= 100)
        assert got == list(range(100))
        assert [error.code for (error,) in errors.wait('error')] == ['ERR_IPC_BACKPRESSURE']
        assert bystander.request('ask', 1, reply='answer', timeout=SECONDS) == 1
    tried('a broadcast past a client that never reads', 1, 200)


@each_number
def test_a_server_that_never_reads_costs_its_own_client_alone(make: Any, tmp_path: Any, workers: int, tried: Any) -> None:
    import socket

    server = make(id='world').serve()
    server.on('ask', lambda data, socket: socket.emit('answer', data))
    server.start()
    ipc = make(id='clients', workers=workers, max_pending_bytes=100_000, emit_timeout=100, stall_timeout=150)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / 'deaf'))
        deaf.listen(5)
        blocked = ipc.connect_to('deaf', str(tmp_path / 'deaf'))
        other = ipc.connect_to('world')
        with pytest.raises(nodeipc.EmitTimeout, match='takes no more'):
            for _ in range(500):
                blocked.emit('block', 'x' * 20_000)
        told: List[BaseException] = []

        def wait() -> None:
            try:
                blocked.emit('block', timeout=0.2)
            except nodeipc.EmitTimeout as error:
                told.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        for number in range(50):
            assert other.request('ask', number, reply='answer', timeout=SECONDS) == number
        waiter.join(SECONDS)
        assert len(told) == 1
        assert blocked.connected
        assert blocked.stats()['pending_bytes'] <= 100_000 + 20_100
        ipc.close(SECONDS)
    os.unlink(tmp_path / 'deaf')
    tried('a server that never reads', 1, 100)


def resident(process: Any) -> int:
    with open(f'/proc/{process.pid}/statm') as statm:
        return int(statm.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='this system does not tell how much memory a process has')
def test_a_producer_ten_times_faster_than_its_consumer(program: Programs, often: Any, tried: Any) -> None:
    """Of a client, a server's socket and a broadcast, at once and in processes of their own: memory is flat on both ends,
    and everything arrives once and in order."""
    seconds = often(3, 60)
    pairs = []
    for role, how in (('client', 'emit-of-a-client'), ('server', 'emit-of-a-server'), ('server', 'broadcast')):
        other = {'client': 'server', 'server': 'client'}[role]
        if role == 'client':
            consumer = program('consume', other, how, seconds)
            assert heard(consumer) == 'ready'
            producer = program('produce', role, how, seconds)
        else:
            producer = program('produce', role, how, seconds)
            consumer = program('consume', other, how, seconds)
            assert heard(consumer) == 'ready'
        pairs.append((how, producer, consumer))
    for _, producer, _ in pairs:
        assert heard(producer) == 'begins'
    # Buffers fill in the first moments, and then no more. A producer without back pressure would add megabytes in each.
    time.sleep(0.5)
    processes = [process for _, *both in pairs for process in both]
    first = [resident(process) for process in processes]
    most = list(first)
    end = time.monotonic() + seconds - 0.7
    while time.monotonic() < end:
        most = [max(before, resident(process)) for before, process in zip(most, processes)]
        time.sleep(0.05)
    for (how, producer, consumer), *grown in zip(
        pairs, *[[after - before for before, after in zip(first[end::2], most[end::2])] for end in (0, 1)]
    ):
        sent, ratio = heard(producer)
        came, wrong = heard(consumer)
        assert (came, wrong) == (sent, 0), how
        assert ratio >= 10, how
        assert max(grown) < 4 << 20, (how, grown)
        tried('a producer ten times faster than its consumer, seconds', seconds, sent)
    for process in processes:
        process.stdin.close()
        assert process.wait(SECONDS) == 0
