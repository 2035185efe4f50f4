"""The command `serve`: a server whose clients are heard on stdout and spoken to on stdin.

Events are printed by the handlers, so that one client who does not take its echo, or who says a lot, keeps no other from
being heard; and a reader of stdout who is slow makes the clients wait.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from argparse import Namespace
from typing import Any, Iterator, Tuple

from . import serve as serve_at
from .address import readable
from .errors import IPCError, NotConnectedError
from .jsonlines import MAX_LINE_BYTES, STDIN, Line, OutputClosed, chunks, lines, parse, parse_line
from .log import logger
from .options import UsageError, settings
from .server import Socket
from .supervisor import Session

# In the background of a terminal it looks that often whether it was brought to the front, where one can type.
_BACKGROUND_SECONDS = 0.5


def serve(arguments: Namespace, session: Session) -> int:
    """Print the events of all clients and broadcast what is typed, until somebody ends it."""
    if arguments.address.startswith('tls:') and not (arguments.tls_cert and arguments.tls_key):
        raise UsageError('a TLS server needs a certificate and its key: --tls-cert FILE --tls-key FILE')
    server = session.add(serve_at(arguments.address, **settings(arguments)))

    @server.on('*')
    def heard(type: str, *about: Any) -> None:
        if len(about) == 2 and isinstance(about[1], Socket) and not isinstance(about[0], (Socket, Exception)):
            try:
                _print(arguments, session, type, *about)
            except (OutputClosed, OSError) as error:
                session.fail(error)
            else:
                _echo(arguments, type, *about)
        elif type in ('connect', 'socket.disconnected') and isinstance(about[0], Socket):
            logger.info('%s has %s', _who(about[0]), 'come' if type == 'connect' else 'gone')

    server.start()
    session.tell(f'listening at {_url(arguments.address, server.address)}')
    try:
        for event in _events(session, arguments.raw):
            try:
                server.broadcast(*event)
            except (ValueError, IPCError) as error:
                session.tell(f'not sent: {error}')
    except (OSError, ValueError) as error:
        session.tell(f'nothing more can be typed: {error}')
    server.wait()
    return 0


def _print(arguments: Namespace, session: Session, type: str, data: Any, socket: Socket) -> None:
    if arguments.raw:
        session.output.write(data)
    else:
        session.print({'type': type, 'data': data, 'from': _who(socket)})


def _echo(arguments: Namespace, type: str, data: Any, socket: Socket) -> None:
    if arguments.echo:
        try:
            socket.emit(*((data,) if arguments.raw else (type, data)))
        except NotConnectedError:
            pass  # it did not wait
        except (ValueError, IPCError, OSError) as error:
            logger.warning('no echo for %s: %s', _who(socket), error)


def _events(session: Session, raw: bool) -> Iterator[Tuple[Any, ...]]:
    """Yield what is typed, as `Server.broadcast` takes it."""
    if raw:
        for chunk in _keyboard():
            yield (chunk,)
        return
    for together in lines(_keyboard(), MAX_LINE_BYTES):
        for line in together:
            if line.content.strip():
                try:
                    yield _typed(line)
                except ValueError as error:
                    session.tell(f'not sent: {error}')


def _keyboard() -> Iterator[bytes]:
    """stdin, though it may be that of a terminal in whose background we are, which would stop us if we read from it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTIN])  # then it is an error instead
    while True:
        try:
            yield from chunks()
            return
        except OSError as error:
            if error.errno == errno.EBADF:  # it is closed
                return
            if error.errno != errno.EIO or not os.isatty(STDIN):
                raise
        time.sleep(_BACKGROUND_SECONDS)


def _typed(line: Line) -> Tuple[str, Any]:
    """Return the event that somebody typed: ``TYPE``, ``TYPE JSON``, ``TYPE text``, or as events are printed."""
    if line.content.lstrip().startswith(b'{'):
        event = parse_line(line)
        if not isinstance(event, dict) or not isinstance(event.get('type'), str):
            raise ValueError(f'line {line.number} needs a "type" that is a string')
        return event['type'], event.get('data', {})
    try:
        type, *rest = line.content.decode().strip().split(None, 1)
    except UnicodeDecodeError:
        raise ValueError(f'line {line.number} is not UTF-8') from None
    if not rest:
        return type, {}
    try:
        return type, parse(rest[0])
    except ValueError:
        return type, rest[0]


def _who(socket: Socket) -> str:
    """Who a peer is, as far as the system tells: an address of the network, or a process."""
    if isinstance(socket.address, tuple):
        return readable(socket.address)
    return f'pid {socket.peer.pid}' if socket.peer else 'somebody'


def _url(asked: str, address: Any) -> str:
    """Return where a server is as an ADDRESS, with the port that the system has chosen."""
    if isinstance(address, tuple):
        return f'{asked.partition("://")[0].lower()}://{readable(address)}'
    return 'unix:' + str(address).replace('\0', '@', 1)
