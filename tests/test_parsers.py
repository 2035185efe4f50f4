"""Parsers of the application's own, and delimiters."""

from __future__ import annotations

import enum
import json
import re
import socket
import sys
import threading
from typing import Any, Dict, Iterable, List, Tuple

import pytest

from nodeipc import IPC, Config, ConfigError, EventDecoder, Parser, ProtocolError

from .conftest import Log, eventually


class Lines:
    """A line of JSON for each event: ``[type, data]``."""

    def encode(self, type: str, data: Any) -> bytes:
        return json.dumps([type, data]).encode() + b'\n'

    def decoder(self) -> EventDecoder:
        return LinesDecoder()


class LinesDecoder:
    def __init__(self) -> None:
        self.unfinished = b''

    def feed(self, data: bytes) -> Iterable[Tuple[str, Any]]:
        *lines, self.unfinished = (self.unfinished + data).split(b'\n')
        if not data and self.unfinished:
            lines.append(self.unfinished)
        return [tuple(json.loads(line)) for line in lines]


parser: Parser = Lines()


class Configured(Lines):
    """A class whose objects need the settings."""

    def __init__(self, config: Config) -> None:
        self.id = config.id

    def encode(self, type: str, data: Any) -> bytes:
        return super().encode(type, [self.id, data])


@pytest.fixture
def world(pair: Any) -> Any:
    world = pair(parser=parser)
    world.log = Log()
    world.server.on('*', world.log)
    world.server.on('ask', lambda data, socket: socket.emit('answer', data))
    return world.start()


def test_a_parser_of_ones_own_speaks_on_both_ends(world: Any) -> None:
    log = Log()
    client = world.connect(log, parser=Lines)
    for data in None, 1, 'é\f\n', [{}], {'a': [1.5]}:
        client.emit('ask', data)
        eventually(lambda data=data: log.of('answer')[-1:] == [(data,)])
    client.emit('ask')
    eventually(lambda: log.of('answer')[-1:] == [({},)])
    world.server.broadcast('news', 'sun')
    assert log.wait('news') == [('sun',)]


def test_a_plain_peer_is_understood_in_any_chunking(world: Any) -> None:
    with world.raw() as sock:
        stream = b'["ask", 1]\n["ask", "\xc3\xa9"]\n'
        for i in range(len(stream)):
            sock.sendall(stream[i : i + 1])
        lines = sock.makefile('rb')
        assert [lines.readline(), lines.readline()] == [b'["answer", 1]\n', b'["answer", "\\u00e9"]\n']


def test_the_decoder_is_told_of_the_end(world: Any) -> None:
    with world.raw() as sock:
        sock.sendall(b'["ask", 1]\n["ask", 2]')
        sock.shutdown(socket.SHUT_WR)
        assert sock.makefile('rb').read() == b'["answer", 1]\n["answer", 2]\n'
    world.log.wait('socket.disconnected')
    assert not world.log.of('error')


def test_datagrams_are_decoded_on_their_own(make: Any) -> None:
    world, hello = make(parser=parser).serve_net(0, 'udp4'), make(parser=parser).serve_net(0, 'udp4')
    log = Log()
    hello.on('*', log)
    world.on('ask', lambda data, socket: socket.emit('answer', data))
    world.start()
    hello.start()
    hello.emit(world.address, 'ask', 1)
    assert log.wait('answer')[0][0] == 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b'["a", 1]\n["b", 2]', hello.address)
        log.wait('b')
        sock.sendto(b'["c", 1]\nnonsense', hello.address)
        ((error, _),) = log.wait('error')
        assert isinstance(error, ProtocolError)
        assert not log.of('c')


def test_a_type_may_be_a_member_of_an_enum(make: Any) -> None:
    class Kind(str, enum.Enum):
        PING = 'ping'

    class Kinds(Lines):
        def decoder(self) -> Any:
            class Decoder:
                def feed(self, data: bytes) -> Any:
                    return [(Kind.PING, 1)] if data else []

            return Decoder()

    with make(parser=Kinds()) as ipc, ipc.serve() as server:
        log = Log()
        server.on('*', log)
        ipc.connect_to('world').emit('x')
        log.wait('ping')


def test_settings_are_given_only_to_a_class_that_asks_for_them(make: Any) -> None:
    class Optional(Lines):
        def __init__(self, strict: Any = False) -> None:
            self.strict = strict

    class Named(Lines):
        def __init__(self, config: Any = None) -> None:
            self.config = config

    assert make(parser=Optional).serve()._parser._parser.strict is False
    assert make(id='named', parser=Named).serve()._parser._parser.config.id == 'named'


