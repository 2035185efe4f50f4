"""TLS: who is trusted, what is refused and in which words, and that an encrypted connection is as good as a plain one."""

from __future__ import annotations

from typing import Any

from .certificates import Certificates
from .conftest import Log


def test_events_go_both_ways(make: Any, certificates: Certificates) -> None:
    server = make(tls=certificates.server()).serve_net('127.0.0.1', 0)
    server.on('message', lambda data, socket: socket.emit('message', data + ' world!'))
    server.start()
    log = Log()
    client = make(tls=certificates.client()).connect_to_net('world', *server.address)
    client.on('*', log)
    client.emit('message', 'hello')
    assert log.wait('message') == [('hello world!',)]
