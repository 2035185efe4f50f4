"""The colours of node-ipc's log themes, as functions from text to text.

They colour on a terminal and do nothing on a pipe, in a file, or where the environment variable ``NO_COLOR`` is set
(https://no-color.org). The demo and the examples use them; nothing in the library depends on them being on.

>>> good('saved')  # on a pipe
'saved'
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

__all__ = ['data', 'debug', 'error', 'good', 'notice', 'rainbow', 'supports_color', 'variable', 'warn']

_RESET = '\x1b[0m'
_RAINBOW = (31, 33, 32, 36, 34, 35)


def supports_color() -> bool:
    """Return whether standard output is a terminal that shows colours, and ``NO_COLOR`` is not set (or empty)."""
    if os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb':
        return False
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):  # no stdout (pythonw), or a closed one
        return False


def _paint(value: Any, code: str, force: bool) -> str:
    text = str(value)
    return f'\x1b[{code}m{text}{_RESET}' if force or supports_color() else text


def good(value: Any, *, force: bool = False) -> str:
    """Green. `force` colours whatever the output is."""
    return _paint(value, '32', force)


def notice(value: Any, *, force: bool = False) -> str:
    """Yellow."""
    return _paint(value, '33', force)


def warn(value: Any, *, force: bool = False) -> str:
    """Bold yellow."""
    return _paint(value, '1;33', force)


def error(value: Any, *, force: bool = False) -> str:
    """Bold red."""
    return _paint(value, '1;31', force)


def debug(value: Any, *, force: bool = False) -> str:
    """Blue."""
    return _paint(value, '34', force)


def variable(value: Any, *, force: bool = False) -> str:
    """Cyan."""
    return _paint(value, '36', force)


def data(value: Any, *, force: bool = False) -> str:
    """Grey."""
    return _paint(value, '90', force)


def rainbow(value: Any, *, force: bool = False) -> str:
    """A colour a letter."""
    text = str(value)
    if not (force or supports_color()):
        return text
    return ''.join(f'\x1b[{code}m{letter}' for letter, code in zip(text, itertools.cycle(_RAINBOW))) + _RESET
