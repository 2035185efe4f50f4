"""One line for a script: `connect` and `serve`, which take an address in any form and make an instance for it alone."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple, Optional, Union

from .client import Client
from .config import Config
from .errors import ConfigError
from .events import Handler, call_back
from .instance import IPC
from .server import Server

Address = Union[str, 'os.PathLike[str]']

_FORMS = (
    "an address is an id ('world'), a path ('/run/world.sock', './world'), 'unix:PATH', 'tcp://HOST:PORT', "
    "'tls://HOST:PORT' or 'udp://HOST:PORT'"
)

# Compiled at its first use: at import it takes longer than most modules.
_NET = r'(tcp|tls|udp)://(\[[^\[\]/]*\]|[^\[\]/:@?#]*)(?::([0-9]*))?'


class _Place(NamedTuple):
    """An address, taken apart. `kind` is ``id``, ``unix``, ``tcp``, ``tls`` or ``udp``."""

    kind: str
    name: str  # the id, the path, or the host
    port: Optional[int] = None


def connect(address: Address, callback: Optional[Handler] = None, **settings: Any) -> Client:
    """Return a client of the server at `address`, which connects by itself, now and whenever the connection is lost.

    `address` is one of

    - an id, ``'world'``: the Unix socket of the service of that name, ``config.socket_root + config.appspace + id``
    - a path, which has a ``/``: ``'/run/world.sock'``, ``'./world'``; or ``'unix:PATH'``; ``'unix:@name'`` is a name in
      Linux's abstract namespace
    - ``'tcp://host:port'``, ``'tls://host:port'``; ``'tcp://[::1]:8000'``. Host or port may be left out for
      ``config.network_host`` and ``config.network_port``. TLS trusts the system's authorities unless ``tls=`` says
      otherwise
    - ``'udp://host:port'``: datagrams to and from that address; nothing tells whether they arrive

    `callback` is called before anything can happen, with the client if it takes an argument: handlers that it registers
    miss nothing. `settings` are fields of `Config`: ``connect('world', retry=100)``.

    This returns at once: `emit`, `request` and the like wait for the connection, up to ``config.emit_timeout`` (10 s) or
    their `timeout`. What the server says before anything was asked for is kept, up to 256 KiB, for the first who asks
    (`on`, `wait_for`, `events`). The client runs on an instance of its own, which ends with the ``with`` block, or
    `Client.disconnect`.

    Raises `ConfigError` for an address that is none of these and for wrong settings, AttributeError for a setting that
    does not exist, OSError for a path that the system cannot have, or a UDP host that is not found.

    >>> import nodeipc
    >>> with nodeipc.serve('connect-example') as server:
    ...     handler = server.on('message', lambda data, socket: socket.emit('message', data + ' world!'))
    ...     with nodeipc.connect('connect-example') as world:
    ...         world.request('message', 'hello', timeout=10)
    'hello world!'
    """
    place = _parse(address)
    ipc = _instance(place, settings, {})

    def prepare(client: Client) -> None:
        client._close_instance = ipc._end
        if callback is not None:
            call_back(callback, client)
        if not ipc.config.sync:
            client._keep()

    if place.kind in ('id', 'unix'):
        path = place.name if place.kind == 'unix' else None
        return ipc.connect_to(str(os.fspath(address)), path, prepare)
    if place.kind == 'udp':
        return ipc._connect_udp(str(address), place.name, place.port, prepare)
    return ipc.connect_to_net(str(address), place.name or None, place.port, prepare)


def serve(address: Address, callback: Optional[Handler] = None, **settings: Any) -> Server:
    """Return a server for `address`, to be started by ``with``, `start`, `wait`, or by iterating over its `events`.

    `address` is one of those that `connect` takes; port 0 lets the system choose, and ``server.address`` tells. `callback`
    is called whenever it is bound and before anybody is accepted, with the server if it takes an argument. `settings` are
    fields of `Config`: ``serve('tls://:8000', tls={'private': 'world.key', 'public': 'world.pem'})``. ``config.id`` is the
    id, if the address is one.

    Register handlers and methods first and start it then, so that they miss nothing; what comes for `events` before they
    are asked for is kept, up to 256 KiB. The server runs on an instance of its own, which ends with the ``with`` block,
    or `Server.stop`.

    Raises `ConfigError` for an address that is none of these and for wrong settings, AttributeError for a setting that
    does not exist, OSError for a path that the system cannot have. `Server.start` raises what binding does.

    >>> import nodeipc
    >>> server = nodeipc.serve('serve-example')
    >>> @server.method
    ... def add(a, b):
    ...     return a + b
    >>> with server, nodeipc.connect('serve-example') as client:
    ...     client.call('add', 1, 2, timeout=10)
    3
    """
    place = _parse(address)
    ipc = _instance(place, settings, {'id': place.name} if place.kind == 'id' else {})
    if place.kind in ('id', 'unix'):
        path = place.name if place.kind == 'unix' else f'{ipc.config.socket_root}{ipc.config.appspace}{place.name}'
        server = ipc.serve(path, callback)
    else:
        version = None if place.kind != 'udp' else 'udp6' if ':' in place.name else 'udp4'
        server = ipc.serve_net(place.name or None, place.port, version, callback)
    server._close_instance = ipc._end
    server._keep()
    return server


def _instance(place: _Place, settings: Any, defaults: Any) -> IPC:
    ipc = IPC(Config(**{**defaults, **settings}))
    if place.kind == 'tls' and ipc.config.tls is None:
        ipc.config.tls = {}
    elif place.kind != 'tls' and ipc.config.tls is not None:
        raise ConfigError(f'tls= is given, and {place.kind} is not encrypted; use an address tls://HOST:PORT, or no tls=')
    return ipc


def _parse(address: Address) -> _Place:
    """Take an address apart.

    >>> _parse('tcp://[::1]:8000')
    _Place(kind='tcp', name='::1', port=8000)
    """
    if isinstance(address, os.PathLike):
        address = os.fspath(address)
        if isinstance(address, str) and address:
            return _Place('unix', address)
    if not isinstance(address, str):
        raise TypeError(f'{_FORMS}; not {address!r}')
    if address.startswith('unix:'):
        path = address[len('unix:'):]
        if path.startswith('//'):  # as a URL has it: unix:///run/world.sock
            path = path[2:]
        if path in ('', '@'):
            raise ConfigError(f'{_FORMS}; {address!r} has no path')
        return _Place('unix', '\0' + path[1:] if path.startswith('@') else path)
    match = re.fullmatch(_NET, address)
    if match:
        kind, host, digits = match.groups()
        port = int(digits) if digits else None
        if port is not None and port > 65535:
            raise ConfigError(f'{address!r} has no such port: it is a number from 0 to 65535')
        return _Place(kind, host[1:-1] if host.startswith('[') else host, port)
    if not address or '://' in address or re.match('(tcp|tls|udp):', address):
        raise ConfigError(f'{_FORMS}; not {address!r}')
    if '/' in address:
        return _Place('unix', address)
    if re.search(r':[0-9]+$', address):
        raise ConfigError(f'{address!r} is no id; for a host and a port write tcp://{address}')
    if '\0' in address:
        raise ConfigError(f'{_FORMS}; {address!r} has a NUL in it')
    return _Place('id', address)
