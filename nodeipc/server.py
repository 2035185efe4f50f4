"""What every server has: it is bound to an address, starts and stops, knows its peers and says what it is for.

`stream` and `datagram` make it whole. `start` and `stop` run in the caller's thread, for they look up names and touch
files; the reactor thread reads and closes. Each peer has a strand, so its events are handled in order and peers do not
wait for each other.
"""

from __future__ import annotations

import logging
import socket as socket_module
import threading
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Set, Tuple, Union

from .address import Address, Peer, public
from .config import Config
from .deadline import NEVER, Deadline
from .definitions import Definitions
from .engine import Engine
from .errors import EmitTimeout, NotConnectedError, ProtocolError
from .events import Handler, call_back, max_positional
from .reentry import calls_out, has_interrupted_us
from .role import Log, Role
from .wire import NO_DATA, Payload
from .workers import Strand

_ENDING = ('stopping', 'being stopped')

_COUNTERS = ('messages_in', 'messages_out', 'bytes_in', 'bytes_out')


class Socket:
    """A peer, as the server's handlers see it.

    `id` is free for the application (and set by ``config.identify_peer``), and so is the dict `context`.
    """

    __slots__ = ('_context', '_server', '_strand', 'address', 'certificate', 'id', 'peer')

    def __init__(self, server: Server, engine: Engine, address: Any) -> None:
        #: Who the peer is: ``(host, port)``, or the path of the Unix socket it came by.
        self.address: Union[str, Tuple[str, int]] = address
        #: Unix: the peer's process, a `Peer` (pid, uid, gid), where the system tells; else None.
        self.peer: Optional[Peer] = None
        #: TLS: the peer's certificate, if it showed one, verified, as `ssl.SSLSocket.getpeercert` gives it; else None.
        self.certificate: Optional[Dict[str, Any]] = None
        self.id: Any = None
        self._context: Optional[Dict[Any, Any]] = None
        self._server = server
        self._strand = Strand(engine.workers, server._deliverer(self))

    def __repr__(self) -> str:
        who = self.id if self.id is not None else self.peer or self.address
        return f'<nodeipc.Socket {who!r} of {self._server}{"" if self.connected else ", closed"}>'

    @property
    def connected(self) -> bool:
        """Whether the peer is there and takes messages. UDP: whether the server remembers it."""
        raise NotImplementedError

    @property
    def pending_bytes(self) -> int:
        """Bytes that were emitted and wait to be written."""
        raise NotImplementedError

    @property
    def context(self) -> Dict[Any, Any]:
        """A dict for the application's own use."""
        if self._context is None:
            self._context = {}
        return self._context

    def emit(self, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        """Send one event to this peer; return when it is in the hands of the connection.

        Blocks while more than ``config.max_pending_bytes`` wait, for `timeout` seconds (default: ``config.emit_timeout``
        milliseconds). Raises `EmitTimeout` then, and nothing of the message was or will be sent; `NotConnectedError` if
        the peer is gone; TypeError or ValueError for data that JSON cannot carry; `ProtocolError` for a message over
        ``config.max_message_size``, or too large for a datagram; UDP: OSError if the system cannot send it.

        In raw mode it is ``emit(payload)``: a bytes-like object, a str in ``config.encoding``, or a list of ints.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Say goodbye to this peer and return at once: what was emitted is delivered, then the connection is closed.

        Events that have arrived from it and were not handled yet are dropped. UDP: the server forgets the peer, until
        it is heard from again.
        """
        raise NotImplementedError


class Door(Protocol):
    """What a server is bound to: how what comes from outside gets in."""

    @property
    def address(self) -> Address:
        """Where it is."""

    def close(self) -> None:
        """Release the address; any thread, as long as it is not started."""

    def start(self) -> None:
        """Begin to let in what comes; reactor thread."""

    def withdraw(self) -> None:
        """Be found no more; any thread."""


class Carrier(Protocol):
    """What carries messages, and counts them: a connection, or the socket that all datagrams go through."""

    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int

    @property
    def pending(self) -> int: ...


class Server(Role):
    """A server of Unix, TCP (with ``config.tls`` encrypted) or UDP sockets, made by ``ipc.serve`` or ``ipc.serve_net``.

    Events: ``start`` (server), ``connect`` (socket), every type the peers emit (data, socket), ``data`` (bytes, socket) in
    raw mode, ``socket.disconnected`` (socket, its id or None), ``error`` (exception, socket or None), ``stop``.

    UDP has no connections: ``connect`` is published when a peer is heard for the first time, ``socket.disconnected`` when
    it is forgotten, because ``config.max_connections`` others were heard from since, or by `Socket.close` or `stop`.
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

        # Guarded by _lock, inside which no other lock is taken.
        self._state = 'stopped'  # 'starting', 'listening', 'stopping'; 'being stopped' while it starts
        self._starter: Optional[int] = None  # the thread that starts it, until it is stopped again
        self._starts = 0  # tells the end of one run from that of the next
        self._engine: Optional[Engine] = None
        self._strand: Optional[Strand] = None
        self._where = address  # where it is, or was last, bound
        self._door: Optional[Any] = None  # a Door, as long as it is open
        self._sockets: Dict[Any, Any] = {}  # in the order in which they came
        self._unfinished: Set[Socket] = set()  # those, and the ones that are gone and whose handlers still run
        self._hurried = False
        self._past: Dict[str, int] = dict.fromkeys(('connections_total', *_COUNTERS), 0)

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
        """The connected clients, in the order in which they came; UDP: the peers, the least recently heard first."""
        with self._lock:
            return tuple(self._sockets.values())

    @property
    def address(self) -> Union[str, Tuple[str, int]]:
        """A path, or ``(host, port)``: where it is bound, once it was."""
        return public(self._where)

    @property
    def listening(self) -> bool:
        """Whether clients can connect, or peers be heard."""
        return self._state == 'listening' and self._door is not None

    def start(self) -> None:
        """Bind the address and listen.

        Raises OSError with the address in it: it is in use (a live server is never replaced, a dead one's socket file
        is if ``config.unlink``), not permitted, too long, not a socket … Raises `ConfigError` for TLS without a key and a
        certificate, or with files that do not fit, and for what ``parser='assured'`` does not allow; RuntimeError if the
        server is running.
        The callback that was given to ``serve`` is called in this thread before anybody is accepted; if it raises,
        the server is not started. Accepting begins when the handlers of ``start`` have run.
        """
        with self._lock:
            if self._state != 'stopped':
                ending = self._state in _ENDING
                what = 'start it again when stop() has returned' if ending else 'stop it before starting it again'
                raise RuntimeError(f'{self} is {self._state}; {what}')
            self._state = 'starting'
            self._starter = threading.get_ident()
            self._starts += 1
        try:
            self._engine = engine = self._attach(self)  # first, so that a fork finds it
            bound = self._bind()
            try:
                door = self._open(bound, engine)
            except BaseException:
                bound.close()
                raise
            try:
                self._where = door.address
                self._door = door
                if self._callback is not None:
                    call_back(self._callback, self)
                with self._lock:
                    if self._state != 'starting':
                        raise RuntimeError(f'{self} was stopped while it was starting')
                    self._state = 'listening'
                    self._strand = strand = Strand(engine.workers, self._publish)
                    self._hurried = False
                    self._unfinished.clear()
            except BaseException:
                self._door = None
                door.close()
                raise
        except BaseException:
            # Nobody else starts it before that has been undone: the state says so until then.
            try:
                self._detach(self)
            finally:
                with self._lock:
                    self._state = 'stopped'
                    self._engine = None
                    self._changed.notify_all()
            raise
        strand.post(self._publish, 'start', self)
        strand.post(engine.reactor.call, door.start)

    def stop(self, timeout: Optional[float] = None) -> None:
        """Stop accepting, let the handlers of what has arrived finish, deliver what was emitted, close. Idempotent.

        Returns when all that is done and the handlers of ``stop`` have run; called from a handler of the same instance
        it returns at once and the rest happens by itself. Connections that are not finished after `timeout` seconds are
        cut, and so is a client that takes nothing for ``config.stall_timeout``; an ``error`` event tells what was not
        delivered.
        """
        self._begin_goodbye()
        self._wait_goodbye(Deadline(timeout))

    def emit(self, socket: Any, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        """Send one event to one peer; as `Socket.emit`, whose errors it raises.

        UDP: `socket` may also be ``(host, port)`` or ``{'address': host, 'port': port}``. A name is looked up without
        holding up anybody else, and remembered for some seconds; OSError if it is not found.
        """
        raise NotImplementedError

    def broadcast(self, type: Payload, data: Any = NO_DATA) -> None:
        """Send one event to every connected client; UDP: to every peer that was heard from.

        It is queued to all of them first, so a slow one delays nobody's delivery; then this waits while a client has
        more than ``config.max_pending_bytes`` queued. One that takes nothing for ``config.stall_timeout`` milliseconds
        is closed, with `ProtocolError` ``ERR_IPC_BACKPRESSURE`` as its ``error`` event. Raises what `Socket.emit` raises
        for the data: TypeError, ValueError, `ProtocolError`.
        """
        raise NotImplementedError

    def stats(self) -> Dict[str, int]:
        """Return counters: connections now and in total, messages and bytes in and out, bytes pending, errors.

        UDP: the connections are the peers that were heard from and are remembered.
        """
        with self._lock:
            stats = dict(self._past, errors=self._errors, connections=len(self._sockets), pending_bytes=0)
            carriers = self._carriers()
        for carrier in carriers:
            stats['pending_bytes'] += carrier.pending
            _count(stats, carrier)
        return stats

    # What stream and datagram servers do in their own ways

    def _bind(self) -> Any:
        """Bind the address; return what `_open` takes, and has a `close`. Raises OSError."""
        raise NotImplementedError

    def _open(self, bound: Any, engine: Engine) -> Door:
        """Return the door, closed still."""
        raise NotImplementedError

    def _carriers(self) -> List[Carrier]:
        """Return what counts messages now. Called with _lock held."""
        raise NotImplementedError

    def _shut(self) -> None:
        """Let nothing in any more, say goodbye to all, and set _door to None when it is gone. Reactor thread."""
        raise NotImplementedError

    def _cut(self, error: Optional[Exception]) -> None:
        """Wait for handlers no more; with `error`, nor for what is being sent. Reactor thread."""
        raise NotImplementedError

    # For the facade

    def _begin_goodbye(self) -> None:
        with self._lock:
            if self._state == 'starting':
                self._state = 'being stopped'  # which start() will see
            if self._state == 'listening':
                self._state = 'stopping'
            door, engine, run = self._door, self._engine, self._starts
        # Again each time: Ctrl-C may have come between.
        if self._state in _ENDING and door is not None:
            door.withdraw()
        if self._state == 'stopping' and engine is not None:
            engine.reactor.call(self._stop_accepting, run)

    def _wait_goodbye(self, deadline: Deadline, handlers: Deadline = NEVER) -> None:
        engine, run, state = self._engine, self._starts, self._state
        if has_interrupted_us() if engine is None else engine.must_not_wait:
            return
        if state == 'being stopped' and self._starter != threading.get_ident():  # else in the callback of its own start
            self._is_stopped_within(run, deadline.sooner(handlers).remaining)
        if state != 'stopping' or engine is None:
            return
        if not self._is_stopped_within(run, deadline.sooner(handlers).remaining):
            engine.reactor.call(self._hurry, run)
            if not self._is_stopped_within(run, deadline.remaining):
                why = f'{self} was stopped; not all was delivered within {deadline.timeout} s'
                engine.reactor.call(self._hurry, run, EmitTimeout(why))
                self._is_stopped_within(run, None)

    def _is_stopped_within(self, run: int, timeout: Optional[float]) -> bool:
        with self._lock:
            return self._changed.wait_for(lambda: self._state not in _ENDING or self._starts != run, timeout)

    def _abandon(self) -> None:
        super()._abandon()
        self._state = 'stopped'
        self._door = self._engine = self._strand = None
        self._sockets.clear()
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
        self._describe(socket, 'events.listening', self.define.listen)

    def _describe_broadcasting(self, data: Any, socket: Socket) -> None:
        self._describe(socket, 'events.broadcasting', self.define.broadcast)

    def _describe(self, socket: Socket, type: str, events: Mapping[str, Any]) -> None:
        try:
            socket.emit(type, {'id': self._config.id, 'events': dict(events)})
        except ProtocolError as error:  # not in config.allowed_events: no traceback each time that a peer asks
            self._report(error, socket, level=logging.WARNING)

    # Reactor thread

    def _joined(self, key: Any, socket: Socket) -> None:
        """Announce and count a new peer."""
        with self._lock:
            self._past['connections_total'] += 1
            self._sockets[key] = socket
            self._unfinished.add(socket)
        socket._strand.post(self._publish, 'connect', socket)

    def _left(self, key: Any, carrier: Optional[Carrier] = None) -> None:
        """Say after its events that a peer is gone, and its `carrier` with it."""
        with self._lock:
            socket = self._sockets.pop(key)
            if carrier is not None:
                self._count_past(carrier)
        socket._strand.post(self._say_disconnected, socket)
        socket._strand.post(self._finished, socket)
        if self._hurried:
            self._stop_if_finished()

    def _count_past(self, carrier: Carrier) -> None:
        """Keep the counters of a carrier that is gone. Called with _lock held."""
        _count(self._past, carrier)

    def _stop_accepting(self, run: int) -> None:
        if self._state == 'stopping' and self._starts == run:  # and not a later run, which nobody has asked to stop
            self._shut()
            self._stop_if_finished()

    def _hurry(self, run: int, error: Optional[Exception] = None) -> None:
        """Stop without waiting for handlers any longer; with `error`, nor for clients."""
        if self._state != 'stopping' or self._starts != run:
            return
        self._hurried = True
        self._cut(error)
        self._stop_if_finished()

    # On strands

    def _post(self, function: Callable[..., Any], *arguments: Any) -> bool:
        """Have `function` called on the strand of the server; False if it has none any more."""
        strand = self._strand
        if strand is not None:
            strand.post(function, *arguments)
        return strand is not None

    def _say_disconnected(self, socket: Socket) -> None:
        self._publish('socket.disconnected', socket, socket.id)

    def _finished(self, socket: Socket) -> None:
        socket._strand.deliver = _ignore  # it refers to the socket, which refers to the strand
        with self._lock:
            self._unfinished.discard(socket)
        self._stop_if_finished()

    def _stop_if_finished(self) -> None:
        with self._lock:
            busy = self._sockets if self._hurried else self._unfinished
            if self._state != 'stopping' or self._door or busy:
                return
            strand, self._strand = self._strand, None
        if strand is not None:
            strand.post(self._publish, 'stop')
            strand.post(self._stopped, self._starts)
        if self._hurried:
            self._stopped(self._starts)  # a handler of `start`, `error` or `stop` may be among those that never end

    def _stopped(self, starts: int) -> None:
        with self._lock:
            if self._starts != starts or self._state != 'stopping':
                return
            if self._engine is not None:
                self._engine.endpoints.pop(self, None)  # before the next start can attach it again
            self._state = 'stopped'
            self._changed.notify_all()

    def _is_expected(self, error: BaseException, arguments: Tuple[Any, ...]) -> bool:
        """Peers that ask and are gone when they are answered must not fill the log with tracebacks."""
        socket = _socket_in(arguments)
        return isinstance(error, NotConnectedError) and socket is not None and not socket.connected

    def _report_handler_error(self, error: BaseException, arguments: Tuple[Any, ...]) -> None:
        self._report(error, _socket_in(arguments))


def _socket_in(arguments: Tuple[Any, ...]) -> Optional[Socket]:
    return next((argument for argument in arguments if isinstance(argument, Socket)), None)


def _count(stats: Dict[str, int], carrier: Carrier) -> None:
    for name in _COUNTERS:
        stats[name] += getattr(carrier, name)


def _ignore(type: str, data: Any) -> None:
    pass
