"""The options that commands share: what they are called, and what settings they make. Values only; nothing is opened."""

from __future__ import annotations

import argparse
import re
from typing import Any, Dict, Optional

# Of --delimiter: what a shell can hardly write.
_ESCAPE = re.compile(r'\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.?)', re.DOTALL)
_ESCAPED = {'n': '\n', 'r': '\r', 't': '\t', 'f': '\f', '0': '\0', '\\': '\\'}

_TLS_OPTIONS = {
    'tls_key': 'private',
    'tls_cert': 'public',
    'tls_ca': 'trusted_connections',
    'tls_server_name': 'server_name',
}


class UsageError(Exception):
    """Arguments that do not fit together, as the command finds out."""


def text(argument: str) -> str:
    """An argument that goes onto the wire."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f'{argument!r} is not UTF-8') from None
    return argument


def name(argument: str) -> str:
    """An argument that is the name of an event or a method."""
    if not argument:
        raise argparse.ArgumentTypeError('a name cannot be empty')
    return text(argument)


def seconds(argument: str) -> Optional[float]:
    """A number of seconds; None for ``inf``."""
    try:
        value = float(argument)
    except ValueError:
        value = -1
    if not value >= 0:
        raise argparse.ArgumentTypeError(f'{argument!r} is not a number of seconds, 0 or more, or inf')
    return None if value == float('inf') else value


def positive_seconds(argument: str) -> float:
    """A number of seconds that is above 0 and ends."""
    value = seconds(argument)
    if not value:
        raise argparse.ArgumentTypeError(f'{argument!r} is not a number of seconds above 0')
    return value


def count(argument: str) -> int:
    """A whole number, 0 or more."""
    if not (argument.isascii() and argument.isdigit() and len(argument) < 10):
        raise argparse.ArgumentTypeError(f'{argument!r} is not a whole number, 0 or more')
    return int(argument)


def positive(argument: str) -> int:
    """A whole number, 1 or more."""
    if not count(argument):
        raise argparse.ArgumentTypeError(f'{argument!r} is not a whole number, 1 or more')
    return int(argument)


def delimiter(argument: str) -> str:
    """The characters that end a message, with escapes.

    >>> delimiter(r'\\r\\n')
    '\\r\\n'
    """

    def character(match: Any) -> str:
        escape = match.group(1)
        if len(escape) > 1:
            return chr(int(escape[1:], 16))
        if escape not in _ESCAPED:
            raise argparse.ArgumentTypeError(
                rf'there is no escape \{escape}; there are \n \r \t \f \0 \\ \xHH and \uHHHH, and \\ is a backslash'
            )
        return _ESCAPED[escape]

    characters = text(_ESCAPE.sub(character, argument))
    if not characters:
        raise argparse.ArgumentTypeError('a delimiter cannot be empty')
    return characters


def add_address(parser: argparse.ArgumentParser, **more: Any) -> None:
    """ADDRESS, the first argument."""
    forms = 'an id (world), a path (it has a /), unix:PATH, tcp://host:port, tls://host:port, udp://host:port'
    parser.add_argument('address', metavar='ADDRESS', help=forms, **more)


def add_timeout(parser: argparse.ArgumentParser, default: Optional[float], meaning: str) -> None:
    """--timeout."""
    unless = 'for ever' if default is None else f'{default:g}'
    parser.add_argument(
        '--timeout', metavar='SECONDS', type=seconds, default=default, help=f'{meaning} ({unless}; inf: for ever)'
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """-v."""
    parser.add_argument(
        '-v', '--verbose', action='count', default=0, help='say on stderr what happens; -vv: everything'
    )


def add_raw(parser: argparse.ArgumentParser, meaning: str) -> None:
    """--raw."""
    parser.add_argument('--raw', action='store_true', help=meaning)


def add_connection(parser: argparse.ArgumentParser, *, is_server: bool = False, has_sync: bool = False) -> None:
    """What says how to find the other end and how to talk to it."""
    wire = parser.add_argument_group('the wire')
    wire.add_argument(
        '--delimiter', metavar='TEXT', type=delimiter, help=r"what ends a message, with escapes such as '\n' ('\f')"
    )
    wire.add_argument(
        '--profile',
        choices=('fast', 'guarded', 'assured'),
        default='fast',
        help='what messages have to be like (fast: JSON; guarded: for peers that are not trusted; assured: TLS or the '
        'secured socket root, and --allow)',
    )
    wire.add_argument(
        '--allow',
        metavar='EVENT',
        type=name,
        action='append',
        default=[],
        help='assured: an event that may be sent or received, besides those that are named anyway; can be repeated',
    )
    if has_sync:
        wire.add_argument('--sync', action='store_true', help='send a message when the last one was answered')
    place = parser.add_argument_group('the place')
    place.add_argument('--id', type=name, help='what we call ourselves (the host name)')
    place.add_argument('--appspace', type=text, help="what the socket files of ids begin with ('app.')")
    place.add_argument(
        '--socket-root', metavar='DIR', help='where the socket files of ids are ($XDG_RUNTIME_DIR/node-ipc/)'
    )
    tls = parser.add_argument_group('TLS, for tls:// addresses; files in PEM')
    needed = '' if is_server else ', if the server wants to see one'
    tls.add_argument('--tls-cert', metavar='FILE', help=f'our certificate{needed}')
    tls.add_argument('--tls-key', metavar='FILE', help='its key')
    if is_server:
        tls.add_argument('--tls-ca', metavar='FILE', help='ask clients for certificates that this authority has signed')
        return
    tls.add_argument('--tls-ca', metavar='FILE', help="whom to trust (the system's authorities)")
    tls.add_argument('--tls-server-name', metavar='NAME', type=name, help='what its certificate is for (the host)')
    tls.add_argument('--tls-insecure', action='store_true', help='trust anybody, who may read and change everything')


def settings(arguments: argparse.Namespace, *names: str) -> Dict[str, Any]:
    """Return the fields of the config that the arguments ask for. `names` are the events that the command itself needs.

    Raises UsageError.
    """
    chosen: Dict[str, Any] = {'silent': True}
    for field in ('delimiter', 'id', 'appspace'):
        value = getattr(arguments, field)
        if value is not None:
            chosen[field] = value
    if arguments.socket_root is not None:
        chosen['socket_root'] = arguments.socket_root.rstrip('/') + '/'
    if getattr(arguments, 'sync', False):
        chosen['sync'] = True
    if hasattr(arguments, 'timeout'):
        chosen['emit_timeout'] = None if arguments.timeout is None else arguments.timeout * 1000
    chosen.update(_format(arguments, names))
    tls = _tls(arguments)
    if tls is not None:
        chosen['tls'] = tls
    return chosen


def _format(arguments: argparse.Namespace, names: Any) -> Dict[str, Any]:
    profile = arguments.profile
    if arguments.allow and profile != 'assured':
        raise UsageError('--allow is for --profile assured; the others let every event through')
    if getattr(arguments, 'raw', False):
        if profile != 'fast' or arguments.delimiter is not None or getattr(arguments, 'sync', False):
            raise UsageError('--raw has no messages, so --profile, --delimiter and --sync do not go with it')
        return {'parser': 'raw'}
    if profile == 'assured':
        if (arguments.address or '').startswith(('tcp:', 'udp:')):
            raise UsageError('--profile assured does not go over a network without TLS; use tls://host:port')
        allowed = sorted({*arguments.allow, *names})
        if not allowed:
            raise UsageError('--profile assured needs to know the events: --allow EVENT, for each')
        return {'parser': profile, 'allowed_events': allowed}
    return {'parser': profile}


def _tls(arguments: argparse.Namespace) -> Optional[Dict[str, Any]]:
    chosen = {
        field: getattr(arguments, option)
        for option, field in _TLS_OPTIONS.items()
        if getattr(arguments, option, None) is not None
    }
    if getattr(arguments, 'tls_insecure', False):
        chosen['reject_unauthorized'] = False
    if chosen and not (arguments.address or '').startswith('tls://'):
        raise UsageError('the --tls options are for an ADDRESS that says so: tls://host:port')
    return chosen or None
