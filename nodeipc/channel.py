"""A bound datagram socket on a reactor: reading in turns, writing from any thread, and a close that sends what waits.

Datagram servers own one each time they run. As a connection does, it reads and closes on the reactor thread only, and any
thread writes: directly when nothing waits, else behind the queue that the reactor drains. It knows no event and no role.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import deque
from typing import Any, Callable, Deque, Optional, Tuple

from .address import Listener, SocketAddress, UDPAddress, readable
from .deadline import Deadline
from .errors import EmitTimeout, NotConnectedError, ProtocolError
from .lookup import Names
from .reactor import READ, WRITE, Owned, Reactor, Timer
from .wire import BACKPRESSURE, FRAME_TOO_LARGE

# No datagram is longer.
_RECEIVE_BYTES = 64 << 10

# Read or written in one turn of the reactor, so that a flood leaves time for others.
_TURN = 64

# To look for one more datagram when there is none costs as much as to read one. So one is read in each turn, and twice as
# many after so many turns in a row that found as many as they looked for.
_FULL_TURNS = 8

# After an error, before it is read again.
_PAUSE_SECONDS = 0.25


class Channel(Owned):
    """A socket that is bound for datagrams. `name` is whose it is, for messages.

    If it is `connected`, all go to and come from one address, and the system tells when nobody is there.

    On the reactor thread `received` is told of each datagram and its sender, `failed` of what goes wrong, and `closed` of
    the end.
    """

    __slots__ = (
        '_budget', '_closed', '_closing', '_connected', '_full_turns', '_limit', '_lock', '_max_pending', '_name', '_names',
        '_open', '_outbox', '_reactor', '_reading', '_room', '_sock', '_stall', '_started', '_tell_closed', '_tell_failed',
        '_tell_received', '_timer', '_watched', 'address', 'bytes_in', 'bytes_out', 'messages_in', 'messages_out', 'pending',
    )

    def __init__(
        self,
        bound: Listener,
        name: str,
        reactor: Reactor,
        max_pending: int,
        stall_timeout: float,
        received: Callable[[bytes, SocketAddress], Any],
        failed: Callable[[Exception], Any],
        closed: Callable[[], Any],
        connected: bool = False,
    ) -> None:
        assert isinstance(bound.address, UDPAddress)
        try:
            reactor.check(bound.socket)
        except BaseException:
            bound.close()
            raise
        self._sock = bound.socket
        self.address = bound.address
        self._limit = bound.address.max_datagram
        self._name = name
        self._reactor = reactor
        self._max_pending = max_pending
        self._names = Names(name, reactor)
        self._stall = stall_timeout
        self._tell_received = received
        self._tell_failed = failed
        self._tell_closed = closed
        self._connected = connected

        # Guards all that sending touches, down to the counters, and the socket against being closed meanwhile. Held for
        # a non-blocking write at most; the reactor takes it. No other lock is taken inside it. Re-entrant, for a signal
        # handler or __del__ may emit while its thread holds it: datagrams do not mix.
        self._lock = threading.RLock()
        self._open = True
        self._outbox: Deque[Tuple[bytes, SocketAddress]] = deque()
        self._room: Optional[threading.Condition] = None  # made when somebody has to wait
        self.pending = 0  # bytes in the outbox
        self.messages_out = 0
        self.bytes_out = 0

        # The reactor thread's own, once it is started.
        self.messages_in = 0
        self.bytes_in = 0
        self._closed = False
        self._started = False
        self._reading = False
        self._budget = 1  # datagrams to read in a turn
        self._full_turns = 0
        self._closing = False
        self._watched = 0
        self._timer: Optional[Timer] = None
        reactor.owned.add(self)

    # Any thread

    def check(self, datagram: bytes) -> None:
        """Raise ProtocolError if `datagram` is larger than any can be."""
        if len(datagram) > self._limit:
            raise self._too_large(datagram, f'the {self._limit} that a datagram holds')

    def send(self, datagram: bytes, where: SocketAddress, deadline: Deadline) -> None:
        """Write `datagram`, or queue it behind the pending limit; what waits is written when it is started.

        Raises ProtocolError if it is too large, EmitTimeout if there is no room in time, NotConnectedError if the channel
        is closed, and OSError, with the address, if the system cannot send it.
        """
        self.check(datagram)
        with self._lock:
            if self.pending > self._max_pending:
                self.wait_for_room(deadline)
            self.queue(datagram, where)

    def send_to(self, datagram: bytes, address: UDPAddress, deadline: Deadline) -> None:
        """As `send`, to a host that may be a name."""
        self.check(datagram)
        self.send(datagram, self._names.find(address, deadline), deadline)

    def wait_for_room(self, deadline: Deadline) -> None:
        """Wait until no more than the pending limit is queued; raises EmitTimeout."""
        with self._lock:
            if self.pending <= self._max_pending:
                return
            if self._room is None:
                self._room = threading.Condition(self._lock)
            if not self._reactor.wait_for(
                self._room, lambda: self.pending <= self._max_pending or not self._open, deadline.remaining
            ):
                raise EmitTimeout(
                    f'{self._name} can send no more: {self.pending} bytes are waiting and no room came within '
                    f'{deadline.timeout} s; emit less, wait longer, or raise config.max_pending_bytes'
                )

    def flush(self, deadline: Deadline) -> None:
        """Wait until all is written; raises EmitTimeout."""
        with self._lock:
            if not self.pending:
                return
            if self._room is None:
                self._room = threading.Condition(self._lock)
            if not self._reactor.wait_for(self._room, lambda: not (self.pending and self._open), deadline.remaining):
                raise EmitTimeout(f'{self._name}: {self.pending} bytes were not sent within {deadline.timeout} s')

    def queue(self, datagram: bytes, where: SocketAddress) -> None:
        """As `send`, whatever waits."""
        with self._lock:
            if not self._open:
                raise NotConnectedError(f'{self._name} is stopped; nothing was sent to {readable(where)}')
            if self._outbox or not self._write(datagram, where):
                self.pending += len(datagram)
                self._outbox.append((datagram, where))
                if self._started:
                    self._reactor.call(self._update)
            self.messages_out += 1

    def pending_for(self, where: SocketAddress) -> int:
        """Return how many bytes wait to be sent there."""
        with self._lock:
            return sum(len(datagram) for datagram, receiver in self._outbox if receiver == where)

    def withdraw(self) -> None:
        """Nothing: an address that nobody is bound to is not found."""

    def close(self) -> None:
        """Release the address, and drop what waits; any thread, as long as it is not started."""
        self._closed = True
        self._reactor.owned.discard(self)
        self._release()

    # Reactor thread

    def start(self) -> None:
        """Begin to read, and to write what waits."""
        if not self._closing:
            self._started = True
            self._reading = True
            self._update()

    def stop_reading(self) -> None:
        """Leave what comes from now on unread."""
        self._reading = False
        self._closing = True
        self._update()

    def begin_close(self) -> None:
        """Accept nothing more, write what waits, then close. Idempotent."""
        if self._timer is None and not self._closed:
            self.stop_reading()
            with self._lock:
                self._open = False
                if self._room is not None:
                    self._room.notify_all()
            self._watch_progress()
            self._close_if_written()

    def abort(self, error: Optional[Exception] = None) -> None:
        """Close now, and report `error` and what was not written."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._reading = False
        with contextlib.suppress(OSError, KeyError, ValueError):  # a given socket may have been closed by somebody else
            self._reactor.watch(self._sock, self._watched, 0, self._ready)
        self._watched = 0
        self._reactor.owned.discard(self)
        waiting = self.pending
        self._release()
        if error is not None:
            self._tell_failed(error)
        if waiting:
            self._tell_failed(NotConnectedError(f'{waiting} bytes that {self._name} had to send were lost: it is closed'))
        self._tell_closed()

    def abandon(self) -> None:
        # The lock may be held for ever by a thread that the fork did not copy.
        self._lock = threading.RLock()
        self._open = False
        self._sock.close()

    def _update(self) -> None:
        if not self._closed:
            wanted = (READ if self._reading else 0) | (WRITE if self._outbox else 0)
            try:
                self._reactor.watch(self._sock, self._watched, wanted, self._ready)
            except (OSError, KeyError, ValueError) as error:  # a given socket that somebody else has closed
                self.abort(OSError(errno.EBADF, f'{self._name}: the socket cannot be used any more ({error})'))
            else:
                self._watched = wanted

    def _ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if mask & READ and self._reading:
            self._read()

    def _read(self) -> None:
        for _ in range(self._budget):
            try:
                datagram, sender = self._sock.recvfrom(_RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                self._budget, self._full_turns = 1, 0
                return
            except ConnectionRefusedError as error:
                self._refused(error)
                continue
            except OSError as error:
                self._read_failed(error)
                return
            self.bytes_in += len(datagram)
            self._tell_received(datagram, sender)
            if not self._reading:
                return
        self._full_turns += 1
        if self._full_turns == _FULL_TURNS:
            self._budget, self._full_turns = min(_TURN, 2 * self._budget), 0

    def _refused(self, error: ConnectionRefusedError) -> None:
        why = 'nobody receives there; is the server running?'
        self._tell_failed(ConnectionRefusedError(error.errno, f'{self._name}: {why}'))

    def _read_failed(self, error: OSError) -> None:
        """It has been closed by somebody else; or, on some systems, something that was sent met nobody."""
        failure = OSError(error.errno, f'{self._name}: {error.strerror}')
        if self._sock.fileno() < 0 or error.errno in (errno.EBADF, errno.ENOTSOCK):
            self.abort(failure)
            return
        self._reading = False  # or, if it goes on failing, this would go on for ever
        self._update()
        self._reactor.call_later(_PAUSE_SECONDS, self._read_again)
        self._tell_failed(failure)

    def _read_again(self) -> None:
        if not self._closing:
            self._reading = True
            self._update()

    def _flush(self) -> None:
        failures = []
        with self._lock:
            for _ in range(_TURN):
                if not self._outbox:
                    break
                datagram, where = self._outbox[0]
                try:
                    if not self._write(datagram, where):
                        break
                except (OSError, ProtocolError) as error:
                    failures.append(error)
                self._outbox.popleft()
                self.pending -= len(datagram)
            if self._room is not None and self.pending <= self._max_pending:
                self._room.notify_all()
        for failure in failures:
            self._tell_failed(failure)
        self._update()
        self._close_if_written()

    def _close_if_written(self) -> None:
        if self._timer is not None and not self._outbox:
            self.abort()

    def _watch_progress(self) -> None:
        before = self.bytes_out
        self._timer = self._reactor.call_later(self._stall, lambda: self._check_progress(before))

    def _check_progress(self, before: int) -> None:
        """Every stall timeout of a goodbye."""
        if self.bytes_out != before:
            self._watch_progress()
        else:
            self.abort(
                ProtocolError(BACKPRESSURE, f'{self._name} could send nothing for {self._stall} s (config.stall_timeout)')
            )

    # With the lock held

    def _write(self, datagram: bytes, where: SocketAddress) -> bool:
        """Give a datagram to the system; False if it takes none now."""
        try:
            if self._connected:
                self._send(datagram)
            else:
                self._sock.sendto(datagram, where)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise self._too_large(datagram, 'this system or network sends at once') from error
            raise OSError(error.errno, f'{self._name} cannot send to {readable(where)}: {error.strerror}') from error
        self.bytes_out += len(datagram)
        return True

    def _send(self, datagram: bytes) -> None:
        try:
            self._sock.send(datagram)
        except ConnectionRefusedError as error:  # an earlier one was; this one has not been sent
            self._reactor.call(self._refused, error)
            self._sock.send(datagram)

    def _too_large(self, datagram: bytes, limit: str) -> ProtocolError:
        return ProtocolError(
            FRAME_TOO_LARGE,
            f'{self._name}: a message of {len(datagram)} bytes is more than {limit}; nothing was sent; split it, or use TCP',
        )

    def _release(self) -> None:
        with self._lock:
            self._open = False
            self._outbox.clear()
            self.pending = 0
            self._sock.close()
            if self._room is not None:
                self._room.notify_all()
        self._names.close()
