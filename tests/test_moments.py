"""What happens at one unlucky moment, which the test brings about: where the collector, Ctrl-C or the scheduler may come."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
from typing import Any, List

import pytest

import nodeipc
from nodeipc.connection import Connection
from nodeipc.reactor import Reactor
from nodeipc.strands import Strand
from nodeipc.waiters import Waiters

from .conftest import Log, eventually


def waits(reactor: Reactor) -> None:
    """Do what the emit of a ``__del__`` does when there is no room: it is refused."""
    condition = threading.Condition()
    with condition, pytest.raises(RuntimeError):
        reactor.wait_for(condition, lambda: False, 0.05)


def test_a_wait_right_before_the_reactor_waits_does_not_deafen_it(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ipc = make(id='world')
    ipc.serve().start()
    reactor = ipc._engine.reactor
    select = reactor._selector.select
    waited = threading.Event()

    def select_after_a_wait(timeout: Any) -> Any:
        if timeout is None and reactor.in_thread and not waited.is_set():
            waited.set()
            waits(reactor)
        return select(timeout)

    monkeypatch.setattr(reactor._selector, 'select', select_after_a_wait)
    reactor.call(lambda: None)
    assert waited.wait(20)
    eventually(lambda: not reactor._awake)
    called = threading.Event()
    reactor.call(called.set)
    assert called.wait(20)


def test_a_signal_handler_that_interrupts_a_wake_up_may_wait_for_the_reactor(make: Any) -> None:
    ipc = make(id='world')
    ipc.serve().start()
    reactor = ipc._engine.reactor
    called = threading.Event()
    heard = []

    class Interrupted:
        def send(self, data: bytes) -> int:
            reactor._wake_out = real
            reactor.call(called.set)
            heard.append(called.wait(20))
            raise KeyboardInterrupt

    eventually(lambda: not reactor._awake)
    real, reactor._wake_out = reactor._wake_out, Interrupted()
    with pytest.raises(KeyboardInterrupt):
        reactor.wake()
    assert heard == [True]


def test_threads_that_ask_at_once_whether_a_reactor_is_stuck_are_told_the_same(make: Any) -> None:
    ipc = make(id='world')
    ipc.serve().start()
    reactor = ipc._engine.reactor
    answers: List[bool] = []
    askers = [threading.Thread(target=lambda: answers.extend(reactor.answers() for _ in range(200))) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(20)
    assert answers == [True] * 800


def test_ctrl_c_while_the_first_thread_begins_leaves_none(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ipc = make(id='world')
    start = threading.Thread.start
    began: List[threading.Thread] = []

    def interrupted(self: threading.Thread) -> None:
        start(self)
        if self.name == 'nodeipc-reactor' and not began:
            began.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, 'start', interrupted)
    with pytest.raises(KeyboardInterrupt):
        ipc.connect_to('world')
    began[0].join(20)
    assert not began[0].is_alive()
    ipc.serve().start()
    assert ipc.connect_to('world').wait_connected(20)
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


@pytest.mark.parametrize('where', ['uncork', 'run'])
def test_a_failure_on_the_way_of_events_costs_one_connection_at_most(
    pair: Any, monkeypatch: pytest.MonkeyPatch, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = pair()
    world.server.on('ask', lambda data, sock: sock.emit('answer', data))
    world.start()
    monkeypatch.setattr('nodeipc.workers._SLOW_SECONDS', 20.0)  # or another thread might run it, and join nothing
    failed = threading.Event()
    write, run = Connection._write_joined, Strand.run

    def write_once_failing(self: Connection) -> None:
        if self._outbox and not failed.is_set():
            failed.set()
            raise MemoryError
        write(self)

    def run_once_failing(self: Strand, *arguments: Any) -> int:
        if self._items and not failed.is_set():
            failed.set()
            raise MemoryError
        return run(self, *arguments)

    with world.raw() as first, world.raw() as second:
        eventually(lambda: world.server.stats()['connections'] == 2)
        eventually(lambda: all(socket._strand.is_idle for socket in world.server.sockets))
        monkeypatch.setattr(*((Connection, '_write_joined', write_once_failing) if where == 'uncork' else
                              (Strand, 'run', run_once_failing)))
        first.sendall(b'{"type":"ask","data":1}\f' * 5)
        assert failed.wait(20)
        second.sendall(b'{"type":"ask","data":2}\f')
        assert second.recv(100) == b'{"type":"answer","data":2}\f'
        if where == 'uncork':
            eventually(lambda: world.server.stats()['connections'] == 1)
        else:
            assert 'failed on a worker thread' in caplog.text
            answers = b''
            while answers.count(b'\f') < 5:  # what was waiting is tried again
                answers += first.recv(1000)
    workers = world.ipc._engine.workers
    eventually(lambda: not workers._busy and not workers._runs & 1)


@pytest.mark.parametrize('types', [(), ('news',)], ids=['all', 'named'])
def test_what_is_read_while_the_first_iterator_is_made_is_kept_or_collected(
    make: Any, monkeypatch: pytest.MonkeyPatch, types: Any
) -> None:
    server = make(id='world').serve()
    server.start()
    iterators: List[Any] = []

    with nodeipc.connect(server.address) as client:
        eventually(lambda: server.sockets)

        class Watched(Waiters):
            """The last that the reactor looks at before it decides is the calls."""

            @property
            def calls(self) -> Any:  # type: ignore[override]
                if not iterators and sys._getframe(1).f_code.co_name == 'want_nothing_of':
                    iterators.append(None)
                    thread = threading.Thread(target=lambda: iterators.append(client.events(*types, timeout=20)))
                    thread.start()
                    thread.join()
                return {}

            @calls.setter
            def calls(self, value: Any) -> None:
                pass

        del client._waiters_here.calls
        client._waiters_here.__class__ = Watched
        server.broadcast('news', 1)
        eventually(lambda: client.stats()['messages_in'] == 1)
        events = iterators[1] if iterators else client.events(*types, timeout=20)
        assert next(events).data == 1
        client._waiters_here.__class__ = Waiters
        client._waiters_here.calls = {}


def test_what_is_ready_when_an_instance_closes_is_run(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ipc = make()
    log = Log()
    client = ipc.connect_to('nobody', lambda client: client.on('*', log))
    log.wait('error')
    reactor = ipc._engine.reactor
    stopped = reactor._stopped
    run_ready = reactor.run_ready
    # As if the leader had been off the processor until everybody else is done.
    reactor.run_ready = lambda: stopped.wait(0.1) or run_ready()
    ipc.close(0)
    log.wait('destroy')
    assert client.wait(20)


def test_an_outbox_that_is_being_written_is_not_written_again_by_whoever_interrupts_that(pair: Any) -> None:
    world = pair().start()
    with world.raw() as sock:
        eventually(lambda: world.server.sockets)
        peer = world.server.sockets[0]
        connection = peer._connection
        send = connection._send
        interrupted = threading.Event()

        def send_and_emit(data: Any, flags: int = 0) -> int:
            sent = send(data, flags)
            if not interrupted.is_set():
                interrupted.set()
                peer.emit('answer', [2, 'x' * 70_000])  # in a __del__, on the reactor thread
            return int(sent)

        connection.cork()
        peer.emit('answer', [1, 'x' * 1000])
        connection._send = send_and_emit
        connection._reactor.call(connection._flush)
        assert interrupted.wait(20)
        connection.uncork()
        connection._send = send
        peer.emit('answer', [3, ''])
        received = b''
        while not received.endswith(b'[3,""]}\f'):
            received += sock.recv(1 << 16)
    assert [json.loads(frame)['data'][0] for frame in received.split(b'\f')[:-1]] == [1, 2, 3]


def test_a_wait_when_the_leader_has_run_a_strand_leaves_one_leader(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('nodeipc.workers._WATCH_SECONDS', 0.4)  # or on a slow machine another leads by right
    world = pair()
    world.server.on('ask', lambda data, sock: sock.emit('answer', data))
    world.start()
    reactor, workers = world.ipc._engine.reactor, world.ipc._engine.workers
    in_thread, turn = Reactor.in_thread.fget, Reactor._turn  # type: ignore[attr-defined]
    waited = threading.Event()
    leaders: List[int] = []
    most = [0]

    def in_thread_after_a_wait(self: Reactor) -> bool:
        found = in_thread(self)
        if found and self is reactor and sys._getframe(1).f_code.co_name == '_run_ready' and not waited.is_set():
            waited.set()
            waits(self)
        return bool(found)

    def counted(self: Reactor, *arguments: Any, **named: Any) -> None:
        if self is not reactor:
            return turn(self, *arguments, **named)
        me = threading.get_ident()
        leaders.append(me)
        most[0] = max(most[0], len(set(leaders)))
        try:
            return turn(self, *arguments, **named)
        finally:
            leaders.remove(me)

    with world.raw() as sock:
        eventually(lambda: world.server.sockets and world.server.sockets[0]._strand.is_idle)
        monkeypatch.setattr(Reactor, '_turn', counted)
        monkeypatch.setattr(Reactor, 'in_thread', property(in_thread_after_a_wait))
        for _ in range(50):
            sock.sendall(b'{"type":"ask","data":1}\f')
            assert sock.recv(100) == b'{"type":"answer","data":1}\f'
        assert waited.is_set()
        eventually(lambda: workers._watcher is None and not workers._busy and not workers._runs & 1)
    assert most[0] == 1


def test_a_handler_that_one_of_a_chunk_registers_has_the_next(make: Any, tmp_path: Any) -> None:
    """Also while a thread waits for something, whose answers are not handed on when no handler wants them."""
    path, log = str(tmp_path / 'world'), Log()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        client = make().connect_to('world', path)
        client.on('hello', lambda: client.on('next', lambda data: log('next', data)))
        with listener.accept()[0] as peer:
            os.unlink(path)
            eventually(lambda: client.connected and client._strand.is_idle)
            waiting = threading.Thread(target=lambda: client.wait_for('last', timeout=20))
            waiting.start()
            eventually(lambda: client._waiters_here.is_awaited)
            peer.sendall(b'{"type":"hello"}\f{"type":"next","data":2}\f')
            log.wait('next')
            peer.sendall(b'{"type":"last"}\f')
            waiting.join(20)
            assert not waiting.is_alive()
            assert log.of('next') == [(2,)]


@pytest.mark.parametrize('error', [OSError, SystemExit])
def test_a_log_handler_that_raises_ends_no_thread(pair: Any, error: Any) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise error('the log server is gone')

    world = pair()
    world.server.on('ask', lambda data, sock: sock.emit('answer', data))
    world.server.on('fail', lambda: 1 / 0)
    world.start()
    broken = Broken()
    logger = logging.getLogger('nodeipc')
    with world.raw() as first, world.raw() as second:
        for sock in (first, second):
            sock.sendall(b'{"type":"ask","data":1}\f')
            assert sock.recv(100) == b'{"type":"answer","data":1}\f'
        logger.addHandler(broken)
        try:
            first.sendall(b'{"type":"fail"}\f')
            for sock in (first, second):
                sock.sendall(b'{"type":"ask","data":2}\f')
                assert sock.recv(100) == b'{"type":"answer","data":2}\f'
        finally:
            logger.removeHandler(broken)


def test_one_worker_is_one_also_when_an_instance_closes_before_its_handler_has_ended(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make(id='world').serve()
    server.on('go', lambda data, sock: sock.emit('slow'))
    server.start()
    ipc = make(workers=1)
    running: List[int] = []
    most: List[int] = []
    go_on, started, done = threading.Event(), threading.Event(), threading.Semaphore(0)

    def slow(*arguments: Any) -> None:
        running.append(1)
        most.append(len(running))
        started.set()
        go_on.wait(20)
        running.pop()
        done.release()

    clients = [ipc.connect_to(f'client {number}', server.address) for number in range(3)]
    for client in clients:
        client.wait_connected(20)
        client.on('slow', slow)
        client.on('destroy', slow)
    clients[0].emit('go')
    assert started.wait(20)
    workers = ipc._engine.workers
    eventually(lambda: workers._busy)  # another leads
    stop = Reactor.stop

    reactor = ipc._engine.reactor

    def stop_and_wait(self: Reactor, timeout: Any = None) -> bool:
        stopped = stop(self, timeout)
        if self is reactor:
            eventually(lambda: workers._idle)
        return stopped

    monkeypatch.setattr(Reactor, 'stop', stop_and_wait)
    ipc.close(0.05)
    go_on.set()
    for _ in range(4):
        assert done.acquire(timeout=20)
    assert max(most) == 1
