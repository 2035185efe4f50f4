"""TLS with openssl's own client and server, and what only they can do: new keys, renegotiation, resumed sessions."""

from __future__ import annotations

import array
import fcntl
import os
import re
import shutil
import socket
import ssl
import subprocess
import termios
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest

from .certificates import Certificates
from .conftest import Log, eventually
from .tls_peers import VERSIONS, World, client_context, listener, server_context, turns_while_idle

pytestmark = pytest.mark.skipif(shutil.which('openssl') is None, reason='needs the openssl command')

Worlds = Callable[..., World]
far_server = pytest.fixture(listener)


@pytest.fixture
def world(make: Any, certificates: Certificates) -> Worlds:
    return lambda **settings: World(make, certificates, **settings)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Tool:
    """``openssl s_client`` or ``s_server``: what it prints, and a keyboard."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            ['openssl', *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.printed = b''
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while True:
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                return
            self.printed += chunk

    def type(self, text: bytes) -> None:
        """Type something, and wait until it is read: commands are the first letter of what one read gives."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(text)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and the test will see why
        pipe = self.process.stdin.fileno()
        unread = array.array('i', [0])

        def is_read() -> bool:
            fcntl.ioctl(pipe, termios.FIONREAD, unread)
            return not unread[0] or self.process.poll() is not None

        eventually(is_read)

    def wait_for(self, pattern: bytes) -> Any:
        try:
            return eventually(lambda: re.search(pattern, self.printed), 10)
        except AssertionError:
            raise AssertionError(f'{pattern!r} not in {self.printed!r}') from None

    def end_of_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self) -> int:
        code = self.process.wait(20)
        self._reader.join(20)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        self._reader.join(20)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                pass


@pytest.fixture
def tool() -> Iterator[Callable[..., Tool]]:
    tools: List[Tool] = []

    def start(*arguments: str) -> Tool:
        tools.append(Tool(*arguments))
        return tools[-1]

    yield start
    for each in tools:
        each.close()


@pytest.fixture
def s_client(tool: Any, certificates: Certificates) -> Callable[..., Tool]:
    def start(here: World, version: Optional[str] = None, *arguments: str) -> Tool:
        chosen = [] if version is None else ['-' + version.lower().replace('tlsv', 'tls')]
        port = here.server.address[1]
        verify = ['-CAfile', certificates.pem('ca'), '-verify_return_error', '-verify_hostname', 'localhost']
        started = tool('s_client', '-connect', f'127.0.0.1:{port}', '-servername', 'localhost', *verify, *chosen, *arguments)
        assert isinstance(started, Tool)
        return started

    return start


@pytest.fixture
def s_server(tool: Any, certificates: Certificates) -> Callable[..., Any]:
    """Start one; gives it and its port."""

    def start(version: str, *arguments: str) -> Any:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        chosen = '-' + version.lower().replace('tlsv', 'tls')
        own = ['-cert', certificates.pem('server'), '-key', certificates.key('server')]
        started = tool('s_server', '-accept', str(port), '-4', *own, chosen, *arguments)
        started.wait_for(b'ACCEPT')
        return started, port

    return start


def test_frames_typed_into_s_client(world: Worlds, s_client: Any, version: str) -> None:
    here = world()
    here.server.on('message', lambda data, socket: socket.emit('message', [data, 'world!']))
    here.start()
    client = s_client(here, version, '-quiet')
    client.type(b'{"type":"message","data":"hello"}\f')
    client.wait_for(re.escape(b'{"type":"message","data":["hello","world!"]}\f'))
    client.type(b'\n{ "type" : "message",\r\n "data" : 2 }\f\n')  # as one types by hand
    client.wait_for(re.escape(b'{"type":"message","data":[2,"world!"]}\f'))
    assert here.log.of('error') == []


def test_s_client_learns_of_the_goodbye(world: Worlds, s_client: Any, version: str) -> None:
    here = world().start()
    client = s_client(here, version)
    client.wait_for(b'Verify return code: 0')
    client.type(b'{"type":"message","data":"hello"}\f')
    here.log.wait('message')
    here.server.stop()
    assert client.wait() == 0
    assert b'closed' in client.printed
    assert b'error' not in client.printed
    assert here.log.of('error') == []


