"""What messages carry: nothing, a little, nested values, text of many bytes a character, 64 KiB, and now and then 1 MiB."""

from __future__ import annotations

import contextlib
import json
import random
import zlib
from typing import Any, List, Tuple

_ALPHABETS = ('abcdefghijklmnopqrstuvwxyz 0123456789', 'äöüßéèêñçøåæ', 'かなカナ漢字語', '😀🎉🚀𝄞', '"\\\n\t\u2028\x7f/')


def checksum(value: Any) -> int:
    """A number that changes with any change of what JSON says of `value`."""
    return zlib.crc32(json.dumps(value).encode('ascii'))


def sign(row: int, number: int, summed: int) -> int:
    """Bind the checksum of a payload to its place, or one message could pass for another."""
    return summed ^ (row * 0x9E3779B1 + number & 0xFFFFFFFF)


class Payloads:
    """Payloads with their checksums, made beforehand; `largest` bounds their size in bytes."""

    def __init__(self, seed: str, largest: int = 1 << 20) -> None:
        self._random = random.Random(seed)
        self._pools: List[List[Tuple[Any, int]]] = []
        self._weights: List[float] = []
        self._first: List[Tuple[Any, int]] = []  # one of each, so that memory has its shape when all have warmed up
        for weight, size, count, make in (
            (12, 0, 8, self._empty),
            (60, 100, 64, self._small),
            (14, 2000, 32, self._nested),
            (12, 2000, 32, self._text),
            (1.5, 64 << 10, 4, lambda: self._long(64 << 10)),
            (0.05, 1 << 20, 1, lambda: self._long(1 << 20)),
        ):
            if size <= largest:
                values = [make() for _ in range(count)]
                self._pools.append([(value, checksum(value)) for value in values])
                self._weights.append(weight)
                self._first.append(self._pools[-1][0])

    def pick(self) -> Tuple[Any, int]:
        """Any one, and its checksum."""
        with contextlib.suppress(IndexError):  # threads share it
            return self._first.pop()
        return self._random.choice(self._random.choices(self._pools, self._weights)[0])

    def _empty(self) -> Any:
        return self._random.choice(({}, [], '', None, 0, False))

    def _small(self) -> Any:
        kind = self._random.randrange(4)
        if kind == 0:
            return self._random.getrandbits(60) - (1 << 59)
        if kind == 1:
            return self._random.uniform(-1e9, 1e9)
        return self._word(self._random.randrange(1, 64))

    def _nested(self, depth: int = 4) -> Any:
        if depth == 0 or self._random.random() < 0.2:
            return self._small()
        if self._random.random() < 0.5:
            return [self._nested(depth - 1) for _ in range(self._random.randrange(4))]
        return {self._word(6): self._nested(depth - 1) for _ in range(self._random.randrange(4))}

    def _text(self) -> str:
        return self._word(self._random.randrange(1, 500))

    def _long(self, size: int) -> str:
        piece = self._word(500)
        return (piece * (size // len(piece.encode()) + 1))[:size]

    def _word(self, length: int) -> str:
        return ''.join(self._random.choices(self._random.choice(_ALPHABETS), k=length))
