"""One attempt to connect: look the name up, try the addresses in turn, shake hands, give a connected socket or an error.

Clients make one for each attempt. Everything happens on the reactor thread, but for looking up a name, which may take
long and therefore has a thread of its own.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Tuple

from .address import Peer, SocketAddress, StreamAddress, TCPAddress, UnixAddress, peer_of, prepare_tcp
from .config import Config
from .lookup import look_up
from .reactor import WRITE, Owned, Reactor, Timer

if TYPE_CHECKING:  # imported by clients that have TLS
    from .handshake import Begin, Handshake
    from .tlsstream import TLSStream

# A Unix server whose backlog is full refuses at once instead of letting us wait; so we ask again.
_BACKLOG_RETRY_SECONDS = 0.02


class Connector(Owned):
    """An attempt to connect that ends in `connected` or `failed`, on the reactor thread, unless cancelled."""

    __slots__ = (
        '_address', '_candidates', '_config', '_connected', '_done', '_error', '_failed', '_handshake', '_reactor',
        '_shake_hands', '_sock', '_timer', '_watched',
    )

    def __init__(
        self,
        address: StreamAddress,
        config: Config,
        reactor: Reactor,
        shake_hands: Optional[Begin],
        connected: Callable[[socket.socket, Optional[TLSStream]], Any],
        failed: Callable[[OSError], Any],
    ) -> None:
        self._address = address
        self._config = config
        self._reactor = reactor
        self._shake_hands = shake_hands
        self._handshake: Optional[Handshake] = None
        self._connected = connected
        self._failed = failed
        self._candidates: List[Tuple[int, SocketAddress]] = []
        self._sock: Optional[socket.socket] = None
        self._watched = 0
        self._timer: Optional[Timer] = None
        self._error: Optional[OSError] = None
        self._done = False

    def start(self) -> None:
        """Begin. Reactor thread."""
        self._reactor.owned.add(self)
        self._timer = self._reactor.call_later(self._config.connect_timeout / 1000, self._timed_out)
        address = self._address
        if isinstance(address, UnixAddress):
            self._found([(socket.AF_UNIX, address.path)])
        else:
            look_up(address, self._config.interface.family, self._found, self._fail, self._reactor)

    def cancel(self) -> None:
        """Give up, silently. Reactor thread."""
        if not self._done:
            self._finish()
            self._close_socket()

    def abandon(self) -> None:
        if self._sock is not None:
            self._sock.close()

    def _found(self, candidates: List[Tuple[int, SocketAddress]]) -> None:
        if not self._done:
            self._candidates = candidates
            self._try_next()

    def _try_next(self) -> None:
        while self._candidates:
            family, where = self._candidates[0]
            try:
                sock = self._sock = self._open(family)
                code = sock.connect_ex(where)
            except OSError as error:
                self._next_after(error)
                continue
            if code == 0:
                self._succeed()
                return
            if code == errno.EAGAIN and family == getattr(socket, 'AF_UNIX', None):
                self._close_socket()
                self._reactor.call_later(_BACKLOG_RETRY_SECONDS, self._resume)
                return
            if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
                self._reactor.watch(sock, 0, WRITE, self._ready)
                self._watched = WRITE
                return
            self._next_after(OSError(code, os.strerror(code)))
        self._fail(self._error or OSError(errno.EADDRNOTAVAIL, 'the name has no address'))

    def _resume(self) -> None:
        if not self._done:
            self._try_next()

    def _open(self, family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._reactor.check(sock)
            sock.setblocking(False)
            interface = self._config.interface
            if isinstance(self._address, TCPAddress):
                prepare_tcp(sock)
                if interface.local_address or interface.local_port:
                    if interface.local_port:  # or a reconnect would find it in TIME_WAIT
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    anywhere = '::' if family == socket.AF_INET6 else '0.0.0.0'
                    sock.bind((interface.local_address or anywhere, interface.local_port or 0))
        except BaseException:
            sock.close()
            raise
        return sock

    def _ready(self, mask: int) -> None:
        sock = self._sock
        assert sock is not None
        self._reactor.watch(sock, self._watched, 0, self._ready)
        self._watched = 0
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and isinstance(self._address, TCPAddress):
            try:
                # A port that nobody listens on and that the system lent to this very socket: TCP connects it to itself.
                code = errno.ECONNREFUSED if sock.getsockname() == sock.getpeername() else 0
            except OSError as error:  # connected and reset since
                code = error.errno or errno.ECONNRESET
        if code:
            self._next_after(OSError(code, os.strerror(code)))
            self._try_next()
        else:
            self._succeed()

    def _next_after(self, error: OSError) -> None:
        self._error = error
        self._close_socket()
        del self._candidates[0]

    def _timed_out(self) -> None:
        what = 'no answer'
        if self._handshake is not None:
            what = 'does the server speak TLS? The handshake was not done'
        self._fail(OSError(errno.ETIMEDOUT, f'{what} within connect_timeout ({self._config.connect_timeout} ms)'))

    def _succeed(self) -> None:
        assert self._sock is not None
        wanted = self._config.server_uid
        if wanted is not None and isinstance(self._address, UnixAddress):
            peer = peer_of(self._sock)
            if peer is None or peer.uid != wanted:
                self._fail(PermissionError(errno.EPERM, _impostor(peer, wanted)))
                return
        sock, self._sock = self._sock, None
        if self._shake_hands is None:
            self._finish()
            self._connected(sock, None)
        else:
            self._secure(sock, self._shake_hands)

    def _secure(self, sock: socket.socket, begin: Begin) -> None:
        def done(tls: TLSStream) -> None:
            self._handshake = None
            self._finish()
            self._connected(sock, tls)

        self._handshake = begin(sock, self._reactor, done, self._fail)
        self._handshake.start(speak_first=True)

    def _fail(self, error: OSError) -> None:
        if not self._done:
            self._finish()
            self._close_socket()
            self._failed(error)

    def _finish(self) -> None:
        self._done = True
        self._reactor.owned.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _close_socket(self) -> None:
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None
        sock, self._sock = self._sock, None
        if sock is not None:
            self._reactor.watch(sock, self._watched, 0, self._ready)
            self._watched = 0
            sock.close()


def _impostor(peer: Optional[Peer], wanted: int) -> str:
    who = 'somebody whom this system does not tell' if peer is None else f'user {peer.uid} (pid {peer.pid})'
    return f'the server is run by {who}, and not by user {wanted} (config.server_uid); nothing was sent to it'
