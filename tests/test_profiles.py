"""The profiles `fast`, `guarded` and `assured`: what each refuses on receipt and on emit, with node-ipc 14's codes."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from nodeipc import ConfigError, EmitTimeout, NotConnectedError, ProtocolError
from nodeipc.address import KNOWS_PEERS

from .certificates import Certificates
from .conftest import Log, eventually

MIB = 1 << 20
GOOD = b'{"type":"message","data":"good"}\f'

RESERVED = ['start', 'stop', 'connect', 'disconnect', 'destroy', 'close', 'socket.disconnected', 'error', 'data']
# Object.getOwnPropertyNames(Object.prototype)
UNSAFE = [
    '__defineGetter__', '__defineSetter__', '__lookupGetter__', '__lookupSetter__', '__proto__', 'constructor',
    'hasOwnProperty', 'isPrototypeOf', 'propertyIsEnumerable', 'toLocaleString', 'toString', 'valueOf',
]
TOO_LONG = ['x' * 257, '\U0001f600' * 128 + 'x', 'é' * 257]
LONGEST = ['x' * 256, '\U0001f600' * 128, 'é' * 256, '\ud800' * 256]

NAMES = [
    ('', 'ERR_IPC_INVALID_EVENT'),
    *((name, 'ERR_IPC_EVENT_TOO_LARGE') for name in TOO_LONG),
    *((name, 'ERR_IPC_INVALID_EVENT') for name in UNSAFE),
    *((name, 'ERR_IPC_RESERVED_EVENT') for name in RESERVED),
]

# What is allowed in `assured` here: names, too, that are never let through.
ALLOWED = ['message', 'answer', *LONGEST, *(name for name, _ in NAMES if name)]


def frame(type: Any, data: Any = 0) -> bytes:
    return json.dumps({'type': type, 'data': data}).encode() + b'\f'


def drain(sock: socket.socket) -> None:
    """Read to the end, however it comes, and close."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while sock.recv(65536):
            pass
    sock.close()


def read_frame(sock: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b'\f'):
        chunk = sock.recv(65536)
        assert chunk, f'the connection ended after {bytes(received[:100])!r}'
        received += chunk
    return bytes(received)


class End:
    """An endpoint of ours and the plain socket it talks to. `log` has its events."""

    def __init__(self, side: str, endpoint: Any, log: Log, raw: socket.socket, another: Callable[[], End]) -> None:
        self.side = side
        self.endpoint = endpoint
        self.log = log
        self.raw = raw
        #: Connects once more: for a server another peer, for a client another client of its instance.
        self.another = another
        self.gone = 'socket.disconnected' if side == 'server' else 'disconnect'
        if side == 'server':
            self.socket = log.wait('connect', endpoint.stats()['connections_total'])[-1][0]
        else:
            log.wait('connect')

    @property
    def connection(self) -> Any:
        return self.socket._connection if self.side == 'server' else self.endpoint._socket

    @property
    def messages(self) -> List[Any]:
        return [event[0] for event in self.log.of('message')]

    @property
    def errors(self) -> List[Any]:
        return [event[0] for event in self.log.of('error')]

    def error(self) -> Any:
        self.log.wait('error')
        self.log.wait(self.gone)
        (error,) = self.errors
        return error

    def ways(self) -> List[Callable[..., Any]]:
        """Every way to emit to the other end."""
        if self.side == 'client':
            return [self.endpoint.emit]
        server, socket = self.endpoint, self.socket
        return [socket.emit, server.broadcast, lambda *arguments: server.emit(socket, *arguments)]

    def is_served(self) -> bool:
        before = len(self.messages)
        self.raw.sendall(GOOD)
        self.log.wait('message', before + 1)
        self.ways()[0]('answer', 1)
        return read_frame(self.raw) == b'{"type":"answer","data":1}\f'

    def timers(self) -> List[Any]:
        """Those that are running on the reactor."""
        engine = self.endpoint._engine
        return [timer for _, _, timer in list(engine.reactor._timers) if timer.callback is not None]


@pytest.fixture
def face(make: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., End]]:
    """Make an end, named by its side, transport and profile: 'server unix guarded'."""
    with contextlib.ExitStack() as cleanup:

        def make_end(kind: str, **settings: Any) -> End:
            side, transport, settings['parser'] = kind.split()
            if settings['parser'] == 'assured':
                settings.setdefault('allowed_events', ALLOWED)
            peers_context: Optional[ssl.SSLContext] = None
            if transport == 'tls':
                certificates: Certificates = request.getfixturevalue('certificates')
                mine, theirs = ('server', 'client') if side == 'server' else ('client', 'server')
                settings.setdefault('tls', certificates.mutual(mine))
                peers_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if side == 'server' else ssl.PROTOCOL_TLS_SERVER)
                peers_context.load_cert_chain(certificates.pem(theirs), certificates.key(theirs))
                peers_context.load_verify_locations(certificates.pem('ca'))
                peers_context.verify_mode = ssl.CERT_REQUIRED
            ipc = make(retry=60_000, **settings)
            return (serve if side == 'server' else connect)(ipc, transport, peers_context)

        def wrapped(sock: socket.socket, context: Optional[ssl.SSLContext], server_side: bool) -> socket.socket:
            sock.settimeout(20)
            if context is not None:
                name = None if server_side else 'localhost'
                sock = context.wrap_socket(sock, server_side=server_side, server_hostname=name)
            return cleanup.enter_context(sock)

        def serve(ipc: Any, transport: str, context: Optional[ssl.SSLContext]) -> End:
            server = ipc.serve() if transport == 'unix' else ipc.serve_net('127.0.0.1', 0)
            log = Log()
            server.on('*', log)
            server.start()

            def another() -> End:
                sock = socket.socket(socket.AF_UNIX if transport == 'unix' else socket.AF_INET)
                before = server.stats()['connections_total']
                sock.connect(server.address)
                raw = wrapped(sock, context, server_side=False)
                eventually(lambda: server.stats()['connections_total'] > before)
                return End('server', server, log, raw, another)

            return another()

        def connect(ipc: Any, transport: str, context: Optional[ssl.SSLContext]) -> End:
            listener = cleanup.enter_context(socket.socket(socket.AF_UNIX if transport == 'unix' else socket.AF_INET))
            listener.settimeout(20)
            if transport == 'unix':
                root = Path(ipc.config.socket_root)
                root.mkdir(mode=0o700, exist_ok=True)
                address: Any = str(root / 'app.peer')
                listener.bind(address)
                cleanup.callback(os.unlink, address)
            else:
                listener.bind(('127.0.0.1', 0))
                address = listener.getsockname()
            listener.listen()
            ids = itertools.count()

            def another() -> End:
                log = Log()
                where = (address,) if transport == 'unix' else address
                method = ipc.connect_to if transport == 'unix' else ipc.connect_to_net
                client = method(f'peer{next(ids)}', *where, lambda client: client.on('*', log))
                raw = wrapped(listener.accept()[0], context, server_side=True)
                return End('client', client, log, raw, another)

            return another()

        yield make_end


