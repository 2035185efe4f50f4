"""The wire format: events to bytes and bytes to events.

Parsers call it; it knows no socket, thread, clock or file, so that every limit and every malformed frame can be
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
from typing import Any, Callable, Iterable, Iterator, List, Optional, Protocol, Sequence, Tuple, Union

from .errors import ProtocolError

Event = Tuple[str, Any]

# What `emit` takes first: the type of an event, or in raw mode the bytes themselves.
Payload = Union[str, bytes, bytearray, memoryview, Sequence[int]]

# What `emit` sends where no data is given, and what a frame without data stands for. Never changed.
NO_DATA: Any = {}

INVALID_JSON = 'ERR_IPC_INVALID_JSON'
INVALID_MESSAGE = 'ERR_IPC_INVALID_MESSAGE'
INVALID_EVENT = 'ERR_IPC_INVALID_EVENT'
RESERVED_EVENT = 'ERR_IPC_RESERVED_EVENT'
EVENT_NOT_ALLOWED = 'ERR_IPC_EVENT_NOT_ALLOWED'
EVENT_TOO_LARGE = 'ERR_IPC_EVENT_TOO_LARGE'
FRAME_TOO_LARGE = 'ERR_IPC_FRAME_TOO_LARGE'
MESSAGE_TIMEOUT = 'ERR_IPC_MESSAGE_TIMEOUT'
BACKPRESSURE = 'ERR_IPC_BACKPRESSURE'

# What TLS begins with: a record of type handshake, or alert, and the major version, RFC 8446, 5.1. No JSON text begins so.
_TLS_RECORDS = (b'\x16\x03', b'\x15\x03')
_SPEAKS_TLS = 'the other end speaks TLS and this end does not; set config.tls on both sides, or on neither'

# Event names are few and repeat, so their encoded prefixes are kept; a program that makes names up as it goes, or answers
# by the names that its peers make up, must not grow the cache without bound.
_MAX_CACHED_PREFIXES = 512
_MAX_CACHED_CHARACTERS = 512

# Converting a decimal string to an int takes quadratic time. Newer interpreters refuse more digits than this by
# themselves (sys.get_int_max_str_digits); for the others we do.
_MAX_INT_DIGITS = 4300

# Strings from this size on are looked through, in blocks, for what has to be escaped. If there is nothing, that takes half
# of the time that the encoder does, or less; else the first block tells, most likely.
_LARGE = 8 << 10
_BLOCK = 16 << 10
_ESCAPED = bytes(range(0x20)) + b'"\\'

# Of JSON: between its tokens a text may contain it.
_WHITE_SPACE = ' \t\n\r'

_LONE_SURROGATE = '[\ud800-\udfff]'


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
        return re.sub(_LONE_SURROGATE, lambda match: f'\\u{ord(match.group()):04x}', text).encode()


def _plain(data: str) -> Optional[bytes]:
    """Return a string in UTF-8, if JSON needs to escape nothing in it: large data in Base64, for one."""
    try:
        text = data.encode()
    except UnicodeEncodeError:
        return None
    for start in range(0, len(text), _BLOCK):
        block = text[start:start + _BLOCK]
        if len(block.translate(None, _ESCAPED)) < len(block):
            return None
    return text


class EventDecoder(Protocol):
    """What a `Parser` decodes one stream with."""

    def feed(self, data: bytes) -> Iterable[Tuple[str, Any]]:
        """Return the events that `data` completes, in order, each as ``(type, data)``.

        Any chunking of a stream has to give the same events, so what is unfinished is kept, and bounded, by the decoder.
        Empty `data` is the end of the stream, once: return what is finished by it, or raise. Whatever is raised closes
        the connection, and is the ``error`` event there.
        """


class Parser(Protocol):
    """A wire format of your own, for ``config.parser``: an object, or a class that is called with the `Config`.

    Both ends of a connection need to speak the format. `encode` is called in the threads that emit, several at a time;
    decoders are called on the reactor thread, so they must not wait for anything. A datagram (UDP) is decoded on its own,
    as a short stream.

    A line of JSON for each event, ``[type, data]``:

    >>> import json
    >>> class Lines:
    ...     def encode(self, type, data):
    ...         return json.dumps([type, data]).encode() + b'\\n'
    ...     def decoder(self):
    ...         return LinesDecoder()
    >>> class LinesDecoder:
    ...     unfinished = b''
    ...     def feed(self, data):
    ...         *lines, self.unfinished = (self.unfinished + data).split(b'\\n')
    ...         if len(self.unfinished) > 65536:
    ...             raise ValueError('a line is too long')
    ...         return [json.loads(line) for line in lines]
    >>> from nodeipc import IPC
    >>> IPC(id='lines', parser=Lines()).config.parser.encode('message', 'hello')
    b'["message", "hello"]\\n'
    """

    def encode(self, type: str, data: Any) -> bytes:
        """Return the bytes of one event. What it raises, `emit` raises."""

    def decoder(self) -> EventDecoder:
        """Return what decodes one more stream; called for each connection."""


def check_name(type: str) -> None:
    """Raise ValueError for a name that no event can have."""
    if not type:
        raise ValueError('an event type must not be empty')


class Encoder:
    """Turns events into frames. One encoder may serve any number of threads and connections.

    `check` raises for names of events that shall not be emitted.

    >>> Encoder('\\f', 1024).encode('message', 'hello')
    b'{"type":"message","data":"hello"}\\x0c'
    """

    __slots__ = ('_check', '_limit', '_max_message_size', '_prefixes', '_suffix')

    def __init__(self, delimiter: str, max_message_size: int, check: Callable[[str], None] = check_name) -> None:
        self._check = check
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
            prefix = ''
        if not prefix:  # out here, or what it raises would seem to come of the KeyError
            prefix = self._prefix(type)
        try:
            plain = _plain(data) if data.__class__ is str and len(data) >= _LARGE else None
            if plain is not None:
                frame = b''.join((prefix.encode(), b'"', plain, b'"', self._suffix.encode()))
            else:
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
        self._check(type)
        prefix = f'{{"type":{_to_json(type)},"data":'
        if len(self._prefixes) < _MAX_CACHED_PREFIXES and len(prefix) <= _MAX_CACHED_CHARACTERS:
            self._prefixes[type] = prefix
        return prefix


class CheckingEncoder(Encoder):
    """An encoder for a delimiter that JSON text may contain, which would split a message in two on the other side.

    >>> CheckingEncoder(' ', 1024).encode('message', 'hello')
    b'{"type":"message","data":"hello"} '
    """

    __slots__ = ('_delimiter',)

    def __init__(self, delimiter: str, max_message_size: int, check: Callable[[str], None] = check_name) -> None:
        super().__init__(delimiter, max_message_size, check)
        self._delimiter = delimiter.encode()

    def encode(self, type: str, data: Any) -> bytes:
        """As `Encoder.encode`; raises ValueError, too, if the delimiter comes before the end of the frame."""
        frame = super().encode(type, data)
        if frame.find(self._delimiter) != len(frame) - len(self._delimiter):
            raise ValueError(
                f'event {type!r}: its JSON contains the delimiter {self._delimiter.decode()!r}, which would end the message '
                "there; use a config.delimiter that JSON text cannot contain, on both sides: '\\f', '\\n'"
            )
        return frame


def encoder(delimiter: str, max_message_size: int, check: Callable[[str], None] = check_name) -> Encoder:
    """Return the encoder for a delimiter. JSON text has no control characters, so one in the delimiter makes it safe."""
    safe = any(character < ' ' for character in delimiter)
    return (Encoder if safe else CheckingEncoder)(delimiter, max_message_size, check)


def decode(frame: bytes | bytearray) -> Event:
    """Return the event of a frame, which comes without its delimiter. Raises ProtocolError."""
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
        if frame.startswith(_TLS_RECORDS):
            raise ProtocolError(INVALID_JSON, _SPEAKS_TLS) from None
        reason = 'is not UTF-8' if isinstance(error, UnicodeDecodeError) else f'is not JSON ({error})'
        raise ProtocolError(INVALID_JSON, f'a message {reason}: {_excerpt(frame)}') from None


_decode = decode


class Decoder:
    """Turns the chunks of one stream into events, in order. Belongs to one connection; not for several threads.

    `decode` is what a frame is decoded with.

    >>> decoder = Decoder('\\f', 1024)
    >>> list(decoder.feed(b'{"type":"message","da'))
    []
    >>> list(decoder.feed(b'ta":"hello"}\\f{"type":"x"}\\f'))
    [('message', 'hello'), ('x', {})]
    """

    __slots__ = ('_character', '_decode', '_delimiter', '_overlap', '_partial', 'max_message_size')

    def __init__(
        self, delimiter: str, max_message_size: int, decode: Callable[[bytes | bytearray], Event] = decode
    ) -> None:
        self._decode = decode
        self._delimiter = delimiter.encode()
        self._overlap = len(self._delimiter) - 1
        # The delimiter, if a text of several frames can be scanned as it is: one character, and no text of JSON, which knows
        # no control characters but white space, can contain it.
        one = len(delimiter) == 1 and delimiter < ' ' and delimiter not in _WHITE_SPACE
        self._character = delimiter if one and decode is _decode else ''
        # The start of a frame whose end has not come. A bytearray grows in amortised constant time a byte, so a frame
        # is not copied again for each chunk, and a million one-byte chunks cost a million bytes.
        self._partial = bytearray()
        self.max_message_size = max_message_size

    @property
    def is_inside_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._partial)

    def feed(self, chunk: bytes) -> Iterable[Event]:
        """Return the events that `chunk` completes, as ``(type, data)``. An empty chunk is the end of the stream.

        Raises ProtocolError at the first malformed frame, after the events before it, and at an end inside a frame; the
        stream cannot be continued then. What is returned must be iterated to its end.
        """
        if self._character and chunk and not self._partial:
            events = self._scan(chunk)
            if events is not None:
                return events
        return self._split(chunk)

    def _scan(self, chunk: bytes) -> Optional[List[Event]]:
        """Return the events of `chunk`, which begins with a frame; or None, if it has no end, or something is wrong.

        So the text is made once, and no frame is copied: 0.7 µs for 1.1 if there is one, 0.45 each for 0.65 if many.
        """
        end = chunk.rfind(self._delimiter) + 1
        rest = chunk[end:]
        if not end or max(end, len(rest)) > self.max_message_size or rest.startswith(_TLS_RECORDS):
            return None
        character = self._character
        events: List[Event] = []
        position = 0
        try:
            text = str(chunk[:end], 'utf-8')
            length = len(text)
            while position < length:
                value, position = _scan_once(text, position)
                if text[position] != character:
                    return None
                position += 1
                type = value['type']
                if type.__class__ is not str:
                    return None
                events.append((type, value.get('data', {})))  # a new dict: it becomes the handler's
        except (LookupError, TypeError, ValueError, RecursionError, StopIteration, MemoryError):
            return None  # _split() knows why, and of which frame
        self._partial += rest
        return events

    def _split(self, chunk: bytes) -> Iterator[Event]:
        partial = self._partial
        if partial:
            if not chunk:
                raise ProtocolError(INVALID_MESSAGE, f'the input ended inside a message, after {len(partial)} bytes of it')
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
            yield self._decode(partial)
            if chunk:
                yield from self.feed(chunk)
            return
        frames = chunk.split(self._delimiter)
        rest = frames.pop()
        for frame in frames:
            self._check_size(len(frame))
            yield self._decode(frame)
        if rest:
            if rest.startswith(_TLS_RECORDS):
                raise ProtocolError(INVALID_JSON, _SPEAKS_TLS)
            self._check_size(len(rest) - self._overlap)  # its end may be the start of a delimiter
            self._partial += rest

    def _check_size(self, size: int) -> None:
        if size > self.max_message_size:
            raise ProtocolError(
                FRAME_TOO_LARGE,
                f'a message is longer than max_message_size ({self.max_message_size} bytes); '
                'send less at once, or raise config.max_message_size on both sides',
            )


def _refusal(value: Any) -> ProtocolError:
    if not isinstance(value, dict):
        return ProtocolError(INVALID_MESSAGE, f'a message must be a JSON object, not a {value.__class__.__name__}')
    return ProtocolError(INVALID_EVENT, 'a message must have a "type" that is a string')


def _excerpt(frame: bytes | bytearray) -> str:
    return repr(bytes(frame[:64])) + ('...' if len(frame) > 64 else '')
