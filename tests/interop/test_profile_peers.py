"""The profiles `guarded` and `assured` between nodeipc and node-ipc 14, which has them, too: they agree rule by rule.

Where they differ: ``stop`` is reserved here besides, for our servers publish it. What is not UTF-8, or a number of thousands
of digits, is no JSON here, while node-ipc replaces or rounds it. A Node client that was wronged never returns, a Python one
retries. And node-ipc's time for a message goes on when one ends and the next begins in the same chunk, ours begins anew.
"""

from __future__ import annotations

import json
import logging
import socket as socket_module
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import pytest

import nodeipc

from ..certificates import Certificates
from ..conftest import Log
from .peers import BARELY_ALLOWED, SECONDS, NodePeer, Place, digest, echo, messages

Make = Callable[..., nodeipc.IPC]

pytestmark = pytest.mark.parametrize('version', ['14.0.0'], indirect=True)

ALLOWED = ['message', 'end', 'question', 'answer', 'large', 'ä\N{SNOWMAN}']


class Meeting:
    """A place, and what both ends have to be told to meet there in whatever profile."""

    def __init__(self, kind: str, directory: Path, certificates: Callable[[], Certificates]) -> None:
        self.place = Place('unix' if kind == 'unix' else 'tcp', directory)
        # assured: a Unix socket lies right in the socket root, which is its owner's only.
        self.settings: Dict[str, Any] = {'socket_root': f'{directory}/'}
        self._certificates = certificates() if kind == 'tls' else None

    def of(self, role: str, profile: str, **settings: Any) -> Dict[str, Any]:
        """The settings of a server or client, for Python as for Node."""
        settings = {'parser': profile, **self.settings, **settings}
        if profile == 'assured':
            settings.setdefault('allowed_events', ALLOWED)
        if self._certificates is not None:
            settings['tls'] = self._certificates.mutual(role)
        return settings


Meet = Callable[[str], Meeting]


@pytest.fixture
def meet(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Meet]:
    """Arrange a `Meeting` over ``'unix'``, ``'tcp'`` or ``'tls'``, which is mutual."""
    meetings: List[Meeting] = []

    def arrange(kind: str) -> Meeting:
        meetings.append(Meeting(kind, tmp_path, lambda: request.getfixturevalue('certificates')))
        return meetings[-1]

    yield arrange
    for meeting in meetings:
        meeting.place.close()


def python_server(make: Make, meeting: Meeting, profile: Any, **settings: Any) -> Tuple[nodeipc.Server, Log]:
    """A running server and the log of its events."""
    server = meeting.place.serve(make(**meeting.of('server', profile, **settings)))
    log = Log()
    server.on('*', log)
    server.start()
    return server, log


def python_client(make: Make, meeting: Meeting, profile: Any, **settings: Any) -> Tuple[nodeipc.Client, Log]:
    """A connected client and the log of its events."""
    log = Log()
    ipc = make(**meeting.of('client', profile, **settings))
    client = meeting.place.connect(ipc, lambda client: client.on('*', log))
    log.wait('connect', timeout=SECONDS)
    return client, log


def node_server(node: NodePeer, meeting: Meeting, profile: str, **settings: Any) -> None:
    node.configure(**meeting.of('server', profile, **settings))
    node.serve(meeting.place)


def node_client(node: NodePeer, meeting: Meeting, profile: str, id: str = 'world', **settings: Any) -> None:
    node.configure(**meeting.of('client', profile, **settings))
    node.connect(meeting.place, id)
    node.wait('connect', of=id)


# What is allowed goes through

PROFILES = ['fast', 'guarded', 'assured']

MEETINGS = [
    (kind, python, peer)
    for kind in ('unix', 'tcp', 'tls')
    for python in PROFILES
    for peer in PROFILES
    if (python, peer) != ('fast', 'fast') and not (kind == 'tcp' and 'assured' in (python, peer))
]

in_each_combination = pytest.mark.parametrize(('kind', 'python', 'peer'), MEETINGS)

# Characters of 1 to 4 bytes, and some that JSON writes in other ways or that JavaScript once did not like.
TEXT = '\N{SNOWMAN}\N{GRINNING FACE}ä\f\n\u2028 ' * 100


