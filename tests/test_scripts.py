"""The one-liners `connect` and `serve`: every form of address, what is kept until somebody asks, and how they end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import pytest

import nodeipc
from nodeipc import ConfigError, EmitTimeout, NotConnectedError, RequestTimeout, connect, serve, tally

from .certificates import Certificates
from .conftest import Log, eventually

# For what must come; on a machine under load.
SECONDS = 20

# For what must not.
MOMENT = 0.05

linux_only = pytest.mark.skipif(sys.platform != 'linux', reason='abstract names are Linux\'s')


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(('::1', 0))
    except OSError:
        return False
    return True


ipv6_only = pytest.mark.skipif(not has_ipv6(), reason='this machine has no IPv6')


def greet(server: nodeipc.Server) -> nodeipc.Server:
    """Have a server answer."""
    server.on('message', lambda data, socket: socket.emit('message', data + ' world!'))
    return server


def url(kind: str, server: nodeipc.Server) -> str:
    """Where a server of the network is."""
    host, port = server.address
    return f'{kind}://[{host}]:{port}' if ':' in host else f'{kind}://{host}:{port}'


def threads() -> List[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith('nodeipc')]


def greeter(count: int, address: str = 'world', data: Any = None) -> nodeipc.Server:
    """A server that says `hello` so many times to whoever comes."""
    server = serve(address)

    @server.on('connect')
    def say_hello(socket: nodeipc.Socket) -> None:
        for number in range(count):
            socket.emit('hello', number if data is None else data)

    return server


def heard(end: Any, count: int) -> None:
    """Wait until an end has read so many messages."""
    eventually(lambda: end.stats()['messages_in'] >= count)


# Addresses


@pytest.mark.parametrize(
    ('address', 'path'),
    [
        ('world', '{run}/node-ipc/app.world'),
        ('a b:c', '{run}/node-ipc/app.a b:c'),
        ('{here}/a.sock', '{here}/a.sock'),
        ('./a.sock', './a.sock'),
        ('unix:{here}/a.sock', '{here}/a.sock'),
        ('unix://{here}/a.sock', '{here}/a.sock'),
        ('unix:a.sock', 'a.sock'),
        pytest.param('unix:@nodeipc test {here}', '\0nodeipc test {here}', marks=linux_only),
    ],
)
def test_ids_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    address, path = (text.format(here=tmp_path, run=tmp_path) for text in (address, path))
    with greet(serve(address)) as server, connect(address) as client:
        assert client.request('message', 'hello', timeout=SECONDS) == 'hello world!'
        assert (client.id, client.address, server.address) == (address, path, path)


@pytest.mark.parametrize('relative', [False, True])
def test_a_path_object_is_a_path_even_without_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path('world') if relative else tmp_path / 'world'
    with greet(serve(path)) as server, connect(path) as client:
        assert client.request('message', 'hello', timeout=SECONDS) == 'hello world!'
        assert (tmp_path / 'world').is_socket()
        assert client.address == server.address == str(path)


@pytest.mark.parametrize('kind', ['tcp', 'udp'])
@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost', pytest.param('[::1]', marks=ipv6_only)])
def test_hosts_and_ports(kind: str, host: str) -> None:
    with greet(serve(f'{kind}://{host}:0')) as server:
        with connect(f'{kind}://{host}:{server.address[1]}') as client:
            assert client.request('message', 'hello', timeout=SECONDS) == 'hello world!'
            assert client.address[1] == server.address[1] > 0
            assert client.connected
        if host == '[::1]':
            assert server.address[0] == '::1'


@pytest.mark.parametrize(
    ('address', 'host', 'port'),
    [
        ('tcp://', 'localhost', 4321),
        ('tcp://:', 'localhost', 4321),
        ('tcp://:1234', 'localhost', 1234),
        ('tcp://127.0.0.2', '127.0.0.2', 4321),
        ('tcp://127.0.0.2:', '127.0.0.2', 4321),
        ('tcp://[::1]', '::1', 4321),
        ('tls://', 'localhost', 4321),
        ('udp://', '127.0.0.1', 4321),
        ('udp://:1234', '127.0.0.1', 1234),
    ],
)
def test_host_and_port_may_be_left_out(address: str, host: str, port: int) -> None:
    settings: Any = {'network_host': 'localhost', 'network_port': 4321}
    with connect(address, **settings) as client:
        assert client.address == (host, port)
    assert serve(address, **settings).address == (host, port)


def test_without_settings_they_are_those_of_the_config() -> None:
    assert serve('tcp://').address == ('127.0.0.1', 8000)
    assert serve('udp://').address == ('127.0.0.1', 8000)


@pytest.mark.parametrize('function', [connect, serve])
@pytest.mark.parametrize(
    'address',
    [
        '', 'http://localhost:8000', 'TCP://localhost:1', 'tcp:localhost', 'tcp:8000', 'udp:', 'unix:', 'unix:@',
        'tcp://localhost:80a', 'tcp://localhost:-1', 'tcp://localhost:80/path', 'tcp://user@localhost:80', 'tcp://::1',
        'tcp://::1:8000', 'tcp://[::1', 'tcp://localhost:80?x', 'tcp://localhost:80#x', 'tcp://localhost:٨٠', 'wor\0ld',
    ],
)
def test_a_bad_address_says_what_forms_there_are(function: Callable[..., Any], address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        function(address)
    for form in ("an id ('world')", "'/run/world.sock'", "'unix:PATH'", "'tcp://HOST:PORT'", "'tls:", "'udp:"):
        assert form in str(caught.value)
    assert repr(address) in str(caught.value)


@pytest.mark.parametrize('function', [connect, serve])
def test_what_is_nearly_an_address_is_told_what_it_lacks(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match='write tcp://localhost:8000$'):
        function('localhost:8000')
    with pytest.raises(ConfigError, match='from 0 to 65535'):
        function('tcp://localhost:65536')
    for address in (None, 8000, b'world', ('localhost', 8000)):
        with pytest.raises(TypeError, match=r"an id \('world'\)"):
            function(address)
    assert not threads()


@pytest.mark.parametrize('function', [connect, serve])
def test_a_path_that_the_system_cannot_have_is_refused(function: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(OSError, match='choose a shorter path'):
        function(f'{tmp_path}/{"x" * 200}')
    assert not threads()


def test_a_udp_host_that_is_not_found_is_an_error_at_once() -> None:
    with pytest.raises(OSError, match=r'cannot send to udp://a\.\.b:8000'):
        connect('udp://a..b:8000')
    assert not threads()


# Settings


@pytest.mark.parametrize('function', [connect, serve])
def test_settings_that_are_wrong_raise_and_leave_nothing(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match='retry must be a number'):
        function('world', retry='500')
    with pytest.raises(AttributeError, match='max_retries'):
        function('world', max_retrys=5)
    for address in ('world', 'unix:a.sock', 'tcp://localhost', 'udp://localhost'):
        with pytest.raises(ConfigError, match='tls://HOST:PORT'):
            function(address, tls={})
    assert not threads()


def test_settings_are_those_of_the_instance_of_its_own() -> None:
    with serve('world', delimiter='\n'), connect('world', delimiter='\n', max_retries=1, retry=1) as client:
        assert client.wait_connected(SECONDS)
    with connect('nobody', max_retries=1, retry=1) as client:
        assert client.wait(SECONDS)
    assert nodeipc.ipc.config.max_retries is None
    assert 'nobody' not in nodeipc.ipc.of


def test_the_id_of_a_server_is_that_of_its_address_or_a_setting() -> None:
    for address, settings, id in (('world', {}, 'world'), ('world', {'id': 'earth'}, 'earth'), ('./w', {'id': 'w'}, 'w')):
        assert str(serve(address, **settings)).startswith(f'server {id!r} (')
    with serve('world', id='earth') as server:
        server.define.listen.message = 'a string'
        with connect('world') as client:
            described = client.request('get.events.listening', reply='events.listening', timeout=SECONDS)
    assert described == {'id': 'earth', 'events': {'message': 'a string'}}


def test_a_udp_client_refuses_what_udp_has_not() -> None:
    for settings in ({'sync': True}, {'parser': 'assured', 'allowed_events': ['x']}):
        with pytest.raises(ConfigError, match='UDP'):
            connect('udp://127.0.0.1:9', **settings)
    assert not threads()


# TLS


def test_tls_addresses(certificates: Certificates) -> None:
    with greet(serve('tls://localhost:0', tls=certificates.server())) as server, connect(
        f'tls://localhost:{server.address[1]}', tls=certificates.client()
    ) as client:
        assert client.request('message', 'hello', timeout=SECONDS) == 'hello world!'
        assert str(client).startswith('client of tls://localhost:')


def test_without_tls_settings_a_client_trusts_the_authorities_of_the_system(certificates: Certificates) -> None:
    with serve('tls://localhost:0', tls=certificates.server()) as server:
        log = Log()
        logging.getLogger('nodeipc').setLevel(logging.CRITICAL)  # the server, too, says that it failed
        try:
            address = f'tls://localhost:{server.address[1]}'
            with connect(address, lambda client: client.on('*', log), retry=60_000) as client:
                assert 'certificate' in str(log.wait('error')[0][0])
                assert not client.connected
        finally:
            logging.getLogger('nodeipc').setLevel(logging.NOTSET)


def test_a_tls_server_needs_its_key_and_certificate() -> None:
    server = serve('tls://localhost:0')
    with pytest.raises(ConfigError, match='private'):
        server.start()
    with pytest.raises(ConfigError):
        connect('tls://localhost', tls={'trusted_connections': 'there is no such file'})
    assert not threads()


# Callbacks


def test_handlers_that_the_callback_registers_miss_nothing() -> None:
    log = Log()
    said: List[Any] = []

    def ready(client: nodeipc.Client) -> None:
        said.append((client.id, client.connected))
        client.on('*', log)

    with greeter(3), connect('world', ready):
        assert said == [('world', False)]
        log.wait('hello', 3)
    assert [event[0] for event in log.events[:4]] == ['connect', 'hello', 'hello', 'hello']
    assert log.events[-2:] == [('disconnect',), ('destroy',)]
    with connect('world', lambda: said.append('called')):
        assert said[1:] == ['called']


def test_a_callback_cannot_wait_for_the_connection_that_it_holds_up() -> None:
    refused: List[str] = []

    def ready(client: nodeipc.Client) -> None:
        events = client.events('message')
        for wait in (
            lambda: client.emit('message'),
            lambda: client.request('message'),
            lambda: client.wait_for('message'),
            lambda: next(events),
        ):
            with pytest.raises(NotConnectedError, match='when the callback of connect_to has returned'):
                wait()
            refused.append('once')

    for address in ('world', 'udp://127.0.0.1:9'):
        with connect(address, ready):
            pass
    assert len(refused) == 8


def test_a_callback_that_raises_leaves_nothing() -> None:
    def fail() -> None:
        raise LookupError('in the callback')

    with pytest.raises(LookupError):
        connect('world', fail)
    assert not threads()
    server = serve('world', fail)
    with pytest.raises(LookupError):
        server.start()
    assert not threads()
    with serve('world'):
        pass
    for function in (connect, serve):
        with pytest.raises(TypeError):
            function('world', 5)  # type: ignore[operator]
    assert not threads()


def test_the_callback_of_a_server_is_called_whenever_it_is_bound_and_before_anybody_comes() -> None:
    bound: List[Any] = []
    server = serve('tcp://127.0.0.1:0', lambda server: bound.append((server.address[1] > 0, server.sockets)))
    assert bound == []
    for count in (1, 2):
        with server, connect(url('tcp', server)) as client:
            assert client.wait_connected(SECONDS)
        assert bound == [(True, ())] * count


# Closing


def test_closing_leaves_no_thread() -> None:
    with greet(serve('world')), connect('world') as client:
        client.request('message', 'hello', timeout=SECONDS)
        assert len(threads()) >= 2
    assert not threads()
    server = greet(serve('world'))
    server.start()
    client = connect('world')
    client.request('message', 'hello', timeout=SECONDS)
    client.disconnect()
    server.stop()
    assert not threads()
    with pytest.raises(NotConnectedError):
        client.emit('message')
    client.disconnect()
    server.stop()


def test_an_exception_closes_too() -> None:
    with pytest.raises(LookupError), serve('world'), connect('world'):
        raise LookupError
    assert not threads()


def test_a_client_may_leave_in_a_handler_and_a_server_stop() -> None:
    server = serve('world')
    server.on('leave', lambda: server.stop())
    with server:
        client = connect('world')
        client.on('connect', lambda: (client.emit('leave'), client.disconnect()))
        assert client.wait(SECONDS)
        assert server.wait(SECONDS)
    eventually(lambda: not threads())


def test_a_client_that_is_destroyed_is_closed_with_its_block() -> None:
    with connect('nobody', stop_retrying=True) as client:
        assert client.wait(SECONDS)
        with pytest.raises(NotConnectedError, match=r'nobody\) is destroyed, no retries left \(cannot connect: No such'):
            client.emit('message')
    eventually(lambda: not threads())  # one has closed it in the background


def test_a_server_starts_again() -> None:
    server = greet(serve('world'))
    for _ in range(2):
        with server, connect('world') as client:
            assert client.request('message', 'hello', timeout=SECONDS) == 'hello world!'
        assert not threads()


def test_serve_binds_nothing_until_it_is_started(tmp_path: Path) -> None:
    server = serve(tmp_path / 'world')
    assert not (tmp_path / 'world').exists()
    assert not threads()
    server.stop()
    with serve(tmp_path / 'world'), pytest.raises(OSError, match='world'):
        server.start()
    assert not threads()


def test_an_endless_goodbye_ends_with_its_timeout() -> None:
    gate = threading.Event()
    entered = threading.Event()
    server = serve('world')
    server.on('message', lambda: (entered.set(), gate.wait(SECONDS)))
    server.start()
    client = connect('world')
    client.emit('message')
    assert entered.wait(SECONDS)
    waited = threading.Thread(target=lambda: (server.stop(MOMENT), gate.set()))
    waited.start()
    waited.join(SECONDS / 2)
    assert gate.is_set()
    client.disconnect()


def test_a_script_that_closes_nothing_ends_and_leaves_nothing(tmp_path: Path) -> None:
    result = run("""
