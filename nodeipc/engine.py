"""What an instance runs on: a reactor, the threads of which one leads it, and the endpoints that use them.

Made when the first endpoint needs it; a closed instance makes a new one when it is used again.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional

from .deadline import NEVER, Deadline, Flag
from .reactor import Reactor
from .reentry import has_interrupted_us
from .workers import Workers

# How long whoever waits for the reactor does so before looking whether it still takes turns.
_LOOK_SECONDS = 1.0


class Endpoint:
    """A server or a client, as the end of its instance sees it."""

    #: Whether it says goodbye only when the others have.
    _leaves_last = False

    def _begin_goodbye(self) -> None:
        """Start to deliver what was emitted and to close. Idempotent, waits for nothing."""
        raise NotImplementedError

    def _wait_goodbye(self, deadline: Deadline, handlers: Deadline = NEVER) -> None:
        """Wait for the goodbye that has begun; until `deadline`, and until `handlers` for handlers that still run."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """In a child made by fork: this endpoint is the parent's, and its locks may be held for ever."""
        raise NotImplementedError


class Engine:
    """A running reactor with its workers. Raises RuntimeError if no thread can be started."""

    def __init__(self, workers: int) -> None:
        self.reactor = Reactor()
        self.workers = Workers(workers, self.reactor)
        # Those that are not finished, servers and clients in the order of their making. Changed by single operations
        # that the interpreter makes atomic.
        self.endpoints: Dict[Endpoint, None] = {}
        self.closing = False
        self.closed = Flag()
        self.workers.start()

    @property
    def must_not_wait(self) -> bool:
        """Whether the caller is in a handler, or has interrupted this library (in a signal handler or ``__del__``).

        Either would wait for itself.
        """
        return self.workers.inside or has_interrupted_us()

    def waits(self, is_done: Callable[[Optional[float]], bool], deadline: Deadline) -> bool:
        """Whether `is_done`, which waits for the reactor for the seconds it is given, is true within the deadline.

        Or not: as soon as the reactor's own thread turns out to be in a handler that does not return.
        """
        while not is_done(deadline.sooner(Deadline(_LOOK_SECONDS)).remaining):
            if deadline.remaining == 0 or not self.reactor.answers():
                return False
        return True

    def close(self, deadline: Deadline, handlers: Deadline = NEVER) -> None:
        """Say goodbye for every endpoint, then end the threads. Several threads may; one that is interrupted may again.

        A handler that runs beyond the deadlines keeps its thread.
        """
        self.closing = True
        for last in (False, True):
            for endpoint in self.begin_goodbyes(last):
                endpoint._wait_goodbye(deadline, handlers)
        self.workers.close(deadline.sooner(handlers))

    def begin_goodbyes(self, last: bool = False) -> List[Endpoint]:
        """Say goodbye for the endpoints that leave `last`, or that do not; return them."""
        leaving = [endpoint for endpoint in list(self.endpoints) if endpoint._leaves_last is last]
        for endpoint in leaving:
            endpoint._begin_goodbye()
        return leaving

    def abandon(self) -> None:
        """In a child made by fork, which has none of the threads: close the descriptors."""
        self.reactor.abandon()
        self.workers.abandon()
        for endpoint in list(self.endpoints):
            endpoint._abandon()
