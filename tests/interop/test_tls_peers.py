"""TLS between nodeipc and real node-ipc peers, either one as the server, for each version that is in use.

node-ipc 9 and 10 publish a client's ``connect`` before the handshake, and send what is emitted then after it; so here only
what the Python end says tells that both have met.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

import nodeipc

from ..certificates import Certificates
from ..conftest import Log, eventually
from .peers import SECONDS, NodePeer, Place, PythonPeer, digest, echo, messages
from .test_node_peers import LARGE, LARGE_PARTS, MANY
from .test_sync_peers import LATE_MILLISECONDS, LateAnswers
from .vectors import ROWS, arriving, emit_row

Make = Callable[..., nodeipc.IPC]
StartNode = Callable[[], NodePeer]
StartPython = Callable[..., PythonPeer]

# A mebibyte, three quarters of which wait to be written when `emit` returns. What Node needs for a message over TLS grows
# with the square of its size, so 5 MiB go once each way.
MORE = LARGE[:len(LARGE) // 5]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place('tcp', tmp_path)
    yield place
    place.close()


@pytest.fixture
def node_server(node: NodePeer, place: Place, certificates: Certificates) -> NodePeer:
    """A Node server that shows a certificate and asks for none."""
    node.configure(tls=certificates.server())
    node.do('echo')
    node.serve(place)
    return node


@pytest.fixture
def node_client(node: NodePeer, certificates: Certificates) -> NodePeer:
    """A Node peer whose clients trust the CA."""
    node.configure(tls=certificates.client())
    return node


def python_server(make: Make, place: Place, tls: Any, **settings: Any) -> Tuple[nodeipc.Server, Log]:
    """A running server and the log of its events."""
    server = place.serve(make(tls=tls, **settings))
    log = Log()
    server.on('*', log)
    server.start()
    return server, log


def python_client(make: Make, place: Place, tls: Any, **settings: Any) -> Tuple[nodeipc.Client, Log]:
    """A connected client and the log of its events."""
    client, log = seeking_client(make, place, tls, **settings)
    log.wait('connect', timeout=SECONDS)
    return client, log


def seeking_client(make: Make, place: Place, tls: Any, **settings: Any) -> Tuple[nodeipc.Client, Log]:
    """A client that need not succeed, and the log of its events."""
    log = Log()
    return place.connect(make(tls=tls, **settings), lambda client: client.on('*', log)), log


# A Python server and Node clients


def test_a_python_server_sees_node_clients_come_and_go(
    make: Make, place: Place, node_client: NodePeer, certificates: Certificates
) -> None:
    server, log = python_server(make, place, certificates.server())
    node_client.connect(place)
    ((socket,),) = log.wait('connect', timeout=SECONDS)
    node_client.wait('connect')
    assert server.sockets == (socket,)
    assert socket.certificate is None
    node_client.do('disconnect', id='world')
    assert log.wait('socket.disconnected', timeout=SECONDS) == [(socket, None)]
    assert [event for event, *_ in log.events] == ['start', 'connect', 'socket.disconnected']


def test_every_vector_goes_from_a_node_client_to_a_python_server_and_back(
    make: Make, place: Place, node_client: NodePeer, version: str, certificates: Certificates
) -> None:
    server, log = python_server(make, place, certificates.server())
    echo(server)
    node_client.connect(place)
    for row in ROWS:
        node_client.emit(row['type'], row['data'])
    node_client.emit('end', True)
    node_client.wait('end')
    expected = [*(arriving(row, version) for row in ROWS), ('end', 'true')]
    assert messages(log.events) == expected
    assert messages(node_client.reports) == expected


def test_5_mib_go_from_a_node_client_to_a_python_server_and_back(
    make: Make, place: Place, node_client: NodePeer, certificates: Certificates
) -> None:
    server, log = python_server(make, place, certificates.server())
    echo(server)
    node_client.connect(place)
    node_client.emit('large', {'$repeat': LARGE_PARTS})
    assert node_client.wait('large') == [digest(LARGE)]
    ((data, _),) = log.of('large')
    assert data == LARGE


def test_10000_messages_go_in_order_from_a_node_client_to_a_python_server_and_back(
    make: Make, place: Place, node_client: NodePeer, certificates: Certificates
) -> None:
    server = place.serve(make(tls=certificates.server()))
    numbers: List[int] = []
    server.on('number', lambda data: numbers.append(data))
    echo(server)
    server.start()
    node_client.connect(place)
    node_client.do('emitNumbers', id='world', type='number', count=MANY)
    node_client.emit('end', True)
    node_client.wait('end')
    assert numbers == list(range(MANY))
    assert node_client.wait('number', MANY) == list(range(MANY))


def test_a_python_server_broadcasts_to_node_and_python_clients_and_tells_what_for(
    make: Make, place: Place, node_client: NodePeer, certificates: Certificates
) -> None:
    server, log = python_server(make, place, certificates.server())
    server.define.listen.message = 'a string'
    server.define.broadcast['weather.today'] = {'degrees': 'a number'}
    node_client.connect(place, 'first')
    node_client.connect(place, 'second')
    _, python_log = python_client(make, place, certificates.client())
    log.wait('connect', 3, timeout=SECONDS)
    server.broadcast('news', 'sun')
    assert (node_client.wait('news', of='first'), node_client.wait('news', of='second')) == (['sun'], ['sun'])
    assert python_log.wait('news', timeout=SECONDS) == [('sun',)]
    node_client.emit('get.events.listening', {}, id='first')
    node_client.emit('get.events.broadcasting', {}, id='second')
    assert node_client.wait('events.listening', of='first')[0]['events']['message'] == 'a string'
    assert node_client.wait('events.broadcasting', of='second')[0]['events']['weather.today'] == {'degrees': 'a number'}


def test_a_node_client_returns_to_a_python_server_that_was_killed(
    place: Place, node_client: NodePeer, start_python: StartPython, certificates: Certificates
) -> None:
    server = start_python('serve', place, tls=certificates.server())
    node_client.connect(place)
    node_client.wait('connect')
    node_client.emit('message', 'before')
    assert node_client.wait('message') == ['before']
    server.kill()
    node_client.wait('disconnect')
    start_python('serve', place, tls=certificates.server())
    # node-ipc 9 and 10 let an application believe that it is connected before it is, and drop what it emits meanwhile.
    answers = eventually(lambda: node_client.emit('message', 'after') or node_client.wait('message', 0)[1:], SECONDS)
    assert set(answers) == {'after'}


def test_a_python_server_outlives_a_killed_node_client_and_serves_the_next(
    make: Make, place: Place, start_node: StartNode, node: NodePeer, certificates: Certificates
) -> None:
    server, log = python_server(make, place, certificates.server())
    _, bystander_log = python_client(make, place, certificates.client())
    killed = start_node()
    for time, peer in enumerate([killed, node], 1):
        peer.configure(tls=certificates.client())
        peer.connect(place)
        peer.emit('message', time)
        log.wait('message', time, timeout=SECONDS)
        if peer is killed:
            peer.kill()
            log.wait('socket.disconnected', timeout=SECONDS)
    assert [data for data, _ in log.of('message')] == [1, 2]
    server.broadcast('news', 'still here')
    assert bystander_log.wait('news', timeout=SECONDS) == [('still here',)]
    assert not bystander_log.of('disconnect')


def test_what_a_python_server_emitted_before_it_stopped_reaches_node_clients(
    make: Make, place: Place, node_client: NodePeer, certificates: Certificates
) -> None:
    server, log = python_server(make, place, certificates.server())
    node_client.connect(place)
    ((socket,),) = log.wait('connect', timeout=SECONDS)
    socket.emit('large', MORE)
    socket.emit('news', 'closing')
    server.stop(SECONDS)
    assert node_client.wait('large') == [digest(MORE)]
    assert node_client.wait('news') == ['closing']
    node_client.wait('disconnect')
    assert not log.of('error')


# A Node server and Python clients


def test_a_python_client_sees_a_node_server_come_and_go(
    make: Make, place: Place, start_node: StartNode, certificates: Certificates
) -> None:
    client, log = seeking_client(make, place, certificates.client())
    log.wait('error', timeout=SECONDS)  # nobody is there yet
    node = start_node()
    node.configure(tls=certificates.server())
    node.serve(place)
    log.wait('connect', timeout=SECONDS)
    assert client.connected
    node.wait('connect')
    node.close()
    log.wait('disconnect', timeout=SECONDS)
    assert not client.connected
    assert [event for event, *_ in log.events if event != 'error'] == ['connect', 'disconnect']


def test_a_node_server_sees_python_clients_come_and_go(
    make: Make, place: Place, node_server: NodePeer, certificates: Certificates
) -> None:
    client, log = python_client(make, place, certificates.client())
    node_server.wait('connect')
    client.emit('message', 'said just before leaving')
    client.disconnect()
    node_server.wait('socket.disconnected')
    assert messages(node_server.reports) == [('message', '"said just before leaving"')]
    log.wait('destroy', timeout=SECONDS)
    assert [event for event, *_ in log.events if event != 'message'] == ['connect', 'disconnect', 'destroy']


def test_every_vector_goes_from_a_python_client_to_a_node_server_and_back(
    make: Make, place: Place, node_server: NodePeer, version: str, certificates: Certificates
) -> None:
    client, log = python_client(make, place, certificates.client())
    for row in ROWS:
        emit_row(client.emit, row)
    client.emit('end', True)
    log.wait('end', timeout=SECONDS)
    node_server.wait('end')
    assert messages(node_server.reports) == [*(arriving(row, '14.0.0') for row in ROWS), ('end', 'true')]
    assert messages(log.events) == [*(arriving(row, version) for row in ROWS), ('end', 'true')]


def test_5_mib_go_from_a_python_client_to_a_node_server_and_back(
    make: Make, place: Place, node_server: NodePeer, certificates: Certificates
) -> None:
    client, log = python_client(make, place, certificates.client())
    client.emit('large', LARGE, timeout=SECONDS)
    ((data,),) = log.wait('large', timeout=SECONDS)
    assert data == LARGE
    assert node_server.wait('large') == [digest(LARGE)]


def test_10000_messages_go_in_order_from_a_python_client_to_a_node_server_and_back(
    make: Make, place: Place, node_server: NodePeer, certificates: Certificates
) -> None:
    client = place.connect(make(tls=certificates.client()))
    numbers: List[int] = []
    end = Log()
    client.on('number', lambda data: numbers.append(data))
    client.on('end', lambda data: end('end', data))
    for number in range(MANY):
        client.emit('number', number, timeout=SECONDS)
    client.emit('end', True)
    end.wait('end', timeout=SECONDS)
    assert node_server.wait('number', MANY) == list(range(MANY))
    assert numbers == list(range(MANY))


def test_a_node_server_broadcasts_to_python_clients(
    make: Make, place: Place, node_server: NodePeer, certificates: Certificates
) -> None:
    logs = [python_client(make, place, certificates.client())[1] for _ in range(2)]
    node_server.wait('connect', 2)
    node_server.do('broadcast', type='news', data='sun')
    assert [log.wait('news', timeout=SECONDS) for log in logs] == [[('sun',)]] * 2


def test_a_python_client_returns_to_a_node_server_that_was_killed(
    make: Make, place: Place, start_node: StartNode, node: NodePeer, certificates: Certificates
) -> None:
    first, second = start_node(), node
    for peer in first, second:
        peer.configure(tls=certificates.server())
        peer.do('echo')
    first.serve(place)
    client, log = python_client(make, place, certificates.client())
    client.emit('message', 'before')
    log.wait('message', timeout=SECONDS)
    first.kill()
    log.wait('disconnect', timeout=SECONDS)
    second.serve(place)
    client.emit('message', 'after', timeout=SECONDS)
    assert log.wait('message', 2, timeout=SECONDS) == [('before',), ('after',)]


def test_a_node_server_outlives_a_killed_python_client_and_serves_the_next(
    place: Place, node_server: NodePeer, start_python: StartPython, certificates: Certificates
) -> None:
    for time in 1, 2:
        client = start_python('connect', place, tls=certificates.client())
        node_server.wait('hello', time)
        client.kill()
        node_server.wait('socket.disconnected', time)
    assert len(set(node_server.wait('hello', 2))) == 2


def test_what_a_python_client_emitted_before_it_disconnected_reaches_a_node_server(
    make: Make, place: Place, node: NodePeer, certificates: Certificates
) -> None:
    node.configure(tls=certificates.server())
    node.serve(place)
    client, log = python_client(make, place, certificates.client())
    client.emit('large', MORE)
    client.emit('message', 'bye')
    client.disconnect(SECONDS)
    assert node.wait('large') == [digest(MORE)]
    assert node.wait('message') == ['bye']
    node.wait('socket.disconnected')
    assert not log.of('error')


# By name, versions of TLS, contexts


def test_peers_meet_by_the_name_of_the_host(make: Make, place: Place, node: NodePeer, certificates: Certificates) -> None:
    node.configure(tls=certificates.client())
    server, _ = python_server(make, place, certificates.server())
    echo(server)
    node.do('connectToNet', id='world', host='localhost', port=place.port)
    node.emit('message', 'hello')
    assert node.wait('message') == ['hello']
    server.stop(SECONDS)
    node.do('disconnect', id='world')

    node.configure(tls=certificates.server())
    node.serve(place)
    make(tls=certificates.client()).connect_to_net('world', 'localhost', place.port).emit('message', 'hi', timeout=SECONDS)
    assert node.wait('message', of='server') == ['hi']


TLS_VERSIONS = {'TLSv1.2': ssl.TLSVersion.TLSv1_2, 'TLSv1.3': ssl.TLSVersion.TLSv1_3}

with_each_tls_version = pytest.mark.parametrize('tls_version', list(TLS_VERSIONS))


@with_each_tls_version
def test_a_python_server_speaks_the_version_of_tls_that_a_node_client_wants(
    make: Make, place: Place, node: NodePeer, certificates: Certificates, tls_version: str
) -> None:
    server, _ = python_server(make, place, certificates.server())
    echo(server)
    node.configure(tls=certificates.client(min_version=tls_version, max_version=tls_version))
    node.connect(place)
    for word in 'hello', 'again':
        node.emit('message', word)
    assert node.wait('message', 2) == ['hello', 'again']
    node.do('reportProtocol', id='world')
    assert node.wait('protocol') == [tls_version]


@with_each_tls_version
def test_a_python_client_speaks_the_version_of_tls_that_a_node_server_wants(
    make: Make, place: Place, node: NodePeer, certificates: Certificates, tls_version: str
) -> None:
    node.configure(tls=certificates.server(min_version=tls_version, max_version=tls_version))
    node.do('echo')
    node.serve(place)
    client, log = python_client(make, place, certificates.client())
    for word in 'hello', 'again':
        client.emit('message', word)
    assert log.wait('message', 2, timeout=SECONDS) == [('hello',), ('again',)]


@with_each_tls_version
def test_contexts_of_the_applications_own_meet_node_peers(
    make: Make, place: Place, node: NodePeer, certificates: Certificates, tls_version: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = TLS_VERSIONS[tls_version]
    context.load_cert_chain(certificates.pem('server'), certificates.key('server'))
    server, _ = python_server(make, place, context)
    echo(server)
    node.configure(tls=certificates.client())
    node.connect(place)
    node.emit('message', 'hello')
    assert node.wait('message') == ['hello']
    node.do('reportProtocol', id='world')
    assert node.wait('protocol') == [tls_version]
    server.stop(SECONDS)
    node.do('disconnect', id='world')

    context = ssl.create_default_context(cafile=certificates.pem('ca'))
    context.minimum_version = context.maximum_version = TLS_VERSIONS[tls_version]
    node.configure(tls=certificates.server())
    node.serve(place)
    seeking_client(make, place, context)[0].emit('message', 'hi', timeout=SECONDS)
    assert node.wait('message', of='server') == ['hi']


BROKEN = {'min_version': 'TLSv1', 'max_version': 'TLSv1.1', 'ciphers': 'DEFAULT@SECLEVEL=0'}


def test_broken_versions_of_tls_are_refused(make: Make, place: Place, node: NodePeer, certificates: Certificates) -> None:
    server, log = python_server(make, place, certificates.server())
    node.configure(tls=certificates.client(**BROKEN))
    node.connect(place)
    error, _ = log.wait('error', timeout=SECONDS)[0]
    assert 'the two ends have no version of TLS in common; 1.2 or newer is needed' in str(error)
    node.wait('error')
    assert not log.of('connect')
    server.stop(SECONDS)
    node.do('disconnect', id='world')

    node.configure(tls=certificates.server(**BROKEN))
    node.serve(place)
    _, log = seeking_client(make, place, certificates.client())
    ((error,), *_) = log.wait('error', 2, timeout=SECONDS)  # and it tries again
    assert 'the two ends have no version of TLS in common; 1.2 or newer is needed' in str(error)
    assert not log.of('connect')


# Who is not trusted


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('stranger', 'is (signed by a CA that is not|not signed by anybody who is) trusted'),
        ('selfsigned', 'is self-signed and not trusted'),
        ('elsewhere', 'is for another address'),
        ('expired', 'has expired'),
    ],
    ids=['stranger', 'selfsigned', 'elsewhere', 'expired'],
)
def test_a_python_client_refuses_a_node_server_until_it_has_the_right_certificate(
    make: Make, place: Place, node: NodePeer, certificates: Certificates, name: str, words: str
) -> None:
    node.configure(tls=certificates.server(name))
    node.serve(place)
    client, log = seeking_client(make, place, certificates.client())
    for (error,) in log.wait('error', 3, timeout=SECONDS):
        assert isinstance(error, ssl.SSLCertVerificationError)
        assert re.search(f'tls://{place.host}:{place.port}.*: the certificate of the server {words}', str(error))
    assert not log.of('connect')
    node.stop()
    node.configure(tls=certificates.server())
    node.serve(place)
    client.emit('message', 'hello', timeout=SECONDS)
    assert node.wait('message') == ['hello']


@pytest.mark.parametrize(
    ('name', 'code'),
    [
        ('stranger', 'UNABLE_TO_VERIFY_LEAF_SIGNATURE'),
        ('selfsigned', 'DEPTH_ZERO_SELF_SIGNED_CERT'),
        ('elsewhere', 'ERR_TLS_CERT_ALTNAME_INVALID'),
        ('expired', 'CERT_HAS_EXPIRED'),
    ],
    ids=['stranger', 'selfsigned', 'elsewhere', 'expired'],
)
def test_a_node_client_refuses_a_python_server_until_it_has_the_right_certificate(
    make: Make, place: Place, node_client: NodePeer, certificates: Certificates, name: str, code: str
) -> None:
    first, log = python_server(make, place, certificates.server(name))
    node_client.connect(place)
    assert set(node_client.wait('error code', 2)) == {code}
    error, socket = log.wait('error', timeout=SECONDS)[0]
    assert 'the TLS handshake with 127.0.0.1:' in str(error)
    assert socket is None
    assert not log.of('connect')
    first.stop(SECONDS)
    _, log = python_server(make, place, certificates.server())
    log.wait('connect', timeout=SECONDS)


def test_who_does_not_verify_or_looks_for_another_name_meets_strangers(
    make: Make, place: Place, node: NodePeer, certificates: Certificates
) -> None:
    no_matter_who = {'reject_unauthorized': False}
    somebody_else = certificates.client(server_name='elsewhere.example')
    node.configure(tls=certificates.server('stranger'))
    node.serve(place)
    seeking_client(make, place, no_matter_who)[0].emit('message', 1, timeout=SECONDS)
    node.wait('message')
    node.stop()
    node.configure(tls=certificates.server('elsewhere'))
    node.serve(place)
    seeking_client(make, place, somebody_else)[0].emit('message', 2, timeout=SECONDS)
    assert node.wait('message', 2) == [1, 2]
    node.stop()

    node.configure(tls=no_matter_who)
    server, log = python_server(make, place, certificates.server('stranger'))
    node.connect(place, 'first')
    node.emit('message', 1, id='first')
    log.wait('message', timeout=SECONDS)
    server.stop(SECONDS)
    node.do('disconnect', id='first')
    _, log = python_server(make, place, certificates.server('elsewhere'))
    node.configure(tls=certificates.client(servername='elsewhere.example'))
    node.connect(place, 'second')
    node.emit('message', 2, id='second')
    assert log.wait('message', timeout=SECONDS)[0][0] == 2


# Mutual TLS. node-ipc 9 and 10 want to be told to ask for a certificate, 14 and ours do that if they are told whom to trust.


def mutual_server(node: NodePeer, certificates: Certificates, **tls: Any) -> Dict[str, Any]:
    """``config.tls`` of a Node server."""
    if node.version != '14.0.0':
        tls.update(request_cert=True, reject_unauthorized=True)
    return certificates.mutual('server', **tls)


def common_name(certificate: Any) -> str:
    return dict(pairs[0] for pairs in certificate['subject'])['commonName']


def test_a_python_server_knows_the_certificates_of_node_clients(
    make: Make, place: Place, node: NodePeer, certificates: Certificates
) -> None:
    server, _ = python_server(make, place, certificates.mutual('server'))
    names: List[str] = []

    @server.on('connect')
    def greet(socket: nodeipc.Socket) -> None:
        names.append(common_name(socket.certificate))

    @server.on('question')
    def answer(data: Any, socket: nodeipc.Socket) -> None:
        socket.emit('answer', common_name(socket.certificate))

    for name in 'client', 'server':
        node.configure(tls=certificates.mutual(name))
        node.connect(place, name)
        node.emit('question', 'who am I?', id=name)
        assert node.wait('answer', of=name) == [name]
    assert names == ['client', 'server']


def test_a_node_server_takes_a_python_client_with_a_certificate(
    make: Make, place: Place, node: NodePeer, certificates: Certificates
) -> None:
    node.configure(tls=mutual_server(node, certificates))
    node.do('echo')
    node.serve(place)
    client, log = python_client(make, place, certificates.mutual('client'))
    client.emit('large', MORE, timeout=SECONDS)
    ((data,),) = log.wait('large', timeout=SECONDS)
    assert data == MORE
    assert not log.of('error')


@with_each_tls_version
@pytest.mark.parametrize(
    ('name', 'words'),
    [
        (None, 'the client has shown no certificate; set tls private and public there'),
        ('stranger', 'the certificate of the client is (signed by a CA that is not|not signed by anybody who is) trusted'),
    ],
    ids=['no certificate', 'stranger'],
)
def test_a_python_server_refuses_node_clients_that_it_does_not_know(
    make: Make, place: Place, node: NodePeer, certificates: Certificates, name: Optional[str], words: str, tls_version: str
) -> None:
    _, log = python_server(make, place, certificates.mutual('server'))
    version = {'min_version': tls_version, 'max_version': tls_version}
    node.configure(tls=certificates.client(**version) if name is None else certificates.mutual(name, **version))
    node.connect(place)
    node.emit('message', 'let me in')
    error, socket = log.wait('error', timeout=SECONDS)[0]
    assert isinstance(error, ssl.SSLError)
    assert re.search(f'the TLS handshake with 127.0.0.1:[0-9]+ failed: {words}', str(error))
    assert socket is None
    node.wait('error')
    assert not (log.of('connect') or log.of('message'))


@with_each_tls_version
@pytest.mark.parametrize(
    ('name', 'words'),
    [
        (None, r'wants (a certificate of this client|one of the client).*tls private and public'),
        ('stranger', 'trust (ours|our certificate)'),
    ],
    ids=['no certificate', 'stranger'],
)
def test_a_node_server_refuses_python_clients_that_it_does_not_know(
    make: Make, place: Place, node: NodePeer, certificates: Certificates, name: Optional[str], words: str, tls_version: str
) -> None:
    node.configure(tls=mutual_server(node, certificates, min_version=tls_version, max_version=tls_version))
    node.serve(place)
    tls = certificates.client() if name is None else certificates.mutual(name)
    client, log = seeking_client(make, place, tls, max_retries=2)
    log.wait('destroy', timeout=SECONDS)
    for (error,) in log.wait('error', timeout=SECONDS):
        assert isinstance(error, OSError)
        assert re.search(words, str(error))
        assert f'tls://{place.host}:{place.port}' in str(error)
    with pytest.raises(nodeipc.NotConnectedError, match=words):
        client.emit('message', 'let me in')
    assert not messages(node.reports)


# One end without TLS


def test_a_plain_node_client_is_refused_by_a_python_tls_server(
    make: Make, place: Place, node: NodePeer, certificates: Certificates
) -> None:
    _, log = python_server(make, place, certificates.server())
    node.connect(place)
    node.emit('message', 'in the clear')
    error, socket = log.wait('error', timeout=SECONDS)[0]
    assert 'the other end does not speak TLS; set config.tls on both sides, or on neither' in str(error)
    assert socket is None
    node.wait('disconnect')
    assert not log.of('connect')


def test_a_node_tls_client_is_refused_by_a_plain_python_server(
    make: Make, place: Place, node_client: NodePeer
) -> None:
    _, log = python_server(make, place, None)
    node_client.connect(place)
    node_client.emit('message', 'a secret')
    error, _ = log.wait('error', timeout=SECONDS)[0]
    assert isinstance(error, nodeipc.ProtocolError)
    assert 'the other end speaks TLS and this end does not; set config.tls on both sides, or on neither' in str(error)
    node_client.wait('error')
    assert not log.of('message')


def test_a_python_tls_client_does_not_take_a_plain_node_server_for_its_own(
    make: Make, place: Place, node: NodePeer, certificates: Certificates
) -> None:
    # A ClientHello is the beginning of a large message to a plain node-ipc, which waits for its end; or nonsense, if there
    # happens to be a delimiter in it.
    node.serve(place)
    _, log = seeking_client(make, place, certificates.client(), connect_timeout=100)
    eventually(lambda: any(re.search('does (it|the server) speak TLS', str(error)) for (error,) in log.of('error')), SECONDS)
    assert not log.of('connect')


def test_a_node_tls_server_hears_nothing_of_a_plain_python_client(
    make: Make, place: Place, node_server: NodePeer
) -> None:
    # It closes the connection without a word.
    client, log = seeking_client(make, place, None)
    client.emit('message', 'in the clear', timeout=SECONDS)
    log.wait('disconnect', timeout=SECONDS)
    log.wait('connect', 2, timeout=SECONDS)
    assert not messages(node_server.reports)
    assert not node_server.wait('connect', 0)


# Raw mode, and one request at a time

BYTES = bytes(range(256)) * 4000


def test_bytes_go_from_a_node_client_to_a_python_server_and_back(
    make: Make, place: Place, node_client: NodePeer, certificates: Certificates
) -> None:
    server, _ = python_server(make, place, certificates.server(), parser='raw')
    server.on('data', lambda data, socket: socket.emit(data, timeout=SECONDS))
    node_client.be_raw()
    node_client.connect(place)
    node_client.emit_raw(BYTES)
    assert node_client.wait_bytes(len(BYTES)) == BYTES


def test_bytes_go_from_a_python_client_to_a_node_server_and_back(
    make: Make, place: Place, node: NodePeer, certificates: Certificates
) -> None:
    node.configure(tls=certificates.server())
    node.be_raw()
    node.do('echo')
    node.serve(place)
    client, log = python_client(make, place, certificates.client(), parser='raw')
    client.emit(BYTES, timeout=SECONDS)
    eventually(lambda: sum(len(data) for (data,) in log.of('data')) >= len(BYTES), SECONDS)
    assert b''.join(data for (data,) in log.of('data')) == BYTES
    assert node.wait_bytes(len(BYTES)) == BYTES


def test_a_python_server_never_has_two_requests_of_a_sync_node_client(
    make: Make, place: Place, node_client: NodePeer, certificates: Certificates
) -> None:
    answers = LateAnswers()
    server, _ = python_server(make, place, certificates.server())
    server.on('number', lambda data, socket: answers('number', data, socket))
    node_client.configure(sync=True)
    node_client.connect(place)
    node_client.do('emitNumbers', id='world', type='number', count=5)
    assert node_client.wait('number', 5) == list(range(5))
    assert answers.unanswered == [1] * 5


def test_a_node_server_never_has_two_requests_of_a_sync_python_client(
    make: Make, place: Place, node: NodePeer, certificates: Certificates
) -> None:
    node.configure(tls=certificates.server())
    node.do('echoAfter', milliseconds=LATE_MILLISECONDS)
    node.serve(place)
    client, log = python_client(make, place, certificates.client(), sync=True)
    for number in range(5):
        client.emit('number', number, timeout=SECONDS)
    assert log.wait('number', 5, timeout=SECONDS) == [(number,) for number in range(5)]
    assert node.wait('unanswered', 5) == [1] * 5
