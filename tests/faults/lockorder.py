"""The order of the library's locks, written down once, and a tracker that sees whether it is kept.

`ORDER` is the one list. `track` has the locks that the library makes from then on remembered as they are taken; `wrong` says
what was not as listed. It works for a program that calls `track` before it imports nodeipc (`threads_workload`), and
as a plugin for any tests::

    python -m pytest -p tests.faults.lockorder tests/test_flow.py

Tests that have Ctrl-C come between two steps of the library may fail with it, for taking a lock is several steps more.
"""

from __future__ import annotations

import ast
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

PACKAGE = Path(__file__).resolve().parents[2] / 'nodeipc'


class Ranked(NamedTuple):
    """A lock that is held while something is done: `name` is module.Class.attribute."""

    name: str
    guards: str


# A thread that holds one of these may wait for those below it, and for none above it, nor for another of the same name.
ORDER: Tuple[Ranked, ...] = (
    Ranked('server.Server._first_start', 'that one of those who wait for a server starts it; held while it starts'),
    Ranked('instance.IPC._lock', 'the engine and the clients of an instance, and that nothing joins an engine that closes'),
    Ranked('role.Role._lock', 'state and counters of a server or client; of a sync client, too, whose turn it is'),
    Ranked('lookup.Names._lock', 'names of UDP that are known, and those that are being looked up'),
    Ranked('channel.Channel._lock', 'what UDP sends: outbox, counters, the socket'),
    Ranked('connection.Connection._lock', 'what a stream sends: outbox, counters, the socket'),
    Ranked('tlsstream.TLSStream._lock', 'the TLS object and what is encrypted and not sent'),
    Ranked('waiters.Waiters._lock', 'who waits for one event of a peer, which queues collect them, what is kept'),
    Ranked('eventqueue.EventQueue._lock', 'what was collected and not taken'),
    Ranked('events.Emitter._handlers_lock', 'changes of handlers, and what a client has announced to them'),
    Ranked('strands.Strand._lock', 'whether a strand is scheduled, and how much waits in it'),
    Ranked('workers.Workers._lock', 'who leads, who watches, who is idle'),
    Ranked('jsonlines.Output._lock', 'that lines of the command line do not mingle'),
)

# Conditions, and the locks they give back while they wait. Whoever waits there holds no other.
CONDITIONS: Dict[str, str] = {
    'channel.Channel._room': 'channel.Channel._lock',
    'connection.Connection._room': 'connection.Connection._lock',
    'lookup.Names._changed': 'lookup.Names._lock',
    'role.Role._changed': 'role.Role._lock',
}

# What one thread waits for and another gives: locks that nobody holds, and events. Whoever waits there holds nothing.
GATES: Dict[str, str] = {
    'waiters.Waiter._wake': 'an answer, or the next event',
    'sync._Turn.wait': 'the turn to send',
    'workers._Seat._given': 'something to do',
    'deadline.Flag.gate': 'the end of a reactor or an instance, or that the reactor takes a turn',
    'benchmark._Bench._lost': 'the end of a connection',
    'benchmark._Bench.done': 'the last answer',
}

# Made again by a subclass, in a child of fork.
_ALIASES = {'role.Role._handlers_lock': 'events.Emitter._handlers_lock'}

_MAKERS = ('Lock', 'RLock', 'Condition', 'Semaphore', 'BoundedSemaphore', 'Event', 'Barrier')
_RANKS = {lock.name: rank for rank, lock in enumerate(ORDER)}


def in_source() -> Dict[Tuple[str, int], str]:
    """Return the name of each lock that the library makes, by the file and line that makes it."""
    found: Dict[Tuple[str, int], str] = {}
    for path in sorted(PACKAGE.glob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for scope, target, call in _made_in(tree, path.stem, ''):
            name = f'{scope}.{target}'
            found[str(path), call.lineno] = _ALIASES.get(name, name)
    return found


def _made_in(node: ast.AST, scope: str, target: str) -> Iterator[Tuple[str, str, ast.Call]]:
    if isinstance(node, ast.Call):
        function = node.func
        of_module = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
        if of_module and function.value.id == 'threading' and function.attr in _MAKERS:  # type: ignore[attr-defined]
            yield scope, target or f'line_{node.lineno}', node
    for child in ast.iter_child_nodes(node):
        within, assigned = scope, target
        if isinstance(child, ast.ClassDef) or (isinstance(child, ast.FunctionDef) and '.' not in scope):
            within = f'{scope}.{child.name}'
        elif isinstance(child, (ast.Assign, ast.AnnAssign)):
            for to in child.targets if isinstance(child, ast.Assign) else [child.target]:
                assigned = to.attr if isinstance(to, ast.Attribute) else assigned or getattr(to, 'id', '')
        yield from _made_in(child, within, assigned)


class _Held(threading.local):
    @property
    def locks(self) -> List[Any]:
        """What this thread holds, in the order in which it was taken."""
        locks: List[Any] = self.__dict__.setdefault('held', [])  # in one step: a __del__ may interrupt, and look, too
        return locks


_held = _Held()
_sites: Dict[Tuple[str, int], str] = {}
#: What was taken; and what was waited for by threads that held what, with the stack of the first time.
taken: Set[str] = set()
edges: Dict[Tuple[str, str], str] = {}


def _note(name: str, mine: Any = None) -> None:
    """The caller is about to wait for `name`; `mine` is given back meanwhile."""
    for lock in list(_held.locks):
        if lock is not mine and (lock.name, name) not in edges:
            edges[lock.name, name] = ''.join(traceback.format_stack(sys._getframe(2), 12))


class _Lock:
    """As `threading.Lock`, and remembered."""

    def __init__(self, name: str, lock: Any) -> None:
        self.name = name
        self._lock = lock
        self._is_gate = name in GATES
        self._is_new = True

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._is_gate:
            if blocking and not self._is_new:  # not its maker, who shuts it
                _note(self.name)
            self._is_new = False
        elif blocking and self not in _held.locks:
            _note(self.name)
        got = bool(self._lock.acquire(blocking, timeout))
        if got:
            self._took()
        return got

    def _took(self) -> None:
        taken.add(self.name)
        if not self._is_gate:
            _held.locks.append(self)

    def release(self) -> None:
        self._gave()
        self._lock.release()

    def _gave(self) -> None:
        locks = _held.locks
        for place in range(len(locks) - 1, -1, -1):
            if locks[place] is self:
                del locks[place]
                break

    def locked(self) -> bool:
        return bool(self._lock.locked())

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: Any) -> None:
        self.release()


