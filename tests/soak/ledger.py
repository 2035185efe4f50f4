"""Who receives numbered messages checks here that nothing is missing inside a connection, comes twice or is damaged.

What lies between two connections was under way when the first of them ended: it is told to the parent, which knows whether
there was a reason (`judge`).
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any, Dict, List

from . import board as fields
from .board import Board
from .payloads import checksum, sign


class Findings:
    """What is wrong, and what the parent is to judge: lines of a file that all children write to, and that outlives them."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._wrongs = 0

    def wrong(self, kind: str, text: str) -> None:
        self._wrongs += 1
        if self._wrongs <= 100:
            self.record(what='wrong', text=f'{kind}: {text} [process {os.getpid()}]')

    def record(self, **record: Any) -> None:
        os.write(self._descriptor, json.dumps(record).encode('ascii') + b'\n')

    def close(self) -> None:
        os.close(self._descriptor)


class Ledger:
    """The receiver of the rows whose numbers go on through all connections: the server's side."""

    def __init__(self, board: Board, findings: Findings) -> None:
        self._board = board
        self._findings = findings
        self._lock = threading.Lock()  # a lane that came back has two strands for a while, one with its last connection
        self._holes: Dict[int, List[List[int]]] = {}  # first and last of what has not arrived, though higher ones have

    def take(self, last: Dict[int, int], row: int, number: int, signature: int, payload: Any) -> None:
        """A message has come; `last` has the last number of each row that has come by the same connection."""
        board, findings = self._board, self._findings
        if signature != sign(row, number, checksum(payload)):
            board.add(row, fields.UP_DAMAGED)
            findings.wrong('DAMAGED', f'row {row}, number {number}: the payload is not what was sent: {str(payload)[:80]!r}')
        with self._lock:
            high, before = board.get(row, fields.HIGH), last.get(row, number - 1)
            if number <= before or (number <= high and not self._fill(row, number)):
                board.add(row, fields.UP_DOUBLE)
                findings.wrong('DUPLICATED', f'row {row}: {number} has come before; now after {before} by its connection')
                return
            if number > before + 1:
                board.add(row, fields.UP_LOST, number - before - 1)
                findings.wrong('LOST', f'row {row}: {number} came after {before} by the same connection')
            elif number > high + 1:
                holes = self._holes.setdefault(row, [])
                holes.append([high + 1, number - 1])
                del holes[:-16]
                findings.record(what='hole', row=row, first=high + 1, last=number - 1)
            last[row] = number
            board.add(row, fields.UP_DELIVERED)
            if number > high:
                board.set(row, fields.HIGH, number)

    def _fill(self, row: int, number: int) -> bool:
        """Whether a number is one that was missing: the strand of the last connection may be behind that of the next one."""
        for hole in self._holes.get(row, []):
            first, last = hole
            if first <= number <= last:
                parts = [part for part in ([first, number - 1], [number + 1, last]) if part[0] <= part[1]]
                self._holes[row].remove(hole)
                self._holes[row] += parts
                self._findings.record(what='filled', row=row, number=number)
                return True
        return False


class Arrivals:
    """The receiver of one lane, whose numbers begin anew with each connection: the client's side. On the client's strand."""

    def __init__(self, board: Board, findings: Findings, row: int, threads: int) -> None:
        self._board = board
        self._findings = findings
        self._row = row
        self._rows = range(row, row + threads)
        self._news = (0, 0)  # who has sent the last broadcast, and its number
        self._was_told = False  # that the server will end the connection
        self.ends = 0  # of connections, so far

    def connected(self) -> None:
        self._board.set_connection(self._row, 0)
        self._news = (0, 0)
        self._was_told = False
        self._board.add(self._row, fields.CONNECTS)

    def disconnected(self, by_us: bool) -> None:
        board = self._board
        # In this order: what was tried is at least what was accepted. What comes after is for the next connection.
        accepted = [board.get(row, fields.ACCEPTED) for row in self._rows]
        tried = [board.get(row, fields.TRIED) for row in self._rows]
        self._findings.record(
            what='end', row=self._row, accepted=accepted, tried=tried, ended=time.monotonic(),
            planned='us' if by_us else 'asked' if self._was_told else '', connection=board.connection(self._row),
        )
        board.set_connection(self._row, 0)
        self.ends += 1

    def take(self, data: Any) -> None:
        token, number, signature, payload = data[:4]
        board, row = self._board, self._row
        if signature != sign(row, number, checksum(payload)):
            board.add(row, fields.DOWN_DAMAGED)
            self._findings.wrong('DAMAGED', f'row {row}, down {number}: not what was sent: {str(payload)[:80]!r}')
        known, last = board.get(row, fields.TOKEN), board.get(row, fields.NUMBER)
        if not known:
            board.set(row, fields.TOKEN, token)
        elif token != known:
            self._findings.wrong('DUPLICATED', f'row {row}, down {number}: from connection {token:x}, not {known:x}')
            return
        if number <= last:
            board.add(row, fields.DOWN_DOUBLE)
            self._findings.wrong('DUPLICATED', f'row {row}: down {number} came after {last} by the same connection')
            return
        if number > last + 1:
            board.add(row, fields.DOWN_LOST, number - last - 1)
            self._findings.wrong('LOST', f'row {row}: down {number} came after {last} by the same connection')
        board.set(row, fields.NUMBER, number)
        board.add(row, fields.DOWN_DELIVERED)

    def take_farewell(self, data: Any) -> None:
        self._was_told = True
        self.take(data)
        time.sleep(0.005)  # so that some have come and are not handled when the end comes

    def take_news(self, data: Any) -> None:
        """A broadcast has come: it counts as soon as the server's name of the connection is known."""
        sender, number, signature, payload = data
        board, row = self._board, self._row
        before, last = self._news
        self._news = (sender, number)
        if signature != sign(sender, number, checksum(payload)):
            board.add(row, fields.DOWN_DAMAGED)
            self._findings.wrong('DAMAGED', f'row {row}: news {number} is not what was sent')
        if before and sender != before:
            self._findings.wrong('DUPLICATED', f'row {row}: news of two servers by one connection')
        elif before and number <= last:
            board.add(row, fields.DOWN_DOUBLE)
            self._findings.wrong('DUPLICATED', f'row {row}: news {number} came after {last} by the same connection')
        elif before and number > last + 1:
            board.add(row, fields.DOWN_LOST, number - last - 1)
            self._findings.wrong('LOST', f'row {row}: news {number} came after {last} by the same connection')
        if board.get(row, fields.TOKEN):
            if not board.get(row, fields.FIRST_NEWS):
                board.set(row, fields.FIRST_NEWS, number)
            board.set(row, fields.LAST_NEWS, number)
            board.add(row, fields.NEWS_DELIVERED)
