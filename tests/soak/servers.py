"""A child that is a server: checks what comes, answers what wants to be answered, and tells everybody the news."""

from __future__ import annotations

import itertools
import os
import threading
import time
from typing import Any, Dict, Set

import nodeipc

from . import board as fields
from .board import CONNECTIONS, LANE, Board, lane_of
from .child import Role, guarded
from .ledger import Findings, Ledger
from .payloads import Payloads, checksum, sign

# Between two broadcasts, in seconds.
_NEWS_SECONDS = 0.1

# What faults explain: the end of a connection in the middle of a message, and a peer that took nothing for long.
EXPECTED_CODES = ('ERR_IPC_INVALID_MESSAGE', 'ERR_IPC_BACKPRESSURE')


def check_error(findings: Findings, where: str, error: Exception) -> None:
    """An `error` event that no fault explains is a finding."""
    if isinstance(error, nodeipc.ProtocolError) and error.code not in EXPECTED_CODES:
        findings.wrong('DAMAGED', f'{where}: {error}')
    elif not isinstance(error, (OSError, nodeipc.IPCError)):
        findings.wrong('FAILED', f'{where}: {error!r}')


class ServerRole(Role):
    def __init__(self, spec: Dict[str, Any], board: Board, findings: Findings) -> None:
        self._spec = spec
        self._board = board
        self._findings = findings
        self._ledger = Ledger(board, findings)
        self._tokens = itertools.count(time.monotonic_ns() // 1000)  # those of later connections, and processes, are higher
        self._counting = threading.Lock()  # rows of the board that sockets of two connections count in, and what is theirs
        self._ended = threading.Event()
        self._news = 0
        self._seen: Dict[int, Set[int]] = {}  # UDP: numbers by row
        self._is_udp = spec['transport'] == 'udp'
        self._payloads = Payloads(spec['seed'], 4000)
        settings = {'silent': True, 'stall_timeout': 20000, 'max_pending_bytes': 2 << 20, **spec['settings']}
        self._ipc = nodeipc.IPC(id=spec['name'], **settings)
        address = spec['address']
        if isinstance(address, str):
            self._server = self._ipc.serve(address)
        else:
            self._server = self._ipc.serve_net(*address, *(['udp4'] if self._is_udp else []))
        server = self._server
        server.on('connect', self._connect)
        server.on('socket.disconnected', self._disconnected)
        server.on('error', lambda error: check_error(findings, spec['name'], error))
        server.on('up', self._up)
        server.on('here', self._here)
        server.on('ask', self._ask)
        server.on('last', self._last)
        server.on('bye', self._bye)
        server.method('check', self._check)

    def begin(self) -> Dict[str, Any]:
        self._server.start()
        threading.Thread(target=guarded(self._tell_news, self._findings, 'news'), name='soak-news', daemon=True).start()
        return {}

    def end(self) -> None:
        self._ended.set()
        self._server.stop()
        self._ipc.close()

    def do(self, what: str) -> None:
        if what == 'restart':
            self._server.stop()
            time.sleep(0.1)
            self._server.start()
        else:
            raise ValueError(what)

    def _connect(self, socket: Any) -> None:
        socket.context.update(last={}, token=next(self._tokens), row=0, kept=0)

    def _disconnected(self, socket: Any) -> None:
        context, board = socket.context, self._board
        with self._counting:
            kept, context['kept'] = context['kept'], 0
            if kept:
                self._findings.record(what='sent', row=context['row'], connection=board.connection(kept))
                board.set_connection(kept, 0)

    def _up(self, data: Any, socket: Any) -> None:
        row, number, signature, payload, wants_echo = data
        if self._is_udp:
            seen = self._seen.setdefault(row, set())
            if number in seen:
                self._board.add(row, fields.UP_DOUBLE)
                self._findings.wrong('DUPLICATED', f'row {row}: datagram {number} came twice')
                return
            seen.add(number)
            if len(seen) > 20000:
                self._seen[row] = {other for other in seen if other > number - 10000}
            self._take_datagram(row, number, signature, payload)
        else:
            self._ledger.take(socket.context['last'], row, number, signature, payload)
        if wants_echo:
            self._down('down', data, socket)

    def _here(self, data: Any, socket: Any) -> None:
        """From a lane that counts broadcasts: those that are emitted after this answer."""
        self._down('down', data, socket)
        socket.context['reads'] = True

    def _ask(self, data: Any, socket: Any) -> None:
        self._up(data, socket)
        self._down('answer', data, socket)

    def _last(self, data: Any, socket: Any) -> None:
        self._up(data, socket)
        self._down('last', data, socket)

    def _bye(self, data: Any, socket: Any) -> None:
        """A planned end by us: all that was emitted must arrive."""
        self._up(data, socket)
        for _ in range(20):
            self._down('farewell', data, socket)
        socket.close()

    def _take_datagram(self, row: int, number: int, signature: int, payload: Any) -> None:
        if signature != sign(row, number, checksum(payload)):
            self._board.add(row, fields.UP_DAMAGED)
            self._findings.wrong('DAMAGED', f'row {row}: datagram {number} is not what was sent')
        with self._counting:
            self._board.add(row, fields.UP_DELIVERED)
            self._board.set(row, fields.HIGH, max(number, self._board.get(row, fields.HIGH)))

    def _down(self, type: str, data: Any, socket: Any) -> None:
        row, asked, _, payload, _ = data
        context, board = socket.context, self._board
        with self._counting:
            if not context['row']:
                self._keep(context, lane_of(row))
        row, token, kept = context['row'], context['token'], context['kept']
        number = context['number'] + 1
        try:
            socket.emit(type, [token, number, sign(row, number, checksum(payload)), payload, asked])
        except (nodeipc.NotConnectedError, nodeipc.EmitTimeout, OSError):
            return  # nothing of it will be sent
        context['number'] = number
        with self._counting:
            board.add(row, fields.DOWN_SENT)
            if kept:
                board.set(kept, fields.NUMBER, number)

    def _keep(self, context: Dict[str, Any], row: int) -> None:
        """Find a row in which it is counted what is sent by a connection of the lane at `row`."""
        context.update(row=row, number=0)
        if not self._is_udp:
            free = (kept for kept in range(row + CONNECTIONS, row + LANE) if not self._board.get(kept, fields.TOKEN))
            context['kept'] = next(free)
            self._board.set_connection(context['kept'], context['token'])

    def _check(self, row: int, number: int, signature: int, payload: Any, *, socket: Any) -> Any:
        self._ledger.take(socket.context['last'], row, number, signature, payload)
        return [row, number, signature, payload]

    def _tell_news(self) -> None:
        incarnation = os.getpid()
        while not self._ended.wait(_NEWS_SECONDS):
            payload, summed = self._payloads.pick()
            self._news += 1
            # Who was there before and is there after it, had it emitted; to whom else is not known.
            theirs = [socket for socket in self._server.sockets if socket.context.get('reads')]
            self._server.broadcast('news', [incarnation, self._news, sign(incarnation, self._news, summed), payload])
            with self._counting:
                for socket in theirs:
                    kept = socket.context['kept']
                    if kept and socket.connected:
                        self._board.add(socket.context['row'], fields.NEWS_SENT)
                        if not self._board.get(kept, fields.FIRST_NEWS):
                            self._board.set(kept, fields.FIRST_NEWS, self._news)
                        self._board.set(kept, fields.LAST_NEWS, self._news)
