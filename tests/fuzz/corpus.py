"""Streams to decode and values to encode: frames of varied JSON, good and bad, then mutated.

All randomness is a `random.Random` that the caller has seeded.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from random import Random
from typing import Any, List, Sequence, Tuple

from .reference import PROTOTYPE, RESERVED, Settings, refused_name

# The interpreter's own limit decides on frames nested deeper than this, and where it is depends on who calls. Much deeper
# ones are refused by everybody.
DEEP = 400
MUCH_TOO_DEEP = 150_000

DELIMITERS = (
    '\f', '\n', '\r\n', '\0', '\f\f\f', '\fa\f', '\r\n\r\n', '\n\n', '☃', 'é\f', 'ab', 'aba', '--end--', 'a', ' ', '"',
    '}', '}\f', ',"', '\x16\f', '\u2028', '😀',
)  # fmt: skip

PLAIN_NAMES = ('message', 'app.message', 'x', 'ask', 'news', 'a b', '*', '**', 'ünï', '☃', '😀', 'Message', 'messagE', 'rpc')
ODD_NAMES = (
    '', ' ', '\0', '\f', '\n', '\ud800', '\udc00x', '\ud83d\ude00', 'type', 'null', '__proto__ ', 'Connect', 'connect ',
    'erro', 'stops', 'socket.disconnect', 'get.events.listening', 'get.events.broadcasting', '"', '\\', '\x7f', '\u2028',
    '\ufeffmessage', 'error\0',
)  # fmt: skip

VALUES = [
    text.encode()
    for text in (
        '{}', '[]', '""', 'null', 'true', 'false', '0', '1', '-1', '-0', '-0.0', '0.0', '1.0', '10', '1e5', '1E+2', '1e-7',
        '0.1', '1e999', '-1e999', '1e-999', '5e-324', '1.7976931348623157e308', '9007199254740993', '18446744073709551616',
        '-9223372036854775809', '123456789012345678901234567890', '0.30000000000000004', '1' * 400, '0.' + '3' * 400,
        '1e22', '100000000000000000000000.5', '"hello"', '"hello world!"', '"\\f\\n\\r\\t\\b\\/\\\\\\""', '"\\u0000"',
        '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\uD83D"', '"☃ é 😀 \u2028\u2029\x7f"', '"\\u000c"', '"ab"',
        '"aba"', '"}"', '"--end--"', '"' + 'y' * 120 + '"', '"' + '☃' * 40 + '"', '{"a":1}', '{"a":1,"a":2}',
        '{"a":true,"a":1.0,"b":1}', '{"__proto__":{"x":1}}', '{"constructor":null}', '{"type":"inner","data":[]}',
        '{"":0}', '{"\\u0000":"\\u0000"}', '{"\\ud800":1}', '{"id":"me","id":7}', '[1,1.0,true,null,"1"]',
        '[[],{},[[]],[{}]]', '[0,-0,0.0,-0.0]', '{"a":{"b":{"c":[1,2,{"d":"é"}]}}}', ' 1 ', '[ 1 ,\t2 ,\r3 ]',
        '{ "a" : 1 , "b" : [ ] }',
    )
]  # fmt: skip

HEAVY = [
    b'"' + b'x' * 3000 + b'"', b'[' * 90 + b']' * 90, b'{"a":' * 60 + b'1' + b'}' * 60, b'9' * 4300, b'-' + b'9' * 4300,
    b'9' * 4301, b'-' + b'9' * 4301, b'1.' + b'9' * 5000, b'[' + b','.join([b'1'] * 500) + b']',
    b'"' + b'\\u2603' * 200 + b'"', b'1e' + b'9' * 400,
]  # fmt: skip

# Whole frames that are refused, most of them.
HOSTILE = [
    b'', b' ', b'\n', b'{', b'}', b'{}', b'[]', b'null', b'true', b'5', b'"type"', b'"', b'["type"]', b'[{"type":"x"}]',
    b'{"data":1}', b'{"type":5}', b'{"type":null}', b'{"type":["x"]}', b'{"type":{"x":1}}', b'{"type":true,"data":1}',
    b'{"type":1.0}', b'{"Type":"x"}', b'{"type":"x","type":5}', b'{"type":5,"type":"x"}',
    b'{"type":"x","data":1,"data":2}', b'{"type":"x","data":NaN}', b'{"type":"x","data":Infinity}',
    b'{"type":"x","data":[-Infinity]}', b'{"type":"x","data":-NaN}', b'{"type":"x","data":nan}', b'{"type":"x","data":01}',
    b'{"type":"x","data":+1}', b'{"type":"x","data":.5}', b'{"type":"x","data":1.}', b'{"type":"x","data":0x1}',
    b'{"type":"x","data":1_000}', b'{"type":"x","data":undefined}', b'{"type":"x","data":}', b'{"type":"x",}',
    b'{"type":"x" "data":1}', b"{'type':'x'}", b'{type:"x"}', b'{"type":"x"}{"type":"y"}', b'{"type":"x"}x',
    b'{"type":"x"} ', b' \t\r\n{"type":"x"}\n', b'\xef\xbb\xbf{"type":"x"}', b'{"type":"x"}\xef\xbb\xbf',
    b'\xff\xfe{\0"\0t\0', b'{\0"\0t\0y\0p\0e\0"\0:\0', b'\0{"type":"x"}', b'{"type":"x"}\0', b'{"type":"\0"}',
    b'{"type":"\\u00zz"}', b'{"type":"\\x41"}', b'{"type":"\\u12"}', b'{"type":"x","data":"\xff"}',
    b'{"type":"x","data":"\xc3"}', b'{"type":"x","data":"\xed\xa0\x80"}',
    b'{"type":"x","data":"\xed\xa0\xbd\xed\xb8\x80"}', b'{"type":"x","data":"\xc0\x80"}',
    b'{"type":"x","data":"\xf4\x90\x80\x80"}', b'{"type":"\xe2\x98"}', b'{"type":"x","data":"\x0b"}',
    b'{"type":"x","data":"\x1f"}', b'{"type":"x","data":"\t"}', b'{"type":"x","data":"\\ud800\xed\xb0\x80"}',
    '{"type":"x","data":1}\u00a0'.encode(), '{"type":"x","data":\u0661}'.encode(), '{"type":"x","data":\uff11}'.encode(),
    b'\x16', b'\x16\x03', b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03', b'\x16\x03{"type":"x"}',
    b'\x15\x03\x03\x00\x02\x02\x28', b'\x16{"type":"x"}', b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\n',
    b'POST / HTTP/1.1\r\n\r\n{"type":"x"}', b'SSH-2.0-x\r\n', b'HELO x\r\n',
    b'[' * 300, b'{"type":"x","data":' + b'[' * 300 + b'}',
    b'{"type":"x","data":"' + b'y' * 300, b'// x\n{"type":"x"}', b'{"type":"x"/**/}',
    b'{"type":"x","data":' + b'9' * 4301 + b'}', b'\x00' * 20, bytes(range(256)), b'{"jsonrpc":"2.0","method":"x","id":1}',
]  # fmt: skip

# What mutations put in.
PIECES = [
    b'{', b'}', b'[', b']', b'"', b',', b':', b'\\', b'0', b'-', b'.', b'e', b' ', b'\n', b'\r', b'\t', b'\f', b'\0',
    b'\xff', b'\xc3', b'\xe2\x98', b'\xef\xbb\xbf', b'\xed\xa0\x80', b'\x16\x03', b'\x15\x03', b'"type"', b'"data"',
    b'"type":"x"', b'{"type":"x"}', b'NaN', b'Infinity', b'null', b'true', b'1e999', b'\\ud800', b'\\u0000', b'\\', b'/',
    b'[' * 40, b']' * 40, b'"x"', b'\x80', b'\x1f', b'\x7f', b'9' * 30,
]  # fmt: skip

# What is no JSON, by its repr to be written into a test case.
NOT_JSON = (
    b'bytes', bytearray(b'x'), {1, 2}, frozenset(), 1j, ..., range(3), math.nan, math.inf, -math.inf, {(1, 2): 3}, {b'x': 1},
    [math.nan], {math.inf: 1},
)  # fmt: skip
NOT_NAMES = (None, 5, 1.5, True, b'x', ['x'], {'a': 1}, ('x',), {'x'})


_ALPHABETS = (
    'abc', 'abcdefghij xyz', '"\\/\b\f\n\r\t\0\x1f\x7f', 'é☃😀\u2028\ufeff', '\ud800\udc00a', '}{][,:"', 'message',
)  # fmt: skip


def choose(rng: Random, items: Sequence[Any]) -> Any:
    """As `Random.choice`, in a third of the time."""
    return items[int(rng.random() * len(items))]


def vectors() -> List[Any]:
    """What node-ipc wrote, each frame with its delimiter."""
    path = Path(__file__).parent.parent / 'wire_vectors.json'
    rows = json.loads(path.read_text('utf-8'))['rows']
    return [bytes.fromhex(text) for row in rows for key, text in row.items() if key.startswith('node-ipc')]


def names_for(settings: Settings) -> Tuple[List[str], List[str]]:
    """Return names that the settings let through and names that they do not."""
    longest = settings.max_event_name_length or 256
    # In characters, and in the two UTF-16 units that JavaScript counts for each of these.
    lengths = [character * count for character, count in (
        ('n', longest - 1), ('n', longest), ('n', longest + 1), ('é', longest), ('é', longest + 1), ('😀', longest // 2),
        ('😀', longest // 2 + 1), ('n', longest * 2),
    )]  # fmt: skip
    allowed = settings.allowed_events or ()
    names = [*PLAIN_NAMES, *ODD_NAMES, *RESERVED, *PROTOTYPE, *lengths, *allowed]
    accepted = [name for name in names if refused_name(name, settings) is None]
    refused = [name for name in names if refused_name(name, settings) is not None]
    usual = [name for name in (allowed or PLAIN_NAMES) if refused_name(name, settings) is None]
    return accepted + usual * (1 + len(accepted) // max(1, len(usual))), refused or ['']


def random_value(rng: Random, depth: int = 0) -> Any:
    """Return a value that JSON can carry."""
    kind = int(rng.random() * (14 if depth < 4 else 10))
    if kind == 0:
        return choose(rng, (None, True, False))
    if kind == 1:
        return int(rng.random() * 2 ** choose(rng, (1, 8, 31, 33, 53)))
    if kind == 2:
        return choose(rng, (-1, 1)) * int(rng.random() * 2 ** 53) ** choose(rng, (1, 2, 5))
    if kind == 3:
        return (rng.random() - 0.5) * 10.0 ** int(rng.random() * 600 - 300)
    if kind == 4:
        return choose(rng, (0.0, -0.0, 1.0, 0.1, 1e22, 5e-324, 1e300))
    if kind < 10:
        return random_text(rng)
    if kind < 12:
        return [random_value(rng, depth + 1) for _ in range(int(rng.random() * 4))]
    return {random_text(rng): random_value(rng, depth + 1) for _ in range(int(rng.random() * 4))}


def random_text(rng: Random) -> str:
    alphabet = choose(rng, _ALPHABETS)
    return ''.join([choose(rng, alphabet) for _ in range(int(rng.random() ** 3 * 30))])


class Material:
    """What streams for some settings are made of."""

    def __init__(self, settings: Settings, rng: Random) -> None:
        self.settings = settings
        self.delimiter = settings.delimiter.encode()
        self._rng = rng
        self.names, self.refused_names = names_for(settings)
        self._names = [_json_name(name, rng.random() < 0.5) for name in self.names]
        self._bad_names = [_json_name(name, rng.random() < 0.5) for name in self.refused_names]
        self._vectors = [frame[:-1] for frame in vectors()]
        self._before = b'{"type":"x","data":"before"}'
        self._partial = [self.delimiter[:count] for count in range(1, len(self.delimiter))] or [self.delimiter]

    def stream(self) -> bytes:
        """Return a stream of some frames, mutated or not."""
        rng = self._rng
        random = rng.random
        kind = random()
        if kind < 0.0003:
            frames = [self._good(), self._much_too_deep()]
        else:
            count = 20 + int(random() * 60) if kind < 0.03 else 1 + int(random() * random() * 14)
            badness = 0.0 if random() < 0.5 else 0.15
            frames = [self._bad() if random() < badness else self._good() for _ in range(count)]
        stream = self.delimiter.join(frames)
        if random() < 0.9:
            stream += self.delimiter
        if random() < 0.45:
            stream = self._mutated(stream)
        self._before = stream if len(stream) < 2000 else stream[-2000:]
        return stream

    def _good(self) -> bytes:
        rng = self._rng
        random = rng.random
        kind = random()
        name = choose(rng, self._names)
        value = choose(rng, VALUES)
        if kind < 0.55:
            return b'{"type":%b,"data":%b}' % (name, value)
        if kind < 0.65:
            text = json.dumps(random_value(rng), ensure_ascii=random() < 0.5)
            return b'{"type":%b,"data":%b}' % (name, text.encode('utf-8', 'backslashreplace'))
        if kind < 0.70:
            return b'{"data":%b,"type":%b}' % (value, name)
        if kind < 0.75:
            return b'{"type":%b}' % name
        if kind < 0.80:
            space = choose(rng, (b' ', b'\t', b'\n', b'\r\n', b'  '))
            return space.join([b'', b'{', b'"type"', b':', name, b',', b'"data"', b':', value, b'}', b''])
        if kind < 0.84:
            return b'{"id":%b,"type":%b,"data":%b,"extra":{"type":5}}' % (choose(rng, VALUES), name, value)
        if kind < 0.87:
            return b'{"type":%b,"data":1,"type":%b,"data":%b}' % (choose(rng, self._bad_names), name, value)
        if kind < 0.95:
            return self._sized(name)
        if kind < 0.99:
            return choose(rng, self._vectors)
        return b'{"type":%b,"data":%b}' % (name, choose(rng, HEAVY))

    def _bad(self) -> bytes:
        if self._rng.random() < 0.4:
            return b'{"type":%b,"data":%b}' % (choose(self._rng, self._bad_names), choose(self._rng, VALUES))
        return choose(self._rng, HOSTILE)

    def _sized(self, name: bytes) -> bytes:
        """A frame of about the limit, rather often of exactly it."""
        limit = self.settings.limit
        if limit > 2000 and (limit > 1 << 20 or self._rng.random() > 0.002):
            return b'{"type":%b,"data":0}' % name
        size = limit + choose(self._rng, (-2, -1, -1, 0, 0, 0, 0, 1, 2, len(self.delimiter)))
        if self._rng.random() < 0.5:
            return (b'{"type":%b,"data":"' % name).ljust(size - 2, b'y') + b'"}'
        return (b'{"type":%b,"data":' % name).ljust(size - 2, b' ') + b'1}'

    def _much_too_deep(self) -> bytes:
        return b'{"type":"x","data":' + choose(self._rng, (b'[', b'{"a":')) * MUCH_TOO_DEEP

    def _mutated(self, stream: bytes) -> bytes:
        rng = self._rng
        random = rng.random
        delimiter = self.delimiter
        text = bytearray(stream)
        for _ in range(choose(rng, (1, 1, 1, 2, 3, 6))):
            at = int(random() * (len(text) + 1))
            to = at + int(random() ** 4 * 40) + 1
            kind = int(random() * 13)
            if kind == 0 and at < len(text):
                text[at] ^= 1 << int(random() * 8)
            elif kind == 1 and at < len(text):
                text[at] = int(random() * 256)
            elif kind == 2:
                del text[at:to]
            elif kind == 3:
                text[at:at] = text[at:to]
            elif kind == 4:
                del text[at:]
            elif kind == 5:
                start = int(random() * len(self._before))
                text[at:at] = self._before[start : start + int(random() * 60)]
            elif kind == 6:
                text[at:to] = choose(rng, PIECES)
            elif kind == 7:
                text[at:at] = choose(rng, PIECES)
            elif kind == 8:
                text[at:at] = delimiter
            elif kind == 9:
                text[at:at] = choose(rng, self._partial)
            else:
                at = text.find(delimiter, at)
                if at < 0:
                    continue
                if kind == 10:
                    del text[at : at + len(delimiter)]
                elif kind == 11:
                    text[at:at] = delimiter
                else:
                    del text[at + int(random() * len(delimiter))]
        if text.count(b'[') + text.count(b'{"a":') > DEEP and text.count(b'[') < MUCH_TOO_DEEP:
            return stream  # too near the interpreter's own limit, perhaps
        return bytes(text)

    def event(self) -> Tuple[Any, Any]:
        """Return a type and data to encode, which not every codec takes."""
        rng = self._rng
        kind = rng.random()
        name: Any = choose(rng, self.names)
        if kind < 0.1:
            name = choose(rng, self.refused_names)
        elif kind < 0.13:
            name = choose(rng, NOT_NAMES)
        if kind > 0.9:
            return name, choose(rng, NOT_JSON)
        if kind > 0.85:
            odd = {choose(rng, (1, 1.5, True, None, '1', 'true')): random_value(rng, 3) for _ in range(3)}
            return name, (odd, tuple(random_value(rng) for _ in range(3)))
        if kind > 0.75 and self.settings.limit <= 2000 and isinstance(name, str):
            overhead = len('{"type":,"data":""}') + len(_json_name(name, ascii_only=False))
            return name, 'y' * max(0, self.settings.limit - overhead + choose(rng, (-1, 0, 1)))
        if kind > 0.5:
            return name, json.loads(choose(rng, VALUES))
        return name, random_value(rng)


def _json_name(name: str, ascii_only: bool) -> bytes:
    return json.dumps(name, ensure_ascii=ascii_only).encode('utf-8', 'backslashreplace')
