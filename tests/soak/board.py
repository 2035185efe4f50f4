"""A table of numbers that all processes of a soak share: what was sent, and what of it has arrived.

It is a file mapped into memory, so the numbers of a process that was killed are still there. Each row is one line of
numbered messages; each field is written by one process at a time, and there by one thread at a time.
"""

from __future__ import annotations

import mmap
import os
from typing import List

# What a row has. Up is from client to server, and numbered through all connections; down is numbered in each connection.
(
    TRIED,  # up: the number that is being emitted
    ACCEPTED,  # up: the last number that emit has accepted
    HIGH,  # up: the highest that has arrived
    UP_DELIVERED,
    DOWN_SENT,
    DOWN_DELIVERED,
    CONNECTS,
    PROGRESS,  # steps that the lane has taken
    SENT_TOKEN,  # down: the connection that the server sent by last, and the number that it had there
    SENT_NUMBER,
    SEEN_TOKEN,  # the same, as the client has it
    SEEN_NUMBER,
    UP_LOST,
    UP_DOUBLE,
    UP_DAMAGED,
    DOWN_LOST,
    DOWN_DOUBLE,
    DOWN_DAMAGED,
    NEWS_DELIVERED,
    RETRIED,  # emits that have timed out, and that were repeated with the same number
    UNANSWERED,  # requests whose connection was lost
) = range(21)
FIELDS = 24
ROWS = 1 << 17

_BYTES = 8 * FIELDS * ROWS


class Board:
    """The table in the file `path`, which is made if it is not there."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _BYTES)
            self._map = mmap.mmap(descriptor, _BYTES)
        finally:
            os.close(descriptor)
        self._numbers = memoryview(self._map).cast('q')

    def get(self, row: int, field: int) -> int:
        return self._numbers[row * FIELDS + field]

    def set(self, row: int, field: int, value: int) -> None:
        self._numbers[row * FIELDS + field] = value

    def add(self, row: int, field: int, value: int = 1) -> None:
        self._numbers[row * FIELDS + field] += value

    def row(self, row: int) -> List[int]:
        """A copy of all fields of a row."""
        return list(self._numbers[row * FIELDS:(row + 1) * FIELDS])

    def close(self) -> None:
        self._numbers.release()
        self._map.close()
