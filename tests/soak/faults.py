"""What is done to connections and processes while the soak runs: seeded, and undone in time."""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import random
import signal
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Tuple

from ..faults.proxy import CUT, HALF_CLOSE, RESET, STOP, Link, Proxy
from .judge import BOTH, UP

if TYPE_CHECKING:
    from .soak import Soak

# Seconds between two faults of the proxies of one transport, and between two of processes, on average.
PROXY_SECONDS = 0.8
PROCESS_SECONDS = 3.0


class Injector:
    """Does faults, one after the other, from the main thread of the soak: `turn` does what is due."""

    def __init__(self, soak: Soak, seed: str) -> None:
        self._soak = soak
        self._random = random.Random(seed)
        self._due: List[Tuple[float, int, Callable[[], Any]]] = []
        self._numbers = itertools.count()
        self._open: List[contextlib.ExitStack] = []
        self.counts: Dict[str, int] = {}
        self._is_on = False

    def start(self) -> None:
        self._is_on = True
        for transport in self._soak.transports:
            self._plan(PROXY_SECONDS, functools.partial(self._disturb_links, f'{transport}/'))
        self._plan(PROCESS_SECONDS, self._disturb_processes)

    def stop(self) -> None:
        """No new ones; those that stand are undone when they are due."""
        self._is_on = False

    @property
    def is_calm(self) -> bool:
        return not self._due

    def turn(self) -> None:
        while self._due and self._due[0][0] <= time.monotonic():
            heapq.heappop(self._due)[2]()

    def hurry(self) -> None:
        """Undo everything now."""
        self._is_on = False
        while self._due:
            heapq.heappop(self._due)[2]()

    def _later(self, seconds: float, call: Callable[[], Any]) -> None:
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), call))

    def _plan(self, mean: float, fault: Callable[[], Any]) -> None:
        """Do a fault some time from now, and another one after that."""

        def go() -> None:
            if self._is_on:
                fault()
                self._plan(mean, fault)

        self._later(self._random.uniform(0.2, 1.8) * mean, go)

    # Connections

    def _disturb_links(self, prefix: str) -> None:
        links = [
            (name, proxy, link) for name, proxy in self._soak.proxies.items() if name.startswith(prefix)
            for link in list(proxy.links)
        ]
        kinds = [
            (self._cut, 4), (self._cut_frame, 4), (self._reset, 3), (self._half_close, 2), (self._pieces, 2),
            (self._delay, 2), (self._stall, 1.5), (self._refuse, 0.7),
        ]
        fault = self._random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
        if links:
            fault(*self._random.choice(links))

    def _way(self, link: Link) -> Any:
        return self._random.choice((link.up, link.down))

    def _cut(self, name: str, proxy: Proxy, link: Link) -> None:
        self._done(name, 'cuts')
        link.cut()

    def _cut_frame(self, name: str, proxy: Proxy, link: Link) -> None:
        """In the middle of whatever passes next; it may take a while to pass."""
        self._done(name, 'cuts mid-frame', 2)
        self._way(link).end_after(self._random.randrange(1, 5000), self._random.choice((CUT, RESET)))
        self._later(2, link.cut)

    def _reset(self, name: str, proxy: Proxy, link: Link) -> None:
        self._done(name, 'resets')
        link.reset()

    def _half_close(self, name: str, proxy: Proxy, link: Link) -> None:
        self._done(name, 'half-closes', 3)
        self._way(link).end_after(self._random.randrange(0, 2000), HALF_CLOSE)
        self._later(3, link.cut)

    def _pieces(self, name: str, proxy: Proxy, link: Link) -> None:
        seconds = self._random.uniform(0.1, 0.6)
        self._done(name, 'single bytes', seconds)
        way = self._way(link)
        way.piece = self._random.choice((1, 1, 7))

        def undo() -> None:
            way.piece = None

        self._later(seconds, undo)

    def _delay(self, name: str, proxy: Proxy, link: Link) -> None:
        seconds = self._random.uniform(0.2, 1.5)
        self._done(name, 'delays', seconds)
        way = self._way(link)
        way.pause = self._random.uniform(0.001, 0.05)

        def undo() -> None:
            way.pause = 0.0
            proxy.wake()

        self._later(seconds, undo)

    def _stall(self, name: str, proxy: Proxy, link: Link) -> None:
        seconds = self._random.uniform(0.2, 2)
        self._done(name, 'stops', seconds)
        way = self._way(link)
        if self._random.random() < 0.5:
            way.stopped = True
        else:
            way.end_after(self._random.randrange(1, 5000), STOP)

        def undo() -> None:
            if way.stopped:
                way.stopped = False
                proxy.wake()
            elif not link.closed:  # it has not come to that, and must not later
                self._cut(name, proxy, link)

        self._later(seconds, undo)

    def _refuse(self, name: str, proxy: Proxy, link: Link) -> None:
        seconds = self._random.uniform(0.1, 0.8)
        self._done(name, 'refusals', seconds)
        if proxy.path is not None:
            # Not TCP: on a port that the system has chosen, a client that is refused could be given that very port for its
            # own end, and connect to itself.
            stack = contextlib.ExitStack()
            stack.enter_context(proxy.refusing())
            undo: Callable[[], Any] = stack.close
        else:
            proxy.turns_away = self._random.choice((CUT, RESET))

            def undo() -> None:
                proxy.turns_away = None

        proxy.cut_all(reset=self._random.random() < 0.5)
        self._later(seconds, undo)

    def _done(self, where: str, what: str, seconds: float = 0.0) -> None:
        """Count it. What a proxy ends it tells itself, when it does."""
        self.counts[what] = self.counts.get(what, 0) + 1
        self._soak.judge.note(where if where in self._soak.processes else f'lane {self._soak.fronts[where]}', seconds)

    # Processes

    def _disturb_processes(self) -> None:
        soak, chance = self._soak, self._random
        names = [name for name, process in soak.processes.items() if process.begun.value is not None and not process.is_busy]
        if not names:
            return
        name = chance.choice(names)
        process = soak.processes[name]
        is_server, is_mortal = process.spec['role'] == 'server', process.spec['mortal']
        kinds: List[Tuple[str, float]] = [('stop', 1)]
        if is_mortal:
            kinds += [('kill', 2), ('term', 1)]
        if is_server and process.spec['transport'] != 'udp':
            kinds += [('restart', 2)]
        kind = chance.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])[0]
        if is_server and kind != 'stop':
            process.ends = soak.judge.end_server(name, BOTH if kind == 'kill' else UP)
        if kind == 'stop':
            seconds = chance.uniform(0.2, 2)
            self._done(name, 'SIGSTOPs', seconds + 0.5)
            process.stop_for(seconds)
        elif kind == 'restart':
            self._done(name, 'server restarts', 3)
            process.is_busy = True
            soak.await_restart(process)
        else:
            self._done(name, 'kills' if kind == 'kill' else 'SIGTERMs', 3)
            soak.replace(process, signal.SIGKILL if kind == 'kill' else signal.SIGTERM)