def test_frames_typed_into_s_server(make: Any, certificates: Certificates, s_server: Any, version: str) -> None:
    peer, port = s_server(version)
    log = Log()
    ipc = make(tls=certificates.client())
    client = ipc.connect_to_net('world', '127.0.0.1', port, lambda client: client.on('*', log))
    client.emit('message', 'hello')
    peer.wait_for(re.escape(b'{"type":"message","data":"hello"}\f'))
    peer.type(b'{"type":"message","data":"by hand"}\f')
    assert log.wait('message') == [('by hand',)]
    client.disconnect()
    assert log.of('error') == []


@pytest.mark.parametrize('command', [b'k', b'K'], ids=['update', 'update and ask for one'])
def test_new_keys_from_s_client(world: Worlds, s_client: Any, command: bytes, monkeypatch: Any) -> None:
    here = world()
    here.server.on('message', lambda data, socket: socket.emit('answer', data))
    here.start()
    client = s_client(here, 'TLSv1_3')
    client.wait_for(b'Verify return code: 0')
    for number in range(5):
        client.type(command)
        client.wait_for(b'(KEYUPDATE\n[^K]*){%d}' % (number + 1))
        client.type(b'{"type":"message","data":%d}\f' % number)
        client.wait_for(re.escape(b'{"type":"answer","data":%d}\f' % number))
    assert here.log.of('error') == []
    assert turns_while_idle(monkeypatch, 0.2) < 5


@pytest.mark.parametrize('command', [b'k', b'K'], ids=['update', 'update and ask for one'])
def test_new_keys_from_s_server(make: Any, certificates: Certificates, s_server: Any, command: bytes) -> None:
    peer, port = s_server('TLSv1_3')
    log = Log()
    ipc = make(tls=certificates.client())
    client = ipc.connect_to_net('world', '127.0.0.1', port, lambda client: client.on('*', log))
    client.emit('message', -1)
    peer.wait_for(re.escape(b'{"type":"message","data":-1}\f'))
    for number in range(5):
        peer.type(command + b'\n')
        peer.type(b'{"type":"message","data":%d}\f' % number)
        log.wait('message', number + 1)
        client.emit('message', number)
        peer.wait_for(re.escape(b'{"type":"message","data":%d}\f' % number))
    assert log.of('error') == []


def test_an_emit_in_a_destructor_that_interrupts_what_the_protocol_says_harms_nothing(
    make: Any, certificates: Certificates, s_server: Any
) -> None:
    """__del__ may run on the reactor thread, while it writes what the socket did not take: here, of a new handshake."""
    peer, port = s_server('TLSv1_2')
    log = Log()
    ipc = make(tls=client_context(certificates))  # which allows it
    client = ipc.connect_to_net('world', '127.0.0.1', port, lambda client: client.on('*', log))
    client.emit('message', 1)
    peer.wait_for(re.escape(b'{"type":"message","data":1}\f'))
    tls = client._connection._tls
    sock = tls._sock
    done = threading.Event()

    class Interrupted:
        refuses = True

        def send(self, *arguments: Any) -> int:
            if self.refuses:
                self.refuses = False
                raise BlockingIOError
            sent = int(sock.send(*arguments))
            tls._sock = sock
            client.emit('message', 2)
            done.set()
            return sent

        def __getattr__(self, name: str) -> Any:
            return getattr(sock, name)

    tls._sock = Interrupted()
    peer.type(b'r\n')
    assert done.wait(20)
    client.emit('message', 3)
    peer.wait_for(re.escape(b'{"type":"message","data":3}\f'))
    assert b'{"type":"message","data":2}\f' in peer.printed
    assert log.of('error') == []
    assert len(log.of('connect')) == 1


def test_key_updates_under_load(world: Worlds, s_client: Any) -> None:
    here = world()
    here.server.on('message', lambda data, socket: [socket.emit('answer', '\x7f' * 10_000) for _ in range(20)])
    here.start()
    client = s_client(here, 'TLSv1_3')
    client.wait_for(b'Verify return code: 0')
    for number in range(20):
        client.type(b'{"type":"message","data":%d}\f' % number)
        here.log.wait('message', number + 1)
        client.type(b'K')
    eventually(lambda: client.printed.count(b'\x7f') == 20 * 20 * 10_000)  # what it prints of its own may cut them
    assert here.log.of('error') == []


