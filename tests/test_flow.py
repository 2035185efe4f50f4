"""Flow control: what happens when somebody does not keep up. Memory stays flat, and only the slow one pays."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any, List

import pytest

from nodeipc import EmitTimeout, NotConnectedError, ProtocolError
from nodeipc.connection import Connection

from .conftest import Log, eventually

MIB = 1 << 20
BLOCK = 'x' * 100_000


def test_a_handler_that_falls_behind_makes_its_peers_emit_block(pair: Any) -> None:
    world = pair()
    gate = threading.Event()
    handled: List[int] = []

    @world.server.on('block')
    def handle(data: str) -> None:
        gate.wait(30)
        handled.append(len(data))

    world.start()
    client = world.connect(max_pending_bytes=MIB)
    assert client.wait_connected(20)
    sent = 0
    with pytest.raises(EmitTimeout, match=r"client 'world' .* takes no more.*max_pending_bytes"):
        for _ in range(1000):
            client.emit('block', BLOCK, timeout=0.1)
            sent += 1
    # The client's queue, the system's buffers, what the server read ahead: a few megabytes, and not the thousand blocks.
    assert sent < 200
    assert world.server.stats()['bytes_in'] < 2 * MIB
    assert client.stats()['pending_bytes'] <= MIB + len(BLOCK) + 100
    gate.set()
    client.emit('block', 'last', timeout=20)
    eventually(lambda: handled and handled[-1] == 4)
    assert len(handled) == sent + 1  # all that was accepted, and nothing of what was refused


def test_a_large_event_counts_whole_however_many_chunks_it_came_in(pair: Any) -> None:
    world = pair()
    gate = threading.Event()
    world.server.on('block', lambda: gate.wait(30))
    world.start()
    client = world.connect(max_pending_bytes=MIB)
    assert client.wait_connected(20)
    with pytest.raises(EmitTimeout):
        for _ in range(20):
            client.emit('block', 'x' * MIB, timeout=0.1)
    try:
        eventually(lambda: world.server.stats()['messages_in'])
        assert world.server.stats()['messages_in'] == 1
    finally:
        gate.set()


def test_small_events_are_bounded_too(pair: Any) -> None:
    world = pair()
    gate = threading.Event()
    world.server.on('n', lambda: gate.wait(30))
    world.start()
    client = world.connect(max_pending_bytes=100_000)
    assert client.wait_connected(20)
    with pytest.raises(EmitTimeout):
        while True:
            client.emit('n', 'x' * 40, timeout=0.1)
    try:
        assert world.server.stats()['bytes_in'] < MIB
    finally:
        gate.set()


def test_other_connections_are_served_while_one_is_behind(pair: Any) -> None:
    world = pair()
    gate = threading.Event()

    @world.server.on('block')
    def stuck() -> None:
        gate.wait(30)

    world.server.on('ask', lambda data, socket: socket.emit('answer', data))
    world.start()
    slow = world.connect(max_pending_bytes=MIB)
    assert slow.wait_connected(20)
    with pytest.raises(EmitTimeout):
        for _ in range(1000):
            slow.emit('block', BLOCK, timeout=0.1)
    log = Log()
    other = world.connect(log)
    for number in range(50):
        other.emit('ask', number)
    try:
        assert [data for (data,) in log.wait('answer', 50)] == list(range(50))
    finally:
        gate.set()


def test_a_client_that_never_reads_costs_its_emitter_a_timeout_and_others_nothing(pair: Any) -> None:
    world = pair(max_pending_bytes=MIB)
    log = Log()
    world.server.on('*', log)
    world.start()
    deaf = world.raw()
    ((deaf_socket,),) = log.wait('connect')
    answers = Log()
    world.connect(answers)
    _, (socket,) = log.wait('connect', 2)
    with pytest.raises(EmitTimeout, match='a client of server .* takes no more'):
        for _ in range(1000):
            deaf_socket.emit('block', BLOCK, timeout=0.1)
    assert deaf_socket.pending_bytes <= MIB + len(BLOCK) + 100
    socket.emit('block', 'fine')
    assert answers.wait('block') == [('fine',)]
    assert deaf_socket.connected
    deaf.close()
    log.wait('socket.disconnected')
    assert not deaf_socket.connected
    # what was accepted and cannot be delivered any more is reported, and emitting says so
    assert any(isinstance(error, NotConnectedError) and 'not delivered' in str(error) for error, _ in log.of('error'))
    with pytest.raises(NotConnectedError):
        deaf_socket.emit('block')


def test_a_blocked_emit_ends_when_the_peer_goes(pair: Any) -> None:
    world = pair(max_pending_bytes=MIB)
    log = Log()
    world.server.on('*', log)
    world.start()
    deaf = world.raw()
    ((socket,),) = log.wait('connect')
    raised = Log()

    def emit() -> None:
        try:
            while True:
                socket.emit('block', BLOCK, timeout=60)
        except NotConnectedError as error:
            raised('error', error)

    emitter = threading.Thread(target=emit)
    emitter.start()
    eventually(lambda: socket.pending_bytes > MIB)
    deaf.close()
    emitter.join(20)
    assert not emitter.is_alive()
    assert raised.of('error')


def test_a_refused_message_is_not_sent_in_part(pair: Any) -> None:
    world = pair(max_pending_bytes=MIB)
    log = Log()
    world.server.on('*', log)
    world.start()
    slow = world.raw()
    ((socket,),) = log.wait('connect')
    sent = 0
    with pytest.raises(EmitTimeout):
        while True:
            socket.emit('block', [sent, BLOCK], timeout=0.1)
            sent += 1
    done = threading.Event()
    received = bytearray()

    def read() -> None:
        while not received.endswith(b'"end"}\f'):
            received.extend(slow.recv(1 << 20))
        done.set()

    reader = threading.Thread(target=read)
    reader.start()
    socket.emit('block', 'end', timeout=20)
    reader.join(20)
    assert done.is_set()
    frames = bytes(received).split(b'\f')
    assert len(frames) == sent + 2
    assert [frame[:26] for frame in frames[:-2]] == [f'{{"type":"block","data":[{n},"x'.encode()[:26] for n in range(sent)]
    slow.close()


def test_a_message_larger_than_the_queue_passes_when_it_is_alone(pair: Any) -> None:
    world = pair()
    got: List[int] = []
    world.server.on('block', lambda data: got.append(len(data)))
    world.start()
    client = world.connect(max_pending_bytes=1000)
    for _ in range(3):
        client.emit('block', 'x' * 3_000_000)
    eventually(lambda: got == [3_000_000] * 3)


def test_thirty_megabytes_broadcast_in_a_loop_reach_every_client_that_reads(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('*', log)
    world.start()
    counts = [0] * 4
    last: List[int] = [-1] * 4

    def count(which: int, data: List[Any]) -> None:
        assert data[0] == last[which] + 1
        last[which] = data[0]
        counts[which] += 1

    for which in range(4):
        world.connect().on('block', lambda data, which=which: count(which, data))
    log.wait('connect', 4)
    for number in range(300):
        world.server.broadcast('block', [number, BLOCK])
    eventually(lambda: counts == [300] * 4, 60)
    assert log.of('error') == []


def test_a_broadcast_waits_for_the_slow_and_cuts_off_the_stuck(pair: Any) -> None:
    world = pair(max_pending_bytes=MIB, stall_timeout=300)
    log = Log()
    world.server.on('*', log)
    world.start()
    stuck = world.raw()
    ((stuck_socket,),) = log.wait('connect')
    counts = Log()
    world.connect().on('block', lambda data: counts('block', len(data)))
    slow = world.raw()
    log.wait('connect', 3)
    received = [0]
    stop = threading.Event()

    def read_slowly() -> None:
        while not stop.is_set():
            chunk = slow.recv(50_000)
            received[0] += len(chunk)
            if not chunk:
                return
            time.sleep(0.001)  # the subject of this test, not a wait for luck

    reader = threading.Thread(target=read_slowly)
    reader.start()
    for _ in range(80):
        world.server.broadcast('block', BLOCK)
    counts.wait('block', 80)
    ((error, socket),) = log.wait('error')
    assert isinstance(error, ProtocolError)
    assert error.code == 'ERR_IPC_BACKPRESSURE'
    assert 'stall_timeout' in str(error)
    assert socket is stuck_socket
    log.wait('socket.disconnected')
    assert not stuck_socket.connected
    frame = len(b'{"type":"block","data":""}\f') + len(BLOCK)
    eventually(lambda: received[0] == 80 * frame, 60)
    stop.set()
    world.server.stop()
    reader.join(10)
    stuck.close()
    slow.close()


def test_a_stuck_client_delays_nobodys_delivery_of_a_broadcast(pair: Any) -> None:
    world = pair(max_pending_bytes=MIB, stall_timeout=60_000)
    log = Log()
    world.server.on('*', log)
    world.start()
    stuck = world.raw()
    log.wait('connect')
    counts = Log()
    world.connect().on('block', lambda data: counts('block', data[0]))
    log.wait('connect', 2)
    blocked = threading.Event()

    def broadcast() -> None:
        for number in range(100):
            world.server.broadcast('block', [number, BLOCK])
        blocked.set()

    caster = threading.Thread(target=broadcast)
    caster.start()
    eventually(lambda: world.server.stats()['pending_bytes'] > MIB)
    # The message over which the broadcaster waits has reached the other client already.
    number = eventually(lambda: len(counts.of('block')) > 10 and len(counts.of('block')))
    assert not blocked.is_set()
    eventually(lambda: len(counts.of('block')) * len(BLOCK) > MIB)
    assert number
    stuck.close()
    caster.join(20)
    assert blocked.is_set()
    counts.wait('block', 100)


def test_workers_0_can_block_in_emit_without_stopping_the_reactor(pair: Any) -> None:
    world = pair(workers=0, max_pending_bytes=MIB)
    log = Log()
    world.server.on('connect', lambda socket: log('connect', socket))

    @world.server.on('flood')
    def flood(count: int, socket: Any) -> None:
        for number in range(count):
            socket.emit('block', [number, BLOCK], timeout=20)

    world.start()
    got: List[int] = []
    client = world.connect()
    client.on('block', lambda data: got.append(data[0]))
    client.emit('flood', 100)
    eventually(lambda: len(got) == 100, 60)
    assert got == list(range(100))


def test_workers_0_a_handler_may_wait_for_another_connection(make: Any) -> None:
    ipc = make(workers=0)
    log = Log()
    ipc.serve().on('hello', lambda data, socket: log('hello', data))

    @ipc.server.on('start')
    def start() -> None:
        client = ipc.connect_to('world')
        client.emit('hello', 1)
        assert client.wait_connected(10)
        client.emit('hello', 2)
        client.flush(10)
        client.disconnect()
        log('done')

    ipc.server.start()
    log.wait('done')
    assert [data for (data,) in log.wait('hello', 2)] == [1, 2]


def test_flush_waits_until_all_is_written(pair: Any) -> None:
    world = pair()
    gate = threading.Event()
    world.server.on('block', lambda: gate.wait(20))
    world.start()
    client = world.connect()
    client.flush()
    for _ in range(60):
        client.emit('block', BLOCK)
    assert client.stats()['pending_bytes'] > 0
    with pytest.raises(EmitTimeout, match=r'were not written within 0.05 s'):
        client.flush(0.05)
    gate.set()
    client.flush(20)
    assert client.stats()['pending_bytes'] == 0


def test_flush_tells_of_a_connection_that_is_lost_meanwhile(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('*', log)
    world.start()
    deaf = world.raw()
    ((socket,),) = log.wait('connect')
    for _ in range(60):
        socket.emit('block', BLOCK)
    raised = Log()

    def flush() -> None:
        try:
            socket._connection.flush(20)
        except NotConnectedError as error:
            raised('error', error)

    flusher = threading.Thread(target=flush)
    flusher.start()
    deaf.close()
    flusher.join(20)
    assert 'was lost with' in str(raised.wait('error')[0][0])


def test_a_client_is_told_of_a_loss_by_one_flush(pair: Any) -> None:
    world = pair()
    accepted = Log()
    world.server.on('*', accepted)
    world.start()
    client = world.connect()
    ((socket,),) = accepted.wait('connect')
    socket._connection.call(socket._connection.stop_reading)
    for _ in range(80):
        client.emit('block', BLOCK)
    raised = Log()

    def flush() -> None:
        try:
            client.flush(20)
        except NotConnectedError as error:
            raised('error', error)

    flusher = threading.Thread(target=flush)
    flusher.start()
    socket._connection.call(socket._connection.abort)
    flusher.join(20)
    assert 'bytes were not delivered' in str(raised.wait('error')[0][0])
    client.flush(20)


def test_flush_tells_of_what_was_lost_before_it_was_called(pair: Any) -> None:
    world = pair()
    accepted, log = Log(), Log()
    world.server.on('*', accepted)
    world.start()
    client = world.connect(log)
    ((socket,),) = accepted.wait('connect')
    socket._connection.call(socket._connection.stop_reading)
    for _ in range(80):
        client.emit('block', BLOCK)
    assert client.stats()['pending_bytes'] > 0
    socket._connection.call(socket._connection.abort)
    log.wait('connect', 2)
    with pytest.raises(NotConnectedError, match='bytes were not delivered'):
        client.flush(20)
    client.flush(20)  # once


def test_a_broadcast_does_not_cut_off_a_client_that_reads_slowly(pair: Any) -> None:
    world = pair(max_pending_bytes=1, stall_timeout=250)
    log = Log()
    world.server.on('*', log)
    world.start()
    slow = world.raw()
    log.wait('connect')
    done = threading.Event()

    def read_slowly() -> None:
        chunk = b'begin'
        while chunk and not chunk.endswith(b'"}\f'):
            chunk = slow.recv(400_000)
            time.sleep(0.03)  # slower in all than the stall timeout, and never as slow at once
        if chunk:
            done.set()

    reader = threading.Thread(target=read_slowly)
    reader.start()
    # On a Unix socket a read gets half of what it asks for.
    world.server.broadcast('block', 'x' * (3_000_000 if world.transport == 'unix' else 6_000_000))
    reader.join(60)
    assert done.is_set()
    assert log.of('error') == []
    slow.close()


def test_many_stuck_clients_cost_a_broadcast_one_stall_timeout(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    world = pair(max_pending_bytes=1, stall_timeout=150)
    log = Log()
    world.server.on('*', log)
    world.start()
    stuck = [world.raw() for _ in range(6)]
    log.wait('connect', 6)
    waits: List[float] = []
    wait = Connection._wait

    def counting(self: Any, predicate: Any, timeout: Any) -> bool:
        waits.append(timeout)
        return wait(self, predicate, timeout)

    monkeypatch.setattr(Connection, '_wait', counting)
    monkeypatch.setattr('nodeipc.reentry.has_interrupted_us', lambda: False)  # we have not, but it looks like that
    world.server.broadcast('block', 'x' * 10_000_000)
    log.wait('error', 6)
    assert sum(waits) < 2 * 0.15
    for sock in stuck:
        sock.close()


def test_a_client_that_comes_back_does_not_read_ahead_of_a_handler_that_is_stuck(make: Any, tmp_path: Any) -> None:
    path = str(tmp_path / 'flood.sock')
    gate = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        ipc = make(retry=1, stall_timeout=100)
        client = ipc.connect_to('flood', path, lambda client: client.on('a', lambda: gate.wait(30)))
        reading = True
        connections = 0
        while reading and connections < 40:
            peer, _ = listener.accept()
            connections += 1
            with peer:
                peer.settimeout(0.5)
                peer.sendall(b'{"type":"a"}\f' * 4000 + b'x\f')  # which ends the connection as soon as it is read
                try:
                    while peer.recv(100):
                        pass
                except socket.timeout:
                    reading = False
                except ConnectionResetError:
                    pass
                if not reading:
                    assert client.stats()['bytes_in'] < MIB
                    gate.set()
                    client.disconnect()
        assert not reading
    os.unlink(path)


def test_clients_that_went_count_until_their_events_are_handled(pair: Any) -> None:
    world = pair(max_connections=3)
    gate = threading.Event()
    log = Log()
    world.server.on('a', lambda: gate.wait(30))
    world.server.on('*', log)
    world.start()
    for number in range(30):
        with world.raw() as sock:
            try:
                sock.sendall(b'{"type":"a"}\f' * 100)
                if number < 3:
                    log.wait('connect', number + 1)
                else:  # refused
                    while sock.recv(1000):
                        pass
            except OSError:
                pass
    try:
        assert len(log.of('connect')) == 3
        assert len(world.server._unfinished) == 3
    finally:
        gate.set()
    eventually(lambda: not world.server._unfinished)
    with world.raw():
        log.wait('connect', 4)


def test_a_broadcast_cuts_off_a_client_that_reads_for_a_while_and_then_stops(pair: Any) -> None:
    world = pair(max_pending_bytes=1, stall_timeout=200)
    log = Log()
    world.server.on('*', log)
    world.start()
    tired = world.raw()
    log.wait('connect')

    def read_some() -> None:
        for _ in range(10):
            tired.recv(400_000)

    reader = threading.Thread(target=read_some)
    reader.start()
    world.server.broadcast('block', 'x' * 20_000_000)
    reader.join(20)
    assert log.wait('error')[0][0].code == 'ERR_IPC_BACKPRESSURE'
    tired.close()


def test_workers_0_no_other_handler_runs_while_one_waits(make: Any) -> None:
    ipc = make(workers=0)
    log = Log()
    server = ipc.serve()

    @server.on('wait')
    def wait() -> None:
        log('begin')
        ipc.connect_to('nobody').wait_connected(0.3)
        log('end')

    server.on('ping', lambda: log('ping'))
    server.start()
    first, second = make(id='first').connect_to('world'), make(id='second').connect_to('world')
    second.emit('ping')
    log.wait('ping')
    first.emit('wait')
    log.wait('begin')
    second.emit('ping')
    eventually(lambda: server.stats()['messages_in'] == 3)  # read, that is, while the handler waits
    assert log.events == [('ping',), ('begin',)]
    log.wait('ping', 2)
    assert log.events == [('ping',), ('begin',), ('end',), ('ping',)]