def test_a_class_is_called_with_the_settings(make: Any) -> None:
    with make(id='settings', parser=Configured) as ipc, ipc.serve() as server:
        log = Log()
        server.on('*', log)
        ipc.connect_to('settings').emit('x', 1)
        assert log.wait('x')[0][0] == ['settings', 1]


def test_what_encode_raises_emit_raises(world: Any) -> None:
    client = world.connect(parser=Lines)
    with pytest.raises(TypeError, match='not JSON serializable'):
        client.emit('ask', {1})
    with pytest.raises(TypeError, match='an event type must be a str'):
        client.emit(5)


def test_a_parser_that_returns_no_bytes_is_told_off(make: Any) -> None:
    class Text(Lines):
        def encode(self, type: str, data: Any) -> Any:
            return 'text'

    client = make(parser=Text()).connect_to('nobody')
    with pytest.raises(TypeError, match="encode of the config.parser Text must return bytes, not 'text'"):
        client.emit('x')


def test_bytes_of_every_kind_may_be_returned(make: Any) -> None:
    class Array(Lines):
        def encode(self, type: str, data: Any) -> Any:
            return bytearray(super().encode(type, data))

    with make(parser=Array()) as ipc, ipc.serve() as server:
        log = Log()
        server.on('*', log)
        ipc.connect_to('world').emit('x', 1)
        log.wait('x')


class Failing(Lines):
    """Its decoders do what the first line names."""

    def decoder(self) -> Any:
        return FailingDecoder()


class FailingDecoder:
    def feed(self, data: bytes) -> Any:
        return {
            b'raise': lambda: [][1],
            b'none': lambda: None,
            b'callable': lambda: [(print, 'called')],
            b'number': lambda: [(5, 5)],
            b'triple': lambda: [('a', 1, 2)],
            b'text': lambda: ['a'],
            b'protocol': self.protocol,
            b'late': self.late,
            b'recursion': self.recursion,
            b'exit': sys.exit,
            b'odd': self.odd,
        }.get(data, list)()

    def protocol(self) -> Any:
        raise ProtocolError('ERR_IPC_INVALID_JSON', 'my own reason')

    def odd(self) -> Any:
        error = ProtocolError('code', 'why')
        error.args = ()
        raise error

    def late(self) -> Any:
        yield 'early', 1
        raise KeyError('late')

    def recursion(self) -> Any:
        return self.recursion()


@pytest.mark.parametrize(
    'how', ['raise', 'none', 'callable', 'number', 'triple', 'text', 'protocol', 'late', 'recursion', 'exit', 'odd']
)
def test_a_decoder_that_fails_costs_its_connection_alone(pair: Any, how: str, capsys: Any) -> None:
    world = pair(parser=Failing)
    log = Log()
    world.server.on('*', log)
    world.start()
    with world.raw() as bystander:
        log.wait('connect')
        with world.raw() as sock:
            sock.sendall(how.encode())
            try:
                assert not sock.recv(100)
            except ConnectionResetError:
                pass
        ((error, _),) = log.wait('error')
        assert isinstance(error, ProtocolError)
        assert 'a client of server' in str(error)
        if how == 'protocol':
            assert error.code == 'ERR_IPC_INVALID_JSON'
            assert 'my own reason' in str(error)
        else:
            assert error.code == ('code' if how == 'odd' else 'ERR_IPC_INVALID_MESSAGE')
            assert 'the config.parser Failing refused what came, or failed' in str(error)
            assert isinstance(error.__cause__, BaseException)
        assert len(log.of('early')) == (how == 'late')
        log.wait('socket.disconnected')
        bystander.sendall(b'late')
        log.wait('early', 2 if how == 'late' else 1)
    assert capsys.readouterr().out == ''


def test_a_parser_without_decoders_costs_connections_and_not_the_server(make: Any) -> None:
    class Without(Lines):
        def decoder(self) -> Any:
            raise RuntimeError('none left')

    with make(parser=Without()) as ipc, ipc.serve_net('127.0.0.1', 0) as server:
        log = Log()
        server.on('*', log)
        for time in 1, 2:
            with socket.create_connection(server.address) as sock:
                sock.sendall(b'x')
                log.wait('error', time)
        assert 'none left' in str(log.of('error')[0][0])


