"""What servers and clients have in common: settings, the encoding of events, the log of payloads, reported errors."""

from __future__ import annotations

import logging
import threading
from typing import Any, Callable

from .config import Config, seconds
from .engine import Endpoint
from .errors import ConfigError
from .events import Emitter
from .log import logger
from .parsers import make_parser
from .profiles import ASSURED_TRANSPORT
from .wire import NO_DATA

Log = Callable[..., Any]
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
        if config.log_payloads:
            self._encode = self._encode_logged(self._encode)

        # Guards the state and the counters of the endpoint. Taken by itself and not through the condition that is notified
        # when the state changes, whose __enter__ is Python: Ctrl-C could come between, and leave it locked for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._errors = 0

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
            self._log(f'{self}: received', type, data)
            deliver(type, data)

        return logged

    def _report(self, error: BaseException, *context: Any, level: int = logging.NOTSET) -> None:
        """Publish an `error` event, and log it if it has a level. On a strand, because handlers and log sinks may block."""
        if level:
            logger.log(level, '%s', error)
        with self._lock:
            self._errors += 1
        self._publish('error', error, *context)

    def _abandon(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._handlers_lock = threading.Lock()