@pytest.mark.parametrize('own', [False, True], ids=['mapping', 'context of the application'])
def test_a_renegotiation_that_s_client_asks_for_harms_nobody(
    world: Worlds, certificates: Certificates, s_client: Any, own: bool, monkeypatch: Any
) -> None:
    here = world(tls=server_context(certificates) if own else None).start()
    client = s_client(here, 'TLSv1_2')
    client.wait_for(b'Verify return code: 0')
    client.type(b'{"type":"message","data":1}\f')
    here.log.wait('message')
    client.type(b'R')
    client.wait_for(b'RENEGOTIATING')
    client.type(b'{"type":"message","data":2}\f')
    # It is refused by an alert. s_client leaves then; another goes on.
    eventually(lambda: here.log.of('socket.disconnected') or len(here.log.of('message')) == 2)
    here.still_serves()
    assert turns_while_idle(monkeypatch, 0.2) < 5


@pytest.mark.parametrize('command', [b'r', b'R'], ids=['renegotiate', 'renegotiate and ask for a certificate'])
@pytest.mark.parametrize('own', [False, True], ids=['mapping', 'context of the application'])
def test_a_renegotiation_that_s_server_asks_for(
    make: Any, certificates: Certificates, s_server: Any, own: bool, command: bytes, monkeypatch: Any
) -> None:
    peer, port = s_server('TLSv1_2')
    log = Log()
    ipc = make(tls=client_context(certificates, own='client') if own else certificates.client())
    client = ipc.connect_to_net('world', '127.0.0.1', port, lambda client: client.on('*', log))
    client.emit('message', 1)
    peer.wait_for(re.escape(b'{"type":"message","data":1}\f'))
    peer.type(command + b'\n')
    peer.wait_for(b'SSL_do_handshake')
    if own:  # which allows it
        peer.type(b'{"type":"message","data":"after"}\f')
        log.wait('message')
        client.emit('message', 2)
        peer.wait_for(re.escape(b'{"type":"message","data":2}\f'))
        assert log.of('error') == []
        assert len(log.of('connect')) == 1
    else:  # it survives, or is closed and opened again
        client.emit('message', 2, timeout=10)
        eventually(lambda: b'{"type":"message","data":2}\f' in peer.printed or len(log.of('connect')) > 1)
    assert turns_while_idle(monkeypatch, 0.1) < 10


def test_renegotiations_while_both_sides_send(make: Any, certificates: Certificates, s_server: Any) -> None:
    peer, port = s_server('TLSv1_2')
    log = Log()
    ipc = make(tls=client_context(certificates))
    client = ipc.connect_to_net('world', '127.0.0.1', port, lambda client: client.on('*', log))
    client.emit('first')
    peer.wait_for(b'first')
    stop = threading.Event()
    sent: List[int] = []

    def emit() -> None:
        while not stop.is_set():
            client.emit('n', [len(sent), 'x' * 100])
            sent.append(1)

    emitter = threading.Thread(target=emit)
    emitter.start()
    try:
        for number in range(5):
            peer.type(b'r\n')
            eventually(lambda number=number: peer.printed.count(b'SSL_do_handshake -> 1\n') > number)
            peer.type(b'{"type":"message","data":%d}\f' % number)
            log.wait('message', number + 1)
    finally:
        stop.set()
        emitter.join(20)
    client.emit('last')
    peer.wait_for(b'last')
    assert log.of('error') == []
    typed_between = re.compile(b'SSL_do_handshake -> 1\n|Read BLOCK\n|Write BLOCK\n')  # what it says of itself, anywhere
    frames = typed_between.sub(b'', peer.printed)
    assert [int(number) for number in re.findall(rb'"n","data":\[(\d+),"x{100}"\]}\f', frames)] == list(range(len(sent)))


class Wire:
    """A wire between a client and a port, that can hold what the client says."""

    def __init__(self, listener: socket.socket, port: int) -> None:
        self.held = b''
        self.flows = threading.Event()
        self.flows.set()
        self._ends = listener.accept()[0], socket.create_connection(('127.0.0.1', port))
        self._threads = [threading.Thread(target=self._carry, args=ends) for ends in (self._ends, self._ends[::-1])]
        for thread in self._threads:
            thread.start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        from_client = source is self._ends[0]
        while True:
            try:
                chunk = source.recv(1 << 16)
                if from_client and not self.flows.is_set():
                    self.held += chunk
                    self.flows.wait(20)
                target.sendall(chunk)
                if not chunk:
                    target.shutdown(socket.SHUT_WR)
            except OSError:
                return
            if not chunk:
                return

    def close(self) -> None:
        self.flows.set()
        for thread in self._threads:
            thread.join(20)
        for end in self._ends:
            end.close()


