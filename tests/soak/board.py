"""A table of numbers that all processes of a soak share: what was sent, and what of it has arrived.

It is a file mapped into memory, so the numbers of a process that was killed are still there. A lane has LANE rows: the first
ones are its threads', one line of numbered messages each, and the first also stands for its connection as the client has it.
From CONNECTIONS on there is one for each of its connections as the server has it. Each field is written by one process at a
time, and there by one thread at a time.
"""

from __future__ import annotations

import mmap
import os
from typing import List

# What a row has. Up is from client to server, and numbered through all connections; down is numbered in each connection.
(
    TRIED,  # up: the last number that is being emitted
    ACCEPTED,  # up: the last number that emit has accepted
    HIGH,  # up: the highest that has arrived
    UP_DELIVERED,
    DOWN_SENT,
    DOWN_DELIVERED,
    CONNECTS,
    PROGRESS,  # steps that the lane has taken
    TOKEN,  # down: the connection, the last number of it that was sent or has arrived, the first and last of the broadcasts
    NUMBER,
    FIRST_NEWS,
    LAST_NEWS,
    UP_LOST,
    UP_DOUBLE,
    UP_DAMAGED,
    DOWN_LOST,
    DOWN_DOUBLE,
    DOWN_DAMAGED,
    NEWS_SENT,
    NEWS_DELIVERED,
    RETRIED,  # emits that have timed out, and that were repeated with the same number
    UNANSWERED,  # requests whose connection was lost
) = range(22)
FIELDS = 24
ROWS = 1 << 17
LANE = 32
CONNECTIONS = 4

_BYTES = 8 * FIELDS * ROWS


def lane_of(row: int) -> int:
    """The first row of the lane that has `row`."""
    return row // LANE * LANE


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

    def connection(self, row: int) -> List[int]:
        """Token, number, first and last broadcast of a row."""
        return list(self._numbers[row * FIELDS + TOKEN:row * FIELDS + LAST_NEWS + 1])

    def set_connection(self, row: int, token: int) -> None:
        """Give a row another connection, or none (0), that has sent nothing."""
        for field in (TOKEN, NUMBER, FIRST_NEWS, LAST_NEWS):
            self.set(row, field, token if field == TOKEN else 0)

    def close(self) -> None:
        self._numbers.release()
        self._map.close()
