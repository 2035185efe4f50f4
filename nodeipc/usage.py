"""What can be typed: each command's arguments, and the help that teaches it by example. Nothing is run here."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from typing import Any, Callable, Dict, NamedTuple, NoReturn, Sequence

from . import __version__, options

_WAIT_SECONDS = 10.0

_EXAMPLES = """\
examples:
  nodeipc serve world --echo                     a server; everything that comes is printed, and sent back
  nodeipc request world message '"hello"'        ask it something and print the answer
  nodeipc listen world | jq .data                events as they come, one JSON object a line
  sensor | nodeipc emit world reading -          an event for each line that a program prints
  nodeipc emit tcp://127.0.0.1:8000 message 42   over TCP

An ADDRESS is an id (world), which is the socket app.world in the directory of local sockets; a path (it has a /);
unix:PATH; tcp://host:port; tls://host:port; udp://host:port. Data is JSON: a string needs quotes of its own, '"hello"'.

`nodeipc COMMAND --help` says more. Exit codes: 0 done, 1 failed, 2 usage, 3 timed out, 130 Ctrl-C.
"""


class Command(NamedTuple):
    """A command as it is explained, and the module whose function of the same name does it."""

    usage: str
    summary: str
    description: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], Any]
    module: str
    follows_output: bool = False  # it ends when whoever reads its output does


class _Parser(argparse.ArgumentParser):
    """As argparse has it, with short errors."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.format_usage()}{self.prog}: {message}\n')


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments in `words`, and with them `command`, and `fail`, which ends the process for wrong usage.

    Raises SystemExit, as argparse does, for wrong usage and if help is all that is asked for.
    """
    if not words or words[0] not in COMMANDS:
        _parse_without_command(words)
    parser = _parser_of(words[0])
    arguments = parser.parse_intermixed_args(words[1:])  # so that options may stand anywhere
    arguments.command = words[0]
    arguments.fail = parser.error
    return arguments


def general_help() -> str:
    """Return what ``nodeipc --help`` prints."""
    return _general_parser().format_help()


def _parser_of(name: str) -> argparse.ArgumentParser:
    command = COMMANDS[name]
    examples = textwrap.indent(textwrap.dedent(command.examples).strip(), '  ')
    parser = _Parser(
        prog=f'nodeipc {name}',
        usage=f'nodeipc {name} {command.usage}'.rstrip(),
        description=textwrap.fill(command.description, 100),
        epilog=examples and f'examples:\n{examples}',
    )
    command.add_arguments(parser)
    return parser


def _general_parser() -> argparse.ArgumentParser:
    summaries = '\n'.join(f'  {name:10}{command.summary}' for name, command in COMMANDS.items())
    parser = _Parser(
        prog='nodeipc',
        usage='nodeipc COMMAND ...',
        description='Events between processes, for the shell. The other ends are nodeipc or node-ipc servers and clients.',
        epilog=f'commands:\n{summaries}\n\n{_EXAMPLES}',
    )
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    parser.add_argument('command', nargs='?', help=argparse.SUPPRESS)
    return parser


def _parse_without_command(words: Sequence[str]) -> NoReturn:
    parser = _general_parser()
    arguments, rest = parser.parse_known_args(words)
    given = arguments.command
    if given is None:
        parser.error(f'there is no option {rest[0]}; see nodeipc --help' if rest else 'which command? see nodeipc --help')
    if given in COMMANDS:
        parser.error(f'options go after the command: nodeipc {given} {rest[0]}')
    near = difflib.get_close_matches(given, COMMANDS, n=1)
    parser.error(f'there is no command {given!r}; ' + (f'did you mean {near[0]}?' if near else 'see nodeipc --help'))


# The arguments of each command


def _serve(parser: argparse.ArgumentParser) -> None:
    options.add_address(parser)
    parser.add_argument('--echo', action='store_true', help='send each event back to its sender')
    options.add_raw(parser, 'bytes in place of events: what comes is copied to stdout, stdin is sent to every client')
    options.add_verbose(parser)
    options.add_connection(parser, is_server=True)


def _listen(parser: argparse.ArgumentParser) -> None:
    options.add_address(parser)
    parser.add_argument('event', nargs='*', type=options.name, metavar='EVENT', help='print these only (every one)')
    options.add_raw(parser, 'bytes in place of events: what comes is copied to stdout')
    options.add_timeout(parser, None, 'end with exit code 3 when nothing has come for so long')
    options.add_verbose(parser)
    options.add_connection(parser, has_sync=True)


def _emit(parser: argparse.ArgumentParser) -> None:
    options.add_address(parser)
    parser.add_argument('type', metavar='TYPE', type=options.name, help='what the event is called')
    parser.add_argument(
        'json', nargs='?', metavar='JSON', type=options.text, help='its data ({}); -: an event for each line of stdin'
    )
    options.add_raw(parser, 'bytes in place of events: emit --raw ADDRESS TEXT, or - to copy stdin')
    options.add_timeout(parser, _WAIT_SECONDS, 'how long to wait for a connection, and for a server that takes nothing')
    options.add_verbose(parser)
    options.add_connection(parser, has_sync=True)


def _request(parser: argparse.ArgumentParser) -> None:
    options.add_address(parser)
    parser.add_argument('type', metavar='TYPE', type=options.name, help='what the event is called')
    parser.add_argument(
        'json', nargs='?', metavar='JSON', type=options.text, help='its data ({}); -: a request for each line of stdin'
    )
    parser.add_argument('--reply', metavar='TYPE', type=options.name, help='what the answer is called (as the request)')
    options.add_timeout(parser, _WAIT_SECONDS, 'how long to wait for the answer')
    options.add_verbose(parser)
    options.add_connection(parser, has_sync=True)


def _call(parser: argparse.ArgumentParser) -> None:
    options.add_address(parser)
    parser.add_argument('method', metavar='METHOD', type=options.name, help='what the method is called')
    parser.add_argument(
        'json', nargs='*', metavar='JSON', type=options.text, help='parameters: JSON for each, or NAME=JSON for each'
    )
    options.add_timeout(parser, _WAIT_SECONDS, 'how long to wait for the result')
    options.add_verbose(parser)
    options.add_connection(parser, has_sync=True)


def _describe(parser: argparse.ArgumentParser) -> None:
    options.add_address(parser)
    options.add_timeout(parser, _WAIT_SECONDS, 'how long to wait for the answers')
    options.add_verbose(parser)
    options.add_connection(parser)


def _bench(parser: argparse.ArgumentParser) -> None:
    options.add_address(parser, nargs='?')
    parser.add_argument(
        '--transport', choices=('unix', 'tcp'), default='unix', help='without an ADDRESS: how to reach our own server (unix)'
    )
    parser.add_argument(
        '--seconds', type=options.positive_seconds, default=1.0, help='how long each of the three parts takes (1)'
    )
    parser.add_argument('--size', metavar='BYTES', type=options.count, default=64, help='length of the data, a string (64)')
    parser.add_argument(
        '--in-flight', metavar='N', type=options.positive, default=64, help='unanswered at a time, in the second part (64)'
    )
    parser.add_argument(
        '--type', metavar='TYPE', type=options.name, default='message', help="with an ADDRESS: what it answers ('message')"
    )
    parser.add_argument('--json', action='store_true', help='the figures as a line of JSON')
    options.add_timeout(parser, _WAIT_SECONDS, 'how long to wait for an answer')
    options.add_verbose(parser)
    options.add_connection(parser)


COMMANDS: Dict[str, Command] = {
    'serve': Command(
        'ADDRESS [--echo] [options]',
        'print what clients emit, broadcast what is typed',
        'Be a server. Each event of a client is printed as a line of JSON: its type, its data, and whom it is from (an '
        "address of the network, or the client's process id). Each line of stdin is broadcast to all clients: TYPE, TYPE "
        'JSON, TYPE and text, or an object as they are printed. It goes on at the end of stdin, until Ctrl-C or SIGTERM.',
        """
        nodeipc serve world                        at app.world, in the directory of local sockets
        nodeipc serve tcp://127.0.0.1:0 --echo     at any free port; stderr tells which
        nodeipc serve world | jq 'select(.type == "alarm")'
        while sleep 60; do echo "time $(date +%s)"; done | nodeipc serve world
        nodeipc serve tls://0.0.0.0:8000 --tls-cert world.pem --tls-key world.key --tls-ca ca.pem
        """,
        _serve,
        'serving',
        follows_output=True,
    ),
    'listen': Command(
        'ADDRESS [EVENT ...] [options]',
        'print what a server emits',
        'Be a client that prints events, each as a line of JSON with its type and data, at once. When the server is not '
        'there, or not any more, it waits for it to come back. Ends with Ctrl-C, SIGTERM, --timeout, or when nobody reads '
        'its output any more.',
        """
        nodeipc listen world
        nodeipc listen world news weather | jq .data
        nodeipc listen world news --timeout 60 | head -1     the next one, if it comes within a minute
        nodeipc listen --raw tcp://127.0.0.1:8000 > captured
        """,
        _listen,
        'commands',
        follows_output=True,
    ),
    'emit': Command(
        'ADDRESS TYPE [JSON|-] [options]',
        'emit an event, or one for each line of stdin',
        'Emit to a server. Returns when everything is delivered. With - each line of stdin is a JSON value, emitted as soon '
        'as it comes; empty lines are skipped, and a line that is not JSON ends it, after those before it are delivered.',
        """
        nodeipc emit world message '"hello"'
        nodeipc emit world reading '{"degrees": 21.5}'
        nodeipc emit world refresh                           without data
        sensor | nodeipc emit world reading - --timeout inf  through outages, however long
        printf '\\1\\2' | nodeipc emit --raw tcp://127.0.0.1:8000 -
        """,
        _emit,
        'commands',
    ),
    'request': Command(
        'ADDRESS TYPE [JSON|-] [options]',
        'emit an event and print the data of the answer',
        'Emit an event, wait for the next one of the same type, or of that of --reply, and print its data as a line of '
        'JSON. With - each line of stdin is a request, and each line of stdout its answer.',
        """
        nodeipc request world message '"hello"'
        nodeipc request world square - < numbers
        nodeipc request world get.time --reply time --timeout 2
        """,
        _request,
        'commands',
    ),
    'call': Command(
        'ADDRESS METHOD [JSON ... | NAME=JSON ...] [options]',
        'call a method and print its result',
        'Call a method by JSON-RPC 2.0 in rpc events and print its result as a line of JSON. An error of the method goes to '
        'stderr with its code, and the exit code is 1.',
        """
        nodeipc call world add 1 2
        nodeipc call world greet name='"Ada"' times=3
        """,
        _call,
        'commands',
    ),
    'describe': Command(
        'ADDRESS [options]',
        'ask a server which events it knows',
        'Ask a server which events it listens for and broadcasts (get.events.listening, get.events.broadcasting), and print '
        'that; as a line of JSON unless stdout is a terminal. nodeipc servers answer with what is in their define; node-ipc '
        'servers if they were programmed to.',
        """
        nodeipc describe world
        nodeipc describe world | jq '.listening | keys'
        """,
        _describe,
        'commands',
    ),
    'demo': Command(
        '',
        'show a server and a client talking',
        'Start a server process and a client process, over a Unix socket, TCP, TLS and UDP, and show what they say to each '
        'other and how long a round trip takes.',
        '',
        lambda parser: None,
        'demo',
    ),
    'bench': Command(
        '[ADDRESS] [options]',
        'measure round trips and rates',
        'Measure how long round trips take one at a time, how many there are in a second with many in flight, and how '
        'many messages go one way; with a server process of its own, or with a server at ADDRESS that answers each event '
        'with one of the same type.',
        """
        nodeipc bench                              over a Unix socket
        nodeipc bench --transport tcp --size 10000
        nodeipc serve world --echo > /dev/null &   and
        nodeipc bench world
        """,
        _bench,
        'benchmark',
    ),
}
