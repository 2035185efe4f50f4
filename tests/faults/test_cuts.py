"""What becomes of a connection that is lost: wherever it is cut, reset or half-closed, both sides know of it, the client
returns, and nothing arrives twice, damaged or in part. All is through the proxy, and checked by the rules of ledger.py.
"""

from __future__ import annotations

import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

import nodeipc
from nodeipc import EmitTimeout, IPCError, NotConnectedError, ProtocolError

from ..conftest import Log, eventually
from ..interop.peers import Missing, NodePeer, Place, find_node
from .ledger import KINDS, SECONDS, Ledger, Witness, World, Worlds, in_thread, make_worlds, measured
from .proxy import CUT, HALF_CLOSE, RESET, STOP, Link, Proxy

HOWS = [CUT, RESET, HALF_CLOSE]
KIB = 1 << 10

worlds = pytest.fixture(make_worlds)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def losses(witness: Witness) -> int:
    """How many connections it knows to be lost."""
    return len(witness.of('disconnect')) + len(witness.of('socket.disconnected'))


def both_know(world: World, hears: Witness, count: int) -> None:
    """Wait until both ends know of so many lost connections, and of none that was not."""
    eventually(lambda: (losses(world.heard), losses(hears)) == (count, count), SECONDS)


# Everywhere


@pytest.mark.parametrize('direction', ['up', 'down'])
@pytest.mark.parametrize('how', [*HOWS, STOP])
def test_a_connection_may_end_after_any_byte_of_a_message(
    worlds: Worlds, kind: str, how: str, direction: str, often: Any, tried: Any
) -> None:
    world = worlds(kind)
    client, hears = world.pair()
    link, socket = world.greet(client, hears)
    ledger, witness = (world.up, world.heard) if direction == 'up' else (world.down, hears)

    def emit(body: str = 'é') -> int:
        ledger.emit(client.emit if direction == 'up' else socket.emit, body)
        return ledger.next - 1

    before = measured(getattr(link, direction))
    witness.wait_number(emit())
    size = measured(getattr(link, direction)) - before
    offsets = [*range(how == STOP, size, often(1 if how == CUT else 5, 1)), size - 1, size]
    for lost, offset in enumerate(offsets):
        way = getattr(link, direction)
        way.end_after(offset, how)
        errors = len(witness.of('error'))
        # What is emitted when the end comes is refused, or goes with the next connection.
        number = emit() if offset else 0
        if how == STOP:  # and goes on
            eventually(lambda: way.stopped)  # noqa: B023
            assert offset == size or not any(number in run for run in witness.runs)
            way.stopped = False
            witness.wait_number(number)
            continue
        both_know(world, hears, lost + 1)
        if how != RESET or offset < size:  # what is reset may be lost though it was sent
            assert any(number in run for run in witness.runs) == (offset == size), offset
        told = witness.errors()[errors:]
        if 0 < offset < size:
            assert told and all(isinstance(error, (ProtocolError, ConnectionError)) for error in told), (offset, told)
        elif how != RESET:
            assert not told, (offset, told)
        link, socket = world.greet(client, hears)  # the client has returned
        number = emit('later')
        witness.wait_number(number)
    arrived = witness.check()
    assert len(hears.of('connect')) == (1 if how == STOP else len(offsets) + 1)
    assert not hears.of('destroy')
    tried(f'{how} after each byte of a message', len(offsets), arrived)


SIZES = (1, 5, 100, 1000, 10_000, 64 * KIB - 40, 64 * KIB, 200 * KIB)


