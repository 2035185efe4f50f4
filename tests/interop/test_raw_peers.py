"""Raw mode: bytes without events, between nodeipc and real node-ipc peers, over Unix, TCP and UDP.

What arrives in node-ipc 14 is what was sent, whatever its encoding is. On streams 9 and 10 turn what arrives into text of
``config.encoding`` and back into a Buffer: 'hex' and 'latin1' keep all bytes and are at once there; 'base64' holds back what
is not a multiple of three bytes until there is more, or the end; 'utf16le' holds back an odd byte, or half of a pair, and
drops it at the end; 'utf8', the default, replaces what is not UTF-8 by U+FFFD; 'ascii' clears the eighth bit.

Over UDP 9 and 10 read what arrives as UTF-8 and take the text for one in ``config.encoding``, so that with 'hex' a datagram
of bytes arrives as an empty Buffer. That is, unless ``config.rawSocket`` is true, a setting that no document names and
that was to be rawBuffer; with it a datagram arrives as it was sent, in every encoding.

What 9 and 10 send is right: a Buffer as it is, text in the encoding.
"""

from __future__ import annotations

from typing import Any, Callable, List, Tuple

import pytest

import nodeipc

from ..conftest import Log, eventually
from .peers import SECONDS, UDP, NodePeer, Place

Make = Callable[..., nodeipc.IPC]

ALL_BYTES = bytes(range(256))

# Each can be a datagram. Bytes that are not UTF-8, or are half a character of it; JSON and delimiters that mean nothing.
PAYLOADS = [
    b'\0', ALL_BYTES, b'\xff\xfe\xe2\x98', '\N{SNOWMAN}'.encode(), b'{"type":"message","data":1}\f', b'\f\n',
    ALL_BYTES * 200,
]
# More than a socket's buffer holds, with a period that no size of a chunk has.
LARGE = ALL_BYTES[:251] * 4001
STREAM = b''.join([*PAYLOADS, LARGE])


def joined(log: Log, count: int) -> bytes:
    """Wait for so many bytes, in as many chunks as they come in; return all that came."""

    def received() -> bytes:
        return b''.join(event[0] for event in log.of('data'))

    try:
        eventually(lambda: len(received()) >= count, SECONDS)
    except AssertionError:
        pass  # whoever compares it sees what is missing
    return received()


def echo(data: bytes, socket: nodeipc.Socket) -> None:
    socket.emit(data, timeout=SECONDS)


def start(server: nodeipc.Server) -> Log:
    """Start a server; return the log of its events."""
    log = Log()
    server.on('*', log)
    server.start()
    return log


def connect(make: Make, place: Place, **settings: Any) -> Tuple[nodeipc.Client, Log]:
    """A connected raw client and the log of its events."""
    log = Log()
    client = place.connect(make(parser='raw', **settings), lambda client: client.on('*', log))
    log.wait('connect', timeout=SECONDS)
    return client, log


def udp_server(make: Make, udp: UDP, **settings: Any) -> Tuple[nodeipc.Server, Log, Tuple[str, int]]:
    """A started raw server, the log of its events, and its address."""
    server = make(parser='raw', **settings).serve_net(udp.host, 0, udp.type)
    log = start(server)
    assert isinstance(server.address, tuple)
    return server, log, server.address


# Streams


def test_bytes_go_from_a_node_client_to_a_python_server_and_back(make: Make, place: Place, node: NodePeer) -> None:
    server = place.serve(make(raw_buffer=True))
    server.on('data', echo)
    log = start(server)
    node.be_raw()
    node.connect(place)
    for payload in PAYLOADS:
        node.emit_raw(payload)
    node.emit_raw(LARGE.hex())  # text, in the encoding
    assert node.wait_bytes(len(STREAM)) == STREAM
    assert joined(log, len(STREAM)) == STREAM


def test_bytes_go_from_a_python_client_to_a_node_server_and_back(make: Make, place: Place, node: NodePeer) -> None:
    node.be_raw()
    node.do('echo')
    node.serve(place)
    client, log = connect(make, place, encoding='hex')
    ways: List[Callable[[bytes], Any]] = [bytes, bytes.hex, list, memoryview]
    for number, payload in enumerate(PAYLOADS):
        client.emit(ways[number % len(ways)](payload))
    client.emit(LARGE, timeout=SECONDS)
    assert joined(log, len(STREAM)) == STREAM
    assert node.wait_bytes(len(STREAM)) == STREAM


def test_a_python_server_broadcasts_bytes_to_node_and_python_clients(make: Make, place: Place, node: NodePeer) -> None:
    server = place.serve(make(raw_buffer=True))
    server_log = start(server)
    node.be_raw()
    node.connect(place, 'first')
    node.connect(place, 'second')
    _, log = connect(make, place)
    server_log.wait('connect', 3, timeout=SECONDS)
    server.broadcast(ALL_BYTES)
    assert node.wait_bytes(256, of='first') == node.wait_bytes(256, of='second') == joined(log, 256) == ALL_BYTES


def test_a_node_server_broadcasts_bytes_to_python_clients(make: Make, place: Place, node: NodePeer) -> None:
    node.be_raw()
    node.serve(place)
    logs = [connect(make, place)[1] for _ in range(2)]
    node.wait('connect', 2)
    node.do('broadcastRaw', hex=ALL_BYTES.hex())
    assert [joined(log, 256) for log in logs] == [ALL_BYTES] * 2


