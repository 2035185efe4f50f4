"""What a connection promises while it stands, and before it does, through a proxy that passes the bytes as badly as it can.

What becomes of connections that are cut is in test_cuts.py.
"""

from __future__ import annotations

import errno
import json
import random
import struct
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from nodeipc import EmitTimeout, NotConnectedError, ProtocolError, RequestTimeout

from ..conftest import Log, eventually
from .ledger import KINDS, SECONDS, Ledger, Witness, Worlds, in_thread, make_worlds, measured
from .proxy import CUT, HALF_CLOSE, RESET, STOP, Link

KIB, MIB = 1 << 10, 1 << 20

# Cut anywhere by chunks of any size: characters of two, three and four bytes, escapes, the delimiter, halves of characters.
TEXTS: List[Any] = [
    '', 'x', 'ä', '\N{SNOWMAN}', '\N{GRINNING FACE}', '\ud83d', '\udc00\ud800', 'a\f"\\\n\0\u2028\x7f',
    'é\f\N{GRINNING FACE}' * 9, None, {}, [], 0, {'"\f\\': [True, -1.5e300, {'\N{GRINNING FACE}': '\ud83d'}]},
]
LARGE: List[Any] = [
    *('x' * (64 * KIB + difference) for difference in (-60, -40, -30, -1, 0, 1)), '\N{SNOWMAN}' * (22 * KIB), [1.5] * 20_000,
    'ä\N{SNOWMAN}\N{GRINNING FACE}"' * (100 * KIB),  # 1 MiB
]

worlds = pytest.fixture(make_worlds)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# How what arrives is chunked


def chunking(name: str, seed: int) -> Callable[[Link], None]:
    """Rules for a link, by name."""
    chance = random.Random(seed)

    def rule(link: Link) -> None:
        for way in (link.up, link.down):
            if name == 'byte by byte':
                way.piece = 1
            elif name == 'any sizes':
                way.piece = lambda: chance.choice((1, 2, 3, 7, 100, 1000, chance.randrange(1, 70_000)))
            else:
                way.piece, way.pause = (lambda: chance.choice((1, 5, 60))), 0.0005

    return rule


def emit_all(ledger: Ledger, emit: Callable[..., Any], bodies: List[Any]) -> None:
    for body in bodies:
        ledger.emit(emit, body)


@pytest.mark.parametrize('name', ['byte by byte', 'any sizes', 'slowly'])
def test_messages_arrive_whole_once_and_in_order_however_they_are_chunked(
    worlds: Worlds, kind: str, name: str, often: Any, tried: Any
) -> None:
    rounds = often(1, 20)
    for seed in range(rounds):
        world = worlds(kind, on_link=chunking(name, seed), id=f'world-{seed}')
        client, hears = world.pair()
        _, socket = world.greet(client, hears)
        bodies = TEXTS if name == 'slowly' else [*TEXTS * 5, *LARGE] if name == 'any sizes' else [*TEXTS * 3, 'x' * 8000]
        random.Random(seed).shuffle(bodies)
        sending = in_thread(emit_all, world.down, socket.emit, bodies)
        for body in bodies:
            world.up.emit(client.emit, body)
            client.emit('nothing')
        assert sending.get() is None
        world.greet(client, hears)
        arrived = world.heard.check_all() + hears.check_all()
        assert arrived == 2 * len(bodies)
        assert [data for data, _ in world.heard.of('nothing')] == [{}] * len(bodies)
        assert (len(world.heard.runs), len(hears.runs)) == (1, 1)
        assert not world.heard.errors() and not hears.errors()
        tried(f'passed {name}', 1, arrived)
        client.disconnect()
        world.close()


class Counted:
    """A parser that says how long a frame is before it comes, instead of how it ends."""

    def encode(self, type: str, data: Any) -> bytes:
        text = json.dumps([type, data]).encode()
        return struct.pack('!I', len(text)) + text

    def decoder(self) -> Any:
        return CountedDecoder()


class CountedDecoder:
    def __init__(self) -> None:
        self.rest = b''

    def feed(self, data: bytes) -> Iterator[Tuple[str, Any]]:
        if self.rest and not data:
            raise ValueError(f'the end came after {len(self.rest)} bytes of a frame')
        self.rest += data
        while len(self.rest) >= 4:
            size = 4 + struct.unpack('!I', self.rest[:4])[0]
            if len(self.rest) < size:
                break
            type, value = json.loads(self.rest[4:size].decode())
            self.rest = self.rest[size:]
            yield type, value


FRAMINGS: Dict[str, Dict[str, Any]] = {
    'guarded': {'parser': 'guarded'},
    'a delimiter of several bytes': {'delimiter': '\r\n\r'},
    "node-ipc 8's delimiter": {'delimiter': '\n'},
    'counted': {'parser': Counted()},
    'one at a time': {'sync': True},
    'without threads': {'workers': 0},
}


