"""Descriptors, disks, threads and memory that run out and come back; floods of connections; clocks that jump.

Shown elsewhere: accepting and connecting without descriptors in test_resources.py and test_messaging.py, connections that
flood and say nothing in test_resources.py, a socket file that is removed without descriptors in test_permissions.py.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
from typing import Any, Callable, Iterator, List, Sequence

import pytest

import nodeipc
from nodeipc import wire

from ..conftest import Log, eventually
from ..platforms import needs_descriptors
from . import shortage_programs
from .stuck_running import Programs, findings, heard

SECONDS = 40
ADVICE = ('choose', 'close some', 'make it', 'set config')

# What a process grows by, whatever it does.
MEMORY_NOISE = 2 << 20

has_proc = pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='needs /proc')


@pytest.fixture
def program() -> Iterator[Programs]:
    programs = Programs(shortage_programs.__name__)
    yield programs
    programs.end()


# Descriptors


@has_proc
def test_with_any_number_of_descriptors_a_start_works_or_says_why_not(program: Programs, tried: Any) -> None:
    """And leaves nothing behind, and the same instance can be started when there are some."""
    for kind, *refused, enough in findings(program('few_descriptors', 'unix', 'tcp', 'client')):
        assert len(refused) == enough >= 2
        for free, path, (code, text), left in refused:
            where = (kind, free)
            assert code in (errno.EMFILE, errno.ENFILE), where
            assert path in text or os.path.dirname(path) in text, where  # the server, or the socket root
            assert 'close some descriptors, or raise the limit' in text, where
            assert left == [False, 0], where
        tried('no descriptors left at start', enough, enough)


@has_proc
def test_a_handler_that_has_used_up_all_descriptors(program: Programs, tried: Any) -> None:
    """What needs none works, what does says so, others are served; and all is well when they are given back."""
    ((outcome, notes, given, errors),) = findings(program('handlers_without_descriptors'))
    assert [outcome[what] for what in ('emit', 'broadcast', 'stats')] == [None] * 3
    for what in ('serve', 'connect'):
        code, text = outcome[what]
        assert code == errno.EMFILE
        assert 'close some descriptors' in text
    assert notes == [100_000, 1]
    assert given == 7
    assert errors == []
    tried('no descriptors left in a handler', 1, 6)


# Disks


@pytest.fixture(scope='module')
def own_mounts(tmp_path_factory: pytest.TempPathFactory) -> Sequence[str]:
    """What a command has to begin with that it may mount what it likes, and nobody else sees it."""
    directory = tmp_path_factory.mktemp('mount')
    if shutil.which('unshare') is None:
        pytest.skip('no unshare command: no file system can be mounted for a test alone')
    for prefix in (['unshare', '--mount'], ['unshare', '--user', '--map-root-user', '--mount']):
        mount = [*prefix, 'mount', '-t', 'tmpfs', '-o', 'nr_inodes=9', 'none', str(directory)]
        if subprocess.run(mount, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            return prefix
    pytest.skip('this user may mount no file system, not even in a namespace of its own')


@has_proc
def test_a_disk_that_is_full_or_read_only(program: Programs, own_mounts: Sequence[str], tmp_path: Any, tried: Any) -> None:
    """Starts fail with the path and what to do and leave an empty root at most; what runs goes on; later starts work."""
    (tmp_path / 'disk').mkdir()
    found = findings(program('disk', tmp_path / 'disk', prefix=own_mounts))
    root = str(tmp_path / 'disk' / 'root')
    results = {what: rest for what, *rest in found}
    assert [rest for what, *rest in found if what == 'room again'] == [[True]] * 2
    for what, path in (
        ('full, no root', root),
        ('full, a root', f'{root}/app.world'),
        ('full, a path', str(tmp_path / 'disk' / 'other')),
        ('read-only, a dead file', f'{root}/app.running'),
        ('read-only, a root', f'{root}/app.world'),
        ('read-only, no root', str(tmp_path / 'disk' / 'other')),
        ('read-only, a root for all', root),
    ):
        code, named, text, is_clean = results[what]
        assert code == (errno.ENOSPC if what.startswith('full') else errno.EROFS), what
        assert named.rstrip('/') == path, what
        assert path in text, what
        assert any(word in text for word in ADVICE), text
        assert is_clean, what
        tried('a full or read-only disk at start')
    assert results['full, a stop'] == [False]
    assert results['read-only, a stop'] == [True, []]  # nobody can remove it; the next start replaced it
    tried('a disk that gets full or read-only under a server', 2, 6)


# Threads


@has_proc
def test_no_thread_can_be_started_for_a_while(program: Programs, tmp_path: pathlib.Path, tried: Any) -> None:
    """At start, later, while a handler blocks, for looking up a name, and at the end."""
    processes = []
    for workers in (0, 1, 4):  # at the same time, each with a socket root of its own
        root = tmp_path / str(workers)
        root.mkdir(mode=0o700)
        processes.append((workers, program('threads', workers, prefix=['env', f'XDG_RUNTIME_DIR={root}'])))
    for workers, process in processes:
        refused, middle, end = findings(process)
        assert len(refused) == 3
        for text, what in zip(refused, ("server 'world'", "server 'world'", "client 'world'")):
            assert what in text
            assert "can't start new thread" in text
        failure, errors, warnings = middle
        assert "client 'named'" in failure
        assert "can't start new thread" in failure
        assert errors == []
        assert warnings == 2 * bool(workers)  # each instance says it once
        over, is_clean, errors = end
        assert over
        assert is_clean
        assert all("can't start new thread" in text for text in errors)
        tried('no thread can be started', 5, 900)


# Memory


@has_proc
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='other systems do not keep to RLIMIT_AS')
def test_a_message_for_which_there_is_no_memory_ends_its_connection_alone(program: Programs, tried: Any) -> None:
    """A real shortage: the process may have 32 MB more, and a message needs 100."""
    server = program('little_memory')
    address = heard(server)
    known = socket.socket(socket.AF_UNIX)

    def asks() -> bool:
        known.sendall(shortage_programs.ASK)
        return known.recv(100) == shortage_programs.ANSWER

    with known:
        known.settimeout(SECONDS)
        known.connect(address)
        assert asks()
        for message in (
            b'{"type":"x","data":[' + b'[],' * 1_500_000 + b'0]}\f',  # small on the wire, large in memory
            b'{"type":"x","data":"' + b'x' * 30_000_000 + b'"}\f',
        ):
            with socket.socket(socket.AF_UNIX) as hungry:
                hungry.settimeout(SECONDS)
                hungry.connect(address)
                try:
                    hungry.sendall(message)
                    assert hungry.recv(10) == b''
                except ConnectionError:  # what it has sent was not read to the end
                    pass
            assert asks()
    ((errors, total, _),) = findings(server)
    assert len(errors) == 2
    assert all('emory' in error for error in errors)
    assert total == 3
    tried('no memory for a message that is large', 2, 6)


@pytest.mark.parametrize('parser', ['fast', 'guarded'])
def test_a_decoder_without_memory_is_its_connections_fault_alone(
    pair: Callable[..., Any], parser: str, monkeypatch: pytest.MonkeyPatch, tried: Any
) -> None:
    """On the server and on the client, which comes back; what came before the message is handled."""
    scan = wire._scan_once

    def scan_or_fail(text: str, index: int) -> Any:
        if text.startswith('{"type":"large"', index):
            raise MemoryError
        return scan(text, index)

    world = pair(parser=parser)
    errors = Log()
    world.server.on('error', lambda error, socket: errors('error', error))
    world.server.on('ask', lambda data, socket: socket.emit('answer', data))
    world.server.on('send large', lambda data, socket: (socket.emit('answer', 'before'), socket.emit('large')))
    world.start()
    log = Log()
    client, other = world.connect(log, parser=parser), world.connect(parser=parser)
    assert other.request('ask', 1, reply='answer', timeout=SECONDS) == 1
    monkeypatch.setattr(wire, '_scan_once', scan_or_fail)
    monkeypatch.setattr(wire._json, 'scan_once', scan_or_fail)
    with world.raw() as sock:
        sock.sendall(shortage_programs.ASK * 2 + b'{"type":"large"}\f' + shortage_programs.ASK)
        answers = b''
        while True:
            try:
                chunk = sock.recv(100)
            except ConnectionError:
                break
            if not chunk:
                break
            answers += chunk
        assert answers == shortage_programs.ANSWER * 2
    errors.wait('error')
    assert 'emory' in repr(errors.of('error')[0][0])
    assert other.request('ask', 2, reply='answer', timeout=SECONDS) == 2
    log.wait('connect')
    client.emit('send large')
    log.wait('connect', 2)
    assert log.of('answer') == [('before',)]
    assert 'emory' in repr(log.wait('error')[0][0])
    assert client.request('ask', 3, reply='answer', timeout=SECONDS) == 3
    assert other.connected
    assert other.stats()['connections'] == 1
    tried('no memory to decode a message', 2, 6)


def test_an_emit_without_memory_raises_and_the_connection_stands(
    pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tried: Any
) -> None:
    encode = wire._to_json

    def encode_or_fail(data: Any) -> str:
        if data == 'large':
            raise MemoryError
        return encode(data)

    monkeypatch.setattr(wire, '_to_json', encode_or_fail)
    world = pair()
    errors: List[Any] = []
    world.server.on('error', lambda error: errors.append(error))
    world.server.on('ask', lambda data, socket: socket.emit('answer', data))
    world.server.method('large', lambda: 'large')
    world.start()
    client = world.connect()
    assert client.request('ask', 1, reply='answer', timeout=SECONDS) == 1
    for act in (
        lambda: client.emit('x', 'large'),
        lambda: world.server.sockets[0].emit('x', 'large'),
        lambda: world.server.broadcast('x', 'large'),
        lambda: client.request('ask', 'large', timeout=SECONDS),
    ):
        with pytest.raises(MemoryError):
            act()
    with client.batch():
        client.emit('ask', 2)
        with pytest.raises(MemoryError):
            client.emit('ask', 'large')
    assert client.request('ask', 3, reply='answer', timeout=SECONDS) in (2, 3)
    assert client.stats()['connections'] == 1
    tried('no memory to encode a message', 5, 4)


@pytest.mark.parametrize('where', ['select', 'recv', 'send'])
def test_a_turn_without_memory_is_reported_and_followed_by_the_next(
    make: Any, where: str, monkeypatch: pytest.MonkeyPatch, tried: Any
) -> None:
    """The reactor waits for sockets, reads or writes: every connection but one stands, and is served."""
    server = make(id='world').serve()
    server.on('ask', lambda data, socket: socket.emit('answer', data))
    server.start()
    clients = make(id='clients')
    first, second = (clients.connect_to(name, server.address) for name in ('first', 'second'))
    for client in (first, second):
        assert client.request('ask', 1, reply='answer', timeout=SECONDS) == 1
    failed = threading.Event()

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if not failed.is_set():
                failed.set()
                raise MemoryError
            return function(*arguments)

        return call

    connection = server.sockets[0]._connection
    reactor = server._engine.reactor
    if where == 'select':
        monkeypatch.setattr(reactor._selector, 'select', failing(reactor._selector.select))
        second.emit('x')
        eventually(failed.is_set)
    elif where == 'recv':
        connection._recv = failing(connection._recv)
        first.emit('x')
        eventually(failed.is_set)
    else:
        connection._send = failing(connection._send)
        with pytest.raises(MemoryError):
            server.sockets[0].emit('x')
    for number in range(20):
        assert second.request('ask', number, reply='answer', timeout=SECONDS) == number
    assert second.stats()['connections'] == 1
    assert first.wait_connected(SECONDS)

    def asks() -> bool:
        try:
            return bool(first.request('ask', 5, reply='answer', timeout=SECONDS) == 5)
        except nodeipc.NotConnectedError:  # it was just about to be lost
            return False

    eventually(asks)
    tried('no memory in the middle of a turn', 1, 22)


# Connections


class Bystander:
    """A connection that stands all the time, to a server of shortage_programs.py, and asks it how it is."""

    def __init__(self, server: Any) -> None:
        self.address = heard(server)
        where = tuple(self.address) if isinstance(self.address, list) else self.address
        self._sock = socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET)
        self._sock.settimeout(SECONDS)
        self._sock.connect(where)

    def __call__(self) -> Any:
        self._sock.sendall(b'{"type":"report"}\f')
        received = b''
        while not received.endswith(b'\f'):
            chunk = self._sock.recv(1000)
            assert chunk, 'the connection ended'
            received += chunk
        return json.loads(received[:-1])['data']


@pytest.fixture
def bystander() -> Iterator[Callable[[Any], Bystander]]:
    made: List[Bystander] = []

    def make_bystander(server: Any) -> Bystander:
        made.append(Bystander(server))
        return made[-1]

    yield make_bystander
    for one in made:
        one._sock.close()


@has_proc
def test_as_many_connects_and_disconnects_as_the_machine_does(
    program: Programs, bystander: Callable[[Any], Bystander], often: Any, tried: Any
) -> None:
    """Over both transports at once, by plain sockets and by clients of ours: nothing is left, and who stays is served."""
    seconds = often(0.6, 15)
    transports = ('unix', 'tcp')
    servers = [program('many_served', transport) for transport in transports]
    churning = [program('come_and_go') for _ in transports]
    reports = [bystander(server) for server in servers]
    for process, report in zip(churning, reports):  # what is made once
        tell(process, report.address, 0.2, 60)
    for process in churning:
        assert heard(process)[1] == 0
    for report in reports:
        eventually(lambda report=report: report()['unfinished'] == 1)
    before = [report() for report in reports]
    for process, report in zip(churning, reports):
        tell(process, report.address, seconds, 400)
    for _ in range(20):  # in the middle of it
        assert all(report()['unfinished'] < 200 for report in reports)
    for transport, server, process, report, first in zip(transports, servers, churning, reports, before):
        ((count, wrong, took),) = findings(process)
        assert wrong == 0
        eventually(lambda report=report: report()['unfinished'] == 1)
        after = report()
        assert after['threads'] <= 3 + shortage_programs.WORKERS  # and who leads, who watches, and the main thread
        assert after['total'] - first['total'] == count >= 400
        assert after['descriptors'] == first['descriptors']
        assert after['blocks'] - first['blocks'] < 2000 + count // 20  # a connection has dozens
        assert after['resident'] - first['resident'] < MEMORY_NOISE + 4096 * count  # and buffers, which are not among those
        server.stdin.close()
        assert server.wait(SECONDS) == 0
        tried(f'{count / took:,.0f} connects and disconnects a second for {took:.1f} s, {transport}', count, count)


def tell(process: Any, *order: Any) -> None:
    """Give a program its next order."""
    process.stdin.write(json.dumps(order) + '\n')
    process.stdin.flush()


@has_proc
def test_two_thousand_connections_at_once(program: Programs, bystander: Callable[[Any], Bystander], tried: Any) -> None:
    """All are served; then all are closed, and memory and descriptors are as before, on both ends."""
    import resource

    count = 2000
    needs_descriptors(count)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < count + 200:
        pytest.skip('this system does not allow so many descriptors')
    server, clients = program('many_served', 'unix'), program('many_clients', count)
    report = bystander(server)
    address = report.address
    with socket.socket(socket.AF_UNIX) as first:  # what is made once
        first.connect(address)
        first.sendall(shortage_programs.ASK)
        assert first.recv(100) == shortage_programs.ANSWER
    eventually(lambda: report()['unfinished'] == 1)
    before = report()
    tell(clients, address)
    assert heard(clients) == [count, count]
    during = report()
    assert during['unfinished'] == count + 1
    assert during['descriptors'] == before['descriptors'] + count
    is_clean, blocks = findings(clients)[0]
    assert is_clean
    assert blocks < 10 * count  # a client has more than a hundred
    eventually(lambda: report()['unfinished'] == 1)
    after = report()
    assert after['descriptors'] == before['descriptors']
    assert after['blocks'] - before['blocks'] < 10 * count
    assert during['blocks'] - after['blocks'] > 15 * count  # or what is measured here is something else
    server.stdin.close()
    assert server.wait(SECONDS) == 0
    tried('2,000 connections at once, Unix', 1, 2 * count)


# Clocks


WALL_CLOCKS = {'time', 'time_ns', 'localtime', 'gmtime', 'ctime', 'strftime', 'clock_gettime', 'get_clock_info'}


def test_only_the_monotonic_clock_is_looked_at() -> None:
    """In the source: of `time`, nothing but what no setting of the clock changes; and no `datetime`."""
    source = pathlib.Path(nodeipc.__file__).parent
    found, monotonic = [], 0
    for path in sorted(source.rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            where = f'{path.name}:{getattr(node, "lineno", 0)}'
            if isinstance(node, ast.ImportFrom):
                found.extend([where] * (node.module in ('time', 'datetime')))
            elif isinstance(node, ast.Import):
                found.extend(
                    where for alias in node.names if alias.name == 'datetime' or (alias.name == 'time' and alias.asname)
                )
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'time':
                monotonic += node.attr == 'monotonic'
                if node.attr in WALL_CLOCKS:
                    found.append(where)
    assert not found
    assert monotonic > 10


def test_a_wall_clock_that_jumps_changes_no_duration(program: Programs, request: pytest.FixtureRequest, tried: Any) -> None:
    """By hours, back and forth, at each look: timeouts, retries and handshakes take what they take."""
    files = ''
    if shutil.which('openssl'):
        certificates = request.getfixturevalue('certificates')
        files = json.dumps([certificates.key('server'), certificates.pem('server'), certificates.pem('ca')])
    ((took, errors, _),) = findings(program('clock', files))
    for what in ('emit without a connection', 'wait_connected', 'a request', 'events', 'a message that is not complete'):
        assert took[what] >= 0.095, what
    assert all(seconds < 3600 for seconds in took.values())  # and it ended at all
    assert [error for error in errors if 'ERR_IPC_MESSAGE_TIMEOUT' not in error] == []
    assert len(errors) == 1
    tried('a wall clock that jumps', len(took), 203)
