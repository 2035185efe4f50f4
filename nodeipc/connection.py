"""One connected stream socket: reading into events, writing from any thread, and a goodbye that loses nothing.

Servers and clients own connections and decide what their events mean; a connection knows the wire, the reactor and a
strand, and no role. Only the reactor thread reads and closes the socket. Any thread writes: directly when nothing
waits, else behind the queue that the reactor drains.

The life of a connection: open; then, when either side is done, *closing* (no more sends; what is queued is written, what
arrives is discarded), *half-closed* (our end is sent, the peer's is awaited, because closing a TCP socket with unread
input resets it and destroys what is in flight), closed. `abort` goes straight to the last.
"""

from __future__ import annotations

import logging
import select
import socket
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, List, Optional, Set, Tuple, Union

from .config import Config
from .deadline import Deadline
from .errors import EmitTimeout, IPCError, NotConnectedError, ProtocolError, retold
from .messageclock import MessageClock
from .parsers import Codec
from .reactor import READ, WRITE, Owned, Reactor, Timer
from .strands import Strand
from .wire import BACKPRESSURE, MESSAGE_TIMEOUT, Event

if TYPE_CHECKING:  # imported by those who make one
    from .tlsstream import TLSStream

try:
    import fcntl
    import termios
except ImportError:  # not a Unix
    pass

# Larger receive buffers are mapped and unmapped by the allocator for each call, which costs more than the call.
_RECEIVE_BYTES = 64 << 10

# Small frames that wait are joined up to this size: fewer system calls, and no object for each.
_BLOCK_BYTES = 64 << 10

# What one turn of the reactor writes for one connection, and with its lock held.
_FLUSH_BYTES = 1 << 20

_NO_SIGPIPE = getattr(socket, 'MSG_NOSIGNAL', 0)

Block = Union[bytes, bytearray, memoryview]


# Why those who wait for an answer are told that it will not come.
STARVED = (
    'the answer cannot be read, because too much of what came before it is not handled yet (config.max_pending_bytes); have '
    'handlers and iterators keep up, or ask on a connection of its own'
)


class Owner:
    """What a connection tells its server's socket or its client, on the reactor thread."""

    __slots__ = ()

    def _connection_heard(self, connection: Connection, events: List[Event], size: int) -> List[Event]:
        """Events, which came as `size` bytes, have been read. Return those that handlers are to have."""
        raise NotImplementedError

    def _is_awaited(self) -> bool:
        """Whether a thread waits for what is to be read, and handlers that are behind must not keep it from that."""
        raise NotImplementedError

    def _connection_starved(self, connection: Connection) -> None:
        """Nothing more can be read for those who wait: too much of what came is not handled yet."""
        raise NotImplementedError

    def _connection_ended(self, connection: Connection) -> None:
        """The peer will send no more. The owner calls `begin_close` when it has nothing more to send either."""
        raise NotImplementedError

    def _connection_broken(self, connection: Connection, error: Exception) -> None:
        """The peer has broken the rules and is not read any more. The owner reports it and closes."""
        raise NotImplementedError

    def _connection_failed(self, connection: Connection, error: Exception) -> None:
        """Something is to be reported."""
        raise NotImplementedError

    def _connection_closed(self, connection: Connection) -> None:
        """The socket is closed. The last call."""
        raise NotImplementedError


_NOBODY = Owner()


