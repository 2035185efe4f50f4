"""The commands that are clients: each is a function from its parsed arguments and a session to an exit code.

They are written as users' scripts would be, with the public API. `usage` says what arguments there are, `cli` and
`supervisor` what becomes of signals and of what is raised here.
"""

from __future__ import annotations

import json
import re
import shlex
from argparse import Namespace
from typing import Any, Dict, Iterator, List, Optional, Type

from . import connect
from .client import Client
from .errors import EmitTimeout, IPCError, NotConnectedError, ProtocolError, RemoteError, RequestTimeout
from .eventqueue import EventIterator
from .jsonlines import MAX_LINE_BYTES, Line, chunks, compact, lines, parse, parse_line, printable
from .options import UsageError, settings
from .supervisor import CommandError, Session

# NAME=JSON. A JSON text cannot begin so.
_NAMED = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)=(.*)', re.DOTALL)

# What is left to say when an answer is there.
_GOODBYE_SECONDS = 1.0


def listen(arguments: Namespace, session: Session) -> int:
    """Print the events of a server, until somebody ends it or nothing has come for too long."""
    if arguments.address.startswith('udp:'):
        raise UsageError('a UDP server emits to those whom it has heard, and listen says nothing; use request, or serve')
    names = () if arguments.raw else arguments.event
    started: List[EventIterator[Client]] = []

    def start(client: Client) -> None:  # before it connects
        _tell_of_outages(client, session)
        started.append(client.events(*names, timeout=arguments.timeout))

    client = session.add(connect(arguments.address, start, **settings(arguments, *arguments.event)))
    with client, started.pop() as events:
        while True:
            try:
                for event in events:
                    if arguments.raw:
                        session.output.write(event.data)
                    else:
                        session.print({'type': event.type, 'data': event.data})
                return 0
            except RequestTimeout:
                raise RequestTimeout(f'{client}: nothing came for {arguments.timeout:g} s') from None
            except NotConnectedError:
                if client.wait(0):  # there will not be another connection
                    raise


def emit(arguments: Namespace, session: Session) -> int:
    """Emit one event, or one for each line of stdin, and see that all was delivered."""
    if arguments.raw and arguments.json is not None:
        raise UsageError('--raw sends bytes and no events: emit --raw ADDRESS TEXT, or - in its place for stdin')
    if not arguments.raw and arguments.type == '-':
        raise UsageError('TYPE is missing; - goes after it: emit ADDRESS TYPE -')
    data = _data(arguments.json)  # what is wrong with it is said before anything is opened
    lost: List[Exception] = []
    with _Connected(arguments, session, arguments.type, goodbye=None) as client:
        if arguments.raw:
            for chunk in chunks() if arguments.type == '-' else [arguments.type.encode()]:
                client.emit(chunk)
        elif arguments.json != '-':
            _emit(client, arguments.type, data)
        else:
            for together in _input_lines():
                with client.batch():  # what comes together leaves together
                    for line in together:
                        _emit(client, arguments.type, _of_line(line), f'line {line.number}: ')
        _flush(client, arguments.timeout)
        client.on('error', lost.append)
    if any(isinstance(error, IPCError) for error in lost):
        raise CommandError(f'not all may have been delivered: {lost[0]}')
    return 0


def _emit(client: Client, type: str, data: Any, where: str = '') -> None:
    try:
        client.emit(type, data)
    except (ValueError, ProtocolError) as error:
        raise CommandError(f'{where}{error}') from error


def _flush(client: Client, timeout: Optional[float]) -> None:
    """Wait until all is written, however long that takes, as long as there is some progress in each `timeout`."""
    while True:
        pending = client.stats()['pending_bytes']
        try:
            return client.flush(timeout)
        except EmitTimeout:
            if client.stats()['pending_bytes'] >= pending:
                raise


def request(arguments: Namespace, session: Session) -> int:
    """Ask and print the answer; with ``-``, for each line of stdin."""
    argument = _data(arguments.json)
    with _Connected(arguments, session, arguments.type, arguments.reply or arguments.type) as client:
        if arguments.json != '-':
            _ask(client, arguments, session, argument)
        else:
            for together in _input_lines():
                for line in together:
                    _ask(client, arguments, session, _of_line(line), f'line {line.number}: ')
    return 0


def _ask(client: Client, arguments: Namespace, session: Session, data: Any, where: str = '') -> None:
    try:
        answer = client.request(arguments.type, data, reply=arguments.reply, timeout=arguments.timeout)
    except (ValueError, ProtocolError) as error:
        raise CommandError(f'{where}{error}') from error
    session.print(answer)


