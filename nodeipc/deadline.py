"""A point in time until which something may take, made from the seconds a caller allows."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable, Optional


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


def wait_for(condition: threading.Condition, predicate: Callable[[], Any], timeout: Optional[float]) -> bool:
    """As ``condition.wait_for``, but an exception of a signal handler leaves it with the lock held, as others do.

    Or the ``with`` around it would raise another one: RuntimeError, for a lock that it has not to release.
    """
    try:
        return bool(condition.wait_for(predicate, timeout))
    except BaseException:
        if not condition._is_owned():  # type: ignore[attr-defined]
            condition.acquire()
        raise
