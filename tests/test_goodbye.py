"""Nothing is lost at goodbye: what was emitted before a close arrives, whatever else is under way."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any, List

import pytest

from nodeipc import NotConnectedError, ProtocolError

from .conftest import Log, eventually

BLOCK = 'x' * 100_000


def collector(world: Any) -> List[Any]:
    got: List[Any] = []
    world.server.on('message', got.append)
    world.start()
    return got


def test_emit_before_disconnect_is_delivered(pair: Any) -> None:
    world = pair()
    got = collector(world)
    for count in range(1, 51):
        client = world.connect()
        client.emit('message', count)
        client.disconnect()
        eventually(lambda count=count: got == list(range(1, count + 1)))


def test_emit_before_close_of_the_instance_is_delivered(pair: Any, make: Any) -> None:
    world = pair()
    got = collector(world)
    for count in range(20):
        client = world.connect()
        for number in range(5):
            client.emit('message', [count, number])
        client._removed.__self__.close()
    eventually(lambda: got == [[count, number] for count in range(20) for number in range(5)])


@pytest.mark.parametrize('end', ['', 'raise SystemExit(0)', 'raise ValueError("script failed")'], ids=repr)
def test_emit_before_the_end_of_a_script_is_delivered(pair: Any, end: str) -> None:
    world = pair()
    got = collector(world)
    address = world.server.address
    connect = f'connect_to("world", {address!r})' if isinstance(address, str) else f'connect_to_net("world", *{address!r})'
    script = (
        'import nodeipc\n'
        f'client = nodeipc.ipc.{connect}\n'
        'for number in range(100): client.emit("message", number)\n'
        f'client.emit("message", "y" * 3_000_000)\n{end}\n'
    )
    process = subprocess.run(
        [sys.executable, '-S', '-X', 'dev', '-W', 'error', '-c', script],
        env={**os.environ, 'PYTHONPATH': os.getcwd()},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == ('Value' in end)
    assert (b'ValueError' in process.stderr) == ('Value' in end)
    eventually(lambda: len(got) == 101)
    assert got[:100] == list(range(100))


def test_megabytes_that_are_still_queued_are_delivered(pair: Any) -> None:
    world = pair()
    gate = threading.Event()
    got: List[int] = []

    @world.server.on('message')
    def handle(data: str) -> None:
        gate.wait(20)
        got.append(len(data))

    world.start()
    client = world.connect()
    for _ in range(60):
        client.emit('message', BLOCK)
    assert client.stats()['pending_bytes'] > 1_000_000
    leaving = threading.Thread(target=client.disconnect)
    leaving.start()
    eventually(lambda: not client.connected or client._closing)
    gate.set()
    leaving.join(30)
    eventually(lambda: got == [len(BLOCK)] * 60)


def test_unread_input_does_not_destroy_what_was_emitted(pair: Any) -> None:
    """A TCP socket that is closed with unread input is reset, and the reset overtakes what was sent."""
    world = pair()
    got: List[Any] = []
    server_log = Log()
    world.server.on('*', server_log)

    @world.server.on('message')
    def handle(data: Any, socket: Any) -> None:
        got.append(data)
        try:
            for _ in range(3):
                socket.emit('flood', BLOCK)
        except NotConnectedError:
            pass

    world.start()
    for count in range(5):
        got.clear()
        client = world.connect()
        busy = threading.Event()
        client.on('flood', lambda data, busy=busy: busy.wait(0.05))
        for number in range(30):
            client.emit('message', [count, number])
        client.emit('message', 'y' * 1_000_000)
        client.disconnect()
        busy.set()
        eventually(lambda: len(got) == 31)
        assert got[:30] == [[count, number] for number in range(30)]


def test_what_a_server_emitted_before_stop_is_delivered(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('*', log)
    world.start()
    answers = [Log() for _ in range(3)]
    for each in answers:
        world.connect(each, stop_retrying=True)
    log.wait('connect', 3)
    for number in range(50):
        world.server.broadcast('news', [number, BLOCK[:20_000]])
    world.server.stop()
    for each in answers:
        each.wait('destroy')
        assert [data[0] for (data,) in each.of('news')] == list(range(50))
        assert each.of('error') == []


def test_a_stopping_server_lets_handlers_finish_and_replies_leave(pair: Any) -> None:
    world = pair()
    started = threading.Event()
    gate = threading.Event()

    @world.server.on('work')
    def work(number: int, socket: Any) -> None:
        started.set()
        gate.wait(20)
        socket.emit('done', number)

    world.start()
    log = Log()
    client = world.connect(log, stop_retrying=True)
    for number in range(20):
        client.emit('work', number)
    eventually(lambda: world.server.stats()['messages_in'] == 20)
    assert started.wait(10)
    stopping = threading.Thread(target=world.server.stop)
    stopping.start()
    eventually(lambda: not world.server.listening)
    gate.set()
    stopping.join(20)
    log.wait('destroy')
    assert [number for (number,) in log.of('done')] == list(range(20))
    assert log.of('error') == []


def test_a_half_closed_client_gets_its_answers(pair: Any) -> None:
    world = pair()
    world.server.on('ask', lambda data, socket: socket.emit('answer', data))
    world.start()
    with world.raw() as sock:
        sock.sendall(b'{"type":"ask","data":1}\f{"type":"ask","data":2}\f')
        sock.shutdown(socket.SHUT_WR)
        received = b''
        while True:
            chunk = sock.recv(100)
            if not chunk:
                break
            received += chunk
    assert received == b'{"type":"answer","data":1}\f{"type":"answer","data":2}\f'


def test_socket_close_delivers_what_was_emitted_and_drops_what_was_not_handled(pair: Any) -> None:
    world = pair()
    handled: List[int] = []

    @world.server.on('message')
    def handle(number: int, socket: Any) -> None:
        handled.append(number)
        if number == 3:
            for count in range(20):
                socket.emit('last', [count, BLOCK])
            socket.close()

    world.start()
    log = Log()
    client = world.connect(log, stop_retrying=True)
    with client.batch():
        for number in range(1, 11):
            client.emit('message', number)
    log.wait('destroy')
    assert [data[0] for (data,) in log.of('last')] == list(range(20))
    assert handled == [1, 2, 3]


def test_a_handler_may_disconnect_its_own_client(pair: Any) -> None:
    world = pair()
    got = collector(world)
    world.server.on('ready', lambda data, socket: socket.emit('go'))
    log = Log()
    client = world.connect(log)

    @client.on('go')
    def go() -> None:
        client.emit('message', 'bye')
        client.disconnect()
        assert not client.connected
        with pytest.raises(NotConnectedError):
            client.emit('message', 'too late')
        log('gone')

    client.emit('ready')

    eventually(lambda: got == ['bye'])
    log.wait('destroy')
    assert [event[0] for event in log.events if event[0] != 'go'] == ['connect', 'gone', 'disconnect', 'destroy']
    assert log.of('error') == []


@pytest.mark.parametrize('workers', [0, 1, 4])
def test_a_handler_may_stop_the_server(pair: Any, workers: int) -> None:
    world = pair(workers=workers)
    log = Log()

    @world.server.on('quit')
    def leave(data: Any, socket: Any) -> None:
        socket.emit('bye')
        world.server.stop()

    world.server.on('stop', lambda: log('stop'))
    world.start()
    answers = Log()
    client = world.connect(answers, stop_retrying=True)
    client.emit('quit')
    answers.wait('bye')
    answers.wait('destroy')
    log.wait('stop')
    assert not world.server.listening
    world.server.start()


@pytest.mark.parametrize('workers', [0, 1, 4])
def test_a_handler_may_close_the_instance(pair: Any, workers: int) -> None:
    world = pair(workers=workers)
    world.server.on('quit', lambda: world.ipc.close())
    world.start()
    log = Log()
    world.connect(log, stop_retrying=True).emit('quit')
    log.wait('destroy')
    assert world.ipc.wait(20)


def test_two_handlers_may_stop_the_server_at_once(pair: Any) -> None:
    world = pair()
    barrier = threading.Barrier(2)

    @world.server.on('quit')
    def leave() -> None:
        barrier.wait(10)
        world.server.stop()

    world.start()
    logs = [Log(), Log()]
    for log in logs:
        world.connect(log, stop_retrying=True).emit('quit')
    for log in logs:
        log.wait('destroy')
    eventually(lambda: world.server._state == 'stopped')


def test_goodbye_to_a_peer_that_takes_nothing_is_bounded_and_reported(pair: Any) -> None:
    world = pair(stall_timeout=100, max_pending_bytes=20_000_000)
    log = Log()
    world.server.on('*', log)
    world.start()
    deaf = world.raw()
    ((accepted,),) = log.wait('connect')
    for _ in range(100):
        accepted.emit('block', BLOCK)
    world.server.stop()
    ((error, socket),) = log.wait('error')
    assert isinstance(error, ProtocolError)
    assert error.code == 'ERR_IPC_BACKPRESSURE'
    assert 'may not have been delivered' in str(error)
    assert socket is accepted
    assert [event[0] for event in log.events][-1] == 'stop'
    deaf.close()


def test_goodbye_to_a_peer_that_never_closes_is_bounded_and_silent(pair: Any) -> None:
    world = pair(stall_timeout=100)
    log = Log()
    world.server.on('*', log)
    world.start()
    open_for_ever = world.raw()
    log.wait('connect')
    world.server.broadcast('bye')
    world.server.stop()
    assert log.of('error') == []
    assert open_for_ever.recv(100) == b'{"type":"bye","data":{}}\f'
    open_for_ever.close()


def test_goodbye_to_a_peer_that_never_stops_sending_is_bounded(pair: Any) -> None:
    world = pair(stall_timeout=100)
    log = Log()
    world.server.on('connect', lambda socket: log('connect', socket))
    world.start()
    chatty = world.raw()
    log.wait('connect')
    ended = threading.Event()

    def chat() -> None:
        try:
            while True:
                chatty.sendall(b'{"type":"x","data":1}\f' * 100)
        except OSError:
            ended.set()

    talker = threading.Thread(target=chat)
    talker.start()
    world.server.stop()
    talker.join(20)
    assert ended.is_set()
    chatty.close()


def test_a_timeout_cuts_what_is_not_finished_and_says_so(pair: Any) -> None:
    world = pair(max_pending_bytes=20_000_000)
    log = Log()
    world.server.on('*', log)
    world.start()
    deaf = world.raw()
    ((accepted,),) = log.wait('connect')
    for _ in range(100):
        accepted.emit('block', BLOCK)
    start = time.monotonic()
    world.server.stop(timeout=0.1)
    assert time.monotonic() - start < 4  # the stall timeout is 5 s
    assert any('not all was delivered within 0.1 s' in str(error) for error, _ in log.wait('error'))
    deaf.close()


def test_a_handler_that_never_returns_does_not_hold_up_a_stop_with_a_timeout(pair: Any) -> None:
    world = pair()
    gate = threading.Event()
    started = threading.Event()

    @world.server.on('hang')
    def hang() -> None:
        started.set()
        gate.wait(60)

    world.start()
    log = Log()
    world.connect(log, stop_retrying=True).emit('hang')
    assert started.wait(10)
    world.server.stop(timeout=0.1)
    assert not world.server.listening
    log.wait('destroy')
    world.server.start()
    gate.set()


def test_no_handler_of_a_client_runs_after_disconnect_returned(pair: Any) -> None:
    world = pair()
    world.server.on('connect', lambda socket: [socket.emit('n', number) for number in range(300)])
    world.start()
    for _ in range(20):
        log = Log()
        client = world.connect(log)
        log.wait('n')
        client.disconnect()
        count = len(log.events)
        assert [event[0] for event in log.events][-2:] == ['disconnect', 'destroy']
        assert len(log.events) == count


def test_a_clients_undelivered_messages_are_reported(make: Any, tmp_path: Any) -> None:
    log = Log()
    path = str(tmp_path / 'deaf.sock')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        client = make(stop_retrying=True).connect_to('deaf', path, lambda client: client.on('*', log))
        peer, _ = listener.accept()
        log.wait('connect')
        for _ in range(50):
            client.emit('block', BLOCK)
        peer.close()
        log.wait('destroy')
        assert any(
            isinstance(error, NotConnectedError) and 'were not delivered' in str(error) for (error,) in log.of('error')
        )
    os.unlink(path)


def test_nothing_is_handled_after_a_handlers_disconnect(pair: Any) -> None:
    world = pair()

    @world.server.on('connect')
    def burst(socket: Any) -> None:
        for number in range(200):
            socket.emit('number', number)

    world.start()
    for _ in range(10):
        handled: List[int] = []
        log = Log()
        client = world.make(id='client')

        def number(value: int, handled: List[int] = handled, client: Any = client) -> None:
            handled.append(value)
            client.disconnect('world')

        def register(client: Any, log: Log = log, number: Any = number) -> None:
            client.on('*', log)
            client.on('number', number)

        if world.transport == 'unix':
            client.connect_to('world', world.server.address, register)
        else:
            client.connect_to_net('world', *world.server.address, register)
        log.wait('destroy')
        assert handled == [0]


def test_a_client_that_reads_nothing_does_not_keep_its_handlers_and_with_them_the_server(pair: Any) -> None:
    """The handler would wait for ever, and for each of the messages that have arrived."""
    world = pair(stall_timeout=100, emit_timeout=None, max_pending_bytes=10_000)
    log = Log()
    world.server.on('*', log)
    world.server.on('more', lambda data, socket: [socket.emit('answer', 'x' * 100_000) for _ in range(100)])
    world.start()
    with world.raw() as deaf:
        deaf.sendall(b'{"type":"more"}\f' * 100)
        log.wait('more')
        eventually(lambda: any(socket.pending_bytes > 10_000 for socket in world.server.sockets))
        world.server.stop()
    codes = [error.code for error, _ in log.of('error') if isinstance(error, ProtocolError)]
    assert codes == ['ERR_IPC_BACKPRESSURE']
    assert len(log.of('more')) == 100  # what has arrived is handled, though it cannot be answered


def test_a_stopping_server_waits_for_a_handler_longer_than_for_a_client(pair: Any) -> None:
    world = pair(stall_timeout=100)
    log, gate = Log(), threading.Event()
    world.server.on('*', log)
    world.server.on('ask', lambda data, socket: (gate.wait(20), socket.emit('answer', 'late')))
    world.start()
    with world.raw() as client:
        client.sendall(b'{"type":"ask"}\f')
        log.wait('ask')
        stopping = threading.Thread(target=world.server.stop)
        stopping.start()
        client.settimeout(0.3)
        with pytest.raises(socket.timeout):  # several stall timeouts in which there is nothing to take
            client.recv(100)
        gate.set()
        client.settimeout(20)
        assert client.recv(100) == b'{"type":"answer","data":"late"}\f'
    stopping.join(20)
    assert not stopping.is_alive()
    assert not log.of('error')
