"""TLS handshakes as states of the reactor: each goes on when its socket is ready, and a crowd of them delays nobody.

Clients make a `Handshake` when they are connected; servers have a `Lobby` for those who have connected to them.
"""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any, Callable, Dict, Optional, Tuple

from .reactor import READ, WRITE, Owned, Reactor, Timer
from .tls import TLSSettings, check_server_name, client_context, server_name
from .tlsstream import TLSStream

# Handshakes of one server at a time, at least if there are descriptors for them, with clients who have said nothing yet, and
# as many with others. A new one takes the place of the oldest of its kind, so that peers who connect and say nothing,
# however many, keep out nobody.
_MIN_HANDSHAKES = 256


class Handshake(Owned):
    """A handshake on a reactor: `done` gets the stream, or `failed` the error when the socket is closed.

    `make` makes the stream when it is needed: with `speak_first` at once, else when the peer has said something. For the
    reactor thread.
    """

    __slots__ = ('_done', '_failed', '_make', '_over', '_reactor', '_sock', '_stream', '_watched')

    def __init__(
        self,
        sock: socket.socket,
        make: Callable[[], TLSStream],
        reactor: Reactor,
        done: Callable[[TLSStream], Any],
        failed: Callable[[OSError], Any],
    ) -> None:
        self._sock = sock
        self._make = make
        self._stream: Optional[TLSStream] = None
        self._reactor = reactor
        self._done = done
        self._failed = failed
        self._watched = 0
        self._over = False

    def start(self, speak_first: bool) -> None:
        """Begin."""
        self._reactor.owned.add(self)
        if speak_first:
            self._step(0)
        else:
            self._watch(READ)

    def hear(self) -> bool:
        """Go on if the peer has said something, which the reactor has not come to; False if not."""
        try:
            heard = bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            heard = False
        if heard:
            self._step(READ)
        return heard

    def cancel(self) -> None:
        """Give up, silently, and close the socket."""
        self._finish()
        self._sock.close()

    def fail(self, error: OSError) -> None:
        """Give up, and close the socket."""
        failed = self._failed
        self.cancel()
        failed(error)

    def abandon(self) -> None:
        self._sock.close()

    def _step(self, mask: int) -> None:
        if self._over:
            return  # given up in this very turn of the reactor
        try:
            if self._stream is None:
                self._stream = self._make()
            stream = self._stream
            finished = stream.handshake()
        except (OSError, ValueError) as error:
            self.fail(error if isinstance(error, OSError) else OSError(errno.EPROTO, str(error)))
            return
        if finished:
            done = self._done
            self._finish()
            done(stream)
        else:
            self._watch(READ | (WRITE if stream.wants_to_write else 0))

    def _watch(self, wanted: int) -> None:
        self._reactor.watch(self._sock, self._watched, wanted, self._step)
        self._watched = wanted

    def _finish(self) -> None:
        self._over = True
        self._watch(0)
        self._reactor.owned.discard(self)
        self._stream = None
        self._make = self._done = self._failed = _nothing  # these refer to whoever has this


Begin = Callable[[socket.socket, Reactor, Callable[[TLSStream], Any], Callable[[OSError], Any]], Handshake]


def to_server(settings: TLSSettings, host: str, who: str, assured: bool) -> Begin:
    """Return what makes a handshake with a server for each attempt to connect, to be started with `speak_first`.

    `who` is the client, for messages. Raises ConfigError as `client_context` does, and for a name that no server can have.
    """
    context = client_context(settings, who, assured)
    name = server_name(settings, host)
    check_server_name(context, name, who)
    return lambda sock, reactor, done, failed: Handshake(sock, lambda: TLSStream(sock, context, name), reactor, done, failed)


class Lobby:
    """Clients of a server that are shaking hands, each for `timeout` seconds at most, and not too many at a time.

    `admitted` gets each socket with its address and its stream, `refused` the error and the address. For the reactor thread.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        reactor: Reactor,
        timeout: float,
        places: int,
        admitted: Callable[[socket.socket, Any, TLSStream], Any],
        refused: Callable[[OSError, Any], Any],
    ) -> None:
        self._context = context
        self._reactor = reactor
        self._timeout = timeout
        self._places = _affordable(max(places, _MIN_HANDSHAKES))
        self._admitted = admitted
        self._refused = refused
        # Those who have said nothing yet, and the others, who take more memory; the oldest first. With their addresses.
        self._silent: Dict[Handshake, Tuple[Any, Timer]] = {}
        self._speaking: Dict[Handshake, Tuple[Any, Timer]] = {}

    def enter(self, sock: socket.socket, address: Any) -> None:
        """Shake hands with whoever has connected."""

        def listen() -> TLSStream:
            self._speaking[guest] = self._silent.pop(guest)
            if len(self._speaking) > self._places:
                next(iter(self._speaking)).fail(self._displaced())
            return TLSStream(sock, self._context)

        guest = Handshake(
            sock,
            listen,
            self._reactor,
            lambda stream: self._admitted(sock, self._leave(guest), stream),
            lambda error: self._refused(error, self._leave(guest)),
        )
        late = OSError(errno.ETIMEDOUT, f'it took longer than {self._timeout} s (config.connect_timeout)')
        self._silent[guest] = address, self._reactor.call_later(self._timeout, lambda: guest.fail(late))
        guest.start(speak_first=False)
        if len(self._silent) > self._places:
            oldest = next(iter(self._silent))
            if not oldest.hear():
                oldest.fail(self._displaced())

    def close(self) -> None:
        """Send everybody away."""
        for guest in (*self._silent, *self._speaking):
            guest.cancel()
            self._leave(guest)

    def _displaced(self) -> OSError:
        return OSError(errno.EBUSY, f'{self._places} others have begun since, and it was not done')

    def _leave(self, guest: Handshake) -> Any:
        address, timer = (self._silent if guest in self._silent else self._speaking).pop(guest)
        timer.cancel()
        return address


def _nothing(*arguments: Any) -> Any:
    pass


def _affordable(places: int) -> int:
    """Return how many of so many places there can be without taking all descriptors that the process may have."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError, ValueError):  # not a Unix
        return places
    return places if limit == resource.RLIM_INFINITY else max(1, min(places, limit // 4))