class _RLock(_Lock):
    """As `threading.RLock`, and remembered; what `threading.Condition` needs, too."""

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())

    def _release_save(self) -> Any:
        count = _held.locks.count(self)
        for _ in range(count):
            self._gave()
        return count, self._lock._release_save()

    def _acquire_restore(self, state: Any) -> None:
        _note(self.name)
        count, inner = state
        self._lock._acquire_restore(inner)
        for _ in range(count):
            self._took()


def track() -> None:
    """From now on remember how the library's locks are taken. Call it before nodeipc is imported."""
    if _sites:
        return
    _sites.update(in_source())

    def site() -> Optional[str]:
        frame = sys._getframe(2)
        if str(frame.f_globals.get('__name__')).startswith('nodeipc.'):
            line = frame.f_lineno
            return _sites.get((frame.f_code.co_filename, line), f'{frame.f_code.co_filename}:{line}')
        return None

    real_lock, real_rlock, real_condition, real_event = (
        threading.Lock, threading.RLock, threading.Condition, threading.Event,
    )  # fmt: skip

    class Condition(real_condition):  # type: ignore[misc, valid-type]
        def __init__(self, lock: Any = None) -> None:
            super().__init__(lock)
            self.name, self.lock = site(), lock

        def wait(self, timeout: Optional[float] = None) -> bool:
            if self.name is not None:
                taken.add(self.name)
                _note(self.name, self.lock)
            return bool(super().wait(timeout))

    class Event(real_event):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.name = site()

        def wait(self, timeout: Optional[float] = None) -> bool:
            if self.name is not None:
                taken.add(self.name)
                _note(self.name)
            return bool(super().wait(timeout))

    def make_lock() -> Any:
        name = site()
        return real_lock() if name is None else _Lock(name, real_lock())

    def make_rlock() -> Any:
        name = site()
        return real_rlock() if name is None else _RLock(name, real_rlock())

    threading.Lock = make_lock  # type: ignore[misc, assignment]
    threading.RLock = make_rlock  # type: ignore[misc, assignment]
    threading.Condition = Condition
    threading.Event = Event


def wrong() -> List[str]:
    """Return what is not as listed, each with the stack of the first time."""
    up = [edge for edge in sorted(edges) if not _goes_down(*edge)]
    return [f'{before} -> {after}\n{edges[before, after]}' for before, after in up]


def _goes_down(before: str, after: str) -> bool:
    return before in _RANKS and after in _RANKS and _RANKS[before] < _RANKS[after]


def cycle() -> List[str]:
    """Return names of which each was waited for while the one before it was held, round in a circle; or nothing."""
    after: Dict[str, List[str]] = {}
    for one, other in edges:
        after.setdefault(one, []).append(other)
    done: Set[str] = set()

    def visit(name: str, path: List[str]) -> List[str]:
        if name in path:
            return [*path[path.index(name):], name]
        if name not in done:
            for other in after.get(name, ()):
                found = visit(other, [*path, name])
                if found:
                    return found
            done.add(name)
        return []

    return next((found for found in (visit(name, []) for name in after) if found), [])


# As a plugin of pytest


def pytest_configure(config: Any) -> None:
    if config.pluginmanager.get_plugin(__name__) is not None:  # and not merely imported by a test
        track()


def pytest_sessionfinish(session: Any) -> None:
    if wrong():
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section('order of locks')
    terminalreporter.write_line(f'{len(taken)} locks, {len(edges)} taken inside another:')
    for before, after in sorted(edges, key=lambda edge: (_RANKS.get(edge[0], -1), _RANKS.get(edge[1], -1))):
        terminalreporter.write_line(f'  {before} -> {after}')
    for text in wrong():
        terminalreporter.write_line(f'WRONG: {text}')
