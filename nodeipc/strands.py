"""Strands: what keeps a connection's events in order on the threads of `workers`.

A strand is a queue whose items run one at a time and in order; different strands run in parallel. Nothing here knows what
an item means, or which thread runs it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Deque, Iterable, List, Optional, Protocol, Tuple

from .log import logger, report_defect

if TYPE_CHECKING:
    from .workers import Workers

# A strand with more to do lets the others run after this many items or this long, whichever is first. The leader looks at
# the time after so many.
_TURN_ITEMS = 128
TURN_SECONDS = 0.01
_LOOK_ITEMS = 4

# The leader's turn, well below what makes it look stuck.
LEADERS_TURN_SECONDS = 0.004

# So many answers leave together at most: the other end handles some while the next are made. Of 64 in flight each
# took 3 µs with 16 or 32, 4.7 with 8, 5.2 when all left together.
_JOINED_ITEMS = 32

# What a connection may have read ahead of its handlers. A few chunks: enough to keep a worker busy while the next is
# read, little enough for a thousand connections that are all behind.
_HIGH_WATER_BYTES = 256 << 10


class Outlet(Protocol):
    """Where what handlers emit leaves."""

    def cork(self) -> None:
        """Join what the caller's thread emits from now on."""

    def uncork(self) -> None:
        """Let it leave; any thread."""


class Strand:
    """Items that are handled in order and one at a time.

    An item is a tuple: an event, whose first element is its name and which goes to `deliver`, or a function and its
    arguments. Posting never blocks; a strand that has fallen behind says so, and calls `on_drained` when it has caught
    up, so that its connection can stop reading meanwhile.
    """

    __slots__ = ('_full', '_idle', '_items', '_load', '_lock', '_workers', 'deliver', 'on_drained', 'outlet')

    def __init__(self, workers: Workers, deliver: Callable[..., Any]) -> None:
        self._workers = workers
        self.deliver = deliver
        self.on_drained: Optional[Callable[[], Any]] = None
        #: Of the connection whose events these are: answers to several of them may leave together.
        self.outlet: Optional[Outlet] = None
        self._items: Deque[Tuple[Any, ...]] = deque()
        # One element, unless the strand runs or is about to. Whoever takes it out, by one operation that the interpreter
        # makes atomic, has the strand run: also code that interrupts somebody who does.
        self._idle: List[None] = [None]
        # Guards _load and _full. Innermost. Re-entrant, for what interrupts a holder may post events.
        self._lock = threading.RLock()
        self._load = 0  # bytes posted since the strand was last empty
        self._full = False

    @property
    def is_idle(self) -> bool:
        """Whether all that was posted is done."""
        return bool(self._idle)

    @property
    def is_full(self) -> bool:
        """Whether it is behind, and `on_drained` will be called."""
        return self._full

    def post(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have `function` called in turn; any thread."""
        self._items.append((function, *arguments))
        if self._idle and self._take():
            self._workers.submit(self)

    def post_events(self, events: Iterable[Tuple[Any, ...]], size: int) -> bool:
        """Have `events`, which came as `size` bytes, delivered in turn; True when the strand is behind."""
        with self._lock:
            self._items.extend(events)
            self._load += size
            self._full = full = self._load > _HIGH_WATER_BYTES
        if self._idle and self._take():
            self._workers.submit(self)
        return full

    def run(self, by_leader: bool, began: float, joins: bool) -> int:
        """Handle items until there are none or it is the others' turn; return how many. Called by one thread at a time.

        For the leader there is always somebody to yield to: its sockets. If it `joins`, what one handler emits leaves
        together with what the next ones do; what the last one does, and who knows how long that takes, leaves at once.
        """
        items = self._items
        ready = self._workers.ready
        outlet = self._cork() if joins and len(items) > 1 else None
        done = 0
        look = _LOOK_ITEMS if by_leader else 1  # the leader is watched; here are the slow ones
        end = began + (LEADERS_TURN_SECONDS if by_leader else TURN_SECONDS)
        while True:
            while items:
                item = items.popleft()
                if outlet is not None and not items:
                    outlet.uncork()
                    outlet = None
                try:
                    if item[0].__class__ is str:
                        self.deliver(*item)
                    else:
                        item[0](*item[1:])
                except BaseException:  # a handler's is caught before, but not a log's
                    report_defect(item[0], 'a worker thread')
                done += 1
                if not done % look:
                    if (by_leader or ready) and (done >= _TURN_ITEMS or time.monotonic() >= end):
                        if outlet is not None:
                            outlet.uncork()
                        ready.append(self)  # whoever calls this looks there next
                        return done
                    if outlet is not None and not done % _JOINED_ITEMS:
                        outlet.uncork()
                        outlet = self._cork()
            with self._lock:
                if items:
                    continue
                self._load = 0
                drained, self._full = self._full, False
            on_drained = self.on_drained  # once: the reactor thread may take it away
            if drained and on_drained is not None:
                try:
                    on_drained()
                except BaseException:
                    report_defect(on_drained, 'a worker thread')
            if self._rest():
                return done

    def resume(self) -> None:
        """Go on after a `run` that raised."""
        if not self._rest():
            self._workers.submit(self)

    def _take(self) -> bool:
        """Whether it is for the caller to have the strand run."""
        try:
            self._idle.pop()
        except IndexError:
            return False
        return True

    def _rest(self) -> bool:
        """Let others have it run; False if something has come meanwhile, and it is for the caller to go on."""
        self._idle.append(None)
        return not (self._items and self._take())

    def _cork(self) -> Optional[Outlet]:
        """Return the outlet, corked; None if there is none, or nobody to uncork it when a handler is stuck."""
        outlet = self.outlet
        if outlet is not None:
            outlet.cork()
            if not self._workers.leads:  # now: whoever leads from here on uncorks it
                outlet.uncork()
                return None
        return outlet


def end_with_the_handler() -> None:
    """In a child made by fork: if a handler made it, what waits behind the handler is the parent's to do."""
    frame: Optional[FrameType] = sys._getframe()
    while frame is not None:
        if frame.f_code is Strand.run.__code__:
            items = frame.f_locals['items']
            items.clear()
            items.append((end_process,))
        frame = frame.f_back


def end_process() -> None:
    """End a child made by fork in a handler, which has returned."""
    try:
        logger.warning('nodeipc: a handler has returned in a process that it made by fork, which ends now; end such a '
                       'process in the handler, with os._exit(), or use multiprocessing or subprocess')
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(0)
