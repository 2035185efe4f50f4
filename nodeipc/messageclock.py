"""How long a message takes to arrive: from its first byte, however many bytes come after it, and however slowly.

A connection whose parser gives messages a time has one. It measures what the peer does and not what we do: while we do not
read, and while the reactor is kept from its work, no time passes.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Optional

from .reactor import Reactor, Timer

# By which a timer is late only if the reactor was kept from its work: by handlers of its own (workers = 0), for one.
_LATE_SECONDS = 0.05


class MessageClock:
    """Calls `expired` when a message is not complete `limit` seconds after its first byte. For the reactor thread."""

    __slots__ = ('_began', '_expired', '_reactor', '_timer', 'limit')

    def __init__(self, limit: float, reactor: Reactor, expired: Callable[[], Any]) -> None:
        self.limit = limit
        self._reactor = reactor
        self._expired = expired
        self._began: Optional[float] = None  # when the first byte of the message came that is not complete
        # One for many messages: it looks at the time when it is due, for most are complete in a moment.
        self._timer: Optional[Timer] = None

    def note(self, unfinished: bool, anew: bool) -> None:
        """A message has begun and is `unfinished`, and we go on reading; it began `anew`, or as it was noted before."""
        if not unfinished:
            self._began = None
        elif anew or self._began is None:
            self._began = time.monotonic()
            if self._timer is None:
                self._timer = self._reactor.call_later(self.limit, self._check)

    def stop(self) -> None:
        """Never expire."""
        self._began = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if self._began is None:
            return
        now = time.monotonic()
        late = now - self._began - self.limit
        if late > _LATE_SECONDS:  # the rest may have come and not been read: as long again
            self._began = now - self.limit + min(late, self.limit)
        remaining = self._began + self.limit - now
        if remaining > 0:
            self._timer = self._reactor.call_later(remaining, self._check)
        else:
            self._expired()
