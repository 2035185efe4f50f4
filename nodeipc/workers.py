"""Worker threads, and the strands that keep a connection's events in order on them.

A strand is a queue whose items run one at a time and in order; different strands run in parallel, on as many threads as
are busy and no more than the limit. Endpoints post to strands; nothing here knows what an item means.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Iterable, List, Optional, Tuple

from .deadline import Deadline
from .log import logger
from .reactor import Reactor

# A strand with more to do lets the others run after this many items or this long, whichever is first.
_TURN_ITEMS = 100
_TURN_SECONDS = 0.01

# What a connection may have read ahead of its handlers. A few chunks: enough to keep a worker busy while the next is
# read, little enough for a thousand connections that are all behind.
_HIGH_WATER_BYTES = 256 << 10

# Threads beyond the limit, at most, that take the places of handlers who wait.
_MAX_STAND_INS = 256

_here = threading.local()


class Workers:
    """Threads that run strands, started as needed. With a limit of 0 the reactor thread runs them.

    A strand is handed to the thread that became idle last, so that few threads do the work while there is little of it.
    A handler that waits, for a peer that does not read for one, gives its place to another meanwhile: or as many such
    peers as there are threads would keep everybody else from being served. Not with a limit of 1, which promises that
    handlers run one by one.
    """

    def __init__(self, limit: int, reactor: Reactor) -> None:
        self._own_limit = limit
        self._max_stand_ins = _MAX_STAND_INS if limit > 1 else 0
        self._reactor = reactor
        reactor.wait = _wait
        # Guards all below. Innermost: while it is held, threads are started and woken, and nothing else is called.
        self._lock = threading.Lock()
        self._limit = limit
        self._waiting_handlers = 0  # in whose places others may work
        self._threads: List[threading.Thread] = []
        self._idle: List[_Seat] = []
        self._queue: Deque[Strand] = deque()
        self._closed = False
        # How many strands wait for a thread. Read without the lock by strands, to see whether to yield; on the reactor
        # thread there is always somebody to yield to, its sockets.
        self.waiting = 0 if limit else 1

    @property
    def inside(self) -> bool:
        """Whether the caller is running in one of these threads, that is, in a handler."""
        return self._reactor.in_thread or getattr(_here, 'workers', None) is self

    def submit(self, strand: Strand) -> None:
        """Have `strand` run; any thread, never waits for a strand."""
        if not self._limit:
            self._reactor.defer(strand.run)
            return
        with self._lock:
            if self._idle:
                seat = self._idle.pop()
                seat.strand = strand
                seat.wake.release()
                return
            self._queue.append(strand)
            self.waiting += 1
        self._grow()

    def close(self, deadline: Deadline) -> None:
        """Let the threads end when the queue is empty, and wait for them until the deadline."""
        with self._lock:
            self._closed = True
            threads, idle, self._idle = self._threads, self._idle, []
        for seat in idle:
            seat.wake.release()
        for thread in threads:
            thread.join(deadline.remaining)

    def _lend(self, wait: Callable[[], bool]) -> bool:
        """Call `wait` and return what it does; another thread works in the place of the caller, one of ours, meanwhile.

        The reactor sees to that, because the caller may hold any lock: it may be a ``__del__``.
        """
        self._reactor.call(self._stand_in, 1)
        try:
            return wait()
        finally:
            self._reactor.call(self._stand_in, -1)

    def _stand_in(self, change: int) -> None:
        with self._lock:
            self._waiting_handlers += change
            self._limit = self._own_limit + min(self._waiting_handlers, self._max_stand_ins)
            if self._idle and len(self._threads) > self._limit:
                self._idle.pop(0).wake.release()  # to find that it is one too many
        self._grow()

    def _grow(self) -> None:
        """Start a thread for what waits in the queue, if there may be one more."""
        failure = None
        with self._lock:
            if len(self._threads) >= self._limit or self._closed or not self._queue:
                return
            thread = threading.Thread(target=self._work, name='nodeipc-worker', daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads to give
                failure = error
            else:
                self._threads.append(thread)
            alone = not self._threads
        if alone:
            # Out of threads, or Python 3.12 and the interpreter is ending: better on the reactor thread than never.
            level = logging.DEBUG if 'shutdown' in str(failure) else logging.WARNING
            logger.log(level, 'nodeipc: no thread can be started (%s); handlers run on the reactor thread', failure)
            self._reactor.defer(self._run_one)

    def _run_one(self) -> None:
        with self._lock:
            if not self._queue:
                return
            strand = self._queue.popleft()
            self.waiting -= 1
        strand.run()

    def _work(self) -> None:
        _here.workers = self
        seat = _Seat()
        while True:
            with self._lock:
                if len(self._threads) > self._limit and not self._closed:  # whose place it took is back
                    self._threads.remove(threading.current_thread())
                    return
                if self._queue:
                    strand: Optional[Strand] = self._queue.popleft()
                    self.waiting -= 1
                elif self._closed:
                    return
                else:
                    strand = None
                    self._idle.append(seat)
            if strand is None:
                seat.wake.acquire()
                strand, seat.strand = seat.strand, None
            if strand is not None:  # else woken to end
                strand.run()
            del strand  # or an idle thread would keep a closed connection alive


def _wait(wait: Callable[[], bool]) -> bool:
    """Call `wait`; a worker, of whatever instance, gives its place to another meanwhile."""
    workers: Optional[Workers] = getattr(_here, 'workers', None)
    return wait() if workers is None else workers._lend(wait)


class _Seat:
    """Where an idle thread waits for a strand: whoever gives it one releases `wake`."""

    __slots__ = ('strand', 'wake')

    def __init__(self) -> None:
        self.strand: Optional[Strand] = None
        self.wake = threading.Lock()
        self.wake.acquire()


class Strand:
    """Items that are handled in order and one at a time.

    An item is a tuple: an event, whose first element is its name and which goes to `deliver`, or a function and its
    arguments. Posting never blocks; a strand that has fallen behind says so, and calls `on_drained` when it has caught
    up, so that its connection can stop reading meanwhile.
    """

    __slots__ = ('_full', '_items', '_load', '_lock', '_scheduled', '_workers', 'deliver', 'on_drained')

    def __init__(self, workers: Workers, deliver: Callable[..., Any]) -> None:
        self._workers = workers
        self.deliver = deliver
        self.on_drained: Optional[Callable[[], Any]] = None
        # Guards _scheduled, _load and _full, and the decision that there is nothing left to do. Workers._lock is taken
        # inside it, and a thread may be started.
        self._lock = threading.Lock()
        self._items: Deque[Tuple[Any, ...]] = deque()
        self._scheduled = False
        self._load = 0  # bytes posted since the strand was last empty
        self._full = False

    @property
    def is_full(self) -> bool:
        """Whether it is behind, and `on_drained` will be called."""
        return self._full

    def post(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have `function` called in turn; any thread."""
        with self._lock:
            self._items.append((function, *arguments))
            self._schedule()

    def post_events(self, events: Iterable[Tuple[Any, ...]], size: int) -> bool:
        """Have `events`, which came as `size` bytes, delivered in turn; True when the strand is behind."""
        with self._lock:
            self._items.extend(events)
            self._load += size
            self._full = full = self._load > _HIGH_WATER_BYTES
            self._schedule()
        return full

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._workers.submit(self)

    def run(self) -> None:
        """Handle items until there are none or it is the others' turn. Called by a worker, one at a time."""
        items = self._items
        workers = self._workers
        done = 0
        end = time.monotonic() + _TURN_SECONDS
        while True:
            try:
                item = items.popleft()
            except IndexError:
                with self._lock:
                    if items:
                        continue
                    self._scheduled = False
                    self._load = 0
                    drained, self._full = self._full, False
                on_drained = self.on_drained  # once: the reactor thread may take it away
                if drained and on_drained is not None:
                    on_drained()
                return
            try:
                if item[0].__class__ is str:
                    self.deliver(*item)
                else:
                    item[0](*item[1:])
            except Exception:
                logger.exception('nodeipc: %r failed on a worker thread; please report this', item[0])
            del item
            done += 1
            if workers.waiting and (done >= _TURN_ITEMS or time.monotonic() >= end):
                workers.submit(self)
                return