@in_each_combination
def test_events_go_both_ways_between_a_python_server_and_a_node_client(
    make: Make, meet: Meet, node: NodePeer, kind: str, python: str, peer: str
) -> None:
    meeting = meet(kind)
    server, log = python_server(make, meeting, python)
    server.on('question', lambda data, socket: socket.emit('answer', data))
    node_client(node, meeting, peer)
    node.emit('question', TEXT)
    assert node.wait('answer') == [TEXT]
    server.broadcast('message', {'news': [None]})
    assert node.wait('message') == [{'news': [None]}]
    assert not (log.of('error') or node.wait('error', 0))


@in_each_combination
def test_events_go_both_ways_between_a_node_server_and_a_python_client(
    make: Make, meet: Meet, node: NodePeer, kind: str, python: str, peer: str
) -> None:
    meeting = meet(kind)
    node.do('echo')
    node_server(node, meeting, peer)
    client, log = python_client(make, meeting, python)
    client.emit('question', TEXT)
    assert log.wait('question', timeout=SECONDS) == [(TEXT,)]
    node.do('broadcast', type='message', data={'news': [None]})
    assert log.wait('message', timeout=SECONDS) == [({'news': [None]},)]
    assert not (log.of('error') or node.wait('error', 0))


# What breaks a rule


class Breach(NamedTuple):
    """Bytes that a peer must not send, in these profiles, and how they are refused."""

    name: str
    frame: bytes
    code: str
    profiles: Tuple[str, ...] = ('guarded', 'assured')

    @property
    def event(self) -> Optional[Tuple[Any, Any]]:
        """The type and data that `fast` makes the frame of; None if it never would."""
        try:
            type, data = (json.loads(self.frame[:-1].decode())[name] for name in ('type', 'data'))
            return (type, data) if frame(type, data) == self.frame else None
        except (KeyError, TypeError, ValueError):
            return None


MAX_MESSAGE_SIZE = 1000

# All that there is in node-ipc. Ours has 'stop' besides.
RESERVED = ['start', 'connect', 'disconnect', 'destroy', 'close', 'socket.disconnected', 'error', 'data']

UNSAFE = [
    '__defineGetter__', '__defineSetter__', '__lookupGetter__', '__lookupSetter__', '__proto__', 'constructor',
    'hasOwnProperty', 'isPrototypeOf', 'propertyIsEnumerable', 'toLocaleString', 'toString', 'valueOf',
]


def frame(type: Any, data: Any = 1) -> bytes:
    """A frame as both write it."""
    return json.dumps({'type': type, 'data': data}, ensure_ascii=False, separators=(',', ':')).encode() + b'\f'


def of_size(type: str, size: int, character: str = 'x') -> str:
    """Data with which the message has so many bytes; some `x` make up what `character` does not divide."""
    room = size - (len(frame(type, '')) - 1)
    count, rest = divmod(room, len(character.encode()))
    return character * count + 'x' * rest


