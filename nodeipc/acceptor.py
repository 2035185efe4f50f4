"""A listening socket on a reactor: it accepts, in turns, and pauses when the system has no descriptors left.

Stream servers make one each time they start. It knows nothing of what becomes of the accepted sockets.
"""

from __future__ import annotations

import errno
import socket
from typing import Any, Callable, Tuple

from .address import Address, Listener, SocketAddress
from .reactor import READ, Owned, Reactor

# Accepted in one turn of the reactor, so that a flood of connections leaves time for those that are there.
_TURN = 64

# Without descriptors, say, the next attempt would fail like the last, and the socket would stay ready: a busy loop.
_PAUSE_SECONDS = 0.25

# Errors of the connection that is accepted and not of the listening socket, see accept(2): the next one may be fine.
_TRANSIENT = tuple(
    getattr(errno, name)
    for name in (
        'ECONNABORTED', 'EPERM', 'EPROTO', 'ENETDOWN', 'ENOPROTOOPT', 'EHOSTDOWN', 'ENONET', 'EHOSTUNREACH', 'EOPNOTSUPP',
        'ENETUNREACH',
    )
    if hasattr(errno, name)
)


class Acceptor(Owned):
    """Accepts on `listener` and hands each socket, non-blocking, and its address to `accepted`.

    `failed` is told when accepting fails, for want of descriptors for one; it is tried again after a pause.
    """

    __slots__ = ('_accepted', '_failed', '_reactor', '_stopped', '_watched', 'listener')

    def __init__(
        self,
        listener: Listener,
        reactor: Reactor,
        accepted: Callable[[socket.socket, Any], Any],
        failed: Callable[[OSError], Any],
    ) -> None:
        reactor.check(listener.socket)
        self.listener = listener
        self._reactor = reactor
        self._accepted = accepted
        self._failed = failed
        self._watched = 0
        self._stopped = False
        reactor.owned.add(self)

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.listener.address

    def withdraw(self) -> None:
        """Remove the socket file; any thread but the reactor's."""
        if self.listener.file is not None:
            self.listener.file.remove()

    def close(self) -> None:
        """Stop listening; any thread, as long as it is not started."""
        self._reactor.owned.discard(self)
        self.listener.close()

    # Reactor thread

    def start(self) -> None:
        """Begin, or go on."""
        if not self._stopped:
            self._watch(READ)

    def stop(self) -> None:
        """Accept no more and close the socket; its file is for another thread to remove."""
        self._stopped = True
        self._watch(0)
        self._reactor.owned.discard(self)
        self.listener.socket.close()

    def abandon(self) -> None:
        self.listener.socket.close()

    def _watch(self, wanted: int) -> None:
        self._reactor.watch(self.listener.socket, self._watched, wanted, self._ready)
        self._watched = wanted

    def _accept(self) -> Tuple[socket.socket, SocketAddress]:
        sock, address = self.listener.socket.accept()
        try:
            self._reactor.check(sock)
        except BaseException:
            sock.close()
            raise
        return sock, address

    def _ready(self, mask: int) -> None:
        for _ in range(_TURN):
            try:
                sock, address = self._accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _TRANSIENT:
                    continue
                self._watch(0)
                self._reactor.call_later(_PAUSE_SECONDS, self.start)
                self._failed(error)
                return
            sock.setblocking(False)
            self._accepted(sock, address)
