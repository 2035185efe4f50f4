"""Threads that wait for one event each: for the answer of a request or a call, or for the next event of a type.

They are told by the reactor thread as soon as an event has been read, before the handlers of the same event and without
waiting for those of earlier ones. So a handler may ask, too, and a slow one delays no answer.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from typing import Any, Callable, Collection, Deque, Dict, Iterable, List, Optional, Set, Tuple

from . import rpc
from .deadline import waits
from .errors import NotConnectedError
from .eventqueue import HIGH_WATER_BYTES, EventQueue, Flow
from .events import ANY
from .reentry import calls_out
from .wire import Event

# The objects that stand for an event, however small it is.
_OVERHEAD_BYTES = 512


# Of all calls of this process, from some number on: a late answer that comes by the next connection is not taken for that
# of another call, also if the process that asked has been restarted.
_call_ids = itertools.count(int.from_bytes(os.urandom(5), 'big'))


class Waiter:
    """One thread's wait. `kind` says for what: `Waiters` knows."""

    __slots__ = ('_wake', 'abandoned', 'data', 'failure', 'key', 'kind')

    def __init__(self, kind: Dict[Any, Any], key: Any) -> None:
        self.kind = kind
        self.key = key
        # Taken until there is an end to the waiting; Ctrl-C interrupts it and cannot leave it to anybody's harm.
        self._wake = threading.Lock()
        self._wake.acquire()
        self.data: Any = None
        self.failure: Optional[str] = None
        self.abandoned = False  # nobody waits any more

    def begin(self) -> None:
        """Forget what was told."""
        self._wake.acquire(False)
        self.failure = None

    @calls_out  # waits without a lock
    def wait(self, timeout: Optional[float]) -> bool:
        """Whether it was told, within `timeout` seconds."""
        for seconds in waits(timeout):  # noqa: SIM110 (a generator has a frame of its own, which does not call out)
            if self._wake.acquire(timeout=seconds):
                return True
        return False

    def tell(self, data: Any = None, failure: Optional[str] = None) -> None:
        self.data, self.failure = data, failure
        if self._wake.locked():  # else Ctrl-C came when it was told the first time
            self._wake.release()