BREACHES = [
    Breach('not JSON', b'{]\f', 'ERR_IPC_INVALID_JSON'),
    Breach('nothing', b'\f', 'ERR_IPC_INVALID_JSON'),
    Breach('NaN', b'{"type":"message", "data":NaN}\f', 'ERR_IPC_INVALID_JSON'),
    Breach('two values', b'{"type":"message"} {}\f', 'ERR_IPC_INVALID_JSON'),
    Breach('a byte order mark', b'\xef\xbb\xbf{"type":"message"}\f', 'ERR_IPC_INVALID_JSON'),
    Breach('a list', b'["message",1]\f', 'ERR_IPC_INVALID_MESSAGE'),
    Breach('a string', b'"message"\f', 'ERR_IPC_INVALID_MESSAGE'),
    Breach('a number', b'5\f', 'ERR_IPC_INVALID_MESSAGE'),
    Breach('null', b'null\f', 'ERR_IPC_INVALID_MESSAGE'),
    Breach('no type', b'{"data":1}\f', 'ERR_IPC_INVALID_EVENT'),
    Breach('an empty type', frame(''), 'ERR_IPC_INVALID_EVENT'),
    Breach('a number as type', frame(5), 'ERR_IPC_INVALID_EVENT'),
    Breach('null as type', frame(None), 'ERR_IPC_INVALID_EVENT'),
    Breach('a list as type', frame(['message']), 'ERR_IPC_INVALID_EVENT'),
    Breach('the last of two types', b'{"type":"message","type":"valueOf"}\f', 'ERR_IPC_INVALID_EVENT'),
    *(Breach(name, frame(name), 'ERR_IPC_INVALID_EVENT') for name in UNSAFE),
    *(Breach(name, frame(name), 'ERR_IPC_RESERVED_EVENT') for name in RESERVED),
    Breach('257 characters', frame('x' * 257), 'ERR_IPC_EVENT_TOO_LARGE'),
    Breach('257 wide characters', frame('\N{SNOWMAN}' * 257), 'ERR_IPC_EVENT_TOO_LARGE'),
    Breach('128 characters that count twice, and one', frame('\N{GRINNING FACE}' * 128 + 'x'), 'ERR_IPC_EVENT_TOO_LARGE'),
    Breach('129 characters that count twice', frame('\N{GRINNING FACE}' * 129), 'ERR_IPC_EVENT_TOO_LARGE'),
    Breach('a byte too many', frame('message', of_size('message', 1001)), 'ERR_IPC_FRAME_TOO_LARGE'),
    Breach('a wide byte too many', frame('message', of_size('message', 1001, '\N{SNOWMAN}')), 'ERR_IPC_FRAME_TOO_LARGE'),
    Breach(
        'bytes too many in characters that count twice',
        frame('message', of_size('message', 1004, '\N{GRINNING FACE}')),
        'ERR_IPC_FRAME_TOO_LARGE',
    ),
    Breach('no end, and too long', b'{' * 1001, 'ERR_IPC_FRAME_TOO_LARGE'),
    Breach('too long and not JSON', b'{' * 1001 + b'\f', 'ERR_IPC_FRAME_TOO_LARGE'),
    Breach('not allowed', frame('news'), 'ERR_IPC_EVENT_NOT_ALLOWED', ('assured',)),
    Breach('almost allowed', frame('message '), 'ERR_IPC_EVENT_NOT_ALLOWED', ('assured',)),
    Breach('decomposed', frame('a\u0308\N{SNOWMAN}'), 'ERR_IPC_EVENT_NOT_ALLOWED', ('assured',)),
    Breach('get.events.listening', frame('get.events.listening', {}), 'ERR_IPC_EVENT_NOT_ALLOWED', ('assured',)),
]

CASES = [(profile, breach) for profile in ('guarded', 'assured') for breach in BREACHES if profile in breach.profiles]

each_breach = pytest.mark.parametrize(
    ('profile', 'breach'), CASES, ids=[f'{profile}-{breach.name}' for profile, breach in CASES]
)

# Names that no list can allow.
ALLOWED_IN_VAIN = [*ALLOWED, 'error', 'constructor', 'x' * 257]


class Verbatim:
    """A parser of an application that sends what it likes: ``emit(type, text)`` sends the bytes that `text` tells in hex."""

    def encode(self, type: str, data: Any) -> bytes:
        return bytes.fromhex(data)

    def decoder(self) -> Any:
        return self

    def feed(self, data: bytes) -> List[Tuple[str, Any]]:
        return [('bytes', data)] if data else []


def transport_for(profile: str, breach: Breach) -> str:
    """Each rule over one transport, and each transport with some."""
    kinds = ['unix', 'tls'] if profile == 'assured' else ['unix', 'tcp']
    return kinds[len(breach.name) % 2]


def limits(profile: str) -> Dict[str, Any]:
    return {
        'max_message_size': MAX_MESSAGE_SIZE, **({'allowed_events': ALLOWED_IN_VAIN} if profile == 'assured' else {})
    }


def assert_reported(log: Log, caplog: pytest.LogCaptureFixture, code: str) -> None:
    """Wait until Python has reported a breach once, as an event and in the log."""
    error = log.wait('error', timeout=SECONDS)[0][0]
    assert isinstance(error, nodeipc.ProtocolError)
    assert error.code == code
    assert code in str(error)
    records = [record for record in caplog.records if record.name == 'nodeipc' and record.levelno >= logging.WARNING]
    assert [record.levelname for record in records] == ['WARNING']
    assert code in records[0].getMessage()


