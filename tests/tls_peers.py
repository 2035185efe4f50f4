"""What the tests of TLS talk to and talk with: a server with a log, contexts of the standard library, and TLS by hand."""

from __future__ import annotations

import socket
import ssl
import time
import warnings
from typing import Any, Callable, Iterator, Optional, Tuple

from nodeipc.reactor import Reactor

from .certificates import Certificates
from .conftest import Log

VERSIONS = ['TLSv1_2', 'TLSv1_3']

_SECONDS = 20.0


def server_context(certificates: Certificates, version: Optional[str] = None, name: str = 'server') -> ssl.SSLContext:
    """A server's context as applications make it, of one version only if it is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.pem(name), certificates.key(name))
    return of_version(context, version)


def client_context(certificates: Certificates, version: Optional[str] = None, own: Optional[str] = None) -> ssl.SSLContext:
    """A client's, which trusts the CA, and shows a certificate of its `own`."""
    context = ssl.create_default_context(cafile=certificates.pem('ca'))
    if own is not None:
        context.load_cert_chain(certificates.pem(own), certificates.key(own))
    return of_version(context, version)


def of_version(context: ssl.SSLContext, version: Optional[str]) -> ssl.SSLContext:
    if version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)  # versions that nobody should use
            context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    return context


class World:
    """A TLS server, the log of its events, and what connects to it."""

    def __init__(self, make: Callable[..., Any], certificates: Certificates, tls: Any = None, **settings: Any) -> None:
        self.make = make
        self.certificates = certificates
        self.ipc = make(tls=certificates.server() if tls is None else tls, **settings)
        self.server = self.ipc.serve_net('127.0.0.1', 0)
        self.log = Log()
        self.server.on('*', self.log)

    def start(self) -> World:
        self.server.start()
        return self

    def connect(self, tls: Any = None, host: str = '127.0.0.1', **settings: Any) -> Tuple[Any, Log]:
        """A client in an instance of its own, and the log of its events."""
        ipc = self.make(id='client', tls=self.certificates.client() if tls is None else tls, **settings)
        log = Log()
        return ipc.connect_to_net('world', host, self.server.address[1], lambda client: client.on('*', log)), log

    def plain(self) -> socket.socket:
        """A connected socket without TLS."""
        return socket.create_connection(self.server.address, _SECONDS)

    def raw(self, version: Optional[str] = None, context: Optional[ssl.SSLContext] = None) -> ssl.SSLSocket:
        """A connected socket of the standard library, which takes no ragged end for an end."""
        if context is None:
            context = client_context(self.certificates, version)
        return context.wrap_socket(self.plain(), server_hostname='localhost', suppress_ragged_eofs=False)

    def by_hand(self, version: Optional[str] = None) -> ByHand:
        """A client that has said nothing yet."""
        return ByHand(self.plain(), client_context(self.certificates, version), server_hostname='localhost')

    def still_serves(self) -> None:
        """Assert that somebody new is answered."""
        self.server.on('ping', lambda data, socket: socket.emit('pong', data))
        client, log = self.connect()
        client.emit('ping', 7)
        assert log.wait('pong') == [(7,)]
        client.disconnect()


class ByHand:
    """An end of TLS whose bytes the test carries: what it writes waits in `outgoing` until it is sent."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, **options: Any) -> None:
        self.sock = sock
        self.sock.settimeout(_SECONDS)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, **options)

    def __enter__(self) -> ByHand:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.sock.close()

    def send(self) -> None:
        """Send what waits."""
        self.sock.sendall(self.outgoing.read())

    def receive(self) -> bool:
        """Take what has come; False at the end."""
        chunk = self.sock.recv(1 << 16)
        if chunk:
            self.incoming.write(chunk)
        else:
            self.incoming.write_eof()
        return bool(chunk)

    def say_hello(self) -> None:
        """Begin the handshake: the first flight of a client."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self.send()

    def shake_hands(self, hold_last: bool = False) -> ByHand:
        """Do the handshake; with `hold_last` our last flight is not sent."""
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.send()
                assert self.receive(), 'the other end closed during the handshake'
        if not hold_last:
            self.send()
        return self

    def write(self, data: bytes) -> ByHand:
        """Encrypt."""
        self.tls.write(data)
        return self

    def read(self) -> bytes:
        """Return some bytes; empty at the other end's close_notify."""
        while True:
            try:
                return self.tls.read(1 << 16)
            except ssl.SSLWantReadError:
                self.send()
                self.receive()
            except ssl.SSLZeroReturnError:
                return b''


def turns_while_idle(monkeypatch: Any, seconds: float = 0.3) -> int:
    """Return how often the reactors of this process woke up in some time in which nothing happens."""
    turns = [0]
    turn = Reactor._turn

    def counting(self: Any, *arguments: Any, **named: Any) -> None:
        turns[0] += 1
        turn(self, *arguments, **named)

    monkeypatch.setattr(Reactor, '_turn', counting)
    time.sleep(seconds)
    monkeypatch.undo()
    return turns[0]


def listener() -> Iterator[socket.socket]:
    """A listening socket, for servers that are not ours."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        sock.listen()
        sock.settimeout(_SECONDS)
        yield sock
