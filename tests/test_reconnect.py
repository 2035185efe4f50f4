"""Clients that find their way back: servers that go and come again, retry settings, names that resolve slowly."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Iterator, List

import pytest

import nodeipc
from nodeipc import EmitTimeout, NotConnectedError, ProtocolError, lookup

from .conftest import Log, eventually

WORLD = """
import sys, nodeipc
ipc = nodeipc.IPC(id='world')
server = ipc.serve(sys.argv[1]) if sys.argv[1].startswith('/') else ipc.serve_net('127.0.0.1', int(sys.argv[1]))
server.on('message', lambda data, socket: socket.emit('message', data + ' world!'))
server.on('start', lambda: print('ready', flush=True))
server.start()
ipc.wait()
"""


class WorldProcess:
    """A server in a process of its own, to be killed."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-S', '-c', WORLD, self.where],
            stdout=subprocess.PIPE,
            env={**os.environ, 'PYTHONPATH': os.getcwd()},
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b'ready\n'

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def world(transport: str, tmp_path: Any) -> Iterator[WorldProcess]:
    if transport == 'unix':
        where = str(tmp_path / 'world.sock')
    else:
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            where = str(probe.getsockname()[1])
    process = WorldProcess(where)
    yield process
    process.kill()
    if transport == 'unix' and os.path.exists(where):
        os.unlink(where)


def connect(ipc: Any, where: str, log: Log) -> Any:
    callback = lambda client: client.on('*', log)  # noqa: E731
    if where.startswith('/'):
        return ipc.connect_to('world', where, callback)
    return ipc.connect_to_net('world', '127.0.0.1', int(where), callback)


def test_a_killed_server_that_comes_back_finds_its_client_back(world: WorldProcess, make: Any) -> None:
    log = Log()
    client = connect(make(id='hello', retry=20), world.where, log)
    for count in (1, 2, 3):
        client.emit('message', 'hello')
        log.wait('message', count)
        world.kill()
        log.wait('disconnect', count)
        assert not client.connected
        log.wait('error', len(log.of('error')) + 1)  # at least one attempt was refused
        world.start()
        log.wait('connect', count + 1)
    client.emit('message', 'hello')
    assert log.wait('message', 4) == [('hello world!',)] * 4
    lifecycle = [event[0] for event in log.events if event[0] in ('connect', 'disconnect')]
    assert lifecycle == ['connect', 'disconnect'] * 3 + ['connect']
    assert client.stats()['connections'] == 4


def test_a_client_may_start_before_its_server(make: Any, transport: str, tmp_path: Any) -> None:
    log = Log()
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        where = str(tmp_path / 'early.sock') if transport == 'unix' else str(probe.getsockname()[1])
    client = connect(make(id='hello'), where, log)
    log.wait('error', 2)
    sender = threading.Thread(target=client.emit, args=('message', 'patient'))
    sender.start()
    ipc = make()
    server = ipc.serve(where) if transport == 'unix' else ipc.serve_net('127.0.0.1', int(where))
    got = Log()
    server.on('*', got)
    server.start()
    assert got.wait('message')[0][0] == 'patient'
    sender.join()


def test_a_refused_attempt_is_an_error_event_that_names_the_server(make: Any) -> None:
    log = Log()
    make().connect_to('nobody', lambda client: client.on('*', log))
    ((error,),) = log.wait('error')[:1]
    assert isinstance(error, FileNotFoundError)
    assert "client 'nobody' (unix:" in str(error)
    assert 'app.nobody' in str(error)


def test_emit_waits_for_a_connection_and_then_gives_up(make: Any) -> None:
    client = make().connect_to('nobody')
    start = time.monotonic()
    with pytest.raises(EmitTimeout, match=r"client 'nobody' .* no connection within 0.1 s, nothing was sent.*No such file"):
        client.emit('message', 1, timeout=0.1)
    assert time.monotonic() - start >= 0.1
    with pytest.raises(TimeoutError):
        client.emit('message', 1, timeout=0)
    brief = make(emit_timeout=50).connect_to('nobody')
    with pytest.raises(EmitTimeout, match=r'within 0.05 s'):
        brief.emit('message', 1)


def test_a_message_that_timed_out_is_not_sent_later(make: Any) -> None:
    ipc = make()
    client = ipc.connect_to('world')
    with pytest.raises(EmitTimeout):
        client.emit('message', 'early', timeout=0.05)
    got = Log()
    ipc.serve().on('*', got)
    ipc.server.start()
    client.emit('message', 'late')
    assert [data for data, _ in got.wait('message')] == ['late']


