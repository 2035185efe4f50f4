"""The reactor: one thread that waits for sockets and timers and calls back.

Endpoints register non-blocking sockets and get called when they are ready; any thread hands it work with `call`.
Callbacks must not wait: no look-up, no file, no handler, no lock that a handler can hold. It knows nothing of
connections or messages, and when nothing happens it makes no system call.
"""

from __future__ import annotations

import heapq
import itertools
import selectors
import socket
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, List, Optional, Set, Tuple

from .log import logger

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

# Selectors refuse longer waits than some weeks; one wake-up a day is none.
_MAX_SELECT_SECONDS = 86400.0

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
    """A selector, timers and a queue of calls, run by a thread of its own. Methods are for that thread, but for those
    that say otherwise."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        # Other threads append and then, unless a wake-up is under way already, write a byte. Appending before looking
        # at _awake, and clearing it before taking from the queue, makes a lost wake-up impossible without a lock.
        self._calls: Deque[Tuple[Callable[..., Any], Tuple[Any, ...]]] = deque()
        self._deferred: Deque[Callable[[], Any]] = deque()
        self._awake = False
        self._wake_in, self._wake_out = socket.socketpair()
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
        self._ident: Optional[int] = None  # of the thread, while it runs: the system reuses them
        self._thread = threading.Thread(target=self._run, name='nodeipc-reactor', daemon=True)

    def start(self) -> None:
        """Start the thread; any thread. Raises RuntimeError if the system has no more threads to give."""
        try:
            self._thread.start()
        except BaseException:
            if self._thread.ident is None:
                self._close()
            else:  # Ctrl-C while waiting for it to begin
                self.call(self._stop)
            raise

    def stop(self) -> None:
        """End the thread after the calls that are queued; any thread. Waits, unless it is the reactor's own."""
        self.call(self._stop)
        if not self.in_thread:
            self._thread.join()

    @property
    def in_thread(self) -> bool:
        """Whether the caller is the reactor thread; any thread."""
        return threading.get_ident() == self._ident

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have `function` called soon, in order with other calls; any thread, never blocks."""
        self._calls.append((function, arguments))
        self.wake()

    def defer(self, function: Callable[[], Any]) -> None:
        """Have `function`, which may run handlers, called when the reactor is in no other handler; any thread."""
        self._deferred.append(function)
        self.wake()

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Timer:
        """Call `callback` in `delay` seconds, unless cancelled."""
        timer = Timer(self, callback)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._timer_numbers), timer))
        return timer

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

        That is what lets a handler block with ``workers = 0``. Other handlers do not run meanwhile.
        """
        if not self.in_thread:
            if predicate():
                return True
            limit = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
            return self.wait(lambda: bool(condition.wait_for(predicate, limit)))
        deadline = None if timeout is None else time.monotonic() + timeout
        while not predicate():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            condition.release()
            try:
                self._turn(deadline, nested=True)
            finally:
                condition.acquire()
        return True

    def wait_until(self, take: Callable[[Optional[float]], bool], timeout: Optional[float]) -> bool:
        """Whether `take`, which waits for the seconds it is given, is true within `timeout`; any thread, as `wait_for`."""
        if take(0):
            return True
        if not self.in_thread:
            return self.wait(lambda: take(timeout))
        deadline = None if timeout is None else time.monotonic() + timeout
        while not take(0):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            self._turn(deadline, nested=True)
        return True

    def abandon(self) -> None:
        """In a child made by fork: close every descriptor, and unregister nothing: epoll's set is the parent's too."""
        for owned in list(self.owned):
            owned.abandon()
        self.owned.clear()
        self._close()

    def wake(self) -> None:
        """Have it take a turn now; any thread."""
        if not self._awake and not self.in_thread:
            try:
                self._awake = True
                self._wake_out.send(b'\0')
            except OSError:
                pass  # full of wake-ups, or stopped and nobody is left to wake
            except BaseException:  # a signal handler raised before the byte was sent, perhaps
                self._awake = False
                raise

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

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            while not self._stopping:
                self._turn(None, nested=False)
        finally:
            self._close()

    def _turn(self, deadline: Optional[float], nested: bool) -> None:
        """Wait once and call what is due. Nested in a handler's wait, nothing deferred is called."""
        timers = self._timers
        if self._calls or (self._deferred and not nested):
            timeout: Optional[float] = 0
        else:
            if timers and (deadline is None or timers[0][0] < deadline):
                deadline = timers[0][0]
            timeout = None if deadline is None else min(max(0, deadline - time.monotonic()), _MAX_SELECT_SECONDS)
        for key, mask in self._selector.select(timeout):
            self._guard(key.data, mask)
        self._awake = False
        if timers:
            self._run_timers()
        for _ in range(len(self._calls)):
            function, arguments = self._calls.popleft()
            self._guard(function, *arguments)
        if not nested:
            for _ in range(len(self._deferred)):
                self._guard(self._deferred.popleft())

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
        except Exception:
            # A defect of ours; the other connections of this reactor must not pay for it.
            logger.exception('nodeipc: %r failed on the reactor thread; please report this', function)

    def _close(self) -> None:
        self._ident = None
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()


def _call(wait: Callable[[], bool]) -> bool:
    return wait()
