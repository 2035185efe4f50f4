"""What an instance runs on: a reactor thread and its workers, made when the first endpoint needs them."""

from __future__ import annotations

import threading

from .deadline import Deadline
from .reactor import Reactor
from .workers import Workers


class Engine:
    """A running reactor with its workers. Raises RuntimeError if no thread can be started."""

    def __init__(self, workers: int) -> None:
        self.reactor = Reactor()
        self.workers = Workers(workers, self.reactor)
        self.closed = threading.Event()
        self.reactor.start()

    def close(self, deadline: Deadline) -> None:
        """End the threads; not from one of them. A handler that runs beyond the deadline keeps its thread."""
        self.workers.close(deadline)
        self.reactor.stop()
        self.closed.set()

    def abandon(self) -> None:
        """In a child made by fork, which has none of the threads: close the descriptors."""
        self.reactor.abandon()
