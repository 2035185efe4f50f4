"""Two logs: the library's own diagnostics (`logger`), and what an application prints with ``ipc.log`` (`render`).

Nothing here runs on a reactor thread's hot path; a log sink may block.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Iterable, Optional

from .colors import supports_color, variable
from .reentry import calls_out

logger = logging.getLogger('nodeipc')

def to_stdout(line: str) -> None:
    """Print a line at once and in one piece, on a pipe too, and with escapes for what the output cannot show."""
    output = sys.stdout
    if output is None:  # pythonw
        return
    try:
        output.write(line + '\n')
    except UnicodeEncodeError:
        encoding = output.encoding or 'ascii'
        output.write(line.encode(encoding, 'backslashreplace').decode(encoding) + '\n')
    output.flush()


_ANSI = r'\x1b\[[0-9;]*m'


def render(values: Iterable[Any], depth: Optional[int] = None, color: Optional[bool] = None) -> str:
    """Join `values` by spaces as ``ipc.log`` prints them: text as it is, other values pretty-printed to `depth` levels.

    `color` None colours on a terminal only; False takes out colours that the values bring with them.
    """
    if color is None:
        color = supports_color()
    line = ' '.join(_show(value, depth, color) for value in values)
    return line if color else re.sub(_ANSI, '', line)


def _show(value: Any, depth: Optional[int], color: bool) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, BaseException):
        text = f'{value.__class__.__name__}: {value}'
    elif isinstance(value, (dict, list, tuple, set, frozenset)):
        import pprint  # slow to import, and many programs never log a structure

        text = pprint.pformat(value, depth=depth or None, width=100, sort_dicts=False)
    else:
        text = str(value)
    return variable(text, force=True) if color else text


@calls_out
def say(level: int, message: str, *arguments: Any, exc_info: Optional[BaseException] = None) -> None:
    """As ``logger.log``, where no lock is held: what handles the log may emit, and wait."""
    logger.log(level, message, *arguments, exc_info=exc_info, stacklevel=2)


@calls_out
def report_failing(what: str) -> None:
    """Log the exception that is being handled and that the application's `what` raised. Never raises."""
    try:
        logger.exception('nodeipc: %s raised', what)
    except BaseException:
        pass  # what handles the log raises, and then there is nobody to be told


@calls_out
def report_defect(what: object, where: str) -> None:
    """Log the exception that is being handled and that nobody expects of `what`, on the thread `where`. Never raises."""
    try:
        logger.exception('nodeipc: %r failed on %s; please report this', what, where)
    except BaseException:
        pass
