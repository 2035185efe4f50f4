"""Worker threads: one of them leads, that is, it takes the turns of the reactor; the others run strands, or are idle.

Strands run in parallel, on as many threads as are busy and no more than the limit.

To wake another thread for a strand costs more than most handlers do. So whoever leads runs the strands itself, at the end of
its turn; another thread watches meanwhile, and leads in its place when a handler takes long or has to wait. Where handlers
are slow, strands are handed to other threads at once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from typing import Any, Callable, Deque, List, Optional

from .deadline import Deadline
from .log import logger, report_defect
from .reactor import Reactor
from .strands import LEADERS_TURN_SECONDS, TURN_SECONDS, Strand, end_process

# Threads beyond the limit, at most, that take the places of handlers who wait.
_MAX_STAND_INS = 256

# How often whoever watches looks whether the leader is still in the same strand: sockets wait for a stuck handler up to
# twice as long.
_WATCH_SECONDS = 1.25 * LEADERS_TURN_SECONDS

# What a handler that is stuck counts as: all sockets have waited for it.
_STUCK_SECONDS = 4 * _WATCH_SECONDS

# A handler that takes longer gains little from being run by the leader: what the hand-over takes is a small part of that.
_SLOW_SECONDS = 0.00025

# Of the leader's time, slow handlers may have this share; when they have had that much more, strands are handed on.
_SLOW_SHARE = 0.1
_SLOW_CREDIT = 0.05 / _SLOW_SHARE

# That a thread which has nothing to do is given to end, whatever the deadline.
_END_SECONDS = 5.0

# What a thread may be given to do in place of a strand.
_LEAD, _WATCH, _END = 'lead', 'watch', 'end'

_here = threading.local()


class Workers:
    """The threads of an instance, started as needed. With a limit of 0 there is one, which leads and runs all strands.

    There are no more than those that run strands, up to the limit, one that leads and one that watches. A handler that
    waits, for a peer that does not read for one, gives its place to another meanwhile: or as many such peers as there are
    threads would keep everybody else from being served. Not with a limit of 1, which promises that handlers run one by one.
    """

    def __init__(self, limit: int, reactor: Reactor) -> None:
        self._own_limit = limit
        self._max_stand_ins = _MAX_STAND_INS if limit > 1 else 0
        self._reactor = reactor
        # Strands that wait for a thread. Taken out by the leader, and by workers with the lock.
        self.ready: Deque[Strand] = reactor.ready
        reactor.wait = _wait
        reactor.run_ready = self._run_ready if limit else self._run_all
        reactor.may_run = self._may_run
        reactor.hand_over = self._hand_over
        # Guards all below. Innermost: while it is held, threads are woken and the reactor is told who leads, no more.
        # Re-entrant, for a __del__ that interrupts the leader while it has the lock may have to wait, and look for another.
        self._lock = threading.RLock()
        self._limit = limit
        self._waiting_handlers = 0  # in whose places others may work
        self._threads: List[threading.Thread] = []
        self._idle: List[_Seat] = []
        self._busy = 0  # threads that run strands, but for the leader
        # Of the leader: odd while it runs a strand. Who changes it holds the lock, or has found it even, and leads.
        self._runs = 0
        self._running: Optional[Strand] = None  # by the leader, and watched
        self._watcher: Optional[_Seat] = None
        self._seen = 0  # by whoever watches, of _runs
        self._closed = False
        self._is_short_of_threads = False

        self._slow_until = 0.0  # the leader's own: when the slow handlers' time that it has spent is made up for

    @property
    def inside(self) -> bool:
        """Whether the caller is running in one of these threads, that is, in a handler."""
        return getattr(_here, 'workers', None) is self

    @property
    def leads(self) -> bool:
        """Whether the caller is the thread that leads."""
        return self._reactor.in_thread

    def start(self) -> None:
        """Start the first thread, which leads. Raises RuntimeError if the system has no more threads to give."""
        seat = _Seat(self._work, _LEAD, 'nodeipc-reactor', self._lock)
        self._threads.append(seat.thread)
        try:
            seat.thread.start()
        except Exception:
            self._threads.clear()
            self._reactor.close()
            raise
        except BaseException:  # Ctrl-C while waiting for it to begin, if it does
            self._closed = True
            self._reactor.end()
            self._reactor.wake()
            raise

    def submit(self, strand: Strand) -> None:
        """Have `strand` run; any thread, never waits for a strand."""
        self.ready.append(strand)
        self._reactor.wake()

    def abandon(self) -> None:
        """In a child made by fork: if it was forked in a handler, and that returns, there is one thing left to do."""
        self._lock = threading.RLock()  # a thread that the fork did not copy may have held it
        self._busy = 0
        self.ready.clear()
        if self.inside:
            ending = Strand(self, bool)
            ending.post(end_process)

    def close(self, deadline: Deadline) -> None:
        """Stop the reactor, let the threads end when nothing is left to run, and wait for them until the deadline."""
        remaining = deadline.remaining  # first, for the leader may be stuck, and be watched:
        if remaining is not None and not self._reactor.is_stuck:
            remaining = max(remaining, _END_SECONDS)
        has_stopped = self._reactor.stop(remaining)
        with self._lock:
            self._closed = True
            if has_stopped and self._watcher is not None:  # there is nobody to watch any more
                self._idle.append(self._watcher)
                self._watcher = None
            for seat in self._idle:
                if self.ready and self._may_run():  # else those that are busy take it
                    self._busy += 1
                    seat.give(self.ready.popleft())
                else:
                    seat.give(_END)
            self._idle.clear()
        for thread in self._threads:
            remaining = deadline.remaining
            is_stuck = self._busy or not has_stopped
            thread.join(remaining if remaining is None or is_stuck else max(remaining, _END_SECONDS))

    # The leader, at the end of its turn

    def _may_run(self) -> bool:
        """Whether a strand that is ready need not wait for those that run."""
        return self._busy < self._limit or not self._own_limit

    def _run_all(self) -> None:
        """Run each strand that is ready once, without other threads."""
        ready = self.ready
        for _ in range(len(ready)):
            ready.popleft().run(True, time.monotonic(), False)

    def _run_ready(self) -> None:
        """Have each strand that is ready run once, as far as there may be so many."""
        ready = self.ready
        now = time.monotonic()
        end = now + TURN_SECONDS  # the sockets' turn, and the calls'
        for _ in range(len(ready)):
            if now >= end or not self._may_run():
                return
            if self._slow_until - now > _SLOW_CREDIT and self._hand_out():
                return
            try:
                strand = ready.popleft()
            except IndexError:  # a worker was faster
                return
            self._running = strand
            self._runs += 1
            items = 1
            try:
                if self._watcher is None:  # now: whoever stops watching looks at _runs after that
                    self._have_watched()
                _here.may_hand_over = True
                items = strand.run(True, now, self._watcher is not None)
            except BaseException:
                _report_defect(strand)
            finally:
                _here.may_hand_over = False
            with self._lock:
                if not self._reactor.in_thread:  # it took long, and another leads
                    return
                self._runs += 1
                self._running = None
            began, now = now, time.monotonic()
            if now - began > _SLOW_SECONDS * items:
                self._spend(now, now - began)

    def _spend(self, now: float, seconds: float) -> None:
        self._slow_until = max(self._slow_until, now) + seconds / _SLOW_SHARE

    def _have_watched(self) -> None:
        """Have another thread watch the leader, which has begun to run a strand, if there is one."""
        with self._lock:
            if self._watcher is not None:
                return
            seat = self._idle.pop() if self._idle else None
            if seat is not None:
                seat.give(_WATCH)
        if seat is None:
            seat = self._new_thread(_WATCH)
        with self._lock:
            self._watcher = seat
            self._seen = self._runs

    def _hand_out(self) -> bool:
        """Give what is ready to other threads, as far as there may be so many; False if the system has no more."""
        while self._may_run():
            with self._lock:
                try:
                    strand = self.ready.popleft()
                except IndexError:
                    break
                self._busy += 1
                seat = self._idle.pop() if self._idle else self._watcher
                if seat is not None:
                    seat.give(strand)
                    if seat is self._watcher:
                        self._watcher = None
            if seat is None and self._new_thread(strand) is None:
                with self._lock:
                    self._busy -= 1
                    self.ready.appendleft(strand)
                return False
        return True

    def _new_thread(self, task: Any) -> Optional[_Seat]:
        """Start a thread for `task`; None if the system has no more threads to give. Only the leader does, and without the
        lock: it takes long, and the collector may run."""
        seat = _Seat(self._work, task, 'nodeipc-worker', self._lock)
        self._threads.append(seat.thread)  # first, for it may end at once
        try:
            seat.thread.start()
        except (RuntimeError, MemoryError) as error:
            # Out of threads, or Python 3.12 and the interpreter is ending: better on the reactor thread than never.
            self._threads.remove(seat.thread)
            was_short, self._is_short_of_threads = self._is_short_of_threads, True
            if not was_short:
                level = logging.DEBUG if 'shutdown' in str(error) else logging.WARNING
                with contextlib.suppress(BaseException):  # of a log handler
                    logger.log(level, 'nodeipc: no thread can be started (%s); handlers run on the reactor thread', error)
            return None
        self._is_short_of_threads = False
        return seat

    # The leader, in a handler

    def _hand_over(self) -> bool:
        """Let whoever watches lead, because the leader has to wait; False if there is nobody."""
        if not getattr(_here, 'may_hand_over', False):  # a __del__ that interrupts us, perhaps, while we have the lock
            return not self._reactor.in_thread
        _here.may_hand_over = False  # nor may what interrupts this
        with self._lock:
            if not self._reactor.in_thread:
                return True  # another leads already
            seat = self._watcher
            if seat is not None:
                strand = self._let_lead(seat)
                seat.give(_LEAD)
        if seat is None:
            _here.may_hand_over = True
            return False
        self._uncork(strand)
        return True

    def _let_lead(self, seat: _Seat) -> Optional[Strand]:
        """Let `seat` lead, and the leader be one of those that run a strand; return which. With the lock."""
        self._watcher = None
        self._runs += 1
        self._busy += 1
        self._reactor.led_by(seat.thread.ident or 0)
        strand, self._running = self._running, None
        return strand

    def _uncork(self, strand: Optional[Strand]) -> None:
        """Have what was joined leave, because a handler of `strand` takes long. Not with the lock: the collector may run."""
        outlet = None if strand is None else strand.outlet  # once: the reactor thread may take it away
        if outlet is not None:
            self._reactor.call(outlet.uncork)

    # Any of the threads

    def _lend(self, wait: Callable[[], bool]) -> bool:
        """Call `wait` and return what it does; another thread works in the place of the caller, one of ours, meanwhile.

        The reactor sees to that, because the caller may hold any lock: it may be a ``__del__``.
        """
        if self._reactor.in_thread:
            self._hand_over()
        self._reactor.call(self._stand_in, 1)
        try:
            return wait()
        finally:
            self._reactor.call(self._stand_in, -1)

    def _stand_in(self, change: int) -> None:
        with self._lock:
            self._waiting_handlers += change
            self._limit = self._own_limit + min(self._waiting_handlers, self._max_stand_ins)
            if self._idle and self._has_too_many:
                self._idle.pop(0).give(_END)

    @property
    def _has_too_many(self) -> bool:
        return len(self._threads) > self._limit + 1

    def _work(self, seat: _Seat, task: Any) -> None:
        _here.workers = self
        while task is not _END:
            if task is _WATCH:
                task = self._watch(seat)
                continue
            if task is not _LEAD:
                try:
                    task.run(False, time.monotonic(), False)
                except BaseException:
                    _report_defect(task)
            elif self._reactor.lead():  # to the end; what is left is run without it
                while self.ready and not self._own_limit:
                    self._run_all()
                with self._lock:
                    is_busy = bool(self.ready)
                    self._busy += is_busy
                if not is_busy:
                    task = self._rest(seat)
                    continue
            del task  # or an idle thread would keep a closed connection alive
            task = self._next(seat)
        with self._lock:
            if not self._closed:
                self._threads.remove(seat.thread)

    def _next(self, seat: _Seat) -> Any:
        """Wait for what to do when a strand has been run."""
        with self._lock:
            if self.ready and self._busy <= self._limit:
                try:
                    return self.ready.popleft()
                except IndexError:  # the leader was faster
                    pass
            self._busy -= 1
            if self.ready:  # since: the leader may have looked before there was room
                self._reactor.wake()
        return self._rest(seat)

    def _rest(self, seat: _Seat) -> Any:
        """Wait for what to do."""
        with self._lock:
            if self._closed or self._has_too_many:
                return _END
            self._idle.append(seat)
        return seat.wait()

    def _watch(self, seat: _Seat) -> Any:
        """Look after the leader while it runs strands; return what to do then."""
        while True:
            task = seat.take(_WATCH_SECONDS)
            if task is not None:
                return task
            with self._lock:
                if self._watcher is not seat:
                    continue  # it is being given something
                is_stuck = self._runs & 1 and self._runs == self._seen
                if is_stuck:
                    strand = self._let_lead(seat)
                else:
                    self._watcher = None  # if there is nothing to watch; the leader looks after it has changed _runs
                    if self._runs != self._seen:
                        self._seen = self._runs
                        self._watcher = seat
                        continue
            if is_stuck:
                self._uncork(strand)
                self._spend(time.monotonic(), _STUCK_SECONDS)
                return _LEAD
            return self._rest(seat)


def _report_defect(strand: Strand) -> None:
    """It is ours, or there is no memory: what waits is tried again."""
    outlet = strand.outlet  # once: the reactor thread may take it away
    if outlet is not None:
        outlet.uncork()
    strand.resume()
    report_defect(strand, 'a worker thread')


def _wait(wait: Callable[[], bool]) -> bool:
    """Call `wait`; a worker, of whatever instance, gives its place to another meanwhile."""
    workers: Optional[Workers] = getattr(_here, 'workers', None)
    return wait() if workers is None else workers._lend(wait)


class _Seat:
    """A thread, and where it waits for what to do: a strand, or one of the tasks above."""

    __slots__ = ('_given', '_lock', '_task', 'thread')

    def __init__(self, work: Callable[[_Seat, Any], Any], task: Any, name: str, lock: threading.RLock) -> None:
        self._lock = lock  # of Workers: guards _task
        self.thread = threading.Thread(target=work, args=(self, task), name=name, daemon=True)
        self._task: Any = None
        self._given = threading.Lock()
        self._given.acquire()

    def give(self, task: Any) -> None:
        """Have it do that, in place of what it was given before and has not taken yet; with the lock."""
        self._task = task
        if self._given.locked():
            self._given.release()

    def take(self, seconds: float) -> Any:
        """Wait that long at most, -1 for ever, and return what it is given; or None."""
        if not self._given.acquire(timeout=seconds):
            return None
        with self._lock:
            task, self._task = self._task, None
            return task

    def wait(self) -> Any:
        """Return what it is given."""
        while True:
            task = self.take(-1)
            if task is not None:
                return task
