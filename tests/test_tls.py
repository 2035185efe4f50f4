"""TLS: what it is configured with, who is trusted, and that an encrypted connection is as good as a plain one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import pytest

from nodeipc import ConfigError, EmitTimeout, IPCError, NotConnectedError, ProtocolError, tlsstream

from .certificates import Certificates
from .conftest import Log, eventually
from .test_endings import impatient, script  # noqa: F401
from .tls_peers import VERSIONS, ByHand, World, client_context, listener, server_context

MIB = 1 << 20
BLOCK = 'x' * 100_000

Worlds = Callable[..., World]
far_server = pytest.fixture(listener)


@pytest.fixture
def world(make: Any, certificates: Certificates) -> Worlds:
    return lambda **settings: World(make, certificates, **settings)


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Interrupting:
    """A socket whose next send, if need be that of one thread, does something, before it sends or after."""

    def __init__(self, sock: Any, act: Callable[[], Any], before: bool = False, thread: Optional[int] = None) -> None:
        self.sock, self.act, self.before, self.thread = sock, act, before, thread

    def send(self, *arguments: Any) -> int:
        if self.thread not in (None, threading.get_ident()):
            return int(self.sock.send(*arguments))
        act, self.act = self.act, lambda: None
        if self.before:
            act()
        sent = int(self.sock.send(*arguments))
        if not self.before:
            act()
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def echo(here: World) -> World:
    here.server.on('message', lambda data, socket: socket.emit('message', data))
    return here.start()


# What it is configured with


@pytest.mark.parametrize('server_with', ['mapping', 'context'])
@pytest.mark.parametrize('client_with', ['mapping', 'context'])
def test_events_go_both_ways(world: Worlds, certificates: Certificates, server_with: str, client_with: str) -> None:
    here = echo(world(tls=None if server_with == 'mapping' else server_context(certificates)))
    client, log = here.connect(None if client_with == 'mapping' else client_context(certificates))
    client.emit('message', 'hello world! äöü \U0001f600')
    assert log.wait('message') == [('hello world! äöü \U0001f600',)]
    client.disconnect()
    here.log.wait('socket.disconnected')
    assert [event[0] for event in log.events] == ['connect', 'message', 'disconnect', 'destroy']
    assert here.log.of('error') == []


def test_tls_1_2_and_1_3_work_at_either_end(world: Worlds, certificates: Certificates, version: str) -> None:
    here = echo(world())
    client, log = here.connect(client_context(certificates, version))
    client.emit('message', 1)
    log.wait('message')
    assert client._socket._tls._tls.version() == version.replace('_', '.')
    there = echo(world(tls=server_context(certificates, version)))
    client, log = there.connect()
    client.emit('message', 1)
    log.wait('message')
    assert client._socket._tls._tls.version() == version.replace('_', '.')


def pem(certificates: Certificates, name: str = 'ca') -> str:
    return Path(certificates.pem(name)).read_text()


def hashed(certificates: Certificates, directory: Path) -> str:
    """A directory as ``openssl rehash`` makes it."""
    name = subprocess.run(
        ['openssl', 'x509', '-hash', '-noout', '-in', certificates.pem('ca')], stdout=subprocess.PIPE, check=True, text=True
    ).stdout.strip()
    shutil.copy(certificates.pem('ca'), str(directory / f'{name}.0'))
    return str(directory)


TRUST: Dict[str, Callable[[Certificates, Path], Dict[str, Any]]] = {
    'ca text': lambda c, _: {'ca': pem(c)},
    'ca bytes': lambda c, _: {'ca': pem(c).encode()},
    'ca list': lambda c, _: {'ca': [pem(c, 'other-ca'), pem(c).encode()]},
    'ca bundle': lambda c, _: {'ca': pem(c, 'other-ca') + pem(c)},
    'ca with comments in other letters': lambda c, _: {'ca': 'Főtanúsítvány\n' + pem(c)},  # defect 9
    'ca with comments, bytes': lambda c, _: {'ca': ('Főtanúsítvány\n' + pem(c)).encode()},  # defect 9
    'trusted_connections path': lambda c, _: {'trusted_connections': c.pem('ca')},
    'trusted_connections Path': lambda c, _: {'trusted_connections': Path(c.pem('ca'))},
    'trusted_connections list': lambda c, _: {'trusted_connections': [Path(c.pem('other-ca')), c.pem('ca')]},
    'trusted_connections directory': lambda c, d: {'trusted_connections': hashed(c, d)},
    'both': lambda c, _: {'ca': pem(c), 'trusted_connections': c.pem('other-ca')},
}


@pytest.mark.parametrize('kind', TRUST)
def test_whom_to_trust_is_given_in_any_form(world: Worlds, certificates: Certificates, tmp_path: Path, kind: str) -> None:
    trust = TRUST[kind](certificates, tmp_path)
    here = echo(world(tls={**certificates.server(), **trust}))  # and so asks for certificates
    client, log = here.connect({**certificates.server('client'), **trust})
    client.emit('message', 1)
    log.wait('message')
    ((accepted,),) = here.log.wait('connect')
    assert accepted.certificate['subject'] == ((('commonName', 'client'),),)


@pytest.mark.parametrize('as_bytes', [False, True], ids=['str', 'bytes'])
def test_a_key_with_a_passphrase(world: Worlds, certificates: Certificates, as_bytes: bool) -> None:
    passphrase = certificates.passphrase.encode() if as_bytes else certificates.passphrase
    here = echo(world(tls=certificates.server('encrypted', passphrase=passphrase)))
    client, log = here.connect()
    client.emit('message', 1)
    log.wait('message')


def test_a_passphrase_that_nobody_asks_for_is_no_problem(world: Worlds, certificates: Certificates) -> None:
    echo(world(tls=certificates.server(passphrase='needless'))).still_serves()


def garbage(directory: Path) -> str:
    path = directory / 'garbage'
    path.write_bytes(b'\x00\xff garbage' * 50)
    return str(path)


def empty(directory: Path) -> str:
    path = directory / 'empty'
    path.write_bytes(b'')
    return str(path)


# What is wrong, what is given instead of a server's key and certificate, and what the message says of it.
UNUSABLE = [
    ('private that is missing', lambda c, d: {'private': str(d / 'none')}, 'tls private: cannot read .*none.*No such file'),
    ('public that is missing', lambda c, d: {'public': str(d / 'none')}, 'tls public: cannot read .*none.*No such file'),
    ('private that is a directory', lambda c, d: {'private': str(d)}, 'tls private.*directory'),  # defect 8
    ('public that is a directory', lambda c, d: {'public': str(d)}, 'tls public.*directory'),  # defect 8
    ('private that is garbage', lambda c, d: {'private': garbage(d)}, 'garbage.* not PEM files of a key and its cert'),
    ('public that is garbage', lambda c, d: {'public': garbage(d)}, 'garbage.* not PEM files of a key and its cert'),
    ('private that is empty', lambda c, d: {'private': empty(d)}, 'empty.* not PEM files of a key and its cert'),
    ('public that is empty', lambda c, d: {'public': empty(d)}, 'empty.* not PEM files of a key and its cert'),
    ('key and certificate exchanged', lambda c, d: {'private': c.pem('server'), 'public': c.key('server')}, 'not PEM files'),
    ('key of another', lambda c, d: {'private': c.key('client')}, r'client\.key does not belong to .*server\.pem'),
    ('passphrase that is missing', lambda c, d: c.server('encrypted'), r'encrypted\.key is encrypted; set tls passphrase'),
    ('passphrase that is wrong', lambda c, d: c.server('encrypted', passphrase='x'), 'tls passphrase'),  # defect 10
    ('passphrase that is empty', lambda c, d: c.server('encrypted', passphrase=''), 'tls passphrase'),  # defect 10
    ('passphrase that is too long', lambda c, d: c.server('encrypted', passphrase='x' * 5000), 'tls passphrase'),
    ('ca that is garbage', lambda c, d: {'ca': 'hello'}, 'tls ca holds no PEM certificate'),
    ('ca that is not ASCII', lambda c, d: {'ca': 'é'}, 'tls ca holds no PEM certificate'),  # defect 9
    ('ca that is DER', lambda c, d: {'ca': ssl.PEM_cert_to_DER_cert(pem(c))}, 'tls ca holds no PEM cert'),  # defect 9
    ('ca that is a path', lambda c, d: {'ca': c.pem('ca')}, 'paths go into trusted_connections'),
    ('ca that is a key', lambda c, d: {'ca': Path(c.key('ca')).read_text()}, 'tls ca holds no PEM certificate'),
    ('trusted_connections that is missing', lambda c, d: {'trusted_connections': str(d / 'none')}, 'cannot read .*none'),
    ('trusted_connections that is garbage', lambda c, d: {'trusted_connections': garbage(d)}, 'garbage holds no PEM cert'),
    ('trusted_connections that is empty', lambda c, d: {'trusted_connections': [empty(d)]}, 'empty holds no PEM cert'),
    ('trusted_connections that is a key', lambda c, d: {'trusted_connections': c.key('ca')}, r'ca\.key holds no PEM cert'),
    ('trusted_connections that is no path', lambda c, d: {'trusted_connections': 'a\0b'}, 'connections: cannot read'),
]


@pytest.mark.parametrize('end', ['server', 'client'])
@pytest.mark.parametrize(('given', 'message'), [case[1:] for case in UNUSABLE], ids=[case[0] for case in UNUSABLE])
def test_files_that_cannot_be_used_are_named(
    make: Any, certificates: Certificates, tmp_path: Path, end: str, given: Any, message: str
) -> None:
    threads = threading.active_count()
    ipc = make(tls={**certificates.server(), **given(certificates, tmp_path)})
    with pytest.raises(ConfigError, match=message) as raised:
        ipc.serve_net('127.0.0.1', 0).start() if end == 'server' else ipc.connect_to_net('world', '127.0.0.1', 1)
    assert ("server 'world' (tls://127.0.0.1:0)" if end == 'server' else 'client of tls://127.0.0.1:1') in str(raised.value)
    assert 'ssl.c' not in str(raised.value)
    assert ipc.wait(0) is True
    assert 'world' not in ipc.of
    assert threading.active_count() == threads


@pytest.mark.parametrize('given', [{}, {'private': True}, {'public': True}], ids=['none', 'no certificate', 'no key'])
def test_a_server_without_key_and_certificate_does_not_start(make: Any, certificates: Certificates, given: Any) -> None:
    ipc = make(tls={name: certificates.server()[name] for name in given})
    with pytest.raises(ConfigError, match='a TLS server needs a key and a certificate; set tls private and public'):
        ipc.serve_net('127.0.0.1', 0).start()
    assert not ipc.server.listening
    assert ipc.wait(0) is True


@pytest.mark.parametrize('given', ['private', 'public'])
def test_a_client_has_key_and_certificate_or_neither(make: Any, certificates: Certificates, given: str) -> None:
    ipc = make(tls={given: certificates.server()[given]})
    with pytest.raises(ConfigError, match=r'tls://127\.0\.0\.1:1: tls private and public, .* go together; set both'):
        ipc.connect_to_net('world', '127.0.0.1', 1)
    assert 'world' not in ipc.of


def test_a_server_that_asks_for_certificates_needs_to_know_whom_to_trust(make: Any, certificates: Certificates) -> None:
    with pytest.raises(ConfigError, match='request_cert needs ca or trusted_connections'):
        make(tls=certificates.server(request_cert=True)).serve_net('127.0.0.1', 0).start()


def test_contexts_that_cannot_serve_are_refused(make: Any, certificates: Certificates) -> None:
    def start(context: ssl.SSLContext) -> Any:
        make(tls=context).serve_net('127.0.0.1', 0).start()

    with pytest.raises(ConfigError, match=r"server 'world' .* of the wrong side, .* with ssl\.PROTOCOL_TLS_SERVER"):
        start(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    with pytest.raises(ConfigError, match=r"server 'world' .* has no certificate; call its load_cert_chain\(\)"):
        start(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    with pytest.raises(ConfigError, match='has no certificate'):
        start(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))
    with pytest.raises(ConfigError, match=r'client of .* wrong side, .* with ssl\.create_default_context\(\)'):
        make(tls=server_context(certificates)).connect_to_net('world', '127.0.0.1', 1)


def test_a_failed_start_can_be_repeated_with_better_files(make: Any, certificates: Certificates, tmp_path: Path) -> None:
    key = tmp_path / 'server.key'
    ipc = make(tls={'private': str(key), 'public': certificates.pem('server')})
    server = ipc.serve_net('127.0.0.1', 0)
    with pytest.raises(ConfigError, match='cannot read'):
        server.start()
    shutil.copy(certificates.key('server'), str(key))
    server.start()
    client = make(id='client', tls=certificates.client()).connect_to_net('world', *server.address)
    assert client.wait_connected(20)


def test_an_encrypted_key_never_asks_on_the_terminal(certificates: Certificates) -> None:
    code = (
        'import sys, nodeipc\n'
        'tls = dict(private=sys.argv[1], public=sys.argv[2])\n'
        'for end in "serve_net", "connect_to_net":\n'
        '    ipc = nodeipc.IPC(tls=tls)\n'
        '    try: ipc.serve_net("127.0.0.1", 0).start() if end == "serve_net" else ipc.connect_to_net("w", "127.0.0.1", 1)\n'
        '    except nodeipc.ConfigError as error: print("set tls passphrase" in str(error))\n'
    )
    main, terminal = os.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, '-S', '-c', code, certificates.key('encrypted'), certificates.pem('encrypted')],
            stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        out, err = process.communicate(timeout=30)
    finally:
        os.close(main)
        os.close(terminal)
    assert (out, err) == ('True\nTrue\n', '')


def test_a_context_that_chooses_by_name_starts(make: Any, certificates: Certificates) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # whose certificate depends on the name that is asked for
    asked: List[Any] = []

    def choose(connection: Any, name: Any, _: Any) -> None:
        asked.append(name)
        connection.context = server_context(certificates)

    context.sni_callback = choose
    here = echo(World(make, certificates, tls=context))
    client, log = here.connect(host='localhost')
    client.emit('message', 1)
    log.wait('message')
    assert asked == ['localhost']


def test_a_context_with_ciphers_of_its_own_is_taken(make: Any, certificates: Certificates) -> None:  # defect 5
    context = server_context(certificates, 'TLSv1_2', 'rsa')
    context.set_ciphers('AES128-GCM-SHA256')
    own = client_context(certificates)
    own.set_ciphers('AES128-GCM-SHA256')
    here = echo(World(make, certificates, tls=context))
    client, log = here.connect(own)
    client.emit('message', 1)
    log.wait('message')


@pytest.mark.parametrize('name', ['a\0b', '.x', 'a..b', 'x' * 300, '\ud800'], ids=ascii)
def test_a_server_name_that_cannot_be_is_refused(make: Any, certificates: Certificates, name: str) -> None:  # defect 4
    with pytest.raises(ConfigError, match='server_name'):
        make(tls=certificates.client(server_name=name)).connect_to_net('world', '127.0.0.1', 1)


def test_ssl_is_imported_by_those_who_use_it_only(tmp_path: Path) -> None:
    code = (
        'import sys, nodeipc\n'
        'with nodeipc.IPC(id="a", silent=True) as ipc, ipc.serve_net("127.0.0.1", 0) as server:\n'
        '    client = ipc.connect_to_net("a", *server.address)\n'
        '    client.emit("message")\n'
        '    client.disconnect()\n'
        'print("ssl" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-S', '-c', code], stdout=subprocess.PIPE, timeout=60, text=True, check=True)
    assert done.stdout == 'False\n'


def test_a_passphrase_is_not_shown(make: Any, certificates: Certificates) -> None:
    ipc = make(tls=certificates.server('encrypted', passphrase='wrong horse'))
    assert 'wrong horse' not in repr(ipc.config)
    with pytest.raises(ConfigError) as raised:
        ipc.serve_net('127.0.0.1', 0).start()
    assert 'wrong horse' not in str(raised.value)


# Who is trusted


def test_a_server_is_verified_by_name_and_by_address(make: Any, certificates: Certificates) -> None:
    for host, connect_to in (('127.0.0.1', '127.0.0.1'), ('127.0.0.1', 'localhost'), ('::1', '::1')):
        if host == '::1' and not socket.has_ipv6:
            continue
        ipc = make(tls=certificates.server())
        try:
            ipc.serve_net(host, 0).start()
        except OSError:
            assert host == '::1'  # not on this machine
            continue
        client = make(id='client', tls=certificates.client()).connect_to_net('world', connect_to, ipc.server.address[1])
        assert client.wait_connected(20)


# What the server's certificate is, what the client says, and what the client is told.
UNTRUSTED = [
    ('stranger', {}, 'not signed by anybody who is trusted; put its CA into tls trusted_connections'),
    ('selfsigned', {}, 'is self-signed and not trusted; .* put it into tls trusted_connections'),
    ('expired', {}, 'certificate of the server has expired; renew it'),
    ('elsewhere', {}, 'is for another address; connect by the name or address that it has, or set tls server_name'),
    ('server', {'server_name': 'elsewhere.example'}, 'is for another name; connect by the name that it has, or set'),
    ('server', {'trusted_connections': None, 'ca': None}, 'trusted_connections'),  # the system's CAs
]


@pytest.mark.parametrize(('name', 'client_says', 'message'), UNTRUSTED, ids=[case[0] for case in UNTRUSTED])
def test_a_client_refuses_who_is_not_trusted_and_retries(
    world: Worlds, certificates: Certificates, version: str, name: str, client_says: Any, message: str
) -> None:
    here = world(tls=server_context(certificates, version, name)).start()
    tls = {key: value for key, value in certificates.client(**client_says).items() if value is not None}
    client, log = here.connect(tls, max_retries=2)
    with pytest.raises(NotConnectedError, match='destroyed, no retries left.*' + message):
        client.emit('message')
    log.wait('destroy')
    assert {event[0] for event in log.events} == {'error', 'destroy'}
    for (error,) in log.of('error'):
        assert isinstance(error, ssl.SSLCertVerificationError)
        assert 'cannot connect: the certificate of the server' in str(error)
        assert "client 'world' (tls://127.0.0.1:" in str(error)
    assert re.search(message, str(log.of('error')[0][0]))
    # The server is told, too, and connects nobody.
    here.log.wait('error')
    assert 'refuses our certificate' in str(here.log.of('error')[0][0]) or version == 'TLSv1_3'
    assert here.log.of('connect') == []


def test_server_name_is_what_the_certificate_has_to_be_for(world: Worlds, certificates: Certificates) -> None:
    here = echo(world(tls=certificates.server('elsewhere')))
    client, log = here.connect(certificates.client(server_name='elsewhere.example'))
    client.emit('message', 1)
    log.wait('message')


def test_a_client_succeeds_when_the_server_has_got_the_right_certificate(make: Any, certificates: Certificates) -> None:
    here = world_of(make, certificates, 'expired').start()
    port = here.server.address[1]
    client, log = here.connect()
    log.wait('error')
    here.server.stop()
    ipc = make(tls=certificates.server())
    got = Log()
    ipc.serve_net('127.0.0.1', port).on('*', got)
    ipc.server.start()
    client.emit('message', 'at last', timeout=20)
    assert got.wait('message')[0][0] == 'at last'
    assert len(log.wait('connect')) == 1


def world_of(make: Any, certificates: Certificates, name: str, **settings: Any) -> World:
    return World(make, certificates, tls=certificates.server(name), **settings)


@pytest.mark.parametrize('name', ['stranger', 'expired', 'elsewhere', 'selfsigned'])
def test_a_client_that_does_not_verify_takes_whoever_answers(make: Any, certificates: Certificates, name: str) -> None:
    here = echo(world_of(make, certificates, name))
    client, log = here.connect({'reject_unauthorized': False})
    client.emit('message', 1)
    log.wait('message')


def test_mutual_tls_tells_handlers_who_the_client_is(world: Worlds, certificates: Certificates, version: str) -> None:
    here = echo(world(tls=certificates.mutual('server')))
    certificate_seen = Log()
    here.server.on('message', lambda data, socket: certificate_seen('message', socket.certificate))
    client, log = here.connect(client_context(certificates, version, own='client'))
    client.emit('message', 1)
    log.wait('message')
    ((certificate,),) = certificate_seen.wait('message')
    assert certificate['subject'] == ((('commonName', 'client'),),)
    assert certificate['issuer'] == ((('commonName', 'ca'),),)
    client.disconnect()
    ((socket, _),) = here.log.wait('socket.disconnected')
    assert socket.certificate == certificate


@pytest.mark.parametrize(
    'says', [{}, {'trusted_connections': True, 'request_cert': False}], ids=['trusts nobody', 'request_cert=False']
)
def test_a_server_that_does_not_ask_sees_no_certificate(world: Worlds, certificates: Certificates, says: Any) -> None:
    tls = {**certificates.server(), **says}
    if says:
        tls['trusted_connections'] = certificates.pem('ca')
    here = echo(world(tls=tls))
    client, log = here.connect(certificates.mutual('client'))
    client.emit('message', 1)
    log.wait('message')
    ((socket,),) = here.log.wait('connect')
    assert socket.certificate is None


@pytest.mark.parametrize('who', ['nobody', 'stranger', 'expired'])
def test_a_client_that_is_turned_away_learns_why_and_retries(
    world: Worlds, certificates: Certificates, version: str, who: str
) -> None:
    here = world(tls=certificates.mutual('server')).start()
    own = None if who == 'nobody' else who
    client, log = here.connect(client_context(certificates, version, own=own), max_retries=2)
    log.wait('destroy')
    errors = [str(error) for (error,) in log.of('error')]
    assert 1 <= len(errors) <= 3
    word = 'the server wants a certificate of this client; set tls private and public'
    if who != 'nobody':
        word = 'the other end refuses our certificate; is it signed by a CA that is trusted there'
    elif version == 'TLSv1_2':
        word = 'have no way to encrypt in common'  # all that 1.2 has to say
    assert all(word in error for error in errors), errors
    assert len(log.of('connect')) == len(log.of('disconnect')) == (0 if version == 'TLSv1_2' else 3)
    with pytest.raises(NotConnectedError, match='destroyed, no retries left'):
        client.emit('message')
    word = 'the client has shown no certificate; set tls private and public there'
    if who != 'nobody':
        word = 'the certificate of the client'
    for error, accepted in here.log.wait('error'):
        assert word in str(error)
        assert accepted is None
    assert here.log.of('connect') == []
    assert here.server.sockets == ()


@pytest.mark.parametrize('how', ['connect', 'thread', 'big'])
def test_a_client_that_emits_while_it_is_turned_away_counts_its_retries(
    world: Worlds, certificates: Certificates, how: str
) -> None:  # defect 3
    here = world(tls=certificates.mutual('server')).start()
    client, log = here.connect(max_retries=4)
    emitter = None
    if how == 'connect':
        client.on('connect', lambda: [client.emit('message', BLOCK) for _ in range(3)])
    else:

        def emit() -> None:
            with pytest.raises(NotConnectedError):
                while True:
                    client.emit('message', BLOCK * 30 if how == 'big' else 'x')

        emitter = threading.Thread(target=emit)
        emitter.start()
    try:
        log.wait('destroy', timeout=10)
    finally:
        client.disconnect()
        if emitter is not None:
            emitter.join(20)
    assert len(log.of('connect')) == 5
    assert any('certificate' in str(error) for (error,) in log.of('error'))
    assert here.log.of('message') == []


def test_connections_that_stood_do_not_count_as_failed_attempts(
    make: Any, certificates: Certificates, version: str, far_server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:  # defect 15
    monkeypatch.setattr(tlsstream, '_PROBATION_SECONDS', 0)  # that is, for long
    log = Log()
    ipc = make(tls=certificates.client(), max_retries=1)
    client = ipc.connect_to_net('world', *far_server.getsockname(), lambda client: client.on('*', log))
    for number in range(4):
        with ByHand(far_server.accept()[0], server_context(certificates, version), server_side=True) as peer:
            peer.shake_hands()
            client.emit('message', number)
            assert peer.read() == b'{"type":"message","data":%d}\f' % number
            # The process is killed, say: a reset, and not a byte of an answer was ever sent.
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        log.wait('disconnect', number + 1)
    assert log.of('destroy') == []


def test_a_server_that_does_not_insist_admits_who_shows_none(world: Worlds, certificates: Certificates) -> None:
    here = echo(world(tls=certificates.mutual('server', reject_unauthorized=False)))
    for tls, subject in ((None, None), (certificates.mutual('client'), 'client')):
        client, log = here.connect(tls)
        client.emit('message', 1)
        log.wait('message')
        accepted = here.log.of('connect')[-1][0]
        certificate = accepted.certificate
        assert certificate is None if subject is None else dict(certificate['subject'][0])['commonName'] == subject


# As good as a plain connection


def test_connect_is_published_after_the_handshake(make: Any, certificates: Certificates, far_server: socket.socket) -> None:
    log = Log()
    ipc = make(tls=certificates.client())
    client = ipc.connect_to_net('world', *far_server.getsockname(), lambda client: client.on('*', log))
    sock, _ = far_server.accept()
    with ByHand(sock, server_context(certificates), server_side=True) as peer:
        assert peer.receive()  # its first flight
        assert not client.wait_connected(0.05)
        assert log.events == []
        peer.shake_hands()
        log.wait('connect')
        client.emit('message', 1)
        assert peer.read() == b'{"type":"message","data":1}\f'


class Reset:
    """A socket that takes one record more and is reset then, as the kernel tells it between two sends."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sends = 0

    def send(self, *arguments: Any) -> int:
        self._sends += 1
        if self._sends > 1:
            self._sock.shutdown(socket.SHUT_WR)  # what was sent arrives
            raise ConnectionResetError(errno.ECONNRESET, 'reset')
        return self._sock.send(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_a_batch_of_which_some_records_have_left_is_not_sent_again(world: Worlds) -> None:
    here = world()
    got: List[int] = []
    here.server.on('message', lambda data: got.append(data[0]))
    here.start()
    client, log = here.connect(retry=10)
    assert client.wait_connected(20)
    client._socket._tls._sock = Reset(client._socket._tls._sock)
    with client.batch():
        for number in range(40):
            client.emit('message', [number, 'x' * 1000])
    log.wait('connect', 2)
    client.emit('message', [40])
    eventually(lambda: 40 in got)
    whole = len(got) - 1
    assert got == [*range(whole), 40]
    assert 0 < whole < 40
    assert any('were not delivered' in str(error) for error, in log.of('error'))


def test_megabytes_both_ways_from_several_threads_stay_whole(world: Worlds, certificates: Any, version: str) -> None:
    here = world(tls=server_context(certificates, version))
    got: List[List[Any]] = [[], []]
    here.server.on('message', lambda data: got[0].append((data[0], len(data[1]))))
    here.start()
    client, _ = here.connect()
    client.on('message', lambda data: got[1].append((data[0], len(data[1]))))
    ((accepted,),) = here.log.wait('connect')
    here.server.off('*')  # or its log would keep it all

    def emit(end: Any, number: int) -> None:
        end.emit('message', [number, 'x' * (16 * MIB)], timeout=60)

    threads = [threading.Thread(target=emit, args=(end, n)) for end in (client, accepted) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for each in got:
        eventually(lambda each=each: len(each) == 2, 60)
        assert sorted(each) == [(0, 16 * MIB), (1, 16 * MIB)]


def test_eight_threads_both_ways_keep_order_and_integrity(
    world: Worlds, certificates: Certificates, version: str, impatient: None  # noqa: F811
) -> None:
    here = world(tls=server_context(certificates, version))
    got: List[Dict[int, List[int]]] = [{n: [] for n in range(4)} for _ in range(2)]
    wrong: List[Any] = []

    def collect(side: int, data: Any) -> None:
        thread, number, text = data
        if text != chr(65 + thread) * (number * 97 % 5000):
            wrong.append(data)
        got[side][thread].append(number)

    here.server.on('m', lambda data: collect(0, data))
    here.start()
    client, log = here.connect()
    client.on('m', lambda data: collect(1, data))
    ((accepted,),) = here.log.wait('connect')
    count = 150

    def emit(end: Any, thread: int) -> None:
        for number in range(count):
            end.emit('m', [thread, number, chr(65 + thread) * (number * 97 % 5000)], timeout=60)

    threads = [threading.Thread(target=emit, args=(end, n)) for end in (client, accepted) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    expected = {n: list(range(count)) for n in range(4)}
    eventually(lambda: got == [expected, expected], 60)
    assert wrong == []
    assert log.of('error') == here.log.of('error') == []


def test_a_handler_that_falls_behind_makes_its_peers_emit_block(world: Worlds) -> None:
    here = world()
    gate = threading.Event()
    handled: List[int] = []

    @here.server.on('block')
    def handle(data: str) -> None:
        gate.wait(30)
        handled.append(len(data))

    here.start()
    client, _ = here.connect(max_pending_bytes=MIB)
    assert client.wait_connected(20)
    sent = 0
    with pytest.raises(EmitTimeout, match=r"client 'world' \(tls://.* takes no more.*max_pending_bytes"):
        for _ in range(1000):
            client.emit('block', BLOCK, timeout=0.2)
            sent += 1
    assert sent < 200
    assert here.server.stats()['bytes_in'] < 2 * MIB
    assert client.stats()['pending_bytes'] <= MIB + len(BLOCK) + 100
    gate.set()
    client.emit('block', 'last', timeout=20)
    eventually(lambda: handled and handled[-1] == 4)
    assert len(handled) == sent + 1


def test_a_refused_message_is_not_sent_in_part(world: Worlds, version: str) -> None:
    here = world(max_pending_bytes=MIB).start()
    with here.raw(version) as slow:
        ((accepted,),) = here.log.wait('connect')
        sent = 0
        with pytest.raises(EmitTimeout):
            while True:
                accepted.emit('block', [sent, BLOCK], timeout=0.1)
                sent += 1
        received = bytearray()

        def read() -> None:
            while not received.endswith(b'"end"}\f'):
                received.extend(slow.recv(1 << 20))

        reader = threading.Thread(target=read)
        reader.start()
        accepted.emit('block', 'end', timeout=20)
        reader.join(20)
        frames = bytes(received).split(b'\f')
        assert len(frames) == sent + 2
        head = len(b'{"type":"block","data":[100')
        expected = [f'{{"type":"block","data":[{n},"{BLOCK}"]}}'.encode()[:head] for n in range(sent)]
        assert [frame[:head] for frame in frames[:-2]] == expected


def test_a_broadcast_waits_for_the_slow_and_cuts_off_the_stuck(world: Worlds) -> None:
    here = world(max_pending_bytes=MIB, stall_timeout=300).start()
    stuck = here.raw()
    ((stuck_socket,),) = here.log.wait('connect')
    counts = Log()
    client, _ = here.connect()
    client.on('block', lambda data: counts('block', len(data)))
    slow = here.raw()
    here.log.wait('connect', 3)
    received = [0]

    def read_slowly() -> None:
        while True:
            chunk = slow.recv(50_000)
            received[0] += len(chunk)
            if not chunk:
                return
            time.sleep(0.0005)  # the subject of this test, not a wait for luck

    reader = threading.Thread(target=read_slowly)
    reader.start()
    for _ in range(60):
        here.server.broadcast('block', BLOCK)
    counts.wait('block', 60)
    ((error, accepted),) = here.log.wait('error')
    assert isinstance(error, ProtocolError)
    assert error.code == 'ERR_IPC_BACKPRESSURE'
    assert accepted is stuck_socket
    here.log.wait('socket.disconnected')
    eventually(lambda: received[0] == 60 * (len(b'{"type":"block","data":""}\f') + len(BLOCK)), 60)
    here.server.stop()
    reader.join(20)
    stuck.close()
    slow.close()


def test_a_blocked_emit_ends_when_the_peer_goes(world: Worlds) -> None:
    here = world(max_pending_bytes=MIB).start()
    deaf = here.raw()
    ((accepted,),) = here.log.wait('connect')
    raised = Log()

    def emit() -> None:
        try:
            while True:
                accepted.emit('block', BLOCK, timeout=60)
        except NotConnectedError as error:
            raised('error', error)

    emitter = threading.Thread(target=emit)
    emitter.start()
    eventually(lambda: accepted.pending_bytes > MIB)
    deaf.close()
    emitter.join(20)
    assert raised.of('error')
    here.log.wait('socket.disconnected')
    assert any('not delivered' in str(error) for error, _ in here.log.of('error'))


def test_a_client_comes_back_when_the_server_does(make: Any, certificates: Certificates) -> None:
    here = World(make, certificates).start()
    port = here.server.address[1]
    client, log = here.connect()
    client.emit('message', 1)
    here.log.wait('message')
    here.server.stop()
    log.wait('disconnect')
    again = Log()
    ipc = make(tls=certificates.server())
    ipc.serve_net('127.0.0.1', port).on('*', again)
    ipc.server.start()
    client.emit('message', 2, timeout=20)
    again.wait('message')
    assert len(log.wait('connect', 2)) == 2


@pytest.mark.parametrize(
    'settings',
    [{'workers': 0}, {'sync': True}, {'parser': 'guarded'}, {'raw_buffer': True}, {'delimiter': '\n'}],
    ids=lambda settings: '-'.join(map(str, *settings.items())),
)
def test_every_mode_works(world: Worlds, version: str, certificates: Certificates, settings: Dict[str, Any]) -> None:
    here = world(tls=server_context(certificates, version), **settings)
    raw = 'raw_buffer' in settings
    if raw:
        here.server.on('data', lambda data, socket: socket.emit(data))
    else:
        here.server.on('message', lambda data, socket: socket.emit('message', data))
    here.start()
    client, log = here.connect(**settings)
    if raw:
        client.emit(b'\x00\xff' * 50_000)
        eventually(lambda: b''.join(data for (data,) in log.of('data')) == b'\x00\xff' * 50_000)
        return
    for number in range(20):
        client.emit('message', [number, 'x' * 10_000])
    assert [data[0] for (data,) in log.wait('message', 20)] == list(range(20))


def test_assured_works_over_mutual_tls_and_nothing_less(make: Any, certificates: Certificates) -> None:
    events = ['message']
    tls = certificates.mutual('server')
    here = World(make, certificates, tls=tls, parser='assured', allowed_events=events)
    echo(here)
    client, log = here.connect(certificates.mutual('client'), parser='assured', allowed_events=events)
    client.emit('message', 1)
    assert log.wait('message') == [(1,)]
    for less in ({'reject_unauthorized': False}, {'request_cert': False}):
        ipc = make(tls=certificates.mutual('server', **less), parser='assured', allowed_events=events)
        with pytest.raises(ConfigError, match='ERR_IPC_ASSURED_TLS'):
            ipc.serve_net('127.0.0.1', 0).start()
    for tls in (certificates.client(), certificates.mutual('client', reject_unauthorized=False)):
        with pytest.raises(ConfigError, match='ERR_IPC_ASSURED_TLS'):
            make(tls=tls, parser='assured', allowed_events=events).connect_to_net('world', '127.0.0.1', 1)


def test_workers_0_can_block_in_emit_without_stopping_the_reactor(world: Worlds) -> None:
    here = world(workers=0, max_pending_bytes=MIB)

    @here.server.on('flood')
    def flood(count: int, socket: Any) -> None:
        for number in range(count):
            socket.emit('block', [number, BLOCK], timeout=20)

    here.start()
    got: List[int] = []
    client, _ = here.connect()
    client.on('block', lambda data: got.append(data[0]))
    client.emit('flood', 60)
    eventually(lambda: got == list(range(60)), 60)


def test_a_batch_leaves_in_few_records(world: Worlds) -> None:
    here = world()
    got: List[int] = []
    here.server.on('number', lambda data: got.append(data))
    here.start()
    client, _ = here.connect()
    assert client.wait_connected(20)
    tls = client._socket._tls
    before = tls.bytes_out
    with client.batch():
        for number in range(1000):
            client.emit('number', number)
    eventually(lambda: got == list(range(1000)))
    plain = sum(len(f'{{"type":"number","data":{n}}}\f') for n in range(1000))
    assert tls.bytes_out - before < plain + 20 * 100


def test_a_socket_that_is_given_speaks_tls(make: Any, certificates: Certificates) -> None:
    with socket.socket() as bound:
        bound.bind(('127.0.0.1', 0))
        ipc = make(tls=certificates.server())
        log = Log()
        ipc.serve_net(sock=bound).on('*', log)
        ipc.server.start()
        assert 'tls://127.0.0.1:' in str(ipc.server)
        client = make(id='client', tls=certificates.client()).connect_to_net('world', *bound.getsockname())
        client.emit('message', 1)
        log.wait('message')
        ipc.close()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_fork_leaves_the_parents_connections_alone(certificates: Certificates) -> None:
    process = script(
        """
import os, socket, sys, threading, time, warnings, nodeipc
warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
before = set(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else None
key, pem, ca = sys.argv[1:]
ipc = nodeipc.IPC(id='parent', tls=dict(private=key, public=pem, trusted_connections=ca, request_cert=False), silent=True)
got = []
done = threading.Event()
server = ipc.serve_net('127.0.0.1', 0)
server.on('n', lambda data: (got.append(data), data == 199 and done.set()))
server.start()
client = ipc.connect_to_net('parent', *server.address)
errors = []
client.on('error', errors.append)
server.on('error', errors.append)
silent = socket.create_connection(server.address)  # a handshake that has not begun
for number in range(100):
    client.emit('n', number)
while not (got and server._lobby._silent):  # what the reactor is just handing on, a fork cannot see
    time.sleep(0.001)
pid = os.fork()
if pid == 0:
    silent.close()
    left = [] if before is None else [
        fd for fd in set(os.listdir('/proc/self/fd')) - before if os.path.exists('/proc/self/fd/' + fd)]
    try:
        client.emit('n', 'from the child')
    except nodeipc.NotConnectedError:
        os._exit(len(left))
    os._exit(99)
print(os.waitpid(pid, 0)[1])
for number in range(100, 200):
    client.emit('n', number)
done.wait(20)
print(got == list(range(200)), errors)
silent.close()
ipc.close()
""",
        certificates.key('server'), certificates.pem('server'), certificates.pem('ca'),
    )  # fmt: skip
    out, err = process.communicate(timeout=60)
    assert out == '0\nTrue []\n', err


def test_an_emit_that_is_interrupted_in_the_middle_closes_its_connection(world: Worlds) -> None:
    here = world().start()
    client, log = here.connect()
    client.emit('message', 1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    tls = client._connection._tls
    tls._sock = Interrupting(tls._sock, interrupt, thread=threading.get_ident())
    with pytest.raises(KeyboardInterrupt):
        while True:  # while the reactor reads, what comes with the handshake say, it writes for us as well
            client.emit('message', 2)
            client.flush()
    log.wait('connect', 2)
    assert any('was interrupted' in str(error) for (error,) in log.of('error'))
    client.emit('message', 3)
    eventually(lambda: 3 in [data for data, _ in here.log.of('message')])


def test_ctrl_c_during_emits_ends_in_a_clean_state(world: Worlds) -> None:
    here = world()
    got: List[int] = []
    here.server.on('n', lambda data: got.append(data[0]))
    here.server.off('*')
    here.start()
    tls = here.certificates
    for _ in range(3):
        got.clear()
        process = script(
            """
import sys, nodeipc
ipc = nodeipc.IPC(id='client', retry=10, silent=True, tls=dict(trusted_connections=sys.argv[2]))
client = ipc.connect_to_net('world', '127.0.0.1', int(sys.argv[1]))
client.wait_connected(20)
print('ready', flush=True)
number = 0
try:
    while True:
        client.emit('n', [number, 'x' * 20_000])
        number += 1
except KeyboardInterrupt:
    pass
client.emit('n', [-1], timeout=20)
ipc.close()
print(number)
""",
            str(here.server.address[1]), tls.pem('ca'),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == 'ready\n'
        eventually(lambda: len(got) > 5)
        process.send_signal(2)
        _, err = process.communicate(timeout=30)
        assert 'Traceback' not in err
        eventually(lambda: got and got[-1] == -1)
        assert got[:-1] == list(range(len(got) - 1))  # in order and whole, up to where it was cut
        eventually(lambda: not here.server.sockets)


def test_an_emit_inside_an_emit_is_refused_and_harms_nothing(world: Worlds) -> None:
    here = world().start()
    client, _ = here.connect()
    client.emit('message', 1)
    refused: List[str] = []

    def emit_again() -> None:  # what a signal handler or __del__ may do
        try:
            client.emit('message', 'nested')
        except RuntimeError as error:
            refused.append(str(error))

    tls = client._connection._tls
    tls._sock = Interrupting(tls._sock, emit_again, thread=threading.get_ident())
    times = 0
    while not refused:  # while the reactor reads, what comes with the handshake say, it writes for us as well
        client.emit('message', 2)
        client.flush()
        times += 1
    client.emit('message', 3)
    assert [data for data, _ in here.log.wait('message', times + 2)] == [1, *[2] * times, 3]
    assert 'set a flag there' in refused[0]


def test_an_emit_in_a_destructor_that_interrupts_a_flush_harms_nothing(world: Worlds) -> None:
    """__del__ may run on the reactor thread, while it writes what the socket did not take before."""
    here = world()
    got: List[Any] = []
    here.server.on('message', lambda data: got.append(data if isinstance(data, int) else len(data)))
    here.server.off('*')
    here.start()
    client, log = here.connect()
    client.emit('message', 1)
    tls = client._connection._tls
    emitted = threading.Event()

    class Late:
        """Takes a part once, and then has somebody emit in the middle of the reactor's write."""

        def __init__(self, sock: Any) -> None:
            self.sock, self.state = sock, 'part'

        def send(self, data: Any, flags: int = 0) -> int:
            if self.state == 'part':
                self.state = 'full'
                return int(self.sock.send(bytes(data)[: len(data) // 2], flags))
            if self.state == 'full':
                self.state = 'interrupt'
                raise BlockingIOError
            sent = int(self.sock.send(data, flags))
            if self.state == 'interrupt' and threading.current_thread().name == 'nodeipc-reactor':
                self.state = 'done'
                client.emit('message', 3)
                emitted.set()
            return sent

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

    tls._sock = Late(tls._sock)
    client.emit('message', 'x' * 1000)
    assert emitted.wait(20)
    client.emit('message', 4)
    eventually(lambda: len(got) == 4)
    assert got == [1, 1000, 3, 4]
    assert log.of('error') == []


# Goodbye


@pytest.mark.parametrize('size', [10, 4 * MIB])
def test_what_a_client_emitted_before_disconnect_arrives(world: Worlds, version: str, certificates: Any, size: int) -> None:
    here = world(tls=server_context(certificates, version))
    got: List[Any] = []
    here.server.on('message', lambda data: got.append((data[0], len(data[1]))))
    here.server.off('*')
    here.start()
    for count in range(1, 6):
        client, log = here.connect()
        client.emit('message', [count, 'x' * size])
        client.disconnect()
        eventually(lambda count=count: got == [(n, size) for n in range(1, count + 1)])
        assert log.of('error') == []


def test_what_a_server_emitted_before_stop_arrives_at_slow_readers_too(world: Worlds, version: str) -> None:
    here = world().start()
    _, log = here.connect(stop_retrying=True)
    slow = here.raw(version)
    here.log.wait('connect', 2)
    received = bytearray()
    ended: List[bytes] = []

    def read_slowly() -> None:
        while True:
            chunk = slow.recv(70_000)
            if not chunk:
                ended.append(chunk)
                slow.close()
                return
            received.extend(chunk)
            time.sleep(0.0005)  # the subject of this test

    for number in range(60):
        here.server.broadcast('news', [number, BLOCK])
    reader = threading.Thread(target=read_slowly)
    reader.start()
    here.server.stop()
    reader.join(20)
    log.wait('destroy')
    assert [data[0] for (data,) in log.of('news')] == list(range(60))
    assert log.of('error') == here.log.of('error') == []
    assert ended == [b'']  # a close_notify: else it were an SSLEOFError
    assert received.count(b'\f') == 60


def test_close_notify_is_sent_at_goodbye(world: Worlds, version: str) -> None:
    here = world()
    here.server.on('bye', lambda data, socket: (socket.emit('bye'), socket.close()))
    here.start()
    with here.raw(version) as sock:
        sock.sendall(b'{"type":"bye"}\f')
        received = b''
        while not received.endswith(b'\f'):
            received += sock.recv(100)
        assert received == b'{"type":"bye","data":{}}\f'
        assert sock.recv(100) == b''


def test_a_client_sends_close_notify_at_goodbye(
    make: Any, certificates: Certificates, version: str, far_server: socket.socket
) -> None:
    client = make(tls=certificates.client()).connect_to_net('world', *far_server.getsockname())
    sock, _ = far_server.accept()
    with server_context(certificates, version).wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as peer:
        client.emit('message', 1)
        leaving = threading.Thread(target=client.disconnect)
        leaving.start()
        received = b''
        while True:
            chunk = peer.recv(100)
            received += chunk
            if not chunk:
                break
        assert received == b'{"type":"message","data":1}\f'
    leaving.join(20)


def test_a_close_notify_for_which_there_is_no_room_is_sent_when_there_is(
    make: Any, certificates: Certificates, version: str, far_server: socket.socket
) -> None:
    client = make(tls=certificates.client(), stall_timeout=60_000).connect_to_net('world', *far_server.getsockname())
    sock, _ = far_server.accept()
    with server_context(certificates, version).wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as peer:
        client.emit('message', 1)

        def refuse() -> None:
            raise BlockingIOError

        tls = client._connection._tls
        tls._sock = Interrupting(tls._sock, refuse, before=True)
        leaving = threading.Thread(target=client.disconnect)
        leaving.start()
        peer.settimeout(5)
        while peer.recv(100):
            pass
    leaving.join(20)


def test_a_peer_that_answers_close_notify_ends_the_goodbye(
    make: Any, certificates: Certificates, version: str, far_server: socket.socket
) -> None:  # defect 6
    ipc = make(tls=certificates.client(), stall_timeout=60_000)
    client = ipc.connect_to_net('world', *far_server.getsockname())
    sock, _ = far_server.accept()
    with server_context(certificates, version).wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as peer:
        client.emit('message', 1)
        leaving = threading.Thread(target=client.disconnect)
        leaving.start()
        while peer.recv(100):
            pass
        with peer.unwrap():
            leaving.join(5)
            late = leaving.is_alive()
        peer.close()
        leaving.join(20)
        assert not late


@pytest.mark.parametrize('end', ['server', 'client'])
def test_a_peers_close_notify_ends_the_connection_though_its_socket_stays_open(
    make: Any, certificates: Certificates, version: str, far_server: socket.socket, end: str
) -> None:
    if end == 'server':
        here = World(make, certificates, tls=server_context(certificates, version)).start()
        log, ended = here.log, 'socket.disconnected'
        peer = here.by_hand(version)
    else:
        log, ended = Log(), 'disconnect'
        ipc = make(tls=certificates.client(), stop_retrying=True)
        ipc.connect_to_net('world', *far_server.getsockname(), lambda client: client.on('*', log))
        peer = ByHand(far_server.accept()[0], server_context(certificates, version), server_side=True)
    with peer.shake_hands():
        peer.write(b'{"type":"a","data":1}\f')
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.unwrap()
        peer.send()
        log.wait('a')
        log.wait(ended)
        assert peer.read() == b''  # and it has answered
        assert log.of('error') == []


def test_a_peer_that_just_drops_tcp_has_left(world: Worlds, version: str) -> None:
    here = world().start()
    with here.by_hand(version).shake_hands() as peer:
        peer.write(b'{"type":"a","data":1}\f').send()
        here.log.wait('a')
        if version == 'TLSv1_3':
            peer.receive()  # the session tickets: closing with unread input were a reset
    here.log.wait('socket.disconnected')
    assert here.log.of('error') == []


def test_a_peer_that_has_said_goodbye_still_gets_its_answers(world: Worlds, version: str) -> None:
    here = world()
    here.server.on('ask', lambda data, socket: socket.emit('answer', [data, BLOCK]))
    here.start()
    with here.by_hand(version).shake_hands() as peer:
        for number in range(20):
            peer.write(b'{"type":"ask","data":%d}\f' % number)
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.unwrap()
        peer.send()
        received = bytearray()
        while True:
            chunk = peer.read()
            if not chunk:
                break
            received.extend(chunk)
    assert [frame[:27].split(b'[')[1].split(b',')[0] for frame in bytes(received).split(b'\f')[:-1]] == [
        str(number).encode() for number in range(20)
    ]
    here.log.wait('socket.disconnected')
    assert here.log.of('error') == []


def test_a_message_that_is_cut_short_is_an_error(world: Worlds, version: str) -> None:
    here = world().start()
    with here.by_hand(version).shake_hands() as peer:
        peer.write(b'{"type":"a","data":1}\f{"type":"b",').send()
        here.log.wait('a')
    ((error, _),) = here.log.wait('error')
    assert isinstance(error, (IPCError, OSError))
    here.log.wait('socket.disconnected')


def test_a_record_that_is_cut_short_is_an_error(world: Worlds, version: str) -> None:  # defect 1
    here = world().start()
    for cut in (-1, 30, 5, 3):
        here.log.events.clear()
        with here.by_hand(version).shake_hands() as peer:
            peer.write(b'{"type":"a","data":1}\f').send()
            here.log.wait('a')
            peer.write(b'{"type":"b","data":1}\f')
            peer.sock.sendall(peer.outgoing.read()[:cut])
        here.log.wait('socket.disconnected')
        assert len(here.log.of('error')) == 1, cut
        assert here.log.of('b') == []


@pytest.mark.parametrize('pieces', [1, 3000])
def test_a_message_that_drips_within_a_record_is_cut_off_in_time(world: Worlds, version: str, pieces: int) -> None:
    """OpenSSL gives nothing of a record before it is whole."""
    here = world(parser='guarded', message_timeout=100).start()
    with here.by_hand(version).shake_hands() as peer:
        here.log.wait('connect')
        peer.write(b'{"type":"message","data":"' + b'x' * 4000)
        record = peer.outgoing.read()[:-1]
        peer.sock.sendall(record[:4])  # not even its header
        with contextlib.suppress(OSError):
            for start in range(4, len(record), len(record) // pieces):
                if here.log.of('error'):
                    break
                peer.sock.sendall(record[start:start + len(record) // pieces])
        ((error, _),) = here.log.wait('error')
        assert error.code == 'ERR_IPC_MESSAGE_TIMEOUT'
        here.log.wait('socket.disconnected')
    here.still_serves()


def test_records_that_come_in_pieces_are_whole_if_they_are_in_time(world: Worlds, version: str) -> None:
    here = world(parser='guarded', message_timeout=60_000).start()
    with here.by_hand(version).shake_hands() as peer:
        peer.write(b'{"type":"message","data":1}\f' * 20)
        for byte in peer.outgoing.read():
            peer.sock.sendall(bytes([byte]))
        here.log.wait('message', 20)
        assert not here.log.of('error')  # closing with unread session tickets is a reset


def test_a_script_that_ends_delivers_what_it_emitted(world: Worlds) -> None:
    here = world()
    got: List[Any] = []
    here.server.on('message', lambda data: got.append(data if isinstance(data, int) else len(data)))
    here.server.off('*')
    here.start()
    code = (
        'import sys, nodeipc\n'
        'ipc = nodeipc.IPC(tls=dict(trusted_connections=sys.argv[2]))\n'
        'client = ipc.connect_to_net("world", "127.0.0.1", int(sys.argv[1]))\n'
        'for number in range(100): client.emit("message", number)\n'
        'client.emit("message", "y" * 3_000_000)\n'
    )
    arguments = [str(here.server.address[1]), here.certificates.pem('ca')]
    subprocess.run([sys.executable, '-S', '-W', 'error', '-c', code, *arguments], timeout=60, check=True)
    eventually(lambda: got == [*range(100), 3_000_000])

