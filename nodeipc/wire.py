"""The wire format: events to bytes and bytes to events.

Connections call it; it knows no socket, thread, clock or file, so that every limit and every malformed frame can be
tested with bytes alone. One event is compact JSON in UTF-8 and then the delimiter, node-ipc's format:
``{"type":"message","data":"hello"}\\f``.

What must hold: any chunking of a stream gives the same events; the work is linear in the bytes received, however small
or large the chunks; what is buffered is at most one frame of `max_message_size` bytes; frames before a malformed one
are delivered.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Iterator, Tuple

from .errors import ProtocolError

Event = Tuple[str, Any]

# What `emit` sends where no data is given, and what a frame without data stands for. Never changed.
NO_DATA: Any = {}

INVALID_JSON = 'ERR_IPC_INVALID_JSON'
INVALID_MESSAGE = 'ERR_IPC_INVALID_MESSAGE'
INVALID_EVENT = 'ERR_IPC_INVALID_EVENT'
FRAME_TOO_LARGE = 'ERR_IPC_FRAME_TOO_LARGE'
BACKPRESSURE = 'ERR_IPC_BACKPRESSURE'

# Event names are few and repeat, so their encoded prefixes are kept; a program that makes names up as it goes must not
# grow the cache without bound.
_MAX_CACHED_PREFIXES = 512

# Converting a decimal string to an int takes quadratic time. Newer interpreters refuse more digits than this by
# themselves (sys.get_int_max_str_digits); for the others we do.
_MAX_INT_DIGITS = 4300

_LONE_SURROGATE = re.compile('[\ud800-\udfff]')


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is not JSON')


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_INT_DIGITS:
        raise ValueError(f'a number has more than {_MAX_INT_DIGITS} digits')
    return int(digits)


_json = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_int=int if hasattr(sys, 'get_int_max_str_digits') else _bounded_int,
)
# The scanner behind JSONDecoder.decode, without its whitespace regular expressions: 1.0 µs a frame for 2.1 µs.
_scan_once = _json.scan_once  # type: ignore[attr-defined]

# Circular references end in RecursionError, which encode() translates: cheaper than the encoder's own bookkeeping.
_to_json = json.JSONEncoder(separators=(',', ':'), ensure_ascii=False, allow_nan=False, check_circular=False).encode


def _to_utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        # A lone surrogate is no Unicode text, but JavaScript strings hold them; JSON.stringify escapes them, and so
        # do we. In JSON text one can stand only inside a string, and never right behind an escaping backslash.
        return _LONE_SURROGATE.sub(lambda match: f'\\u{ord(match.group()):04x}', text).encode()


class Encoder:
    """Turns events into frames. One encoder may serve any number of threads and connections.

    >>> Encoder('\\f', 1024).encode('message', 'hello')
    b'{"type":"message","data":"hello"}\\x0c'
    """

    __slots__ = ('_limit', '_max_message_size', '_prefixes', '_suffix')

    def __init__(self, delimiter: str, max_message_size: int) -> None:
        self._suffix = '}' + delimiter
        self._max_message_size = max_message_size
        self._limit = max_message_size + len(delimiter.encode())
        self._prefixes: dict[str, str] = {}

    def encode(self, type: str, data: Any) -> bytes:
        """Return the frame of one event, delimiter included.

        Raises TypeError or ValueError, naming the event, if JSON cannot carry `data` (NaN, bytes, sets, circular
        references …) or `type` is not a non-empty string, and ProtocolError if the frame exceeds the limit.
        """
        try:
            prefix = self._prefixes[type]
        except (KeyError, TypeError):  # TypeError: not even hashable
            prefix = self._prefix(type)
        try:
            frame = _to_utf8(prefix + _to_json(data) + self._suffix)
        except RecursionError:
            raise ValueError(
                f'event {type!r}: the data refers to itself or is nested too deep for JSON; emit a flatter value'
            ) from None
        except (TypeError, ValueError) as error:
            raise (ValueError if isinstance(error, ValueError) else TypeError)(
                f'event {type!r}: JSON cannot carry the data ({error}); '
                'emit only None, bool, int, finite float, str, list, tuple and dict'
            ) from error
        if len(frame) > self._limit:
            raise ProtocolError(
                FRAME_TOO_LARGE,
                f'event {type!r}: the message has {len(frame)} bytes, more than max_message_size '
                f'({self._max_message_size}); split it, or raise config.max_message_size on both sides',
            )
        return frame

    def _prefix(self, type: str) -> str:
        if not isinstance(type, str):
            raise TypeError(f'an event type must be a str, not {type.__class__.__name__}: {type!r}')
        if not type:
            raise ValueError('an event type must not be empty')
        prefix = f'{{"type":{_to_json(type)},"data":'
        if len(self._prefixes) < _MAX_CACHED_PREFIXES:
            self._prefixes[type] = prefix
        return prefix


class Decoder:
    """Turns the chunks of one stream into events, in order. Belongs to one connection; not for several threads.

    >>> decoder = Decoder('\\f', 1024)
    >>> list(decoder.feed(b'{"type":"message","da'))
    []
    >>> list(decoder.feed(b'ta":"hello"}\\f{"type":"x"}\\f'))
    [('message', 'hello'), ('x', {})]
    """

    __slots__ = ('_delimiter', '_overlap', '_partial', 'max_message_size')

    def __init__(self, delimiter: str, max_message_size: int) -> None:
        self._delimiter = delimiter.encode()
        self._overlap = len(self._delimiter) - 1
        # The start of a frame whose end has not come. A bytearray grows in amortised constant time a byte, so a frame
        # is not copied again for each chunk, and a million one-byte chunks cost a million bytes.
        self._partial = bytearray()
        self.max_message_size = max_message_size

    @property
    def pending(self) -> int:
        """Bytes of the unfinished frame."""
        return len(self._partial)

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield the events that `chunk` completes, as ``(type, data)``.

        Raises ProtocolError at the first malformed frame, after the events before it; the stream cannot be continued
        then. The generator must be run to its end.
        """
        partial = self._partial
        if partial:
            start = len(partial) - self._overlap
            partial += chunk
            # Only the new bytes, and as much of the old as a delimiter cut in two may need, are searched.
            end = partial.find(self._delimiter, max(0, start))
            if end < 0:
                self._check_size(len(partial) - self._overlap)
                return
            self._check_size(end)
            chunk = bytes(partial[end + len(self._delimiter):])
            del partial[end:]
            self._partial = bytearray()
            yield _decode(partial)
        frames = chunk.split(self._delimiter)
        rest = frames.pop()
        for frame in frames:
            self._check_size(len(frame))
            yield _decode(frame)
        if rest:
            self._check_size(len(rest) - self._overlap)  # its end may be the start of a delimiter
            self._partial += rest

    def _check_size(self, size: int) -> None:
        if size > self.max_message_size:
            raise ProtocolError(
                FRAME_TOO_LARGE,
                f'a message is longer than max_message_size ({self.max_message_size} bytes); '
                'send less at once, or raise config.max_message_size on both sides',
            )