def test_an_emit_during_a_renegotiation_waits_for_the_peer_and_does_not_spin(
    make: Any, certificates: Certificates, s_server: Any, far_server: socket.socket, monkeypatch: Any
) -> None:
    peer, port = s_server('TLSv1_2')
    log = Log()
    ipc = make(tls=client_context(certificates))  # which allows it
    client = ipc.connect_to_net('world', *far_server.getsockname(), lambda client: client.on('*', log))
    wire = Wire(far_server, port)
    try:
        client.emit('first')
        peer.wait_for(b'first')
        wire.flows.clear()
        peer.type(b'r\n')
        eventually(lambda: wire.held)  # it has begun with it
        client.emit('second')
        assert client.stats()['pending_bytes'] > 0
        assert turns_while_idle(monkeypatch, 0.2) < 5
        assert b'second' not in peer.printed
        wire.flows.set()
        peer.wait_for(b'second')
        client.flush(20)
        client.disconnect()
    finally:
        wire.close()
    assert log.of('error') == []
    assert len(log.of('connect')) == 1


@pytest.mark.parametrize('own', [False, True], ids=['mapping', 'context of the application'])
def test_sessions_are_resumed(
    world: Worlds, certificates: Certificates, s_client: Any, version: str, tmp_path: Path, own: bool
) -> None:
    here = world(tls=server_context(certificates) if own else None)
    here.server.on('message', lambda data, socket: socket.emit('answer', data))
    here.start()
    session = str(tmp_path / 'session')
    for number, way in enumerate(['-sess_out', '-sess_in', '-sess_in']):
        client = s_client(here, version, way, session)
        client.type(b'{"type":"message","data":%d}\f' % number)
        client.wait_for(re.escape(b'{"type":"answer","data":%d}\f' % number))
        client.wait_for(b'New, TLS' if number == 0 else b'Reused, TLS')
        client.type(b'Q')
        client.wait()
    here.log.wait('socket.disconnected', 3)


def test_a_resumed_session_of_mutual_tls_has_its_certificate(
    world: Worlds, certificates: Certificates, s_client: Any, version: str, tmp_path: Path
) -> None:
    here = world(tls=certificates.mutual('server')).start()
    session = str(tmp_path / 'session')
    own = ['-cert', certificates.pem('client'), '-key', certificates.key('client')]
    for number, way in enumerate(['-sess_out', '-sess_in']):
        client = s_client(here, version, *own, way, session)
        client.wait_for(b'New, TLS' if number == 0 else b'Reused, TLS')
        client.type(b'{"type":"message","data":%d}\f' % number)
        accepted = here.log.wait('message', number + 1)[-1][1]
        client.type(b'Q')
        client.wait()
        assert accepted.certificate['subject'] == ((('commonName', 'client'),),)


@pytest.mark.parametrize('old', ['tls1', 'tls1_1'])
@pytest.mark.parametrize('own', [False, True], ids=['mapping', 'context of the application'])
def test_s_client_of_a_broken_version_is_refused(
    world: Worlds, certificates: Certificates, s_client: Any, old: str, own: bool
) -> None:
    context = None
    if own:
        context = server_context(certificates)
        context.set_ciphers('DEFAULT@SECLEVEL=0')
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    here = world(tls=context).start()
    client = s_client(here, None, '-' + old, '-cipher', 'DEFAULT@SECLEVEL=0')
    client.type(b'{"type":"message","data":1}\f')
    client.wait()
    ((error, accepted),) = here.log.wait('error')
    assert '1.2' in str(error)
    assert 'needed' in str(error)
    assert accepted is None
    assert here.log.of('connect') == here.log.of('message') == []
    here.still_serves()


def test_s_client_sends_a_file_that_is_larger_than_all_buffers(world: Worlds, version: str, tmp_path: Path) -> None:
    here = world()
    got: List[int] = []
    here.server.on('big', lambda data: got.append(len(data)))
    here.server.off('*')
    here.start()
    with open(tmp_path / 'frames', 'wb') as file:
        for _ in range(5):
            file.write(b'{"type":"big","data":"' + b'x' * 2_000_000 + b'"}\f')
    chosen = '-' + version.lower().replace('tlsv', 'tls')
    with open(tmp_path / 'frames', 'rb') as file:
        subprocess.run(
            ['openssl', 's_client', '-quiet', '-no_ign_eof', chosen, '-connect', f'127.0.0.1:{here.server.address[1]}'],
            stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip
    eventually(lambda: got == [2_000_000] * 5)
