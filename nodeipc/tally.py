"""Telling of what a peer can make happen as often as it likes, without letting it fill the log.

Servers have one for each kind of trouble: refused connections, failed handshakes, datagrams that are dropped.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from .reactor import Reactor, Timer

# Between two reports.
_REPORT_SECONDS = 1.0


class Tally:
    """Has the first of many told at once, and then, no more than once a second, how many came since.

    `tell` is called with their number and what was said of the last. `post` has it called on a strand, or returns False if
    there is none any more. For the reactor thread.
    """

    def __init__(self, post: Callable[..., bool], reactor: Reactor, tell: Callable[[int, Any], Any]) -> None:
        self._post = post
        self._reactor = reactor
        self._tell = tell
        self._count = 0
        self._last: Any = None
        self._timer: Optional[Timer] = None  # until the next report may be made
        self._waiting = False  # a report has not had its turn on the strand yet; only there it becomes False again

    @property
    def is_resting(self) -> bool:
        """Whether nothing has happened for a while."""
        return self._timer is None

    def add(self, what: Any = None) -> None:
        """Count one."""
        self._count += 1
        self._last = what
        if self._timer is None:
            self._report()

    def close(self) -> None:
        """Tell of those that were not told of yet."""
        if self._timer is not None:
            self._timer.cancel()
        if self._count:
            self._post_report()
        self._timer = None

    def _report(self) -> None:
        self._timer = self._reactor.call_later(_REPORT_SECONDS, self._again)
        self._post_report()

    def _post_report(self) -> None:
        count, last = self._count, self._last
        self._count, self._last = 0, None
        self._waiting = True
        if not self._post(self._tell_now, count, last):
            self._waiting = False

    def _tell_now(self, count: int, last: Any) -> None:
        self._waiting = False
        self._tell(count, last)

    def _again(self) -> None:
        self._timer = None
        if self._waiting:  # for handlers that take long
            self._timer = self._reactor.call_later(_REPORT_SECONDS, self._again)
        elif self._count:
            self._report()
