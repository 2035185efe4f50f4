"""A proxy that misbehaves on demand, between a client and a server, over Unix sockets or TCP.

It knows nothing of what it passes, so TLS goes through it as well. Whatever it does to connections, the bytes that it passes
are the ones it was given, each once and in order.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Tuple, Union

Address = Union[str, Tuple[str, int]]

_HELD = 1 << 16  # bytes of one direction that the proxy holds at most, beyond what the kernel does
_PIECES = 64  # that are passed in one turn

# One is made for each turn, and this kind costs no descriptor.
_Selector = getattr(selectors, 'PollSelector', selectors.SelectSelector)

# How a direction can end, after so many bytes.
CUT, RESET, HALF_CLOSE, STOP = 'cut', 'reset', 'half-close', 'stop'


class Way:
    """One direction of a link. Its rules may be changed at any time, from any thread.

    piece: pass at most so many bytes at once, or as many as a function says each time; None: as they come
    pause: seconds between a piece and the next
    stopped: read nothing and pass nothing, so that the sender feels it
    """

    def __init__(self, link: Link, source: socket.socket, target: socket.socket) -> None:
        self.link = link
        self.piece: Union[int, Callable[[], int], None] = None
        self.pause = 0.0
        self.passed = 0  # bytes, so far
        self.ended = False  # its end has been passed on
        self._stopped = False
        self._source = source
        self._target = target
        self._held = bytearray()
        self._source_has_ended = False
        self._due = 0.0
        self._limit: Optional[int] = None
        self._at_limit = ''

    def end_after(self, count: int, how: str) -> None:
        """Pass `count` bytes more, not one beyond them; then CUT or RESET the link, HALF_CLOSE or STOP this direction."""

        def set_limit() -> None:
            self._at_limit, self._limit = how, self.passed + count

        # In that thread, because what was sent may have arrived before it is counted.
        self.link.proxy.do(set_limit)

    @property
    def stopped(self) -> bool:
        return self._stopped

    @stopped.setter
    def stopped(self, stopped: bool) -> None:
        self._stopped = stopped
        self.link.proxy.wake()

    # In the thread of the proxy.

    def _reads(self) -> bool:
        return not self.stopped and not self._source_has_ended and len(self._held) < _HELD

    def _writes(self, now: float) -> bool:
        return not self.stopped and not self.ended and bool(self._held) and self._due <= now

    def _is_at_its_limit(self) -> bool:
        return self._limit is not None and self.passed >= self._limit

    def _read(self) -> None:
        data = self._source.recv(_HELD)
        if not self.ended:  # else nobody is there to be told
            self._held += data
        self._source_has_ended = not data

    def _write(self, now: float) -> None:
        count = len(self._held)
        piece = self.piece  # another thread may change it meanwhile
        if piece is not None:
            count = min(count, piece() if callable(piece) else piece)
        if self._limit is not None:
            count = min(count, self._limit - self.passed)
        sent = self._target.send(self._held[:count]) if count else 0
        del self._held[:sent]
        self.passed += sent
        self._due = now + self.pause

    def _finish(self) -> None:
        """Do what is to be done when all is passed, or as much as is allowed."""
        if self._is_at_its_limit():
            how, self._limit = self._at_limit, None
            if how == STOP:
                self.stopped = True
            elif how == HALF_CLOSE:
                self.link._break()
                self._pass_end_on()
            else:
                self.link._end(reset=how == RESET)
        elif self._source_has_ended and not self._held and not self.ended and not self.stopped:
            self._pass_end_on()

    def _pass_end_on(self) -> None:
        self.ended = True
        self._held.clear()
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)


class Link:
    """A client's connection through the proxy: `up` is what the client says, `down` what the server says."""

    def __init__(self, proxy: Proxy, number: int, client: socket.socket, server: socket.socket) -> None:
        self.proxy = proxy
        self.number = number  # from 0, in the order in which clients connected
        self.closed = False
        self._made = time.monotonic()
        self._is_broken = False
        self._sockets = (client, server)
        self.up = Way(self, client, server)
        self.down = Way(self, server, client)

    def cut(self) -> None:
        """End both connections; what the proxy still holds is not passed."""
        self.proxy.do(lambda: self._end(reset=False))

    def reset(self) -> None:
        """End both connections; their peers get ECONNRESET (over Unix sockets: where the proxy has left bytes unread)."""
        self.proxy.do(lambda: self._end(reset=True))

    def _break(self) -> None:
        if not self._is_broken:
            self._is_broken = True
            self.proxy._tell_of_break(self._made)

    def _end(self, reset: bool, by_itself: bool = False) -> None:
        if not self.closed:
            if not by_itself:
                self._break()
            self.closed = True
            self.proxy.links.remove(self)
            for sock in self._sockets:
                if reset and sock.family != getattr(socket, 'AF_UNIX', None):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                sock.close()

    def _turn(self, now: float, events: Callable[[socket.socket], int]) -> None:
        try:
            for way in (self.up, self.down):
                if events(way._source) & selectors.EVENT_READ and way._reads():
                    way._read()
                with contextlib.suppress(BlockingIOError):
                    for _ in range(_PIECES):
                        if way._is_at_its_limit() or not way._writes(now):
                            break
                        way._write(now)
                way._finish()
                if self.closed:
                    return
        except OSError:  # one of both has reset its connection: the other learns it
            self._end(reset=True, by_itself=True)
        if self.up.ended and self.down.ended:
            self._end(reset=False, by_itself=True)