@pytest.mark.parametrize('retries', [0, 1, 3])
def test_max_retries_end_in_destroy(make: Any, retries: int) -> None:
    log = Log()
    client = make(max_retries=retries, retry=1).connect_to('nobody', lambda client: client.on('*', log))
    log.wait('destroy')
    assert 1 <= len(log.of('error')) <= retries + 1  # an error that waits for its turn speaks for those after it
    assert [event[0] for event in log.events][-1] == 'destroy'
    with pytest.raises(NotConnectedError, match='no retries left.*No such file'):
        client.emit('message')
    with pytest.raises(NotConnectedError):
        client.wait_connected(1)
    client.disconnect()
    assert log.of('destroy') == [()]


def test_the_count_of_retries_starts_afresh_with_each_success(pair: Any) -> None:
    world = pair()
    accepted, log = Log(), Log()
    world.server.on('*', accepted)
    world.start()
    world.connect(log, max_retries=3, retry=20)
    for count in (1, 2, 3, 4, 5):
        accepted.wait('connect', count)[-1][0].close()
        log.wait('connect', count + 1)
    assert log.of('destroy') == []


def test_stop_retrying_means_one_attempt_and_one_connection(pair: Any, make: Any) -> None:
    log = Log()
    make(stop_retrying=True).connect_to('nobody', lambda client: client.on('*', log))
    log.wait('destroy')
    assert [event[0] for event in log.events] == ['error', 'destroy']
    world = pair().start()
    log = Log()
    world.connect(log, stop_retrying=True)
    log.wait('connect')
    eventually(lambda: world.server.sockets)[0].close()
    log.wait('destroy')
    assert [event[0] for event in log.events] == ['connect', 'disconnect', 'destroy']


