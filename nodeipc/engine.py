"""What an instance runs on: a reactor thread and its workers, made when the first endpoint needs them."""

from __future__ import annotations

import threading

from .reactor import Reactor
from .workers import Workers


class Engine:
    """A running reactor with its workers. Raises RuntimeError if no thread can be started."""

    def __init__(self, workers: int) -> None:
        self.reactor = Reactor()
        self.workers = Workers(workers, self.reactor)
        self.closed = threading.Event()
        self.reactor.start()

    def close(self) -> None:
        """End the threads; not from one of them."""
        self.workers.close()
        self.reactor.stop()
        self.closed.set()

    def abandon(self) -> None:
        """In a child made by fork, which has none of the threads: close the descriptors."""
        self.reactor.abandon()
