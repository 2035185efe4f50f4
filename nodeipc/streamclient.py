"""The client of a stream server: it connects, finds its way back when the connection is lost, and emits.

It lives through many connections, one at a time. The reactor thread connects, retries and closes; any thread emits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional

from . import rpc
from .address import KNOWS_PEERS, StreamAddress, TCPAddress, TLSAddress, UnixAddress
from .client import Client
from .connection import STARVED, Connection, Owner, log_level
from .connector import Connector
from .deadline import Deadline
from .errors import ConfigError, NotConnectedError, retold
from .events import ANY
from .reactor import Timer
from .role import Carrier, assured_needs_tls, count
from .socketroot import check_assured_path
from .wire import NO_DATA, Event, Payload

if TYPE_CHECKING:  # imported by clients that have TLS
    from .handshake import Begin
    from .tlsstream import TLSStream

# A batch leaves when it has grown to this size: fewer, larger writes gain nothing more.
_BATCH_BYTES = 64 << 10


class StreamClient(Client, Owner):
    """A client of a Unix, TCP or TLS server."""

    _address: StreamAddress

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._address.check()
        self._shake_hands = self._prepare(self._address)

        # Guarded by _lock; Connection._lock is not taken inside it.
        self._connection: Optional[Connection] = None
        # The error of a failed attempt that waits to be told of; a second one takes its place, or they would pile up.
        self._attempt_error: Optional[OSError] = None
        self._lost = 0  # bytes that went with their connections, and that flush() has not told of

        # By thread, and each entry is its thread's own.
        self._batches: Dict[int, _Batch] = {}

        # The reactor thread's own. _socket is the connection until it is closed, _connection while it takes messages.
        self._socket: Optional[Connection] = None
        self._told_lost: Optional[Connection] = None
        self._connector: Optional[Connector] = None
        self._retry_timer: Optional[Timer] = None
        self._failures = self._past_failures = 0  # in a row; and before the connection
        self._wants_all = self._config.sync or self._config.log_payloads  # also those that have no handler

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def emit(self, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
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
        self._check_callback()
        with self._lock:
            self._reactor.wait_for(self._changed, self._is_settled, timeout)
            if self._destroyed or self._closing:
                raise self._gone()
            return self._connection is not None

    def flush(self, timeout: Optional[float] = None) -> None:
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

    # What every client does in its own way

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
        self._reactor.call(self._attempt)
        self._in_callback = None

    def _abandon(self) -> None:
        super()._abandon()
        self._connection = self._socket = None

    def _stop_taking(self) -> None:
        self._connection = None

    def _carrier(self) -> Optional[Carrier]:
        return self._socket

    def _send_request(self, frame: bytes, timeout: Optional[float], stand: Callable[[], Any]) -> None:
        timeout = self._emit_timeout if timeout is None else timeout
        batch = self._batches.get(threading.get_ident())
        if batch is not None:
            batch.leave(timeout)
        self._send(frame, timeout, 1, stand)

    def _wait_until(self, take: Callable[[Optional[float]], bool], timeout: Optional[float]) -> bool:
        batch = self._batches.get(threading.get_ident())
        if batch is not None:  # or what is waited for may be the answer to what stays here
            batch.leave(self._emit_timeout)
        return super()._wait_until(take, timeout)

    def _reply(self, data: Any) -> None:
        # Not on the next connection, where nobody has asked; and with config.sync not in line, for it asks for no answer.
        if self._closing or not self._heard.send(self._encode(rpc.EVENT, data), self._emit_timeout):
            raise NotConnectedError(f'{self}: the connection by which a call came is gone; the answer was not sent')

    def _read_on(self) -> None:
        connection = self._socket
        if connection is not None:
            connection.read_on()

    # Emitting, any thread

    def _send(
        self, frame: bytes, timeout: Optional[float], messages: int, stand: Optional[Callable[[], Any]] = None
    ) -> None:
        connection = self._connection
        if connection is not None and timeout is self._emit_timeout:  # which nobody needs to check
            began = time.monotonic()
            if connection.send(frame, timeout, messages, stand):
                return
            self._detach(connection)
            connection = None
            deadline = Deadline(None if timeout is None else timeout - (time.monotonic() - began))
        else:
            deadline = Deadline(timeout)
        while True:
            if connection is not None:
                if connection.send(frame, deadline.remaining, messages, stand):
                    return
                self._detach(connection)
            self._check_callback()
            with self._lock:
                settled = self._reactor.wait_for(self._changed, self._is_settled, deadline.remaining)
                if self._destroyed or self._closing:
                    raise self._gone()
                if not settled:
                    raise self._no_connection(timeout)
                connection = self._connection

    def _is_settled(self) -> bool:
        return self._connection is not None or self._destroyed or self._closing

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
        self._waiters_here.joined(self, connection)
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

    def _connection_heard(self, connection: Connection, events: List[Event], size: int) -> List[Event]:
        waiters = self._waiters_here
        if self._closing or waiters.want_nothing_of(events):
            return events
        events = waiters.feed(self, events, size, connection)
        # Answers that no handler wants need no thread. If the strand has something to do, that may be to add a handler.
        handlers = self._handlers
        if self._wants_all or ANY in handlers or not self._strand.is_idle:
            return events
        return events if any(event[0] in handlers for event in events) else []

    def _is_awaited(self) -> bool:
        return self._waiters_here.is_awaited

    def _connection_starved(self, connection: Connection) -> None:
        self._waiters_here.fail(STARVED)

    def _connection_ended(self, connection: Connection) -> None:
        self._detach(connection)
        self._tell_lost(connection)
        connection.begin_close()

    def _tell_lost(self, connection: Connection) -> None:
        """Tell those who wait that nothing more will come by this connection; once."""
        if not self._closing and self._told_lost is not connection:
            self._told_lost = connection
            self._waiters_here.lost(self, connection.why_lost)

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
            count(self._past, connection)
        self._tell_lost(connection)
        self._told_lost = None
        self._waiters_here.fail(connection.why_lost)  # those, too, whose requests left after that
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
            chance = int.from_bytes(os.urandom(4), 'big') / 2 ** 32  # `random` takes long to import
            delay = min(config.retry_max, config.retry * 2.0 ** min(self._failures, 60)) * (1 + chance) / 2
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

    def _report_attempt(self) -> None:
        with self._lock:
            error, self._attempt_error = self._attempt_error, None
        if error is not None:
            self._report(error, level=logging.INFO)

    def _report_failure(self, error: Exception) -> None:
        self._report(error, level=log_level(error))


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