class Waiters:
    """Those who wait for events of one peer, and the queues that collect them."""

    def __init__(self) -> None:
        # Who has come and has no place yet. They come with a connection's lock held, which code that interrupts a holder of
        # ours (a signal handler, __del__) may want: so without ours, by an operation that the interpreter makes atomic.
        self._arrived: Deque[Waiter] = deque()
        # Guards all below. Only those of EventQueues are taken inside it. Re-entrant, for __del__ may end a wait while its
        # thread has it.
        self._lock = threading.RLock()
        self.requests: Dict[str, Deque[Waiter]] = {}  # by the type of the answer; one event is one's answer, in order
        self.waits: Dict[str, Deque[Waiter]] = {}  # by type; one event is everybody's
        self.calls: Dict[int, Waiter] = {}  # by the id of the request
        self._queues: Tuple[EventQueue[Any], ...] = ()
        self._gone: Optional[str] = None  # why nothing will come any more
        # What came of types that nobody has asked for yet: sockets, types and data. What it counts, and those types.
        self._kept: Optional[List[Tuple[Any, str, Any]]] = None
        self._kept_size = 0
        self._asked: Set[str] = set()
        # Whether who holds the lock gives or takes away places: who interrupts that and stands has arrived, for the next.
        self._is_changing = False

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for one event, and needs the connection to be read for that."""
        return bool(self._arrived or self.requests or self.waits or self.calls)

    def want_nothing_of(self, events: List[Event]) -> bool:
        """Whether nobody but handlers wants `events`, which then need not be fed; reactor thread."""
        if self._kept is not None:
            asked = self._asked
            for event in events:
                if event[0] not in asked:
                    return False
        # After that: who asks is seen here before the type is one that was asked for.
        return not (self._queues or self._arrived or self.requests or self.waits or self.calls)

    def new_call(self) -> Waiter:
        """Return the waiter of a call with an id of its own."""
        return Waiter(self.calls, next(_call_ids))

    def stand(self, waiter: Waiter) -> None:
        """From now on an event can be the waiter's."""
        waiter.begin()  # again, if its first connection has failed, which has told it
        self._arrived.append(waiter)

    def new_wait(self, type: str) -> Waiter:
        """Return one who will wait for the next event of `type`."""
        return Waiter(self.waits, type)

    def stand_for_next(self, waiter: Waiter) -> None:
        """From now on the next event is the waiter's, or what was kept."""
        types = (waiter.key,)
        with self._lock:
            if not self._kept_of(types):
                self.stand(waiter)
            kept = self._claim(types, finally_asked=True)
            if kept:
                waiter.tell(kept[0][2])
            else:
                self.settle()

    def settle(self) -> None:
        """Give those who have arrived their places; or tell them why nothing will come any more."""
        with self._lock:
            if self._is_changing:
                return
            self._is_changing = True
            try:
                while self._arrived:
                    self._place(self._arrived[0])  # until then there, or who looks without the lock would see nobody
                    self._arrived.popleft()
            finally:
                self._is_changing = False
            if self._gone is not None:
                self.fail(self._gone)

    def _place(self, waiter: Waiter) -> None:
        if waiter.abandoned:
            return
        if waiter.kind is self.calls:
            self.calls[waiter.key] = waiter
        else:
            line = waiter.kind.get(waiter.key)
            if line is None:
                line = waiter.kind[waiter.key] = deque()
            line.append(waiter)

    def new_request(self, reply: str) -> Waiter:
        """Return one who will wait for an answer of the type `reply`; what was kept is none."""
        if self._kept is not None:
            with self._lock:
                self._claim((reply,), finally_asked=True)
        return Waiter(self.requests, reply)

    def withdraw(self, waiter: Waiter) -> None:
        """`waiter` waits no more, whether it was told or not; nothing is left of it."""
        waiter.abandoned = True  # first: if Ctrl-C comes now, it is passed over when its turn comes
        with self._lock:
            self.settle()
            before, self._is_changing = self._is_changing, True
            try:
                if waiter.kind is self.calls:
                    self.calls.pop(waiter.key, None)
                    return
                line = waiter.kind.get(waiter.key)
                if line is not None:
                    if waiter in line:
                        line.remove(waiter)
                    if not line:
                        waiter.kind.pop(waiter.key, None)
            finally:
                self._is_changing = before

    def add(self, queue: EventQueue[Any]) -> None:
        """Have `queue` collect what it wants; of what was kept, too."""
        with self._lock:
            self._queues = (*(other for other in self._queues if not other.is_done), queue)
            for socket, type, data in self._kept_of(queue.types):
                queue.put(socket, [(type, data)], _OVERHEAD_BYTES, None)
            self._claim(queue.types, finally_asked=True)  # last: until then what comes waits for the lock

    def remove(self, queue: EventQueue[Any]) -> None:
        """Have `queue` collect no more."""
        with self._lock:
            self._queues = tuple(other for other in self._queues if other is not queue)

    def keep(self, asked: Iterable[str]) -> None:
        """Keep what comes of types that nobody has asked for, as far as there is room, for the first who does."""
        self._asked.update(asked)
        self._kept = None if ANY in self._asked else []

    def hand_over(self, type: str, post: Callable[[Any, str, Any], Any]) -> None:
        """There is a handler of `type` now: call `post` for each event that was kept for it.

        What comes meanwhile is still kept, and handed over after those, so that none overtakes another. `post` is called
        without the lock.
        """
        types = None if type == ANY else (type,)
        while self._kept is not None:
            with self._lock:
                events = self._claim(types, finally_asked=False)
                if not events:
                    self._claim(types, finally_asked=True)
                    return
            for event in events:
                post(*event)

    def _claim(self, types: Optional[Collection[str]], finally_asked: bool) -> List[Tuple[Any, str, Any]]:
        """Take out what was kept of `types`, of all for None; nothing more of them is kept if they are finally asked for."""
        claimed = self._kept_of(types)
        if self._kept is not None:
            if finally_asked:
                self._asked.update(types or ())
            self._kept = None if finally_asked and types is None else [
                event for event in self._kept if types is not None and event[1] not in types
            ]
        return claimed

    def _kept_of(self, types: Optional[Collection[str]]) -> List[Tuple[Any, str, Any]]:
        return [event for event in self._kept or () if types is None or event[1] in types]

    # Reactor thread

    def feed(self, socket: Any, events: List[Event], size: int, flow: Optional[Flow]) -> List[Event]:
        """Tell those who wait of events that came from `socket` as `size` bytes; return those for handlers to have."""
        if self._kept is None:
            self._feed(socket, events, size, flow)
            return events
        with self._lock:  # all the time, or what is neither fed nor kept would be lost
            self._feed(socket, events, size, flow)
            return self._keep(socket, events, size)

    def _feed(self, socket: Any, events: List[Event], size: int, flow: Optional[Flow]) -> None:
        if self.is_awaited:
            with self._lock:
                self.settle()
                for type, data in events:
                    self._tell(type, data)
        for queue in self._queues:
            queue.put(socket, events, size, flow)
            if queue.is_done:
                self.remove(queue)

    def _keep(self, socket: Any, events: List[Event], size: int) -> List[Event]:
        asked = self._asked
        orphans = [event for event in events if event[0] not in asked]
        if self._kept is None or not orphans:
            return events
        self._kept_size += size * len(orphans) // len(events) + _OVERHEAD_BYTES * len(orphans)
        if self._kept_size > HIGH_WATER_BYTES:
            self._kept = None  # nobody seems to want it
            return events
        self._kept.extend((socket, type, data) for type, data in orphans)
        return [event for event in events if event[0] in asked]

    def _tell(self, type: str, data: Any) -> None:
        line = self.requests.get(type)
        if line is not None:
            while line:
                waiter = line.popleft()
                if not waiter.abandoned:
                    waiter.tell(data)
                    break
            if not line:
                del self.requests[type]
        for waiter in self.waits.pop(type, ()):
            waiter.tell(data)
        if type == rpc.EVENT and self.calls:
            for response in rpc.responses(data):
                id = response['id']
                if id.__class__ in (int, float) and id in self.calls:  # 1.0 is the same number in JSON; True == 1, too
                    self.calls.pop(int(id)).tell(response)

    def announce(self, socket: Any, type: str, data: Any) -> None:
        """Tell the queues that ask for it by its name of a local event."""
        for queue in self._queues:
            if queue.types is not None:
                queue.put(socket, [(type, data)], 0, None)

    @property
    def collects(self) -> bool:
        """Whether there are queues, or something is kept for one."""
        return bool(self._queues) or self._kept is not None

    @property
    def gone(self) -> int:
        """How many peers are gone of whom something waits in a queue."""
        return max((queue.gone for queue in self._queues), default=0)

    def is_behind(self, socket: Any) -> bool:
        """Whether a queue has more of `socket` than it may."""
        return any(queue.is_behind(socket) for queue in self._queues)

    def joined(self, socket: Any, flow: Flow) -> None:
        """`socket` has a new connection."""
        for queue in self._queues:
            queue.joined(socket, flow)

    def left(self, socket: Any) -> None:
        """`socket`, one of several, has lost its connection for good."""
        for queue in self._queues:
            queue.left(socket)

    def discard(self, socket: Any) -> None:
        """What came from `socket` and was not taken is not wanted."""
        for queue in self._queues:
            queue.discard(socket)

    def lost(self, socket: Any, why: str) -> None:
        """The only connection was lost; there will be another one."""
        self.fail(why)
        for queue in self._queues:
            queue.lost(socket, why)

    def fail(self, why: str) -> None:
        """Let those who wait for one event know that it will not come."""
        with self._lock:
            if self._is_changing:
                return  # it is finish() that we have interrupted with: settle() tells them
            self._is_changing = True
            try:
                waiting: List[Waiter] = list(self.calls.values())
                while self._arrived:
                    waiting.append(self._arrived.popleft())
                for kind in (self.requests, self.waits):
                    for line in kind.values():
                        waiting.extend(line)
                    kind.clear()
                self.calls.clear()
            finally:
                self._is_changing = False
            for waiter in waiting:
                waiter.tell(failure=why)

    def finish(self, why: str) -> None:
        """As `fail`, and whoever comes later is told the same. Any thread."""
        with self._lock:
            if self._gone is None:
                self._gone = why
            self._kept = None
            self.fail(self._gone)

    def end(self, error: Callable[[], Exception] = StopIteration, drop: bool = False) -> None:
        """Let the queues end: when what waits is taken, or at once if that is to be dropped. Any thread."""
        with self._lock:
            queues = self._queues
            if drop:
                self._queues = ()
                if self._kept:
                    self._kept = []
        for queue in queues:
            queue.end(error, drop)

    def abandon(self, why: str) -> None:
        """In a child made by fork: whoever iterates is told."""
        for queue in self._queues:
            queue.abandon(lambda: NotConnectedError(why))
