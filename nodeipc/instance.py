"""The facade: an instance with node-ipc's names, its server, its clients, and their common end.

An instance runs on an `Engine` that is made with its first endpoint and ends with `close`; afterwards the instance can be
used again. At interpreter exit every open instance is closed, and in a child made by fork every instance starts afresh.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import weakref
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Type, Union

from .address import (
    UDP_TYPES,
    Address,
    TCPAddress,
    TLSAddress,
    UDPAddress,
    UnixAddress,
    given_address,
    udp_address,
)
from .client import Client
from .config import Config
from .deadline import NEVER, Deadline, at_exit, is_to_end
from .engine import Endpoint, Engine
from .errors import NotConnectedError, advice, retold
from .events import Handler, call_back
from .log import logger, render
from .reentry import calls_out
from .server import Server
from .strands import end_with_the_handler
from .streamclient import StreamClient

Path = Union[str, 'os.PathLike[str]']


class Clients:
    """The clients of an instance by id, as attributes or items: ``ipc.of.world``, ``ipc.of['my-service']``."""

    def __init__(self, clients: Dict[str, Client]) -> None:
        self.__clients = clients

    def __getattr__(self, id: str) -> Client:
        try:
            return self.__clients[id]
        except KeyError:
            raise AttributeError(self.__missing(id)) from None

    def __getitem__(self, id: str) -> Client:
        try:
            return self.__clients[id]
        except KeyError:
            raise KeyError(self.__missing(id)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self.__clients))

    def __contains__(self, id: object) -> bool:
        return id in self.__clients

    def __len__(self) -> int:
        return len(self.__clients)

    def __dir__(self) -> List[str]:
        return list(self.__clients)

    def __repr__(self) -> str:
        return f'<nodeipc clients {list(self.__clients)}>'

    def __missing(self, id: str) -> str:
        known = ', '.join(map(repr, self.__clients)) or 'there is none yet'
        return f'no client {id!r}; use connect_to first (clients: {known})'


class IPC:
    """An independent instance, with a server, clients and threads of its own.

    `config` is a `Config`, or the instance makes one; `settings` are `Config` fields, set on a copy of it. Raises
    `ConfigError` for a wrong value and AttributeError for an unknown field.

    >>> with IPC(id='example', retry=1500) as ipc:
    ...     ipc.config.retry
    1500
    """

    def __init__(self, config: Optional[Config] = None, **settings: Any) -> None:
        if config is not None and not isinstance(config, Config):
            raise TypeError(f'config must be a Config, not {config!r}; settings can be given by name: IPC(id=...)')
        self.config = Config() if config is None else config.copy() if settings else config
        """The settings; read when a server or client is made, so set them first."""
        self.config.update(settings)
        self._reset()
        _instances.add(self)
        self.server: Union[Server, Any] = None  # or it would have to be checked for None before each use
        """The server that `serve` or `serve_net` made last, or None."""

    def _reset(self) -> None:
        # Guards the two below and Engine.closing. Re-entrant, for a signal handler may close the instance while the main
        # program has it. Nothing else is locked while it is held.
        self._lock = threading.RLock()
        self._engine: Optional[Engine] = None
        self._clients: Dict[str, Client] = {}
        self.of = Clients(self._clients)

    def __repr__(self) -> str:
        state = 'open' if self._engine else 'closed'
        return f'<nodeipc.IPC {self.config.id!r} {state}, server: {self.server}, clients: {list(self._clients)}>'

    def __enter__(self) -> IPC:
        return self

    @calls_out
    def __exit__(self, exception: Optional[Type[BaseException]] = None, *exc_info: Any) -> None:
        if is_to_end(exception):
            self._end(NEVER, at_exit())
        else:
            self.close()

    def serve(self, path: Any = None, callback: Optional[Handler] = None, *, sock: Any = None) -> Server:
        """Make the Unix-socket server, set `server` to it and return it; ``server.start()`` makes it listen.

        `path` defaults to ``config.socket_root + config.appspace + config.id``; one that begins with a NUL is a name in
        Linux's abstract namespace. `callback` is called, with the server if it takes an argument, when the address is
        bound and before anybody is accepted. `sock` is a stream socket that is bound already. Either positional
        argument may be left out. Raises OSError for a path the system cannot have.

        >>> server = IPC(id='serve-example').serve()
        >>> server.address.endswith('app.serve-example')
        True
        """
        (path, callback) = _in_order('serve(path, callback)', (path, callback), ((str, os.PathLike), _CALLBACK))
        address = self._path(path, self.config.id) if sock is None else _given(sock, path)
        return self._serve(address, callback, sock)

    def serve_net(
        self,
        host: Any = None,
        port: Any = None,
        udp_type: Any = None,
        callback: Optional[Handler] = None,
        *,
        sock: Any = None,
    ) -> Server:
        """Make the TCP, TLS or UDP server, set `server` to it and return it; ``server.start()`` makes it listen.

        `host` and `port` default to ``config.network_host`` and ``config.network_port``; port 0 lets the system choose,
        and ``server.address`` tells. With ``config.tls`` TCP is encrypted, and `start` raises `ConfigError` without a key
        and a certificate. `udp_type` ``'udp4'`` or ``'udp6'`` makes it UDP, which has no clients: every end is such a
        server, on a port of its own. A loopback address stands for that of either version. `callback` and `sock`
        are those of `serve`; a UDP server can emit in its callback already. Arguments may be left out as long as they
        stay in order: ``serve_net(8001, ready)``, ``serve_net('udp4', ready)``.

        >>> with IPC(id='udp-example') as ipc, ipc.serve_net(0, 'udp4') as server:
        ...     server.emit(('127.0.0.1', 8000), 'message', 'to whoever is there')
        """
        host, port, udp_type, callback = _in_order(
            "serve_net(host, port, 'udp4' or 'udp6', callback)",
            (host, port, udp_type, callback),
            (_HOST, int, _UDP_TYPE, _CALLBACK),
        )
        if sock is not None:
            return self._serve(_given(sock, host, port, udp_type), callback, sock)
        address = self._net(host, port)
        if udp_type is None:
            return self._serve(address, callback, sock)
        return self._serve(udp_address(*address, UDP_TYPES[udp_type.lower()]), callback, sock)

    def connect_to(self, id: str, path: Any = None, callback: Optional[Handler] = None) -> Client:
        """Make a client of a Unix-socket server, put it in `of`, call `callback`, start connecting, return the client.

        `path` defaults to ``config.socket_root + config.appspace + id``. `callback` is called, with the client if it
        takes an argument, before anything can happen, so that handlers registered in it miss nothing. If there is a client
        of this id and path already, connected or not, the callback is called and that client returned; one that is
        destroyed is replaced. Raises OSError for a path the system cannot have, ValueError for an id that is in use for
        another path.
        """
        _check_id(id)
        path, callback = _in_order('connect_to(id, path, callback)', (path, callback), ((str, os.PathLike), _CALLBACK))
        return self._connect(id, self._path(path, id), callback)

    def connect_to_net(
        self, id: str, host: Any = None, port: Any = None, callback: Optional[Handler] = None
    ) -> Client:
        """As `connect_to`, over TCP, or TLS if ``config.tls`` is set.

        `host` and `port` default to ``config.network_host`` and ``config.network_port``. Raises `ConfigError` for TLS with
        files that cannot be read or do not fit, and for what ``parser='assured'`` does not allow. Arguments may be left out
        as long as they stay in order: ``connect_to_net('world', 8001, ready)``.
        """
        _check_id(id)
        usage = 'connect_to_net(id, host, port, callback)'
        host, port, callback = _in_order(usage, (host, port, callback), (str, int, _CALLBACK))
        return self._connect(id, self._net(host, port), callback)

    @calls_out
    def disconnect(self, id: str) -> None:
        """Say goodbye to a server: what was emitted is delivered, then the client is closed and leaves `of`.

        An id that is not there is ignored. See `Client.disconnect`.
        """
        client = self._clients.get(id)
        if client is not None:
            client.disconnect()

    @calls_out
    def log(self, *values: Any) -> None:
        """Print `values`, joined by spaces, with ``config.logger``, unless ``config.silent``."""
        config = self.config
        if not config.silent:
            config.logger(render(values, config.log_depth, config.log_in_color))

    @calls_out  # waits without a lock
    def wait(self, timeout: Optional[float] = None) -> bool:
        """Block until the instance is closed (True) or `timeout` seconds are over (False).

        Ctrl-C closes the instance and returns True. An instance without server or clients is closed. Raises
        RuntimeError in a handler, where it would wait for its own end.
        """
        engine = self._engine
        if engine is None:
            return True
        if engine.workers.inside:
            raise RuntimeError('wait() in a handler would wait for the handler; call it in the main program')
        try:
            return engine.closed.wait(timeout)
        except KeyboardInterrupt:
            self.close()
            return True

    def close(self, timeout: Optional[float] = None) -> None:
        """Stop the server and every client, then end the threads. Idempotent; the instance can be used again after.

        What was emitted is delivered and handlers of what has arrived finish, within `timeout` seconds if given, as
        `Server.stop` and `Client.disconnect` say. Called from a handler of this instance, or from a signal handler that
        has interrupted a call of it, it returns at once, and a thread of its own does the rest.
        """
        self._end(Deadline(timeout), NEVER)

    @calls_out
    def _end(self, deadline: Deadline, handlers: Deadline) -> None:
        engine = self._engine
        if engine is None:
            return
        if engine.must_not_wait:
            closing = (engine, deadline, handlers)
            try:
                threading.Thread(target=self._close, args=closing, name='nodeipc-close', daemon=True).start()
            except RuntimeError as error:
                if not engine.closing:  # else the interpreter is ending, and closing it already
                    logger.warning('nodeipc: no thread can be started to close %r (%s); close it again', self, error)
                    engine.begin_goodbyes()
        else:
            self._close(engine, deadline, handlers)

    def _close(self, engine: Engine, deadline: Deadline, handlers: Deadline = NEVER) -> None:
        with self._lock:
            engine.closing = True  # from here on nothing is attached to it
        engine.close(deadline, handlers)
        with self._lock:
            if self._engine is engine:  # until now, so that whoever waits or closes meanwhile waits for the same end
                self._engine = None
                self._clients.clear()  # of those that destroyed themselves
            _open_instances.pop(engine, None)
        engine.closed.set()

    def _serve(self, address: Address, callback: Optional[Handler], sock: Any) -> Server:
        if isinstance(address, UnixAddress):
            address.check()
        elif isinstance(address, TCPAddress) and self.config.tls is not None:
            address = TLSAddress(*address)  # of a socket that was given
        server = _server_class(address)(address, self.config, self._attach, self._detach, self.log, callback, sock)
        self.server = server
        return server

    def _attach(self, endpoint: Endpoint) -> Engine:
        """Have `endpoint` closed with the instance; return what it runs on."""
        with self._lock:
            engine = self._running(str(endpoint))
            engine.endpoints[endpoint] = None
            return engine

    def _detach(self, endpoint: Optional[Endpoint] = None) -> None:
        """Undo `_attach` after a failure, if it came to that; an engine that nobody uses is closed."""
        with self._lock:
            engine = self._engine
            if engine is None:
                return
            if endpoint is not None:
                engine.endpoints.pop(endpoint, None)
            if engine.endpoints or engine.must_not_wait:
                return
            engine.closing = True  # before another thread can attach to it
        self._close(engine, NEVER, Deadline(0))

    def _running(self, what: str) -> Engine:
        """Return what runs `what`. Raises OSError or RuntimeError if there are no descriptors or threads for it."""
        engine = self._engine
        if engine is None:
            try:
                made = Engine(self.config.workers)
            except OSError as error:
                raise retold(error, f'{what}: {error.strerror}; {advice(error, "try again")}') from error
            except RuntimeError as error:
                # CPython 3.12 starts no thread in handlers of atexit.
                way = 'open it before the script ends' if 'shutdown' in str(error) else 'end some, or raise the limit'
                raise RuntimeError(f'{what}: no thread can be started ({error}); {way}') from error
            engine = self._engine
            if engine is not None:  # since: by a signal handler that has interrupted us
                made.workers.close(Deadline(0))
                return engine
            engine = self._engine = made
            _open_instances[engine] = self
            _close_in_child()
        elif engine.closing:
            raise NotConnectedError(f'{self.config.id!r} is being closed; connect or serve again when close() has returned')
        return engine

    def _connect_udp(self, id: str, host: Optional[str], port: Optional[int], callback: Handler) -> Client:
        where = self._net(host, port)
        return self._connect(id, udp_address(where.host, where.port, 6 if ':' in where.host else 4), callback)

    def _connect(self, id: str, address: Address, callback: Optional[Handler]) -> Client:
        old: Optional[Client] = None
        try:
            client, old = self._client(id, address)
            if callback is not None:
                call_back(callback, client)
            if old is None:
                client._start()
            return client
        except BaseException:
            if old is None:  # what was made, however far it has come: this may be Ctrl-C
                made = self._clients.get(id)
                if made is not None and made._in_callback == threading.get_ident():
                    made.disconnect()
                    self._detach(made)
                else:
                    self._detach()
            raise

    def _client(self, id: str, address: Address) -> Tuple[Client, Optional[Client]]:
        """Return a client, and it again if it is one that was there before."""
        kind = _client_class(address, self.config.sync)  # not under the lock, for it may import
        with self._lock:
            old = self._clients.get(id)
            if old is None or not old._usable:
                client = kind(id, address, self.config, self._running(f'client {id!r} ({address})'), self.log, self._removed)
                client._in_callback = threading.get_ident()
                client._engine.endpoints[client] = None
                self._clients[id] = client
                return client, None
            if str(old._address) == str(address):
                return old, old
            raise ValueError(f'{old} is in use; disconnect it before you give its id to {address}')

    def _removed(self, client: Client) -> None:
        with self._lock:
            if self._clients.get(client.id) is client:
                del self._clients[client.id]

    def _path(self, path: Optional[Path], id: str) -> UnixAddress:
        config = self.config
        return UnixAddress(os.fspath(path) if path else f'{config.socket_root}{config.appspace}{id}')

    def _net(self, host: Optional[str], port: Optional[int]) -> TCPAddress:
        config = self.config
        port = config.network_port if port is None else port
        if not 0 <= port <= 65535:
            raise ValueError(f'a port is a number from 0 to 65535, not {port!r}')
        return (TCPAddress if config.tls is None else TLSAddress)(host or config.network_host, port)


# Programs that make none of these need not wait for their import. It is here, and not on a reactor thread.


def _server_class(address: Address) -> Callable[..., Server]:
    if isinstance(address, UDPAddress):
        from .datagram import DatagramServer

        return DatagramServer
    from .stream import StreamServer

    return StreamServer


def _client_class(address: Address, sync: bool) -> Callable[..., Client]:
    if isinstance(address, UDPAddress):
        from .datagramclient import DatagramClient

        return DatagramClient
    if sync:
        from .sync import SyncClient

        return SyncClient
    return StreamClient


def _given(sock: Any, *others: Any) -> Address:
    if any(other is not None for other in others):
        raise TypeError('sock= is bound already; leave out the address')
    if not isinstance(sock, socket.socket):
        raise TypeError(f'sock= must be a socket.socket (socket.socket(fileno=...) makes one), not {sock!r}')
    return given_address(sock)


def _is_udp_type(value: Any) -> bool:
    return isinstance(value, str) and value.lower() in UDP_TYPES


def _is_host(value: Any) -> bool:
    return isinstance(value, str) and not _is_udp_type(value)


# Kinds of arguments, besides types.
_CALLBACK, _HOST, _UDP_TYPE = callable, _is_host, _is_udp_type


def _in_order(usage: str, given: Sequence[Any], kinds: Sequence[Any]) -> Tuple[Any, ...]:
    """Put positional arguments, of which some were left out, where their types belong."""
    places: List[Any] = [None] * len(kinds)
    place = 0
    for value in given:
        if value is None:
            continue
        while place < len(kinds) and not _is_a(value, kinds[place]):
            place += 1
        if place == len(kinds):
            raise TypeError(f'{usage}: {value!r} has the wrong type or stands in the wrong place')
        places[place] = value
        place += 1
    return tuple(places)


def _is_a(value: Any, kind: Any) -> bool:
    if isinstance(kind, (type, tuple)):
        return isinstance(value, kind) and not isinstance(value, bool)
    return bool(kind(value))


def _check_id(id: str) -> None:
    if not isinstance(id, str):
        raise TypeError(f'a client id must be a str, not {id!r}')
    if not id:
        raise ValueError('a client needs the id of the service it connects to')


# Instances that run, by their engines; changed by single operations that the interpreter makes atomic.
_open_instances: Dict[Engine, IPC] = {}

_instances: weakref.WeakSet[IPC] = weakref.WeakSet()


def _close_all() -> None:
    handlers = at_exit()
    while _open_instances:  # a handler may have opened another
        for engine, instance in list(_open_instances.items()):
            instance._close(engine, NEVER, handlers)


def _after_fork() -> None:
    for instance in list(_instances):  # all: another thread may have been about to open one
        instance._reset()
    for engine in list(_open_instances):
        engine.abandon()
    _open_instances.clear()
    end_with_the_handler()


# Of the process whose end was seen to, if it is a child of multiprocessing.
_child: Optional[int] = None


def _close_in_child() -> None:
    """Have a child of multiprocessing deliver what it has emitted: if it was forked, it ends without atexit."""
    global _child
    process = sys.modules.get('multiprocessing.process')
    if process is not None and process.parent_process() is not None and _child != os.getpid():
        from multiprocessing.util import Finalize

        _child = os.getpid()
        Finalize(None, _close_all, exitpriority=0)


atexit.register(_close_all)
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)