def test_a_connection_may_end_anywhere_while_much_is_under_way_both_ways(
    worlds: Worlds, kind: str, often: Any, tried: Any
) -> None:
    times = often(40, 600)
    chance = random.Random(kind)

    def end_it(link: Link) -> None:
        if link.number < times:
            way = chance.choice((link.up, link.down))
            way.end_after(chance.choice((chance.randrange(1000), chance.randrange(500_000))), chance.choice(HOWS))
            way.piece = chance.choice((None, lambda: chance.randrange(1, 50_000)))

    world = worlds(kind, on_link=end_it)
    client, hears = world.pair()
    over = threading.Event()

    def bodies(seed: int) -> Iterator[str]:
        chance = random.Random(seed)
        while not over.is_set():
            yield chance.choice(('x', '\N{SNOWMAN}', 'ä"')) * chance.choice(SIZES)

    def emit_up() -> None:
        for body in bodies(1):
            world.up.emit(client.emit, body, timeout=SECONDS)  # waits for the next connection

    def emit_down() -> None:
        for body in bodies(2):
            sockets = world.server.sockets
            try:
                world.down.emit(sockets[-1].emit if sockets else world.server.broadcast, body, timeout=SECONDS)
            except (NotConnectedError, TypeError):
                over.wait(0.001)

    emitters = [in_thread(emit_up), in_thread(emit_down)]
    eventually(lambda: world.proxy.accepted > times, 3 * SECONDS)
    over.set()
    assert [emitter.get() for emitter in emitters] == [None, None]
    _, socket = world.greet(client, hears)
    later = world.up.next, world.down.next
    for body in ('a', 'b'):
        world.up.emit(client.emit, body)
        world.down.emit(socket.emit, body)
    world.greet(client, hears)
    eventually(lambda: len(world.server.sockets) == 1)
    arrived = world.heard.check(later[0]) + hears.check(later[1])
    assert arrived > times
    # Both know the end of every connection but the last.
    assert losses(hears) == len(hears.of('connect')) - 1
    eventually(lambda: losses(world.heard) == len(world.heard.of('connect')) - 1)
    for error in hears.errors() + world.heard.errors():
        assert isinstance(error, (IPCError, OSError)), error
    tried('cut, reset or half-closed anywhere, under load both ways', times, arrived)


# Who waits


def test_who_waits_for_an_answer_is_told_and_asks_again(worlds: Worlds, kind: str, often: Any, tried: Any) -> None:
    world = worlds(kind)
    called: List[Any] = []
    entered, gate = threading.Event(), threading.Event()

    @world.server.method('work')
    def work(number: int) -> int:
        called.append(number)
        entered.set()
        gate.wait(SECONDS)
        return number

    world.server.on('ask', lambda data, socket: socket.emit('ask', work(data)))
    client, hears = world.pair()
    asks: Dict[str, Callable[[int], Any]] = {
        'request': lambda number: client.request('ask', number, timeout=SECONDS),
        'call': lambda number: client.call('work', number, timeout=SECONDS),
    }
    number = 0
    lost = 0
    for how in HOWS:
        for ask in asks.values():
            for place in ('request', 'before the answer', 'answer'):
                number += 1
                entered.clear()
                gate.clear()
                link, _ = world.greet(client, hears)
                if place == 'request':
                    link.up.end_after(20, how)
                asked = in_thread(ask, number)
                if place != 'request':
                    assert entered.wait(SECONDS)
                    link.down.end_after(0 if place == 'before the answer' else 15, how)
                    if place == 'answer':
                        gate.set()
                error = asked.get()
                assert isinstance(error, NotConnectedError), (how, place, error)
                assert "client 'world'" in str(error)
                gate.set()
                lost += 1
                both_know(world, hears, lost)
                assert called.count(number) == (0 if place == 'request' else 1)
                assert ask(number + 1000) == number + 1000  # its own answer, on the next connection
                tried(f'{how} in a request or its answer')
    assert len(called) == len(set(called))  # nothing was done twice


@pytest.mark.parametrize('how', HOWS)
def test_wait_for_and_events_tell_of_a_cut_and_go_on(worlds: Worlds, kind: str, how: str, tried: Any) -> None:
    world = worlds(kind)
    client, hears = world.pair()
    link, socket = world.greet(client, hears)
    events = client.events('n', timeout=SECONDS)
    for _ in range(3):
        world.down.emit(socket.emit, 'before')
    world.greet(client, hears)
    waiting = in_thread(client.wait_for, 'n', timeout=SECONDS)
    eventually(lambda: client._waiters_here.is_awaited)
    link.down.end_after(25, how)
    world.down.emit(socket.emit, 'cut')
    error = waiting.get()
    assert isinstance(error, NotConnectedError) and "client 'world'" in str(error)
    both_know(world, hears, 1)
    _, socket = world.greet(client, hears)
    assert [next(events).data[2] for _ in range(3)] == ['before'] * 3
    with pytest.raises(NotConnectedError):
        next(events)
    waiting = in_thread(client.wait_for, 'n', timeout=SECONDS)
    eventually(lambda: client._waiters_here.is_awaited)
    later = world.down.next
    world.down.emit(socket.emit, 'after')
    assert next(events).data[2] == waiting.get()[2] == 'after'
    hears.check(later)
    events.close()
    tried(f'{how} while wait_for and an iterator wait', 1, 4)