@each_breach
def test_a_python_server_refuses_what_a_fast_node_client_sends(
    make: Make, meet: Meet, node: NodePeer, caplog: pytest.LogCaptureFixture, profile: str, breach: Breach
) -> None:
    meeting = meet(transport_for(profile, breach))
    _, log = python_server(make, meeting, profile, **limits(profile))
    node_client(node, meeting, 'fast', stop_retrying=True)
    node.emit('message', 'before')
    if breach.event is None:
        node.do('write', id='world', hex=breach.frame.hex())
    else:
        type, data = breach.event
        node.emit(type, data)
    node.emit('message', 'after')
    node.wait('destroy')
    assert_reported(log, caplog, breach.code)
    ((socket,),) = log.of('connect')
    assert log.of('error')[0][1] is socket
    assert log.wait('socket.disconnected', timeout=SECONDS) == [(socket, None)]
    assert [event[1] for event in log.events if event[0] not in ('start', 'connect', 'error', 'socket.disconnected')] == [
        'before'
    ]


@each_breach
def test_a_python_client_refuses_what_a_fast_node_server_sends(
    make: Make, meet: Meet, node: NodePeer, caplog: pytest.LogCaptureFixture, profile: str, breach: Breach
) -> None:
    meeting = meet(transport_for(profile, breach))
    node_server(node, meeting, 'fast')
    _, log = python_client(make, meeting, profile, stop_retrying=True, **limits(profile))
    node.wait('connect')
    node.do('broadcast', type='message', data='before')
    if breach.event is None:
        node.do('writeToAll', hex=breach.frame.hex())
    else:
        type, data = breach.event
        node.do('broadcast', type=type, data=data)
    node.do('broadcast', type='message', data='after')
    log.wait('destroy', timeout=SECONDS)
    assert_reported(log, caplog, breach.code)
    assert [event for event in log.events if event[0] not in ('connect', 'error', 'disconnect', 'destroy')] == [
        ('message', 'before')
    ]


@each_breach
def test_a_node_server_refuses_what_a_python_client_sends(
    make: Make, meet: Meet, node: NodePeer, profile: str, breach: Breach
) -> None:
    meeting = meet(transport_for(profile, breach))
    node_server(node, meeting, profile, **limits(profile))
    client, log = python_client(make, meeting, Verbatim, stop_retrying=True)
    client.emit('frame', (frame('message', 'before') + breach.frame).hex())
    assert node.wait('error code') == [breach.code]
    log.wait('destroy', timeout=SECONDS)
    assert node.wait('message') == ['before']


@each_breach
def test_a_node_client_refuses_what_a_python_server_sends(
    make: Make, meet: Meet, node: NodePeer, profile: str, breach: Breach
) -> None:
    meeting = meet(transport_for(profile, breach))
    server, log = python_server(make, meeting, Verbatim)
    node_client(node, meeting, profile, **limits(profile))
    log.wait('connect', timeout=SECONDS)
    server.broadcast('frame', (frame('message', 'before') + breach.frame).hex())
    assert node.wait('error code') == [breach.code]
    node.wait('destroy')
    assert node.wait('message') == ['before']


# Both refuse to send it, too

EMITTED = [
    (profile, breach) for profile, breach in CASES if breach.event is not None and isinstance(breach.event[0], str)
]


@pytest.mark.parametrize('profile', ['guarded', 'assured'])
def test_what_node_refuses_to_emit_python_refuses_with_the_same_code(
    make: Make, meet: Meet, node: NodePeer, profile: str
) -> None:
    meeting = meet('unix')
    breaches = [breach for at, breach in EMITTED if at == profile]
    server, server_log = python_server(make, meeting, profile, **limits(profile))
    client, client_log = python_client(make, meeting, profile, **limits(profile))
    ((socket,),) = server_log.wait('connect', timeout=SECONDS)
    node_client(node, meeting, profile, **limits(profile))
    server_log.wait('connect', 2, timeout=SECONDS)
    ways: List[Callable[..., Any]] = [client.emit, socket.emit, server.broadcast, lambda *event: server.emit(socket, *event)]
    for number, breach in enumerate(breaches):
        assert breach.event is not None
        for emit in ways:
            with pytest.raises(nodeipc.ProtocolError) as caught:
                emit(*breach.event)
            assert caught.value.code == breach.code, breach.name
        type, data = breach.event
        node.emit(type, data)
        assert node.wait('thrown', number + 1)[number] == breach.code, breach.name
    # And nothing of it has left.
    node.emit('end', 1)
    client.emit('end', 2)
    server_log.wait('end', 2, timeout=SECONDS)
    server.broadcast('end', 3)
    assert node.wait('end') == [3]
    assert client_log.wait('end', timeout=SECONDS) == [(3,)]
    for log in server_log, client_log:
        assert {event[0] for event in log.events} <= {'start', 'connect', 'end'}


