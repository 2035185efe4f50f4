"""The wire layer, without a socket: bytes in, events out; events in, bytes out."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any, List, Tuple

import pytest

from nodeipc.errors import ProtocolError
from nodeipc.wire import NO_DATA, Decoder, Encoder

MIB = 1 << 20
FRAME = b'{"type":"message","data":"hello"}'


def encode(type: Any, data: Any = NO_DATA, delimiter: str = '\f', limit: int = MIB) -> bytes:
    return Encoder(delimiter, limit).encode(type, data)


def feed(*chunks: bytes, delimiter: str = '\f', limit: int = MIB) -> List[Tuple[str, Any]]:
    decoder = Decoder(delimiter, limit)
    return [event for chunk in chunks if chunk for event in decoder.feed(chunk)]


def violation(*chunks: bytes, limit: int = MIB) -> Tuple[str, List[Tuple[str, Any]]]:
    """The code of the error that feeding raises, and the events before it."""
    decoder = Decoder('\f', limit)
    events: List[Tuple[str, Any]] = []
    with pytest.raises(ProtocolError) as caught:
        for chunk in chunks:
            events.extend(decoder.feed(chunk))
    return caught.value.code, events


VECTORS = Path(__file__).parent / 'wire_vectors.json'


def vectors() -> List[Any]:
    rows = json.loads(VECTORS.read_text('utf-8')) if VECTORS.exists() else []
    return rows['rows'] if isinstance(rows, dict) else rows


@pytest.mark.parametrize('row', vectors(), ids=lambda row: ascii(row['data'])[:40])
def test_events_are_written_and_read_as_node_ipc_does(row: Any) -> None:
    data = row['data']
    if isinstance(data, dict):
        data = {} if '$undefined' in data else data.get('$date', data)
    expected = bytes.fromhex(row['node-ipc 14.0.0'])
    written = encode(row['type'], data)
    if isinstance(data, float):  # the digits of a float are Python's (1e-07) and JavaScript's (1e-7): the same number
        assert json.loads(written[:-1]) == json.loads(expected[:-1])
    else:
        assert written == expected
    assert feed(expected) == [(row['type'], data)]


def test_no_data_is_an_empty_object() -> None:
    assert encode('x') == b'{"type":"x","data":{}}\f'
    assert feed(b'{"type":"x"}\f') == [('x', {})]
    assert encode('x', None) == b'{"type":"x","data":null}\f'
    assert feed(b'{"type":"x","data":null}\f') == [('x', None)]


def test_data_of_two_frames_without_any_is_not_shared() -> None:
    first, second = feed(b'{"type":"x"}\f{"type":"x"}\f')
    first[1]['mine'] = 1
    assert second[1] == {}


def test_other_members_and_white_space_are_ignored() -> None:
    assert feed(b' {"id":3, "data": [1] ,"type":"x","extra":{}}\r\n\f') == [('x', [1])]


@pytest.mark.parametrize(
    ('data', 'error'),
    [
        (math.nan, ValueError),
        ([1, math.inf], ValueError),
        (b'bytes', TypeError),
        ({1, 2}, TypeError),
        (object(), TypeError),
        ({(1, 2): 3}, TypeError),
        ({math.nan: 1}, ValueError),
    ],
    ids=repr,
)
def test_data_that_json_cannot_carry_is_refused_by_name(data: Any, error: type) -> None:
    with pytest.raises(error, match=r"event 'reading': JSON cannot carry"):
        encode('reading', data)


def test_circular_and_too_deep_data_are_value_errors() -> None:
    circular: List[Any] = []
    circular.append(circular)
    with pytest.raises(ValueError, match="event 'x'"):
        encode('x', circular)
    deep: Any = 1
    for _ in range(200_000):
        deep = [deep]
    try:
        with pytest.raises(ValueError, match='nested too deep'):
            encode('x', deep)
    finally:
        while isinstance(deep, list):  # or its destructor would recurse
            deep = deep.pop()
    assert encode('x', 1) == b'{"type":"x","data":1}\f'


@pytest.mark.parametrize('size', [8191, 8192, 16384, 40_000])
@pytest.mark.parametrize(
    'found', ['', '"', '\\', '\n', '\x1f', '\x00', '\x7f', '\u2028', 'ä', '\N{GRINNING FACE}', '\ud800'], ids=ascii
)
def test_a_large_string_is_encoded_as_a_small_one(size: int, found: str) -> None:
    """Those that need no escaping go another way, and where the first block ends is as good as everywhere."""
    for position in (0, 8190, size - 1):
        data = 'x' * position + found + 'x' * (size - position - len(found))
        parts = (data[:position], found, data[position + len(found):])
        assert encode('x', data) == b'{"type":"x","data":"%s"}\f' % b''.join(encode('x', part)[20:-3] for part in parts)
        assert json.loads(encode('x', data)[:-1])['data'] == data


@pytest.mark.parametrize('type', [None, 5, b'x', ['x'], {'a': 1}], ids=repr)
def test_an_event_type_is_a_string(type: Any) -> None:
    with pytest.raises(TypeError, match='event type must be a str'):
        encode(type)


def test_an_event_type_is_not_empty() -> None:
    with pytest.raises(ValueError, match='must not be empty'):
        encode('')


def test_a_message_over_the_limit_is_not_emitted() -> None:
    overhead = len(encode('x', '')) - 1
    assert encode('x', 'y' * (100 - overhead), limit=100)
    with pytest.raises(ProtocolError, match='max_message_size') as caught:
        encode('x', 'y' * (101 - overhead), limit=100)
    assert caught.value.code == 'ERR_IPC_FRAME_TOO_LARGE'


def test_made_up_event_names_do_not_grow_the_encoder() -> None:
    encoder = Encoder('\f', MIB)
    for number in range(5000):
        encoder.encode(f'event-{number}', 1)
    assert len(encoder._prefixes) < 1000


@pytest.mark.parametrize(
    ('frame', 'code'),
    [
        (b'', 'ERR_IPC_INVALID_JSON'),
        (b'hello', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":', 'ERR_IPC_INVALID_JSON'),
        (FRAME + b'x', 'ERR_IPC_INVALID_JSON'),
        (FRAME + FRAME, 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":NaN}', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":[-Infinity]}', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":"\xff"}', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":"\xed\xa0\x80"}', 'ERR_IPC_INVALID_JSON'),
        (b'\xef\xbb\xbf' + FRAME, 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":"\n"}', 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":' + b'1' * 5000 + b'}', 'ERR_IPC_INVALID_JSON'),
        (b'[' * 500_000, 'ERR_IPC_INVALID_JSON'),
        (b'{"type":"x","data":' + b'[' * 500_000 + b']' * 500_000 + b'}', 'ERR_IPC_INVALID_JSON'),
        (b'[]', 'ERR_IPC_INVALID_MESSAGE'),
        (b'["type"]', 'ERR_IPC_INVALID_MESSAGE'),
        (b'null', 'ERR_IPC_INVALID_MESSAGE'),
        (b'"type"', 'ERR_IPC_INVALID_MESSAGE'),
        (b'5', 'ERR_IPC_INVALID_MESSAGE'),
        (b'{}', 'ERR_IPC_INVALID_EVENT'),
        (b'{"type":5}', 'ERR_IPC_INVALID_EVENT'),
        (b'{"type":null,"data":1}', 'ERR_IPC_INVALID_EVENT'),
        (b'{"type":["x"]}', 'ERR_IPC_INVALID_EVENT'),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_malformed_frame_is_refused_after_the_good_ones(frame: bytes, code: str) -> None:
    assert violation(FRAME + b'\f' + frame + b'\f' + FRAME + b'\f') == (code, [('message', 'hello')])
    assert violation(FRAME + b'\f' + frame[:1], frame[1:] + b'\f') == (code, [('message', 'hello')])


def test_a_frame_over_the_limit_is_refused_as_soon_as_it_shows() -> None:
    frame = b'{"type":"x","data":"' + b'y' * 200 + b'"}'
    assert feed(frame + b'\f', limit=len(frame)) == [('x', 'y' * 200)]
    assert violation(frame + b'\f', limit=len(frame) - 1) == ('ERR_IPC_FRAME_TOO_LARGE', [])
    assert violation(frame[:150], frame[150:] + b'\f', limit=len(frame) - 1) == ('ERR_IPC_FRAME_TOO_LARGE', [])
    assert violation(b'y' * 101, limit=100) == ('ERR_IPC_FRAME_TOO_LARGE', [])
    assert violation(*[b'y'] * 101, limit=100) == ('ERR_IPC_FRAME_TOO_LARGE', [])


def events_of_every_kind() -> List[Tuple[str, Any]]:
    return [
        ('message', 'hello'),
        ('text', 'snowman ☃ emoji \U0001f600 form\ffeed "quoted" \\ \u2028 \ud800'),
        ('ünï', {'nested': [1, 2.5, None, True, {'a': {}}]}),
        ('empty', ''),
        ('long', 'x' * 3000),
    ]


@pytest.mark.parametrize('delimiter', ['\f', '\n', '\r\n', 'ab', 'aba', '☃', '\f\f\f'])
def test_any_chunking_gives_the_same_events(delimiter: str) -> None:
    events = [event for event in events_of_every_kind() if delimiter not in json.dumps(event, ensure_ascii=False)]
    stream = b''.join(encode(type, data, delimiter) for type, data in events)
    assert feed(stream, delimiter=delimiter) == events
    assert feed(*[stream[i : i + 1] for i in range(len(stream))], delimiter=delimiter) == events
    for cut in range(len(stream)):
        assert feed(stream[:cut], stream[cut:], delimiter=delimiter) == events
    rng = random.Random(7)
    for _ in range(200):
        cuts = sorted(rng.randrange(len(stream)) for _ in range(rng.randrange(12)))
        chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)])]
        assert feed(*chunks, delimiter=delimiter) == events


def test_a_delimiter_that_occurs_in_the_data_splits_where_node_ipc_splits() -> None:
    decoder = Decoder('a', MIB)
    with pytest.raises(ProtocolError):
        list(decoder.feed(b'{"type":"x","dat'))


def test_a_frame_at_the_limit_may_come_with_its_delimiter_cut_in_two() -> None:
    assert feed(FRAME + b'\r', b'\n', delimiter='\r\n', limit=len(FRAME)) == feed(FRAME + b'\f')


def test_what_is_buffered_is_what_was_received() -> None:
    """One-byte chunks cost about a byte each, not an object each."""
    decoder = Decoder('\f', 64 * MIB)
    tracemalloc = pytest.importorskip('tracemalloc')  # not on PyPy
    tracemalloc.start()
    try:
        for _ in range(50_000):
            list(decoder.feed(b'y'))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(decoder._partial) == 50_000
    assert peak < 200_000


def test_a_frame_is_not_searched_again_for_each_chunk() -> None:
    searched = []

    class Watched(bytearray):
        def find(self, sub: Any, start: Any = 0, *rest: Any) -> int:  # type: ignore[override]
            searched.append(len(self) - start)
            return super().find(sub, start, *rest)

    decoder = Decoder('\r\n', 64 * MIB)
    decoder._partial = Watched(b'{')
    for _ in range(1000):
        list(decoder.feed(b'y' * 1000))
    assert len(searched) == 1000
    assert sum(searched) <= 1_000_000 + 2 * 1000


def test_a_frame_is_not_copied_again_for_each_chunk() -> None:
    """Growing may move the buffer now and then, never with each chunk."""
    decoder = Decoder('\f', 64 * MIB)
    chunk = b'y' * (64 << 10)
    list(decoder.feed(chunk))
    moved = 0
    tracemalloc = pytest.importorskip('tracemalloc')  # not on PyPy
    tracemalloc.start()
    try:
        while len(decoder._partial) < 32 * MIB:
            before = len(decoder._partial)
            tracemalloc.clear_traces()
            list(decoder.feed(chunk))
            moved += tracemalloc.get_traced_memory()[1] > before // 2
    finally:
        tracemalloc.stop()
    assert moved < 100  # of 511


def test_many_frames_in_one_chunk_are_linear_too() -> None:
    count = 20_000
    assert len(feed((FRAME + b'\f') * count)) == count


def test_a_big_number_is_refused_before_it_costs_time() -> None:
    code, _ = violation(b'{"type":"x","data":' + b'9' * 900_000 + b'}\f')
    assert code == 'ERR_IPC_INVALID_JSON'
    assert feed(b'{"type":"x","data":' + b'9' * 400 + b'}\f') == [('x', int('9' * 400))]


def test_protocol_errors_can_be_pickled() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ProtocolError('ERR_IPC_INVALID_JSON', 'why')))
    assert (error.code, str(error)) == ('ERR_IPC_INVALID_JSON', 'why [ERR_IPC_INVALID_JSON]')


def test_the_recursion_limit_is_left_alone() -> None:
    limit = sys.getrecursionlimit()
    violation(b'[' * 500_000 + b'\f')
    assert sys.getrecursionlimit() == limit