class Connection(Owned):
    """A connected stream socket. `name` is what error messages call the other end, `tls` what it is encrypted with."""

    __slots__ = (
        '_behind', '_clock', '_closing', '_corked', '_cuts_stalled', '_decoder', '_discard', '_ended', '_flushing',
        '_half_closed', '_holders', '_lock', '_lost', '_max_pending', '_open', '_outbox', '_owner', '_peeked', '_pending',
        '_reactor', '_read_behind', '_reading', '_recv', '_room', '_send', '_send_error', '_sock', '_stall', '_stalled_at',
        '_strand', '_timer', '_tls', '_undelivered', '_watched', '_writing', 'bytes_in', 'bytes_out', 'closed', 'failure',
        'messages_in', 'messages_out', 'name',
    )

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        owner: Owner,
        reactor: Reactor,
        strand: Strand,
        codec: Codec,
        config: Config,
        tls: Optional[TLSStream] = None,
    ) -> None:
        self._sock = sock
        self._tls = tls
        self._send: Callable[[Block, int], int] = sock.send if tls is None else tls.send
        self._recv: Callable[[int], bytes] = sock.recv if tls is None else tls.recv
        self.name = name
        self._owner = owner
        self._reactor = reactor
        self._strand = strand
        self._decoder = codec.decoder()
        limit = codec.message_timeout
        self._clock = None if limit is None else MessageClock(limit, reactor, self._message_is_late)
        self._cuts_stalled = codec.cuts_stalled
        self._max_pending = config.max_pending_bytes
        self._stall = config.stall_timeout / 1000

        # Guards everything that sending touches: _writing and what follows it down to the two counters, and each write to
        # the socket, so that frames never interleave. Held for a non-blocking write at most, never while code of the
        # application runs; the reactor takes it. Inside it are taken a TLSStream's lock, that of Waiters, and, to wait for
        # room, that of Workers. It is re-entrant so that code which interrupts its holder (a signal handler, __del__) finds
        # _writing set and does not wait for itself.
        self._lock = threading.RLock()
        self._writing = False
        self._corked = 0  # the thread whose frames are joined
        self._flushing = False  # _outbox is being written
        self._open = True
        self._outbox: Deque[Block] = deque()
        self._pending = 0
        self._send_error: Optional[OSError] = None
        self._room: Optional[threading.Condition] = None  # made when somebody has to wait
        self._stalled_at: Optional[Tuple[int, Deadline]] = None  # what `progress` was then, and how long it may stay so
        self.messages_out = 0
        self.bytes_out = 0

        # The reactor thread's own, readable for statistics.
        self.messages_in = 0
        self.bytes_in = 0
        self.closed = False
        self.failure: Optional[Exception] = None  # why it was lost, if anybody knows
        self._undelivered = 0  # bytes read since the last event
        self._reading = False
        self._behind = False  # handlers are
        self._holders: Set[object] = set()  # queues of events that are
        self._read_behind = 0  # bytes, nevertheless, because somebody waited for an answer
        self._discard = False
        self._ended = False  # the peer's end was read
        self._lost = False  # or an error in its place
        self._closing = False
        self._half_closed = False
        self._watched = 0
        self._timer: Optional[Timer] = None
        self._peeked: Optional[Tuple[int, int]] = None

    # Any thread

    @property
    def is_open(self) -> bool:
        """Whether messages are accepted."""
        return self._open

    @property
    def pending(self) -> int:
        """Bytes that were accepted and are not written."""
        return self._pending

    @property
    def progress(self) -> int:
        """Bytes that the system has taken, on their way to the peer."""
        tls = self._tls  # once: the reactor thread may take it away
        return self.bytes_out if tls is None else tls.bytes_out

    def send(
        self, frame: bytes, timeout: Optional[float], messages: int = 1, stand: Optional[Callable[[], Any]] = None
    ) -> bool:
        """Accept all of `frame`, which holds `messages`, or nothing: write it, or queue it behind the pending limit.

        Waits up to `timeout` seconds for room, then raises EmitTimeout. Returns False if the connection is not open, or
        not any more: then nothing of the frame will arrive as a message. `stand` is called right before it is written, so
        that those who wait for answers stand in the order in which their requests leave.
        """
        with self._lock:
            if self._pending > self._max_pending and self._open and not self._wait_for_room(timeout):
                raise EmitTimeout(
                    f'{self.name} takes no more: {self._pending} bytes are waiting to be written and no room came within '
                    f'{timeout} s; emit less, wait longer, or raise config.max_pending_bytes'
                )
            if not self._open:
                return False
            if stand is None:
                return self._write(frame, messages)
            stand()
            accepted = self._write(frame, messages)
        self.read_on()
        return accepted

    def read_on(self) -> None:
        """Somebody waits for what is to be read."""
        if self._behind or self._holders:
            self._reactor.call(self._consider_reading)

    def release(self, holder: object) -> None:
        """Undo the `hold` of `holder`, if there is one."""
        self._reactor.call(self._released, holder)

    def queue(self, frame: bytes) -> bool:
        """Accept `frame` whatever is queued; True if the queue is over its limit now."""
        with self._lock:
            if self._open:
                self._write(frame, 1)
            return self._open and self._pending > self._max_pending

    def wait_for_room(self, before: int, stall: Deadline) -> None:
        """Wait until the queue is within its limit, and cut off a peer that takes nothing for the stall timeout.

        `before` is what `progress` was when that timeout, `stall`, began.
        """
        with self._lock:
            if self._corked:
                self._write_joined()
            while not self._wait(self._has_room, stall.remaining):
                if self._takes_nothing_since(before):
                    self._reactor.call(self.abort, self._stalled())
                    return
                before, stall = self.progress, Deadline(self._stall)

    def cork(self) -> None:
        """Queue what this thread sends, until `uncork`."""
        self._corked = threading.get_ident()

    def uncork(self) -> None:
        """Write what was queued, and queue no more than has to be."""
        with self._lock:
            self._corked = 0
            try:
                self._write_joined()
            except Exception as error:  # MemoryError: nobody knows how much has left
                self._open = False
                self._reactor.call(self.abort, error)

    def flush(self, timeout: Optional[float]) -> None:
        """Wait until everything accepted is written. Raises EmitTimeout, or NotConnectedError if it will not be."""
        with self._lock:
            if self._corked:
                self._write_joined()
            if not self._wait(self._is_flushed, timeout):
                why = f'{self._pending} bytes for {self.name} were not written within {timeout} s; does it read?'
                raise EmitTimeout(f'{why} Wait longer, or emit less')
            if self._pending:
                raise NotConnectedError(f'the connection to {self.name} was lost with {self._pending} bytes not written')

    @property
    def why_lost(self) -> str:
        """Why it is closed, for those who waited for something to come."""
        failure = self.failure
        if failure is None:
            return 'the other end has closed the connection'
        return (isinstance(failure, OSError) and failure.strerror) or str(failure)

    @property
    def never_stood(self) -> bool:
        """Whether it broke at once and before anything came: so TLS 1.3 refuses our certificate, after the handshake."""
        broken = self._lost or self._send_error is not None
        return broken and self._tls is not None and self._tls.is_on_probation

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a method of this connection called on its reactor thread."""
        self._reactor.call(function, *arguments)

    # Reactor thread

    def start(self) -> None:
        """Begin to read."""
        self._reactor.owned.add(self)
        self._strand.on_drained = self._drained
        self._strand.outlet = self
        self._behind = self._strand.is_full  # a client's may be, with what an earlier connection brought
        self._consider_reading()

    def hold(self, holder: object) -> None:
        """Read no more, unless somebody waits for an answer, until `holder` releases it."""
        self._holders.add(holder)

    def _read_ahead(self) -> None:
        """TLS: read what came with the end of the handshake, of which the socket will not tell again."""
        if self._reading and self._tls is not None:
            self._read()

    def stop_reading(self) -> None:
        """Read no more until the goodbye."""
        if not self._discard:
            self._closing = True
            self._pause()

    def expect_progress(self) -> None:
        """From now on cut off a peer that takes nothing for the stall timeout while something waits."""
        if not self.closed:
            if self._timer is not None:
                self._timer.cancel()
            self._peeked = (self.progress, _unacknowledged(self._sock))
            self._timer = self._reactor.call_later(self._stall, self._check_progress)

    def begin_close(self) -> None:
        """Say goodbye: accept no more, write what is queued, then wait for the peer's end, then close."""
        if self.closed or self._discard:
            return
        self._closing = True
        self._discard = True
        self._refuse_sends()
        self._reading = not self._ended
        self.expect_progress()
        if self._send_error is not None:
            self.abort()
        elif self._pending:
            self._update()
        else:
            self._half_close()
        self._after_reading()

    def cut(self) -> None:
        """Close: now, if nothing was ever sent that this could destroy, for then the peer needs no goodbye."""
        if self.bytes_out or self._pending:
            self.begin_close()
        else:
            self.abort()

    def abort(self, error: Optional[Exception] = None) -> None:
        """Close now, and report `error` and what was not written."""
        if self.closed:
            return
        self.closed = True  # before the next line, which wakes those who wait in flush()
        self._refuse_sends()
        if self._timer is not None:
            self._timer.cancel()
        if self._clock is not None:
            self._clock.stop()
            self._clock = None  # it refers to this
        self._reading = False
        self._reactor.watch(self._sock, self._watched, 0, self._ready)
        self._watched = 0
        self._sock.close()
        self._reactor.owned.discard(self)
        if error is not None:
            self.failure = error
            self._owner._connection_failed(self, error)
        if self._pending and not (isinstance(error, ProtocolError) and error.code == BACKPRESSURE):  # which tells
            why = self._send_error.strerror if self._send_error else 'the connection is closed'
            message = f'{self._pending} bytes that were emitted to {self.name} were not delivered: {why}'
            self._owner._connection_failed(self, NotConnectedError(message))
        self._owner._connection_closed(self)
        # A client or socket that the application keeps must not keep the buffers.
        self._strand.on_drained = self._strand.outlet = None
        self._decoder = None  # type: ignore[assignment]  # never fed again
        self._send = self._recv = self._tls = None  # type: ignore[assignment]  # nor are these used: it is not open
        self._owner = _NOBODY

    def abandon(self) -> None:
        # The lock may be held for ever by a thread that the fork did not copy.
        self._lock = threading.RLock()
        self._open = False
        self.closed = True
        self._sock.close()

    # Sending, with the lock held

    def _has_room(self) -> bool:
        return self._pending <= self._max_pending or not self._open

    def _wait_for_room(self, timeout: Optional[float]) -> bool:
        if self._corked:
            self._write_joined()
        if not self._cuts_stalled:
            return self._wait(self._has_room, timeout)
        deadline = Deadline(timeout)
        while True:
            if self._stalled_at is None or self._stalled_at[0] != self.progress:  # else as long as the last emit waited, too
                self._stalled_at = self.progress, Deadline(self._stall)
            before, stall = self._stalled_at
            if self._wait(self._has_room, deadline.sooner(stall).remaining):
                return True
            if not stall.remaining:
                if self._takes_nothing_since(before):
                    self._open = False
                    self._reactor.call(self.abort, self._stalled())
                    return True
                self._stalled_at = None
            if deadline.timeout is not None and not deadline.remaining:
                return False

    def _takes_nothing_since(self, before: int) -> bool:
        """Whether `progress` is what it was `before`, and not because the reactor had no time to write."""
        return self._open and self.progress == before and not (self._wants_to_write() and _is_writable(self._sock))

    def _is_flushed(self) -> bool:
        return not self._pending or self.closed or self._send_error is not None

    def _wait(self, predicate: Callable[[], bool], timeout: Optional[float]) -> bool:
        if predicate():
            return True
        if self._room is None:
            self._room = threading.Condition(self._lock)
        return self._reactor.wait_for(self._room, predicate, timeout)

    def _write(self, frame: bytes, messages: int) -> bool:
        """Write or queue `frame`; False if the socket turns out to be dead."""
        if self._writing:
            raise RuntimeError(
                f'emit to {self.name} in a signal handler or __del__ that has interrupted an emit to it; '
                'set a flag there and emit in the main program'
            )
        try:
            self._writing = True
            if self._outbox or (self._corked and self._corked == threading.get_ident()):
                self._queue(frame)
            else:
                try:
                    sent = self._send(frame, _NO_SIGPIPE)
                except (BlockingIOError, InterruptedError):
                    sent = 0
                except OSError as error:
                    self._broken(error)
                    self._writing = False
                    return False
                self.bytes_out += sent
                if sent < len(frame):
                    self._outbox.append(memoryview(frame)[sent:])
                    self._pending = len(frame) - sent
                    self._reactor.call(self._update)
            self.messages_out += messages
            self._writing = False
            return True
        except BaseException:
            # A signal handler raised (Ctrl-C), and nobody knows how much of the frame has left.
            self._open = self._writing = False
            try:
                self._reactor.call(self.abort, IPCError(f'sending to {self.name} was interrupted; the connection is closed'))
            except RecursionError:  # the end of the stack: a call of C's needs less of it, and is heard by the reactor
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                except RecursionError:  # as the first call above: nothing has left
                    self._open = True
            raise

    def _queue(self, frame: bytes) -> None:
        outbox = self._outbox
        tail = outbox[-1] if outbox else None
        if isinstance(tail, bytearray) and len(tail) < _BLOCK_BYTES and not self._flushing:
            tail += frame
        else:
            outbox.append(bytearray(frame) if len(frame) < _BLOCK_BYTES else frame)
        self._pending += len(frame)
        if self._corked and self._pending >= _BLOCK_BYTES:
            self._write_joined()

    def _write_joined(self) -> None:
        if not self._outbox:
            return
        failure = self._write_outbox()
        if failure is not None:
            self._broken(failure)
            return
        if self._outbox or not self._open:
            self._reactor.call(self._joined_is_written)
        if self._room is not None and self._pending <= self._max_pending:
            self._room.notify_all()

    def _write_outbox(self) -> Optional[OSError]:
        """Write what is queued, as far as it goes in one turn; return what went wrong."""
        budget, outbox = _FLUSH_BYTES, self._outbox
        if self._flushing:
            return None  # a __del__ has interrupted it
        self._flushing = True
        try:
            if self._tls is not None:
                self._tls.flush()
            while outbox and budget > 0:
                head = outbox[0]
                sent = self._send(head, _NO_SIGPIPE)
                self.bytes_out += sent
                self._pending -= sent
                budget -= sent
                if sent == len(head):
                    outbox.popleft()
                elif isinstance(head, bytearray):
                    del head[:sent]
                else:
                    outbox[0] = memoryview(head)[sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            return error
        finally:
            self._flushing = False
        return None

    def _broken(self, error: OSError) -> None:
        """Accept no more. What the peer sent before it went is still read, up to the end that this provokes."""
        self._open = False
        self._send_error = error
        self._outbox.clear()  # but not _pending: it is what abort() reports
        if self._room is not None:
            self._room.notify_all()
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._reactor.call(self._send_failed)

    def _stalled(self) -> ProtocolError:
        return ProtocolError(
            BACKPRESSURE,
            f'{self.name} took nothing for {self._stall} s with {self._pending} bytes waiting; it is cut off '
            '(config.stall_timeout)',
        )

    # Reactor thread

    def _refuse_sends(self) -> None:
        with self._lock:
            self._open = False
            if self.closed:
                self._outbox.clear()
            if self._room is not None:
                self._room.notify_all()

    def _update(self) -> None:
        if not self.closed:
            wanted = (READ if self._reading else 0) | (WRITE if self._wants_to_write() else 0)
            self._reactor.watch(self._sock, self._watched, wanted, self._ready)
            self._watched = wanted

    def _wants_to_write(self) -> bool:
        tls = self._tls
        if tls is None or self._send_error is not None:
            return bool(self._outbox)
        return tls.wants_to_write or (bool(self._outbox) and tls.can_encrypt)

    def _ready(self, mask: int) -> None:
        if mask & WRITE and not self.closed:
            self._flush()
        if mask & READ and self._reading:
            self._read()

    def _flush(self) -> None:
        with self._lock:
            failure = self._write_outbox()
            if failure is not None:
                self._broken(failure)
            elif self._room is not None and self._pending <= self._max_pending:
                self._room.notify_all()
        if not self._pending:
            self._update()
            if self._discard:
                self._half_close()
        elif self._tls is not None:
            self._update()

    def _joined_is_written(self) -> None:
        """By whatever thread: the reactor writes what is left; if nothing is, a goodbye may have waited for that."""
        if self._pending or not self._discard:
            self._update()
        elif not (self._half_closed or self.closed):
            self._update()
            self._half_close()

    def _send_failed(self) -> None:
        """Nothing more can be written: close, unless there is something left to read."""
        if self._ended or self._discard:
            self.abort()
        else:
            self._update()
            self._consider_reading()

    def _read(self) -> None:
        try:
            chunk = self._recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            if self._tls is not None:
                self._time_message(False)  # of a record some came
                self._after_reading()
            return
        except OSError as error:
            # Not worth an error event of its own when we were leaving anyway, or when it is how we learn of the end. But an
            # alert says why.
            self._lost = True
            if self._discard or not (self._open or getattr(error, 'reason', None)):
                self.abort()
            else:
                self.abort(retold(error, f'the connection to {self.name} was lost: {error.strerror}'))
            return
        if not chunk:
            self._end_of_input()
            return
        self.bytes_in += len(chunk)
        if not self._discard:
            self._decode(chunk)
        if self._tls is not None:
            self._after_reading()

    def _after_reading(self) -> None:
        """TLS: write what the protocol answers and what waited for this, and read an end that came with the rest."""
        tls = self._tls
        if tls is not None and not self.closed:
            self._update()
            if tls.has_more and not self._ended and (self._discard or not self._closing):
                self._read()

    def _decode(self, chunk: bytes) -> bool:
        """Hand the events that `chunk` completes to the strand; False if it breaks the rules."""
        events: List[Event] = []
        failure: Optional[Exception] = None
        self._undelivered += len(chunk)
        try:
            events.extend(self._decoder.feed(chunk))
        except ProtocolError as error:
            failure = ProtocolError(error.code, f'{self.name}: {error.args[0]}')
            failure.__cause__ = error.__cause__
        except MemoryError as error:
            failure = MemoryError(f'{self.name}: there is no memory for a message; the connection is closed')
            failure.__cause__ = error
        except Exception as error:  # a defect: this connection's fault alone
            failure = error
        if events:
            self.messages_in += len(events)
            size, self._undelivered = self._undelivered, 0
            events = self._owner._connection_heard(self, events, size)
            if events and self._strand.post_events(events, size):
                self._behind = True
            if self._behind or self._holders:
                self._read_on_or_pause(size)
        if failure is not None:
            self.failure = failure
            self.stop_reading()
            self._owner._connection_broken(self, failure)
        elif self._clock is not None:
            self._time_message(bool(events))
        return failure is None

    def _time_message(self, anew: bool) -> None:
        if self._clock is not None:
            unfinished = self._decoder.is_inside_frame  # type: ignore[attr-defined]  # who has a clock has that
            if self._tls is not None:
                unfinished = unfinished or self._tls.is_inside_record
            self._clock.note(self._reading and unfinished, anew)

    def _message_is_late(self) -> None:
        if self._clock is not None and not self._closing:
            self.stop_reading()
            why = f'a message was not complete {self._clock.limit} s after its first byte (config.message_timeout)'
            self.failure = ProtocolError(MESSAGE_TIMEOUT, f'{self.name}: {why}')
            self._owner._connection_broken(self, self.failure)

    def _drained(self) -> None:
        self._reactor.call(self._handlers_caught_up)

    def _handlers_caught_up(self) -> None:
        self._behind = False
        self._consider_reading()

    def _released(self, holder: object) -> None:
        self._holders.discard(holder)
        self._consider_reading()

    def _read_on_or_pause(self, size: int) -> None:
        """What was read last is not handled yet: read more only if somebody waits for an answer, and within a limit."""
        self._read_behind += size
        if not self._may_read_behind():
            self._pause()

    def _may_read_behind(self) -> bool:
        if self._send_error is not None:
            return True  # the peer has gone: what is left is bounded, and comes before the next connection
        if not self._owner._is_awaited():
            return False
        if self._read_behind <= self._max_pending:
            return True
        self._owner._connection_starved(self)
        return False

    def _consider_reading(self) -> None:
        is_behind = self._behind or bool(self._holders)
        if not is_behind:
            self._read_behind = 0
        if not (self._reading or self.closed) and (not is_behind or self._may_read_behind()):
            self._resume()

    def _pause(self) -> None:
        self._reading = False
        self._update()

    def _resume(self) -> None:
        if not (self._closing or self._ended or self.closed):
            self._reading = True
            self._time_message(True)
            self._update()
            self._read_ahead()

    def _end_of_input(self) -> None:
        self._ended = True
        self._reading = False
        self._update()
        if self._half_closed:
            self.abort()
        elif self._discard:
            return  # what is queued is still being written
        elif not self._decode(b''):
            return  # it ended inside a message
        elif not self._open:
            self.abort()  # nothing could be sent any more
        else:
            self._owner._connection_ended(self)

    def _half_close(self) -> None:
        self._half_closed = True
        try:
            if self._tls is not None and not self._tls.say_goodbye():
                self._update()  # _flush() comes here again
                return
            if not self._ended:
                self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()
            return
        if self._ended:
            self.abort()
        else:
            self._update()

    def _check_progress(self) -> None:
        """Every stall timeout of a goodbye, or before one: cut off a peer that took nothing since the last time."""
        in_flight = _unacknowledged(self._sock)
        before, self._peeked = self._peeked, (self.progress, in_flight)
        if self._peeked != before or not (self._discard or self._pending or in_flight):
            self._timer = self._reactor.call_later(self._stall, self._check_progress)
        elif self._pending or in_flight:
            self.abort(
                ProtocolError(
                    BACKPRESSURE,
                    f'{self.name} took nothing for {self._stall} s; {self._pending + in_flight} bytes may not have been '
                    'delivered (config.stall_timeout)',
                )
            )
        else:
            self.abort()  # the peer's system has it all; only the peer's end is missing, and it had its time


def log_level(error: Exception) -> int:
    """A peer that breaks the rules or loses data is worth a warning; one that goes away is not."""
    return logging.WARNING if isinstance(error, (IPCError, MemoryError)) else logging.INFO


def _is_writable(sock: socket.socket) -> bool:
    """Whether the reactor would be told to write, if it asked now. A send could take some bytes before that."""
    if not hasattr(select, 'poll'):
        return bool(select.select((), (sock,), (), 0)[1])
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def _unacknowledged(sock: socket.socket) -> int:
    """Return how many written bytes the peer's system has not taken yet; 0 where nobody tells.

    Closing can destroy these. What is written to a Unix socket is with the peer at once, read or not.
    """
    if sock.family == getattr(socket, 'AF_UNIX', None):
        return 0
    try:
        return int(struct.unpack('i', fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b'\0\0\0\0'))[0])
    except (NameError, OSError):
        return 0
