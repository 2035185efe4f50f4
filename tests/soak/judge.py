"""Which losses have a reason: what a connection may have carried can be gone only if a fault ended that very connection.

What is known: of each connection its client tells when it ended, and which numbers may have travelled by it; of each fault
that ends a connection, a proxy (each lane has its own, so it is known whose) or whoever ends a process tells when. A fault
of a proxy is claimed by one connection, in whose time it was, and excuses what is missing of that one; the end of a server
excuses what is missing of those that stood meanwhile. There is no other excuse.
"""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional, Set, Tuple

from .board import lane_of

# What an end takes with it. A server that stops drops what is on its way to it, and delivers what it has emitted.
UP, BOTH = 'up', 'up down'

# That an event, of which the client tells late, may have come before what it tells of the connection before.
_LATE_SECONDS = 1.0

# That what is missing is given to come, and what is to be known of it to be told.
_PATIENCE = 15.0

# Of one gap. What a cut takes was in buffers: max_pending_bytes (2 MiB), the kernel's, the proxy's, the receiver's inbox.
_MOST_IN_FLIGHT = 20_000

# More connections than one lane has in that time.
_CONNECTIONS = 2000


class End:
    """Something that ends connections: one of those that were made after `began` and stood when it `ended` them."""

    def __init__(self, takes: str, began: float, ended: float = float('inf')) -> None:
        self.is_shared = ended == float('inf')  # by a goodbye that was under way, and the next connection, in the backlog
        self.began = began
        self.ended = ended
        self.takes = takes


class Connection:
    """One that has ended, as its client tells.

    Of row n of its lane (0: the first) it may have carried the numbers `after[n]` (not included) to `tried[n]`: what was
    accepted when the one before had ended has not waited for this one.
    """

    def __init__(self, record: Dict[str, Any], before: Optional[Connection]) -> None:
        self.row: int = record['row']
        self.after: List[int] = before.accepted if before else [0] * len(record['tried'])
        self.accepted: List[int] = record['accepted']
        self.tried: List[float] = record['tried']
        self.began = before.ended if before else 0.0
        self.ended: float = record['ended']
        self.planned: str = record['planned']  # by a goodbye of the client ('us') or the server ('asked'), or not ('')
        self.seen: List[int] = record['connection']  # token, last number, first and last broadcast
        self.takes = ''  # by the faults that it has claimed
        self.claimed: List[End] = []


class Lane:
    def __init__(self, client: str, server: str) -> None:
        self.client = client
        self.server = server
        self.ends: List[End] = []  # that no connection has claimed
        self.connections: List[Connection] = []
        self.nameless: List[Connection] = []  # by which nothing has come that tells the server's name for it


