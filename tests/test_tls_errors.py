"""TLS with peers that are hostile, slow or mistaken: they cost themselves a connection, and nobody else anything."""

from __future__ import annotations

import errno
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any, Callable, Iterator, List

import pytest

from nodeipc import ProtocolError

from .certificates import Certificates
from .conftest import Log, eventually
from .platforms import needs_descriptors
from .tls_peers import VERSIONS, ByHand, World, client_context, listener, of_version, server_context, turns_while_idle

Worlds = Callable[..., World]
far_server = pytest.fixture(listener)

FRAME = b'{"type":"a","data":1}\f'


@pytest.fixture
def world(make: Any, certificates: Certificates) -> Worlds:
    return lambda **settings: World(make, certificates, **settings)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def crowd() -> Iterator[Callable[[World, int], List[socket.socket]]]:
    """Have many connect, as many as descriptors allow: they and what the server accepts are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    everybody: List[socket.socket] = []

    def come(here: World, count: int) -> List[socket.socket]:
        count = min(count, (max(soft, wanted) - 200) // 2)
        socks = [here.plain() for _ in range(count)]
        everybody.extend(socks)
        return socks

    yield come
    for sock in everybody:
        sock.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def reset_on_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))


# Handshakes that are not done


@pytest.mark.parametrize('says', [b'', b'\x16', b'\x16\x03\x01'], ids=['nothing', 'one byte', 'three bytes'])
def test_a_thousand_peers_that_do_not_shake_hands_delay_nobody(world: Worlds, crowd: Any, says: bytes) -> None:
    needs_descriptors(1000)
    here = world(connect_timeout=60_000).start()
    here.server.on('message', lambda data, socket: socket.emit('message', data))
    before, before_log = here.connect()
    before.emit('message', 0)
    before_log.wait('message')
    peers = crowd(here, 1000)
    if says:
        for peer in peers:
            try:
                peer.sendall(says)
            except OSError:  # displaced already
                pass
    for _ in range(3):
        client, log = here.connect()
        client.emit('message', 1, timeout=20)
        log.wait('message')
        assert log.of('error') == []
        client.disconnect()
    before.emit('message', 2)
    before_log.wait('message', 2)
    assert len(before_log.of('connect')) == 1
    lobby = here.server._lobby
    assert len(lobby._silent) + len(lobby._speaking) <= 2 * lobby._places < 1000
    assert len(here.log.of('error')) < 50
    here.server.stop()
    assert not lobby._silent
    assert not lobby._speaking


def test_peers_who_say_a_byte_now_and_then_are_cut_by_the_timeout(world: Worlds, crowd: Any) -> None:
    here = world(connect_timeout=700).start()
    peers = crowd(here, 100)
    hello = b'\x16\x03\x01\x02\x00'
    stop = threading.Event()

    def trickle() -> None:
        for position in range(10_000):
            for peer in peers:
                try:
                    peer.send(hello[position:position + 1] or b'\x01')
                except OSError:
                    pass
            if stop.wait(0.05):
                return

    trickler = threading.Thread(target=trickle)
    trickler.start()
    client, log = here.connect()
    client.emit('message')
    here.log.wait('message')
    lobby = here.server._lobby
    try:
        eventually(lambda: not lobby._silent and not lobby._speaking, 10)
    finally:
        stop.set()
        trickler.join(20)
    (error, accepted), *_ = here.log.wait('error')
    assert accepted is None
    assert 'config.connect_timeout' in str(error) or 'bytes' in str(error) or 'does not speak TLS' in str(error)
    assert client.connected
    assert log.of('error') == []


def test_a_handshake_that_takes_too_long_is_cut_and_leaves_nothing(world: Worlds) -> None:
    here = world(connect_timeout=100).start()
    with here.plain() as silent, here.by_hand() as half_way:
        half_way.say_hello()
        assert silent.recv(100) == b''
        while half_way.receive():
            pass
    errors = here.log.wait('error')
    for error, accepted in errors:
        assert 'TLS handshake' in str(error)
        assert 'longer than 0.1 s (config.connect_timeout)' in str(error)
        assert "server 'world' (tls://127.0.0.1:" in str(error)
        assert accepted is None
    lobby = here.server._lobby
    eventually(lambda: not lobby._silent and not lobby._speaking)
    assert here.server.stats()['connections_total'] == 0


def test_silent_peers_do_not_displace_one_that_is_shaking_hands(world: Worlds, crowd: Any) -> None:  # defect 2
    here = world(max_connections=10).start()
    with here.by_hand() as slow:
        slow.say_hello()
        assert slow.receive()
        crowd(here, 600)
        lobby = here.server._lobby
        eventually(lambda: len(lobby._silent) == lobby._places)
        slow.shake_hands().write(FRAME).send()
        here.log.wait('a')


def test_peers_that_leave_while_they_are_displaced(
    world: Worlds, crowd: Any, caplog: pytest.LogCaptureFixture
) -> None:  # defect 16
    here = world(max_connections=10).start()
    lobby = here.server._lobby
    held, hold = threading.Event(), threading.Event()
    peers = crowd(here, lobby._places)
    eventually(lambda: len(lobby._silent) == lobby._places)
    here.ipc._engine.reactor.call(lambda: (held.set(), hold.wait(20)))
    assert held.wait(20)
    crowd(here, 60)
    for peer in peers:
        peer.close()
    hold.set()
    eventually(lambda: len(lobby._silent) == 60)
    here.still_serves()
    assert 'please report this' not in caplog.text


def test_peers_that_speak_while_they_are_displaced(world: Worlds, crowd: Any, caplog: pytest.LogCaptureFixture) -> None:
    here = world(max_connections=10).start()  # defect 16
    lobby = here.server._lobby
    held, hold = threading.Event(), threading.Event()
    peers = crowd(here, lobby._places)
    for peer in peers:
        peer.sendall(b'\x16')
    eventually(lambda: len(lobby._speaking) == lobby._places)
    late = crowd(here, 60)
    eventually(lambda: len(lobby._silent) == 60)
    here.ipc._engine.reactor.call(lambda: (held.set(), hold.wait(20)))
    assert held.wait(20)
    for peer in (*late, *peers):
        peer.sendall(b'\x03')
    hold.set()
    eventually(lambda: not lobby._silent)
    here.still_serves()
    assert 'please report this' not in caplog.text


def test_many_clients_that_come_at_once_are_all_served(make: Any, certificates: Certificates, crowd: Any) -> None:
    here = World(make, certificates, max_connections=500).start()
    ipc = make(id='client', tls=certificates.client())
    logs = [Log() for _ in range(300)]
    for number, log in enumerate(logs):
        client = ipc.connect_to_net(f'world{number}', *here.server.address)
        client.on('*', log)
        client._reactor.call(lambda: None)
    eventually(lambda: here.server.stats()['connections'] == len(logs))
    assert [log.of('error') for log in logs if log.of('error')] == []
    assert here.log.of('error') == []


def test_silent_peers_leave_descriptors_for_those_who_speak(make: Any, certificates: Certificates) -> None:
    """In a process of its own, which may have few of them."""
    program = (
        'import resource, sys, nodeipc\n'
        'resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n'
        'with nodeipc.IPC(id="world", max_connections=20, tls=dict(private=sys.argv[1], public=sys.argv[2])) as ipc:\n'
        '    server = ipc.serve_net("127.0.0.1", 0)\n'
        '    server.on("ask", lambda data, socket: socket.emit("answer", data))\n'
        '    server.start()\n'
        '    print(server.address[1], flush=True)\n'
        '    sys.stdin.read()\n'
    )
    command = [sys.executable, '-S', '-W', 'error', '-c', program, certificates.key('server'), certificates.pem('server')]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        child = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe))
        stack.callback(child.kill)
        address = '127.0.0.1', int(child.stdout.readline())
        for _ in range(300):
            stack.enter_context(socket.create_connection(address))
        log = Log()
        client = make(tls=certificates.client()).connect_to_net('world', *address, lambda client: client.on('*', log))
        client.emit('ask', 1)
        assert log.wait('answer') == [(1,)]
        assert not log.of('error')
        _, said = child.communicate(timeout=60)
        assert child.returncode == 0
        assert b'cannot accept' not in said


def test_stop_does_not_wait_for_handshakes(world: Worlds, crowd: Any) -> None:
    here = world(connect_timeout=60_000).start()
    silent = crowd(here, 20)
    half_way = here.by_hand()
    half_way.say_hello()
    lobby = here.server._lobby
    eventually(lambda: len(lobby._silent) == 20 and len(lobby._speaking) == 1)
    here.server.stop()
    for peer in silent:
        assert peer.recv(10) == b''
    with half_way:
        while half_way.receive():
            pass
    assert here.log.of('error') == []
    here.server.start()
    here.still_serves()


def test_a_client_can_be_disconnected_during_its_handshake(make: Any, certificates: Any, far_server: socket.socket) -> None:
    log = Log()
    ipc = make(tls=certificates.client(), connect_timeout=60_000)
    client = ipc.connect_to_net('world', *far_server.getsockname(), lambda client: client.on('*', log))
    with far_server.accept()[0] as peer:
        assert peer.recv(10)
        client.disconnect()
        while peer.recv(1000):
            pass
    assert log.events == [('destroy',)]


def test_handshakes_do_not_pass_the_limit_of_connections(world: Worlds) -> None:
    here = world(max_connections=2).start()
    peers = [here.by_hand() for _ in range(5)]
    for peer in peers:
        peer.say_hello()
        peer.receive()
    for peer in peers:
        try:
            peer.shake_hands()
        except OSError:
            pass
    here.log.wait('connect', 2)
    error, accepted = here.log.wait('error')[0]
    assert error.errno == errno.ECONNREFUSED
    assert 'max_connections' in str(error)
    assert accepted is None
    assert len(here.server.sockets) == 2
    for peer in peers:
        peer.sock.close()
    eventually(lambda: not here.server.sockets)
    here.still_serves()


@pytest.mark.parametrize('leaves', ['FIN', 'RST'])
def test_peers_that_connect_and_leave_are_told_of_and_forgotten(world: Worlds, leaves: str) -> None:
    here = world().start()
    for _ in range(20):
        with here.plain() as peer:
            if leaves == 'RST':
                reset_on_close(peer)
    here.log.wait('error')
    lobby = here.server._lobby
    eventually(lambda: not lobby._silent)
    here.still_serves()
    for error, accepted in here.log.of('error'):
        assert 'TLS handshake' in str(error)
        assert accepted is None


# Who does not speak TLS


@pytest.mark.parametrize(
    'says', [FRAME, b'GET / HTTP/1.1\r\n\r\n', b'\x00' * 100, b'SSH-2.0-x\r\n'], ids=['plain', 'HTTP', 'zeros', 'SSH']
)
def test_whoever_does_not_speak_tls_is_told_of_at_once(world: Worlds, says: bytes) -> None:
    here = world(connect_timeout=60_000).start()
    witness, _ = here.connect()
    assert witness.wait_connected(20)
    with here.plain() as peer:
        peer.sendall(says)
        ((error, accepted),) = here.log.wait('error')
        try:
            while peer.recv(100):
                pass
        except ConnectionResetError:
            pass
    assert isinstance(error, ssl.SSLError)
    assert "server 'world' (tls://127.0.0.1:" in str(error)
    assert 'TLS handshake with 127.0.0.1:' in str(error)
    assert 'does not speak TLS; set config.tls on both sides, or on neither' in str(error)
    assert accepted is None
    witness.emit('message')
    here.log.wait('message')


def test_a_plain_client_on_a_tls_port(make: Any, world: Worlds) -> None:
    here = world().start()
    log = Log()
    client = make(id='client').connect_to_net('world', *here.server.address, lambda client: client.on('*', log))
    client.emit('message', 1)
    assert 'does not speak TLS; set config.tls on both sides' in str(here.log.wait('error')[0][0])
    log.wait('error')  # defect 12
    assert 'TLS' in str(log.of('error')[0][0])
    assert here.log.of('message') == here.log.of('connect') == []
    here.still_serves()


def test_a_tls_client_on_a_plain_port(make: Any, certificates: Certificates) -> None:
    ipc = make()
    server_log, log = Log(), Log()
    ipc.serve_net('127.0.0.1', 0).on('*', server_log)
    ipc.server.start()
    tls = make(id='client', tls=certificates.client(), max_retries=1, connect_timeout=60_000)
    client = tls.connect_to_net('world', *ipc.server.address, lambda client: client.on('*', log))
    log.wait('destroy')
    assert log.of('connect') == []
    assert 'does it speak TLS' in str(log.of('error')[0][0])
    assert 'TLS' in str(server_log.wait('error')[0][0])
    assert not client.connected


@pytest.mark.parametrize(
    'answers',
    [b'{"type":"welcome","data":{}}\f', b'220 hello\r\n', b'HTTP/1.1 400 Bad\r\n\r\n', b''],
    ids=['plain', 'SMTP', 'HTTP', 'nothing'],
)
def test_a_tls_client_on_somebody_elses_port(
    make: Any, certificates: Certificates, far_server: socket.socket, answers: bytes
) -> None:
    log = Log()
    ipc = make(tls=certificates.client(), max_retries=1)
    ipc.connect_to_net('world', *far_server.getsockname(), lambda client: client.on('*', log))
    for _ in range(2):
        with far_server.accept()[0] as peer:
            peer.recv(1)
            peer.sendall(answers)
    log.wait('destroy')
    error = str(log.of('error')[0][0])
    assert "client 'world' (tls://127.0.0.1:" in error
    assert 'speak TLS' in error
    assert log.of('connect') == []


def test_a_tls_client_whose_server_says_nothing(make: Any, certificates: Certificates, far_server: socket.socket) -> None:
    log = Log()
    ipc = make(tls=certificates.client(), stop_retrying=True, connect_timeout=100)
    ipc.connect_to_net('world', *far_server.getsockname(), lambda client: client.on('*', log))
    with far_server.accept()[0]:
        log.wait('destroy')
    ((error,),) = log.of('error')
    assert isinstance(error, TimeoutError)
    assert 'handshake was not done within connect_timeout (100 ms)' in str(error)


# What arrives in odd pieces


def test_events_that_come_with_the_clients_last_flight_are_handled(world: Worlds, version: str) -> None:
    here = world()
    here.server.on('a', lambda data, socket: socket.emit('b', data))
    here.start()
    with here.by_hand(version) as peer:
        # OpenSSL lets a client of 1.2 write only when the server's Finished has come; then it comes with a second piece.
        peer.shake_hands(hold_last=True)
        peer.write(FRAME).send()
        assert peer.read() == b'{"type":"b","data":1}\f'


def test_an_end_that_comes_with_the_clients_last_flight_is_seen(world: Worlds) -> None:
    here = world().start()
    with here.by_hand('TLSv1_3') as peer:
        peer.shake_hands(hold_last=True)
        peer.write(FRAME)
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.unwrap()
        peer.send()  # and its socket stays open
        here.log.wait('a')
        here.log.wait('socket.disconnected')
    assert here.log.of('error') == []


@pytest.mark.parametrize('end', [False, True], ids=['goes on', 'ends'])
def test_events_that_come_with_the_servers_last_flight_are_handled(
    make: Any, certificates: Certificates, version: str, far_server: socket.socket, end: bool
) -> None:
    log = Log()
    ipc = make(tls=certificates.client(), stop_retrying=True)
    client = ipc.connect_to_net('world', *far_server.getsockname(), lambda client: client.on('*', log))
    with ByHand(far_server.accept()[0], server_context(certificates, version), server_side=True) as peer:
        peer.shake_hands(hold_last=True)
        peer.write(FRAME * 3)
        if end:
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.unwrap()
        peer.send()
        log.wait('a', 3)
        assert log.events[0] == ('connect',)
        if end:
            log.wait('disconnect')
        else:
            client.emit('b')
            assert peer.read() == b'{"type":"b","data":{}}\f'
    assert log.of('error') == []


def test_many_records_in_one_segment_and_one_in_many(world: Worlds, version: str) -> None:
    here = world().start()
    with here.by_hand(version) as peer:
        peer.shake_hands()
        for number in range(500):
            peer.write(b'{"type":"n","data":%d}\f' % number)
        for number in range(500, 520):  # cut anywhere
            peer.write(b'{"type":"n",').write(b'"data":%d}' % number).write(b'\f')
        peer.send()
        assert [data for data, _ in here.log.wait('n', 520)] == list(range(520))
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in peer.write(FRAME).outgoing.read():
            peer.sock.sendall(bytes([byte]))
        here.log.wait('a')
    # An end between two records is one: what keeps count of them has not lost it.
    here.log.wait('socket.disconnected')


def test_a_handshake_byte_by_byte(world: Worlds, version: str) -> None:
    here = world().start()
    with here.by_hand(version) as peer:
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        whole = peer.sock.sendall
        peer.sock = type('Bytes', (), {  # each in a segment of its own
            'sendall': lambda _, data: [whole(bytes([byte])) for byte in data],
            'recv': lambda _, size, sock=peer.sock: sock.recv(size),
            'close': lambda _, sock=peer.sock: sock.close(),
        })()  # fmt: skip
        peer.shake_hands().write(FRAME).send()
        here.log.wait('a')


def test_a_client_that_comes_back_does_not_read_ahead_over_tls(
    make: Any, certificates: Certificates, far_server: socket.socket
) -> None:  # defect 7
    gate = threading.Event()
    ipc = make(tls=certificates.client(), retry=1, stall_timeout=100)
    client = ipc.connect_to_net('flood', *far_server.getsockname(), lambda client: client.on('a', lambda: gate.wait(30)))
    far_server.settimeout(0.5)
    context = server_context(certificates, 'TLSv1_2')
    reading = True
    try:
        for _ in range(30):
            try:
                peer = ByHand(far_server.accept()[0], context, server_side=True)
            except socket.timeout:
                reading = False
                break
            with peer:
                # With the server's last flight, and the end of the connection as soon as it is read.
                peer.shake_hands(hold_last=True).write(b'{"type":"a"}\f' * 1200).write(b'x\f' + FRAME * 2000).send()
                peer.sock.settimeout(0.5)
                try:
                    while peer.sock.recv(1 << 16):
                        pass
                except socket.timeout:
                    reading = False
                    break
                except ConnectionResetError:
                    pass
        assert not reading
        assert client.stats()['bytes_in'] < 1 << 20
    finally:
        gate.set()
        client.disconnect()


# What is not TLS in the middle, or not by the rules


def tampered(peer: ByHand) -> bytes:
    record = bytearray(peer.write(b'{"type":"c","data":1}\f').outgoing.read())
    record[-1] ^= 1
    return bytes(record)


MIDST = {
    'a record with a wrong tag': tampered,
    'plain text': lambda peer: b'{"type":"c","data":1}\f' * 10,
    'zeros': lambda peer: b'\0' * 1000,
    'a record of an unknown kind': lambda peer: b'\x63\x03\x03\x00\x05hello',
    'a record that is too long': lambda peer: b'\x17\x03\x03\xff\xff' + b'x' * 70_000,
    'a record that is empty': lambda peer: b'\x17\x03\x03\x00\x00',
    'a plain alert': lambda peer: b'\x15\x03\x03\x00\x02\x02\x28',
    'a plain ClientHello': lambda peer: b'\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03',
    'endless changes of the cipher': lambda peer: b'\x14\x03\x03\x00\x01\x01' * 1000,
}


@pytest.mark.parametrize('what', MIDST)
def test_nonsense_in_the_middle_costs_its_sender_alone(world: Worlds, version: str, what: str, monkeypatch: Any) -> None:
    here = world().start()
    witness, witness_log = here.connect()
    assert witness.wait_connected(20)
    with here.by_hand(version) as peer:
        peer.shake_hands()
        for number in range(20):
            peer.write(b'{"type":"a","data":%d}\f' % number)
        peer.sock.sendall(peer.outgoing.read() + MIDST[what](peer))
        assert [data for data, _ in here.log.wait('a', 20)] == list(range(20))
        ((error, accepted),) = here.log.wait('error')
        here.log.wait('socket.disconnected')
        try:
            while peer.sock.recv(1000):
                pass
        except ConnectionResetError:
            pass
    assert 'the connection to 127.0.0.1:' in str(error)
    assert 'TLS failed: ' in str(error) or 'TLS' in str(error) or 'refuse' in str(error) or 'encrypt' in str(error)
    assert accepted is here.log.of('socket.disconnected')[0][0]
    assert here.log.of('c') == []
    witness.emit('message')
    here.log.wait('message')
    assert witness_log.of('error') == []
    assert turns_while_idle(monkeypatch, 0.05) < 20


def test_a_client_survives_nonsense_from_its_server(
    make: Any, certificates: Certificates, version: str, far_server: socket.socket
) -> None:
    log = Log()
    ipc = make(tls=certificates.client())
    client = ipc.connect_to_net('world', *far_server.getsockname(), lambda client: client.on('*', log))
    context = server_context(certificates, version)
    with ByHand(far_server.accept()[0], context, server_side=True) as peer:
        peer.shake_hands().write(FRAME)
        peer.sock.sendall(peer.outgoing.read() + tampered(peer))
        log.wait('a')
        ((error,),) = log.wait('error')
        assert "the connection to client 'world' (tls://" in str(error)
        log.wait('disconnect')
    with ByHand(far_server.accept()[0], context, server_side=True) as peer:
        peer.shake_hands()
        client.emit('message', 1)
        assert peer.read() == b'{"type":"message","data":1}\f'


def test_a_message_that_breaks_the_rules_is_told_and_others_are_served(world: Worlds, version: str) -> None:
    here = world()
    here.server.on('a', lambda data, socket: socket.emit('b', data))
    here.start()
    with here.raw(version) as peer:
        peer.sendall(FRAME + b'not JSON\f' + FRAME)
        received = b''
        try:
            while not received.endswith(b'\f'):
                received += peer.recv(100)
        except OSError:
            pass
        assert received == b'{"type":"b","data":1}\f'
        assert peer.recv(100) == b''  # a close_notify
    ((error, _),) = here.log.wait('error')
    assert isinstance(error, ProtocolError)
    assert error.code == 'ERR_IPC_INVALID_JSON'
    assert here.log.of('a') == [(1, here.log.of('a')[0][1])]
    here.still_serves()


def test_a_peer_that_resets_is_told_of_and_others_are_served(world: Worlds, version: str) -> None:
    here = world().start()
    with here.by_hand(version) as peer:
        peer.shake_hands().write(FRAME).send()
        here.log.wait('a')
        reset_on_close(peer.sock)
    ((error, _),) = here.log.wait('error')
    assert isinstance(error, ConnectionResetError)
    here.log.wait('socket.disconnected')
    here.still_serves()


# Versions that are broken


@pytest.mark.parametrize('old', ['TLSv1', 'TLSv1_1'])
@pytest.mark.parametrize('end', ['server', 'client'])
def test_versions_below_1_2_are_refused_even_if_the_application_allows_them(
    make: Any, certificates: Certificates, far_server: socket.socket, old: str, end: str
) -> None:
    def weak(context: ssl.SSLContext) -> ssl.SSLContext:
        context.set_ciphers('DEFAULT@SECLEVEL=0')
        return of_version(context, old)

    both = weak(server_context(certificates)), weak(client_context(certificates))
    try:  # whether this OpenSSL still speaks it
        pipes = [ssl.MemoryBIO() for _ in range(2)]
        ends = both[0].wrap_bio(pipes[0], pipes[1], True), both[1].wrap_bio(pipes[1], pipes[0], False, 'localhost')
        for _ in range(4):
            for each in reversed(ends):
                try:
                    each.do_handshake()
                except ssl.SSLWantReadError:
                    pass
        assert ends[0].version() == old.replace('_', '.')
    except (ssl.SSLError, AssertionError):
        pytest.skip(f'this OpenSSL does not speak {old}')
    if end == 'server':
        here = World(make, certificates, tls=both[0]).start()
        with ByHand(here.plain(), both[1], server_hostname='localhost') as peer, suppress(AssertionError, OSError):
            peer.shake_hands().write(FRAME).send()
            while peer.receive():
                pass
        log = here.log
    else:
        log = Log()
        ipc = make(tls=both[1], stop_retrying=True)
        ipc.connect_to_net('world', *far_server.getsockname(), lambda client: client.on('*', log))
        with ByHand(far_server.accept()[0], both[0], server_side=True) as peer, suppress(AssertionError, OSError):
            peer.shake_hands()
            while peer.receive():
                pass
    error = str(log.wait('error')[0][0])
    assert 'TLS 1.2 is needed' in error
    assert old.replace('_', '.') in error
    assert log.of('connect') == log.of('a') == []


@pytest.mark.parametrize('old', ['TLSv1', 'TLSv1_1'])
def test_a_mapping_never_allows_versions_below_1_2(world: Worlds, certificates: Certificates, old: str) -> None:
    here = world().start()
    context = client_context(certificates)
    context.set_ciphers('DEFAULT@SECLEVEL=0')
    of_version(context, old)
    with ByHand(here.plain(), context, server_hostname='localhost') as peer:
        with pytest.raises((AssertionError, OSError)):
            peer.shake_hands()
        if not here.log.of('error') and peer.sock.fileno() >= 0:
            reset_on_close(peer.sock)
    error = str(here.log.wait('error')[0][0])
    assert 'no version of TLS in common; 1.2 or newer is needed' in error or 'handshake' in error
    assert here.log.of('connect') == []


# Idle costs nothing


def test_nothing_happens_while_nothing_happens(world: Worlds, version: str, crowd: Any, monkeypatch: Any) -> None:
    here = world(connect_timeout=60_000).start()
    crowd(here, 5)
    client, _ = here.connect()
    client.emit('message', 1)
    here.log.wait('message')
    with here.by_hand(version) as half_way, here.raw(version):
        half_way.say_hello()
        half_way.receive()
        here.log.wait('connect', 2)
        time.sleep(0.05)
        assert turns_while_idle(monkeypatch) < 5
