"""Events in a queue, for a thread that takes one after the other: what `events` returns, and what stands behind it.

The reactor thread puts, any thread takes. What a connection has in the queue is bounded: while it is behind, the connection
is not read, so its peer waits, and the peers' events are taken in turn, so that one who floods does not hold up the others.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import Empty, SimpleQueue
from typing import Any, Callable, Deque, Dict, FrozenSet, Generic, Iterable, Optional, Protocol, Tuple, TypeVar

from .deadline import Deadline, waits
from .errors import RequestTimeout
from .reentry import calls_out

S = TypeVar('S')
Self = TypeVar('Self', bound='EventIterator[Any]')

# A connection is not read while more than the first waits in a queue, until no more than the second does. As for handlers:
# see `workers`.
HIGH_WATER_BYTES = 256 << 10
_LOW_WATER_BYTES = 64 << 10

class Event(Tuple[str, Any, S]):
    """An event as `events` gives it: its type, its data, and the socket that it came from and that can answer it.

    On a server the socket is the peer's, on a client it is the client. It can be unpacked, too.

    >>> event = Event('message', 'hello', None)
    >>> event.type, event.data, event.socket
    ('message', 'hello', None)
    >>> type, data, socket = event
    """

    __slots__ = ()

    def __new__(cls, type: str, data: Any, socket: S) -> Event[S]:
        return tuple.__new__(cls, (type, data, socket))

    @property
    def type(self) -> str:
        """The event's name."""
        return self[0]

    @property
    def data(self) -> Any:
        """What was emitted with it."""
        return self[1]

    @property
    def socket(self) -> S:
        """Who emitted it; ``event.socket.emit(...)`` answers."""
        return self[2]

    def __getnewargs__(self) -> Tuple[str, Any, S]:
        return self[0], self[1], self[2]

    def __repr__(self) -> str:
        return f'Event(type={self[0]!r}, data={self[1]!r}, socket={self[2]!r})'


class Flow(Protocol):
    """Where events come from, as far as it can be slowed down."""

    def hold(self, holder: object) -> None:
        """Read no more until `holder` releases it; reactor thread."""

    def release(self, holder: object) -> None:
        """Undo the `hold`, if there is one; any thread."""


class _Source:
    """What waits of one peer."""

    __slots__ = ('gone', 'held', 'items', 'load')

    def __init__(self) -> None:
        self.gone = False  # what waits is all that there will be
        # Type, data, and what it counts. A type of None is a gap: the connection was lost here, and the data says why.
        self.items: Deque[Tuple[Optional[str], Any, int]] = deque()
        self.load = 0
        self.held: Optional[Flow] = None


class EventQueue(Generic[S]):
    """Events of `types`, or of all for None, by the peers that they came from, who are taken in turn."""

    def __init__(self, types: Optional[FrozenSet[str]]) -> None:
        self.types = types
        # Wakes a consumer, to look for what there is. The interpreter's own queue, which Ctrl-C interrupts and cannot leave
        # locked.
        self._bell: SimpleQueue[None] = SimpleQueue()
        # Guards all below. Innermost; re-entrant, for a __del__ may close a queue while its thread has it.
        self._lock = threading.RLock()
        self._sources: Dict[S, _Source] = {}  # of whom something waits, or whose flow is held
        self._turns: Deque[S] = deque()  # of whom something waits
        self._end: Optional[Callable[[], Exception]] = None  # makes what is raised when the rest is taken
        #: How many peers are gone of whom something waits.
        self.gone = 0

    def put(self, socket: S, events: Iterable[Tuple[str, Any]], size: int, flow: Optional[Flow]) -> None:
        """Take in events of `socket` that came as `size` bytes; hold its `flow` while it is behind. Reactor thread."""
        types = self.types
        wanted = [event for event in events if types is None or event[0] in types]
        if not wanted:
            return
        weight = size // len(wanted) + 1
        with self._lock:
            if self._end is not None:
                return
            source = self._source(socket)
            source.items.extend([(type, data, weight) for type, data in wanted])
            source.load += weight * len(wanted)
            self._ring()
            if flow is None or source.load <= HIGH_WATER_BYTES:
                return
            source.held = flow
        flow.hold(self)  # again each time: a release that is on its way may be older than the last hold, and undo it

    @property
    def is_done(self) -> bool:
        """Whether it has ended, and all is taken."""
        return self._end is not None and not self._sources

    def is_behind(self, socket: S) -> bool:
        """Whether more waits of this peer than may."""
        source = self._sources.get(socket)
        return source is not None and source.load > HIGH_WATER_BYTES

    def joined(self, socket: S, flow: Flow) -> None:
        """`socket` has a new connection; not to be read while what its last one brought is not taken. Reactor thread."""
        with self._lock:
            source = self._sources.get(socket)
            if source is None or source.load <= HIGH_WATER_BYTES:
                return
            source.held = flow
        flow.hold(self)

    def lost(self, socket: S, why: str) -> None:
        """The connection of `socket` was lost here; the consumer is told in turn. Reactor thread."""
        with self._lock:
            if self._end is None:
                source = self._source(socket)
                source.held = None
                if not (source.items and source.items[-1][0] is None):
                    source.items.append((None, why, 0))
                    self._ring()

    def left(self, socket: S) -> None:
        """`socket` has no connection any more. Reactor thread."""
        with self._lock:
            source = self._sources.get(socket)
            if source is not None:
                source.held = None
                source.gone = True
                self.gone += 1

    def discard(self, socket: S) -> None:
        """Forget what waits of a peer."""
        with self._lock:
            source = self._sources.pop(socket, None)
            if source is None:
                return
            if socket in self._turns:
                self._turns.remove(socket)
            self.gone -= source.gone
            held = source.held
        if held is not None:
            held.release(self)

    def end(self, error: Callable[[], Exception], drop: bool = False) -> None:
        """Nothing more will come: when all is taken, or dropped, `take` raises what `error` makes. The first call counts."""
        with self._lock:
            if drop:
                self.clear()
            if self._end is None:
                self._end = error
                self._ring()

    def close(self) -> None:
        """Nobody wants more. Any thread."""
        with self._lock:
            self.clear()
            self._end = StopIteration
            self._ring()

    def abandon(self, error: Callable[[], Exception]) -> None:
        """In a child made by fork, which has none of the threads that may have had the locks: end it."""
        self._lock = threading.RLock()
        self._bell = SimpleQueue()
        self._sources.clear()
        self._turns.clear()
        self._end = error

    def clear(self) -> None:
        """Drop all that waits."""
        with self._lock:
            for source in self._sources.values():  # first: if Ctrl-C comes, it can be cleared again
                if source.held is not None:
                    source.held.release(self)
            self._turns.clear()
            self._sources.clear()
            self.gone = 0

    @calls_out  # waits without a lock
    def wait(self, timeout: Optional[float]) -> bool:
        """Wait until it is worth to `take`; False if that does not come in `timeout` seconds."""
        for seconds in waits(timeout):
            try:
                if seconds:
                    self._bell.get(timeout=None if seconds < 0 else seconds)
                else:
                    self._bell.get(False)  # PyPy takes no timeout then
                return True
            except Empty:
                pass
        return False

    def take(self) -> Optional[Tuple[S, Optional[str], Any]]:
        """Return what comes next, or None if there is nothing yet. A type of None is a gap.

        Raises what ends the queue, StopIteration or an error.
        """
        with self._lock:
            while self._turns:
                socket = self._turns[0]
                source = self._sources.get(socket)
                if source is not None and source.items:
                    break
                self._turns.popleft()  # what Ctrl-C has left
            else:
                if self._end is None:
                    return None
                self._ring()  # for the next consumer
                raise self._end()
            # In this order nothing is stuck, wherever Ctrl-C comes; only what has been taken is lost.
            source.load -= source.items[0][2]
            type, data, _ = source.items.popleft()
            if source.held is not None and (source.load <= _LOW_WATER_BYTES or not source.items):
                source.held.release(self)
                source.held = None
            if source.items:
                self._turns.rotate(-1)
            else:
                self._turns.popleft()
                del self._sources[socket]
                self.gone -= source.gone
            if self._turns:
                self._ring()
        return socket, type, data

    def _ring(self) -> None:
        if self._bell.empty():
            self._bell.put(None)

    def _source(self, socket: S) -> _Source:
        source = self._sources.get(socket)
        if source is None:
            source = self._sources[socket] = _Source()
        if not source.items:
            self._turns.append(socket)
        return source