@pytest.mark.parametrize('how', HOWS)
def test_one_at_a_time_a_request_that_is_cut_is_reported_and_not_sent_again(
    worlds: Worlds, kind: str, how: str, tried: Any
) -> None:
    world = worlds(kind)
    client, hears = world.pair(sync=True)
    for lost, place in enumerate(('up', 'down'), 1):
        link, _ = world.greet(client, hears)
        errors = len(hears.of('error'))
        getattr(link, place).end_after(10, how)
        before = len(world.heard.of('hello'))
        client.emit('hello', 'cut')
        later = in_thread(client.emit, 'hello', 'later', timeout=SECONDS)
        assert later.get() is None
        eventually(lambda lost=lost: [data for (data,) in hears.of('hello')].count('later') == lost, SECONDS)
        both_know(world, hears, lost)
        assert any('is not sent again' in str(error) for error in hears.errors()[errors:])
        said = [data for data, _ in world.heard.of('hello')[before:]]
        assert said == (['later'] if place == 'up' else ['cut', 'later'])
    tried(f'{how} of one request at a time', 2, 2)


# What leaves together


@pytest.mark.parametrize('how', HOWS)
def test_of_a_batch_that_is_cut_the_first_ones_arrive(worlds: Worlds, kind: str, how: str, often: Any, tried: Any) -> None:
    world = worlds(kind)
    client, hears = world.pair()
    chance = random.Random(how)
    times = often(4, 50)
    for lost in range(times):
        link, _ = world.greet(client, hears)
        first = world.up.next
        size = len('{"type":"n","data":[10000,"12345678",""]}\f') + 500  # TLS: of several records
        cut_at = chance.randrange(1, 120 * size)
        link.up.end_after(cut_at, how)
        with client.batch():
            for _ in range(120):  # less than 64 KiB: the rest of more would leave with the next connection
                world.up.emit(client.emit, 'x' * 500)
        both_know(world, hears, lost + 1)
        came = sorted(number for run in world.heard.runs for number in run if number >= first)
        assert came == list(range(first, first + len(came)))
        if kind != 'tls':
            whole = cut_at // size
            assert len(came) == whole if how != RESET else len(came) <= whole
        else:
            assert len(came) <= cut_at // size
    world.greet(client, hears)
    tried(f'{how} inside a batch', times, world.heard.check())


@pytest.mark.parametrize('how', HOWS)
def test_a_broadcast_that_one_client_loses_reaches_the_others_and_that_one_returns(
    worlds: Worlds, kind: str, how: str, tried: Any
) -> None:
    world = worlds(kind)
    pairs = [world.pair() for _ in range(3)]
    for client, hears in pairs:
        world.greet(client, hears)
    next(link for link in world.proxy.links if link.number == 1).down.end_after(70_000, how)
    for _ in range(10):
        world.down.emit(world.server.broadcast, 'x' * 20_000)
    eventually(lambda: losses(world.heard) == sum(losses(hears) for _, hears in pairs) == 1)
    eventually(lambda: len(world.server.sockets) == 3)
    later = world.down.next
    world.down.emit(world.server.broadcast, 'later')
    for _, hears in pairs:
        hears.wait_number(later)
        hears.check(later)
    whole = [hears for _, hears in pairs if len(hears.runs) == 1]
    assert len(whole) == 2
    assert [hears.check_all() for hears in whole] == [11, 11]
    tried(f'{how} inside a broadcast', 1, 11 * 2 + 4)


# What is queued


def full(world: World, **settings: Any) -> Tuple[nodeipc.Client, Witness, Link, nodeipc.Socket]:
    """A pair whose proxy passes nothing any more in either direction."""
    client, hears = world.pair(max_pending_bytes=100_000, **settings)
    link, socket = world.greet(client, hears)
    link.up.stopped = link.down.stopped = True
    return client, hears, link, socket