# What is just within the rules


@pytest.mark.parametrize('profile', ['guarded', 'assured'])
def test_what_is_just_within_the_rules_goes_both_ways(
    make: Make, meet: Meet, node: NodePeer, profile: str
) -> None:
    meeting = meet('unix')
    allowed = {'allowed_events': [*ALLOWED, *BARELY_ALLOWED]} if profile == 'assured' else {}
    server, log = python_server(make, meeting, profile, **allowed)
    echo(server)
    node_client(node, meeting, profile, **allowed)
    for name in BARELY_ALLOWED:
        node.emit(name, 'x')
        assert node.wait(name) == ['x']
    assert messages(log.events) == [(name, '"x"') for name in BARELY_ALLOWED]
    assert not (log.of('error') or node.wait('error', 0) or node.wait('thrown', 0))


SIZES = [
    (size, character) for size in (MAX_MESSAGE_SIZE, None) for character in ('x', 'ä', '\N{SNOWMAN}', '\N{GRINNING FACE}')
]


@pytest.mark.parametrize('profile', ['guarded', 'assured'])
@pytest.mark.parametrize(('size', 'character'), SIZES)
def test_the_longest_messages_go_both_ways(
    make: Make, meet: Meet, node: NodePeer, profile: str, size: Optional[int], character: str
) -> None:
    meeting = meet('unix')
    settings = {} if size is None else {'max_message_size': size}
    longest = of_size('large', size or 1 << 20, character)
    server, log = python_server(make, meeting, profile, **settings)
    echo(server)
    node_client(node, meeting, profile, **settings)
    node.emit('large', longest)
    ((data, socket),) = log.wait('large', timeout=SECONDS)
    assert data == longest
    assert node.wait('large') == [digest(longest) if size is None else longest]
    for emit in socket.emit, server.broadcast:
        with pytest.raises(nodeipc.ProtocolError) as caught:
            emit('large', longest + 'x')
        assert caught.value.code == 'ERR_IPC_FRAME_TOO_LARGE'
    node.emit('large', longest + 'x')
    assert node.wait('thrown') == ['ERR_IPC_FRAME_TOO_LARGE']
    assert not (log.of('error') or node.wait('error', 0))


@pytest.mark.parametrize('profile', ['guarded', 'assured'])
def test_frames_that_neither_would_write_are_read_alike(
    make: Make, meet: Meet, node: NodePeer, profile: str
) -> None:
    frames = [
        b' \t\r\n{ "type" : "message" , "data" : 1 } \n',
        b'{"data":2,"type":"message","id":"x","__proto__":{"type":"error"},"constructor":null}',
        b'{"type":"error","type":"message","data":3}',
        b'{"type":"m\\u0065ssage","data":"\\ud83d\\ude00"}',
        b'{"type":"message","data":[-0.0,1e3,1E-2,{"":null}]}',
    ]
    expected = [1, 2, 3, '\N{GRINNING FACE}', [0, 1000, 0.01, {'': None}]]
    meeting = meet('unix')
    server, log = python_server(make, meeting, profile)
    with meeting.place.plain_socket() as sock:
        sock.connect(meeting.place.address)
        sock.sendall(b''.join(frame + b'\f' for frame in frames))
        assert [data for data, _ in log.wait('message', len(frames), timeout=SECONDS)] == expected
    server.stop(SECONDS)
    node_server(node, meeting, profile)
    with meeting.place.plain_socket() as sock:
        sock.connect(meeting.place.address)
        sock.sendall(b''.join(frame + b'\f' for frame in frames))
        assert node.wait('message', len(frames)) == expected