ENDS = [
    'server unix guarded', 'client unix guarded', 'server tcp guarded', 'client tcp guarded',
    'server tls assured', 'client tls assured', 'server unix assured', 'client unix assured',
]


@pytest.fixture(params=ENDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=['server', 'client'])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lines() -> Iterator[List[str]]:
    """What is logged, as warnings and above."""
    messages: List[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector = Collector(logging.WARNING)
    logging.getLogger('nodeipc').addHandler(collector)
    yield messages
    logging.getLogger('nodeipc').removeHandler(collector)


# On receipt


BAD = {
    'not JSON': (b'nonsense\f', 'ERR_IPC_INVALID_JSON'),
    'empty': (b'\f', 'ERR_IPC_INVALID_JSON'),
    'NaN': (b'{"type":"message","data":NaN}\f', 'ERR_IPC_INVALID_JSON'),
    'not UTF-8': (b'{"type":"message","data":"\xff"}\f', 'ERR_IPC_INVALID_JSON'),
    'array': (b'["message",1]\f', 'ERR_IPC_INVALID_MESSAGE'),
    'null': (b'null\f', 'ERR_IPC_INVALID_MESSAGE'),
    'no type': (b'{"data":1}\f', 'ERR_IPC_INVALID_EVENT'),
    'type a number': (frame(5), 'ERR_IPC_INVALID_EVENT'),
    'empty type': (frame(''), 'ERR_IPC_INVALID_EVENT'),
    'unsafe': (frame('__proto__'), 'ERR_IPC_INVALID_EVENT'),
    'escaped': (b'{"type":"\\u005f_proto__"}\f', 'ERR_IPC_INVALID_EVENT'),
    'reserved': (frame('connect'), 'ERR_IPC_RESERVED_EVENT'),
    'twice': (b'{"type":"message","type":"error"}\f', 'ERR_IPC_RESERVED_EVENT'),
    'long name': (frame('x' * 257), 'ERR_IPC_EVENT_TOO_LARGE'),
    'long message': (frame('message', 'x' * 1000), 'ERR_IPC_FRAME_TOO_LARGE'),
    'long without end': (frame('message', 'x' * 2000)[:1500], 'ERR_IPC_FRAME_TOO_LARGE'),
}


@pytest.mark.parametrize('bad', list(BAD))
def test_what_breaks_a_rule_ends_its_connection_alone(face: Any, kind: str, bad: str, lines: List[str]) -> None:
    sent, code = BAD[bad]
    end = face(kind, max_message_size=1000)
    bystander = end.another()
    end.raw.sendall(GOOD + GOOD + sent + (b'' if 'without' in bad else GOOD))
    drain(end.raw)
    error = end.error()
    assert isinstance(error, ProtocolError)
    assert error.code == code
    assert ('a client of server' if end.side == 'server' else 'client ') in str(error)
    assert end.messages == ['good', 'good']  # what came before is delivered, and nothing that came after
    (line,) = lines
    assert line == str(error)
    assert f'[{code}]' in line
    assert bystander.is_served()


def test_every_name_that_is_refused(face: Any, side: str) -> None:
    end = face(f'{side} unix guarded')
    for count, (name, code) in enumerate(NAMES):
        peer = end.another()
        peer.raw.sendall(frame(name))
        drain(peer.raw)
        errors = peer.log.wait('error', count + 1 if side == 'server' else 1)
        assert errors[-1][0].code == code, name
    assert end.is_served()


@pytest.mark.parametrize('side', ['server', 'client'])
def test_names_up_to_the_limit_pass_and_are_counted_as_javascript_does(face: Any, side: str) -> None:
    end = face(f'{side} unix guarded')
    for name in LONGEST:
        end.raw.sendall(frame(name))
        end.log.wait(name)
        for emit in end.ways():
            emit(name, 1)
            assert json.loads(read_frame(end.raw)[:-1])['type'] == name
    assert not end.errors


def test_the_limit_of_names_can_be_set_and_lifted(face: Any, side: str) -> None:
    short = face(f'{side} tcp guarded', max_event_name_length=7)
    short.raw.sendall(frame('\U0001f600' * 3) + GOOD + frame('x' * 8))
    drain(short.raw)
    assert short.error().code == 'ERR_IPC_EVENT_TOO_LARGE'
    assert short.messages == ['good']
    endless = face(f'{side} tcp guarded', max_event_name_length=None)
    endless.raw.sendall(frame('x' * 100_000))
    endless.log.wait('x' * 100_000)
    endless.ways()[0]('x' * 100_000)
    assert len(read_frame(endless.raw)) > 100_000


@pytest.mark.parametrize('kind', ['server tls assured', 'client tls assured', 'server unix assured', 'client unix assured'])
def test_assured_lets_through_what_is_on_its_list(face: Any, kind: str, lines: List[str]) -> None:
    end = face(kind, allowed_events={'message', 'answer'})
    bystander = end.another()
    for emit in end.ways():
        with pytest.raises(ProtocolError, match=r"'Message' is not in config.allowed_events.*both sides") as raised:
            emit('Message')
        assert raised.value.code == 'ERR_IPC_EVENT_NOT_ALLOWED'
    assert end.is_served()
    end.raw.sendall(frame('Message'))
    drain(end.raw)
    assert end.error().code == 'ERR_IPC_EVENT_NOT_ALLOWED'
    assert [line for line in lines if 'ERR_IPC_EVENT_NOT_ALLOWED' in line]
    assert bystander.is_served()


def test_guarded_has_no_list(face: Any, side: str) -> None:
    end = face(f'{side} unix guarded', allowed_events=['message'])
    end.raw.sendall(frame('else'))
    end.log.wait('else')
    end.ways()[0]('else')
    assert read_frame(end.raw) == b'{"type":"else","data":{}}\f'


@pytest.mark.parametrize('code', ['ERR_IPC_RESERVED_EVENT', 'ERR_IPC_INVALID_EVENT', 'ERR_IPC_FRAME_TOO_LARGE'])
def test_guarded_udp_drops_the_datagram(make: Any, code: str, lines: List[str]) -> None:
    server = make(parser='guarded', max_message_size=1000).serve_net('127.0.0.1', 0, 'udp4')
    log = Log()
    server.on('*', log)
    server.start()
    bad = next(sent for sent, wanted in BAD.values() if wanted == code)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(20)
        peer.sendto(GOOD + bad, server.address)
        ((error, _),) = log.wait('error')
        assert error.code == code
        assert 'dropped' in str(error)
        assert [line for line in lines if code in line]
        peer.sendto(GOOD, server.address)
        ((_, socket_),) = log.wait('message')  # of the bad datagram, nothing
        for target in (socket_, peer.getsockname()):
            for name, wanted in NAMES:
                with pytest.raises(ProtocolError) as raised:
                    server.emit(target, name)
                assert raised.value.code == wanted
        with pytest.raises(ProtocolError, match='max_message_size'):
            socket_.emit('message', 'x' * 1000)
        server.broadcast('answer', 1)
        assert peer.recv(1000) == b'{"type":"answer","data":1}\f'


# On emit


def test_what_may_not_be_emitted_raises_and_nothing_is_sent(face: Any, kind: str) -> None:
    end = face(kind, max_message_size=1000)
    for emit in end.ways():
        for name, code in NAMES:
            with pytest.raises(ProtocolError) as raised:
                emit(name, 1)
            assert raised.value.code == code, name
            assert f'[{code}]' in str(raised.value)
        with pytest.raises(ProtocolError, match='max_message_size') as raised:
            emit('message', 'x' * 1000)
        assert raised.value.code == 'ERR_IPC_FRAME_TOO_LARGE'
        for wrong in (5, None, b'message'):
            with pytest.raises(TypeError):
                emit(wrong, 1)
    assert end.connection.messages_out == 0
    assert end.is_served()  # and the answer is the first that comes
    assert not end.errors


def test_an_emit_that_is_refused_in_a_batch_or_a_turn_takes_nothing_with_it(face: Any) -> None:
    end = face('client unix guarded')
    with end.endpoint.batch():
        end.endpoint.emit('message', 1)
        with pytest.raises(ProtocolError):
            end.endpoint.emit('connect', 2)
        end.endpoint.emit('message', 3)
    assert read_frame(end.raw) == frame('message', 1).replace(b' ', b'') + frame('message', 3).replace(b' ', b'')
    end = face('client tcp guarded', sync=True)
    with pytest.raises(ProtocolError):
        end.endpoint.emit('connect', 2)
    end.endpoint.emit('answer', 1)
    assert read_frame(end.raw) == b'{"type":"answer","data":1}\f'


def test_a_handler_that_emits_what_is_refused_is_an_error_and_no_more(make: Any) -> None:
    server = make(parser='guarded').serve()
    server.on('message', lambda data, socket: socket.emit('error', data))
    server.on('ask', lambda data, socket: socket.emit('answer', data))
    errors, answers = Log(), Log()
    server.on('error', lambda error, socket: errors('error', error))
    server.start()
    client = make(id='client', parser='guarded').connect_to('world', server.address)
    client.on('answer', lambda data: answers('answer', data))
    client.emit('message', 1)
    client.emit('ask', 2)
    assert answers.wait('answer') == [(2,)]
    assert errors.of('error')[0][0].code == 'ERR_IPC_RESERVED_EVENT'
    assert client.connected


# Sizes


def text_of(size: int) -> str:
    """The data of a message of `size` bytes, of which many are not one character each."""
    room = size - len(b'{"type":"message","data":""}')
    return 'é' * (room // 2) + 'x' * (room % 2)


def sized(size: int) -> bytes:
    message = f'{{"type":"message","data":"{text_of(size)}"}}'.encode()
    assert len(message) == size
    return message


@pytest.mark.parametrize(
    ('kind', 'setting', 'limit'),
    [
        ('server unix guarded', None, MIB),
        ('client tcp guarded', None, MIB),
        ('server tls assured', None, MIB),
        ('server unix guarded', 500, 500),
        ('client tls assured', 2 * MIB, 2 * MIB),
        ('client tcp fast', 500, 500),
        ('server unix fast', None, 64 * MIB),
    ],
)
def test_a_message_may_have_as_many_bytes_as_the_limit(face: Any, kind: str, setting: Optional[int], limit: int) -> None:
    end = face(kind, max_message_size=setting)
    emit = end.ways()[0]
    end.raw.settimeout(60)
    passes = min(limit, 2 * MIB)  # the largest would take long
    emit('message', text_of(passes))
    assert read_frame(end.raw) == sized(passes) + b'\f'
    end.raw.sendall(sized(passes) + b'\f')
    end.log.wait('message')
    too_long = sized(limit) + b' '
    with pytest.raises(ProtocolError, match='more than max_message_size') as raised:
        emit('message', text_of(limit) + 'x')
    assert raised.value.code == 'ERR_IPC_FRAME_TOO_LARGE'
    with contextlib.suppress(ConnectionError, ssl.SSLError):  # refused while we are sending
        end.raw.sendall(too_long)
        end.raw.sendall(b'\f')
    drain(end.raw)
    end.log.wait('error')
    codes = [error.code for error in end.errors if isinstance(error, ProtocolError)]
    assert codes == ['ERR_IPC_FRAME_TOO_LARGE']
    assert len(end.messages) == 1


# Delimiters


@pytest.mark.parametrize('delimiter', ['\n', '\0\1', 'END', '☃'])
def test_guarded_with_other_delimiters(face: Any, side: str, delimiter: str) -> None:
    end = face(f'{side} unix guarded', delimiter=delimiter, max_message_size=1000)
    ending = delimiter.encode()
    for emit in end.ways():
        for name, code in NAMES:
            with pytest.raises(ProtocolError) as raised:
                emit(name)
            assert raised.value.code == code
        with pytest.raises(ProtocolError, match='max_message_size'):
            emit('message', 'x' * 1000)
        if delimiter > ' ':
            with pytest.raises(ValueError, match='contains the delimiter'):
                emit('message', f'...{delimiter}...')
        emit('answer', 1)
        assert end.raw.recv(1000) == b'{"type":"answer","data":1}' + ending
    # Cut in the middle of a character of the delimiter, too.
    stream = GOOD[:-1] + ending + frame('x')[:-1] + ending + frame('stop')[:-1] + ending
    for at in range(len(stream)):
        end.raw.sendall(stream[at:at + 1])
    drain(end.raw)
    assert end.error().code == 'ERR_IPC_RESERVED_EVENT'
    assert end.messages == ['good']
    end.log.wait('x')


# What servers answer by themselves


@pytest.mark.parametrize('what', ['listening', 'broadcasting'])
def test_definitions_are_told_under_assured_if_the_list_has_both_names(face: Any, what: str) -> None:
    both = [f'get.events.{what}', f'events.{what}', 'message', 'answer']
    end = face('server unix assured', allowed_events=both)
    end.endpoint.define.listen.message = end.endpoint.define.broadcast.message = 'a string'
    end.raw.sendall(frame(both[0]))
    told = {'type': f'events.{what}', 'data': {'id': 'world', 'events': {'message': 'a string'}}}
    assert json.loads(read_frame(end.raw)[:-1]) == told


def test_an_answer_that_is_not_on_the_list_is_an_error_and_the_connection_stays(face: Any) -> None:
    end = face('server tls assured', allowed_events=['get.events.listening', 'message', 'answer'])
    end.raw.sendall(frame('get.events.listening'))
    ((error, socket_),) = end.log.wait('error')
    assert error.code == 'ERR_IPC_EVENT_NOT_ALLOWED'
    assert "'events.listening'" in str(error)
    assert socket_ is end.socket
    assert end.is_served()


def test_who_may_not_ask_for_definitions_is_cut_off(face: Any) -> None:
    end = face('server unix assured', allowed_events=['events.listening'])
    end.raw.sendall(frame('get.events.listening'))
    drain(end.raw)
    assert end.error().code == 'ERR_IPC_EVENT_NOT_ALLOWED'


def test_definitions_are_told_under_guarded(face: Any) -> None:
    end = face('server tcp guarded')
    end.raw.sendall(frame('get.events.broadcasting'))
    assert b'"events.broadcasting"' in read_frame(end.raw)


# Settings


def test_reserved_names_pass_in_guarded_if_they_may(face: Any, side: str) -> None:
    end = face(f'{side} unix guarded', allow_reserved_events=True)
    for name in RESERVED:
        before = len(end.log.of(name))
        end.raw.sendall(frame(name, 'mine'))
        assert end.log.wait(name, before + 1)[-1][0] == 'mine'
        for emit in end.ways():
            emit(name, 1)
            assert json.loads(read_frame(end.raw)[:-1]) == {'type': name, 'data': 1}
    for emit in end.ways():
        for name in UNSAFE:  # which it is not about
            with pytest.raises(ProtocolError):
                emit(name, 1)
    end.raw.sendall(frame('constructor'))
    drain(end.raw)
    end.log.wait(end.gone, 2)
    assert end.errors[-1].code == 'ERR_IPC_INVALID_EVENT'


@pytest.mark.parametrize('kind', ['server unix assured', 'client tls assured'])
def test_reserved_names_never_pass_in_assured(face: Any, kind: str) -> None:
    end = face(kind, allow_reserved_events=True)
    for emit in end.ways():
        for name in RESERVED:
            with pytest.raises(ProtocolError) as raised:
                emit(name, 1)
            assert raised.value.code == 'ERR_IPC_RESERVED_EVENT'
    end.raw.sendall(frame('connect', 'mine'))
    drain(end.raw)
    assert end.error().code == 'ERR_IPC_RESERVED_EVENT'


def test_fast_has_no_rules_for_names(face: Any, side: str) -> None:
    end = face(f'{side} unix fast', message_timeout=1)
    names = [*TOO_LONG, *UNSAFE, *RESERVED]
    for name in names:
        end.ways()[0](name, 1)
        assert json.loads(read_frame(end.raw)[:-1])['type'] == name
        before = len(end.log.of(name))
        end.raw.sendall(frame(name, 'mine'))
        assert end.log.wait(name, before + 1)[-1][0] == 'mine'


def test_assured_and_raw_contradict_each_other(make: Any) -> None:
    """In node-ipc raw wins, and then nothing is assured."""
    ipc = make(parser='assured', raw_buffer=True, allowed_events=['x'])
    for endpoint in (ipc.serve, ipc.serve_net, lambda: ipc.connect_to('x'), lambda: ipc.connect_to_net('x')):
        with pytest.raises(ConfigError, match="raw_buffer=True has no events, so parser='assured' would protect nothing"):
            endpoint()
    assert ipc.wait(0) is True


def test_raw_buffer_overrides_guarded(make: Any) -> None:
    server = make(parser='guarded', raw_buffer=True, message_timeout=1).serve_net('127.0.0.1', 0)
    log = Log()
    server.on('*', log)
    server.start()
    client = make(id='client', parser='guarded', raw_buffer=True).connect_to_net('world', *server.address)
    client.emit(b'connect' * 1000)
    eventually(lambda: sum(len(data) for data, _ in log.of('data')) == 7000)
    client.disconnect()
    log.wait('socket.disconnected')
    assert not log.of('error')


def test_identify_peer_under_guarded(face: Any) -> None:
    end = face('server unix guarded', identify_peer=True)
    for data in (None, 5, 'id', ['id'], {'id': None}, {'id': 0}, {'id': ''}):
        end.raw.sendall(frame('other', data))
    end.log.wait('other', 7)
    assert end.socket.id is None
    end.raw.sendall(frame('message', {'id': 'me'}) + frame('error', {'id': 'you'}))
    drain(end.raw)
    assert end.error().code == 'ERR_IPC_RESERVED_EVENT'
    assert end.log.of('socket.disconnected') == [(end.socket, 'me')]


def test_settings_are_read_when_the_endpoint_is_made(make: Any) -> None:
    names = ['message', 'answer']
    ipc = make(parser='assured', allowed_events=names)
    server = ipc.serve()
    log = Log()
    client = ipc.connect_to('world', lambda client: client.on('*', log))
    names.append('later')
    ipc.config.update({'parser': 'fast', 'allowed_events': None, 'allow_reserved_events': True, 'max_message_size': 1})
    server.on('message', lambda data, socket: socket.emit('answer', data))
    server.start()
    client.emit('message', 'hello')
    assert log.wait('answer') == [('hello',)]
    for emit in (client.emit, server.broadcast):
        with pytest.raises(ProtocolError) as raised:
            emit('later')
        assert raised.value.code == 'ERR_IPC_EVENT_NOT_ALLOWED'


@pytest.mark.parametrize(
    ('name', 'wrong'),
    [
        *(('allowed_events', wrong) for wrong in ([], (), set(), 'message', b'message', 5, {'a': 1})),
        *(('allowed_events', wrong) for wrong in ([5], [''], [None], ['message', b'answer'], iter('a'))),
        *(('max_event_name_length', wrong) for wrong in (0, -1, 1.5, 'x', True)),
        *(('message_timeout', wrong) for wrong in (-1, 'x', float('nan'), float('inf'), True)),
        *(('allow_reserved_events', wrong) for wrong in (1, None, 'yes')),
        *(('max_message_size', wrong) for wrong in (0, -1, 1.5, float('inf'), True)),
        *(('parser', wrong) for wrong in ('Guarded', 'unsafe', '', None, 5)),
    ],
    ids=str,
)
def test_a_wrong_setting_is_refused_at_the_assignment(make: Any, name: str, wrong: Any) -> None:
    ipc = make()
    before = getattr(ipc.config, name)
    with pytest.raises(ConfigError, match=name):
        setattr(ipc.config, name, wrong)
    with pytest.raises(ConfigError, match=name):
        make(**{name: wrong})
    assert getattr(ipc.config, name) == before


def test_assured_needs_a_list(make: Any) -> None:
    ipc = make(parser='assured')
    for making in (ipc.serve, ipc.serve_net, lambda: ipc.connect_to('world'), lambda: ipc.connect_to_net('world')):
        with pytest.raises(ConfigError, match="parser='assured' needs config.allowed_events"):
            making()
    assert not list(ipc.of)
    for names in (['message'], ('message',), {'message'}, frozenset(['message']), {'message': 1}.keys()):
        ipc.config.allowed_events = names
        ipc.serve()


# Where assured may be used


def test_assured_refuses_plain_tcp_and_udp(make: Any) -> None:
    ipc = make(parser='assured', allowed_events=['message'])
    for arguments in (('127.0.0.1', 0), ('127.0.0.1', 0, 'udp4')):
        server = ipc.serve_net(*arguments)
        for _ in range(2):
            advice = 'use TCP' if 'udp4' in arguments else 'set config.tls'
            with pytest.raises(ConfigError, match=rf'needs TLS on the network.*{advice}.*\[ERR_IPC_ASSURED_TRANSPORT\]'):
                server.start()
        assert not server.listening
        server.stop()
    with pytest.raises(ConfigError, match=r'ERR_IPC_ASSURED_TRANSPORT'):
        ipc.connect_to_net('world', '127.0.0.1', 1)
    assert not list(ipc.of)
    with socket.socket() as bound:
        bound.bind(('127.0.0.1', 0))
        with pytest.raises(ConfigError, match=r'ERR_IPC_ASSURED_TRANSPORT'):
            ipc.serve_net(sock=bound).start()


def test_assured_refuses_udp_with_tls_settings(make: Any, certificates: Certificates) -> None:
    ipc = make(parser='assured', allowed_events=['message'], tls=certificates.mutual('server'))
    with pytest.raises(ConfigError, match='ERR_IPC_ASSURED_TRANSPORT'):
        ipc.serve_net('127.0.0.1', 0, 'udp4').start()


def _context(certificates: Certificates, purpose: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    context.load_cert_chain(certificates.pem('server'), certificates.key('server'))
    return context


SERVERS: Dict[str, Callable[[Certificates], Any]] = {
    'nobody to trust': lambda certificates: certificates.server(),
    'nobody asked': lambda certificates: certificates.mutual('server', request_cert=False),
    'anybody let in': lambda certificates: certificates.mutual('server', reject_unauthorized=False),
    'a context': lambda certificates: _context(certificates, ssl.PROTOCOL_TLS_SERVER),
}


@pytest.mark.parametrize('lax', list(SERVERS))
def test_assured_servers_want_certificates_of_clients(make: Any, certificates: Certificates, lax: str) -> None:
    ipc = make(parser='assured', allowed_events=['message'], tls=SERVERS[lax](certificates))
    server = ipc.serve_net('127.0.0.1', 0)
    with pytest.raises(ConfigError, match=r'certificates.*\[ERR_IPC_ASSURED_TLS\]'):
        server.start()
    assert not server.listening


def _unchecked(certificates: Certificates) -> ssl.SSLContext:
    context = _context(certificates, ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


CLIENTS: Dict[str, Callable[[Certificates], Any]] = {
    'no certificate': lambda certificates: certificates.client(),
    'nobody to trust': lambda certificates: certificates.server('client'),
    'anybody trusted': lambda certificates: certificates.mutual('client', reject_unauthorized=False),
    'a context': _unchecked,
}


@pytest.mark.parametrize('lax', list(CLIENTS))
def test_assured_clients_show_a_certificate_and_verify(make: Any, certificates: Certificates, lax: str) -> None:
    ipc = make(parser='assured', allowed_events=['message'], tls=CLIENTS[lax](certificates))
    with pytest.raises(ConfigError, match=r'\[ERR_IPC_ASSURED_TLS\]'):
        ipc.connect_to_net('world', 'localhost', 1)
    assert not list(ipc.of)


def test_an_assured_server_lets_nobody_in_without_a_certificate(make: Any, certificates: Certificates) -> None:
    server = make(parser='assured', allowed_events=['message'], tls=certificates.mutual('server')).serve_net('127.0.0.1', 0)
    log = Log()
    server.on('*', log)
    server.start()
    refused = Log()
    stranger = make(id='stranger', tls=certificates.client(), stop_retrying=True)
    stranger.connect_to_net('world', *server.address, lambda client: client.on('*', refused))
    refused.wait('destroy')
    log.wait('error')
    assert not log.of('connect')
    known = make(id='known', parser='assured', allowed_events=['message'], tls=certificates.mutual('client'))
    known.connect_to_net('world', *server.address).emit('message', 'hello')
    ((_, socket_),) = log.wait('message')
    assert dict(item for (item,) in socket_.certificate['subject'])['commonName'] == 'client'


needs_unix = pytest.mark.skipif(not hasattr(socket, 'AF_UNIX'), reason='needs Unix sockets')

# Below a directory with the socket root `node-ipc`.
ELSEWHERE = {
    'beside.sock': 'needs a path directly inside config.socket_root',
    'node-ipc/deeper/x.sock': 'needs a path directly inside config.socket_root',
    'node-ipc': 'needs a path directly inside config.socket_root',
    'node-ipc/../node-ipc/x.sock': "takes no path with '..'",
    'node-ipc-2/x.sock': 'needs a path directly inside config.socket_root',
}


@needs_unix
@pytest.mark.parametrize('where', list(ELSEWHERE))
def test_assured_is_at_home_directly_inside_the_socket_root(make: Any, tmp_path: Path, where: str) -> None:
    for name in ('node-ipc/deeper', 'node-ipc-2'):
        (tmp_path / name).mkdir(parents=True, mode=0o700)
    ipc = make(parser='assured', allowed_events=['message'])
    wanted = f'{ELSEWHERE[where]}.*ERR_IPC_ASSURED_TRANSPORT'
    server = ipc.serve(f'{tmp_path}/{where}')
    with pytest.raises(ConfigError, match=wanted):
        server.start()
    assert not server.listening
    with pytest.raises(ConfigError, match=wanted):
        ipc.connect_to('world', f'{tmp_path}/{where}')
    assert not list(ipc.of)


@needs_unix
def test_assured_wants_a_root_that_is_secured(make: Any) -> None:
    ipc = make(parser='assured', allowed_events=['message'], secure_socket_root=False)
    for attempt in (ipc.serve().start, lambda: ipc.connect_to('world')):
        with pytest.raises(ConfigError, match=r'secure_socket_root = True.*\[ERR_IPC_ASSURED_TRANSPORT\]'):
            attempt()
    assert not list(ipc.of)


@needs_unix
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='abstract names are of Linux')
def test_assured_refuses_abstract_names(make: Any) -> None:
    ipc = make(parser='assured', allowed_events=['message'])
    for attempt in (ipc.serve('\0nodeipc-assured').start, lambda: ipc.connect_to('world', '\0nodeipc-assured')):
        with pytest.raises(ConfigError, match=r'anybody can take an abstract name.*ERR_IPC_ASSURED_TRANSPORT'):
            attempt()


@needs_unix
def test_a_socket_that_is_given_to_assured_has_to_be_there_too(make: Any, tmp_path: Path) -> None:
    root = tmp_path / 'node-ipc'
    root.mkdir(mode=0o700)
    for path, mode, wrong in (
        (tmp_path / 'beside.sock', 0o700, 'needs a path directly inside'),
        (root / 'x.sock', 0o755, 'the socket root is open to others'),
        (root / 'x.sock', 0o700, None),
    ):
        root.chmod(mode)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
            ipc = make(parser='assured', allowed_events=['message'])
            log = Log()
            server = ipc.serve(sock=bound)
            server.on('message', lambda data: log('message', data))  # noqa: B023
            if wrong:
                with pytest.raises((ConfigError, OSError), match=wrong):
                    server.start()
            else:
                server.start()
                ipc.connect_to('world', str(path)).emit('message', 'hello')
                log.wait('message')
            ipc.close(10)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


@needs_unix
@pytest.mark.skipif(not KNOWS_PEERS, reason='needs a system that tells who serves')
@pytest.mark.parametrize('given', [False, True])
def test_an_assured_client_talks_to_a_server_of_its_own_user_only(
    make: Any, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(parser='assured', allowed_events=['message']).serve()
    server.start()
    other = os.geteuid() + 1
    if not given:
        monkeypatch.setattr(os, 'geteuid', lambda: other)
    log = Log()
    ipc = make(parser='assured', allowed_events=['message'], stop_retrying=True, server_uid=other if given else None)
    ipc.connect_to('world', lambda client: client.on('*', log))
    log.wait('destroy')
    assert f'not by user {other}' in str(log.of('error')[0][0])
    assert not log.of('connect')
    monkeypatch.undo()


# Messages that do not end


TIMED = ['server unix guarded', 'client unix guarded', 'server tcp guarded', 'server tls assured', 'client tls assured']


def drip(raw: socket.socket) -> float:
    """Send a message a byte at a time until the other end has enough; return the seconds that it took."""
    began = time.monotonic()
    with contextlib.suppress(OSError):
        for byte in itertools.chain(b'{"type":"message","data":"', itertools.repeat(97)):
            raw.sendall(bytes([byte]))
            time.sleep(0.002)  # the subject of this test, not a wait for luck
    return time.monotonic() - began


@pytest.mark.parametrize('kind', TIMED)
def test_a_message_that_drips_is_cut_off_in_time(face: Any, kind: str, lines: List[str]) -> None:
    end = face(kind, message_timeout=100)
    bystander = end.another()
    end.raw.sendall(GOOD)
    end.log.wait('message')
    assert end.connection._clock._began is None  # nothing runs between messages
    time.sleep(0.12)
    assert drip(end.raw) >= 0.1
    error = end.error()
    assert error.code == 'ERR_IPC_MESSAGE_TIMEOUT'
    assert 'config.message_timeout' in str(error)
    assert '0.1 s after its first byte' in str(error)
    assert lines == [str(error)]
    assert end.messages == ['good']
    assert bystander.is_served()


def test_a_message_that_stops_in_the_middle_is_cut_off(face: Any, side: str) -> None:
    end = face(f'{side} unix guarded', message_timeout=100)
    began = time.monotonic()
    end.raw.sendall(GOOD + GOOD[:-1])
    drain(end.raw)
    assert time.monotonic() - began >= 0.1
    assert end.error().code == 'ERR_IPC_MESSAGE_TIMEOUT'
    assert end.messages == ['good']


def test_who_drips_after_it_was_answered_is_gone_after_the_goodbye(face: Any) -> None:
    """Bytes that keep coming do not prolong it."""
    end = face('server unix guarded', message_timeout=100, stall_timeout=100)
    assert end.is_served()
    assert drip(end.raw) >= 0.2
    assert end.error().code == 'ERR_IPC_MESSAGE_TIMEOUT'


@pytest.mark.parametrize('kind', ['server unix guarded', 'client tls assured'])
def test_whole_messages_back_to_back_are_never_late(face: Any, kind: str) -> None:
    """Each read ends in the middle of the next message, so there is always one that is not complete."""
    end = face(kind, message_timeout=400)
    end.raw.sendall(GOOD[:20])
    sent = 0
    end_time = time.monotonic() + 0.6
    while time.monotonic() < end_time:
        end.raw.sendall(GOOD[20:] + GOOD[:20])
        sent += 1
        end.log.wait('message', sent)
    assert not end.errors
    assert end.connection._clock._began is not None
    assert len(end.timers()) <= 3 < sent  # and not one for each message
    end.raw.sendall(GOOD[20:])
    end.log.wait('message', sent + 1)
    assert end.is_served()


def test_a_message_in_a_thousand_pieces_is_whole_if_it_is_in_time(face: Any, side: str) -> None:
    end = face(f'{side} unix guarded', message_timeout=60_000)
    for byte in frame('message', 'x' * 1000):
        end.raw.sendall(bytes([byte]))
    end.log.wait('message')
    assert end.messages == ['x' * 1000]
    assert len(end.timers()) <= 1  # not one for each piece


@pytest.mark.parametrize('side', ['server', 'client'])
def test_nobody_is_late_while_our_own_handlers_are(face: Any, side: str) -> None:
    end = face(f'{side} unix guarded', message_timeout=100)
    gate = threading.Event()
    end.endpoint.on('block', lambda: gate.wait(30))
    block = frame('block', 'x' * 9_000)
    sender = threading.Thread(target=lambda: end.raw.sendall(block * 80))
    sender.start()
    try:
        eventually(lambda: not end.connection._reading)
        assert end.connection._decoder.is_inside_frame  # what was read ends in the middle of a message
        time.sleep(0.22)
        assert not end.errors
        assert end.connection.is_open
    finally:
        gate.set()
        sender.join(20)
    end.log.wait('block', 80)
    assert end.is_served()
    assert not end.errors


def test_workers_0_nobody_is_late_while_our_own_handlers_are(face: Any) -> None:
    """The rest of the message has come meanwhile, more than is read at once."""
    end = face('server unix guarded', message_timeout=100, workers=0)
    gate = threading.Event()
    end.endpoint.on('block', lambda: gate.wait(30))
    late = frame('late', 'x' * 150_000)
    end.raw.sendall(frame('block') + late[:10])
    try:
        end.log.wait('block')
        end.raw.sendall(late[10:])
        time.sleep(0.3)
    finally:
        gate.set()
    eventually(lambda: end.log.of('late') or end.errors)
    assert not end.errors


@pytest.mark.parametrize('forever', [0, None, 0.0])
def test_no_timeout_is_no_timeout(face: Any, side: str, forever: Any) -> None:
    end = face(f'{side} unix guarded', message_timeout=forever)
    end.raw.sendall(GOOD[:20])
    eventually(lambda: end.connection.bytes_in == 20)
    assert not end.timers()
    end.raw.sendall(GOOD[20:])
    end.log.wait('message')


def test_fast_never_cuts_off_who_drips(face: Any, side: str) -> None:
    end = face(f'{side} unix fast', message_timeout=1)
    end.raw.sendall(GOOD[:20])
    eventually(lambda: end.connection.bytes_in == 20)
    assert not end.timers()
    end.raw.sendall(GOOD[20:])
    end.log.wait('message')


def test_who_drips_costs_no_thread_and_nobody_else(face: Any) -> None:
    end = face('server unix guarded', message_timeout=300, workers=2)
    assert end.is_served()
    threads = set(threading.enumerate())
    peers = [end.another() for _ in range(50)]
    eventually(lambda: end.endpoint.stats()['connections'] == 51)
    before = end.endpoint.stats()['bytes_in']
    began = time.monotonic()
    for byte in GOOD[:10]:
        for peer in peers:
            peer.raw.sendall(bytes([byte]))
        assert len([thread for thread in threading.enumerate() if thread not in threads]) <= 1  # the second worker
    eventually(lambda: end.endpoint.stats()['bytes_in'] == before + 500)
    assert end.is_served()
    for peer in peers:
        drain(peer.raw)
    assert time.monotonic() - began >= 0.3
    assert {error.code for error, _ in end.log.wait('error', 50)} == {'ERR_IPC_MESSAGE_TIMEOUT'}
    assert len(end.errors) == 50
    assert end.is_served()
    eventually(lambda: end.endpoint.stats()['connections'] == 1)
    eventually(lambda: not end.timers())


@pytest.mark.parametrize('kind', TIMED)
def test_the_timer_ends_with_its_connection(face: Any, kind: str) -> None:
    end = face(kind, message_timeout=60_000)
    end.raw.sendall(GOOD + GOOD[:5])
    end.log.wait('message')
    eventually(end.timers)
    end.raw.close()
    end.log.wait(end.gone)
    if end.side == 'client':
        end.endpoint.disconnect()  # or it has a timer to try again
    eventually(lambda: not end.timers())


def test_stop_does_not_wait_for_the_rest_of_a_message(face: Any) -> None:
    end = face('server unix guarded', message_timeout=60_000, stall_timeout=200)
    end.raw.sendall(GOOD + GOOD[:5])
    end.log.wait('message')
    reactor = end.endpoint._engine.reactor
    end.endpoint.stop(20)
    assert end.messages == ['good']
    assert not [timer for _, _, timer in reactor._timers if timer.callback is not None]


# What waits to be written


@pytest.mark.parametrize('kind', ['server unix guarded', 'server tcp guarded', 'server tls assured'])
def test_who_asks_and_never_reads_is_cut_off(face: Any, kind: str, lines: List[str]) -> None:
    end = face(kind, max_pending_bytes=MIB, stall_timeout=200, max_message_size=None)
    bystander = end.another()
    end.endpoint.on('message', lambda data, socket: data == 'more' and socket.emit('answer', 'x' * 200_000))
    began = time.monotonic()
    with contextlib.suppress(OSError):  # cut off while we are asking
        for _ in range(200):
            end.raw.sendall(frame('message', 'more'))
    eventually(lambda: [error for error in end.errors if getattr(error, 'code', '') == 'ERR_IPC_BACKPRESSURE'])
    assert time.monotonic() - began >= 0.2
    assert end.endpoint.stats()['pending_bytes'] <= MIB + 200_100
    end.log.wait('socket.disconnected')
    assert not end.socket.connected
    with pytest.raises(NotConnectedError):
        end.socket.emit('answer')
    assert [line for line in lines if 'ERR_IPC_BACKPRESSURE' in line]
    assert bystander.is_served()


def test_it_is_cut_off_too_if_emits_give_up_earlier(face: Any) -> None:
    end = face('server unix guarded', max_pending_bytes=MIB, emit_timeout=100, stall_timeout=400, max_message_size=None)
    end.endpoint.on('message', lambda data, socket: socket.emit('answer', 'x' * 200_000))
    end.raw.sendall(frame('message') * 40)
    eventually(lambda: [error for error in end.errors if getattr(error, 'code', '') == 'ERR_IPC_BACKPRESSURE'])
    end.log.wait('socket.disconnected')


def test_a_peer_that_reads_is_not_cut_off_because_the_reactor_was_kept_from_writing(face: Any) -> None:
    """With workers=0 it is in our handler, which takes longer than the stall timeout between two emits."""
    end = face('server unix guarded', workers=0, max_pending_bytes=10_000, stall_timeout=200, emit_timeout=20_000)
    full, said, late = threading.Event(), [], []

    def fill(data: Any, socket: Any) -> None:
        with pytest.raises(EmitTimeout):
            while True:
                socket.emit('answer', 'x' * 100_000, timeout=0)
                said.append('answer')
        full.set()
        eventually(lambda: late)  # the peer has read all that the system had for it
        time.sleep(0.3)
        socket.emit('answer', 'last')
        said.append('last')

    end.endpoint.on('fill', fill)
    end.raw.sendall(frame('fill'))
    assert full.wait(20)
    end.raw.settimeout(0.2)
    received = b''
    while True:
        try:
            received += end.raw.recv(1 << 20)
        except OSError:
            late.append(True)
        if received.count(b'\f') > 1 and b'last' in received:
            break
    assert received.count(b'\f') == len(said)
    assert not end.errors