@pytest.mark.parametrize(
    'wrong', ['slow', 'Guarded', '', None, 5, json, object(), object, LinesDecoder, lambda config: Lines()], ids=str
)
def test_what_is_no_parser_is_refused_where_it_is_set(wrong: Any) -> None:
    wanted = "parser must be 'raw', 'fast', 'guarded', 'assured', or an object or class with encode(type, data)"
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        Config(parser=wrong)


def test_a_class_that_fails_fails_where_it_is_used() -> None:
    class Wrong(Lines):
        def __init__(self) -> None:
            raise RuntimeError('not today')

    with IPC(parser=Wrong) as ipc, pytest.raises(RuntimeError, match='not today'):
        ipc.serve()


def test_one_parser_may_serve_many_threads(make: Any) -> None:
    with make(parser=parser) as ipc, ipc.serve() as server:
        log = Log()
        server.on('*', log)
        client = ipc.connect_to('world')
        threads = [
            threading.Thread(target=lambda n=n: [client.emit('n', [n, i]) for i in range(100)]) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        got: Dict[int, List[int]] = {n: [] for n in range(4)}
        for data, _ in log.wait('n', 400):
            got[data[0]].append(data[1])
        assert all(numbers == list(range(100)) for numbers in got.values())


# Delimiters


@pytest.mark.parametrize('delimiter', ['\n', '\r\n', '\0', 'END', ' ', '}}', '"', '☃', '\f\f', 'aba', '😀\n'])
def test_any_delimiter_ends_messages(pair: Any, delimiter: str) -> None:
    world = pair(delimiter=delimiter)
    log, answers = Log(), Log()
    world.server.on('*', log)
    world.server.on('m', lambda data, socket: socket.emit('r', data))
    world.start()
    if delimiter not in '"}}':  # whose every message contains them
        client = world.connect(answers, delimiter=delimiter)
        for data in 1, 'x', [[]], None:
            client.emit('m', data)
        assert [data for (data,) in answers.wait('r', 4)] == [1, 'x', [[]], None]
    # As any peer: several in one write, and one that comes byte by byte.
    end = delimiter.encode()
    count = len(log.of('m'))
    with world.raw() as sock:
        if delimiter == '"':
            sock.sendall(b'{}"')
            ((error, _),) = log.wait('error')
            assert error.code == 'ERR_IPC_INVALID_EVENT'  # split there, as node-ipc does
            return
        frame = b'{"type":"m","data":2}' + end
        sock.sendall(frame * 3)
        if delimiter == '}}':
            log.wait('error')  # it ends inside the first message's own brace, as in node-ipc
            return
        for i in range(len(frame)):
            sock.sendall(frame[i : i + 1])
        sock.shutdown(socket.SHUT_WR)
        assert sock.makefile('rb').read().count(end) == 4
    assert len(log.of('m')) == count + 4
    assert not log.of('error')


@pytest.mark.parametrize(
    ('delimiter', 'type', 'data'),
    [
        ('END', 'm', 'THE END'), (' ', 'm', 'a b'), ('END', 'END', 1), ('}', 'm', 1), ('}}', 'm', {}), ('☃', 'm', '☃'),
        ('1', 'm', 1), ('}}', 'm', 1),
    ],
)
def test_a_message_that_its_delimiter_would_cut_in_two_is_refused(pair: Any, delimiter: str, type: str, data: Any) -> None:
    world = pair(delimiter=delimiter)
    world.start()
    client = world.connect(delimiter=delimiter)
    with pytest.raises(ValueError, match='its JSON contains the delimiter'):
        client.emit(type, data)
    assert client.stats()['messages_out'] == 0


def test_control_characters_in_the_data_never_end_a_message(pair: Any) -> None:
    text = ''.join(map(chr, range(32))) + '\x7f\u2028'
    for delimiter in '\n', '\f', '\0', '\x1f', '\u2028\n':
        world = pair(id=f'd{ord(delimiter[0])}', delimiter=delimiter)
        log = Log()
        world.server.on('*', log)
        world.start()
        world.connect(delimiter=delimiter).emit('m', text)
        assert log.wait('m')[0][0] == text


@pytest.mark.parametrize('wrong', ['', None, 5, b'\f', '\ud800'])
def test_what_is_no_delimiter_is_refused_where_it_is_set(wrong: Any) -> None:
    with pytest.raises(ConfigError, match='delimiter must be'):
        Config(delimiter=wrong)
