"""What every client has: a server to talk to, its events on a strand, and a goodbye that loses nothing.

`streamclient` and `datagramclient` make it whole, and `sync` another one of the first. The events of a client, those of all
its connections, are handled in order on one strand. Any thread emits and asks.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, Type, overload

from .address import Address, public
from .asking import CLIENTS_OWN, Asker
from .config import Config
from .deadline import NEVER, Deadline, at_exit, is_to_end, wait_for
from .engine import Engine
from .errors import EmitTimeout, NotConnectedError
from .eventqueue import EventIterator, EventQueue
from .events import F, Handler, Registration
from .log import say
from .reentry import calls_out
from .role import COUNTERS, OF_THE_PARENT, Carrier, Log, Role, count
from .strands import Strand
from .waiters import Waiters
from .wire import NO_DATA, Payload


class Client(Role, Asker):
    """A client of a Unix, TCP, TLS or UDP server, made by `connect`, ``ipc.connect_to`` or ``ipc.connect_to_net``.

    `id` is its name in ``ipc.of``. Events: ``connect`` (no arguments) each time the connection stands, ``disconnect`` each
    time it is lost or closed, every type the server emits (data), ``error`` (exception), and ``destroy`` when no further
    retries will happen.

    >>> from nodeipc import connect, serve
    >>> with serve('client-example') as server, connect('client-example') as client:
    ...     handler = client.once('news', print)
    ...     assert client.wait_connected(timeout=10)
    ...     client.emit('message', 'hello')
    ...     client.flush(timeout=10)
    ...     client.connected, client.address == server.address, client.stats()['messages_out']
    ...     client.disconnect()
    (True, True, 1)
    """

    _local = CLIENTS_OWN
    _leaves_last = True  # a handler that a stopping server lets finish may still emit to it

    def __init__(
        self,
        id: str,
        address: Address,
        config: Config,
        engine: Engine,
        log: Log,
        removed: Callable[[Client], Any],
    ) -> None:
        super().__init__(config, log)
        self.id = id
        self._address = address
        self._engine = engine
        self._reactor = engine.reactor
        self._removed = removed
        self._strand = Strand(engine.workers, self._deliverer())

        # Guarded by _lock; no connection's lock is taken inside it.
        self._closing = False
        self._in_callback: Optional[int] = None  # the thread that is in connect_to, until the client has begun
        self._destroyed = False
        self._gave_up = False  # destroyed, and not because the application wants it
        self._finished = False  # destroyed, and the handlers have run
        self._last_error: Optional[Exception] = None  # written by the reactor thread, without the lock
        self._past: Dict[str, int] = dict.fromkeys(('connections', *COUNTERS), 0)

        # The strand's own, but for reading under _handlers_lock: whether `connect` was the last published of `connect`
        # and `disconnect`, and for which connection.
        self._announced = False
        self._announcements = 0
        self._heard: Any = None  # the connection whose events it handles
        self._dropped = 0

    def __str__(self) -> str:
        where = str(self._address)
        return f'client of {where}' if self.id == where else f'client {self.id!r} ({where})'

    def __repr__(self) -> str:
        state = 'destroyed' if self._destroyed else 'connected' if self.connected else 'not connected'
        return f'<nodeipc.Client {self.id!r} {self._address} {state}>'

    def __enter__(self) -> Client:
        return self

    @calls_out
    def __exit__(self, exception: Optional[Type[BaseException]] = None, *exc_info: Any) -> None:
        if is_to_end(exception):
            self._end(NEVER, at_exit())
        else:
            self.disconnect()

    @property
    def connected(self) -> bool:
        """Whether a connection stands. UDP: whether the client has not been disconnected."""
        raise NotImplementedError

    @property
    def _usable(self) -> bool:
        """Whether it is connected or will be: not destroyed, not disconnected."""
        return not (self._closing or self._destroyed)

    @property
    def address(self) -> Any:
        """Where the server is: a socket path, or ``(host, port)``."""
        return public(self._address)

    @overload
    def on(self, event: str) -> Callable[[F], F]: ...

    @overload
    def on(self, event: str, handler: F) -> F: ...

    def on(self, event: str, handler: Optional[Handler] = None) -> Any:
        """As `Server.on`. A ``connect`` handler that is added while connected is called at once, on a worker thread."""
        return self._register(event, handler, once=False)

    def emit(self, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        """Send one event to the server, its name `type` and its `data`; return when it is in the hands of the connection.

        Blocks while there is no connection or its queue is full, for `timeout` seconds (default: ``config.emit_timeout``
        milliseconds). Raises `EmitTimeout` then, and nothing of the message was or will be sent; `NotConnectedError` if
        the client is destroyed; TypeError or ValueError for data that JSON cannot carry; `ProtocolError` for a message
        over ``config.max_message_size``. Any thread may emit; the messages of one thread arrive in order.

        In raw mode it is ``emit(payload)``: a bytes-like object, a str in ``config.encoding``, or a list of ints. With
        ``config.sync`` it also blocks until the server has answered the last message with whatever event; in a handler,
        it queues the message instead (`EmitTimeout` if too much is queued), which leaves in its turn after the handler.
        """
        raise NotImplementedError

    def events(self, *types: str, timeout: Optional[float] = None) -> EventIterator[Client]:
        """Iterate over the events of `types` that the server emits, of all types if none is given.

        Each is an `Event`; its `socket` is this client. What comes after this call is collected, up to 256 KiB, and then the
        server has to wait. When the connection is lost, `NotConnectedError` is raised after the events that had come;
        iterated on, the same iterator gives those of the next connection. `RequestTimeout` is raised when nothing came for
        `timeout` seconds; ValueError for local events such as ``connect``. It ends with `disconnect`, which drops what was
        not taken. Close it, or drop it, when it is not needed any more: see `EventIterator`.

        >>> from nodeipc import connect, serve
        >>> server = serve('news-example')
        >>> handler = server.on('connect', lambda socket: [socket.emit('news', number) for number in (1, 2, 3)])
        >>> with server, connect('news-example') as client:
        ...     for event in client.events('news', timeout=10):
        ...         print(event.data)
        ...         if event.data == 3:
        ...             break
        1
        2
        3
        """
        return self._iterate(types, timeout)

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Block until the client is disconnected or destroyed (True), or `timeout` seconds are over (False).

        Ctrl-C disconnects it and returns True. Raises RuntimeError in a handler, where it would wait for its own end.

        >>> from nodeipc import connect
        >>> with connect('nobody-there', stop_retrying=True) as client:
        ...     client.wait(10)
        True
        """
        try:
            return self._wait_till_over(self._engine, lambda: self._finished, timeout)
        except KeyboardInterrupt:
            self.disconnect()
            return True

    @contextlib.contextmanager
    def batch(self) -> Iterator[Client]:
        """Join what this thread emits inside ``with client.batch():`` into few writes.

        The messages leave when there are 64 KiB of them and at the end of the block, also when the block raises. An
        emit that raises `EmitTimeout` or `NotConnectedError` inside a batch speaks for all that had not left by then.

        >>> from nodeipc import IPC
        >>> with IPC(id='batch-example') as ipc, ipc.serve() as server:
        ...     client = ipc.connect_to('batch-example')
        ...     with client.batch():
        ...         for number in range(1000):
        ...             client.emit('number', number)
        """
        raise NotImplementedError
        yield self

    def wait_connected(self, timeout: Optional[float] = None) -> bool:
        """Wait until a connection stands and return True; or False, when that takes longer than `timeout` seconds.

        Raises `NotConnectedError` if the client is destroyed.
        """
        raise NotImplementedError

    def flush(self, timeout: Optional[float] = None) -> None:
        """Wait up to `timeout` seconds (default: for ever) until all that was emitted is written to the system.

        Raises `EmitTimeout`, or `NotConnectedError` if anything since the last flush was lost with its connection.
        """
        raise NotImplementedError

    def disconnect(self, timeout: Optional[float] = None) -> None:
        """Say goodbye: deliver what was emitted, close, and never retry. Idempotent.

        Returns when the connection is closed and the handlers of this client have run; called from a handler of the
        same instance it returns at once and the rest happens by itself. Events that have arrived and were not handled
        yet are dropped. After `timeout` seconds, or when the server takes nothing for ``config.stall_timeout``, the
        connection is cut and an ``error`` event tells what was not delivered.
        """
        self._end(Deadline(timeout), NEVER)

    def _end(self, deadline: Deadline, handlers: Deadline) -> None:
        self._begin_goodbye()
        if self._close_instance is not None:
            self._close_instance(deadline, handlers)
        else:
            self._wait_goodbye(deadline, handlers)

    def stats(self) -> Dict[str, int]:
        """Return counters since the client was made: connections, messages and bytes in and out, bytes pending, errors."""
        with self._lock:
            stats = dict(self._past, errors=self._errors, pending_bytes=0)
            carrier = self._carrier()
            if carrier is not None:
                stats['pending_bytes'] = carrier.pending
                count(stats, carrier)
        return stats

    # What stream and datagram clients do in their own ways

    def _start(self) -> None:
        """Begin to connect; the callback of connect_to has returned."""
        raise NotImplementedError

    def _stop_taking(self) -> None:
        """Accept nothing any more. Called with _lock held."""

    def _carrier(self) -> Optional[Carrier]:
        """Return what carries messages, and counts them, now."""
        raise NotImplementedError

    def _goodbye(self) -> None:
        """Deliver what was emitted, close, and `_destroy`. Reactor thread."""
        raise NotImplementedError

    def _abort(self, error: Exception) -> None:
        """Close now, and report `error`. Reactor thread."""
        raise NotImplementedError

    # For the facade

    def _begin_goodbye(self) -> None:
        # All of it again each time: Ctrl-C may have come between.
        with self._lock:
            self._closing = True
            self._strand.deliver = self._drop
            self._stop_taking()
            self._changed.notify_all()
        if not self._gave_up:
            self._waiters_here.finish('it is disconnected')
            self._waiters_here.end(drop=True)
        self._removed(self)
        self._reactor.call(self._goodbye)

    def _wait_goodbye(self, deadline: Deadline, handlers: Deadline = NEVER) -> None:
        if self._engine.must_not_wait:
            return
        waits, is_done = self._engine.waits, self._is_destroyed_within
        if not is_done(deadline.sooner(handlers).remaining) and not waits(is_done, deadline):
            error = EmitTimeout(f'{self}: not all was delivered within {deadline.timeout} s; the connection is cut')
            self._reactor.call(self._abort, error)
            waits(is_done, NEVER)
        with self._lock:
            wait_for(self._changed, lambda: self._finished, deadline.sooner(handlers).remaining)

    def _is_destroyed_within(self, timeout: Optional[float]) -> bool:
        with self._lock:
            return wait_for(self._changed, lambda: self._destroyed, timeout)

    def _abandon(self) -> None:
        super()._abandon()
        self._announced = False
        self._destroyed = self._finished = self._gave_up = True
        self._last_error = NotConnectedError(OF_THE_PARENT)
        self._waiters_here.finish(OF_THE_PARENT)

    # Asking, any thread

    def _waiters(self) -> Waiters:
        return self._waiters_here

    def _collect(self, queue: EventQueue[Any]) -> None:
        self._waiters_here.add(queue)
        if not self._usable:
            self._end_queues()

    def _end_queues(self) -> None:
        self._waiters_here.end(self._gone if self._gave_up else StopIteration)

    def _forget_queue(self, queue: EventQueue[Any]) -> None:
        self._waiters_here.remove(queue)
        self._reactor.wake()

    def _wait_until(self, take: Callable[[Optional[float]], bool], timeout: Optional[float]) -> bool:
        self._check_callback()
        return self._reactor.wait_until(take, timeout)

    def _check_callback(self) -> None:
        if self._in_callback == threading.get_ident():
            raise NotConnectedError(
                f'{self} begins to connect when the callback of connect_to has returned; emit or wait after that, or in a '
                "handler of 'connect'"
            )

    def _gone(self) -> NotConnectedError:
        state = 'disconnected' if not self._gave_up else f'destroyed, no retries left{self._last_words()}'
        return NotConnectedError(f'{self} is {state}; make a new one')

    def _no_connection(self, timeout: Optional[float]) -> EmitTimeout:
        why = f'{self}: no connection within {timeout:g} s, nothing was sent; is the server running?'
        return EmitTimeout(why + self._last_words())

    def _last_words(self) -> str:
        """Why it is not connected, if anybody knows."""
        error = self._last_error
        if error is None:
            return ''
        text, mine = getattr(error, 'strerror', None) or str(error), f'{self}: '
        return f' ({text[len(mine):] if text.startswith(mine) else text})'

    # Reactor thread

    def _destroy(self) -> None:
        with self._lock:
            self._destroyed = True
            self._gave_up = not self._closing
            self._changed.notify_all()
        if self._gave_up:
            self._waiters_here.finish(f'no retries are left{self._last_words()}')
        self._end_queues()
        self._strand.post(self._publish_destroy)

    # On the strand

    def _deliverer(self) -> Callable[[str, Any], None]:
        return self._deliver_logged(self._publish)

    def _announce(self, connection: Any, connected: bool) -> None:
        if connected:
            self._heard = connection
        with self._handlers_lock:
            self._announced = connected
            self._announcements += connected
            handlers = dict(self._handlers)
        say(logging.DEBUG, '%s: %s', self, 'connected' if connected else 'not connected any more')
        self._dispatch(handlers, 'connect' if connected else 'disconnect', ())

    def _add(self, event: str, registration: Registration) -> None:
        # Either _announce sees the registration, or this sees what it announced: both hold the lock.
        def insert() -> None:
            self._insert(event, registration)
            if event == 'connect' and self._announced:
                self._strand.post(self._announce_late, registration, self._announcements)

        self._change(insert)
        self._waiters_here.hand_over(event, self._post_kept)

    def _post_kept(self, socket: Client, type: str, data: Any) -> None:
        self._strand.post_events([(type, data)], 0)

    def _announce_late(self, registration: Registration, announcement: int) -> None:
        still_there = registration in self._handlers.get('connect', ())
        if still_there and self._announced and self._announcements == announcement:
            self._call('connect', registration, ())

    def _report_handler_error(self, error: BaseException, arguments: Tuple[Any, ...]) -> None:
        self._report(error)

    def _drop(self, type: str, data: Any) -> None:
        self._dropped += 1

    def _publish_destroy(self) -> None:
        try:
            if self._dropped:
                say(logging.INFO, '%s: %d events that had arrived were dropped by disconnect()', self, self._dropped)
            self._publish('destroy')
        finally:
            with self._lock:
                self._finished = True
                self._changed.notify_all()
            self._engine.endpoints.pop(self, None)
        if self._close_instance is not None and self._gave_up:
            self._close_instance(NEVER, NEVER)  # which is not waited for in a handler