@pytest.mark.parametrize('how', [CUT, RESET])
def test_emits_that_block_end_with_their_connection(worlds: Worlds, kind: str, how: str, tried: Any) -> None:
    world = worlds(kind, max_pending_bytes=100_000, emit_timeout=None)
    client, hears, _, socket = full(world, emit_timeout=None)

    def emit(ledger: Ledger, emit: Callable[..., Any]) -> None:
        for _ in range(1000):
            ledger.emit(emit, 'x' * 30_000)
            if losses(hears):
                break  # it went with the next connection

    up, down = in_thread(emit, world.up, client.emit), in_thread(emit, world.down, socket.emit)
    eventually(lambda: client.stats()['pending_bytes'] > 100_000 and socket.pending_bytes > 100_000)
    flushing = in_thread(client.flush)
    assert not (up.is_there or down.is_there or flushing.is_there)
    world.proxy.cut_all(reset=how == RESET)
    assert up.get() is None
    error = down.get()
    assert isinstance(error, NotConnectedError)
    assert "a client of server 'world'" in str(error) and "'n' was not sent" in str(error)
    error = flushing.get()
    assert isinstance(error, NotConnectedError) and 'bytes were not delivered' in str(error)
    client.flush(SECONDS)  # it was told of once
    both_know(world, hears, 1)
    for witness in (hears, world.heard):
        assert any(isinstance(error, NotConnectedError) and 'not delivered' in str(error) for error in witness.errors())
    last = world.up.next - 1
    world.greet(client, hears)
    arrived = world.heard.check(last) + hears.check()
    tried(f'{how} while emits and flush wait', 1, arrived)


def test_without_retries_an_emit_that_blocks_is_told_of_the_end(worlds: Worlds, kind: str, tried: Any) -> None:
    world = worlds(kind)
    client, hears, _, _ = full(world, stop_retrying=True, emit_timeout=None)

    def emit() -> None:
        for _ in range(1000):
            world.up.emit(client.emit, 'x' * 30_000)

    blocked = in_thread(emit)
    eventually(lambda: client.stats()['pending_bytes'] > 100_000)
    world.proxy.cut_all()
    error = blocked.get()
    assert isinstance(error, NotConnectedError) and 'no retries left' in str(error)
    hears.wait('destroy')
    eventually(lambda: losses(world.heard) == 1)
    world.heard.check()
    tried('cut for good while an emit waits')


# One direction ends


def test_a_client_whose_way_up_has_ended_gets_its_answers(worlds: Worlds, kind: str, tried: Any) -> None:
    world = worlds(kind)
    gate = threading.Event()

    @world.server.on('n')
    def answer(data: Any, socket: nodeipc.Socket) -> None:
        gate.wait(SECONDS)
        world.down.emit(socket.emit, data[2])

    other_log = Log()
    other = world.connect(other_log)
    world.greet(other, other_log)
    client, hears = world.pair()
    link, _ = world.greet(client, hears)
    for _ in range(20):
        world.up.emit(client.emit, 'x' * 2000)  # all of it is read at once
    eventually(lambda: measured(link.up) >= 20 * 2000)
    link.up.end_after(0, HALF_CLOSE)
    eventually(lambda: link.up.ended)
    for _ in range(2):
        world.greet(other, other_log)  # so the server has read the end
    gate.set()
    both_know(world, hears, 1)
    assert world.heard.check_all() == 20
    if kind == 'tls':
        # An end without a close_notify, which only somebody in between can make, breaks the connection (of OpenSSL 3, that
        # is). Emitters are told.
        assert hears.check() + len(world.down.refused) == 20
    else:
        assert hears.check_all() == 20
        assert not world.heard.errors() and not hears.errors()
    world.greet(client, hears)
    tried('half-closed by the client while it is answered', 1, 40)


def test_a_server_whose_way_down_has_ended_gets_what_was_emitted(worlds: Worlds, kind: str, tried: Any) -> None:
    world = worlds(kind)
    client, hears, link, _ = full(world)
    link.down.stopped = False
    with pytest.raises(EmitTimeout):
        while True:
            world.up.emit(client.emit, 'x' * 50_000, timeout=0)
    link.down.end_after(0, HALF_CLOSE)
    eventually(lambda: not client.connected)
    link.up.stopped = False
    both_know(world, hears, 1)
    flushed = in_thread(client.flush).get()
    if kind == 'tls' and flushed is not None:  # as above: what was not sent is told of
        assert isinstance(flushed, NotConnectedError) and 'bytes were not delivered' in str(flushed)
        arrived = world.heard.check()
    else:
        assert flushed is None
        arrived = world.heard.check_all()
        assert not world.heard.errors() and not hears.errors()
    assert arrived >= 2
    world.greet(client, hears)
    tried('half-closed by the server while much is queued', 1, arrived)


