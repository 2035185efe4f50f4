"""Delimiters of one's own, between nodeipc and real node-ipc peers.

node-ipc 14 takes any. 9 and 10 write any, but read only those that are one UTF-16 code unit: they compare the last unit of
what came to the whole delimiter, and with a longer one collect for ever.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List

import pytest

import nodeipc

from ..conftest import Log
from .peers import SECONDS, UDP, NodePeer, Place, echo, messages
from .vectors import ROWS, arriving, emit_row, recorded

Make = Callable[..., nodeipc.IPC]

SHORT = ['\n', '|', '\N{SNOWMAN}']
LONG = ['\r\n', '\N{GRINNING FACE}']


@pytest.fixture(params=[*SHORT, *LONG], ids=ascii)
def delimiter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def transport() -> str:
    return 'unix'


@pytest.fixture
def is_read(delimiter: str, version: str) -> bool:
    """Whether the version reads what ends with the delimiter."""
    return version == '14.0.0' or delimiter in SHORT


def rows_without(delimiter: str) -> List[Dict[str, Any]]:
    """The rows whose JSON does not contain the delimiter."""
    return [row for row in ROWS if delimiter not in recorded(row, '14.0.0')[:-1].decode()]


def test_rows_go_from_a_node_client_to_a_python_server_and_back(
    make: Make, place: Place, node: NodePeer, version: str, delimiter: str, is_read: bool
) -> None:
    server = place.serve(make(delimiter=delimiter))
    log = Log()
    server.on('*', log)
    if is_read:
        echo(server)
    server.start()
    node.do('configure', settings={'delimiter': delimiter})
    node.connect(place)
    node.wait('connect')
    rows = rows_without(delimiter)
    for row in rows:
        node.emit(row['type'], row['data'])
    node.emit('end', True)
    expected = [*(arriving(row, version) for row in rows), ('end', 'true')]
    log.wait('end', timeout=SECONDS)
    assert messages(log.events) == expected
    if is_read:
        node.wait('end')
        assert messages(node.reports) == expected


def test_rows_go_from_a_python_client_to_a_node_server_and_back(
    make: Make, place: Place, node: NodePeer, version: str, delimiter: str, is_read: bool
) -> None:
    node.do('configure', settings={'delimiter': delimiter})
    node.do('echo')
    node.serve(place)
    log = Log()
    client = place.connect(make(delimiter=delimiter), lambda client: client.on('*', log))
    node.wait('connect')
    rows = rows_without(delimiter)
    if is_read:
        for row in rows:
            emit_row(client.emit, row)
        client.emit('end', True)
        node.wait('end')
        assert messages(node.reports) == [*(arriving(row, '14.0.0') for row in rows), ('end', 'true')]
    else:  # the Node server speaks all the same
        for row in rows:
            node.do('broadcast', type=row['type'], data=row['data'])
        node.do('broadcast', type='end', data=True)
    log.wait('end', timeout=SECONDS)
    assert messages(log.events) == [*(arriving(row, version) for row in rows), ('end', 'true')]


@pytest.mark.parametrize('delimiter', ['\n'], indirect=True, ids=ascii)
def test_datagrams_with_another_delimiter_go_both_ways(
    make: Make, udp: UDP, node: NodePeer, delimiter: str
) -> None:
    node.do('configure', settings={'delimiter': delimiter})
    node.do('echo')
    node_address = node.serve_udp(udp)
    server = make(delimiter=delimiter).serve_net(udp.host, 0, udp.type)
    log = Log()
    server.on('*', log)
    server.start()
    server.emit(node_address, 'text', 'two\nlines\f')
    node.wait('text')
    log.wait('text', timeout=SECONDS)
    assert messages(log.events) == messages(node.reports) == [('text', '"two\\nlines\\f"')]
