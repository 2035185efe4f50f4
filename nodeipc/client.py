"""The client of a stream server: it connects, finds its way back when the connection is lost, and emits.

A client lives through many connections, one at a time. Its events, those of all its connections, are handled in order on
one strand. The reactor thread connects, retries and closes; any thread emits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple, overload

from .address import KNOWS_PEERS, StreamAddress, TCPAddress, TLSAddress, UnixAddress, public
from .config import Config
from .connection import Connection, Owner, log_level
from .connector import Connector
from .deadline import NEVER, Deadline
from .engine import Engine
from .errors import ConfigError, EmitTimeout, NotConnectedError, retold
from .events import F, Handler, Registration
from .log import logger
from .reactor import Timer
from .reentry import calls_out
from .role import Log, Role, assured_needs_tls
from .socketroot import check_assured_path
from .wire import NO_DATA, Payload
from .workers import Strand

if TYPE_CHECKING:  # imported by clients that have TLS
    from .handshake import Begin
    from .tlsstream import TLSStream

# A batch leaves when it has grown to this size: fewer, larger writes gain nothing more.
_BATCH_BYTES = 64 << 10


class Client(Role, Owner):
    """A client of a Unix, TCP or TLS server, made by ``ipc.connect_to`` or ``ipc.connect_to_net``.

    Events: ``connect`` (no arguments) each time the connection stands, ``disconnect`` each time it is lost or closed,
    every type the server emits (data), ``error`` (exception), and ``destroy`` when no further retries will happen.
    """

    _leaves_last = True  # a handler that a stopping server lets finish may still emit to it

    def __init__(
        self,
        id: str,
        address: StreamAddress,
        config: Config,
        engine: Engine,
        log: Log,
        removed: Callable[[Client], Any],
    ) -> None:
        super().__init__(config, log)
        address.check()
        self._shake_hands = self._prepare(address)
        self.id = id
        self._address = address
        self._engine = engine
        self._reactor = engine.reactor
        self._removed = removed
        self._strand = Strand(engine.workers, self._deliverer())

        # Guarded by _lock; Connection._lock is not taken inside it.
        self._connection: Optional[Connection] = None
        self._closing = False
        self._in_callback: Optional[int] = None  # the thread that runs the callback of connect_to
        self._destroyed = False
        self._finished = False  # destroyed, and the handlers have run
        self._last_error: Optional[Exception] = None  # written by the reactor thread, without the lock
        # The error of a failed attempt that waits to be told of; a second one takes its place, or they would pile up.
        self._attempt_error: Optional[OSError] = None
        self._lost = 0  # bytes that went with their connections, and that flush() has not told of
        self._past = {'connections': 0, 'messages_in': 0, 'messages_out': 0, 'bytes_in': 0, 'bytes_out': 0}

        # By thread, and each entry is its thread's own.
        self._batches: Dict[int, _Batch] = {}

        # The reactor thread's own. _socket is the connection until it is closed, _connection while it takes messages.
        self._socket: Optional[Connection] = None
        self._connector: Optional[Connector] = None
        self._retry_timer: Optional[Timer] = None
        self._failures = self._past_failures = 0  # in a row; and before the connection

        # The strand's own, but for reading under _handlers_lock: whether `connect` was the last published of `connect`
        # and `disconnect`, and for which connection.
        self._announced = False
        self._announcements = 0
        self._dropped = 0

    def __str__(self) -> str:
        return f'client {self.id!r} ({self._address})'

    def __repr__(self) -> str:
        state = 'destroyed' if self._destroyed else 'connected' if self.connected else 'not connected'
        return f'<nodeipc.Client {self.id!r} {self._address} {state}>'

    def __enter__(self) -> Client:
        return self

    @calls_out
    def __exit__(self, *exc_info: Any) -> None:
        self.disconnect()

    @property
    def connected(self) -> bool:
        """Whether a connection stands."""
        return self._connection is not None

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
        """As `Emitter.on`. A ``connect`` handler that is added while connected is called at once, on a worker thread."""
        return self._register(event, handler, once=False)

    def emit(self, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        """Send one event to the server; return when it is in the hands of the connection.

        Blocks while there is no connection or its queue is full, for `timeout` seconds (default: ``config.emit_timeout``
        milliseconds). Raises `EmitTimeout` then, and nothing of the message was or will be sent; `NotConnectedError` if
        the client is destroyed; TypeError or ValueError for data that JSON cannot carry; `ProtocolError` for a message
        over ``config.max_message_size``. Any thread may emit; the messages of one thread arrive in order.

        In raw mode it is ``emit(payload)``: a bytes-like object, a str in ``config.encoding``, or a list of ints. With
        ``config.sync`` it also blocks until the server has answered the last message with whatever event; in a handler,
        it queues the message instead (`EmitTimeout` if too much is queued), which leaves in its turn after the handler.
        """
        frame = self._encode(type, data)
        if timeout is None:
            timeout = self._emit_timeout
        if self._batches:
            batch = self._batches.get(threading.get_ident())
            if batch is not None:
                batch.add(frame, timeout)
                return
        self._send(frame, timeout, 1)

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
        me = threading.get_ident()
        if me in self._batches:  # a batch in a batch: the outer one's
            yield self
            return
        batch = self._batches[me] = _Batch(self._send)
        try:
            yield self
        finally:
            del self._batches[me]
            batch.leave(self._emit_timeout)

    def wait_connected(self, timeout: Optional[float] = None) -> bool:
        """Wait up to `timeout` seconds until a connection stands; return whether it does.

        Raises `NotConnectedError` if the client is destroyed.
        """
        self._check_callback()
        with self._lock:
            self._reactor.wait_for(self._changed, self._is_settled, timeout)
            if self._destroyed or self._closing:
                raise self._gone()
            return self._connection is not None

    def flush(self, timeout: Optional[float] = None) -> None:
        """Wait up to `timeout` seconds (default: for ever) until all that was emitted is written to the system.

        Raises `EmitTimeout`, or `NotConnectedError` if anything since the last flush was lost with its connection.
        """
        batch = self._batches.get(threading.get_ident())
        if batch is not None:
            batch.leave(timeout)
        connection = self._socket
        if connection is not None:
            try:
                connection.flush(timeout)
            except NotConnectedError:
                with self._lock:  # until what was lost is counted, and told of once
                    self._reactor.wait_for(self._changed, lambda: self._socket is not connection, timeout)
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            raise NotConnectedError(f'{self}: {lost} bytes were not delivered, because the connection was lost')

    def disconnect(self, timeout: Optional[float] = None) -> None:
        """Say goodbye: deliver what was emitted, close, and never retry. Idempotent.

        Returns when the connection is closed and the handlers of this client have run; called from a handler of the
        same instance it returns at once and the rest happens by itself. Events that have arrived and were not handled
        yet are dropped. After `timeout` seconds, or when the server takes nothing for ``config.stall_timeout``, the
        connection is cut and an ``error`` event tells what was not delivered.
        """
        self._begin_goodbye()
        self._wait_goodbye(Deadline(timeout))

    def stats(self) -> Dict[str, int]:
        """Return counters since the client was made: connections, messages and bytes in and out, bytes pending, errors."""
        with self._lock:
            stats = dict(self._past, errors=self._errors, pending_bytes=0)
            connection = self._socket
            if connection is not None:
                _add(stats, connection)
                stats['pending_bytes'] = connection.pending
        return stats

    # For the facade

    def _prepare(self, address: StreamAddress) -> Optional[Begin]:
        """Return what shakes hands, if it is TLS. Raises ConfigError for what may not be connected to."""
        assured, settings = self._parser.is_assured, self._config.tls
        if isinstance(address, TLSAddress):
            from .handshake import to_server

            assert settings is not None
            return to_server(settings, address.host, f'client of {address}', assured)
        if assured and isinstance(address, TCPAddress):
            raise assured_needs_tls(f'client of {address}')
        if isinstance(address, UnixAddress):
            self._check_local(address.path, assured)
        return None

    def _check_local(self, path: str, assured: bool) -> None:
        config = self._config
        if assured:
            check_assured_path(path, config)
            if config.server_uid is None and KNOWS_PEERS:
                config.server_uid = os.geteuid()  # whose alone the socket root is
        if config.server_uid is not None and not KNOWS_PEERS:
            raise ConfigError(f'unix:{path}: this system does not tell who serves, so config.server_uid cannot be kept')

    def _start(self) -> None:
        self._in_callback = None
        self._reactor.call(self._attempt)

    def _begin_goodbye(self) -> None:
        with self._lock:
            first, self._closing = not self._closing, True
            self._strand.deliver = self._drop
            self._connection = None
            self._changed.notify_all()
        self._removed(self)
        if first:
            self._reactor.call(self._goodbye)

    def _wait_goodbye(self, deadline: Deadline, handlers: Deadline = NEVER) -> None:
        if self._engine.must_not_wait:
            return
        with self._lock:
            if not self._changed.wait_for(lambda: self._destroyed, deadline.remaining):
                error = EmitTimeout(f'{self}: not all was delivered within {deadline.timeout} s; the connection is cut')
                self._reactor.call(self._abort, error)
                self._changed.wait_for(lambda: self._destroyed)
            self._changed.wait_for(lambda: self._finished, deadline.sooner(handlers).remaining)

    def _abandon(self) -> None:
        super()._abandon()
        self._announced = False
        self._connection = self._socket = None
        self._destroyed = self._finished = True
        self._last_error = NotConnectedError('it belongs to the parent process; make a new IPC after fork')

    # Emitting, any thread

    def _send(self, frame: bytes, timeout: Optional[float], messages: int) -> None:
        connection = self._connection
        deadline = Deadline(timeout)
        while True:
            if connection is not None:
                if connection.send(frame, deadline.remaining, messages):
                    return
                self._detach(connection)
            self._check_callback()
            with self._lock:
                settled = self._reactor.wait_for(self._changed, self._is_settled, deadline.remaining)
                if self._destroyed or self._closing:
                    raise self._gone()
                if not settled:
                    why = f'; the last attempt: {self._last_error}' if self._last_error else ''
                    raise EmitTimeout(
                        f'{self}: no connection within {timeout} s, nothing was sent; is the server running?{why}'
                    )
                connection = self._connection

    def _check_callback(self) -> None:
        if self._in_callback == threading.get_ident():
            raise NotConnectedError(
                f'{self} begins to connect when the callback of connect_to has returned; emit or wait after that, or in a '
                "handler of 'connect'"
            )

    def _is_settled(self) -> bool:
        return self._connection is not None or self._destroyed or self._closing

    def _gone(self) -> NotConnectedError:
        why = f': {self._last_error}' if self._last_error and not self._closing else ''
        return NotConnectedError(f'{self} is {"disconnected" if self._closing else "destroyed, no retries left"}{why}; '
                                 'make a new one with connect_to')

    def _detach(self, connection: Connection) -> None:
        """Let emits wait for the next connection."""
        with self._lock:
            if self._connection is connection:
                self._connection = None

    # Reactor thread

    def _attempt(self) -> None:
        self._retry_timer = None
        if not self._closing:
            self._connector = Connector(
                self._address, self._config, self._reactor, self._shake_hands, self._connected, self._refused
            )
            self._connector.start()

    def _connected(self, sock: socket.socket, tls: Optional[TLSStream]) -> None:
        self._connector = None
        self._past_failures, self._failures = self._failures, 0
        connection = Connection(
            sock,
            str(self),
            self,
            self._reactor,
            self._strand,
            self._parser,
            self._config,
            tls,
        )
        self._socket = connection
        with self._lock:
            self._past['connections'] += 1
            if not self._closing:
                self._connection = connection
            self._changed.notify_all()
        self._strand.post(self._announce, connection, True)  # now, for handlers may look; nothing is read before start()
        connection.start()

    def _refused(self, error: OSError) -> None:
        self._connector = None
        error = retold(error, f'{self}: cannot connect: {error.strerror}')
        self._last_error = error
        with self._lock:
            waiting, self._attempt_error = self._attempt_error, error
        if waiting is None:
            self._strand.post(self._report_attempt)
        self._retry_or_destroy()

    def _connection_ended(self, connection: Connection) -> None:
        self._detach(connection)
        connection.begin_close()

    def _connection_broken(self, connection: Connection, error: Exception) -> None:
        connection.abort(error)

    def _connection_failed(self, connection: Connection, error: Exception) -> None:
        self._last_error = error
        self._strand.post(self._report_failure, error)

    def _connection_closed(self, connection: Connection) -> None:
        self._detach(connection)
        with self._lock:
            self._socket = None
            self._lost += connection.pending
            self._changed.notify_all()
            _add(self._past, connection)
        self._strand.post(self._announce, connection, False)
        if connection.never_stood:
            self._failures = self._past_failures  # the attempt has failed like those before
        if self._closing:
            self._destroy()
        else:
            self._retry_or_destroy()

    def _retry_or_destroy(self) -> None:
        config = self._config
        if config.stop_retrying or (config.max_retries is not None and self._failures >= config.max_retries):
            self._destroy()
            return
        delay = config.retry
        if config.retry_max is not None:
            # Half of it is left to chance: those who lost the same server at once do not return at once.
            delay = min(config.retry_max, config.retry * 2.0 ** min(self._failures, 60)) * random.uniform(0.5, 1)
        self._failures += 1
        self._retry_timer = self._reactor.call_later(delay / 1000, self._attempt)

    def _goodbye(self) -> None:
        if self._destroyed:
            return
        if self._socket is not None:
            self._socket.begin_close()
            return
        if self._connector is not None:
            self._connector.cancel()
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self._destroy()

    def _abort(self, error: Exception) -> None:
        if self._socket is not None:
            self._socket.abort(error)

    def _destroy(self) -> None:
        with self._lock:
            self._destroyed = True
            self._changed.notify_all()
        self._strand.post(self._publish_destroy)

    # On the strand

    def _deliverer(self) -> Callable[[str, Any], None]:
        return self._deliver_logged(self._publish)

    def _announce(self, connection: Connection, connected: bool) -> None:
        with self._handlers_lock:
            self._announced = connected
            self._announcements += connected
            handlers = dict(self._handlers)
        logger.debug('%s: %s', self, 'connected' if connected else 'not connected any more')
        self._dispatch(handlers, 'connect' if connected else 'disconnect', ())

    def _add(self, event: str, registration: Registration) -> None:
        # Either _announce sees the registration, or this sees what it announced: both hold the lock.
        with self._handlers_lock:
            self._insert(event, registration)
            announcement = self._announcements if self._announced else 0
        if event == 'connect' and announcement:
            self._strand.post(self._announce_late, registration, announcement)

    def _announce_late(self, registration: Registration, announcement: int) -> None:
        still_there = registration in self._handlers.get('connect', ())
        if still_there and self._announced and self._announcements == announcement:
            self._call('connect', registration, ())

    def _report_attempt(self) -> None:
        with self._lock:
            error, self._attempt_error = self._attempt_error, None
        if error is not None:
            self._report(error, level=logging.INFO)

    def _report_failure(self, error: Exception) -> None:
        self._report(error, level=log_level(error))

    def _report_handler_error(self, error: BaseException, arguments: Tuple[Any, ...]) -> None:
        self._report(error)

    def _drop(self, type: str, data: Any) -> None:
        self._dropped += 1

    def _publish_destroy(self) -> None:
        if self._dropped:
            logger.info('%s: %d events that had arrived were dropped by disconnect()', self, self._dropped)
        self._publish('destroy')
        with self._lock:
            self._finished = True
            self._changed.notify_all()
        self._engine.endpoints.pop(self, None)


class _Batch:
    """Frames of one thread that leave together."""

    def __init__(self, send: Callable[[bytes, Optional[float], int], None]) -> None:
        self._send = send
        self._frames: List[bytes] = []
        self._size = 0

    def add(self, frame: bytes, timeout: Optional[float]) -> None:
        self._frames.append(frame)
        self._size += len(frame)
        if self._size >= _BATCH_BYTES:
            self.leave(timeout)

    def leave(self, timeout: Optional[float]) -> None:
        frames, self._frames, self._size = self._frames, [], 0
        if frames:
            self._send(b''.join(frames), timeout, len(frames))


def _add(stats: Dict[str, int], connection: Connection) -> None:
    for name in ('messages_in', 'messages_out', 'bytes_in', 'bytes_out'):
        stats[name] += getattr(connection, name)
