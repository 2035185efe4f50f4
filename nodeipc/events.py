"""The emitter: which handlers an event has, and how they are called.

Servers and clients are emitters. Registering may happen in any thread at any time, during a dispatch too; a dispatch
calls the handlers that were registered when it began. Nothing here knows where events come from.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from typing import Any, Callable, Deque, Dict, Optional, Tuple, TypeVar, overload

from .log import say
from .reentry import calls_out

Handler = Callable[..., Any]
F = TypeVar('F', bound=Handler)

ANY = '*'

_CO_VARARGS = 0x04
_CO_COROUTINE = 0x80


@calls_out
def call_back(callback: Handler, argument: Any) -> None:
    """Call a callback, with `argument` if it takes one."""
    if max_positional(callback) == 0:
        callback()
    else:
        callback(argument)


class Registration:
    """A handler as it was registered: how often it is called, and with how many arguments at most."""

    __slots__ = ('function', 'max_arguments', 'once')

    def __init__(self, function: Handler, once: bool) -> None:
        self.function = function
        self.once = once
        self.max_arguments = max_positional(function)


def max_positional(function: Handler) -> Optional[int]:
    """Return how many positional arguments `function` can be called with, None for any number.

    Raises TypeError for what cannot be a handler: a value that is not callable, a coroutine function.
    """
    if not callable(function):
        raise TypeError(f'a handler must be callable, not {function!r}')
    plain = getattr(function, '__func__', function)
    code = getattr(plain, '__code__', None)
    if code is not None and not hasattr(plain, '__wrapped__'):
        if code.co_flags & _CO_COROUTINE:
            raise TypeError(f'a handler must be a plain function, not the coroutine function {function!r}')
        if code.co_flags & _CO_VARARGS:
            return None
        bound = plain is not function and getattr(function, '__self__', None) is not None
        return int(code.co_argcount) - bound
    import inspect  # 10 ms to import, and plain functions do without

    if inspect.iscoroutinefunction(function):
        raise TypeError(f'a handler must be a plain function, not the coroutine function {function!r}')
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-ins do not tell
        return None
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return sum(parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters)


class Emitter:
    """Registers handlers by event name and calls them."""

    def __init__(self) -> None:
        # Guards changes of _handlers, whose tuples are replaced, never changed, so that a dispatch reads without it.
        # Only a strand's is taken inside it. Re-entrant, for a signal handler or __del__ that interrupts a change may make
        # one; it is made after the other.
        self._handlers_lock = threading.RLock()
        self._handlers: Dict[str, Tuple[Registration, ...]] = {}
        self._changes: Deque[Callable[[], Any]] = deque()
        self._is_changing = False

    @overload
    def on(self, event: str) -> Callable[[F], F]: ...

    @overload
    def on(self, event: str, handler: F) -> F: ...

    def on(self, event: str, handler: Optional[Handler] = None) -> Any:
        """Call `handler` for each `event`; ``'*'`` stands for every event and puts its name before the arguments.

        Without `handler` this is a decorator; either way the handler is returned. A handler may take fewer positional
        arguments than the event gives. Registering twice calls twice. Raises TypeError for a handler that cannot be
        called with plain arguments (not callable, a coroutine function).

        >>> from nodeipc import IPC
        >>> server = IPC(id='on-example').serve()
        >>> @server.on('message')
        ... def greet(data, socket):
        ...     socket.emit('message', data + ' world!')
        """
        return self._register(event, handler, once=False)

    @overload
    def once(self, event: str) -> Callable[[F], F]: ...

    @overload
    def once(self, event: str, handler: F) -> F: ...

    def once(self, event: str, handler: Optional[Handler] = None) -> Any:
        """As `on`, for the next `event` only.

        >>> from nodeipc import IPC
        >>> server = IPC(id='once-example').serve()
        >>> @server.once('connect')
        ... def first(socket):
        ...     print('the first client is', socket.peer)
        """
        return self._register(event, handler, once=True)

    def off(self, event: str, handler: Any = ANY) -> None:
        """Forget `handler` for `event`, or all its handlers (``'*'``). What is not registered is ignored.

        A dispatch that has begun is not changed by it.
        """
        check_event(event)
        self._change(lambda: self._keep_only(event, () if handler == ANY else tuple(
            registration for registration in self._handlers.get(event, ()) if registration.function != handler
        )))

    def _register(self, event: str, handler: Optional[Handler], once: bool) -> Any:
        check_event(event)
        if handler is None:
            return lambda function: self._register(event, function, once)
        self._add(event, Registration(handler, once))
        return handler

    def _add(self, event: str, registration: Registration) -> None:
        self._change(lambda: self._insert(event, registration))

    def _change(self, change: Callable[[], Any]) -> None:
        """Call what changes _handlers: now, or when the change that we have interrupted is made."""
        with self._handlers_lock:
            self._changes.append(change)
            while self._changes and not self._is_changing:
                self._is_changing = True
                try:
                    self._changes.popleft()()
                finally:
                    self._is_changing = False

    def _insert(self, event: str, registration: Registration) -> None:
        self._handlers[event] = (*self._handlers.get(event, ()), registration)

    def _take(self, event: str, registration: Registration) -> bool:
        """Forget a `once` registration; False if another thread was faster."""
        taken = []

        def take() -> None:
            before = self._handlers.get(event, ())
            left = tuple(other for other in before if other is not registration)
            if len(left) < len(before):
                taken.append(registration)
                self._keep_only(event, left)

        self._change(take)
        return bool(taken)

    def _keep_only(self, event: str, left: Tuple[Registration, ...]) -> None:
        if left:
            self._handlers[event] = left
        else:
            self._handlers.pop(event, None)

    def _publish(self, type: str, *arguments: Any) -> None:
        """Call the handlers of an event, those of ``'*'`` first as in node-ipc 14. Never raises."""
        handlers = self._handlers
        if ANY in handlers:
            self._dispatch(handlers, type, arguments)
        else:
            for registration in handlers.get(type, ()):
                self._call(type, registration, arguments)

    def _dispatch(
        self, handlers: Dict[str, Tuple[Registration, ...]], type: str, arguments: Tuple[Any, ...]
    ) -> None:
        for registration in handlers.get(ANY, ()):
            self._call(ANY, registration, (type, *arguments))
        if type != ANY:
            for registration in handlers.get(type, ()):
                self._call(type, registration, arguments)

    @calls_out
    def _call(self, event: str, registration: Registration, arguments: Tuple[Any, ...]) -> None:
        if registration.once and not self._take(event, registration):
            return
        try:
            registration.function(*arguments[:registration.max_arguments])
        except BaseException as error:  # SystemExit too: a handler does not end the thread it is lent
            self._handler_failed(event, registration, arguments, error)

    def _handler_failed(
        self, event: str, registration: Registration, arguments: Tuple[Any, ...], error: BaseException
    ) -> None:
        """A handler that was called with `arguments` has raised."""
        if event == ANY:
            event, arguments = arguments[0], arguments[1:]
        expected = self._is_expected(error, arguments)
        with contextlib.suppress(BaseException):  # of a log handler
            say(
                logging.INFO if expected else logging.ERROR,
                '%s: the handler %r of event %r raised%s',
                self,
                registration.function,
                event,
                f': {error}' if expected else '',
                exc_info=None if expected else error,
            )
        if event != 'error':  # or a failing error handler would go round for ever
            self._report_handler_error(error, arguments)

    def _is_expected(self, error: BaseException, arguments: Tuple[Any, ...]) -> bool:
        """Whether an error of a handler that was called with `arguments` is worth a line of the log, and no traceback."""
        return False

    def _report_handler_error(self, error: BaseException, arguments: Tuple[Any, ...]) -> None:
        """Publish an `error` event for a handler that raised when called with `arguments`."""
        raise NotImplementedError


def check_event(event: str) -> None:
    """Raise TypeError or ValueError for what cannot be the name of an event."""
    if not isinstance(event, str):
        raise TypeError(f'an event name must be a str, not {event.__class__.__name__}: {event!r}')
    if not event:
        raise ValueError('an event name must not be empty')