def test_retry_max_doubles_the_delay_with_jitter(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: List[float] = []
    call_later = nodeipc.reactor.Reactor.call_later

    def spy(self: Any, delay: float, callback: Any) -> Any:
        if getattr(callback, '__name__', '') == '_attempt':
            delays.append(delay * 1000)
            delay = 0
        return call_later(self, delay, callback)

    monkeypatch.setattr(nodeipc.reactor.Reactor, 'call_later', spy)
    make(retry=100, retry_max=1000).connect_to('nobody')
    eventually(lambda: len(delays) >= 60)
    for number, delay in enumerate(delays[:60]):
        full = min(1000, 100 * 2**number)
        assert full / 2 <= delay <= full
    assert len({round(delay, 6) for delay in delays[5:60]}) > 20


def test_without_retry_max_the_delay_is_retry(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: List[float] = []
    call_later = nodeipc.reactor.Reactor.call_later

    def spy(self: Any, delay: float, callback: Any) -> Any:
        if getattr(callback, '__name__', '') == '_attempt':
            delays.append(delay)
        return call_later(self, delay, callback)

    monkeypatch.setattr(nodeipc.reactor.Reactor, 'call_later', spy)
    make(retry=10).connect_to('nobody')
    eventually(lambda: len(delays) >= 5)
    assert set(delays) == {0.01}


def test_disconnect_ends_the_wait_for_a_retry_and_for_an_emit(make: Any) -> None:
    log = Log()
    client = make(retry=3_600_000).connect_to('nobody', lambda client: client.on('*', log))
    log.wait('error')
    raised: List[BaseException] = []

    def emit() -> None:
        try:
            client.emit('message', 1, timeout=60)
        except NotConnectedError as error:
            raised.append(error)

    emitter = threading.Thread(target=emit)
    emitter.start()
    client.disconnect()
    emitter.join(10)
    assert not emitter.is_alive()
    assert 'is disconnected' in str(raised[0])
    assert [event[0] for event in log.events] == ['error', 'destroy']


def test_disconnect_ends_an_attempt_that_is_under_way(make: Any, tmp_path: Any) -> None:
    with socket.socket() as full:
        full.bind(('127.0.0.1', 0))
        full.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:  # fill the backlog: the next SYN gets no answer
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        log = Log()
        client = make(connect_timeout=60_000).connect_to_net(
            'full', *full.getsockname(), lambda client: client.on('*', log)
        )
        client.disconnect()
        assert [event[0] for event in log.events if event[0] != 'connect'][-1:] == ['destroy']
        for other in others:
            other.close()


def test_an_attempt_without_an_answer_times_out(make: Any) -> None:
    with socket.socket() as full:
        full.bind(('127.0.0.1', 0))
        full.listen(0)
        others = [socket.socket() for _ in range(4)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        log = Log()
        make(connect_timeout=50).connect_to_net('full', *full.getsockname(), lambda client: client.on('*', log))
        ((error,),) = log.wait('error')[:1]
        assert isinstance(error, TimeoutError)
        assert 'connect_timeout (50 ms)' in str(error)
        for other in others:
            other.close()


def test_a_full_backlog_of_a_unix_server_is_waited_for(make: Any, tmp_path: Any) -> None:
    path = str(tmp_path / 'busy.sock')
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen(0)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(path)
            log = Log()
            client = make(max_retries=0).connect_to('busy', path, lambda client: client.on('*', log))
            assert client.wait_connected(0.2) is False
            accepted = [busy.accept()[0]]
            assert client.wait_connected(10)
            accepted.append(busy.accept()[0])
            log.wait('connect')
            assert log.events == [('connect',)]  # a full backlog is no failed attempt
            for each in accepted:
                each.close()
            client.disconnect()
    os.unlink(path)


def test_a_name_that_resolves_slowly_blocks_nobody(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    resolve = lookup.resolve

    def slow(address: Any, family: Any, numeric: bool = False) -> Any:
        if address.host == 'slow.invalid' and not numeric:
            gate.wait(30)
            raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')
        return resolve(address, family, numeric)

    monkeypatch.setattr(lookup, 'resolve', slow)
    ipc = make()
    log, answers = Log(), Log()
    ipc.connect_to_net('slow', 'slow.invalid', 8000, lambda client: client.on('*', log))
    ipc.serve().on('message', lambda data, socket: socket.emit('message', data))
    ipc.server.start()
    client = ipc.connect_to('world', lambda client: client.on('*', answers))
    client.emit('message', 1)
    answers.wait('message')
    assert log.events == []
    gate.set()
    assert "cannot look up 'slow.invalid'" in str(log.wait('error')[0][0])


def test_a_look_up_that_ends_after_disconnect_is_ignored(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    resolve = lookup.resolve

    def slow(address: Any, family: Any, numeric: bool = False) -> Any:
        if not numeric:
            gate.wait(30)
        return resolve(address, family, numeric)

    monkeypatch.setattr(lookup, 'resolve', slow)
    log = Log()
    client = make().connect_to_net('slow', 'localhost', 9, lambda client: client.on('*', log))
    client.disconnect()
    gate.set()
    assert [event[0] for event in log.events] == ['destroy']


def test_every_address_of_a_name_is_tried(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ipc = make()
    got = Log()
    server = ipc.serve_net('127.0.0.1', 0)
    server.on('*', got)
    server.start()
    port = server.address[1]
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))
        candidates = [
            (socket.AF_INET, ('127.0.0.1', closed.getsockname()[1])),
            (socket.AF_INET, ('127.0.0.1', port)),
        ]
        resolve = lookup.resolve
        monkeypatch.setattr(
            lookup,
            'resolve',
            lambda address, family, numeric=False: resolve(address, family, True) if numeric else candidates,
        )
        ipc.connect_to_net('world', 'world.invalid', port).emit('message', 1)
        got.wait('message')


def test_localhost_works(make: Any) -> None:
    ipc = make()
    got = Log()
    server = ipc.serve_net('localhost', 0)
    server.on('*', got)
    server.start()
    ipc.connect_to_net('world', 'localhost', server.address[1]).emit('message', 1)
    got.wait('message')


def test_a_connection_to_itself_counts_as_refused(make: Any) -> None:
    """A port of the ephemeral range on which nobody listens may be given to the very socket that connects to it."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    log = Log()
    client = make(interface={'local_address': '127.0.0.1', 'local_port': port}, retry=5).connect_to_net(
        'self', '127.0.0.1', port, lambda client: client.on('*', log)
    )
    ((error,),) = log.wait('error')[:1]
    assert isinstance(error, ConnectionRefusedError)
    assert not client.connected


def test_outgoing_connections_leave_from_the_interface(pair: Any, transport: str) -> None:
    if transport == 'unix':
        pytest.skip('interface is for TCP')
    world = pair()
    log = Log()
    world.server.on('*', log)
    world.start()
    world.connect(interface={'local_address': '127.0.0.2', 'family': 4})
    ((accepted,),) = log.wait('connect')
    assert accepted.address[0] == '127.0.0.2'


def test_a_connect_handler_added_while_connected_is_called_at_once_and_once(pair: Any) -> None:
    world = pair().start()
    client = world.connect()
    first = Log()
    client.on('connect', functools.partial(first, 'connect'))
    first.wait('connect')
    late, once = Log(), Log()
    client.on('connect', functools.partial(late, 'connect'))
    client.once('connect', functools.partial(once, 'connect'))
    late.wait('connect')
    once.wait('connect')
    eventually(lambda: world.server.sockets)[0].close()
    late.wait('connect', 2)
    first.wait('connect', 2)
    assert (len(first.events), len(late.events), len(once.events)) == (2, 2, 1)


def test_connect_handlers_are_called_once_per_connection_however_they_race(pair: Any) -> None:
    world = pair().start()
    for _ in range(60):
        calls = Log()
        client = world.connect()
        for _ in range(5):
            client.on('connect', functools.partial(calls, 'connect'))
        calls.wait('connect', 5)
        client.disconnect()
        assert len(calls.events) == 5


def test_a_connect_handler_that_is_added_between_connections_is_called_for_the_next_only(pair: Any) -> None:
    world = pair()
    accepted, calls = Log(), Log()
    world.server.on('*', accepted)
    world.start()
    gate, busy = threading.Event(), threading.Event()
    client = world.connect()
    client.on('wait', lambda: (busy.set(), gate.wait(20)))
    ((first,),) = accepted.wait('connect')
    first.emit('wait')
    assert busy.wait(20)
    first.close()  # disconnect and the next connect queue up behind the handler
    accepted.wait('connect', 2)
    assert client.wait_connected(20)
    client.on('connect', functools.partial(calls, 'connect'))
    gate.set()
    calls.wait('connect')
    client.disconnect()
    assert calls.events == [('connect',)]


def test_wait_connected_tells(pair: Any) -> None:
    world = pair()
    client = world.connect() if world.transport == 'unix' else None
    if client is not None:
        assert client.wait_connected(0.05) is False
        world.start()
        assert client.wait_connected(10) is True
        assert client.connected


def test_a_standing_connection_that_is_reset_is_an_error_and_comes_back(make: Any) -> None:
    log = Log()
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen()
        make().connect_to_net('world', *listener.getsockname(), lambda client: client.on('*', log))
        peer, _ = listener.accept()
        log.wait('connect')
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
        peer.close()
        ((error,),) = log.wait('error')
        assert isinstance(error, ConnectionResetError)
        assert "client 'world'" in str(error)
        log.wait('connect', 2)
        assert [event[0] for event in log.events] == ['connect', 'error', 'disconnect', 'connect']
        listener.accept()[0].close()


def test_ctrl_c_ends_a_waiting_script(tmp_path: Any) -> None:
    script = (
        'import nodeipc\n'
        "ipc = nodeipc.IPC(id='world')\n"
        'ipc.serve().start()\n'
        'class Told:\n'
        '    closed = ipc._engine.closed\n'
        '    def set(self): self.closed.set()\n'
        "    def wait(self, timeout): print('ready', flush=True); return self.closed.wait(timeout)\n"
        'ipc._engine.closed = Told()\n'
        "print('closed', ipc.wait(), ipc.server.listening)\n"
    )
    process = subprocess.Popen(
        [sys.executable, '-S', '-X', 'dev', '-W', 'error', '-c', script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': os.getcwd()},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b'ready\n'
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        # CPython does not notice a signal that comes between its last look and the system call that waits for the lock,
        # before there is another; here one is sent in that very moment.
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, b'closed True False\n', b'')
    assert not list((tmp_path / 'node-ipc').iterdir())


def test_the_error_of_an_attempt_is_told_as_its_own_though_handlers_are_late(make: Any, tmp_path: Any) -> None:
    path, log, gate = str(tmp_path / 'world.sock'), Log(), threading.Event()

    def listen() -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        return listener

    def handle(type: str, *arguments: Any) -> None:
        log(type, *arguments)
        if type == 'wait':
            gate.wait(20)

    with listen() as listener:
        client = make().connect_to('world', path, lambda client: client.on('*', handle))
        with listener.accept()[0] as peer:
            peer.sendall(b'{"type":"wait"}\f')
            log.wait('wait')
    os.unlink(path)
    eventually(lambda: client._attempt_error is not None)  # an attempt has failed, and the handlers have not heard of it
    with listen() as listener, listener.accept()[0] as peer:
        peer.sendall(b'nonsense\f')
        assert peer.recv(1) == b''
        eventually(lambda: isinstance(client._last_error, ProtocolError))
    gate.set()
    log.wait('error', 2)
    client.disconnect()
    os.unlink(path)
    kinds = [type if type != 'error' else arguments[0].__class__.__name__ for type, *arguments in log.events[:7]]
    assert kinds == ['connect', 'wait', 'disconnect', 'FileNotFoundError', 'connect', 'ProtocolError', 'disconnect']


def test_a_client_is_connected_when_its_handlers_hear_of_it(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    post = nodeipc.strands.Strand.post

    def post_and_wait(self: Any, function: Any, *arguments: Any) -> None:
        post(self, function, *arguments)
        if function.__name__ == '_announce':
            self._workers.ready.remove(self)  # another thread is as fast as it can be
            threading.Thread(target=self.run, args=(False, time.monotonic(), False)).start()
            eventually(lambda: seen)

    monkeypatch.setattr(nodeipc.strands.Strand, 'post', post_and_wait)
    seen: List[bool] = []
    ipc = make()
    ipc.serve().start()
    ipc.connect_to('world', lambda client: client.on('connect', lambda: seen.append(client.connected)))
    eventually(lambda: seen)
    assert seen == [True]
