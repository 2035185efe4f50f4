"""The client with ``config.sync``: one request at a time, the next emit leaves when the server has answered the last.

As in node-ipc an answer is whatever event the server sends; its turn is over when its handlers have run. A thread that
emits waits for its turn. A handler must not, for the answer could be waiting for that very handler: what it emits is
queued and leaves after it.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator, Optional

from .client import Client
from .connection import Connection
from .deadline import Deadline
from .errors import EmitTimeout, NotConnectedError
from .reactor import Timer


class _Turn:
    """A request that is being sent, or was and is not answered."""

    __slots__ = ('connection', 'lost', 'sent')

    def __init__(self) -> None:
        self.connection: Optional[Connection] = None
        self.sent = False
        self.lost = False


class SyncClient(Client):
    """A client that sends one request at a time.

    A connection that is lost takes with it the request that was not answered and what handlers had queued: an ``error``
    event tells of each, and nothing is sent again, because the server may have acted on it. Threads that wait for their
    turn get it on the next connection.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Guarded by _changed.
        self._turn: Optional[_Turn] = None
        self._queue: Deque[bytes] = deque()  # what handlers emitted
        self._queued_bytes = 0
        # The connection between its `connect` and its `disconnect`, as the strand publishes them, so that nothing of one
        # connection is taken for an answer on the next.
        self._current: Optional[Connection] = None

        self._patience: Optional[Timer] = None  # the reactor thread's own

    @contextlib.contextmanager
    def batch(self) -> Iterator[Client]:
        """As `Client.batch`, but nothing is joined: each message waits for its turn."""
        yield self

    def flush(self, timeout: Optional[float] = None) -> None:
        """As `Client.flush`, and wait for the turns of what handlers emitted; in a handler that raises RuntimeError."""
        deadline = Deadline(timeout)
        with self._changed:
            if self._queue and self._engine.workers.inside:
                raise RuntimeError(f'{self}: flush() in a handler would wait for what leaves only when the handler returns')
            if not self._reactor.wait_for(self._changed, lambda: not self._queue or self._destroyed, deadline.remaining):
                raise EmitTimeout(f'{self}: {len(self._queue)} messages have not had their turn within {timeout} s')
        super().flush(deadline.remaining)

    def stats(self) -> Dict[str, int]:
        stats = super().stats()
        stats['pending_bytes'] += self._queued_bytes
        return stats

    # Any thread

    def _send(self, frame: bytes, timeout: Optional[float], messages: int) -> None:
        deadline = Deadline(timeout)
        while True:
            turn = _Turn()
            try:
                connection = self._take_turn(turn, frame, deadline)
                if connection is None:
                    return  # queued
                turn.sent = connection.send(frame, deadline.remaining, messages)
            except BaseException:
                self._give_back(turn)
                raise
            if turn.sent:
                with self._changed:
                    lost = turn.lost
                if lost:  # before anybody could tell that it had been sent
                    self._strand.post(self._report_lost)
                return
            self._give_back(turn)

    def _take_turn(self, turn: _Turn, frame: bytes, deadline: Deadline) -> Optional[Connection]:
        """Wait for a turn and return the connection to use; in a handler, queue `frame` instead of waiting."""
        self._check_callback()
        with self._changed:
            if self._engine.workers.inside and self._usable and not self._is_free():
                self._enqueue(frame)
                return None
            settled = self._reactor.wait_for(self._changed, lambda: self._is_free() or not self._usable, deadline.remaining)
            if not self._usable:
                raise self._gone()
            if not settled:
                raise EmitTimeout(self._why_no_turn(deadline))
            self._turn, turn.connection = turn, self._current
            return self._current

    def _is_free(self) -> bool:
        return self._turn is None and self._current is not None and not self._queue

    def _enqueue(self, frame: bytes) -> None:
        limit = self._config.max_pending_bytes
        if self._queued_bytes > limit:
            raise EmitTimeout(
                f'{self}: {self._queued_bytes} bytes that handlers emitted wait for their turns, and a handler cannot wait; '
                'emit less, or raise config.max_pending_bytes'
            )
        self._queue.append(frame)
        self._queued_bytes += len(frame)

    def _why_no_turn(self, deadline: Deadline) -> str:
        if self._current is None:
            why = f'; the last attempt: {self._last_error}' if self._last_error else ''
            return f'{self}: no connection within {deadline.timeout} s, nothing was sent; is the server running?{why}'
        return (
            f'{self}: the server has not answered the last message within {deadline.timeout} s, and nothing more was sent '
            '(config.sync); answer every message, or wait longer'
        )

    def _give_back(self, turn: _Turn) -> None:
        """Nothing was sent: let the next one try."""
        with self._changed:
            if turn.connection is not None and not turn.connection.is_open and self._current is turn.connection:
                self._current = None
            if self._turn is turn:
                self._turn = None
                self._changed.notify_all()
        self._strand.post(self._advance)

    def _unqueue(self) -> None:
        with self._changed:
            self._queued_bytes -= len(self._queue.popleft())
            if not self._queue:
                self._changed.notify_all()
                if self._closing:
                    self._reactor.call(self._goodbye)

    # On the strand

    def _deliverer(self) -> Callable[[str, Any], None]:
        deliver = super()._deliverer()

        def deliver_an_answer(type: str, data: Any) -> None:
            deliver(type, data)
            self._answered()

        return deliver_an_answer

    def _drop(self, type: str, data: Any) -> None:
        super()._drop(type, data)
        self._answered()

    def _answered(self) -> None:
        with self._changed:
            self._turn = None
            self._changed.notify_all()
        self._advance()

    def _advance(self) -> None:
        """If it is nobody's turn, give it to what was queued first. Nobody else takes from the queue."""
        while True:
            turn = _Turn()
            with self._changed:
                connection = self._current
                if not self._queue or self._turn is not None or connection is None:
                    return
                self._turn, turn.connection = turn, connection
                frame = self._queue[0]
            try:
                turn.sent = connection.send(frame, self._emit_timeout)
            except EmitTimeout as error:
                self._unqueue()
                self._report(error, level=logging.WARNING)
            if turn.sent:
                self._unqueue()
                return
            with self._changed:
                self._turn = None
                if not connection.is_open:
                    return  # its `disconnect` comes, and what is queued fails
                self._changed.notify_all()

    def _announce(self, connection: Connection, connected: bool) -> None:
        if connected:
            with self._changed:
                self._current = connection
                self._changed.notify_all()
        else:
            self._lose(connection)
        super()._announce(connection, connected)
        self._advance()

    def _lose(self, connection: Connection) -> None:
        """The connection is gone, and no answer will come on it."""
        unanswered = False
        with self._changed:
            if self._current is connection:
                self._current = None
            turn = self._turn
            if turn is not None and turn.connection is connection:
                self._turn = None
                unanswered = turn.sent
                turn.lost = not turn.sent  # then whoever sends it finds out
            self._changed.notify_all()
        if unanswered and self._usable:
            self._report_lost()
        self._fail_queue()

    def _report_lost(self) -> None:
        why = f'{self}: the connection was lost before the last message was answered; it is not sent again'
        self._report(NotConnectedError(why), level=logging.WARNING)

    def _fail_queue(self) -> None:
        with self._changed:
            count = len(self._queue)
            self._queue.clear()
            self._lost += self._queued_bytes
            self._queued_bytes = 0
            self._changed.notify_all()
        if count:
            what = 'a message that a handler emitted' if count == 1 else f'{count} messages that handlers emitted'
            why = f'{self}: {what} will not be sent, because the connection was lost before their turn'
            self._report(NotConnectedError(why), level=logging.WARNING)

    def _publish_destroy(self) -> None:
        self._fail_queue()
        super()._publish_destroy()

    # Reactor thread

    def _goodbye(self) -> None:
        """Let what handlers emitted have its turns first, as long as the server goes on answering."""
        if self._patience is not None:
            self._patience.cancel()
        with self._changed:
            waiting = len(self._queue) if self._current is not None else 0
        if waiting:
            self._patience = self._reactor.call_later(
                self._config.stall_timeout / 1000, lambda: self._go_on_unless_stalled(waiting)
            )
        else:
            super()._goodbye()

    def _go_on_unless_stalled(self, before: int) -> None:
        if len(self._queue) < before:
            self._goodbye()
        else:
            super()._goodbye()