def _decode(frame: bytes | bytearray) -> Event:
    try:
        text = str(frame, 'utf-8')
        try:
            value, end = _scan_once(text, 0)
            if end != len(text):
                value = _json.decode(text)
        except StopIteration:
            value = _json.decode(text)  # white space around the object, or an error to explain
        type = value['type']
        if type.__class__ is not str:
            raise _refusal(value)
        return type, value.get('data', {})  # a new dict: it becomes the handler's
    except (KeyError, TypeError):
        raise _refusal(value) from None
    except RecursionError:
        raise ProtocolError(INVALID_JSON, f'a message is nested too deep: {_excerpt(frame)}') from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = 'is not UTF-8' if isinstance(error, UnicodeDecodeError) else f'is not JSON ({error})'
        raise ProtocolError(INVALID_JSON, f'a message {reason}: {_excerpt(frame)}') from None


def _refusal(value: Any) -> ProtocolError:
    if not isinstance(value, dict):
        return ProtocolError(INVALID_MESSAGE, f'a message must be a JSON object, not a {value.__class__.__name__}')
    return ProtocolError(INVALID_EVENT, 'a message must have a "type" that is a string')


def _excerpt(frame: bytes | bytearray) -> str:
    return repr(bytes(frame[:64])) + ('...' if len(frame) > 64 else '')