import nodeipc
server = nodeipc.serve('./world')
server.on('message', lambda data, socket: socket.emit('message', data + ' world!'))
server.start()
client = nodeipc.connect('./world')
print(client.request('message', 'hello', timeout=20))
client.emit('message', 'bye')
""", tmp_path)
    assert (result.stdout, result.stderr, result.returncode) == ('hello world!\n', '', 0)
    assert not (tmp_path / 'world').exists()


# What comes before anybody has asked for it


def test_what_came_is_kept_for_the_first_handler() -> None:
    with greeter(3) as server, connect('world') as client:
        heard(client, 3)
        log = Log()
        assert client.on('hello', lambda data: log('hello', data))
        assert log.wait('hello', 3) == [(0,), (1,), (2,)]
        server.broadcast('hello', 3)
        assert log.wait('hello', 4)[3] == (3,)
        second: List[Any] = []
        client.on('hello', second.append)
        server.broadcast('hello', 4)
        eventually(lambda: second)
        assert second == [4]


def test_what_came_is_kept_for_a_handler_of_every_event() -> None:
    server = serve('world')
    server.on('connect', lambda socket: [socket.emit(type, number) for number, type in enumerate('abab')])
    with server, connect('world') as client:
        heard(client, 4)
        log = Log()
        client.on('b', lambda data: log('b only', data))
        assert log.wait('b only', 2) == [(1,), (3,)]
        client.on('*', log)
        server.broadcast('c')
        log.wait('c')
        assert [event for event in log.events if event[0] in 'abc'] == [('a', 0), ('a', 2), ('c', {})]


def test_what_came_is_kept_for_the_first_who_waits() -> None:
    with greeter(3) as server, connect('world') as client:
        heard(client, 3)
        assert client.wait_for('hello', timeout=0) == 0
        with pytest.raises(RequestTimeout):
            client.wait_for('hello', timeout=MOMENT)
        server.broadcast('hello', 3)
        heard(client, 4)
        with pytest.raises(RequestTimeout):  # it was asked for something
            client.wait_for('hello', timeout=MOMENT)


def test_what_came_is_kept_for_the_first_iterator() -> None:
    with greeter(3) as server, connect('world') as client:
        heard(client, 3)
        with client.events('hello', timeout=SECONDS) as events, client.events(timeout=MOMENT) as second:
            server.broadcast('hello', 3)
            assert [next(events).data for _ in range(4)] == [0, 1, 2, 3]
            assert [next(second).data] == [3]
            with pytest.raises(RequestTimeout):
                next(second)


def test_only_what_is_asked_for_is_taken_out_for_a_handler() -> None:
    server = serve('world')
    server.on('connect', lambda socket: (socket.emit('a', 1), socket.emit('b', 2)))
    with server, connect('world') as client:
        heard(client, 2)
        got: List[Any] = []
        client.on('connect', lambda: got.append('connect'))
        client.on('error', got.append)
        client.on('b', got.append)
        eventually(lambda: 2 in got)
        assert next(client.events(timeout=SECONDS)).type == 'a'
        assert got == ['connect', 2]


def test_a_server_keeps_what_comes_for_who_asks_first() -> None:
    with serve('world') as server, connect('world') as client:
        client.emit('a', 1)
        client.emit('b', 2)
        heard(server, 2)
        log = Log()
        server.on('b', lambda data, socket: log('b', data, socket))
        ((data, socket),) = log.wait('b')
        assert data == 2
        event = next(server.events(timeout=SECONDS))
        assert event == ('a', 1, socket)
        event.socket.emit('answer')
        client.wait_for('answer', timeout=SECONDS)


def test_no_more_is_kept_than_256_kib() -> None:
    with greeter(3, data='x' * 100_000) as server, connect('world') as client:
        heard(client, 3)
        events = client.events('hello', timeout=SECONDS)
        server.broadcast('hello', 'last')
        assert next(events).data == 'last'
    with greeter(1000) as server, connect('world') as client:  # the objects count, too
        heard(client, 1000)
        events = client.events('hello', timeout=SECONDS)
        server.broadcast('hello', 'last')
        assert next(events).data == 'last'


def test_an_instance_keeps_nothing(pair: Any) -> None:
    world = pair()
    world.server.on('connect', lambda socket: socket.emit('hello', 1))
    client = world.start().connect()
    heard(client, 1)
    client.emit('message', 1)
    heard(world.server, 1)
    events, theirs = client.events(timeout=MOMENT), world.server.events(timeout=MOMENT)
    for each in (events, theirs):
        with pytest.raises(RequestTimeout):
            next(each)


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads take turns as often as can be, so that what can come between does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize('how', ['events', 'on', 'wait_for'])
def test_nothing_falls_between_what_was_kept_and_what_comes(how: str, frequent_switches: None) -> None:
    """Whoever asks while more is being read, at whatever moment, misses none."""
    count = 200  # of which none is too many to be kept
    with greeter(count):
        for read in range(0, count, 8):
            with connect('world') as client:
                while client.stats()['messages_in'] < read:
                    pass
                got: List[Any] = []
                if how == 'wait_for':
                    got.append(client.wait_for('hello', timeout=SECONDS))
                elif how == 'on':
                    client.on('hello', got.append)
                    eventually(lambda got=got: len(got) == count)  # type: ignore[misc]
                else:
                    events = client.events('hello', timeout=SECONDS)
                    got.extend(next(events).data for _ in range(count))
                assert got == list(range(len(got)))


# UDP clients


def test_a_udp_client_emits_asks_and_iterates() -> None:
    log = Log()
    with greet(serve('udp://127.0.0.1:0')) as server, connect(
        url('udp', server), lambda client: client.on('*', log)
    ) as client:
        assert client.wait_connected(0) is True
        with client.events('message', timeout=SECONDS) as events:
            for _ in range(3):
                client.emit('message', 'hello')
            assert [next(events).data for _ in range(3)] == ['hello world!'] * 3
        with client.batch():
            assert client.request('message', 'hi', timeout=SECONDS) == 'hi world!'
        client.flush(SECONDS)
        assert client.stats()['messages_out'] == 4
        (peer,) = server.sockets
        peer.emit('news', 1)
        assert log.wait('news') == [(1,)]
        client.disconnect()
        assert not client.connected
        with pytest.raises(NotConnectedError):
            client.emit('message')
        with pytest.raises(NotConnectedError):
            client.wait_connected(0)
    assert [event[0] for event in log.events if event[0] != 'message'] == ['connect', 'news', 'disconnect', 'destroy']


def test_calls_of_a_udp_client() -> None:
    server = serve('udp://127.0.0.1:0')
    server.method('add', lambda a, b: a + b)
    with server, connect(url('udp', server)) as client:
        client.method('name', lambda: 'client')
        assert client.call('add', 1, 2, timeout=SECONDS) == 3
        (peer,) = server.sockets
        assert peer.call('name', timeout=SECONDS) == 'client'


def test_a_udp_client_hears_from_nobody_else() -> None:
    with greet(serve('udp://127.0.0.1:0')) as server, connect(url('udp', server)) as client:
        events = client.events(timeout=SECONDS)
        client.emit('message', 'hello')
        assert next(events).data == 'hello world!'
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b'{"type":"message","data":"stranger"}\f', server.sockets[0].address)
        client.emit('message', 'bye')
        assert next(events).data == 'bye world!'


@linux_only
def test_a_udp_server_that_is_not_there_ends_a_request_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    with connect(f'udp://127.0.0.1:{port}') as client:
        with pytest.raises(NotConnectedError, match='nobody receives there'):
            client.request('message', timeout=SECONDS)
        events = client.events(timeout=SECONDS)
        client.emit('message')
        with pytest.raises(NotConnectedError, match='nobody receives there'):
            next(events)
        with greet(serve(f'udp://127.0.0.1:{port}')):
            assert client.request('message', 'hello', timeout=SECONDS) == 'hello world!'


def test_what_a_udp_client_cannot_read_or_keep_is_dropped_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, '_REPORT_SECONDS', 0.2)
    gate = threading.Event()
    log = Log()
    with serve('udp://127.0.0.1:0') as server, connect(url('udp', server)) as client:
        client.on('error', lambda error: log('error', error))
        client.emit('hello')
        heard(server, 1)
        (peer,) = server.sockets
        with socket.socket(fileno=os.dup(server._door._sock.fileno())) as door:
            door.sendto(b'not JSON\f', peer.address)
        assert log.wait('error')[0][0].code == 'ERR_IPC_INVALID_JSON'
        handled: List[Any] = []
        client.on('block', lambda data: (gate.wait(SECONDS), handled.append(data)))
        for number in range(60):
            peer.emit('block', [number, 'x' * 40_000])
            eventually(lambda number=number: client.stats()['bytes_in'] >= (number + 1) * 40_000)  # type: ignore[misc]
        gate.set()
        eventually(lambda: any('have not kept up' in str(error) for (error,) in log.of('error')))
        numbers = [number for number, _ in handled]
        assert numbers == sorted(numbers)
        assert len(numbers) < 60
        peer.emit('block', ['last', ''])
        eventually(lambda: handled[-1] == ['last', ''])


def test_an_iterator_of_a_udp_client_is_bounded() -> None:
    log = Log()
    with serve('udp://127.0.0.1:0') as server, connect(
        url('udp', server), lambda client: client.on('error', log)
    ) as client:
        events = client.events('block', timeout=0.2)
        client.emit('hello')
        heard(server, 1)
        for number in range(20):
            server.sockets[0].emit('block', [number, 'x' * 50_000])
            eventually(lambda number=number: client.stats()['bytes_in'] >= (number + 1) * 50_000)  # type: ignore[misc]
        eventually(lambda: log.events)
        assert 'have not kept up' in str(log.events[0][0])
        with pytest.raises(RequestTimeout):
            while True:
                next(events)
        assert client.stats()['messages_in'] < 10
        server.sockets[0].emit('block', ['after', ''])
        assert next(events).data == ['after', '']


# Waiting for the end


def test_wait_starts_a_server_and_ends_with_it(tmp_path: Path) -> None:
    server = serve('world')
    server.on('start', lambda: log('start'))
    log = Log()
    assert server.wait(MOMENT) is False
    log.wait('start')
    assert server.listening
    stopper = threading.Timer(MOMENT, server.stop)
    stopper.start()
    assert server.wait() is True
    assert server.wait() is True  # and it is not started again
    stopper.join()
    with serve('world'), pytest.raises(OSError, match='world'):
        serve('world').wait()


def test_wait_ends_with_the_client() -> None:
    with serve('world'), connect('world') as client:
        assert client.wait(MOMENT) is False
        leaver = threading.Timer(MOMENT, client.disconnect)
        leaver.start()
        assert client.wait() is True
        leaver.join()
    with connect('nobody', stop_retrying=True) as client:
        assert client.wait() is True


def test_wait_in_a_handler_would_wait_for_itself() -> None:
    refused: List[Any] = []

    def wait(end: Any) -> None:
        with pytest.raises(RuntimeError, match='in a handler'):
            end.wait()
        refused.append(end)

    server = serve('world')
    server.on('start', wait)
    with server, connect('world', lambda client: client.on('connect', lambda: wait(client))) as client:
        eventually(lambda: len(refused) == 2)
        assert set(refused) == {server, client}


def run(script: str, directory: Any) -> Any:
    """Run a script to its end."""
    return subprocess.run(
        script_command(script), cwd=str(directory), env=environment(), capture_output=True, timeout=60, text=True
    )


def script_command(script: str) -> Tuple[str, ...]:
    return (sys.executable, '-S', '-X', 'dev', '-W', 'error', '-c', script)


def environment() -> Any:
    return {**os.environ, 'PYTHONPATH': str(Path(nodeipc.__file__).parent.parent)}


@pytest.mark.parametrize(
    ('line', 'code', 'said'),
    [
        ('print(server.wait(), server.listening, flush=True)', 0, 'True False'),
        ('client.wait_connected(20); print(client.wait(), client.connected, flush=True)', 0, 'True False'),
        ('client.wait_connected(20); client.wait_for("never")', 130, ''),
        ('[event for event in server.events()]', 130, ''),
    ],
)
def test_ctrl_c_ends_a_script(tmp_path: Path, line: str, code: int, said: str) -> None:
    """Of the waits; those that are not meant to be ended so raise KeyboardInterrupt, and the blocks close."""
    script = f"""
import nodeipc, sys
server = nodeipc.serve('./world')
server.on('connect', lambda: print('ready', flush=True))
with server, nodeipc.connect('./world') as client:
    try:
        {line}
    except KeyboardInterrupt:
        sys.exit(130)
"""
    process = subprocess.Popen(
        script_command(script), cwd=str(tmp_path), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b'ready\n'
        time.sleep(MOMENT)  # so that it does wait, most of the time; if not yet, it ends no less
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
        process.wait()
    assert (output.decode().strip(), errors.decode(), process.returncode) == (said, '', code)
    assert not (tmp_path / 'world').exists()


def test_emit_waits_for_a_server_that_comes_late() -> None:
    with connect('world', retry=10) as client:
        with pytest.raises(EmitTimeout):
            client.emit('message', timeout=0)
        server = serve('world')
        starter = threading.Timer(MOMENT, server.start)
        starter.start()
        client.emit('message', 'hello')
        assert next(server.events('message', timeout=SECONDS)).data == 'hello'
        starter.join()
        server.stop()
