"""The client with ``config.sync``: one request at a time, the next emit leaves when the server has answered the last.

As in node-ipc an answer is whatever event the server sends; the turn is over when its handlers have run. A thread that
emits waits in line for its turn. A handler must not, for the answer could be waiting for that very handler: what it emits
stands in line by itself and leaves after it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, Iterator, Optional, Set

from .client import Client
from .connection import Connection
from .deadline import NEVER, Deadline, wait_for, waits
from .errors import EmitTimeout, NotConnectedError
from .reactor import Timer
from .reentry import has_interrupted_us
from .streamclient import StreamClient

if TYPE_CHECKING:  # imported by clients that have TLS
    from .tlsstream import TLSStream


class _Turn:
    """A request: in line, being sent, or sent and not answered.

    `frame` is what a handler emitted, to be sent in its turn; None is a thread's, which sends for itself. `connection` is
    the one that the request was sent on or, as long as it stands in line, the one that a handler meant.
    """

    __slots__ = ('before', 'begun', 'connection', 'frame', 'wait')

    def __init__(self) -> None:
        self.frame: Optional[bytes] = None
        self.connection: Optional[Connection] = None
        self.begun = False  # to be sent: from here on an event can be the answer
        self.before = 0  # messages that the connection had sent when it was begun
        # Taken until there is an end to the thread's waiting. A lock of its own wakes nobody else, and Ctrl-C cannot leave
        # it, as it can leave a condition, without the lock that the condition had to take again.
        self.wait = threading.Lock()
        self.wait.acquire()

    def begin(self, connection: Connection) -> None:
        self.connection = connection
        self.before = connection.messages_out
        self.begun = True

    @property
    def has_left(self) -> bool:
        """Whether it was sent; nobody else sends on the connection meanwhile."""
        return self.begun and self.connection is not None and self.connection.messages_out != self.before


class SyncClient(StreamClient):
    """A client that sends one request at a time.

    A connection that is lost takes with it the request that was not answered and what handlers had in line: an ``error``
    event tells of each, and nothing is sent again, because the server may have acted on it. Threads that wait for their
    turn get it on the next connection.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Guarded by _lock.
        self._turn: Optional[_Turn] = None  # whose turn it is
        self._line: Deque[_Turn] = deque()
        self._queued = 0  # bytes of what handlers have in line

        # Threads that are in _send. Changed by single operations that the interpreter makes atomic.
        self._emitting: Set[int] = set()

        self._patience: Optional[Timer] = None  # the reactor thread's own

    @contextlib.contextmanager
    def batch(self) -> Iterator[Client]:
        """As `Client.batch`, but nothing is joined: each message waits for its turn."""
        yield self

    def flush(self, timeout: Optional[float] = None) -> None:
        """As `Client.flush`, and wait for the turns of what handlers emitted; in a handler that raises RuntimeError."""
        deadline = Deadline(timeout)
        with self._lock:
            if self._queued and self._engine.workers.inside:
                raise RuntimeError(f'{self}: flush() in a handler would wait for what leaves only when the handler returns')
            if not self._reactor.wait_for(self._changed, lambda: not self._queued or self._finished, deadline.remaining):
                raise EmitTimeout(f'{self}: {self._queued} bytes that handlers emitted had no turn within {timeout} s')
        super().flush(deadline.remaining)

    def stats(self) -> Dict[str, int]:
        stats = super().stats()
        stats['pending_bytes'] += self._queued
        return stats

    # Any thread

    def _send(
        self, frame: bytes, timeout: Optional[float], messages: int, stand: Optional[Callable[[], Any]] = None
    ) -> None:
        if not frame:
            return  # raw mode, on a stream: nothing arrives, and nothing is answered
        me = threading.get_ident()
        if me in self._emitting:
            raise self._interrupted()
        try:
            self._emitting.add(me)
            self._send_in_turn(frame, timeout, messages, stand)
        finally:
            self._emitting.discard(me)

    def _interrupted(self) -> RuntimeError:
        return RuntimeError(
            f'emit to {self} in a signal handler or __del__ that has interrupted an emit to it, or another call of this '
            'library; set a flag there and emit in the main program'
        )

    def _send_in_turn(
        self, frame: bytes, timeout: Optional[float], messages: int, stand: Optional[Callable[[], Any]]
    ) -> None:
        deadline = Deadline(timeout)
        while True:
            turn = _Turn()
            try:
                connection = self._stand_in_line(turn, frame, deadline, stand is not None)
                if connection is None:
                    return  # what a handler emits is in line, and that is all
                if connection.send(frame, deadline.remaining, messages, stand):
                    return
                self._detach(connection)
                self._leave(turn)
            except BaseException:
                if not turn.has_left:  # Ctrl-C can come when it has
                    self._leave(turn)
                raise

    def _stand_in_line(self, turn: _Turn, frame: bytes, deadline: Deadline, asks: bool) -> Optional[Connection]:
        """Wait for a turn and return the connection to use; in a handler, None if it would have to wait."""
        self._check_callback()
        with self._lock:
            if self._engine.workers.inside and self._usable and (self._turn or self._line or not self._connection):
                if asks:
                    raise RuntimeError(f'{self}: with config.sync, what a handler asks leaves only when it has returned')
                self._enqueue(turn, frame)
                return None
            if not self._usable:
                raise self._gone()
            self._line.append(turn)
            self._grant()
        if self._turn is not turn and has_interrupted_us():
            raise self._interrupted()  # what was interrupted may hold the lock that the answer needs
        remaining = deadline.remaining
        self._reactor.wait(lambda: any(turn.wait.acquire(timeout=seconds) for seconds in waits(remaining)))
        with self._lock:
            if self._turn is turn and turn.connection is not None:
                turn.begin(turn.connection)
                return turn.connection
            raise self._no_turn(deadline) if self._usable else self._gone()

    def _enqueue(self, turn: _Turn, frame: bytes) -> None:
        if self._queued > self._config.max_pending_bytes:
            raise EmitTimeout(
                f'{self}: {self._queued} bytes that handlers emitted wait for their turns, and a handler cannot wait; '
                'emit less, or raise config.max_pending_bytes'
            )
        turn.frame, turn.connection = frame, self._connection
        self._line.append(turn)
        self._queued += len(frame)

    def _no_turn(self, deadline: Deadline) -> EmitTimeout:
        if self._connection is None:
            return self._no_connection(deadline.timeout)
        return EmitTimeout(
            f'{self}: no turn within {deadline.timeout} s, nothing was sent: the last message was not answered, or handlers '
            'of this client still run (config.sync); answer every message, or wait longer'
        )

    def _grant(self) -> None:
        """With _lock held: if it is nobody's turn, a thread that is first in line has it."""
        if self._turn is None and self._line and self._line[0].frame is None and self._connection is not None:
            self._turn = self._line.popleft()
            self._turn.connection = self._connection
            self._turn.wait.release()

    def _leave(self, turn: _Turn) -> None:
        """Let the next one try."""
        with self._lock:
            if self._turn is turn:
                self._turn = None
            elif turn.frame is None and turn in self._line:
                self._line.remove(turn)
            self._grant()
            waiting = self._line and not self._destroyed
        if waiting:
            self._strand.post(self._advance)

    def _dismiss(self) -> None:
        """Let the threads in line find out that they wait for nothing."""
        with self._lock:
            for turn in self._line:
                if turn.frame is None and turn.wait.locked():
                    turn.wait.release()

    def _begin_goodbye(self) -> None:
        super()._begin_goodbye()
        self._dismiss()

    def _wait_goodbye(self, deadline: Deadline, handlers: Deadline = NEVER) -> None:
        if self._engine.must_not_wait:
            return
        with self._lock:
            wait_for(self._changed, lambda: not self._queued or self._destroyed, deadline.sooner(handlers).remaining)
        self._reactor.call(super()._goodbye)
        super()._wait_goodbye(deadline, handlers)

    # On the strand

    def _deliverer(self) -> Callable[[str, Any], None]:
        deliver = super()._deliverer()

        def deliver_an_answer(type: str, data: Any) -> None:
            turn = self._asked()  # now: what leaves while the handlers run is not answered by this event
            deliver(type, data)
            self._answered(turn)

        return deliver_an_answer

    def _drop(self, type: str, data: Any) -> None:
        super()._drop(type, data)
        self._answered(self._asked())

    def _asked(self) -> Optional[_Turn]:
        """Return what an event that is about to be handled answers."""
        turn = self._turn
        return turn if turn is not None and turn.begun and turn.connection is self._heard else None

    def _answered(self, turn: Optional[_Turn]) -> None:
        if turn is None:
            return
        with self._lock:
            if self._turn is turn:
                self._turn = None
        self._advance()

    def _advance(self) -> None:
        """If it is nobody's turn, give it to whoever is first in line. Only here is anything taken out for a handler."""
        while True:
            with self._lock:
                self._grant()
                connection = self._socket  # also while the client says goodbye
                if self._turn is not None or not self._line or connection is None:
                    return
                turn = self._line[0]
                frame = turn.frame
                if frame is None or (turn.connection is not None and turn.connection is not connection):
                    return  # a thread, which waits for the next connection; or what fails with the last one, in a moment
                self._turn = turn
                turn.begin(connection)
            sent = full = False
            try:
                sent = connection.send(frame, self._emit_timeout)
            except EmitTimeout as error:
                full = True
                self._report(error, level=logging.WARNING)
            with self._lock:
                if not sent and self._turn is turn:
                    self._turn = None
                if not (sent or full):
                    return  # the connection's `disconnect` comes, and tells what becomes of the line
                self._line.popleft()
                self._queued -= len(frame)
                if not self._queued:
                    self._changed.notify_all()
                    if self._closing:
                        self._reactor.call(self._goodbye)

    def _announce(self, connection: Connection, connected: bool) -> None:
        if not connected:
            self._lose(connection)
        super()._announce(connection, connected)
        self._advance()

    def _lose(self, connection: Connection) -> None:
        """The connection is gone, and no answer will come on it."""
        unanswered = False
        with self._lock:
            turn = self._turn
            if turn is not None and turn.begun and turn.connection is connection:
                unanswered = turn.has_left
                self._turn = None
        if unanswered and self._usable:
            why = f'{self}: the connection was lost before the last message was answered; it is not sent again'
            self._report(NotConnectedError(why), level=logging.WARNING)
        self._fail(lambda turn: turn.connection is connection)

    def _fail(self, fails: Callable[[_Turn], bool]) -> None:
        """Take what handlers emitted out of the line, and report it."""
        with self._lock:
            failed = {turn for turn in self._line if turn.frame is not None and fails(turn)}
            if failed:
                self._line = deque(turn for turn in self._line if turn not in failed)
                size = sum(len(turn.frame or b'') for turn in failed)
                self._queued -= size
                self._lost += size
                self._changed.notify_all()
            self._grant()
        if failed:
            count = len(failed)
            what = 'a message that a handler emitted' if count == 1 else f'{count} messages that handlers emitted'
            why = f'{self}: {what} will not be sent, because the connection was lost before their turn'
            self._report(NotConnectedError(why), level=logging.WARNING)

    def _publish_destroy(self) -> None:
        self._fail(lambda turn: True)
        super()._publish_destroy()

    # Reactor thread

    def _destroy(self) -> None:
        super()._destroy()
        self._dismiss()
        if self._patience is not None:
            self._patience.cancel()  # or it would keep the client in memory

    def _connected(self, sock: socket.socket, tls: Optional[TLSStream]) -> None:
        super()._connected(sock, tls)
        with self._lock:
            self._grant()

    def _goodbye(self) -> None:
        """Let what handlers emitted have its turns first, as long as the server goes on answering."""
        if self._patience is not None:
            self._patience.cancel()
        self._patience = None
        queued = self._queued
        if queued and self._socket is not None and not self._destroyed:
            stall = self._config.stall_timeout / 1000
            # Asked on the strand, behind what has arrived: the server does not pay for handlers of ours.
            self._patience = self._reactor.call_later(stall, lambda: self._strand.post(self._go_on, queued))
        else:
            super()._goodbye()

    def _go_on(self, before: int) -> None:
        self._reactor.call(self._goodbye if self._queued < before else super()._goodbye)
