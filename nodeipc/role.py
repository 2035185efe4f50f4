"""What servers and clients have in common: settings, the encoding of events, the log of payloads, errors, methods."""

from __future__ import annotations

import functools
import logging
import threading
from typing import Any, Callable, Dict, Optional, Protocol, Union, overload

from . import rpc
from .asking import Asker
from .config import Config, seconds
from .deadline import Deadline, wait_for
from .engine import Endpoint, Engine
from .errors import ConfigError, ProtocolError
from .events import ANY, Emitter, F, Registration
from .log import report_failing, say
from .parsers import make_parser
from .profiles import ASSURED_TRANSPORT
from .waiters import Waiters
from .wire import NO_DATA

Log = Callable[..., Any]

COUNTERS = ('messages_in', 'messages_out', 'bytes_in', 'bytes_out')


# What becomes of endpoints in a child made by fork.
OF_THE_PARENT = 'it belongs to the parent process; make a new IPC after fork'


class Carrier(Protocol):
    """What carries messages, and counts them: a connection, or the socket that all datagrams go through."""

    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int

    @property
    def pending(self) -> int: ...


def count(stats: Dict[str, int], carrier: Carrier) -> None:
    """Add what `carrier` has counted to `stats`."""
    for name in COUNTERS:
        stats[name] += getattr(carrier, name)

Deliver = Callable[[str, Any], Any]


def assured_needs_tls(who: object) -> ConfigError:
    """Return what an endpoint on the network raises that is assured and not encrypted."""
    return ConfigError(f"{who}: parser='assured' needs TLS on the network: set config.tls [{ASSURED_TRANSPORT}]")


class Role(Emitter, Endpoint):
    """An emitter whose events come from a socket. What its settings decide is decided here, once."""

    def __init__(self, config: Config, log: Log) -> None:
        super().__init__()
        self._config = config.copy()
        self._log = log
        self._emit_timeout = seconds(config.emit_timeout)
        self._parser = make_parser(self._config)
        self._encode = self._parser.encode
        self._is_raw = self._parser.is_raw
        if config.log_payloads:
            self._encode = self._encode_logged(self._encode)

        # Guards the state and the counters of the endpoint. Taken by itself and not through the condition that is notified
        # when the state changes, whose __enter__ is Python: Ctrl-C could come between, and leave it locked for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._errors = 0

        self._waiters_here = Waiters()
        self._methods = rpc.Methods()
        self._insert(rpc.EVENT, Registration(self._answer, once=False))

        #: Closes the instance that was made for this endpoint alone, by `nodeipc.connect` or `nodeipc.serve`.
        self._close_instance: Optional[Callable[[Deadline, Deadline], Any]] = None

    @overload
    def method(self, name: F) -> F: ...

    @overload
    def method(self, name: Optional[str] = None) -> Callable[[F], F]: ...

    @overload
    def method(self, name: str, function: F) -> F: ...

    def method(self, name: Union[str, F, None] = None, function: Optional[F] = None) -> Any:
        """Answer calls of `name` (default: the function's own) with what `function` returns; see `call`.

        Without `function` this is a decorator, ``@server.method`` or ``@server.method('name')``; either way the function is
        returned. A keyword-only parameter that is called `socket` is given the caller. Methods run as handlers do: those of
        one connection one at a time. What a method raises is the answer: a `RemoteError` with its code, message and data,
        anything else with code -32000, its class and its text; the traceback is logged here, and an ``error`` event tells.

        Calls are JSON-RPC 2.0 in ``rpc`` events, so any peer can make them. Raises TypeError for what is no plain function,
        ValueError for a name that JSON-RPC reserves.

        >>> from nodeipc import connect, serve
        >>> server = serve('method-example')
        >>> @server.method
        ... def add(a, b):
        ...     return a + b
        >>> with server, connect('method-example') as client:
        ...     client.call('add', 1, 2, timeout=10)
        3
        """
        if self._is_raw:
            raise TypeError(f'{self}: raw mode has no events, so nobody can call a method')
        if name is not None and not isinstance(name, str):
            if function is not None or not callable(name):
                raise TypeError(f'the name of a method must be a str, not {name!r}')
            name, function = None, name
        if function is None:
            return lambda decorated: self.method(name or _name_of(decorated), decorated)
        self._methods.add(name or _name_of(function), function)
        return function

    def _wait_till_over(self, engine: Optional[Engine], is_over: Callable[[], bool], timeout: Optional[float]) -> bool:
        if engine is not None and engine.workers.inside:
            raise RuntimeError(f'{self}: wait() in a handler would wait for the handler; call it in the main program')
        with self._lock:
            return wait_for(self._changed, is_over, Deadline(timeout).remaining)

    def _add(self, event: str, registration: Registration) -> None:
        super()._add(event, registration)
        self._waiters_here.hand_over(event, self._post_kept)

    def _keep(self) -> None:
        """Keep what comes for nobody, for the first who asks."""
        self._waiters_here.keep(self._handlers)

    def _post_kept(self, socket: Any, type: str, data: Any) -> None:
        """Have an event handled that came before there were handlers for it."""
        raise NotImplementedError

    def _answer(self, data: Any, socket: Optional[Asker] = None) -> None:
        """The handler of calls. Without methods it refuses them, unless the application has its own idea of them."""
        if not self._methods and (
            ANY in self._handlers or len(self._handlers.get(rpc.EVENT, ())) > 1 or not rpc.is_request(data)
        ):
            return
        caller: Any = self if socket is None else socket
        reply = self._reply if socket is None else functools.partial(socket.emit, rpc.EVENT)

        def failed(error: BaseException) -> None:
            what = data.get('method') if isinstance(data, dict) else 'of a batch'
            say(logging.ERROR, '%s: the method %r raised', self, what, exc_info=error)
            self._report_handler_error(error, (data, socket))

        answer = self._methods.answer(data, caller, failed)
        if answer is rpc.NOTHING:
            return
        try:
            reply(answer)
        except (TypeError, ValueError, ProtocolError) as error:
            failed(error)
            reply(rpc.unsendable(answer, error))

    def _reply(self, data: Any) -> None:
        """Answer a call of the server, if this is a client; on its strand."""
        raise NotImplementedError

    def _encode_logged(self, encode: Callable[[Any, Any], bytes]) -> Callable[[Any, Any], bytes]:
        def logged(type: Any, data: Any) -> bytes:
            self._log(f'{self}: emitting', type, *(() if data is NO_DATA else (data,)))
            return encode(type, data)

        return logged

    def _deliver_logged(self, deliver: Deliver) -> Deliver:
        """Return `deliver`, and have it log what it delivers if the settings say so."""
        if not self._config.log_payloads:
            return deliver

        def logged(type: str, data: Any) -> None:
            try:
                self._log(f'{self}: received', type, data)
            except BaseException:
                report_failing('config.logger')
            deliver(type, data)

        return logged

    def _report(self, error: BaseException, *context: Any, level: int = logging.NOTSET) -> None:
        """Publish an `error` event, and log it if it has a level. On a strand, because handlers and log sinks may block."""
        if level:
            say(level, '%s', error)
        with self._lock:
            self._errors += 1
        self._publish('error', error, *context)

    def _abandon(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._handlers_lock = threading.RLock()
        self._is_changing = False
        self._waiters_here.abandon(OF_THE_PARENT)
        self._waiters_here = Waiters()


def _name_of(function: Any) -> str:
    name = getattr(function, '__name__', None)
    if not isinstance(name, str) or not name.isidentifier():
        raise TypeError(f"{function!r} has no name to be called by; give it one: method('name', function)")
    return name
