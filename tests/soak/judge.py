"""Which losses have a reason: what lies between two connections may be gone only if something was done to the first one."""

from __future__ import annotations

import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

# What faults take with them.
UP, DOWN, BOTH, NOTHING = 'up', 'down', 'up down', ''

_NO_REASON = 'and nothing was done to the connection'


class Fault(NamedTuple):
    began: float
    ended: float  # when nothing is disturbed by it any more
    where: str  # a process, or a proxy
    what: str
    takes: str


class Judge:
    """Knows the faults that were done, and where each row has its ends."""

    def __init__(self) -> None:
        self.scopes: Dict[int, Tuple[str, ...]] = {}  # by the first row of a lane: client, server, and proxy if there is one
        self.faults: List[Fault] = []
        self.problems: List[str] = []
        self.unexplained = 0
        self.dropped = 0  # what had arrived, or was on its way, when a client said goodbye
        self._sent: Dict[int, int] = {}  # by connection
        self._seen: Dict[int, Dict[str, Any]] = {}

    def note(self, where: str, what: str, takes: str, seconds: float = 0.0) -> None:
        """A fault was done, and stands for `seconds`."""
        now = time.monotonic()
        self.faults.append(Fault(now - 0.05, now + seconds, where, what, takes))
        if len(self.faults) > 4000:
            del self.faults[:2000]  # those of long ago

    def stands(self, row: int, grace: float = 0.0) -> bool:
        """Whether a fault disturbs a row, or did within the last `grace` seconds."""
        scope, now = self.scopes[row // 8 * 8], time.monotonic()
        return any(fault.ended + grace > now and fault.where in scope for fault in reversed(self.faults[-300:]))

    def hear(self, record: Dict[str, Any]) -> None:
        """What a child has told of a connection that has ended."""
        what = record['what']
        if what == 'up':
            if not self._excuse(record['row'], record['began'], record['ended'], UP):
                missing = record['missing']
                why = f'{missing} messages after {record["after"]} did not arrive, {_NO_REASON}'
                self._blame(record['row'], missing, why)
        elif what in ('gone', 'unanswered'):
            if not self._excuse(record['row'], record['began'], record['ended'], ''):
                event = 'a connection has ended' if what == 'gone' else f'a request was not answered ({record["why"]})'
                self._blame(record['row'], 0, f'{event}, {_NO_REASON}')
        elif what == 'sent':
            seen = self._seen.pop(record['token'], None)
            if seen is None:
                self._sent[record['token']] = record['number']
            else:
                self._compare(seen, record['number'])
        else:
            sent: Optional[int] = self._sent.pop(record['token'], None)
            if sent is None:
                self._seen[record['token']] = record
            else:
                self._compare(record, sent)
        for known in (self._sent, self._seen):  # whose other end was killed
            if len(known) > 20000:
                for token in list(known)[:10000]:
                    del known[token]

    def _compare(self, seen: Dict[str, Any], sent: int) -> None:
        missing = sent - seen['number']
        if missing > 0 and seen['by_us']:
            self.dropped += missing
        elif missing > 0 and not self._excuse(seen['row'], seen['began'], seen['ended'] + 1, DOWN):
            self._blame(seen['row'], missing, f'the last {missing} messages did not arrive at the client, {_NO_REASON}')

    def _excuse(self, row: int, began: float, ended: float, direction: str) -> bool:
        scope = self.scopes[row // 8 * 8]
        return any(
            fault.where in scope and fault.takes and direction in fault.takes
            and fault.began <= ended and fault.ended + 1 >= began
            for fault in reversed(self.faults)
        )

    def _blame(self, row: int, missing: int, why: str) -> None:
        self.unexplained += missing
        self.problems.append(f'{"LOST" if missing else "CUT"}: row {row} ({", ".join(self.scopes[row // 8 * 8])}): {why}')
