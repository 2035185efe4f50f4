"""Asking and waiting in a plain script: `request`, `call`, `wait_for` and `events`, of clients and of a server's sockets.

What is common to both is here; how a request leaves, and who is told of what comes, is theirs.
"""

from __future__ import annotations

from typing import Any, Callable, FrozenSet, Optional, Tuple, TypeVar

from . import rpc
from .deadline import Deadline
from .errors import NotConnectedError, RequestTimeout
from .eventqueue import EventIterator, EventQueue
from .events import check_event
from .waiters import Waiter, Waiters
from .wire import NO_DATA, Payload

A = TypeVar('A', bound='Asker')

# What handlers are told of, and whoever waits is not.
CLIENTS_OWN = frozenset(['connect', 'destroy', 'disconnect', 'error'])
SERVERS_OWN = frozenset(['error', 'start', 'stop'])
_SOCKETS_OWN = SERVERS_OWN | {'connect', 'socket.disconnected'}


def awaited_types(types: Tuple[str, ...], local: FrozenSet[str]) -> Optional[FrozenSet[str]]:
    """Return what an iterator over `types` collects, None for all. Raises TypeError, or ValueError for `local` events."""
    for type in types:
        check_event(type)
        if type in local:
            raise ValueError(f'{type!r} is a local event and no message of a peer; use on({type!r}, handler)')
    return frozenset(map(str.__str__, types)) if types else None  # exactly str, also of a member of an Enum


