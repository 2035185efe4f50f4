"""A point in time until which something may take, made from the seconds a caller allows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Optional, Tuple, Type


class Deadline:
    """`timeout` seconds from now; None: never.

    >>> Deadline(None).remaining is None, Deadline(0).remaining
    (True, 0.0)
    """

    __slots__ = ('_end', 'timeout')

    def __init__(self, timeout: Optional[float]) -> None:
        self.timeout = timeout
        try:
            self._end = None if timeout is None else time.monotonic() + timeout
        except TypeError:  # a method that is registered as a handler, perhaps, and was given the data
            raise TypeError(f'timeout must be a number of seconds, or None, not {timeout!r}') from None

    @property
    def remaining(self) -> Optional[float]:
        """Seconds that are left, as the standard library's waits take them."""
        return None if self._end is None else min(max(0.0, self._end - time.monotonic()), threading.TIMEOUT_MAX)

    def sooner(self, other: Deadline) -> Deadline:
        """Return whichever of the two comes first."""
        if other._end is None:
            return self
        return other if self._end is None or other._end < self._end else self


NEVER = Deadline(None)

EXIT_SECONDS = 5.0

# CPython looks for signals, releases the GIL, and then waits for a lock. A signal that comes between is not seen before the
# wait ends or another signal comes; so one sent when a wait began was lost in 11 of 1,362 cases. The first wait is short.
# What comes just as the second begins may still be lost, but nothing makes it come then.
_FIRST_WAIT_SECONDS = 0.05


def at_exit() -> Deadline:
    """For handlers, when the script ends, or is to end."""
    return Deadline(EXIT_SECONDS)


def is_to_end(exception: Optional[Type[BaseException]]) -> bool:
    """Whether `exception`, which ends a ``with`` block, is Ctrl-C or the like."""
    return exception is not None and not issubclass(exception, Exception)


class Flag:
    """A ``threading.Event`` whose `wait` an exception of a signal handler may end: nothing is left locked by that."""

    __slots__ = ('_gates', '_is_set')

    def __init__(self) -> None:
        self._is_set = False
        self._gates: Deque[threading.Lock] = deque()  # of those who wait, closed

    @property
    def is_set(self) -> bool:
        """Whether it was set."""
        return self._is_set

    def set(self) -> None:
        """Let everybody who waits go on, and whoever comes later."""
        self._is_set = True
        while self._gates:
            try:
                self._gates.popleft().release()
            except IndexError:  # another thread was faster
                return

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Whether it is set within `timeout` seconds."""
        if not self._is_set:
            gate = threading.Lock()
            gate.acquire()
            self._gates.append(gate)
            try:
                if not self._is_set:  # else it may have been set before that
                    any(gate.acquire(timeout=seconds) for seconds in waits(timeout))
            finally:
                with contextlib.suppress(ValueError):  # `set` has taken it
                    self._gates.remove(gate)
        return self._is_set


def waits(timeout: Optional[float]) -> Tuple[float, ...]:
    """Return for how long to wait for a lock, one after the other, up to `timeout` seconds; -1: for ever.

    >>> waits(None), waits(0.01), waits(1)
    ((0.05, -1.0), (0.01,), (0.05, 0.95))
    """
    if timeout is None:
        return _FIRST_WAIT_SECONDS, -1.0
    if timeout <= _FIRST_WAIT_SECONDS:
        return (max(0.0, timeout),)
    return _FIRST_WAIT_SECONDS, min(timeout, threading.TIMEOUT_MAX) - _FIRST_WAIT_SECONDS


def wait_for(condition: threading.Condition, predicate: Callable[[], Any], timeout: Optional[float]) -> bool:
    """As ``condition.wait_for``, but an exception of a signal handler leaves it with the lock held, as others do.

    Or the ``with`` around it would raise another one: RuntimeError, for a lock that it has not to release.
    """
    try:
        return any(condition.wait_for(predicate, None if seconds < 0 else seconds) for seconds in waits(timeout))
    except BaseException:
        if not condition._is_owned():  # type: ignore[attr-defined]
            condition.acquire()
        raise
