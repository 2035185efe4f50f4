"""Who checks what the proxy's connections deliver: messages that are numbered and sealed, and a witness at each end.

`Ledger` numbers what one end emits. `Witness` listens at the other, and `check` says whether the promises were kept: on each
connection every message that was emitted on it arrived once, whole and in order, up to one that the loss of the connection
took; nothing came before `connect` or after the end; nothing came on two connections.
"""

from __future__ import annotations

import functools
import json
import tempfile
import threading
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple, Union

import pytest

import nodeipc

from ..certificates import Certificates
from ..conftest import Log, eventually
from .proxy import Link, Proxy

KINDS = ['unix', 'tcp', 'tls']

SECONDS = 20.0

# As long as each other, so that frames are.
_FIRST = 10_000

Message = List[Any]


def seal(body: Any) -> str:
    """What tells a damaged body from a whole one."""
    return format(zlib.crc32(json.dumps(body).encode()), '08x')


class Ledger:
    """What is emitted in one direction; for one thread at a time."""

    def __init__(self) -> None:
        self.next = _FIRST
        self.refused: Set[int] = set()  # emit raised: they must not arrive

    def message(self, body: Any = None) -> Message:
        """Return the data of the next message."""
        number = self.next
        self.next += 1
        return [number, seal(body), body]

    def emit(self, emit: Callable[..., Any], body: Any = None, type: str = 'n', **options: Any) -> None:
        """Emit the next message, and note it if that raises."""
        message = self.message(body)
        try:
            emit(type, message, **options)
        except BaseException:
            self.refused.add(message[0])
            raise

    def expected(self, first: int, last: int) -> List[int]:
        """The numbers from `first` to `last` that emit accepted."""
        return [number for number in range(first, last + 1) if number not in self.refused]


class Witness(Log):
    """Handles every event of a client or of a server: ``endpoint.on('*', witness)``. `type` is that of sealed messages."""

    def __init__(self, ledger: Ledger, type: str = 'n') -> None:
        super().__init__()
        self.ledger = ledger
        self.type = type
        self.runs: List[List[int]] = []  # what came, connection by connection
        self.wrong: List[str] = []
        self._lock = threading.Lock()  # a server's handlers run in parallel
        self._standing: Dict[Optional[nodeipc.Socket], List[int]] = {}

    def __call__(self, *event: Any) -> None:
        # A server's events name their socket, a client's need none.
        socket = next((argument for argument in event[1:] if isinstance(argument, nodeipc.Socket)), None)
        with self._lock:
            if event[0] == 'connect':
                self._expect(socket not in self._standing, 'connected twice')
                self._standing[socket] = []
                self.runs.append(self._standing[socket])
            elif event[0] in ('disconnect', 'socket.disconnected'):
                self._expect(self._standing.pop(socket, None) is not None, f'{event[0]} of what did not stand')
            elif event[0] == self.type:
                self._message(socket, event[1])
        super().__call__(*event)

    @property
    def lost(self) -> int:
        """How many messages did not arrive while their connection stood, came twice or were damaged."""
        numbers = self._numbers()
        missing = sum(len(set(self.ledger.expected(run[0], run[-1])) - set(run)) for run in self.runs if run)
        return missing + len(numbers) - len(set(numbers)) + len(self.wrong)

    def got(self, message: Message) -> bool:
        """Whether it has arrived."""
        return any(run and message[0] in run[-50:] for run in list(self.runs))

    def wait_number(self, number: int) -> None:
        """Wait until the message with this number has arrived."""
        eventually(lambda: any(run and run[-1] >= number for run in list(self.runs)), SECONDS)

    def wait_last(self) -> None:
        """Wait for the last message that was emitted."""
        self.wait_number(self.ledger.expected(_FIRST, self.ledger.next - 1)[-1])

    def check(self, whole_from: Optional[int] = None) -> int:
        """Assert that everything is as it should be; return how many messages have arrived.

        `whole_from` is the number of the first message of those that were emitted when no connection was lost any more, and
        that all have to be here.
        """
        assert not self.wrong, self.wrong[:10]
        runs = sorted(run for run in self.runs if run)  # a server may handle the end of one after the beginning of the next
        for run in runs:
            assert run == self.ledger.expected(run[0], run[-1]), f'missing, twice or out of order: {run[:500]}'
        numbers = self._numbers()
        assert all(one[-1] < other[0] for one, other in zip(runs, runs[1:])), 'on two connections'
        assert not self.ledger.refused.intersection(numbers), 'emit had raised for what came'
        if whole_from is not None:
            assert set(self.ledger.expected(whole_from, self.ledger.next - 1)) <= set(numbers)
        assert self.lost == 0
        return len(numbers)

    def check_all(self) -> int:
        """The same, and that nothing is missing at all."""
        return self.check(_FIRST)

    def errors(self) -> List[Any]:
        return [arguments[0] for arguments in self.of('error')]

    def _numbers(self) -> List[int]:
        return [number for run in self.runs for number in run]

    def _message(self, socket: Optional[nodeipc.Socket], data: Any) -> None:
        if not (isinstance(data, list) and len(data) == 3 and isinstance(data[0], int) and data[1] == seal(data[2])):
            self.wrong.append(f'damaged: {str(data)[:200]}')
        elif socket in self._standing:
            self._standing[socket].append(data[0])
        else:
            self.wrong.append(f'{data[0]} came while there was no connection')

    def _expect(self, right: bool, otherwise: str) -> None:
        if not right:
            self.wrong.append(otherwise)