class Asker:
    """Who can be asked: the server, by a client, or a peer, by a server's socket."""

    __slots__ = ()

    _encode: Callable[[Any, Any], bytes]
    _is_raw: bool
    _local = _SOCKETS_OWN

    def request(
        self, type: Payload, data: Any = NO_DATA, *, reply: Optional[str] = None, timeout: Optional[float] = None
    ) -> Any:
        """Emit an event and return the data of the next `reply` event (default: of the same type) that comes.

        The other end may be any node-ipc peer that answers each such event with one. Waits up to `timeout` seconds, None:
        for ever (but no longer than ``config.emit_timeout`` for a connection). Threads that ask at the same time get the
        answers in the order in which their requests left. A handler may ask, too.

        Raises `RequestTimeout` if no answer came, `EmitTimeout` if the request could not be sent in time,
        `NotConnectedError` as soon as the connection is lost, and what `emit` raises for data that cannot be sent. Nothing
        in an event says what it answers: one that comes when the time is over is taken for the next one's, and so are
        others where one is missing, as long as somebody waits. Where that matters use `call`, whose answers say it.

        >>> from nodeipc import connect, serve
        >>> with serve('request-example') as server, connect('request-example') as client:
        ...     handler = server.on('message', lambda data, socket: socket.emit('message', data + ' world!'))
        ...     client.request('message', 'hello', timeout=10)
        'hello world!'
        """
        if reply is None:
            reply = 'data' if self._is_raw or not isinstance(type, str) else type
        check_event(reply)
        waiters = self._waiters()
        waiter = self._ask(waiters, waiters.new_request(str.__str__(reply)), type, data, timeout)
        if waiter is None:
            raise RequestTimeout(
                f'{self}: {_excerpt(type)} was sent, and no {reply!r} came within {timeout:g} s; does the other end '
                'answer it, and with this event (reply=)?'
            )
        return waiter.data

    def call(self, method: str, /, *params: Any, timeout: Optional[float] = None, **named: Any) -> Any:
        """Call a method of the other end, by JSON-RPC 2.0 in ``rpc`` events, and return its result.

        Positional `params` make an array of them, `named` ones an object; there may be either. Waits up to `timeout`
        seconds, None: for ever. Any number of threads may call at the same time.

        Raises `RemoteError` with its code, message and data if the method failed or there is none; and `RequestTimeout`,
        `EmitTimeout`, `NotConnectedError`, TypeError and ValueError as `request` does.

        >>> from nodeipc import connect, serve
        >>> with serve('call-example') as server, connect('call-example') as client:
        ...     method = server.method('add', lambda a, b: a + b)
        ...     client.call('add', 1, 2, timeout=10)
        3
        """
        waiters = self._waiters()
        waiter = waiters.new_call()
        call = rpc.request(method, params, named, waiter.key)
        if self._ask(waiters, waiter, rpc.EVENT, call, timeout) is None:
            raise RequestTimeout(f'{self}: no answer to the call of {method!r} within {timeout:g} s; is it still at work?')
        return rpc.result(waiter.data, f'{self}: {method!r}')

    def notify(self, method: str, /, *params: Any, timeout: Optional[float] = None, **named: Any) -> None:
        """Call a method of the other end and do not wait: neither a result nor an error comes back.

        So it does not go with ``config.sync``, where the next emit would wait for an answer.

        `params` and `named` are those of `call`. Raises what `emit` does: `EmitTimeout` if it could not be sent in `timeout`
        seconds.

        >>> from nodeipc import connect, serve
        >>> with serve('notify-example') as server, connect('notify-example') as client:
        ...     client.notify('note', 'hello')
        """
        self.emit(rpc.EVENT, rpc.request(method, params, named, None), timeout=timeout)

    def wait_for(self, type: str, *, timeout: Optional[float] = None) -> Any:
        """Wait for the next event of `type` and return its data.

        That is one that comes after this is called; use `request` for an answer, or `events`, which collects from when it is
        called. Waits up to `timeout` seconds, None: for ever. Raises `RequestTimeout`, or `NotConnectedError` as soon as a
        connection is lost; ValueError for local events such as ``connect``.

        >>> from nodeipc import connect, serve
        >>> server = serve('wait-example')
        >>> handler = server.on('connect', lambda socket: socket.emit('news', 'hello'))
        >>> with server, connect('wait-example') as client:
        ...     client.wait_for('news', timeout=10)
        'hello'
        """
        awaited_types((type,), self._local)
        waiters = self._waiters()
        deadline = Deadline(timeout)
        waiter = waiters.new_wait(str.__str__(type))
        try:
            waiters.stand_for_next(waiter)
            self._read_on()
            if not self._wait_until(waiter.wait, deadline.remaining):
                raise RequestTimeout(f'{self}: no {type!r} came within {timeout:g} s; does the other end emit it?')
        finally:
            waiters.withdraw(waiter)
        if waiter.failure is not None:
            raise self._loss(waiter.failure)
        return waiter.data

    def emit(self, type: Payload, data: Any = NO_DATA, *, timeout: Optional[float] = None) -> None:
        raise NotImplementedError

    def _iterate(self: A, types: Tuple[str, ...], timeout: Optional[float]) -> EventIterator[A]:
        queue: EventQueue[A] = EventQueue(awaited_types(types, self._local))
        iterator = EventIterator(self, queue, timeout)  # first: if Ctrl-C comes, it closes the queue
        self._collect(queue)
        return iterator

    def _ask(self, waiters: Waiters, waiter: Waiter, type: Payload, data: Any, timeout: Optional[float]) -> Optional[Waiter]:
        """Send an event and wait for what `waiter` is told; return None if nothing came in time."""
        frame = self._encode(type, data)
        deadline = Deadline(timeout)
        try:
            self._send_request(frame, timeout, lambda: waiters.stand(waiter))
            waiters.settle()
            told = self._wait_until(waiter.wait, deadline.remaining)
        finally:
            waiters.withdraw(waiter)
        if not told:
            return None
        if waiter.failure is not None:
            raise self._loss(f'{waiter.failure}; what was asked has no answer, and may have been done')
        return waiter

    def _loss(self, why: str) -> NotConnectedError:
        return NotConnectedError(why if str(self) in why else f'{self}: {why}')

    # What clients and sockets do in their own ways

    def _waiters(self) -> Waiters:
        """Return those who wait for events of this peer."""
        raise NotImplementedError

    def _collect(self, queue: EventQueue[Any]) -> None:
        """Have `queue` collect from now on."""
        raise NotImplementedError

    def _forget_queue(self, queue: EventQueue[Any]) -> None:
        raise NotImplementedError

    def _send_request(self, frame: bytes, timeout: Optional[float], stand: Callable[[], Any]) -> None:
        """Send `frame` as `emit` does, and call `stand` right before it leaves."""
        raise NotImplementedError

    def _wait_until(self, take: Callable[[Optional[float]], bool], timeout: Optional[float]) -> bool:
        """As `Reactor.wait_until`."""
        raise NotImplementedError

    def _read_on(self) -> None:
        """Have the connection read, although what it brought before may not be handled yet."""
        raise NotImplementedError


def _excerpt(type: Payload) -> str:
    text = repr(type)
    return text if len(text) <= 100 else text[:100] + '...'
