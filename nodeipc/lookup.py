"""Looking up host names, which may take long and cannot be interrupted: never on a reactor thread.

`look_up` answers on the reactor thread, for clients that connect; `Names` answers a thread that waits, and remembers, for
datagrams that go to the same few names again and again.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

from .address import NetAddress, SocketAddress, UDPAddress, resolve
from .deadline import Deadline
from .errors import EmitTimeout, NotConnectedError
from .reactor import Reactor

# Long enough that a stream of datagrams asks once, short enough to follow a service that moves.
_REMEMBERED_SECONDS = 10.0

# Look-ups at a time, for each has a thread and cannot be interrupted.
_MAX_QUESTIONS = 8

# Names that a program makes up as it goes must not fill the memory.
_MAX_REMEMBERED = 256

Found = List[Tuple[int, SocketAddress]]


def look_up(
    address: NetAddress,
    family: Optional[int],
    found: Callable[[Found], Any],
    failed: Callable[[OSError], Any],
    reactor: Reactor,
) -> None:
    """Have `found` or `failed` called: at once for an IP address, later and on the reactor thread for a name."""
    try:
        candidates = resolve(address, family, numeric=True)
    except (OSError, UnicodeError):
        pass
    else:
        found(candidates)
        return

    def ask() -> None:
        try:
            candidates = resolve(address, family)
        except (OSError, UnicodeError) as error:
            message = getattr(error, 'strerror', None) or str(error)
            reactor.call(failed, OSError(getattr(error, 'errno', None), f'cannot look up {address.host!r}: {message}'))
        else:
            reactor.call(found, candidates)

    try:
        threading.Thread(target=ask, name='nodeipc-lookup', daemon=True).start()
    except RuntimeError as error:
        failed(OSError(errno.EAGAIN, f'no thread to look up {address.host!r} ({error})'))


class _Question:
    """A look-up that is under way, for all who wait for it."""

    __slots__ = ('_names', 'answer', 'error')

    def __init__(self, names: Names) -> None:
        self._names = names
        self.answer: Any = None  # a SocketAddress
        self.error: Optional[OSError] = None

    @property
    def is_answered(self) -> bool:
        return self.answer is not None or self.error is not None or self._names._closed


class Names:
    """Where datagrams to a name go. One for each socket, whose `name` is for messages; any thread may ask."""

    def __init__(self, name: str, reactor: Reactor) -> None:
        self._name = name
        self._reactor = reactor
        # Guards all below; the condition is notified when a question is answered. Nothing else is locked while it is held,
        # but a thread may be started.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self._known: Dict[UDPAddress, Tuple[SocketAddress, float]] = {}
        self._asked: Dict[UDPAddress, _Question] = {}

    def find(self, address: UDPAddress, deadline: Deadline) -> SocketAddress:
        """Return the socket address of `address`; its first, if the name has several.

        Raises OSError for a name that is not known, EmitTimeout if finding out takes too long, NotConnectedError when it
        is closed.
        """
        known = self._known.get(address)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        with self._lock:
            question = self._ask(address, deadline)
            self._reactor.wait_for(self._changed, lambda: question.is_answered, deadline.remaining)
        if question.error is not None:  # each who waited raises one of its own
            raise OSError(question.error.errno, f'{self._name}: {question.error.strerror}; nothing was sent, check the name')
        if question.answer is None:
            if self._closed:
                raise NotConnectedError(f'{self._name} was stopped while {address.host!r} was looked up; nothing was sent')
            raise self._timeout(address, deadline)
        where: SocketAddress = question.answer
        return where

    def close(self) -> None:
        """Answer nothing more; any thread."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        self._reactor.call(_nothing)  # for a handler that waits on the reactor thread

    def _ask(self, address: UDPAddress, deadline: Deadline) -> _Question:
        """Return the question that is under way, or a new one, when there are not too many."""
        self._reactor.wait_for(
            self._changed,
            lambda: address in self._asked or len(self._asked) < _MAX_QUESTIONS or self._closed,
            deadline.remaining,
        )
        question = self._asked.get(address) or _Question(self)
        if address in self._asked or self._closed:
            return question
        known = self._known.get(address)
        if known is not None and known[1] > time.monotonic():  # since the caller looked
            question.answer = known[0]
        elif len(self._asked) >= _MAX_QUESTIONS:
            raise self._timeout(address, deadline)
        else:
            try:
                self._asked[address] = question
                look_up(
                    address,
                    None,
                    lambda found: self._answered(address, question, found[0][1], None),
                    lambda error: self._answered(address, question, None, error),
                    self._reactor,
                )
            except BaseException:  # Ctrl-C: nobody shall wait for an answer that may not come
                self._asked.pop(address, None)
                raise
        return question

    def _timeout(self, address: UDPAddress, deadline: Deadline) -> EmitTimeout:
        return EmitTimeout(
            f'{self._name}: {address.host!r} could not be looked up within {deadline.timeout} s; nothing was sent, wait '
            'longer or give an IP address'
        )

    def _answered(
        self, address: UDPAddress, question: _Question, where: Optional[SocketAddress], error: Optional[OSError]
    ) -> None:
        with self._lock:
            question.answer, question.error = where, error
            self._asked.pop(address, None)
            if where is not None:
                self._remember(address, where)
            self._changed.notify_all()

    def _remember(self, address: UDPAddress, where: SocketAddress) -> None:
        self._known.pop(address, None)
        self._known[address] = where, time.monotonic() + _REMEMBERED_SECONDS
        if len(self._known) > _MAX_REMEMBERED:
            del self._known[next(iter(self._known))]


def _nothing() -> None:
    pass
