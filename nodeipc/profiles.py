"""What the profiles `guarded` and `assured` of node-ipc 14 add to the wire format: rules for the names of events.

They hold for what is emitted and for what is received. Like the wire, they know no socket, thread, clock or file.
"""

from __future__ import annotations

from typing import Union

from .config import Config
from .errors import ConfigError, ProtocolError
from .wire import EVENT_NOT_ALLOWED, EVENT_TOO_LARGE, INVALID_EVENT, RESERVED_EVENT, Event, decode

# Why `assured` refuses to serve or to connect: node-ipc 14's code.
ASSURED_TRANSPORT = 'ERR_IPC_ASSURED_TRANSPORT'

# What servers and clients publish themselves: a peer that could emit `disconnect` or `error` would lie to the handlers.
# node-ipc 14's names, and `stop`, which only ours publish.
RESERVED = frozenset(
    ['start', 'stop', 'connect', 'disconnect', 'destroy', 'close', 'socket.disconnected', 'error', 'data']
)

# Members of every JavaScript object (Object.prototype), which mean something else there than an event.
_UNSAFE = frozenset(
    [
        '__defineGetter__', '__defineSetter__', '__lookupGetter__', '__lookupSetter__', '__proto__', 'constructor',
        'hasOwnProperty', 'isPrototypeOf', 'propertyIsEnumerable', 'toLocaleString', 'toString', 'valueOf',
    ]
)


class Rules:
    """Which names of events a profile lets through."""

    __slots__ = ('_allowed', '_forbidden', '_max_length', '_reserved')

    def __init__(self, config: Config) -> None:
        assured = config.parser == 'assured'
        self._max_length = config.max_event_name_length
        self._reserved = frozenset() if config.allow_reserved_events and not assured else RESERVED
        self._forbidden = _UNSAFE | self._reserved
        self._allowed = frozenset(config.allowed_events or ()) if assured else None
        if assured and not self._allowed:
            raise ConfigError(
                f"{config.id!r}: parser='assured' needs config.allowed_events, the names of all events that may be emitted "
                'or received'
            )

    def check(self, type: str) -> None:
        """Raise ProtocolError for a name that is not let through, with node-ipc 14's code for why."""
        limit = self._max_length
        if not type:
            raise ProtocolError(INVALID_EVENT, 'the name of an event must not be empty')
        if limit is not None and 2 * len(type) > limit and _javascript_length(type) > limit:
            raise ProtocolError(
                EVENT_TOO_LARGE,
                f'event {type[:32]!r}...: its name is longer than max_event_name_length ({limit} characters); choose a '
                'shorter one, or raise config.max_event_name_length on both sides',
            )
        if type in self._forbidden:
            if type in self._reserved:
                raise ProtocolError(
                    RESERVED_EVENT,
                    f"event {type!r} is reserved: servers and clients publish it themselves; choose another name (or, if "
                    "parser='guarded', set config.allow_reserved_events)",
                )
            raise ProtocolError(INVALID_EVENT, f'event {type!r} means something else in JavaScript; choose another name')
        if self._allowed is not None and type not in self._allowed:
            raise ProtocolError(
                EVENT_NOT_ALLOWED,
                f'event {type[:64]!r} is not in config.allowed_events; if it is wanted, add it on both sides',
            )

    def decode(self, frame: Union[bytes, bytearray]) -> Event:
        """As `wire.decode`; raises ProtocolError, too, for a name that is not let through."""
        event = decode(frame)
        self.check(event[0])
        return event


def _javascript_length(text: str) -> int:
    """Count UTF-16 code units, as node-ipc does, so that both ends agree."""
    return len(text) + sum(character > '\uffff' for character in text)
