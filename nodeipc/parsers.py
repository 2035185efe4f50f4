"""Parsers: what turns events into bytes and bytes into events, chosen by ``config.parser`` when an endpoint is made.

Endpoints call `make_parser` once; connections and datagram sockets decode with what it returns. A `Parser` of the
application's own is checked where it meets ours, so that a slip in it is reported as a peer's would be. Like the wire, a
parser knows no socket, thread, clock or file.
"""

from __future__ import annotations

import traceback
from typing import Any, Callable, Iterable, Iterator, List, Optional, Tuple

from .config import Config, seconds
from .errors import ConfigError, ProtocolError
from .profiles import Rules
from .textcode import text_encoder
from .wire import INVALID_MESSAGE, NO_DATA, Decoder, Event, EventDecoder, Parser, check_name, decode, encoder

# JSON in one process needs no more; what is larger is a file. `fast` in node-ipc 14 has no limit at all, and a peer
# could fill the memory; that of `guarded` is node-ipc's.
_FAST_MAX_MESSAGE_SIZE = 64 << 20
_GUARDED_MAX_MESSAGE_SIZE = 1 << 20


class Codec:
    """A parser as endpoints use it: of streams and of datagrams."""

    __slots__ = ('encode',)

    #: Whether only endpoints that are protected as the profile `assured` demands may use it.
    is_assured = False

    #: Whether there are bytes, and no events.
    is_raw = False

    #: Whether a peer that takes nothing for the stall timeout, while an emit waits for room, is cut off.
    cuts_stalled = False

    #: Seconds from the first byte of a message to its last that a stream is given.
    message_timeout: Optional[float] = None

    #: Returns the bytes of an event, or raises what `emit` shall raise.
    encode: Callable[[Any, Any], bytes]

    def decoder(self) -> EventDecoder:
        """Return what decodes one more stream. Its `feed` raises ProtocolError for what it refuses."""
        raise NotImplementedError

    def decode_datagram(self, datagram: bytes) -> List[Event]:
        """Return the events of a datagram, whole. Raises ProtocolError if there is anything else in it."""
        feed = self.decoder().feed
        events = list(feed(datagram))
        events.extend(feed(b''))
        return events


class _Fast(Codec):
    """JSON and a delimiter, node-ipc's format."""

    __slots__ = ('_datagrams', '_decode', '_delimiter', '_max_message_size')

    def __init__(
        self,
        config: Config,
        max_message_size: int = _FAST_MAX_MESSAGE_SIZE,
        check: Callable[[str], None] = check_name,
        decode: Callable[[Any], Event] = decode,
    ) -> None:
        self._delimiter = config.delimiter
        self._max_message_size = config.max_message_size or max_message_size
        self._decode = decode
        self.encode = encoder(self._delimiter, self._max_message_size, check).encode
        self._datagrams = self.decoder()  # decodes one after the other, as long as none is refused

    def decoder(self) -> Decoder:
        return Decoder(self._delimiter, self._max_message_size, self._decode)

    def decode_datagram(self, datagram: bytes) -> List[Event]:
        decoder = self._datagrams
        try:
            events = list(decoder.feed(datagram))
            if decoder.is_inside_frame:
                events.extend(decoder.feed(b''))  # raises
        except BaseException:
            self._datagrams = self.decoder()
            raise
        return events


class _Guarded(_Fast):
    """The same with the rules of a profile."""

    __slots__ = ('is_assured', 'message_timeout')

    cuts_stalled = True

    def __init__(self, config: Config) -> None:
        self.is_assured = config.parser == 'assured'
        rules = Rules(config)
        super().__init__(config, _GUARDED_MAX_MESSAGE_SIZE, rules.check, rules.decode)
        self.message_timeout = seconds(config.message_timeout or None)