def call(arguments: Namespace, session: Session) -> int:
    """Call a method and print its result."""
    positional: List[Any] = []
    named: Dict[str, Any] = {}
    for argument in arguments.json:
        match = _NAMED.match(argument)
        if match is None:
            positional.append(_json(argument))
        elif match.group(1) in named:
            raise UsageError(f'{match.group(1)}= is given twice')
        else:
            named[match.group(1)] = _json(match.group(2))
    if positional and named:
        raise UsageError('the parameters have either all a NAME= or none')
    if 'timeout' in named:
        raise UsageError('a parameter cannot be called timeout; use --timeout for that of the call')
    with _Connected(arguments, session, 'rpc') as client:
        try:
            result = client.call(arguments.method, *positional, timeout=arguments.timeout, **named)
        except RemoteError as error:
            more = '' if error.data is None else f': {compact(error.data)}'
            raise CommandError(f'{error}{more}') from error
        except (ValueError, ProtocolError) as error:
            raise CommandError(str(error)) from error
        session.print(result)
    return 0


def describe(arguments: Namespace, session: Session) -> int:
    """Print what a server says of its events."""
    answers = {'events.listening': 'listening', 'events.broadcasting': 'broadcasting'}
    questions = [f'get.{answer}' for answer in answers]
    described: Dict[str, Any] = {'id': None, 'listening': None, 'broadcasting': None}
    with _Connected(arguments, session, *questions, *answers) as client:
        events = client.events(*answers, timeout=arguments.timeout)
        for question in questions:
            client.emit(question)
        try:
            while None in (described['listening'], described['broadcasting']):
                type, data, _ = next(events)
                if not isinstance(data, dict):
                    raise CommandError(f'{client}: {type!r} came with {compact(data)[:100]}, which describes nothing')
                described['id'] = data.get('id', described['id'])
                described[answers[type]] = data.get('events', {})
        except RequestTimeout as error:
            if any(value is not None for value in described.values()):
                _print_described(described, session)
            why = 'plain node-ipc servers describe their events only if they were programmed to'
            raise RequestTimeout(f'{error}; {why}') from None
        _print_described(described, session)
    return 0


def _print_described(described: Dict[str, Any], session: Session) -> None:
    if session.output.is_terminal:
        session.write(_for_people(described))
    else:
        session.print(described)


def _for_people(described: Dict[str, Any]) -> str:
    who = described['id'] if isinstance(described['id'], str) and described['id'].isprintable() else 'the server'
    text = ''
    for kind, does in (('listening', 'listens for'), ('broadcasting', 'broadcasts')):
        events = described[kind]
        if not events or not isinstance(events, dict):
            text += f'{who} {does} {"nothing" if isinstance(events, dict) else "something"} that it tells of\n'
            continue
        shown = {printable(compact(name)[1:-1]): value for name, value in events.items()}
        width = min(max(map(len, shown)), 30)
        text += f'{who} {does}\n'
        for name, value in shown.items():
            text += f'    {name:{width}}  {printable(compact(value)[1:-1] if isinstance(value, str) else compact(value))}\n'
    return text


class _Connected:
    """A client, which says goodbye in so many seconds. `names` are the events that the command needs.

    Not a generator with contextlib's decorator, whose frames between ours `reentry` would take for an interruption.
    """

    def __init__(
        self, arguments: Namespace, session: Session, *names: str, goodbye: Optional[float] = _GOODBYE_SECONDS
    ) -> None:
        self._client = session.add(connect(arguments.address, **settings(arguments, *names)))
        self._goodbye = goodbye

    def __enter__(self) -> Client:
        return self._client

    def __exit__(self, kind: Optional[Type[BaseException]], *others: Any) -> None:
        # Who does not answer does not say goodbye either.
        self._client.disconnect(0 if kind is not None and issubclass(kind, TimeoutError) else self._goodbye)


def _tell_of_outages(client: Client, session: Session) -> None:
    """Once for each, for whoever waits for events of a server that is not there: the address may be wrong."""
    told = False

    @client.on('error')
    def error(error: Exception) -> None:
        nonlocal told
        if not (told or client.connected):
            told = True
            session.tell(f'{error}; trying again')

    @client.on('connect')
    def connected() -> None:
        nonlocal told
        if told:
            told = False
            session.tell('connected')


def _data(argument: Optional[str]) -> Any:
    """Return the data that an argument says; that of ``-`` comes later."""
    return {} if argument in (None, '-') else _json(str(argument))


def _json(argument: str) -> Any:
    try:
        return parse(argument)
    except ValueError as error:
        quoted = shlex.quote(json.dumps(argument, ensure_ascii=False))
        why = f'a string has the quotes of JSON inside those of the shell: {quoted}'
        raise UsageError(f'{argument!r} is not JSON ({error}); {why}') from None


def _input_lines() -> Iterator[List[Line]]:
    """The lines of stdin that have something in them, those that come together in one list."""
    try:
        for together in lines(chunks(), MAX_LINE_BYTES):
            yield [line for line in together if line.content.strip()]
    except ValueError as error:
        raise CommandError(str(error)) from None


def _of_line(line: Line) -> Any:
    try:
        return parse_line(line)
    except ValueError as error:
        raise CommandError(str(error)) from None