class Judge:
    def __init__(self) -> None:
        self.lanes: Dict[int, Lane] = {}  # by their first rows
        self.problems: List[str] = []
        self.lost = 0
        self.in_flight = self.gaps = 0  # missing, and a fault has ended their connection; and in how many gaps
        self.dropped = 0  # what was on its way to a client that said goodbye
        self.uncounted = 0  # what has arrived, and whose sender has not counted it: it was killed, or the connection was new
        self.most_in_flight = 0  # of one gap
        self._disturbances: List[Tuple[float, str]] = []
        self._holes: List[Tuple[float, int, int, int]] = []  # since when, row, first, last
        self._filled: Set[Tuple[int, int]] = set()
        self._sent: Dict[int, Tuple[float, int, List[int]]] = {}  # by token
        self._seen: Dict[int, Connection] = {}

    # What was done

    def end_lane(self, row: int, made: float) -> None:
        """A fault ends the connection of a lane that was made then, or now at the earliest; called from any thread."""
        self.lanes[row].ends.append(End(BOTH, made, time.monotonic()))

    def end_server(self, name: str, takes: str) -> List[End]:
        """A server begins to end; the caller says when it `ended`."""
        ends = []
        for lane in self.lanes.values():
            if lane.server == name:
                ends.append(End(takes, time.monotonic()))
                lane.ends.append(ends[-1])
                del lane.ends[:-500]
        return ends

    def note(self, where: str, seconds: float) -> None:
        """A process, or a lane, is disturbed for so long."""
        self._disturbances = [entry for entry in self._disturbances[-1000:] if entry[0] > time.monotonic() - 60]
        self._disturbances.append((time.monotonic() + seconds, where))

    def stands(self, row: int, grace: float) -> bool:
        """Whether a row is disturbed, or was within the last `grace` seconds."""
        lane, now = self.lanes[lane_of(row)], time.monotonic()
        scope = (lane.client, lane.server, f'lane {lane_of(row)}')
        return any(ended + grace > now and where in scope for ended, where in self._disturbances)

    # What was found

    def hear(self, record: Dict[str, Any]) -> None:
        what, row = record['what'], record['row']
        if what == 'hole':
            self._holes.append((time.monotonic(), row, record['first'], record['last']))
        elif what == 'filled':
            self._filled.add((row, record['number']))
        elif what == 'sent':
            connection: List[int] = record['connection']
            if connection[0] in self._seen:
                self._compare(connection, self._seen.pop(connection[0]))
            else:
                self._sent[connection[0]] = (time.monotonic(), row, connection)
        else:
            self._ended(record)

    def turn(self, all_of_it: bool = False) -> None:
        """Judge what has had its time."""
        late = float('inf') if all_of_it else time.monotonic() - _PATIENCE
        while self._holes and self._holes[0][0] <= late:
            self._judge_hole(*self._holes.pop(0)[1:])
        for token, (since, row, connection) in list(self._sent.items()):
            if since <= late:
                del self._sent[token]
                self._judge_unseen(row, connection)

    def _ended(self, record: Dict[str, Any]) -> None:
        row: int = record['row']
        lane = self.lanes[row]
        connection = Connection(record, lane.connections[-1] if lane.connections else None)
        lane.connections.append(connection)
        del lane.connections[:-_CONNECTIONS]
        if record.get('killed'):
            connection.takes = BOTH
        elif not connection.planned and not self._excuse(connection, ''):
            self._blame(row, 0, 'a connection has ended, and nothing was done to it')
        token = connection.seen[0]
        if token in self._sent:
            self._compare(self._sent.pop(token)[2], connection)
        elif token:
            self._seen[token] = connection
        else:
            lane.nameless.append(connection)
            del lane.nameless[:-_CONNECTIONS]

    def _excuse(self, connection: Connection, direction: str) -> bool:
        """Whether faults that took this direction have ended the connection; it claims them."""
        ends = self.lanes[connection.row].ends
        while not connection.takes or direction not in connection.takes:
            fitting = [
                end for end in list(ends)
                if end.began <= connection.ended and end.ended + _LATE_SECONDS >= connection.began
                and end not in connection.claimed
            ]
            if not fitting:
                return False
            end = max(fitting, key=lambda end: end.began)  # older ones are for the connections before
            if not end.is_shared:
                ends.remove(end)
            connection.claimed.append(end)
            connection.takes += f' {end.takes}'
        return True

    def _judge_hole(self, row: int, first: int, last: int) -> None:
        lane, index = self.lanes[lane_of(row)], row - lane_of(row)
        missing = 0
        lost: List[int] = []
        carrier: Optional[Connection] = None
        for number in range(first, last + 1):
            if (row, number) in self._filled:
                self._filled.remove((row, number))
                continue
            missing += 1
            if carrier is None or number > carrier.tried[index]:
                carrier = next((
                    connection for connection in lane.connections
                    if connection.after[index] < number <= connection.tried[index] and self._excuse(connection, UP)
                ), None)
            if carrier is None:
                lost.append(number)
        self._count_gap(row, missing - len(lost))
        if lost:
            where = f'{len(lost)} numbers, {lost[0]} to {lost[-1]} between {first - 1} and {last + 1},'
            why = f'{where} did not arrive, and no fault has ended a connection that may have had it'
            known = '; '.join(
                f'{connection.planned or "cut"} {connection.began:.3f}-{connection.ended:.3f} '
                f'numbers {connection.after[index]}-{connection.accepted[index]}-{connection.tried[index]}{connection.takes}'
                for connection in lane.connections
                if connection.after[index] < last and connection.tried[index] >= first
            )
            ends = ' '.join(f'{end.began:.3f}-{end.ended:.3f} {end.takes}' for end in lane.ends)
            self._blame(row, len(lost), f'{why}. Connections: {known}. Faults that nobody has claimed: {ends}')

    def _judge_unseen(self, row: int, connection: List[int]) -> None:
        """Nothing of what was sent by a connection has arrived: there is one of the client that has received nothing."""
        lane = self.lanes[lane_of(row)]
        for seen in lane.nameless:
            if seen.planned == 'us' or self._excuse(seen, 'down'):
                lane.nameless.remove(seen)
                self._compare(connection, seen)
                return
        self._blame(row, connection[1], 'nothing of what was sent by a connection has arrived, and no fault has ended it')

    def _compare(self, sent: List[int], seen: Connection) -> None:
        _, number, first, last = sent
        _, seen_number, seen_first, seen_last = seen.seen
        both = max(0, min(last, seen_last) - max(first, seen_first) + 1) if first and seen_first else 0
        news = (last - first + 1 if first else 0) - both
        self.uncounted += max(0, seen_number - number) + (seen_last - seen_first + 1 if seen_first else 0) - both
        missing = max(0, number - seen_number) + news
        if first and seen_first > first:
            self._blame(seen.row, seen_first - first, f'broadcasts begin with {seen_first}, and {first} was sent')
        elif missing and seen.planned == 'us':
            self.dropped += missing
        elif missing and self._excuse(seen, 'down'):
            self._count_gap(seen.row, missing)
        elif missing:
            text = f'the last {missing} messages, {news} of them broadcasts, did not arrive at the client'
            self._blame(seen.row, missing, f'{text}, and no fault has ended the connection')

    def _count_gap(self, row: int, missing: int) -> None:
        if missing > _MOST_IN_FLIGHT:
            self._blame(row, missing, f'{missing} messages did not arrive, more than one fault can take')
        else:
            self.in_flight += missing
            self.gaps += missing > 0
            self.most_in_flight = max(self.most_in_flight, missing)

    def _blame(self, row: int, missing: int, why: str) -> None:
        self.lost += missing
        self.problems.append(f'{"LOST" if missing else "CUT"}: row {row}: {why}')