class _Raw(Codec):
    """Bytes as they are: whatever arrives is a ``data`` event."""

    __slots__ = ('_encoding', '_to_bytes')

    is_raw = True

    def __init__(self, config: Config) -> None:
        to_bytes = text_encoder(config.encoding)
        assert to_bytes is not None  # Config has checked it
        self._encoding = config.encoding
        self._to_bytes = to_bytes
        self.encode = self._encode

    def _encode(self, payload: Any, data: Any) -> bytes:
        if data is not NO_DATA:
            raise TypeError('raw mode sends bytes and no events: emit(payload), without a type')
        if isinstance(payload, str):
            try:
                return self._to_bytes(payload)
            except ValueError as error:
                raise ValueError(f'config.encoding {self._encoding!r} cannot carry {_excerpt(payload)}: {error}') from error
        try:
            if isinstance(payload, (list, tuple)):
                return bytes(payload)
            return bytes(memoryview(payload))  # a copy, because it may wait to be written
        except (TypeError, ValueError) as error:
            raise (ValueError if isinstance(error, ValueError) else TypeError)(
                'raw mode emits a bytes-like object, a str (in config.encoding) or a list of ints from 0 to 255, not '
                f'{_excerpt(payload)} ({error})'
            ) from None

    def decoder(self) -> _RawDecoder:
        return _RawDecoder()

    def decode_datagram(self, datagram: bytes) -> List[Event]:
        return [('data', datagram)]  # an empty one, too


class _RawDecoder:
    __slots__ = ()

    def feed(self, data: bytes) -> Tuple[Event, ...]:
        return (('data', data),) if data else ()


class _Custom(Codec):
    """A parser of the application's own, which may do anything."""

    __slots__ = ('_parser',)

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self.encode = self._encode

    def _encode(self, type: Any, data: Any) -> bytes:
        if not isinstance(type, str):
            raise TypeError(f'an event type must be a str, not {type.__class__.__name__}: {type!r}')
        frame = self._parser.encode(type, data)
        if not isinstance(frame, (bytes, bytearray)):
            raise TypeError(f'encode of {_name(self._parser)} must return bytes, not {_excerpt(frame)}')
        return bytes(frame)

    def decoder(self) -> _CustomDecoder:
        return _CustomDecoder(self._parser)


class _CustomDecoder:
    __slots__ = ('_feed', '_parser')

    def __init__(self, parser: Parser) -> None:
        self._parser = parser
        self._feed: Optional[Callable[[bytes], Iterable[Any]]] = None

    def feed(self, data: bytes) -> Iterator[Event]:
        try:
            if self._feed is None:
                self._feed = self._parser.decoder().feed
            for type, value in self._feed(data):
                if not isinstance(type, str):
                    raise TypeError(f'an event type must be a str, not {_excerpt(type)}')
                yield str.__str__(type), value  # exactly a str, also of a member of an Enum
        except (MemoryError, GeneratorExit):
            raise
        except BaseException as error:  # SystemExit, too, which would end the reactor thread
            code, why = INVALID_MESSAGE, ''.join(traceback.format_exception_only(error.__class__, error)).strip()
            if isinstance(error, ProtocolError):
                code, why = getattr(error, 'code', code), error.args[0] if error.args else why
            raise ProtocolError(code, f'{_name(self._parser)} refused what came, or failed: {why}') from error


def make_parser(config: Config) -> Codec:
    """Return the parser that the settings ask for. A class is called, with `config` if it takes an argument."""
    chosen: Any = config.parser
    if config.raw_buffer and chosen == 'assured':
        raise ConfigError("raw_buffer=True has no events, so parser='assured' would protect nothing; choose one of the two")
    if config.raw_buffer or chosen == 'raw':
        return _Raw(config)
    if isinstance(chosen, str):
        return (_Fast if chosen == 'fast' else _Guarded)(config)
    if isinstance(chosen, type):
        return _Custom(chosen(config) if _takes_config(chosen) else chosen())
    return _Custom(chosen)


def _takes_config(parser: type) -> bool:
    """Whether the first argument is needed, or is called so."""
    import inspect  # 10 ms to import, and only classes need it

    for parameter in inspect.signature(parser).parameters.values():
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        return positional and (parameter.default is parameter.empty or parameter.name == 'config')
    return False


def _name(parser: Parser) -> str:
    return f'the config.parser {parser.__class__.__name__}'


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + '...'
