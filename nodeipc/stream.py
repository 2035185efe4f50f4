"""The server of stream sockets, Unix and TCP: it listens, and has a connection for each client."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket as socket_module
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Tuple

from .acceptor import Acceptor
from .address import (
    KNOWS_PEERS,
    Listener,
    Peer,
    StreamAddress,
    TCPAddress,
    TLSAddress,
    UnixAddress,
    adopt,
    listen,
    peer_of,
    prepare_tcp,
    readable,
)
from .config import Config, seconds
from .connection import STARVED, Connection, Owner, log_level
from .deadline import Deadline
from .engine import Engine
from .errors import ConfigError, NotConnectedError, advice, retold
from .log import say
from .role import Carrier, assured_needs_tls
from .server import Server, Socket
from .socketroot import check_assured_path, verify_root
from .tally import Tally
from .wire import NO_DATA, Event, Payload

if TYPE_CHECKING:  # imported by servers that have TLS
    from ssl import SSLContext

    from .handshake import Lobby
    from .tlsstream import TLSStream


# Of what a client has said, read when it is refused.
_REFUSED_BYTES = 64 << 10


class StreamSocket(Socket, Owner):
    """A client of a stream server."""

    __slots__ = ('_connection',)

    def __init__(
        self, server: StreamServer, sock: socket_module.socket, engine: Engine, address: Any, tls: Optional[TLSStream]
    ) -> None:
        super().__init__(server, engine, address)
        self.peer = peer_of(sock)
        self.certificate = None if tls is None else tls.certificate
        self._connection = Connection(
            sock,
            f'a client of {server}' if isinstance(address, str) else f'{readable(address)}, a client of {server}',
            self,
            engine.reactor,
            self._strand,
            server._parser,
            server._config,
            tls,
        )

    def __str__(self) -> str:
        return self._connection.name

    @property
    def connected(self) -> bool:
        return self._connection.is_open

    @property
    def pending_bytes(self) -> int:
        return self._connection.pending

    def emit(self, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        frame = self._encode(type, data)
        if not self._connection.send(frame, self._server._emit_timeout if timeout is None else timeout):
            raise NotConnectedError(f'{self._connection.name} is gone; {type!r} was not sent')

    def _send_request(self, frame: bytes, timeout: Optional[float], stand: Callable[[], Any]) -> None:
        if not self._connection.send(frame, self._server._emit_timeout if timeout is None else timeout, 1, stand):
            raise NotConnectedError(f'{self._connection.name} is gone; nothing was sent')

    def _read_on(self) -> None:
        self._connection.read_on()

    def close(self) -> None:
        self._hang_up()
        self._strand.deliver = self._drop
        self._connection.call(self._connection.begin_close)

    # Reactor thread

    def _stop(self) -> None:
        """Say goodbye after what has arrived is handled and answered."""
        self._connection.stop_reading()
        self._says_no_more('the server is being stopped', False)
        self._connection.expect_progress()  # a handler may wait for it to read, and stop() waits for the handler
        self._close_when_handled()

    def _close_when_handled(self) -> None:
        self._strand.post(self._connection.call, self._connection.begin_close)

    def _drop(self, type: str, data: Any) -> None:
        say(logging.DEBUG, '%s: %r arrived and was dropped by close()', self, type)

    def _connection_heard(self, connection: Connection, events: List[Event], size: int) -> List[Event]:
        if self._waiting is None and self._server._waiters_here.want_nothing_of(events):
            return events
        return self._heard(events, size, connection)

    def _is_awaited(self) -> bool:
        return self._waiting is not None and self._waiting.is_awaited

    def _connection_starved(self, connection: Connection) -> None:
        if self._waiting is not None:
            self._waiting.fail(STARVED)

    def _connection_ended(self, connection: Connection) -> None:
        self._says_no_more(connection.why_lost, False)
        self._close_when_handled()  # half-closed clients get their answers

    def _connection_broken(self, connection: Connection, error: Exception) -> None:
        self._says_no_more(connection.why_lost, True)
        self._strand.post(connection.call, connection.cut)  # when what it asked before is answered
        self._strand.post(self._report_failure, error)

    def _connection_failed(self, connection: Connection, error: Exception) -> None:
        self._strand.post(self._report_failure, error)

    def _connection_closed(self, connection: Connection) -> None:
        self._server._left(self, connection.why_lost, connection.failure is not None, connection)

    # On the strand

    def _report_failure(self, error: Exception) -> None:
        self._server._report(error, self, level=log_level(error))


class StreamServer(Server):
    """A server of Unix or TCP sockets."""

    _door: Optional[Acceptor]
    _where: StreamAddress

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Made for each run: tallies of what is reported; and, with TLS, who shakes hands.
        self._accept_errors: Tally
        self._refused: Tally
        self._strangers: Tally
        self._failed_handshakes: Tally
        self._context: Optional[SSLContext] = None
        self._lobby: Optional[Lobby] = None

    def emit(self, socket: Any, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        if not isinstance(socket, StreamSocket):
            raise TypeError(f'{self}: emit takes the socket that a handler was given first, not {socket!r}')
        socket.emit(type, data, timeout=timeout)

    def broadcast(self, type: Payload, data: Any = NO_DATA) -> None:
        frame = self._encode(type, data)
        connections = [socket._connection for socket in self._clients()]
        full = [(connection, connection.progress) for connection in connections if connection.queue(frame)]
        stall = Deadline(seconds(self._config.stall_timeout))  # of all at once: N that are stuck cost one timeout
        for connection, progress in full:
            connection.wait_for_room(progress, stall)

    def _clients(self) -> List[StreamSocket]:
        with self._lock:
            return list(self._sockets.values())

    def _carriers(self) -> List[Carrier]:
        return [socket._connection for socket in self._sockets.values()]

    def _bind(self) -> Listener:
        if self._config.allowed_uids is not None and isinstance(self._asked, UnixAddress) and not KNOWS_PEERS:
            raise ConfigError(f'{self}: this system does not tell who connects, so config.allowed_uids cannot be kept')
        config = self._config
        if isinstance(self._asked, TLSAddress):
            from .tls import server_context

            assert config.tls is not None
            self._context = server_context(config.tls, str(self), self._parser.is_assured)
        elif self._parser.is_assured:
            self._check_assured(config)
        return listen(self._asked, config) if self._given is None else adopt(self._given)

    def _check_assured(self, config: Config) -> None:
        """Raise ConfigError or OSError unless nobody but this user can reach a server that has no TLS."""
        if not isinstance(self._asked, UnixAddress):
            raise assured_needs_tls(self)
        check_assured_path(self._asked.path, config)
        if self._given is not None:
            verify_root(config)

    def _open(self, bound: Listener, engine: Engine) -> Acceptor:
        post, reactor = self._post, engine.reactor
        self._accept_errors = Tally(post, reactor, self._report_accept_errors)
        self._refused = Tally(post, reactor, self._report_refused)
        self._strangers = Tally(post, reactor, self._report_strangers)
        self._failed_handshakes = Tally(post, reactor, self._report_failed_handshakes)
        if self._context is not None:
            from .handshake import Lobby

            config = self._config
            self._lobby = Lobby(
                self._context,
                reactor,
                config.connect_timeout / 1000,
                config.max_connections,
                self._admitted,
                self._handshake_failed,
            )
            assert isinstance(bound.address, TCPAddress)
            bound = bound._replace(address=TLSAddress(*bound.address))
        return Acceptor(bound, engine.reactor, self._accepted, self._accept_failed)

    # Reactor thread

    def _shut(self) -> None:
        if self._door is None:
            return
        self._door.stop()
        self._door = None
        if self._lobby is not None:
            self._lobby.close()
        for tally in (self._accept_errors, self._refused, self._strangers, self._failed_handshakes):
            tally.close()
        for socket in self._clients():
            socket._stop()

    def _cut(self, error: Optional[Exception]) -> None:
        for socket in self._clients():
            if error is None:
                socket.close()
            else:
                socket._connection.abort(error)

    def _accepted(self, sock: socket_module.socket, address: Any) -> None:
        if self._is_full():
            self._refuse(sock)
            return
        try:
            if not self._is_welcome(sock):
                sock.close()
            elif self._lobby is not None:
                self._lobby.enter(sock, address)
            else:
                self._admit(sock, address)
        except OSError:  # gone already, before anybody heard of it
            sock.close()

    def _refuse(self, sock: socket_module.socket) -> None:
        """Close a connection for which there is no room. Unread input would turn the end into a reset."""
        with contextlib.suppress(OSError):
            sock.shutdown(socket_module.SHUT_WR)
            sock.recv(_REFUSED_BYTES)
        sock.close()
        self._refused.add()

    def _is_full(self) -> bool:
        # Those count that are gone and whose events are still being handled, or wait to be taken: they use as much memory.
        return len(self._unfinished) + self._waiters_here.gone >= self._config.max_connections

    def _is_welcome(self, sock: socket_module.socket) -> bool:
        """Whether its user may connect, by the kernel's word."""
        allowed = self._config.allowed_uids
        if allowed is None or not isinstance(self._where, UnixAddress):
            return True
        peer = peer_of(sock)
        if peer is not None and peer.uid in allowed:
            return True
        self._strangers.add(peer)
        return False

    def _accept_failed(self, error: OSError) -> None:
        self._accept_errors.add(error)

    def _handshake_failed(self, error: OSError, address: Any) -> None:
        self._failed_handshakes.add((error, address))

    def _admitted(self, sock: socket_module.socket, address: Any, tls: TLSStream) -> None:
        if self._is_full():  # others were faster
            self._refuse(sock)
            return
        try:
            self._admit(sock, address, tls)
        except OSError:
            sock.close()

    def _admit(self, sock: socket_module.socket, address: Any, tls: Optional[TLSStream] = None) -> None:
        assert self._engine is not None
        if isinstance(self._where, TCPAddress):
            prepare_tcp(sock)
            where: Any = (address[0], address[1])
        else:
            where = self._where.path
        socket = StreamSocket(self, sock, self._engine, where, tls)
        self._joined(socket, socket)
        socket._connection.start()

    # On the strand

    def _report_accept_errors(self, count: int, error: OSError) -> None:
        what_to_do = advice(error, '')
        why = f'{self}: cannot accept connections: {error.strerror}; trying again{what_to_do and "; "}{what_to_do}'
        self._report(OSError(error.errno, why), None, level=logging.ERROR)

    def _report_refused(self, count: int, last: None) -> None:
        limit = self._config.max_connections
        why = f'{_connections(count)} refused, {limit} are open already; close some, or raise config.max_connections'
        self._report(ConnectionRefusedError(errno.ECONNREFUSED, f'{self}: {why}'), None, level=logging.WARNING)

    def _report_strangers(self, count: int, peer: Peer) -> None:
        who = f'{"" if count == 1 else "the last "}of user {peer.uid}, pid {peer.pid}'
        why = f'{_connections(count)} refused, {who}, who is not in config.allowed_uids'
        self._report(PermissionError(errno.EPERM, f'{self}: {why}'), None, level=logging.WARNING)

    def _report_failed_handshakes(self, count: int, last: Tuple[OSError, Any]) -> None:
        error, address = last
        what = f'the TLS handshake with {readable(address)} failed'
        if count > 1:
            what = f'{count} TLS handshakes failed; the last, with {readable(address)}'
        self._report(retold(error, f'{self}: {what}: {error.strerror}'), None, level=logging.WARNING)


def _connections(count: int) -> str:
    return 'a connection was' if count == 1 else f'{count} connections were'