SNOW = '\N{SNOWMAN} \N{GRINNING FACE}'
TEXTS = {
    'utf8': (SNOW, SNOW.encode()),
    'utf16le': (SNOW, SNOW.encode('utf-16-le')),
    'latin1': ('Gr\xfc\xdfe', b'Gr\xfc\xdfe'),
    'ascii': ('hello', b'hello'),
    'base64': ('AAH/+v8A', b'\0\x01\xff\xfa\xff\0'),  # six bytes, for 9 and 10 would hold back others
    'hex': ('00FFc3', b'\0\xff\xc3'),
}


@pytest.mark.parametrize('transport', ['unix'], indirect=True)
@pytest.mark.parametrize('encoding', list(TEXTS))
def test_text_is_the_same_bytes_to_python_and_to_node(
    make: Make, place: Place, node: NodePeer, encoding: str
) -> None:
    server = place.serve(make(raw_buffer=True, encoding=encoding))
    log = start(server)
    node.be_raw(encoding)
    node.connect(place)
    ((socket,),) = log.wait('connect', timeout=SECONDS)
    text, expected = TEXTS[encoding]
    node.emit_raw(text)
    assert joined(log, len(expected)) == expected
    socket.emit(text)
    assert node.wait_bytes(len(expected)) == expected
    node.emit_raw(ALL_BYTES)  # a Buffer, which has no encoding
    assert joined(log, len(expected) + 256) == expected + ALL_BYTES


@pytest.mark.parametrize('transport', ['unix'], indirect=True)
@pytest.mark.parametrize('version', ['14.0.0'], indirect=True)
def test_node_ipc_14_takes_bytes_that_are_not_utf8_as_they_are(make: Make, place: Place, node: NodePeer) -> None:
    server = place.serve(make(raw_buffer=True))
    server.on('data', echo)
    server.start()
    node.do('configure', settings={'parser': 'raw'})
    node.connect(place)
    node.emit_raw(ALL_BYTES)
    assert node.wait_bytes(256) == ALL_BYTES


# UDP, where each payload is a datagram and each datagram an event


def test_bytes_go_from_a_node_peer_to_a_python_server_and_back(make: Make, udp: UDP, node: NodePeer) -> None:
    server, log, address = udp_server(make, udp)
    server.on('data', echo)
    node.be_raw()
    at = node.serve_udp(udp)
    datagrams = [*PAYLOADS, b'', b'end']
    for number, payload in enumerate(datagrams, 1):
        node.emit_raw(payload.hex() if number % 2 else payload, address)
        node.wait('data', number)  # one at a time: the large ones are as much as a buffer holds
    assert [bytes.fromhex(hex) for hex in node.wait('data')] == datagrams
    assert [data for data, _ in log.wait('data', len(datagrams), timeout=SECONDS)] == datagrams
    assert [peer.address for peer in server.sockets] == [at]


def test_bytes_go_from_a_python_peer_to_a_node_server_and_back(make: Make, udp: UDP, node: NodePeer) -> None:
    node.be_raw()
    node.do('echo')
    node_address = node.serve_udp(udp)
    server, log, _ = udp_server(make, udp, encoding='hex')
    datagrams = [*PAYLOADS, b'', b'end']
    for number, payload in enumerate(datagrams, 1):
        payload_in_one_way: Any = payload.hex() if number % 2 else payload
        server.emit(node_address, payload_in_one_way)
        log.wait('data', number, timeout=SECONDS)
    assert [data for data, _ in log.of('data')] == datagrams
    assert [bytes.fromhex(hex) for hex in node.wait('data', len(datagrams))] == datagrams


def test_bytes_are_broadcast_to_the_peers_that_were_heard(
    make: Make, udp: UDP, node: NodePeer, version: str
) -> None:
    server, log, address = udp_server(make, udp)
    node.be_raw()
    node_address = node.serve_udp(udp)
    node.emit_raw(b'\xff', address)
    log.wait('data', timeout=SECONDS)
    server.broadcast(ALL_BYTES)
    assert node.wait('data') == [ALL_BYTES.hex()]
    if version != '14.0.0':
        # 9 and 10 remember nobody, so that their broadcasts reach only whom the application has put there.
        node.do('addPeer', to={'address': address[0], 'port': address[1]})
    node.do('broadcastRaw', hex=ALL_BYTES.hex())
    data, peer = log.wait('data', 2, timeout=SECONDS)[1]
    assert (data, peer.address) == (ALL_BYTES, node_address)


def test_text_goes_over_udp_to_node_peers_that_know_raw_buffer_only(make: Make, udp: UDP, node: NodePeer) -> None:
    node.do('configure', settings={'rawBuffer': True})
    node.do('echo')
    node_address = node.serve_udp(udp)
    server, log, _ = udp_server(make, udp)
    text = 'Gr\xfc\xdfe \N{SNOWMAN}'
    server.emit(node_address, text)
    assert log.wait('data', timeout=SECONDS)[0][0] == text.encode()
    assert node.wait('data') == [text.encode().hex()]
