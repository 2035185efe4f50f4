"""The reactor: one thread at a time waits for sockets and timers and calls back.

Endpoints register non-blocking sockets and get called when they are ready; any thread hands it work with `call`.
Callbacks must not wait: no look-up, no file, no handler, no lock that a handler can hold. It knows nothing of
connections or messages, and when nothing happens it makes no system call.

The thread that leads is the reactor thread as long as nobody else leads in its place; `workers` has the threads and decides
that. At the end of a turn it runs handlers, and so it may lose the lead there, and nowhere else.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import select
import selectors
import socket
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, List, Optional, Set, Tuple

from .deadline import Flag, wait_for
from .log import report_defect
from .reentry import check_may_wait

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

# Selectors refuse longer waits than some weeks; one wake-up a day is none.
_MAX_SELECT_SECONDS = 86400.0

_HERE = 'the reactor thread'

# Between a turn that failed and the next.
_PAUSE_SECONDS = 0.05

# A reactor that has taken no turn for so long is in a handler that does not return, or as good as that.
_ANSWER_SECONDS = 2.0

# Cancelled timers leave the heap when they are due; a quick succession of long ones must not pile up until then.
_MIN_CANCELLED_TO_PURGE = 64


class Timer:
    """A callback that is due at a time; `cancel` from the reactor thread only."""

    __slots__ = ('_reactor', 'callback')

    def __init__(self, reactor: Reactor, callback: Callable[[], Any]) -> None:
        self._reactor = reactor
        self.callback: Optional[Callable[[], Any]] = callback

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._reactor._timer_cancelled()


class Owned:
    """What holds descriptors on behalf of a reactor."""

    __slots__ = ()

    def abandon(self) -> None:
        """In a child made by fork: close the descriptors and touch nothing that the parent shares."""
        raise NotImplementedError


class Reactor:
    """A selector, timers and a queue of calls, run by the thread that leads. Methods are for that thread, but for those
    that say otherwise."""

    def __init__(self) -> None:
        self._stopped = Flag()
        self._ident: Optional[int] = None  # of the thread that leads, while it does: the system reuses them
        self._selector = selectors.DefaultSelector()
        # Whoever calls appends and then, unless the reactor is awake, writes a byte. Appending before looking at _awake, and
        # clearing it before looking into the queues, makes a lost wake-up impossible without a lock. Only the reactor itself
        # sets it: whoever set it on the way to the byte could be interrupted there by a signal handler, a __del__ or an
        # exception, and others would count on a byte that never comes.
        self._calls: Deque[Tuple[Callable[..., Any], Tuple[Any, ...]]] = deque()
        #: What runs handlers, put there by any thread, which then calls `wake`.
        self.ready: Deque[Any] = deque()
        #: Runs what is `ready`, at the end of a turn; and whether it would, now.
        self.run_ready: Callable[[], Any] = bool
        self.may_run: Callable[[], bool] = bool
        self._awake = False
        self._wake_in, self._wake_out = socket.socketpair()
        try:
            self.check(self._wake_in)
        except BaseException:
            self.close()
            raise
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_in, READ, self._drain_wakeups)
        self._timers: List[Tuple[float, int, Timer]] = []
        self._timer_numbers = itertools.count()
        self._cancelled = 0
        self._stopping = False
        self.owned: Set[Owned] = set()
        #: Calls what waits, in threads other than the reactor's. Workers replace it.
        self.wait: Callable[[Callable[[], bool]], bool] = _call
        #: Has another thread lead, if there is one, because the reactor's own has to wait in a handler.
        self.hand_over: Callable[[], bool] = bool
        # The last of `answers`, and until when it was to be answered.
        self._question = Flag(), 0.0
        self._question[0].set()

    def lead(self) -> bool:
        """Take turns until it is stopped (True), or somebody else leads."""
        me = threading.get_ident()
        if self._ident is None:
            self._ident = me
        try:
            while self._ident == me:
                if self._stopping or self._stopped.is_set:
                    self.close()
                    return True
                try:
                    self._turn(None, nested=False)
                except Exception:  # no memory to wait for sockets with, most likely
                    report_defect(self, _HERE)
                    time.sleep(_PAUSE_SECONDS)
        except BaseException:
            if self._ident == me:
                self.close()
            raise
        return False

    def led_by(self, ident: int) -> None:
        """From now on the thread `ident` leads; the one that does is in a handler, and takes no more turns."""
        self._ident = ident

    def stop(self, timeout: Optional[float] = None) -> bool:
        """End after the calls that are queued; any thread. Waits up to `timeout` seconds, unless it is the reactor's own.

        Whether it has ended: it has not as long as its thread is in a handler that takes long, and there is no other.
        """
        self.call(self.end)
        return not self.in_thread and self._stopped.wait(timeout)

    def answers(self) -> bool:
        """Whether it takes turns, or is soon done with what it does; any thread but its own."""
        question, asked_until = self._question
        if question.is_set:
            question, asked_until = self._question = Flag(), time.monotonic() + _ANSWER_SECONDS
            self.call(question.set)
        return question.wait(max(0.0, asked_until - time.monotonic())) and not self._stopped.is_set

    @property
    def is_stuck(self) -> bool:
        """Whether it owes an answer."""
        question, asked_until = self._question
        return not (question.is_set or self._stopped.is_set) and time.monotonic() >= asked_until

    def end(self) -> None:
        """Take no more turns."""
        self._stopping = True

    @property
    def in_thread(self) -> bool:
        """Whether the caller is the reactor thread; any thread."""
        return threading.get_ident() == self._ident

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have `function` called soon, in order with other calls; any thread, never blocks."""
        self._calls.append((function, arguments))
        self.wake()

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Timer:
        """Call `callback` in `delay` seconds, unless cancelled."""
        timer = Timer(self, callback)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._timer_numbers), timer))
        return timer

    def check(self, sock: socket.socket) -> None:
        """Raise OSError if a new socket is one that cannot be watched; any thread."""
        if isinstance(self._selector, selectors.SelectSelector):
            try:
                select.select([sock], [], [], 0)
            except ValueError as error:  # one such socket would keep all others from being served
                why = f'this platform has select() only, and that takes no descriptor like {sock.fileno()}'
                raise OSError(errno.EMFILE, why) from error

    def watch(self, sock: socket.socket, old: int, new: int, callback: Callable[[int], Any]) -> None:
        """Change what is awaited of `sock` from `old` to `new`, masks of `READ` and `WRITE`."""
        if old == new:
            return
        if not old:
            self._selector.register(sock, new, callback)
        elif new:
            self._selector.modify(sock, new, callback)
        else:
            self._selector.unregister(sock)

    def wait_for(
        self, condition: threading.Condition, predicate: Callable[[], Any], timeout: Optional[float]
    ) -> bool:
        """As ``condition.wait_for``, in any thread; on the reactor's own, sockets are served while it waits.

        By another thread; or, if there is none, by itself: that is what lets a handler block with ``workers = 0``. Other
        handlers do not run meanwhile.
        """
        if predicate():
            return True
        check_may_wait()
        if not self.in_thread or self.hand_over():
            limit = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
            return self.wait(lambda: wait_for(condition, predicate, limit))
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not predicate():
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                condition.release()
                try:
                    self._turn(deadline, nested=True)
                finally:
                    condition.acquire()
            return True
        finally:
            self._look_again()

    def wait_until(self, take: Callable[[Optional[float]], bool], timeout: Optional[float]) -> bool:
        """Whether `take`, which waits for the seconds it is given, is true within `timeout`; any thread, as `wait_for`."""
        if take(0):
            return True
        check_may_wait()
        if not self.in_thread or self.hand_over():
            return self.wait(lambda: take(timeout))
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not take(0):
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                self._turn(deadline, nested=True)
            return True
        finally:
            self._look_again()

    def abandon(self) -> None:
        """In a child made by fork: close every descriptor, and unregister nothing: epoll's set is the parent's too."""
        for owned in list(self.owned):
            owned.abandon()
        self.owned.clear()
        self.close()

    def wake(self) -> None:
        """Have it take a turn now; any thread."""
        if not self._awake:
            try:
                self._wake_out.send(b'\0')
            except OSError:
                pass  # full of wake-ups, or stopped and nobody is left to wake

    def _look_again(self) -> None:
        """Whatever turn was interrupted, have it look at everything before it waits, or not wait."""
        self._awake = False
        self.wake()

    def _drain_wakeups(self, mask: int) -> None:
        try:
            self._wake_in.recv(4096)
        except BlockingIOError:
            pass

    def _timer_cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled > _MIN_CANCELLED_TO_PURGE and self._cancelled > len(self._timers) // 2:
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def _turn(self, deadline: Optional[float], nested: bool) -> None:
        """Wait once and call what is due. Nested in a handler's wait, no other handler is run."""
        self._awake = False
        timers = self._timers
        if self._calls or (self.ready and not nested and self.may_run()):
            timeout: Optional[float] = 0
        else:
            if timers and (deadline is None or timers[0][0] < deadline):
                deadline = timers[0][0]
            timeout = None if deadline is None else min(max(0, deadline - time.monotonic()), _MAX_SELECT_SECONDS)
        selected = self._selector.select(timeout)
        self._awake = True
        for key, mask in selected:
            try:
                key.data(mask)
            except BaseException:
                report_defect(key.data, _HERE)
        if timers:
            self._run_timers()
        for _ in range(len(self._calls)):
            function, arguments = self._calls.popleft()
            self._guard(function, *arguments)
        if self.ready and not nested:
            self._guard(self.run_ready)  # the last: somebody else may lead after it

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback = timer.callback
            if callback is None:
                self._cancelled -= 1
            else:
                timer.callback = None
                self._guard(callback)

    def _guard(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException:
            report_defect(function, _HERE)  # the other connections of this reactor must not pay for it

    def close(self) -> None:
        """Release the descriptors."""
        self._ident = None
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()
        self._stopped.set()


def _call(wait: Callable[[], bool]) -> bool:
    return wait()
