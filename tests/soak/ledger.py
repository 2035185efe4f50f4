"""Who receives numbered messages checks here that nothing is missing inside a connection, comes twice or is damaged.

What lies between two connections was under way when the first of them ended: it is told to the parent, which knows whether
there was a reason (`judge`).
"""

from __future__ import annotations

import threading
import time
from typing import Any, Dict, List, Optional

from . import board as fields
from .board import Board
from .payloads import checksum, sign


class Findings:
    """What is wrong, and what the parent is to judge. Any thread adds, the control thread takes."""

    def __init__(self) -> None:
        self._wrong: List[str] = []
        self._records: List[Dict[str, Any]] = []
        self._lock = threading.Lock()

    def wrong(self, kind: str, text: str) -> None:
        with self._lock:
            if len(self._wrong) < 100:
                self._wrong.append(f'{kind}: {text}')

    def record(self, **record: Any) -> None:
        with self._lock:
            self._records.append(record)

    def take(self) -> Dict[str, Any]:
        with self._lock:
            taken = {'wrong': self._wrong, 'records': self._records}
            self._wrong, self._records = [], []
        return taken


class Span:
    """Numbers of one row that came by one connection, without a gap."""

    __slots__ = ('began', 'done', 'first', 'last', 'row', 'touched')

    def __init__(self, row: int, first: int, last: int, done: bool = False) -> None:
        self.row, self.first, self.last, self.done = row, first, last, done
        self.began = self.touched = time.monotonic()


class Ledger:
    """The receiver of the rows whose numbers go on through all connections: the server's side."""

    def __init__(self, board: Board, findings: Findings) -> None:
        self._board = board
        self._findings = findings
        self._lock = threading.Lock()  # a lane that came back has two strands for a while, one with its last connection
        self._spans: Dict[int, List[Span]] = {}

    def take(self, spans: Dict[int, Span], row: int, number: int, signature: int, payload: Any) -> None:
        """A message has come; `spans` are those of its connection."""
        board, findings = self._board, self._findings
        if signature != sign(row, number, checksum(payload)):
            board.add(row, fields.UP_DAMAGED)
            findings.wrong('DAMAGED', f'row {row}, number {number}: the payload is not what was sent: {str(payload)[:80]!r}')
        with self._lock:
            span = spans.get(row)
            others = self._spans.get(row)
            if others is None:  # another process may have had those before
                others = self._spans[row] = [Span(row, 0, board.get(row, fields.HIGH), done=True)]
            if any(other is not span and other.first <= number <= other.last for other in others):
                self._double(row, number, 'by an earlier connection')
                return
            if span is None:
                span = spans[row] = Span(row, number, number)
                others.append(span)
                others.sort(key=lambda span: span.first)
                self._settle(row)
            elif number == span.last + 1:
                span.last = number
            elif number > span.last:
                board.add(row, fields.UP_LOST, number - span.last - 1)
                findings.wrong('LOST', f'row {row}: {number} came after {span.last} by the same connection')
                span.last = number
            else:
                self._double(row, number, f'by the connection that has brought {span.first} to {span.last}')
                return
            board.add(row, fields.UP_DELIVERED)
            if number > board.get(row, fields.HIGH):
                board.set(row, fields.HIGH, number)
        span.touched = time.monotonic()

    def ended(self, spans: Dict[int, Span]) -> None:
        """The connection of `spans` has ended, and all that it has brought was taken."""
        with self._lock:
            for span in spans.values():
                span.done = True
                self._settle(span.row)

    def _double(self, row: int, number: int, how: str) -> None:
        self._board.add(row, fields.UP_DOUBLE)
        self._findings.wrong('DUPLICATED', f'row {row}: {number} has come before, {how}')

    def _settle(self, row: int) -> None:
        spans = self._spans[row]
        while len(spans) > 1 and spans[0].done:
            before, after = spans[0], spans[1]
            missing = after.first - before.last - 1
            if missing > 0:
                began = max(before.began, before.touched - 5)
                self._findings.record(what='up', row=row, missing=missing, began=began, ended=after.began, after=before.last)
            del spans[0]


class Arrivals:
    """The receiver of one row that begins anew with each connection: the client's side. On the client's strand."""

    def __init__(self, board: Board, findings: Findings, row: int) -> None:
        self._board = board
        self._findings = findings
        self._row = row
        self._token: Optional[int] = None
        self._number = 0
        self._began = time.monotonic()

    def connected(self) -> None:
        self._token, self._number, self._began = None, 0, time.monotonic()
        self._board.add(self._row, fields.CONNECTS)

    def disconnected(self, by_us: bool) -> None:
        if not by_us:
            now = time.monotonic()
            self._findings.record(what='gone', row=self._row, began=max(self._began, now - 8), ended=now)
        if self._token is not None:
            self._findings.record(
                what='down', row=self._row, token=self._token, number=self._number, began=self._began,
                ended=time.monotonic(), by_us=by_us,
            )
        self._token = None

    def take(self, data: Any) -> None:
        token, number, signature, payload = data[:4]
        board, row = self._board, self._row
        if signature != sign(row, number, checksum(payload)):
            board.add(row, fields.DOWN_DAMAGED)
            self._findings.wrong('DAMAGED', f'row {row}, down {number}: not what was sent: {str(payload)[:80]!r}')
        if self._token is None:
            self._token = token
            board.set(row, fields.SEEN_TOKEN, token)
        elif token != self._token:
            self._findings.wrong('DUPLICATED', f'row {row}, down {number}: from connection {token:x}, not {self._token:x}')
            return
        if number <= self._number:
            board.add(row, fields.DOWN_DOUBLE)
            self._findings.wrong('DUPLICATED', f'row {row}: down {number} came after {self._number} by the same connection')
            return
        if number > self._number + 1:
            board.add(row, fields.DOWN_LOST, number - self._number - 1)
            self._findings.wrong('LOST', f'row {row}: down {number} came after {self._number} by the same connection')
        self._number = number
        board.add(row, fields.DOWN_DELIVERED)
        board.set(row, fields.SEEN_NUMBER, number)