class World:
    """A server, the proxy before it, and clients that come through it: over Unix, TCP or TLS, as `kind` says.

    `up` is what clients say, `down` what the server says. The server answers ``hello`` with ``hello``.
    """

    def __init__(
        self,
        make: Callable[..., nodeipc.IPC],
        kind: str,
        certificates: Callable[[], Certificates],
        directory: Path,
        on_link: Optional[Callable[[Link], Any]] = None,
        **settings: Any,
    ) -> None:
        self.kind = kind
        self.up, self.down = Ledger(), Ledger()
        self.heard = Witness(self.up)  # by the server
        self._make = make
        self._certificates = certificates
        self._hellos = 0
        tls = {'tls': certificates().server()} if kind == 'tls' else {}
        self.ipc = make(**{**tls, **settings})
        directory = Path(tempfile.mkdtemp(dir=str(directory)))  # a test may have several
        self.server = self.ipc.serve(str(directory / 'server')) if kind == 'unix' else self.ipc.serve_net('127.0.0.1', 0)
        self.server.on('*', self.heard)
        self.server.on('hello', lambda data, socket: socket.emit('hello', data))
        self.server.start()
        path = str(directory / 'proxy') if kind == 'unix' else None
        self.proxy = Proxy(self.server.address, path, on_link)

    def close(self) -> None:
        """End all; the proxy first, because a goodbye through it may take its time."""
        self.proxy.close()
        self.ipc.close(SECONDS)

    def connect(self, witness: Optional[Log] = None, **settings: Any) -> nodeipc.Client:
        """A client in an instance of its own; `witness` sees all of its events."""
        tls = {'tls': self._certificates().client()} if self.kind == 'tls' else {}
        ipc = self._make(**{'id': 'client', 'retry': 1, **tls, **settings})
        address: Union[Tuple[str], Any] = (self.proxy.address,) if self.kind == 'unix' else self.proxy.address
        connect = ipc.connect_to if self.kind == 'unix' else ipc.connect_to_net
        return connect('world', *address, lambda client: witness and client.on('*', witness))

    def pair(self, **settings: Any) -> Tuple[nodeipc.Client, Witness]:
        """A client and the witness of what it hears."""
        witness = Witness(self.down)
        return self.connect(witness, **settings), witness

    def greet(self, client: nodeipc.Client, log: Log) -> Tuple[Link, nodeipc.Socket]:
        """Wait until all that was under way has arrived on both sides; return the link and the server's end of it."""
        self._hellos += 1
        me, before = self._hellos, len(log.of('disconnect'))
        client.emit('hello', me, timeout=SECONDS)
        # It may have been lost with its connection: then once more.
        eventually(lambda: (me,) in log.of('hello')[-5:] or len(log.of('disconnect')) > before, SECONDS)
        if (me,) not in log.of('hello')[-5:]:
            return self.greet(client, log)
        socket = next(socket for data, socket in reversed(self.heard.of('hello')) if data == me)
        return self.proxy.links[-1], socket


Worlds = Callable[..., World]


def make_worlds(make: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Worlds]:
    """A fixture: make `World`s, which end with the test."""
    made: List[World] = []

    def make_world(kind: str, **options: Any) -> World:
        made.append(World(make, kind, lambda: request.getfixturevalue('certificates'), tmp_path, **options))
        return made[-1]

    yield make_world
    for world in made:
        world.close()


def measured(way: Any) -> int:
    """How many bytes have passed, now that everything is quiet: the proxy's own thread counts them after it has sent."""
    found: List[int] = []
    way.link.proxy.do(lambda: found.append(way.passed))
    return found[0]


def in_thread(function: Callable[..., Any], *arguments: Any, **options: Any) -> Outcome:
    """Run it in a thread of its own."""
    return Outcome(functools.partial(function, *arguments, **options))


class Outcome:
    """What becomes of a call that may block."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._result: List[Any] = []
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._result.append(call())
        except BaseException as error:
            self._result.append(error)

    @property
    def is_there(self) -> bool:
        return not self._thread.is_alive()

    def get(self) -> Any:
        """Wait for it; return what the call returned, or the exception that it raised."""
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), f'not within {SECONDS} s'
        return self._result[0]