class Waited(Protocol):
    """What an iterator asks of the endpoint whose events it gives."""

    def _wait_until(self, take: Callable[[Optional[float]], bool], timeout: Optional[float]) -> bool: ...

    def _forget_queue(self, queue: EventQueue[Any]) -> None: ...  # and wake the reactor, on whose thread a handler may wait

    def _loss(self, why: str) -> Exception: ...


class EventIterator(Generic[S]):
    """The events that come from now on, one after the other; made by `events`. Any thread may iterate, several too.

    What came is kept until it is taken, up to 256 KiB of each peer, who then has to wait. Close it when it is not needed
    any more: ``close()``, ``with``, or drop the last reference to it.

    >>> from nodeipc import connect, serve
    >>> with serve('iterator-example') as server, connect('iterator-example') as client:
    ...     with server.events('message', timeout=10) as events:
    ...         client.emit('message', 'hello')
    ...         next(events).data
    'hello'
    """

    def __init__(self, owner: Waited, queue: EventQueue[S], timeout: Optional[float]) -> None:
        self._owner = owner
        self._queue = queue
        Deadline(timeout)  # raises for what is none
        self._timeout = timeout

    def __repr__(self) -> str:
        types = self._queue.types
        return f'<nodeipc.EventIterator {"of all events" if types is None else sorted(types)} of {self._owner}>'

    def __iter__(self: Self) -> Self:
        return self

    def __next__(self) -> Event[S]:
        """Wait for the next event and return it.

        Raises `RequestTimeout` if none came for `timeout` seconds, `NotConnectedError` if the connection was lost; after
        both it can be iterated on. StopIteration is the end: `close`, `Client.disconnect`, `Server.stop`, or the peer of a
        server's socket has gone.
        """
        owner, queue = self._owner, self._queue
        deadline = Deadline(self._timeout)
        while True:
            item = queue.take()
            if item is not None:
                socket, type, data = item
                if type is None:
                    raise owner._loss(data)
                return Event(type, data, socket)
            if not owner._wait_until(queue.wait, deadline.remaining):
                break
        what = 'no event' if queue.types is None else 'none of ' + ', '.join(map(repr, sorted(queue.types)))
        raise RequestTimeout(f'{owner}: {what} came within {self._timeout:g} s; iterate on to go on waiting')

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def __del__(self) -> None:
        # Whatever it interrupts may have any lock but the queue's, inside which none is taken; so the rest is done when
        # the next event comes, or the next iterator.
        self._queue.close()

    def close(self) -> None:
        """Stop collecting events and drop those that were not taken. Whoever waits for one is woken. Idempotent.

        >>> from nodeipc import connect
        >>> with connect('nobody-there') as client:
        ...     events = client.events('message')
        ...     events.close()
        ...     list(events)
        []
        """
        self._queue.close()
        self._owner._forget_queue(self._queue)
