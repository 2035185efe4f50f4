"""The command line, ``python3 -m nodeipc`` or ``nodeipc``: one sub-command each for what a shell wants of the library.

`usage` says what can be typed, `commands`, `serving`, `benchmark` and `demo` do it; here it is run, and what comes of it is
told. What a command has to say for a program to read goes to stdout, everything else to stderr. Exit codes: 0 done, 1
failed, 2 usage, 3 timed out; 130 Ctrl-C, and 128 and its number for another signal.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from typing import Iterator, Optional, Sequence

from . import usage
from .errors import ConfigError, IPCError
from .jsonlines import OutputClosed
from .log import logger
from .options import UsageError
from .supervisor import CommandError, Interrupted, end_quietly_by_ctrl_c, leave, supervise, tell, to_stderr

_FAILED, _USAGE, _TIMED_OUT, _INTERRUPTED = 1, 2, 3, 130


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command in `argv` (default: ``sys.argv[1:]``) and return its exit code.

    Raises SystemExit for ``--help``, ``--version`` and wrong usage, as argparse does. For the main thread.
    """
    is_process = argv is None
    if is_process:
        end_quietly_by_ctrl_c()
        _occupy_standard_descriptors()
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(words)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Interrupted as interrupted:
        if is_process:
            leave(interrupted.code)  # its thread may be waiting for anything, and nothing is buffered
        return interrupted.code
    finally:
        if is_process:
            _flush()


def _run(words: Sequence[str]) -> int:
    if not words:
        to_stderr(usage.general_help())
        return _USAGE
    arguments = usage.parse(words)
    name = arguments.command
    command = usage.COMMANDS[name]
    if name == 'demo':
        return _demo()
    run = getattr(importlib.import_module(f'.{command.module}', __package__), name)
    # What goes wrong with one that does not go on is what it ends with, and told then.
    goes_on = command.follows_output or getattr(arguments, 'json', None) == '-'
    with _diagnostics(name, arguments.verbose or (0 if goes_on else -1)):
        try:
            return supervise(lambda session: int(run(arguments, session)), name, command.follows_output)
        except UsageError as error:
            return int(arguments.fail(str(error)))  # it does not return
        except OutputClosed:
            return 0
        except (ConfigError, IPCError, CommandError, OSError) as error:
            tell(name, error)
            if isinstance(error, ConfigError):
                return _USAGE
            return _TIMED_OUT if isinstance(error, TimeoutError) else _FAILED


def _demo() -> int:
    from . import demo  # which handles signals itself

    try:
        return demo.run()
    except BrokenPipeError:
        return _FAILED
    except OSError as error:
        tell('demo', error)
        return _FAILED
    finally:
        _flush()


_LEVELS = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO, 2: logging.DEBUG}


@contextlib.contextmanager
def _diagnostics(command: str, verbosity: int) -> Iterator[None]:
    """Tell on stderr what the library logs."""
    handler = _Teller(command)
    propagate, level = logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(_LEVELS[min(verbosity, 2)])
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate, logger.level = propagate, level


class _Teller(logging.Handler):
    def __init__(self, command: str) -> None:
        super().__init__()
        self._command = command

    def emit(self, record: logging.LogRecord) -> None:
        tell(self._command, record.getMessage())
        if record.exc_info and record.levelno >= logging.ERROR:  # a defect: whoever is told needs to know where
            to_stderr(f'{logging.Formatter().formatException(record.exc_info)}\n')


def _occupy_standard_descriptors() -> None:
    """See that no socket of ours becomes what is read as stdin or written to as stdout, where those are closed."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # what we open is the lowest that is free; the wrong way round, so that its use is an error still
            os.open(os.devnull, os.O_RDONLY if descriptor else os.O_WRONLY)


def _flush() -> None:
    """Write what is buffered; if nobody reads it any more, forget it without a complaint at the interpreter's end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):  # it is closed, or there is none
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
