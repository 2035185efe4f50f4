"""Event messaging between processes, for synchronous Python, compatible with node-ipc.

Servers and clients exchange JSON events over Unix sockets, TCP, TLS and UDP::

    from nodeipc import ipc

    ipc.config.id = 'world'
    server = ipc.serve()

    @server.on('message')
    def answer(data, socket):
        socket.emit('message', data + ' world!')

    server.start()
    ipc.wait()

`ipc` is a ready-made instance, like node-ipc's module object; `IPC` makes independent ones.
"""

from .client import Client
from .config import Config, Interface
from .errors import ConfigError, EmitTimeout, IPCError, NotConnectedError, ProtocolError, RemoteError, RequestTimeout
from .eventqueue import Event, EventIterator
from .instance import IPC
from .scripts import connect, serve
from .server import Server, Socket
from .wire import EventDecoder, Parser

__all__ = [
    'IPC',
    'Client',
    'Config',
    'ConfigError',
    'EmitTimeout',
    'Event',
    'EventDecoder',
    'EventIterator',
    'IPCError',
    'Interface',
    'NotConnectedError',
    'Parser',
    'ProtocolError',
    'RemoteError',
    'RequestTimeout',
    'Server',
    'Socket',
    'connect',
    'ipc',
    'serve',
]
__version__ = '0.1.0'

ipc = IPC()