# A real node-ipc peer


@pytest.fixture(scope='module')
def node_peer() -> Iterator[NodePeer]:
    try:
        find_node('14.0.0')
    except Missing as reason:
        pytest.skip(str(reason))
    peer = NodePeer('14.0.0')
    yield peer
    peer.close()


@pytest.fixture
def node(node_peer: NodePeer) -> Iterator[NodePeer]:
    yield node_peer
    node_peer.reset()


@pytest.fixture
def place(transport: str, tmp_path: Path) -> Iterator[Place]:
    place = Place(transport, tmp_path)
    yield place
    place.close()


def bad_line(link: Link) -> None:
    """Few bytes at a time."""
    chance = random.Random(link.number)
    for way in (link.up, link.down):
        way.piece = lambda: chance.choice((1, 2, 3, 50))


BODIES: List[Any] = ['x', '\N{GRINNING FACE}ä\N{SNOWMAN}' * 20, 'a"\\\n\0\f\u2028', '\ud83d', {}, None, 'é' * 20_000]


@pytest.mark.parametrize('how', HOWS)
def test_a_node_server_behind_a_bad_line(
    make: Any, node: NodePeer, place: Place, tmp_path: Path, how: str, tried: Any
) -> None:
    node.do('echo')
    node.serve(place)
    path = str(tmp_path / 'proxy') if place.transport == 'unix' else None
    ledger = Ledger()
    hears = Witness(ledger, 'message')
    with Proxy(place.address, path, bad_line) as proxy:
        ipc = make(retry=1)
        if path:
            client = ipc.connect_to('world', path, lambda client: client.on('*', hears))
        else:
            client = ipc.connect_to_net('world', *proxy.address, lambda client: client.on('*', hears))
        hears.wait('connect')
        for lost, cut in enumerate(('up', 'down', None)):
            for body in BODIES:
                ledger.emit(client.emit, body, type='message')
            hears.wait_last()  # it echoes
            if cut is not None:
                getattr(proxy.links[-1], cut).end_after(30, how)
                ledger.emit(client.emit, 'cut', type='message')
                hears.wait('connect', lost + 2)
                node.wait('socket.disconnected', lost + 1)
        arrived = hears.check(ledger.next - len(BODIES))
        assert arrived == 3 * len(BODIES)
        client.disconnect()
    assert how == RESET or node.wait('error', 0) == []
    tried(f'a node-ipc 14 server, {how}', 2, arrived)


@pytest.mark.parametrize('how', HOWS)
def test_a_node_client_behind_a_bad_line(
    make: Any, node: NodePeer, transport: str, tmp_path: Path, how: str, tried: Any
) -> None:
    ipc = make()
    server = ipc.serve(str(tmp_path / 'server')) if transport == 'unix' else ipc.serve_net('127.0.0.1', 0)
    up = Ledger()
    heard = Witness(up, 'message')
    server.on('*', heard)
    server.on('message', lambda data, socket: socket.emit('answer', data[0]))
    server.start()
    path = str(tmp_path / 'proxy') if transport == 'unix' else None
    with Proxy(server.address, path, bad_line) as proxy:
        place = SimpleNamespace(transport=transport, path=path)
        if path is None:
            place.host, place.port = proxy.address
        node.connect(place)
        for lost, cut in enumerate(('up', 'down', None)):
            node.wait('connect', lost + 1)
            for body in BODIES:
                node.emit('message', up.message(body))
            heard.wait_last()
            node.wait('answer', (lost + 1) * len(BODIES))
            if cut is not None:
                getattr(proxy.links[-1], cut).end_after(10, how)
                node.emit('message', up.message('cut'))
                heard.wait('socket.disconnected', lost + 1)
        assert heard.check(up.next - len(BODIES)) >= 3 * len(BODIES)
        answered = node.wait('answer', 3 * len(BODIES))
        assert answered == sorted(set(answered))
        node.do('disconnect', id='world')
        heard.wait('socket.disconnected', 3)
    tried(f'a node-ipc 14 client, {how}', 2, 3 * len(BODIES))