@pytest.mark.parametrize('data', [b'"\xff"', b'9' * 5000], ids=['not UTF-8', 'thousands of digits'])
def test_what_is_no_json_in_python_alone(make: Make, meet: Meet, node: NodePeer, data: bytes) -> None:
    meeting = meet('unix')
    server, log = python_server(make, meeting, Verbatim)
    _, client_log = python_client(make, meeting, 'guarded')
    node_client(node, meeting, 'guarded')
    log.wait('connect', 2, timeout=SECONDS)
    server.broadcast('frame', (b'{"type":"message","data":' + data + b'}\f').hex())
    assert node.wait('message') == ['\N{REPLACEMENT CHARACTER}' if data == b'"\xff"' else None]  # null: Infinity
    assert client_log.wait('error', timeout=SECONDS)[0][0].code == 'ERR_IPC_INVALID_JSON'
    client_log.wait('connect', 2, timeout=SECONDS)  # and it comes back


# Names that are reserved


def test_reserved_names_are_let_through_by_guarded_ends_that_allow_them(
    make: Make, meet: Meet, node: NodePeer
) -> None:
    meeting = meet('tcp')
    server, log = python_server(make, meeting, 'guarded', allow_reserved_events=True)
    client, client_log = python_client(make, meeting, 'guarded', allow_reserved_events=True)
    node_client(node, meeting, 'guarded', allow_reserved_events=True)
    log.wait('connect', 2, timeout=SECONDS)
    before = len(log.events)
    for name in RESERVED:
        node.emit(name, name)
    node.emit('end', 1)
    log.wait('end', timeout=SECONDS)
    assert [event[:2] for event in log.events[before:-1]] == [(name, name) for name in RESERVED]
    for name in [*RESERVED, 'stop']:
        server.broadcast(name, name)
    server.broadcast('end', 1)
    node.wait('end')
    # Of both, its own `connect` came first.
    assert [report.event for report in node.reports if report.event != 'error code'] == ['connect', *RESERVED, 'stop', 'end']
    client_log.wait('end', timeout=SECONDS)
    assert [event[0] for event in client_log.events] == ['connect', *RESERVED, 'stop', 'end']
    assert client.connected


@pytest.mark.parametrize('name', RESERVED)
def test_reserved_names_are_not_let_through_by_assured_ends_whatever_they_allow(
    make: Make, meet: Meet, node: NodePeer, name: str
) -> None:
    meeting = meet('unix')
    settings = {'allow_reserved_events': True, 'allowed_events': [*ALLOWED, name]}
    _, log = python_server(make, meeting, 'assured', **settings)
    client, _ = python_client(make, meeting, 'assured', **settings)
    with pytest.raises(nodeipc.ProtocolError) as caught:
        client.emit(name, 1)
    assert caught.value.code == 'ERR_IPC_RESERVED_EVENT'
    node_client(node, meeting, 'assured', **settings)
    node.emit(name, 1)
    assert node.wait('thrown') == ['ERR_IPC_RESERVED_EVENT']
    node_client(node, meeting, 'fast', 'fast', stop_retrying=True)
    node.emit(name, 1, id='fast')
    assert log.wait('error', timeout=SECONDS)[0][0].code == 'ERR_IPC_RESERVED_EVENT'


@pytest.mark.parametrize('profile', ['guarded', 'assured'])
def test_stop_is_reserved_in_python_alone(
    make: Make, meet: Meet, node: NodePeer, profile: str
) -> None:
    meeting = meet('unix')
    allowed = {'allowed_events': [*ALLOWED, 'stop']} if profile == 'assured' else {}
    server, log = python_server(make, meeting, profile, **allowed)
    node_client(node, meeting, profile, stop_retrying=True, **allowed)
    ((socket,),) = log.wait('connect', timeout=SECONDS)
    with pytest.raises(nodeipc.ProtocolError) as caught:
        socket.emit('stop', 1)
    assert caught.value.code == 'ERR_IPC_RESERVED_EVENT'
    node.emit('stop', 1)
    assert log.wait('error', timeout=SECONDS)[0][0].code == 'ERR_IPC_RESERVED_EVENT'
    assert not log.of('stop')
    node.wait('destroy')
    server.stop(SECONDS)

    fast, log = python_server(make, meeting, 'fast')
    node_client(node, meeting, profile, 'second', stop_retrying=True, **allowed)
    log.wait('connect', timeout=SECONDS)
    fast.broadcast('stop', 1)
    assert node.wait('stop') == [1]


