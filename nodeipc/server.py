"""What every server has: it is bound to an address, starts and stops, knows its peers and says what it is for.

`stream` and `datagram` make it whole. `start` and `stop` run in the caller's thread, for they look up names and touch
files; the reactor thread reads and closes. Each peer has a strand, so its events are handled in order and peers do not
wait for each other.
"""

from __future__ import annotations

import logging
import socket as socket_module
import threading
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Set, Tuple, Type

from .address import Address, Peer, public
from .asking import SERVERS_OWN, Asker, awaited_types
from .config import Config
from .deadline import NEVER, Deadline, at_exit, is_to_end, wait_for
from .definitions import Definitions
from .engine import Engine
from .errors import EmitTimeout, NotConnectedError, ProtocolError, retold
from .eventqueue import EventIterator, EventQueue, Flow
from .events import ANY, Handler, call_back, max_positional
from .reentry import calls_out, has_interrupted_us
from .role import COUNTERS, OF_THE_PARENT, Carrier, Log, Role, count
from .strands import Strand
from .waiters import Waiters
from .wire import NO_DATA, Event, Payload

_ENDING = ('stopping', 'being stopped')



class Socket(Asker):
    """A peer, as the server's handlers see it.

    `id` is free for the application (and set by ``config.identify_peer``), and so is the dict `context`. `address` is
    ``(host, port)``, or the path of the Unix socket it came by; `peer` its process (pid, uid, gid; Unix, where the system
    tells), else None; `certificate` what it showed, verified, as `ssl.SSLSocket.getpeercert` gives it (TLS), else None.

    >>> from nodeipc import connect, serve
    >>> server = serve('socket-example')
    >>> @server.on('message')
    ... def answer(data, socket):
    ...     socket.context['last'] = data
    ...     socket.emit('message', [socket.connected, socket.pending_bytes])
    ...     socket.close()
    >>> with server, connect('socket-example') as client:
    ...     client.request('message', 'hello', timeout=10)
    [True, 0]
    """

    __slots__ = (
        '_closed', '_context', '_encode', '_gone', '_is_raw', '_server', '_strand', '_waiting', 'address', 'certificate',
        'id', 'peer',
    )

    def __init__(self, server: Server, engine: Engine, address: Any) -> None:
        #: Who the peer is: ``(host, port)``, or the path of the Unix socket it came by.
        self.address: Any = address
        #: Unix: the peer's process, a `Peer` (pid, uid, gid), where the system tells; else None.
        self.peer: Optional[Peer] = None
        #: TLS: the peer's certificate, if it showed one, verified, as `ssl.SSLSocket.getpeercert` gives it; else None.
        self.certificate: Optional[Dict[str, Any]] = None
        self.id: Any = None
        self._context: Optional[Dict[Any, Any]] = None
        self._closed = False  # by the application: what comes is dropped
        self._gone: Optional[str] = None  # why, when it is; guarded by the server's _lock, as the next
        self._waiting: Optional[Waiters] = None  # made when somebody waits
        self._encode = server._encode
        self._is_raw = server._is_raw
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
        """Send one event to this peer, its name `type` and its `data`; return when it is in the hands of the connection.

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

    def events(self, *types: str, timeout: Optional[float] = None) -> EventIterator[Socket]:
        """Iterate over the events of `types` that this peer emits, of all types if none is given: see `Client.events`.

        What comes after this call is collected. It ends when the peer has gone; if the connection broke, it raises
        `NotConnectedError` then, and `RequestTimeout` when nothing came for `timeout` seconds.

        >>> from nodeipc import connect, serve
        >>> with serve('socket-events-example') as server, connect('socket-events-example') as client:
        ...     client.emit('begin')
        ...     socket = next(server.events('begin', timeout=10)).socket
        ...     with socket.events('number', timeout=10) as events:
        ...         client.emit('number', 5)
        ...         next(events).data
        5
        """
        return self._iterate(types, timeout)

    # For the server

    def _heard(self, events: List[Event], size: int, flow: Optional[Flow] = None) -> List[Event]:
        """Tell those who wait; return what handlers are to have. Reactor thread."""
        server = self._server
        if self._closed:
            return events
        if self._waiting is not None:
            self._waiting.feed(self, events, size, flow)
        return server._heard(self, events, size, flow)

    def _hang_up(self) -> None:
        """What has come is not wanted any more."""
        self._closed = True
        self._says_no_more('it was closed', False)
        self._server._waiters_here.discard(self)
        if self._waiting is not None:
            self._waiting.end(drop=True)

    def _abandon(self) -> None:
        """In a child made by fork."""
        self._gone = OF_THE_PARENT
        if self._waiting is not None:
            self._waiting.abandon(OF_THE_PARENT)
            self._waiting = None

    def _says_no_more(self, why: str, is_lost: bool) -> None:
        """Tell those who wait why; for an iterator, a connection that is not lost has just ended. Reactor thread."""
        with self._server._lock:
            if self._gone is None:
                self._gone = why
            waiting = self._waiting
        if waiting is not None:
            waiting.finish(why)
            waiting.end((lambda: self._loss(why)) if is_lost else StopIteration)

    def _waiters(self) -> Waiters:
        with self._server._lock:
            if self._waiting is None:
                self._waiting = Waiters()
                if self._gone is not None:
                    self._waiting.finish(self._gone)
            return self._waiting

    def _collect(self, queue: EventQueue[Any]) -> None:
        self._waiters().add(queue)
        if self._gone == OF_THE_PARENT:
            queue.end(lambda: self._loss(OF_THE_PARENT))
        elif self._gone is not None:
            queue.end(StopIteration)

    def _forget_queue(self, queue: EventQueue[Any]) -> None:
        self._waiters().remove(queue)
        if self._server._engine is not None:
            self._server._engine.reactor.wake()

    def _wait_until(self, take: Callable[[Optional[float]], bool], timeout: Optional[float]) -> bool:
        engine = self._server._engine
        return take(timeout) if engine is None else engine.reactor.wait_until(take, timeout)


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


class Server(Role):
    """A server of Unix, TCP, TLS or UDP sockets, made by `serve`, ``ipc.serve`` or ``ipc.serve_net``.

    Its `define` has descriptions of events, ``server.define.listen.message = 'a string'``, for whoever asks.

    Events: ``start`` (server), ``connect`` (socket), every type the peers emit (data, socket), ``data`` (bytes, socket) in
    raw mode, ``socket.disconnected`` (socket, its id or None), ``error`` (exception, socket or None), ``stop``.

    UDP has no connections: ``connect`` is published when a peer is heard for the first time, ``socket.disconnected`` when
    it is forgotten, because ``config.max_connections`` others were heard from since, or by `Socket.close` or `stop`.

    >>> from nodeipc import serve
    >>> server = serve('server-example')
    >>> handler = server.on('message', lambda data, socket: socket.emit('message', data))
    >>> with server:
    ...     server.listening, len(server.sockets), server.stats()['connections_total']
    (True, 0, 0)
    >>> server.off('message', handler)
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

        # Guarded by _lock, inside which those of queues and, to wait, of Workers are taken.
        self._state = 'stopped'  # 'starting', 'listening', 'stopping'; 'being stopped' while it starts
        self._starter: Optional[int] = None  # the thread that starts it, until it is stopped again
        self._starts = 0  # tells the end of one run from that of the next
        # Held while it is started by those who wait for its events, or its end. start() takes others inside it.
        self._first_start = threading.Lock()
        self._engine: Optional[Engine] = None
        self._strand: Optional[Strand] = None
        self._where = address  # where it is, or was last, bound
        self._door: Optional[Any] = None  # a Door, as long as it is open
        self._sockets: Dict[Any, Any] = {}  # in the order in which they came
        self._unfinished: Set[Socket] = set()  # those, and the ones that are gone and whose handlers still run
        self._hurried = False
        self._past: Dict[str, int] = dict.fromkeys(('connections_total', *COUNTERS), 0)

    def __str__(self) -> str:
        return f'server {self._config.id!r} ({self._where})'

    def __repr__(self) -> str:
        return f'<nodeipc.Server {self._config.id!r} {self.address!r} {self._state}>'

    def __enter__(self) -> Server:
        self.start()
        return self

    @calls_out
    def __exit__(self, exception: Optional[Type[BaseException]] = None, *exc_info: Any) -> None:
        if is_to_end(exception):
            self._end(NEVER, at_exit())
        else:
            self.stop()

    @property
    def sockets(self) -> Tuple[Socket, ...]:
        """The connected clients, in the order in which they came; UDP: the peers, the least recently heard first."""
        with self._lock:
            return tuple(self._sockets.values())

    @property
    def address(self) -> Any:
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
            with self._lock:
                self._changed.notify_all()
            bound = self._bind()
            try:
                door = self._open(bound, engine)
            except OSError as error:
                bound.close()
                raise retold(error, f'{self}: {error.strerror}') from error
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

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Block until the server is stopped (True) or `timeout` seconds are over (False); start it if it never was.

        Ctrl-C stops it and returns True. Raises what `start` raises, and RuntimeError in a handler, where it would wait for
        its own end.

        >>> from nodeipc import serve
        >>> server = serve('wait-for-stop-example')
        >>> handler = server.on('start', lambda: server.stop())
        >>> server.wait()
        True
        """
        try:
            self._start_first()
            return self._wait_till_over(self._engine, lambda: self._state == 'stopped', timeout)
        except KeyboardInterrupt:
            self.stop()
            return True

    def events(self, *types: str, timeout: Optional[float] = None) -> EventIterator[Socket]:
        """Iterate over the events of `types` that the peers emit, of all types if none is given.

        Each is an `Event`, whose `socket` is who emitted it. What comes after this call is collected, up to 256 KiB of
        each peer, who then has to wait; the peers' events are given in turn. Iterating starts a server that was never
        started, and ends with `stop`, which drops what was not taken. Named, ``connect`` and ``socket.disconnected`` (whose
        data is the socket's id) are given, too.

        A peer that has closed its side cannot be answered any more: `Socket.emit` raises `NotConnectedError`. Those who have
        left and whose events wait to be taken count among ``config.max_connections``.

        Raises `RequestTimeout` when nothing came for `timeout` seconds (it can be iterated on); ValueError for other local
        events. Close it, or drop it, when it is not needed any more: see `EventIterator`.

        A whole server:

        >>> from nodeipc import connect, serve
        >>> with serve('events-example') as server, connect('events-example') as client:
        ...     client.emit('message', 'hello')
        ...     for event in server.events('message', timeout=10):
        ...         event.socket.emit('message', event.data + ' world!')
        ...         print(client.wait_for('message', timeout=10))
        ...         break
        hello world!
        """
        queue: EventQueue[Socket] = EventQueue(awaited_types(types, SERVERS_OWN))
        iterator = EventIterator(self, queue, timeout)  # first: if Ctrl-C comes, it closes the queue
        self._waiters_here.add(queue)
        return iterator

    def stop(self, timeout: Optional[float] = None) -> None:
        """Stop accepting, let the handlers of what has arrived finish, deliver what was emitted, close. Idempotent.

        Returns when all that is done and the handlers of ``stop`` have run; called from a handler of the same instance
        it returns at once and the rest happens by itself. Connections that are not finished after `timeout` seconds are
        cut, and so is a client that takes nothing for ``config.stall_timeout``; an ``error`` event tells what was not
        delivered.
        """
        self._end(Deadline(timeout), NEVER)

    def _end(self, deadline: Deadline, handlers: Deadline) -> None:
        self._begin_goodbye()
        if self._close_instance is not None:
            self._close_instance(deadline, handlers)
        else:
            self._wait_goodbye(deadline, handlers)

    def emit(self, socket: Any, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        """Send one event to one peer, `socket`: as `Socket.emit`, whose errors it raises.

        UDP: `socket` may also be ``(host, port)`` or ``{'address': host, 'port': port}``. A name is looked up without
        holding up anybody else, and remembered for some seconds; OSError if it is not found.
        """
        raise NotImplementedError

    def broadcast(self, type: Payload, data: Any = NO_DATA) -> None:
        """Send one event, its name `type` and its `data`, to every connected client; UDP: to every peer that was heard from.

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
            count(stats, carrier)
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
        if self._state in _ENDING:
            self._waiters_here.end(drop=True)
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
            if not engine.waits(lambda timeout: self._is_stopped_within(run, timeout), deadline):
                why = f'{self} was stopped; not all was delivered within {deadline.timeout} s'
                engine.reactor.call(self._hurry, run, EmitTimeout(why))
                engine.waits(lambda timeout: self._is_stopped_within(run, timeout), NEVER)

    def _is_stopped_within(self, run: int, timeout: Optional[float]) -> bool:
        with self._lock:
            return wait_for(self._changed, lambda: self._state not in _ENDING or self._starts != run, timeout)

    def _abandon(self) -> None:
        super()._abandon()
        self._state = 'stopped'
        self._door = self._engine = self._strand = None
        self._first_start = threading.Lock()
        for socket in (*self._sockets.values(), *self._unfinished):
            socket._abandon()
        self._sockets.clear()
        self._unfinished = set()

    # For iterators

    def _start_first(self) -> None:
        if not self._starts:  # else it may be the callback of the start that asks
            with self._first_start:
                if not self._starts:
                    self.start()

    def _wait_until(self, take: Callable[[Optional[float]], bool], timeout: Optional[float]) -> bool:
        self._start_first()
        with self._lock:
            wait_for(self._changed, lambda: self._engine is not None or self._state != 'starting', None)
            engine = None if self._state == 'stopped' else self._engine
        if engine is not None:
            return engine.reactor.wait_until(take, timeout)  # stop() ends it
        if take(0):
            return True  # the end
        raise NotConnectedError(f'{self} is stopped; start() it again before you iterate over its events')

    def _forget_queue(self, queue: EventQueue[Any]) -> None:
        self._waiters_here.remove(queue)
        if self._engine is not None:
            self._engine.reactor.wake()

    def _loss(self, why: str) -> NotConnectedError:
        return NotConnectedError(f'{self}: {why}')

    # Made once for each socket, called for each event

    def _deliverer(self, socket: Socket) -> Callable[[str, Any], None]:
        publish = self._publish

        @calls_out
        def deliver(type: str, data: Any) -> None:
            # What publish does, with two calls less on the way of each event.
            handlers = self._handlers
            registrations = handlers.get(type, ())
            if len(registrations) != 1 or ANY in handlers or registrations[0].once:
                publish(type, data, socket)
                return
            arguments, registration = (data, socket), registrations[0]
            try:
                registration.function(*arguments[:registration.max_arguments])
            except BaseException as error:
                self._handler_failed(type, registration, arguments, error)

        if self._config.identify_peer:
            plain = deliver

            def deliver(type: str, data: Any) -> None:
                if isinstance(data, dict) and data.get('id'):
                    socket.id = data['id']
                plain(type, data)

        return self._deliver_logged(deliver)

    def _heard(self, socket: Socket, events: List[Event], size: int, flow: Optional[Flow]) -> List[Event]:
        """Have the iterators collect; return what handlers are to have. Reactor thread."""
        if self._config.identify_peer and self._waiters_here.collects:
            for _, data in events:
                if isinstance(data, dict) and data.get('id'):
                    socket.id = data['id']
        return self._waiters_here.feed(socket, events, size, flow)

    def _post_kept(self, socket: Socket, type: str, data: Any) -> None:
        if not socket._closed:  # by us; when the peer has left, this is what it said before
            socket._strand.post(self._publish, type, data, socket)

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
        self._waiters_here.announce(socket, 'connect', None)
        socket._strand.post(self._publish, 'connect', socket)

    def _left(self, key: Any, why: str, is_lost: bool = False, carrier: Optional[Carrier] = None) -> None:
        """Say after its events that a peer is gone, and why, and its `carrier` with it."""
        with self._lock:
            socket = self._sockets.pop(key)
            if carrier is not None:
                self._count_past(carrier)
        socket._says_no_more(why, is_lost)
        self._waiters_here.announce(socket, 'socket.disconnected', socket.id)
        self._waiters_here.left(socket)
        socket._strand.post(self._say_disconnected, socket)
        socket._strand.post(self._finished, socket)
        if self._hurried:
            self._stop_if_finished()

    def _count_past(self, carrier: Carrier) -> None:
        """Keep the counters of a carrier that is gone. Called with _lock held."""
        count(self._past, carrier)

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
        self._waiters_here.end(drop=True)  # those that were added while it was stopping

    def _is_expected(self, error: BaseException, arguments: Tuple[Any, ...]) -> bool:
        """Peers that ask and are gone when they are answered must not fill the log with tracebacks."""
        socket = _socket_in(arguments)
        return isinstance(error, NotConnectedError) and socket is not None and not socket.connected

    def _report_handler_error(self, error: BaseException, arguments: Tuple[Any, ...]) -> None:
        self._report(error, _socket_in(arguments))


def _socket_in(arguments: Tuple[Any, ...]) -> Optional[Socket]:
    return next((argument for argument in arguments if isinstance(argument, Socket)), None)


def _ignore(type: str, data: Any) -> None:
    pass
