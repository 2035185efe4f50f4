"""The client of a UDP server: datagrams to one address, and from it. `nodeipc.connect` makes it; node-ipc has no such thing.

Its socket is connected, so the system lets nothing in from others, and says if nobody is there. Nobody says whether a
datagram arrived.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from typing import Any, Callable, Iterator, List, Optional, Tuple

from . import rpc
from .address import Listener, SocketAddress, UDPAddress, resolve
from .channel import Channel
from .client import Client
from .datagram import Backlog
from .deadline import Deadline
from .errors import ConfigError, IPCError, ProtocolError
from .profiles import ASSURED_TRANSPORT
from .role import Carrier, count
from .tally import Tally
from .wire import BACKPRESSURE, NO_DATA, Event, Payload


class DatagramClient(Client):
    """A client that sends its events to one UDP address, and hears from there."""

    _address: UDPAddress

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        config = self._config
        if self._parser.is_assured:
            why = "parser='assured' needs TLS on the network, which UDP has not; use tls://, or another parser"
            raise ConfigError(f'{self}: {why} [{ASSURED_TRANSPORT}]')
        if config.sync:
            raise ConfigError(f'{self}: config.sync waits for answers, which UDP may lose; use request, or TCP')
        self._backlog = Backlog(self._strand)
        sock, self._where = _connected_socket(self._address)
        self._channel = Channel(
            Listener(sock, self._address, None),
            str(self),
            self._reactor,
            config.max_pending_bytes,
            config.stall_timeout / 1000,
            self._received,
            self._failed,
            self._closed,
            connected=True,
        )
        self._dropped_datagrams = Tally(self._strand_post, self._reactor, self._report_dropped)

    @property
    def connected(self) -> bool:
        return self._usable

    def emit(self, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        self._emit_frame(self._encode(type, data), timeout)

    @contextlib.contextmanager
    def batch(self) -> Iterator[Client]:
        yield self

    def wait_connected(self, timeout: Optional[float] = None) -> bool:
        self._check_usable()
        return True

    def flush(self, timeout: Optional[float] = None) -> None:
        self._channel.flush(Deadline(timeout))

    # What every client does in its own way

    def _start(self) -> None:
        self._reactor.call(self._open)
        self._in_callback = None

    def _carrier(self) -> Optional[Carrier]:
        return None if self._destroyed else self._channel

    def _abandon(self) -> None:
        super()._abandon()
        self._closing = True

    def _check_usable(self) -> None:
        self._check_callback()
        if not self._usable:
            raise self._gone()

    def _emit_frame(self, frame: bytes, timeout: Optional[float]) -> None:
        self._check_usable()
        self._channel.send(frame, self._where, Deadline(self._emit_timeout if timeout is None else timeout))

    def _send_request(self, frame: bytes, timeout: Optional[float], stand: Callable[[], Any]) -> None:
        stand()
        self._emit_frame(frame, timeout)

    def _reply(self, data: Any) -> None:
        self.emit(rpc.EVENT, data)

    def _read_on(self) -> None:
        """Datagrams are always read."""

    # Reactor thread

    def _open(self) -> None:
        with self._lock:
            self._past['connections'] += 1
        self._strand.post(self._announce, self._channel, True)
        self._channel.start()

    def _goodbye(self) -> None:
        self._channel.begin_close()

    def _abort(self, error: Exception) -> None:
        self._channel.abort(error)

    def _received(self, datagram: bytes, sender: SocketAddress) -> None:
        if self._closing:
            return
        try:
            events: List[Event] = self._parser.decode_datagram(datagram)
        except ProtocolError as error:
            self._dropped_datagrams.add(ProtocolError(error.code, f'{self}: {error.args[0]}; the datagram is dropped'))
            return
        except MemoryError:
            self._dropped_datagrams.add(MemoryError(f'{self}: there is no memory for a datagram; it is dropped'))
            return
        except Exception as error:  # a defect: this datagram's fault alone
            self._dropped_datagrams.add(error)
            return
        if self._waiters_here.is_behind(self) or not self._backlog.has_room(len(datagram)):
            why = 'a datagram is dropped, because handlers or iterators have not kept up with those before it'
            self._dropped_datagrams.add(ProtocolError(BACKPRESSURE, f'{self}: {why}'))
            return
        self._channel.messages_in += len(events)
        events = self._waiters_here.feed(self, events, len(datagram), None)
        self._backlog.take(self._strand_deliver, events, len(datagram))

    def _failed(self, error: Exception) -> None:
        self._last_error = error
        if isinstance(error, ConnectionRefusedError):
            self._waiters_here.lost(self, str(error.strerror))
        self._dropped_datagrams.add(error)

    def _closed(self) -> None:
        self._dropped_datagrams.close()
        with self._lock:
            count(self._past, self._channel)
        self._strand.post(self._announce, self._channel, False)
        self._destroy()

    # Reactor thread and strand

    def _strand_post(self, function: Callable[..., Any], *arguments: Any) -> bool:
        self._strand.post(function, *arguments)
        return True

    def _strand_deliver(self, type: str, data: Any) -> None:
        self._strand.deliver(type, data)

    def _report_dropped(self, count: int, error: Exception) -> None:
        if count > 1:
            error = IPCError(f'{self}: {count} more went wrong; the last: {error}')
        self._report(error, level=logging.WARNING)


def _connected_socket(address: UDPAddress) -> Tuple[socket.socket, SocketAddress]:
    try:
        family, where = resolve(address)[0]
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect(where)
        except BaseException:
            sock.close()
            raise
    except (OSError, UnicodeError) as error:  # UnicodeError: what cannot be the name of a host
        number = getattr(error, 'errno', None) or errno.EADDRNOTAVAIL
        why = getattr(error, 'strerror', None) or error
        raise OSError(number, f'cannot send to {address}: {why}; choose another host or port') from error
    return sock, where
