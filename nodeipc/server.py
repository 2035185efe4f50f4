"""The server of stream sockets: it listens, has a `Socket` for each client, and tells handlers what arrives.

`start` and `stop` run in the caller's thread, for they touch files; the reactor thread accepts, reads and closes. Each
client has a strand, so its events are handled in order and clients do not wait for each other.
"""

from __future__ import annotations

import errno
import logging
import socket as socket_module
from typing import Any, Callable, Dict, Optional, Set, Tuple, Union

from .acceptor import Acceptor
from .address import Address, Peer, TCPAddress, adopt, listen, peer_of, public
from .config import Config, seconds
from .connection import Connection, Owner, log_level
from .deadline import NEVER, Deadline
from .definitions import Definitions
from .engine import Engine
from .errors import EmitTimeout, NotConnectedError
from .events import Handler, call_back, max_positional
from .log import logger
from .reentry import calls_out
from .role import Log, Role
from .wire import NO_DATA
from .workers import Strand

_COUNTERS = ('messages_in', 'messages_out', 'bytes_in', 'bytes_out')


class Socket(Owner):
    """A client, as the server's handlers see it.

    `id` is free for the application (and set by ``config.identify_peer``), and so is the dict `context`.
    """

    __slots__ = ('_connection', '_context', '_encode', '_server', '_strand', 'address', 'id', 'peer')

    def __init__(self, server: Server, sock: socket_module.socket, engine: Engine, address: Any) -> None:
        config = server._config
        #: Who the client is: ``(host, port)``, or the path of the Unix socket it came by.
        self.address: Union[str, Tuple[str, int]] = address
        #: Unix: the client's process, a `Peer` (pid, uid, gid), where the system tells; else None.
        self.peer: Optional[Peer] = peer_of(sock)
        self.id: Any = None
        self._context: Optional[Dict[Any, Any]] = None
        self._server = server
        self._encode = server._encode
        self._strand = Strand(engine.workers, server._deliverer(self))
        self._connection = Connection(
            sock,
            f'a client of {server}' if isinstance(address, str) else f'{address[0]}:{address[1]}, a client of {server}',
            self,
            engine.reactor,
            self._strand,
            server._decoder(),
            config.max_pending_bytes,
            config.stall_timeout / 1000,
        )

    def __repr__(self) -> str:
        who = self.id if self.id is not None else self.peer or self.address
        return f'<nodeipc.Socket {who!r} of {self._server}{"" if self.connected else ", closed"}>'

    @property
    def connected(self) -> bool:
        """Whether the client is there and takes messages."""
        return self._connection.is_open

    @property
    def pending_bytes(self) -> int:
        """Bytes that were emitted and wait to be written."""
        return self._connection.pending

    @property
    def context(self) -> Dict[Any, Any]:
        """A dict for the application's own use."""
        if self._context is None:
            self._context = {}
        return self._context

    def emit(self, type: str, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        """Send one event to this client; return when it is in the hands of the connection.

        Blocks while more than ``config.max_pending_bytes`` wait, for `timeout` seconds (default: ``config.emit_timeout``
        milliseconds). Raises `EmitTimeout` then, and nothing of the message was or will be sent; `NotConnectedError` if
        the client is gone; TypeError or ValueError for data that JSON cannot carry; `ProtocolError` for a message over
        ``config.max_message_size``.
        """
        frame = self._encode(type, data)
        if not self._connection.send(frame, self._server._emit_timeout if timeout is None else timeout):
            raise NotConnectedError(f'{self._connection.name} is gone; {type!r} was not sent')

    def close(self) -> None:
        """Say goodbye to this client and return at once: what was emitted is delivered, then the connection is closed.

        Events that have arrived from it and were not handled yet are dropped.
        """
        self._strand.deliver = self._drop
        self._connection.call(self._connection.begin_close)

    # Reactor thread

    def _stop(self) -> None:
        """Say goodbye after what has arrived is handled and answered."""
        self._connection.stop_reading()
        self._close_when_handled()

    def _close_when_handled(self) -> None:
        self._strand.post(self._connection.call, self._connection.begin_close)

    def _drop(self, type: str, data: Any) -> None:
        logger.debug('%s: %r arrived and was dropped by close()', self, type)

    def _connection_ended(self, connection: Connection) -> None:
        self._close_when_handled()  # half-closed clients get their answers

    def _connection_failed(self, connection: Connection, error: Exception) -> None:
        self._strand.post(self._report_failure, error)

    def _connection_closed(self, connection: Connection) -> None:
        self._server._remove(self)

    # On the strand

    def _report_failure(self, error: Exception) -> None:
        self._server._report(error, self, level=log_level(error))


class Server(Role):
    """A server of Unix or TCP sockets, made by ``ipc.serve`` or ``ipc.serve_net``.

    Events: ``start`` (server), ``connect`` (socket), every type the clients emit (data, socket), ``socket.disconnected``
    (socket, its id or None), ``error`` (exception, socket or None), ``stop``.
    """

    def __init__(
        self,
        address: Address,
        config: Config,
        attach: Callable[[Server], Engine],
        detach: Callable[[Server], Any],
        log: Log,
        callback: Optional[Handler] = None,
        sock: Optional[socket_module.socket] = None,
    ) -> None:
        super().__init__(config, log)
        self._asked = address
        self._attach = attach
        self._detach = detach
        if callback is not None:
            max_positional(callback)  # raises for what cannot be called
        self._callback = callback
        self._given = sock

        #: Descriptions of events, sent to whoever emits ``get.events.listening`` or ``get.events.broadcasting``.
        self.define = Definitions()
        self.on('get.events.listening', self._describe_listening)
        self.on('get.events.broadcasting', self._describe_broadcasting)

        # Guarded by _changed, inside which no other lock is taken.
        self._state = 'stopped'  # 'starting', 'listening', 'stopping'
        self._starts = 0  # tells the end of one run from that of the next
        self._engine: Optional[Engine] = None
        self._strand: Optional[Strand] = None
        self._where = address  # where it is, or was last, bound
        self._acceptor: Optional[Acceptor] = None
        self._sockets: Dict[Socket, None] = {}  # in the order in which they came
        self._unfinished: Set[Socket] = set()  # those, and the ones that are gone and whose handlers still run
        self._hurried = False
        self._accept_error_queued = False
        self._refused = 0  # connections over the limit that no error event has told of yet
        self._past = dict.fromkeys(('connections_total', *_COUNTERS), 0)

    def __str__(self) -> str:
        return f'server {self._config.id!r} ({self._where})'

    def __repr__(self) -> str:
        return f'<nodeipc.Server {self._config.id!r} {self.address!r} {self._state}>'

    def __enter__(self) -> Server:
        self.start()
        return self

    @calls_out
    def __exit__(self, *exc_info: Any) -> None:
        self.stop()

    @property
    def sockets(self) -> Tuple[Socket, ...]:
        """The connected clients, in the order in which they came."""
        with self._changed:
            return tuple(self._sockets)

    @property
    def address(self) -> Union[str, Tuple[str, int]]:
        """A path, or ``(host, port)``: where it is bound, once it was."""
        return public(self._where)

    @property
    def listening(self) -> bool:
        """Whether clients can connect."""
        return self._state == 'listening'

    def start(self) -> None:
        """Bind the address and listen.

        Raises OSError with the address in it: it is in use (a live server is never replaced, a dead one's socket file
        is if ``config.unlink``), not permitted, too long, not a socket … Raises RuntimeError if the server is running.
        The callback that was given to ``serve`` is called in this thread before anybody is accepted; if it raises,
        the server is not started. Accepting begins when the handlers of ``start`` have run.
        """
        with self._changed:
            if self._state != 'stopped':
                raise RuntimeError(f'{self} is {self._state}; stop it before starting it again')
            self._state = 'starting'
            self._starts += 1
            run = self._starts
        try:
            listener = listen(self._asked, self._config) if self._given is None else adopt(self._given)
            try:
                engine = self._attach(self)
                self._where = listener.address
                if self._callback is not None:
                    call_back(self._callback, self)
                with self._changed:
                    if self._state != 'starting' or self._starts != run:
                        raise RuntimeError(f'{self} was stopped while it was starting')
                    self._state = 'listening'
                    self._engine = engine
                    self._acceptor = acceptor = Acceptor(listener, engine.reactor, self._accepted, self._accept_failed)
                    self._strand = strand = Strand(engine.workers, self._publish)
                    self._hurried = False
                    self._unfinished.clear()
            except BaseException:
                listener.close()
                raise
        except BaseException:
            with self._changed:
                overtaken = self._starts != run  # by another start, whose business the rest is
                if not overtaken:
                    self._state = 'stopped'
            if not overtaken:
                self._detach(self)
            raise
        strand.post(self._publish, 'start', self)
        strand.post(engine.reactor.call, acceptor.start)

    def stop(self, timeout: Optional[float] = None) -> None:
        """Stop accepting, let the handlers of what has arrived finish, deliver what was emitted, close. Idempotent.

        Returns when all that is done and the handlers of ``stop`` have run; called from a handler of the same instance
        it returns at once and the rest happens by itself. Connections that are not finished after `timeout` seconds are
        cut, and so is a client that takes nothing for ``config.stall_timeout``; an ``error`` event tells what was not
        delivered.
        """
        self._begin_goodbye()
        self._wait_goodbye(Deadline(timeout))

    def emit(self, socket: Socket, type: str, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        """Send one event to one client; as `Socket.emit`, whose errors it raises."""
        if not isinstance(socket, Socket):
            raise TypeError(f'{self}: emit takes the socket that a handler was given first, not {socket!r}')
        socket.emit(type, data, timeout=timeout)

    def broadcast(self, type: str, data: Any = NO_DATA) -> None:
        """Send one event to every connected client.

        It is queued to all of them first, so a slow one delays nobody's delivery; then this waits while a client has
        more than ``config.max_pending_bytes`` queued. One that takes nothing for ``config.stall_timeout`` milliseconds
        is closed, with `ProtocolError` ``ERR_IPC_BACKPRESSURE`` as its ``error`` event. Raises what `encode` raises:
        TypeError, ValueError, `ProtocolError`.
        """
        frame = self._encode(type, data)
        connections = [socket._connection for socket in self.sockets]
        full = [(connection, connection.bytes_out) for connection in connections if connection.queue(frame)]
        stall = Deadline(seconds(self._config.stall_timeout))  # of all at once: N that are stuck cost one timeout
        for connection, bytes_out in full:
            connection.wait_for_room(bytes_out, stall)

    def stats(self) -> Dict[str, int]:
        """Return counters: connections now and in total, messages and bytes in and out, bytes pending, errors."""
        with self._changed:
            stats = dict(self._past, errors=self._errors)
            connections = [socket._connection for socket in self._sockets]
        stats['connections'] = len(connections)
        stats['pending_bytes'] = 0
        for connection in connections:
            stats['pending_bytes'] += connection.pending
            for name in _COUNTERS:
                stats[name] += getattr(connection, name)
        return stats

    # For the facade

    def _begin_goodbye(self) -> None:
        with self._changed:
            if self._state == 'starting':
                self._state = 'stopped'  # which start() will see
            if self._state != 'listening':
                return
            self._state = 'stopping'
            acceptor, engine = self._acceptor, self._engine
        assert acceptor is not None
        assert engine is not None
        if acceptor.listener.file is not None:
            acceptor.listener.file.remove()
        engine.reactor.call(self._stop_accepting)

    def _wait_goodbye(self, deadline: Deadline, handlers: Deadline = NEVER) -> None:
        engine, run = self._engine, self._starts
        if engine is None or engine.must_not_wait:
            return
        if not self._is_stopped_within(run, deadline.sooner(handlers).remaining):
            engine.reactor.call(self._hurry, run)
            if not self._is_stopped_within(run, deadline.remaining):
                why = f'{self} was stopped; not all was delivered within {deadline.timeout} s'
                engine.reactor.call(self._hurry, run, EmitTimeout(why))
                self._is_stopped_within(run, None)

    def _is_stopped_within(self, run: int, timeout: Optional[float]) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._state != 'stopping' or self._starts != run, timeout)

    def _abandon(self) -> None:
        super()._abandon()
        self._state = 'stopped'
        self._acceptor = self._engine = self._strand = None
        self._sockets = {}
        self._unfinished = set()

    # Made once for each socket, called for each event

    def _deliverer(self, socket: Socket) -> Callable[[str, Any], None]:
        publish = self._publish

        def deliver(type: str, data: Any) -> None:
            publish(type, data, socket)

        if self._config.identify_peer:
            plain = deliver

            def deliver(type: str, data: Any) -> None:
                if isinstance(data, dict) and data.get('id'):
                    socket.id = data['id']
                plain(type, data)

        return self._deliver_logged(deliver)

    # Handlers of our own, on the sockets' strands

    def _describe_listening(self, data: Any, socket: Socket) -> None:
        socket.emit('events.listening', {'id': self._config.id, 'events': dict(self.define.listen)})

    def _describe_broadcasting(self, data: Any, socket: Socket) -> None:
        socket.emit('events.broadcasting', {'id': self._config.id, 'events': dict(self.define.broadcast)})

    # Reactor thread

    def _accepted(self, sock: socket_module.socket, address: Any) -> None:
        # Those count that are gone and whose events are still being handled: they use as much memory.
        if len(self._unfinished) >= self._config.max_connections:
            sock.close()
            self._refuse()
            return
        try:
            self._admit(sock, address)
        except OSError:  # gone already, before anybody heard of it
            sock.close()

    def _accept_failed(self, error: OSError) -> None:
        if self._accept_error_queued:
            return
        self._accept_error_queued = True
        why = f'{self}: cannot accept connections: {error.strerror}; trying again'
        if error.errno in (errno.EMFILE, errno.ENFILE):
            why += '; close some descriptors, or raise the limit'
        self._post(self._report_accept_error, OSError(error.errno, why))

    def _admit(self, sock: socket_module.socket, address: Any) -> None:
        assert self._engine is not None
        if isinstance(self._where, TCPAddress):
            sock.setsockopt(socket_module.IPPROTO_TCP, socket_module.TCP_NODELAY, 1)
            where: Any = (address[0], address[1])
        else:
            where = self._where.path
        socket = Socket(self, sock, self._engine, where)
        with self._changed:
            self._past['connections_total'] += 1
            self._sockets[socket] = None
            self._unfinished.add(socket)
        socket._strand.post(self._publish, 'connect', socket)
        socket._connection.start()

    def _refuse(self) -> None:
        """One error event tells of all that were refused while it waited for its turn."""
        with self._changed:
            self._refused += 1
            first = self._refused == 1
        if first:
            self._post(self._report_refused)

    def _remove(self, socket: Socket) -> None:
        with self._changed:
            self._sockets.pop(socket, None)
            for name in _COUNTERS:
                self._past[name] += getattr(socket._connection, name)
        socket._strand.post(self._say_disconnected, socket)
        socket._strand.post(self._finished, socket)
        if self._hurried:
            self._stop_if_finished()

    def _stop_accepting(self) -> None:
        assert self._acceptor is not None
        self._acceptor.stop()
        self._acceptor = None
        for socket in self.sockets:
            socket._stop()
        self._stop_if_finished()

    def _hurry(self, run: int, error: Optional[Exception] = None) -> None:
        """Stop without waiting for handlers any longer; with `error`, nor for clients."""
        if self._state != 'stopping' or self._starts != run:
            return
        self._hurried = True
        for socket in self.sockets:
            if error is None:
                socket.close()
            else:
                socket._connection.abort(error)
        self._stop_if_finished()

    # On strands

    def _post(self, function: Callable[..., Any], *arguments: Any) -> None:
        strand = self._strand
        if strand is not None:
            strand.post(function, *arguments)

    def _say_disconnected(self, socket: Socket) -> None:
        self._publish('socket.disconnected', socket, socket.id)

    def _finished(self, socket: Socket) -> None:
        socket._strand.deliver = _ignore  # it refers to the socket, which refers to the strand
        with self._changed:
            self._unfinished.discard(socket)
        self._stop_if_finished()

    def _stop_if_finished(self) -> None:
        with self._changed:
            busy = self._sockets if self._hurried else self._unfinished
            if self._state != 'stopping' or self._acceptor or busy or self._strand is None:
                return
            strand, self._strand = self._strand, None
        strand.post(self._publish, 'stop')
        strand.post(self._stopped, self._starts)
        if self._hurried:
            self._stopped(self._starts)  # a handler of `start` may be among those that never end

    def _stopped(self, starts: int) -> None:
        with self._changed:
            if self._starts != starts or self._state != 'stopping':
                return
            if self._engine is not None:
                self._engine.endpoints.pop(self, None)  # before the next start can attach it again
            self._state = 'stopped'
            self._changed.notify_all()

    def _report_accept_error(self, error: OSError) -> None:
        self._accept_error_queued = False
        self._report(error, None, level=logging.ERROR)

    def _report_refused(self) -> None:
        with self._changed:
            count, self._refused = self._refused, 0
        limit = self._config.max_connections
        what = 'a connection was' if count == 1 else f'{count} connections were'
        self._report(
            ConnectionRefusedError(
                errno.ECONNREFUSED,
                f'{self}: {what} refused, {limit} are open already; close some, or raise config.max_connections',
            ),
            None,
            level=logging.WARNING,
        )

    def _report_handler_error(self, error: BaseException, arguments: Tuple[Any, ...]) -> None:
        self._report(error, next((argument for argument in arguments if isinstance(argument, Socket)), None))


def _ignore(type: str, data: Any) -> None:
    pass