# Messages that take too long

SLOW = {'message_timeout': 100}


@pytest.mark.parametrize('profile', ['guarded', 'assured'])
def test_a_message_that_drips_is_cut_off_by_servers(
    make: Make, meet: Meet, node: NodePeer, caplog: pytest.LogCaptureFixture, profile: str
) -> None:
    meeting = meet('unix')
    server, log = python_server(make, meeting, profile, **SLOW)
    drip(meeting.place)
    assert_reported(log, caplog, 'ERR_IPC_MESSAGE_TIMEOUT')
    assert log.of('message')[0][0] == 'before'
    server.stop(SECONDS)

    node_server(node, meeting, profile, **SLOW)
    drip(meeting.place)
    assert node.wait('error code') == ['ERR_IPC_MESSAGE_TIMEOUT']
    assert node.wait('message') == ['before']


def drip(place: Place) -> None:
    """Connect and send a message that never ends, byte by byte, until it is cut off."""
    with place.plain_socket() as sock:
        sock.connect(place.address)
        sock.sendall(frame('message', 'before') + b'{"type":"message","data":"')
        sock.settimeout(0.02)
        for _ in range(int(SECONDS / 0.02)):
            try:
                sock.sendall(b'x')
                if not sock.recv(1):
                    return
            except socket_module.timeout:
                pass
            except OSError:
                return
    raise AssertionError('not cut off')


@pytest.mark.parametrize('profile', ['guarded', 'assured'])
def test_a_message_that_does_not_end_is_cut_off_by_clients(
    make: Make, meet: Meet, node: NodePeer, caplog: pytest.LogCaptureFixture, profile: str
) -> None:
    meeting = meet('tls' if profile == 'assured' else 'tcp')
    node_server(node, meeting, 'fast')
    _, log = python_client(make, meeting, profile, stop_retrying=True, **SLOW)
    node.wait('connect')
    node.do('writeToAll', hex=(frame('message', 'before') + b'{"type":').hex())
    log.wait('destroy', timeout=SECONDS)
    assert_reported(log, caplog, 'ERR_IPC_MESSAGE_TIMEOUT')
    assert log.of('message') == [('before',)]
    node.stop()

    server, log = python_server(make, meeting, Verbatim)
    node_client(node, meeting, profile, **SLOW)
    log.wait('connect', timeout=SECONDS)
    server.broadcast('frame', (frame('message', 'before') + b'{"type":').hex())
    assert node.wait('error code') == ['ERR_IPC_MESSAGE_TIMEOUT']
    assert node.wait('message') == ['before']


# Where `assured` may meet


def assert_node_throws(node: NodePeer, of: str, code: str) -> None:
    assert node.wait('thrown', of=of)[-1] == code


def test_assured_peers_find_each_other_by_id_in_a_common_root(make: Make, tmp_path: Path, node: NodePeer) -> None:
    root = {'socket_root': f'{tmp_path}/own/', 'parser': 'assured', 'allowed_events': ALLOWED}
    node.configure(id='node', **root)
    node.do('echo')
    node.do('serve')
    node.wait('start')
    assert (tmp_path / 'own').stat().st_mode & 0o777 == 0o700
    ipc = make(id='python', **root)
    server = ipc.serve()
    echo(server)
    server.start()
    node.do('connectTo', id='python')
    node.emit('message', 'from node', id='python')
    assert node.wait('message', of='python') == ['from node']
    log = Log()
    client = ipc.connect_to('node')
    client.on('*', log)
    client.emit('message', 'from python')
    assert log.wait('message', timeout=SECONDS) == [('from python',)]


@pytest.mark.parametrize('settings', [{'secure_socket_root': False}, {'socket_root': '/nowhere/'}], ids=str)
def test_assured_servers_do_not_leave_the_secure_root(
    make: Make, meet: Meet, node: NodePeer, settings: Dict[str, Any]
) -> None:
    meeting = meet('unix')
    settings = {**meeting.of('server', 'assured'), **settings}
    node.configure(**settings)
    node.serve(meeting.place, wait=False)
    assert_node_throws(node, 'server', 'ERR_IPC_ASSURED_TRANSPORT')
    with pytest.raises(nodeipc.ConfigError, match='ERR_IPC_ASSURED_TRANSPORT'):
        meeting.place.serve(make(**settings)).start()


