"""Has the caller interrupted this library? Then it must not wait for it.

A signal handler, or a ``__del__`` that the collector calls, runs on top of whatever it interrupts, which may be a call of
ours that holds a lock. The stack shows it: frames of ours, those of the application on top, and ours again. Functions that
call the application and hold no lock meanwhile say so with `calls_out`.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any, Callable, Dict, Set, TypeVar

F = TypeVar('F', bound=Callable[..., Any])

_PACKAGE = __name__.partition('.')[0] + '.'
_calling_out: Set[CodeType] = set()

_OURS, _APPLICATION, _NEITHER = 'ours', 'application', 'neither'

# By the names of modules: to look costs 0.1 µs for each frame.
_kinds: Dict[Any, str] = {'contextlib': _NEITHER}  # between a `with` of ours and what is behind it


def _kind(name: Any) -> str:
    return _OURS if str(name).startswith(_PACKAGE) else _APPLICATION



def calls_out(function: F) -> F:
    """Decorator: `function` may call the application, and holds no lock when it does."""
    _calling_out.add(function.__code__)
    return function


def has_interrupted_us() -> bool:
    """Whether the caller runs on top of an interrupted call of this library.

    >>> has_interrupted_us()
    False
    """
    frame = sys._getframe(1)
    application_above = False
    while frame is not None:
        name = frame.f_globals.get('__name__')
        kind = _kinds.get(name)
        if kind is None:
            kind = _kinds[name] = _kind(name)
        if kind == _APPLICATION:
            application_above = True
        elif kind == _OURS and application_above:
            if frame.f_code not in _calling_out:
                return True
            application_above = False
        frame = frame.f_back  # type: ignore[assignment]
    return False


def check_may_wait() -> None:
    """Raise RuntimeError if the caller has interrupted this library, and what it waits for could wait for that."""
    if has_interrupted_us():
        raise RuntimeError(
            'a signal handler or __del__ that has interrupted a call of this library cannot wait for it; set a flag there '
            'and do this in the main program'
        )
