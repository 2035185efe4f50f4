"""The server of UDP sockets. In UDP every end is one: bound to a port, it hears from peers, answers them, and emits to
whatever address it is given.

A peer is whoever a datagram came from; the server remembers the last of them, and no more than ``config.max_connections``,
because a sender's address can be forged. Each datagram is decoded on its own and whole, or dropped and reported.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any, Callable, List, Mapping, Optional, Tuple

from .address import Listener, SocketAddress, UDPAddress, adopt, listen, readable, udp_address
from .channel import Channel
from .deadline import Deadline
from .engine import Engine
from .errors import ConfigError, IPCError, NotConnectedError, ProtocolError
from .profiles import ASSURED_TRANSPORT
from .role import Carrier
from .server import Server, Socket
from .strands import Strand
from .tally import Tally
from .wire import BACKPRESSURE, NO_DATA, Event, Payload

# What may wait for the handlers of one peer; more is dropped, because in UDP nothing can make it wait. A burst of small
# messages, or some of the largest.
_MAX_BACKLOG_BYTES = 1 << 20

_FORGOTTEN = 'it is not among the config.max_connections that were heard last, or was closed'

# The objects that stand for a datagram which waits, however small it is.
_OVERHEAD_BYTES = 512


class Backlog:
    """What waits for the handlers of one peer, on a strand."""

    __slots__ = ('_handled', '_strand', '_taken')

    def __init__(self, strand: Strand) -> None:
        self._strand = strand
        self._taken = 0  # bytes that were given to the strand; the reactor thread's own
        self._handled = 0  # the strand's own

    def has_room(self, size: int) -> bool:
        """Whether a datagram of `size` bytes may wait, too."""
        return self._taken - self._handled + size + _OVERHEAD_BYTES <= _MAX_BACKLOG_BYTES

    def take(self, handle: Callable[[str, Any], Any], events: List[Event], size: int) -> None:
        """Have `handle` called with each of the events that came in a datagram of `size` bytes."""
        self._taken += size + _OVERHEAD_BYTES
        for type, data in events[:-1]:
            self._strand.post(handle, type, data)
        self._strand.post(self._handle_last, handle, events[-1:], size)

    def _handle_last(self, handle: Callable[[str, Any], Any], events: List[Event], size: int) -> None:
        try:
            for type, data in events:  # one, or none for handlers
                handle(type, data)
        finally:
            self._handled += size + _OVERHEAD_BYTES


class DatagramPeer(Socket):
    """Whoever sent a datagram to a UDP server."""

    __slots__ = ('_backlog', '_where')

    _server: DatagramServer

    def __init__(self, server: DatagramServer, engine: Engine, where: SocketAddress) -> None:
        super().__init__(server, engine, (where[0], where[1]))
        self._where = where
        self._backlog = Backlog(self._strand)

    def __str__(self) -> str:
        return self._server._name(self._where)

    @property
    def connected(self) -> bool:
        return self._server._remembers(self)

    @property
    def pending_bytes(self) -> int:
        channel = self._server._door
        return 0 if channel is None else channel.pending_for(self._where)

    def emit(self, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        self._server._send(self._server._encode(type, data), self._where, timeout)

    def _send_request(self, frame: bytes, timeout: Optional[float], stand: Callable[[], Any]) -> None:
        stand()
        self._server._send(frame, self._where, timeout)

    def _read_on(self) -> None:
        """Datagrams are always read."""

    def close(self) -> None:
        self._hang_up()
        self._server._forget(self)

    # Reactor thread

    def _has_room(self, size: int) -> bool:
        """Whether no more waits for its handlers, and iterators, than may."""
        if self._server._waiters_here.is_behind(self) or (self._waiting is not None and self._waiting.is_behind(self)):
            return False
        return self._backlog.has_room(size)

    def _take(self, events: List[Event], size: int) -> None:
        """Have the events of a datagram handled."""
        self._backlog.take(self._handle, events, size)

    # On the strand

    def _handle(self, type: str, data: Any) -> None:
        if not self._closed:
            self._strand.deliver(type, data)


class DatagramServer(Server):
    """A server of UDP sockets."""

    _door: Optional[Channel]
    _where: UDPAddress

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._sockets: OrderedDict[SocketAddress, DatagramPeer] = OrderedDict()  # the least recently heard first
        self._dropped: Tally  # made for each run

    def emit(self, socket: Any, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        frame = self._encode(type, data)
        if isinstance(socket, DatagramPeer):
            self._send(frame, socket._where, timeout)
        else:
            deadline = Deadline(self._emit_timeout if timeout is None else timeout)
            self._running().send_to(frame, self._target(socket), deadline)

    def broadcast(self, type: Payload, data: Any = NO_DATA) -> None:
        frame = self._encode(type, data)
        with self._lock:
            peers = list(self._sockets.values())
        channel = self._door
        if channel is None or not peers:
            return
        channel.check(frame)
        channel.wait_for_room(Deadline(self._emit_timeout))
        for peer in peers:
            try:
                channel.queue(frame, peer._where)
            except (OSError, ProtocolError) as error:
                if isinstance(error, NotConnectedError):
                    raise
                peer._strand.post(self._report_failure, error, peer)

    def _send(self, frame: bytes, where: SocketAddress, timeout: Optional[float]) -> None:
        self._running().send(frame, where, Deadline(self._emit_timeout if timeout is None else timeout))

    def _running(self) -> Channel:
        channel = self._door
        if channel is None:
            raise NotConnectedError(f'{self} is not bound, so it cannot emit; start() it first')
        return channel

    def _target(self, target: Any) -> UDPAddress:
        if isinstance(target, Mapping):
            host, port = target.get('address'), target.get('port')
        elif isinstance(target, (tuple, list)) and len(target) == 2:
            host, port = target
        else:
            host = port = None
        if not (isinstance(host, str) and host and isinstance(port, int) and port is not True and 0 < port < 65536):
            raise TypeError(
                f"{self}: emit takes a peer, (host, port) or {{'address': host, 'port': port}} first, a port being an int "
                f'from 1 to 65535, not {target!r}'
            )
        return udp_address(host, port, self._where.version)

    def _remembers(self, peer: DatagramPeer) -> bool:
        return self._sockets.get(peer._where) is peer

    def _carriers(self) -> List[Carrier]:
        return [] if self._door is None else [self._door]

    def _bind(self) -> Listener:
        if self._parser.is_assured:
            why = "parser='assured' needs TLS on the network, which UDP has not; use TCP, or another parser"
            raise ConfigError(f'{self}: {why} [{ASSURED_TRANSPORT}]')
        if self._config.tls is not None:
            raise ConfigError(f'{self}: UDP cannot be encrypted; set config.tls = None for it, or use TCP')
        return listen(self._asked, self._config) if self._given is None else adopt(self._given)

    def _open(self, bound: Listener, engine: Engine) -> Channel:
        config = self._config
        self._dropped = Tally(self._post, engine.reactor, self._report_dropped)
        return Channel(
            bound,
            f'server {config.id!r} ({bound.address})',
            engine.reactor,
            config.max_pending_bytes,
            config.stall_timeout / 1000,
            self._received,
            self._failed,
            self._channel_closed,
        )

    def _forget(self, peer: DatagramPeer) -> None:
        engine = self._engine
        if engine is not None:
            engine.reactor.call(self._forget_now, peer)

    # Reactor thread

    def _received(self, datagram: bytes, sender: SocketAddress) -> None:
        peer = self._sockets.get(sender)
        try:
            events = self._parser.decode_datagram(datagram)
        except ProtocolError as error:
            self._drop(ProtocolError(error.code, f'{self._name(sender)}: {error.args[0]}; the datagram is dropped'), peer)
            return
        except MemoryError:
            self._drop(MemoryError(f'{self._name(sender)}: there is no memory for a datagram; it is dropped'), peer)
            return
        except Exception as error:  # a defect: this datagram's fault alone
            self._drop(error, peer)
            return
        if not events:
            return  # an empty one
        if peer is None:
            peer = self._admit(sender)
        else:
            with self._lock:
                self._sockets.move_to_end(sender)
        if peer is None or not peer._has_room(len(datagram)):
            why = (
                f'{self._name(sender)}: a datagram is dropped, because handlers have not kept up with those before it; send '
                'less, raise config.workers, or use TCP, which makes senders wait'
            )
            self._drop(ProtocolError(BACKPRESSURE, why), peer)
            return
        assert self._door is not None
        self._door.messages_in += len(events)  # first, for a handler may look
        peer._take(peer._heard(events, len(datagram)), len(datagram))

    def _admit(self, sender: SocketAddress) -> Optional[DatagramPeer]:
        """Remember a new peer in place of the least recently heard, if that many are not being handled already."""
        limit = self._config.max_connections
        if len(self._unfinished) + self._waiters_here.gone >= 2 * limit:
            return None
        if len(self._sockets) >= limit:
            self._left(next(iter(self._sockets)), _FORGOTTEN)
        assert self._engine is not None
        peer = DatagramPeer(self, self._engine, sender)
        self._joined(sender, peer)
        return peer

    def _forget_now(self, peer: DatagramPeer) -> None:
        if self._remembers(peer):
            self._left(peer._where, _FORGOTTEN)

    def _name(self, sender: SocketAddress) -> str:
        return f'{readable(sender)}, a peer of {self}'

    def _drop(self, error: Exception, peer: Optional[DatagramPeer]) -> None:
        self._dropped.add((error, peer))

    def _failed(self, error: Exception) -> None:
        self._post(self._report_failure, error, None)

    def _shut(self) -> None:
        if self._door is None:
            return
        self._door.stop_reading()
        for where in list(self._sockets):
            self._left(where, 'the server is stopped')

    def _cut(self, error: Optional[Exception]) -> None:
        if error is not None and self._door is not None:
            self._door.abort(error)

    def _channel_closed(self) -> None:
        self._dropped.close()
        for where in list(self._sockets):  # if it was not stopped but broke
            self._left(where, 'the socket is closed')
        with self._lock:
            assert self._door is not None
            self._count_past(self._door)
            self._door = None
        self._stop_if_finished()

    # Reactor thread and strands

    def _stop_if_finished(self) -> None:
        with self._lock:
            door, engine = self._door, self._engine
            answered = self._state == 'stopping' and (self._hurried or not self._unfinished)
        if door is None:
            super()._stop_if_finished()
        elif answered and engine is not None:
            engine.reactor.call(door.begin_close)

    # On strands

    def _report_dropped(self, count: int, last: Tuple[Exception, Optional[DatagramPeer]]) -> None:
        error, peer = last
        if count > 1:
            error, peer = IPCError(f'{self}: {count} more datagrams were dropped; the last: {error}'), None
        self._report(error, peer, level=logging.WARNING)

    def _report_failure(self, error: Exception, peer: Optional[DatagramPeer]) -> None:
        self._report(error, peer, level=logging.WARNING)