def test_assured_ends_do_not_meet_over_tcp_without_tls(
    make: Make, meet: Meet, node: NodePeer
) -> None:
    meeting = meet('tcp')
    node.configure(**meeting.of('server', 'assured'))
    node.serve(meeting.place, wait=False)
    assert_node_throws(node, 'server', 'ERR_IPC_ASSURED_TRANSPORT')
    node.connect(meeting.place)
    assert_node_throws(node, 'world', 'ERR_IPC_ASSURED_TRANSPORT')
    ipc = make(**meeting.of('server', 'assured'))
    with pytest.raises(nodeipc.ConfigError, match='ERR_IPC_ASSURED_TRANSPORT'):
        meeting.place.serve(ipc).start()
    with pytest.raises(nodeipc.ConfigError, match='ERR_IPC_ASSURED_TRANSPORT'):
        meeting.place.connect(ipc)


@pytest.mark.parametrize('kind', ['tcp', 'tls'])
def test_assured_ends_do_not_meet_over_udp(
    make: Make, meet: Meet, node: NodePeer, kind: str
) -> None:
    settings = meet(kind).of('server', 'assured')
    node.configure(**settings)
    node.do('serveNet', host='127.0.0.1', port=1, udpType='udp4')
    assert_node_throws(node, 'server', 'ERR_IPC_ASSURED_TRANSPORT')
    with pytest.raises(nodeipc.ConfigError, match='ERR_IPC_ASSURED_TRANSPORT'):
        make(**settings).serve_net('127.0.0.1', 0, 'udp4').start()


def test_assured_ends_do_not_meet_over_tls_that_is_not_mutual(
    make: Make, meet: Meet, node: NodePeer, certificates: Certificates
) -> None:
    meeting = meet('tcp')
    for tls in (
        certificates.server(),
        certificates.mutual('server', reject_unauthorized=False),
        certificates.mutual('server', request_cert=False),
    ):
        settings = {**meeting.of('server', 'assured'), 'tls': tls}
        node.configure(**settings)
        node.serve(meeting.place, wait=False)
        assert_node_throws(node, 'server', 'ERR_IPC_ASSURED_TLS')
        with pytest.raises(nodeipc.ConfigError, match='ERR_IPC_ASSURED_TLS'):
            meeting.place.serve(make(**settings)).start()
    for number, tls in enumerate([
        certificates.client(),
        certificates.server('client'),
        certificates.mutual('client', reject_unauthorized=False),
    ]):
        settings = {**meeting.of('client', 'assured'), 'tls': tls}
        node.configure(**settings)
        node.connect(meeting.place, str(number))
        assert_node_throws(node, str(number), 'ERR_IPC_ASSURED_TLS')
        with pytest.raises(nodeipc.ConfigError, match='ERR_IPC_ASSURED_TLS'):
            meeting.place.connect(make(**settings))


def test_assured_ends_refuse_strangers_and_whoever_shows_nothing(
    make: Make, meet: Meet, node: NodePeer, certificates: Certificates
) -> None:
    meeting = meet('tls')
    server, log = python_server(make, meeting, 'assured')
    for number, tls in enumerate([certificates.client(), certificates.mutual('stranger')]):
        node.configure(**{**meeting.of('client', 'fast'), 'tls': tls, 'stop_retrying': True})
        node.connect(meeting.place, str(number))
        node.wait('destroy', of=str(number))
    assert log.wait('error', timeout=SECONDS)
    assert not log.of('connect')
    server.stop(SECONDS)

    node_server(node, meeting, 'assured')
    for tls in certificates.client(), certificates.mutual('stranger'):
        settings = {**meeting.of('client', 'fast'), 'tls': tls, 'stop_retrying': True}
        log = Log()
        meeting.place.connect(make(**settings), lambda client: client.on('*', log))  # noqa: B023
        log.wait('destroy', timeout=SECONDS)
    assert not node.wait('connect', 0, of='server')