@pytest.mark.parametrize('framing', sorted(FRAMINGS))
@pytest.mark.parametrize('name', ['byte by byte', 'any sizes'])
def test_every_framing_stands_any_chunks(worlds: Worlds, framing: str, name: str, tried: Any) -> None:
    settings = FRAMINGS[framing]
    world = worlds('unix', on_link=chunking(name, 3), **settings)
    client, hears = world.pair(**settings)
    _, socket = world.greet(client, hears)
    world.server.on('n', lambda data, socket: socket.emit('answered'))  # which `sync` waits for
    bodies = TEXTS if name == 'byte by byte' else [*TEXTS, LARGE[0], LARGE[6]]
    for body in bodies:
        world.up.emit(client.emit, body)
        world.down.emit(socket.emit, body)
    world.greet(client, hears)
    arrived = world.heard.check_all() + hears.check_all()
    assert arrived == 2 * len(bodies)
    assert not world.heard.errors() and not hears.errors()
    tried(f'passed {name}, other framings', 1, arrived)


@pytest.mark.parametrize('name', ['byte by byte', 'any sizes'])
def test_raw_bytes_arrive_whatever_the_chunks(worlds: Worlds, kind: str, name: str, tried: Any) -> None:
    world = worlds(kind, on_link=chunking(name, 4), raw_buffer=True)
    log = Log()
    client = world.connect(log, raw_buffer=True)
    ((socket,),) = world.heard.wait('connect')
    sent = bytes(range(256)) * (40 if name == 'byte by byte' else 300)
    for position in range(0, len(sent), 5000):
        client.emit(sent[position:position + 5000])
        socket.emit(sent[position:position + 5000])
    for heard in (world.heard, log):
        eventually(lambda heard=heard: sum(len(arguments[0]) for arguments in heard.of('data')) >= len(sent))
        assert b''.join(arguments[0] for arguments in heard.of('data')) == sent
    tried(f'passed {name}, raw', 1, 2 * len(sent) // 5000)


# Goodbyes


@pytest.mark.parametrize('name', ['any sizes', 'slowly'])
@pytest.mark.parametrize('who', ['client', 'server'])
def test_a_goodbye_through_a_bad_line_loses_nothing(worlds: Worlds, kind: str, who: str, name: str, tried: Any) -> None:
    world = worlds(kind, on_link=chunking(name, 5))
    client, hears = world.pair(stop_retrying=True)
    _, socket = world.greet(client, hears)
    bodies = [*TEXTS, *([] if name == 'slowly' else LARGE)]
    for body in bodies:
        world.up.emit(client.emit, body)
        world.down.emit(socket.emit, body)
    if who == 'client':
        client.disconnect()  # which drops what it has not handled, but no part of that is a message
        world.heard.wait('socket.disconnected')
        arrived = world.heard.check_all()
        hears.check()
    else:
        world.server.stop()  # likewise
        hears.wait('destroy')
        arrived = hears.check_all()
        world.heard.check()
    assert arrived == len(bodies)
    assert not world.heard.errors() and not hears.errors()
    tried(f'goodbye of the {who} over a bad line', 1, arrived)


# Who stops reading


def fill(emit: Callable[..., Any], ledger: Any) -> int:
    """Emit until there is no room; return how many were accepted."""
    before = ledger.next
    with pytest.raises(EmitTimeout, match='takes no more'):
        while True:
            ledger.emit(emit, 'x' * 30_000, timeout=0.05)
    return int(ledger.next - before - 1)


@pytest.mark.parametrize('direction', ['up', 'down'])
def test_who_stops_reading_blocks_its_emitter_alone_and_misses_nothing(
    worlds: Worlds, kind: str, direction: str, tried: Any
) -> None:
    limits = {'max_pending_bytes': 100_000}
    world = worlds(kind, **limits)
    client, hears = world.pair(**limits)
    link, socket = world.greet(client, hears)
    other_log = Log()
    other = world.connect(other_log)
    way = getattr(link, direction)
    ledger, emitter, witness = (
        (world.up, client, world.heard) if direction == 'up' else (world.down, socket, hears)
    )
    way.end_after(random.Random(6).randrange(100_000), STOP)
    accepted = fill(emitter.emit, ledger)
    if direction == 'up':
        with pytest.raises(EmitTimeout, match="client 'world'.*were not written"):
            client.flush(0.05)
    world.greet(other, other_log)  # is served
    assert client.connected and socket.connected
    blocked = in_thread(ledger.emit, emitter.emit, 'last')
    assert not blocked.is_there
    way.stopped = False
    assert blocked.get() is None
    client.flush(SECONDS)
    witness.wait_last()
    assert witness.check_all() == accepted + 1
    assert (len(world.heard.of('connect')), len(hears.of('connect'))) == (2, 1)
    tried(f'nothing read {"by the server" if direction == "up" else "by a client"} for a while', 1, accepted + 1)


@pytest.mark.parametrize('direction', ['up', 'down'])
def test_who_reads_nothing_for_the_stall_timeout_is_cut_off_by_guarded(
    worlds: Worlds, kind: str, direction: str, tried: Any
) -> None:
    limits = {'max_pending_bytes': 100_000, 'stall_timeout': 100, 'parser': 'guarded'}
    world = worlds(kind, **limits)
    client, hears = world.pair(**limits)
    link, socket = world.greet(client, hears)
    ledger, emitter, witness, end = (
        (world.up, client, world.heard, hears) if direction == 'up' else (world.down, socket, hears, world.heard)
    )
    way = getattr(link, direction)
    way.end_after(random.Random(7).randrange(100_000), STOP)

    def emit() -> None:
        for _ in range(1000):
            ledger.emit(emitter.emit, 'x' * 30_000, timeout=SECONDS)
            if direction == 'up' and hears.of('disconnect'):
                return  # it went with the next connection

    outcome = in_thread(emit).get()
    if direction == 'up':
        assert outcome is None
    else:
        assert isinstance(outcome, NotConnectedError)
        assert "'n' was not sent" in str(outcome)
    ((error, *_),) = end.wait('error')[:1]
    assert isinstance(error, ProtocolError)
    assert error.code == 'ERR_IPC_BACKPRESSURE'
    assert 'took nothing for 0.1 s' in str(error)
    way.stopped = False  # or the proxy would not see the end
    eventually(lambda: len(world.heard.of('socket.disconnected')) == len(hears.of('disconnect')) == 1)
    later = ledger.next
    for _ in range(3):
        _, socket = world.greet(client, hears)
        ledger.emit(client.emit if direction == 'up' else socket.emit)
    world.greet(client, hears)
    witness.check(later)
    tried('nothing read until it is cut off', 1, 3)


def test_a_broadcast_cuts_off_who_reads_nothing_and_who_is_cut_off_returns(worlds: Worlds, kind: str, tried: Any) -> None:
    world = worlds(kind, max_pending_bytes=100_000, stall_timeout=400)
    pairs = [world.pair() for _ in range(3)]
    for client, hears in pairs:
        world.greet(client, hears)
    ways = {link.number: link.down for link in world.proxy.links}
    stuck = ways[1]
    stuck.end_after(1000, STOP)
    for _ in range(200):
        world.down.emit(world.server.broadcast, 'x' * 30_000)
        if world.heard.of('error'):
            break
    ((error, _),) = world.heard.wait('error')[:1]
    assert isinstance(error, ProtocolError) and error.code == 'ERR_IPC_BACKPRESSURE'
    stuck.stopped = False
    eventually(lambda: sum(len(hears.of('connect')) for _, hears in pairs) == 4)
    eventually(lambda: len(world.server.sockets) == 3)
    later = world.down.next
    world.down.emit(world.server.broadcast, 'later')
    for _, hears in pairs:
        hears.wait_number(later)
        hears.check(later)
    assert sorted(len(hears.runs) for _, hears in pairs) == [1, 1, 2]
    for _, hears in pairs:
        if len(hears.runs) == 1:
            assert hears.check_all() == later - 10_000 + 1
    tried('nothing read during a broadcast', 1, 3)


# Who is not let in


def test_a_refused_client_comes_back_until_it_is_let_in(worlds: Worlds, kind: str, tried: Any) -> None:
    world = worlds(kind)
    hears = Witness(world.down)
    with world.proxy.refusing():
        client = world.connect(hears)
        sending = in_thread(world.up.emit, client.emit, 'early', timeout=SECONDS)
        hears.wait('error', 5)
        with pytest.raises(EmitTimeout, match='nothing was sent; is the server running.*refused'):
            world.up.emit(client.emit, 'too early', timeout=0.01)
        with pytest.raises(EmitTimeout):
            client.request('hello', timeout=0.01)
    assert sending.get() is None
    world.greet(client, hears)
    assert world.heard.check_all() == 1
    assert all(isinstance(error, ConnectionRefusedError) and "client 'world'" in str(error) for error in hears.errors())
    assert len(hears.of('connect')) == 1 and not hears.of('disconnect')
    tried('connection refused', len(hears.errors()), 1)


@pytest.mark.parametrize('how', [CUT, RESET])
def test_a_client_that_is_accepted_and_dropped_comes_back_until_it_is_let_in(
    worlds: Worlds, kind: str, how: str, tried: Any
) -> None:
    world = worlds(kind)
    world.proxy.turns_away = how
    client, hears = world.pair()
    eventually(lambda: world.proxy.turned_away >= 10)
    world.proxy.turns_away = None
    eventually(lambda: world.proxy.links)
    _, socket = world.greet(client, hears)
    world.up.emit(client.emit)
    world.down.emit(socket.emit)
    world.greet(client, hears)
    world.heard.check_all()
    hears.check_all()
    assert len(world.heard.of('connect')) == 1
    assert len(hears.of('connect')) == len(hears.of('disconnect')) + 1
    if kind == 'tls':  # nobody has shaken hands: these were no connections
        assert len(hears.of('connect')) == 1
        assert all('cannot connect' in str(error) for error in hears.errors())
    tried(f'accepted and dropped ({how})', world.proxy.turned_away, 2)


def test_a_handshake_that_is_dropped_counts_as_a_failed_attempt(worlds: Worlds, tried: Any) -> None:
    for how in (CUT, RESET):
        world = worlds('tls', id=f'world-{how}')
        world.proxy.turns_away = how
        client, hears = world.pair(max_retries=3)
        with pytest.raises(NotConnectedError, match=r'destroyed, no retries left \(cannot connect'):
            world.up.emit(client.emit, timeout=SECONDS)
        hears.wait('destroy')
        assert world.proxy.turned_away == 4
        assert not hears.of('connect') and not hears.of('disconnect')
        tried(f'accepted and dropped ({how}) until no retries are left, tls', 4)


def test_with_stop_retrying_one_drop_is_the_end(worlds: Worlds, kind: str) -> None:
    world = worlds(kind)
    world.proxy.turns_away = CUT
    client, hears = world.pair(stop_retrying=True)
    hears.wait('destroy')
    assert world.proxy.turned_away == 1
    with pytest.raises(NotConnectedError, match='no retries left'):
        client.emit('n')


@pytest.mark.parametrize('how', [CUT, RESET, HALF_CLOSE, STOP])
def test_a_handshake_that_ends_anywhere_is_tried_again(worlds: Worlds, how: str, often: Any, tried: Any) -> None:
    times = often(6 if how == STOP else 30, 300)
    chance = random.Random(8)
    # Where it stops, who is done already would never hear of it; so that is in the other's first flight.
    sizes: List[int] = [400, 400] if how == STOP else []
    ended: List[Link] = []

    def end_it(link: Link) -> None:
        if sizes and len(ended) < times:
            ended.append(link)
            direction = chance.randrange(2)
            (link.up, link.down)[direction].end_after(chance.randrange(sizes[direction]), how)

    limit = {'connect_timeout': 80} if how == STOP else {}
    world = worlds('tls', on_link=end_it, **limit)
    client, hears = world.pair(**limit)
    if how != STOP:
        world.heard.wait('connect')
        hears.wait('connect')
        (link,) = world.proxy.links
        sizes.extend((measured(link.up), measured(link.down)))
        link.cut()
    eventually(lambda: len(ended) == times, 2 * SECONDS)
    _, socket = world.greet(client, hears)
    later = world.up.next
    world.up.emit(client.emit, 'later')
    world.down.emit(socket.emit, 'later')
    world.greet(client, hears)
    assert world.heard.check(later) == 1
    assert hears.check(world.down.next - 1) == 1
    # TLS 1.3: our client has done its part before the server knows that it has. It knows the end of such a connection, too.
    assert len(hears.of('connect')) == len(hears.of('disconnect')) + 1
    assert len(world.heard.of('connect')) == len(world.heard.of('socket.disconnected')) + 1
    for error in hears.errors() + world.heard.errors():
        assert isinstance(error, OSError), error
    if how == STOP:
        assert any(error.errno == errno.ETIMEDOUT and 'connect_timeout' in str(error) for error in hears.errors())
    assert how == STOP or world.proxy.accepted == times + 2
    tried(f'a TLS handshake ended anywhere ({how})', times, 2)


def test_who_is_accepted_and_hears_nothing_gives_up_in_time(worlds: Worlds, kind: str, tried: Any) -> None:
    world = worlds(kind)
    world.proxy.turns_away = STOP
    client, hears = world.pair(connect_timeout=80)
    if kind == 'tls':
        hears.wait('error', 2)
        assert all(error.errno == errno.ETIMEDOUT and 'connect_timeout' in str(error) for error in hears.errors())
        assert not hears.of('connect')
    else:
        with pytest.raises(RequestTimeout):
            client.request('hello', 0, timeout=0.05)
        assert client.connected
    world.proxy.turns_away = None
    world.proxy.cut_all()
    world.greet(client, hears)
    assert world.heard.check_all() == hears.check_all() == 0
    tried('accepted and nothing said', world.proxy.turned_away)