class Proxy:
    """Listens, and passes what comes to the server at `target`: a path, or host and port.

    `path` is where it listens; None: on a free TCP port of the loopback. `on_link(link)` is called for each new link before
    its first byte is passed, `on_break(made)` just before the proxy ends a link that its peers have not ended, made at that
    time (`time.monotonic()`), or does not make one. Use as a context manager, or call `close()`, which ends all links.
    """

    def __init__(
        self, target: Address, path: Optional[str] = None, on_link: Optional[Callable[[Link], Any]] = None,
        on_break: Optional[Callable[[float], Any]] = None,
    ) -> None:
        self.target = target
        self.path = path
        self.on_link = on_link
        self.on_break = on_break
        self.links: List[Link] = []  # those that stand
        self.accepted = 0
        self.turned_away = 0
        self.turns_away: Optional[str] = None  # CUT, RESET or STOP (say nothing): what becomes of whoever connects
        self._silent: List[socket.socket] = []
        self.failure: Optional[BaseException] = None  # what ended the proxy's thread
        self._closed = False
        self._calls: Deque[Tuple[Callable[[], Any], threading.Event]] = deque()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._listener: Optional[socket.socket] = None
        self.address: Address = path or ('127.0.0.1', 0)
        self._listen()
        self._thread = threading.Thread(target=self._run, name='proxy', daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """End everything; idempotent. Raises what has ended the proxy's thread before."""
        self._closed = True
        self.wake()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Inside, whoever connects is refused by the kernel (ECONNREFUSED; without `path`, on the same port as before)."""
        self.do(self._stop_listening)
        try:
            yield
        finally:
            self.do(self._listen)

    def cut_all(self, reset: bool = False) -> int:
        """End every link, and what is only held open; return how many there were."""
        links: List[Link] = []

        def cut() -> None:
            links.extend(self.links)
            for link in links:
                link._end(reset)
            self._end_silent()

        self.do(cut)
        return len(links)

    def do(self, call: Callable[[], Any]) -> None:
        """Run `call` in the proxy's thread, and wait for it."""
        if threading.current_thread() is self._thread:
            call()
            return
        done = threading.Event()
        self._calls.append((call, done))
        self.wake()
        while not done.wait(1):
            assert self._thread.is_alive(), self.failure

    def wake(self) -> None:
        """Have the thread look at the rules again."""
        with contextlib.suppress(OSError):  # it is awake, or has ended
            self._waker.send(b'!')

    # In the thread of the proxy.

    def _listen(self) -> None:
        if self.path is not None:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f'{self.path}.new')
            listener.listen(1024)
            os.rename(f'{self.path}.new', self.path)  # so that there is one all the time, if only a dead one
        else:
            listener = socket.socket(socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(self.address)
            self.address = listener.getsockname()
        listener.listen(1024)
        listener.setblocking(False)
        self._listener = listener

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._tell_of_break()  # of whoever is in the backlog
            self._listener.close()
            self._listener = None

    def _tell_of_break(self, made: Optional[float] = None) -> None:
        if self.on_break is not None:
            self.on_break(time.monotonic() if made is None else made)

    def _end_silent(self) -> None:
        while self._silent:
            self._silent.pop().close()

    def _accept(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        if self.turns_away is not None:
            self.turned_away += 1
            self._tell_of_break()
            if self.turns_away == STOP:
                self._silent.append(client)
                return
            if self.turns_away == RESET and self.path is None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            client.close()
            return
        server = socket.socket(socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET)
        try:
            server.connect(self.target)
        except OSError:
            self._tell_of_break()
            server.close()
            client.close()
            return
        for sock in (client, server):
            sock.setblocking(False)
            if self.path is None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(self, self.accepted, client, server)
        self.accepted += 1
        self.links.append(link)
        if self.on_link is not None:
            self.on_link(link)

    def _run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        except BaseException as error:
            self.failure = error
        finally:
            for link in list(self.links):
                link._end(reset=False)
            self._end_silent()
            self._stop_listening()
            if self.path is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
            self._woken.close()
            self._waker.close()

    def _turn(self) -> None:
        while self._calls:
            call, done = self._calls.popleft()
            call()
            done.set()
        with _Selector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            if self._listener is not None:
                selector.register(self._listener, selectors.EVENT_READ)
            now = time.monotonic()
            wait = None
            for link in self.links:
                wanted: Dict[socket.socket, int] = {}
                for way in (link.up, link.down):
                    if way._reads():
                        wanted[way._source] = wanted.get(way._source, 0) | selectors.EVENT_READ
                    if way._writes(now):
                        wanted[way._target] = wanted.get(way._target, 0) | selectors.EVENT_WRITE
                    elif way._held and not way.stopped:
                        wait = min(way._due - now, wait if wait is not None else 60)
                    if way._is_at_its_limit():
                        wait = 0
                for sock, events in wanted.items():
                    selector.register(sock, events)
            ready = {key.fileobj: events for key, events in selector.select(wait)}
        if ready.pop(self._woken, None):
            with contextlib.suppress(BlockingIOError):
                self._woken.recv(1 << 16)
        if self._listener is not None and ready.pop(self._listener, None):
            with contextlib.suppress(BlockingIOError):
                self._accept()
        now = time.monotonic()
        for link in list(self.links):
            link._turn(now, lambda sock: ready.get(sock, 0))
