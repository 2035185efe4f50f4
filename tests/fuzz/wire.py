"""The wire layer against the reference: every stream in many chunkings, every datagram, every event that is encoded.

Where they differ, what was fed is made as small as possible, and a `Defect` says it.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

from nodeipc import Config, ProtocolError
from nodeipc.parsers import Codec, make_parser
from nodeipc.wire import NO_DATA

from . import shrink
from .corpus import DELIMITERS, Material, choose, random_text
from .reference import Events, Settings, Verdict, as_received, encoded, fingerprint, judge, refused_name
from .shrink import Defect

PROFILES = ('fast', 'guarded', 'assured', 'raw')

_LIMITS = (None, None, None, None, 40, 64, 100, 256, 1000)
_LENGTHS = (256, 256, 256, None, 1, 5, 20)
_ALLOWED = (
    ('message', 'x', 'app.message', 'news', '☃', '😀'),
    ('x',),
    ('message', 'x', 'connect', 'error', 'toString', '__proto__', 'stop', 'n' * 257, '\ud800', ' ', '*'),
)

# Streams up to this many bytes are cut at every place, and the shortest at every two; of longer ones, so many that all cost
# the same.
_EVERY_CUT = 48
_EVERY_TWO_CUTS = 30
# Longer streams are not fed byte by byte.
_EVERY_BYTE = 4000

Outcome = Tuple[Events, Optional[str]]


class Tally:
    """What was done in one profile."""

    def __init__(self) -> None:
        self.streams = 0
        self.frames = 0
        self.chunkings = 0
        self.datagrams = 0
        self.encoded = 0
        self.refused: Counter[str] = Counter()


def settings_of(profile: str, rng: Random) -> List[Settings]:
    """Return what a profile is tried with: each delimiter, and the default often."""
    made = []
    for delimiter in DELIMITERS + ('\f',) * 8 + ('\n', '\r\n') * 2:
        if profile in ('raw', 'fast'):
            made.append(Settings(profile, delimiter, choose(rng, _LIMITS)))
        else:
            made.append(
                Settings(
                    profile,
                    delimiter,
                    choose(rng, _LIMITS),
                    choose(rng, _LENGTHS),
                    rng.random() < 0.3,
                    choose(rng, _ALLOWED) if profile == 'assured' else None,
                )
            )
    return made


def decoded(codec: Codec, chunks: Sequence[bytes], most: Optional[int] = None) -> Outcome:
    """Feed chunks and the end; return the events, and the code of the refusal if there is one.

    Anything else that is raised is a code, too, of its own. With `most`, what is buffered is looked at after each chunk.
    """
    events: Events = []
    try:
        decoder: Any = codec.decoder()
        feed = decoder.feed
        if most is None:
            for chunk in chunks:
                events.extend(feed(chunk))
        else:
            for chunk in chunks:
                events.extend(feed(chunk))
                if len(decoder._partial) > most:
                    return events, f'{len(decoder._partial)} bytes are buffered, {most} may be'
        events.extend(feed(b''))
    except ProtocolError as error:
        if most is not None and len(decoder._partial) > most + len(chunk):
            return events, f'{len(decoder._partial)} bytes are buffered, {most} and a chunk of {len(chunk)} may be'
        return events, error.code
    except Exception as error:
        return events, f'{error.__class__.__name__}: {error}'
    return events, None


class Checker:
    """Runs one profile with one seed."""

    def __init__(self, profile: str, seed: Any) -> None:
        self.profile = profile
        self.tally = Tally()
        self.seed = seed
        self._rng = rng = Random(f'{seed}/{profile}')
        self._benches = [
            (Material(settings, rng), make_parser(Config(**settings._asdict()))) for settings in settings_of(profile, rng)
        ]

    def step(self) -> Optional[Defect]:
        """Make one stream, or sometimes an event to encode, and check it."""
        rng = self._rng
        material, codec = choose(rng, self._benches)
        if self.profile == 'raw':
            return self._check_raw(material, codec)
        if rng.random() < 0.2:
            name, data = material.event()
            return self._check_event(material.settings, codec, name, data)
        return self._check_stream(material.settings, codec, material.stream())

    # Streams

    def _check_stream(self, settings: Settings, codec: Codec, stream: bytes) -> Optional[Defect]:
        tally = self.tally
        verdict = judge(stream, settings)
        tally.streams += 1
        tally.frames += verdict.frames
        wanted = fingerprint(verdict.events)
        codes = verdict.codes
        most = settings.limit + len(settings.delimiter.encode()) - 1
        events, code = decoded(codec, (stream,), most)
        if code is not None:
            tally.refused[code] += 1
        if code not in codes or _print(events) != wanted:
            return self._stream_defect(settings, [stream])
        count = 1
        for chunks in self._chunkings(stream, settings.delimiter.encode()):
            count += 1
            events, code = decoded(codec, chunks, most)
            if code not in codes or _print(events) != wanted:
                return self._stream_defect(settings, list(chunks))
        tally.chunkings += count
        if self._rng.random() < 0.3:
            tally.datagrams += 1
            return self._check_datagram(settings, codec, stream, verdict)
        return None

    def _chunkings(self, stream: bytes, delimiter: bytes) -> Iterator[Sequence[bytes]]:
        rng = self._rng
        random = rng.random
        size = len(stream)
        if size <= _EVERY_BYTE and (size <= 300 or random() < 300 / size):
            yield [stream[i : i + 1] for i in range(size)]
        if size <= _EVERY_CUT or random() < (_EVERY_CUT / size) ** 2:
            for cut in range(1, size):
                yield stream[:cut], stream[cut:]
        if size <= _EVERY_TWO_CUTS and random() < 0.1:
            for first in range(1, size):
                for second in range(first + 1, size):
                    yield stream[:first], stream[first:second], stream[second:]
        # Cuts at random, and about the ends of frames, where they are most likely to matter.
        for _ in range(3):
            cuts = {int(random() * size) for _ in range(int(random() * 6))}
            at = stream.find(delimiter)
            while at >= 0 and len(cuts) < 100:
                if random() < 0.5:
                    cuts.add(at + int(random() * (len(delimiter) + 3)) - 1)
                at = stream.find(delimiter, at + len(delimiter))
            places = sorted(cut for cut in cuts if 0 < cut < size)
            yield [stream[start:end] for start, end in zip([0, *places], [*places, size])]

    def _stream_defect(self, settings: Settings, chunks: List[bytes]) -> Defect:
        """Make the chunks as few and small as possible. What is right is judged again for each that is tried."""
        most = settings.limit + len(settings.delimiter.encode()) - 1

        def fails(parts: Sequence[bytes]) -> bool:
            parts = [part for part in parts if part]
            verdict = judge(b''.join(parts), settings)
            events, code = decoded(make_parser(Config(**settings._asdict())), parts, most)
            return code not in verdict.codes or _print(events) != fingerprint(verdict.events)

        if not fails(chunks):
            return Defect('a decoder made anew does not do it again: decoders share something', repr((settings, chunks)))
        chunks = shrink.chunks(chunks, fails)
        verdict = judge(b''.join(chunks), settings)
        events, code = decoded(make_parser(Config(**settings._asdict())), chunks, most)
        what = f'got {shrink.excerpt(events)} and {code}, expected {shrink.excerpt(verdict.events)} and {_either(verdict)}'
        is_buffered = 'buffered' in str(code)
        return Defect(what, shrink.stream_test(self.seed, settings, chunks, verdict, most if is_buffered else None))

    # Datagrams

    def _check_datagram(self, settings: Settings, codec: Codec, datagram: bytes, verdict: Verdict) -> Optional[Defect]:
        if self._datagram_is_right(codec, datagram, verdict):
            return None

        def fails(parts: Sequence[bytes]) -> bool:
            whole = b''.join(parts)
            return not self._datagram_is_right(codec, whole, judge(whole, settings))

        datagram = b''.join(shrink.chunks([datagram], fails))
        return Defect(
            f'the datagram {datagram!r} is not decoded as the reference says',
            shrink.datagram_test(self.seed, settings, datagram, judge(datagram, settings)),
        )

    @staticmethod
    def _datagram_is_right(codec: Codec, datagram: bytes, verdict: Verdict) -> bool:
        try:
            events = codec.decode_datagram(datagram)
        except ProtocolError as error:
            return error.code in verdict.codes
        except Exception:
            return False
        return None in verdict.codes and _print(events) == fingerprint(verdict.events)

    # Encoding

    def _check_event(self, settings: Settings, codec: Codec, name: Any, data: Any) -> Optional[Defect]:
        tally = self.tally
        tally.encoded += 1
        wanted = encoded(name, data, settings)
        if encode(codec, name, data) != wanted:
            def fails(event: Tuple[Any, Any]) -> bool:
                return bool(encode(codec, *event) != encoded(*event, settings))

            name, data = shrink.event(name, data, fails)
            wanted = encoded(name, data, settings)
            what = f'encoding {name!r} and {shrink.excerpt(data)} gives {encode(codec, name, data)!r}, expected {wanted!r}'
            return Defect(what, shrink.event_test(self.seed, settings, name, data, wanted))
        if isinstance(wanted, bytes):
            # What one end accepts the other does, and gets the same value.
            verdict = judge(wanted, settings)
            received = (as_received(name), as_received(data))
            if None not in verdict.codes or fingerprint(verdict.events) != fingerprint([received]):
                what = f'{name!r} and {shrink.excerpt(data)} can be encoded, and are {verdict} at the other end'
                return Defect(what, shrink.event_test(self.seed, settings, name, data, 'to be refused'))
            return self._check_stream(settings, codec, wanted)
        if isinstance(name, str) and refused_name(name, settings) == wanted:
            # The name that may not be emitted is refused with the same code when somebody emits it nevertheless.
            frame = encoded(name, None, Settings('fast', settings.delimiter))
            if isinstance(frame, bytes):
                return self._check_stream(settings, codec, frame)
        return None

    # Raw mode

    def _check_raw(self, material: Material, codec: Codec) -> Optional[Defect]:
        tally = self.tally
        stream = material.stream()
        tally.streams += 1
        tally.frames += 1  # it has none
        for chunks in self._chunkings(stream, material.delimiter):
            tally.chunkings += 1
            wanted = [('data', bytes(chunk)) for chunk in chunks if chunk]
            if decoded(codec, [chunk for chunk in chunks if chunk]) != (wanted, None):
                return Defect('raw mode does not give the bytes as they came', repr(chunks))
        tally.datagrams += 1
        if codec.decode_datagram(stream) != [('data', stream)]:
            return Defect('raw mode does not give a datagram as it came', repr(stream))
        return self._check_raw_payload(codec, stream)

    def _check_raw_payload(self, codec: Codec, stream: bytes) -> Optional[Defect]:
        self.tally.encoded += 1
        text = random_text(self._rng)
        make: Callable[[], Any] = choose(
            self._rng,
            (
                lambda: (stream, stream),
                lambda: (bytearray(stream), stream),
                lambda: (memoryview(stream), stream),
                lambda: (list(stream), stream),
                lambda: (tuple(stream), stream),
                lambda: (text, _utf8(text)),
                lambda: ([300], 'ValueError'),
                lambda: ([-1], 'ValueError'),
                lambda: (['x'], 'TypeError'),
                lambda: (choose(self._rng, (None, 5, 1.5, {}, {'a': 1}, {1}, ...)), 'TypeError'),
            ),
        )
        payload, wanted = make()
        got = encode(codec, payload, None, raw=True)
        if got != wanted:
            return Defect(f'raw mode encodes {payload!r} as {got!r}, expected {wanted!r}', repr(payload))
        return None


def encode(codec: Codec, name: Any, data: Any, raw: bool = False) -> Any:
    """Return what encoding gives: bytes, or the code or the class name of the exception."""
    try:
        if raw:
            return codec.encode(name, NO_DATA)
        return codec.encode(name, data)
    except ProtocolError as error:
        return error.code
    except Exception as error:
        return error.__class__.__name__


def _utf8(text: str) -> Any:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return 'ValueError'


def _print(events: Any) -> bytes:
    try:
        return fingerprint(events)
    except ValueError:  # not of the types that JSON has
        return b'?'


def _either(verdict: Verdict) -> str:
    return ' or '.join(sorted(map(str, verdict.codes)))
