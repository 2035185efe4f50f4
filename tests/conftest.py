"""What every test leaves behind is counted: threads, descriptors and socket files before and after must be the same."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Set, Tuple

import pytest

import nodeipc

from . import platforms
from .certificates import Certificates

# Programs, each of which imports what the others need.
collect_ignore_glob = ['benchmarks/peers/*']

_SECONDS = 20.0

# What takes longer hangs: the run ends with the stacks of all threads. Of the quarter of an hour that CI has.
_HANG_SECONDS = 240.0

platforms.prepare()

# Started in the background (make test &, nohup make test), we and our children would ignore signals that tests send.
for _signal, _default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _default)


def pytest_configure(config: pytest.Config) -> None:
    global _stderr
    with config.pluginmanager.getplugin('capturemanager').global_and_fixture_disabled():  # or nobody would see the stacks
        _stderr = os.dup(2)


_stderr = 2


def eventually(predicate: Callable[[], Any], timeout: float = _SECONDS) -> Any:
    """Wait until `predicate` is true and return its value."""
    end = time.monotonic() + timeout
    pause = 0.0001  # most wait for what takes less than a millisecond, thousands of times
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f'not within {timeout} s')
        time.sleep(pause)
        pause = min(2 * pause, 0.002)


class Log:
    """Events in the order in which handlers got them: ``emitter.on('*', log)``."""

    def __init__(self) -> None:
        self.events: List[Tuple[Any, ...]] = []

    def __call__(self, *event: Any) -> None:
        self.events.append(event)

    def of(self, type: str) -> List[Tuple[Any, ...]]:
        return [event[1:] for event in list(self.events) if event[0] == type]

    def wait(self, type: str, count: int = 1, timeout: float = _SECONDS) -> List[Tuple[Any, ...]]:
        try:
            eventually(lambda: len(self.of(type)) >= count, timeout)
        except AssertionError:
            raise AssertionError(f'{count} {type!r} expected, got {str(self.events)[:2000]}') from None
        return self.of(type)


def _descriptors() -> Set[str]:
    found = set()
    for name in os.listdir('/proc/self/fd') if os.path.isdir('/proc/self/fd') else ():
        try:
            found.add(f'{name} {os.readlink(f"/proc/self/fd/{name}")}')
        except OSError:
            pass
    return found


@pytest.fixture(scope='session', autouse=True)
def compiled_once() -> Iterator[None]:
    """Interpreters that tests start, hundreds of them, compile what they import once, and outside the checkout.

    PYTHONDONTWRITEBYTECODE, which images of containers set, would have each of them compile everything again.
    """
    directory = tempfile.mkdtemp(prefix='test-pycache-')
    os.chmod(directory, 0o755)  # for other users, too: what they cannot read they would compile
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv('PYTHONDONTWRITEBYTECODE', raising=False)
        patch.setenv('PYTHONPYCACHEPREFIX', directory)
        yield
    shutil.rmtree(directory, ignore_errors=True)  # a child that was killed may have left one that still writes


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a socket root of its own and leaves no thread, descriptor or socket file."""
    monkeypatch.setenv('XDG_RUNTIME_DIR', str(tmp_path))
    monkeypatch.delenv('NO_COLOR', raising=False)
    threads = set(threading.enumerate())
    descriptors = _descriptors()
    faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True, file=_stderr)
    yield
    nodeipc.ipc.close(10)
    eventually(lambda: set(threading.enumerate()) <= threads, 10)
    eventually(lambda: _descriptors() <= descriptors, 10)
    assert not [path for path in tmp_path.rglob('*') if path.is_socket()]
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def make() -> Iterator[Callable[..., nodeipc.IPC]]:
    """Make instances that are closed after the test."""
    made: List[nodeipc.IPC] = []

    def make_instance(**settings: Any) -> nodeipc.IPC:
        settings.setdefault('id', 'world')
        settings.setdefault('retry', 20)
        instance = nodeipc.IPC(**settings)
        made.append(instance)
        return instance

    yield make_instance
    for instance in reversed(made):
        instance.close(10)


@pytest.fixture(scope='session')
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Keys and certificates of this run."""
    try:
        return Certificates(tmp_path_factory.mktemp('certificates'))
    except LookupError as reason:
        pytest.skip(str(reason))


@pytest.fixture(params=['unix', 'tcp'])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Pair:
    """A server and what connects to it, over Unix or TCP."""

    def __init__(self, make: Callable[..., nodeipc.IPC], transport: str, **settings: Any) -> None:
        self.make = make
        self.transport = transport
        self.ipc = make(**settings)
        self.server = self.ipc.serve() if transport == 'unix' else self.ipc.serve_net('127.0.0.1', 0)

    def start(self) -> Pair:
        self.server.start()
        return self

    def connect(self, log: Optional[Log] = None, **settings: Any) -> nodeipc.Client:
        """A client in an instance of its own, whose events all go to `log`."""
        ipc = self.make(id='client', **settings)
        address = (self.server.address,) if self.transport == 'unix' else self.server.address
        connect = ipc.connect_to if self.transport == 'unix' else ipc.connect_to_net
        return connect('world', *address, lambda client: log and client.on('*', log))

    def raw(self) -> Any:
        """A connected plain socket."""
        import socket

        sock = socket.socket(socket.AF_UNIX if self.transport == 'unix' else socket.AF_INET)
        sock.settimeout(_SECONDS)
        sock.connect(self.server.address)
        return sock


@pytest.fixture
def pair(make: Callable[..., nodeipc.IPC], transport: str) -> Callable[..., Pair]:
    """Make a server with handlers to add, then ``start()``."""

    def make_pair(**settings: Any) -> Pair:
        return Pair(make, transport, **settings)

    return make_pair
