"""What a stream holds, said as plainly as possible: split at the delimiter, then `json.loads`, then the rules for names.

Written from node-ipc 14's source and from nodeipc's documentation, and independent of nodeipc: it imports nothing of it,
and it is slow where that is simpler.
"""

from __future__ import annotations

import json
import marshal
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

# node-ipc 14, entities/EventParser.js: reservedEventTypes; and `stop`, which only nodeipc publishes.
RESERVED = ('start', 'connect', 'disconnect', 'destroy', 'close', 'socket.disconnected', 'error', 'data', 'stop')

# node -p 'Object.getOwnPropertyNames(Object.prototype)': unsafeEventTypes.
PROTOTYPE = (
    'constructor', '__defineGetter__', '__defineSetter__', 'hasOwnProperty', '__lookupGetter__', '__lookupSetter__',
    'isPrototypeOf', 'propertyIsEnumerable', 'toString', 'valueOf', '__proto__', 'toLocaleString',
)  # fmt: skip

# More digits than this are refused, as CPython's int() does, because converting them takes quadratic time.
MAX_DIGITS = 4300

# A handshake and an alert, RFC 8446, 5.1.
TLS_RECORDS = (b'\x16\x03', b'\x15\x03')

Events = List[Tuple[str, Any]]


class Settings(NamedTuple):
    """The fields of a `Config` that the wire depends on."""

    parser: str
    delimiter: str = '\f'
    max_message_size: Optional[int] = None
    max_event_name_length: Optional[int] = 256
    allow_reserved_events: bool = False
    allowed_events: Optional[Tuple[str, ...]] = None

    @property
    def limit(self) -> int:
        return self.max_message_size or (64 << 20 if self.parser == 'fast' else 1 << 20)

    def given(self) -> Dict[str, Any]:
        """Those that are not the defaults, and the parser."""
        defaults = self._field_defaults
        return {name: value for name, value in self._asdict().items() if name not in defaults or value != defaults[name]}


class Verdict(NamedTuple):
    """What decoding a whole stream must give."""

    events: Events  # up to the first refusal
    codes: FrozenSet[Optional[str]]  # what the refusal's code may be; None: nothing is refused
    frames: int  # that were judged: the events and what is refused


class Refused(Exception):
    """The argument is the code."""


def judge(stream: bytes, settings: Settings) -> Verdict:
    """Say what is in a stream that ends where `stream` ends.

    The events before a refusal do not depend on the chunking. Neither does the code, though it may come earlier or later: a
    frame is too large as soon as more than the limit has come, and its code is the same when it comes whole, because its
    size is looked at before its JSON. The limit allows for a delimiter of which the last byte has not come, so an unfinished
    frame is too large when it is longer than the limit by a delimiter less one; otherwise the end is inside a message.

    One thing differs, and only in the code. Who begins a frame as TLS begins a record waits for an answer and sends no
    delimiter, so such a frame is refused (ERR_IPC_INVALID_JSON) as soon as a chunk shows its first two bytes without its
    end. If they come in two chunks, it is refused for what it is otherwise: too large, or without an end.
    """
    delimiter = settings.delimiter.encode()
    *frames, tail = stream.split(delimiter)
    events: Events = []
    for frame in frames:
        try:
            events.append(read(frame, settings))
        except Refused as refusal:
            return Verdict(events, _codes(frame, refusal.args[0]), len(events) + 1)
    if not tail:
        return Verdict(events, frozenset([None]), len(events))
    too_large = len(tail) - (len(delimiter) - 1) > settings.limit
    code = 'ERR_IPC_FRAME_TOO_LARGE' if too_large else 'ERR_IPC_INVALID_MESSAGE'
    return Verdict(events, _codes(tail, code), len(events) + 1)


def _codes(frame: bytes, code: str) -> FrozenSet[Optional[str]]:
    return frozenset([code, 'ERR_IPC_INVALID_JSON'] if frame[:2] in TLS_RECORDS else [code])


def read(frame: bytes, settings: Settings) -> Tuple[str, Any]:
    """Return the event of one frame, or raise Refused."""
    if len(frame) > settings.limit:
        raise Refused('ERR_IPC_FRAME_TOO_LARGE')
    try:
        message = json.loads(frame.decode('utf-8'), parse_constant=_refuse, parse_int=_integer)
    except (ValueError, RecursionError):
        raise Refused('ERR_IPC_INVALID_JSON') from None
    if not isinstance(message, dict):
        raise Refused('ERR_IPC_INVALID_MESSAGE')
    name = message.get('type')
    if not isinstance(name, str):
        raise Refused('ERR_IPC_INVALID_EVENT')
    code = refused_name(name, settings)
    if code is not None:
        raise Refused(code)
    return name, message.get('data', {})


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _integer(text: str) -> int:
    if len(text.lstrip('-')) > MAX_DIGITS:
        raise ValueError('too many digits')
    return int(text)


def refused_name(name: str, settings: Settings) -> Optional[str]:
    """Return the code that a name is refused with, in the order in which node-ipc's validateType looks."""
    if settings.parser == 'fast':
        return None
    if name == '':
        return 'ERR_IPC_INVALID_EVENT'
    longest = settings.max_event_name_length
    if longest is not None and len(name.encode('utf-16-le', 'surrogatepass')) // 2 > longest:
        return 'ERR_IPC_EVENT_TOO_LARGE'
    if name in PROTOTYPE:
        return 'ERR_IPC_INVALID_EVENT'
    assured = settings.parser == 'assured'
    if name in RESERVED and (assured or not settings.allow_reserved_events):
        return 'ERR_IPC_RESERVED_EVENT'
    if assured and name not in (settings.allowed_events or ()):
        return 'ERR_IPC_EVENT_NOT_ALLOWED'
    return None


def encoded(name: Any, data: Any, settings: Settings) -> Any:
    """Return the bytes that encoding must give, or the code or class name of the exception that it must raise."""
    if not isinstance(name, str):
        return 'TypeError'
    code = refused_name(name, settings)
    if code is not None:
        return code
    if name == '':
        return 'ValueError'  # nobody emits an event without a name, in any profile
    try:
        text = json.dumps({'type': name, 'data': data}, separators=(',', ':'), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        return 'ValueError' if isinstance(error, ValueError) else 'TypeError'
    frame = text.encode('utf-8', 'backslashreplace')  # which writes lone surrogates as JSON does
    if len(frame) > settings.limit:
        return 'ERR_IPC_FRAME_TOO_LARGE'
    delimiter = settings.delimiter.encode()
    frame += delimiter
    return frame if frame.index(delimiter) == len(frame) - len(delimiter) else 'ValueError'


def as_received(value: Any) -> Any:
    """Return what becomes of a value in JSON: a tuple a list, a key a string, the halves of a surrogate pair one character.

    >>> as_received({1: ('a', None)})
    {'1': ['a', None]}
    """
    return json.loads(json.dumps(value))


def fingerprint(events: Any) -> bytes:
    """Return bytes that are equal for equal events of the same types: not those of 1, 1.0 and True, nor of 0.0 and -0.0.

    Of two dictionaries they are equal only if the order is, too; ours and the reference's come from the same JSON.
    """
    return marshal.dumps(events, 0)  # a later version would tell how many references there are, too
