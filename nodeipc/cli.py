"""The command line, ``python3 -m nodeipc`` or ``nodeipc``: one sub-command each for what a shell wants of the library.

A sub-command is a function from its parsed arguments to an exit code: 0 done, 1 failed, 2 usage, 3 timed out; Ctrl-C is
130. What it has to say for a program to read goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Callable, Optional, Sequence

from . import __version__


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command in `argv` (default: ``sys.argv[1:]``) and return its exit code.

    Raises SystemExit for ``--help``, ``--version`` and wrong usage, as argparse does.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    run: Optional[Callable[[argparse.Namespace], int]] = arguments.run
    if run is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has left: no complaint, not at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        print(f'{parser.prog} {arguments.command}: {error}', file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='nodeipc', description='Event messaging between processes.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title='commands', dest='command', metavar='COMMAND')

    demo = commands.add_parser(
        'demo',
        help='show a server and a client talking',
        description='Start a server process and a client process, over a Unix socket, TCP, TLS and UDP, and show what '
        'they say to each other and how long a round trip takes.',
    )
    demo.set_defaults(run=_demo)
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from . import demo  # with subprocess and all, which no other command needs

    return demo.run()
