"""Servers and clients that are killed: processes forked from one that has imported nodeipc once and has no thread.

``python -m tests.faults.killed_victims`` takes orders as JSON lines on stdin: ``{"fork": role, ...}`` starts a victim and is
answered with its pid, ``{"reap": pid}`` with how it ended. It ends with stdin, and its victims with it. What a victim finds
wrong it writes to stdout, as a line of its own; what it has done it writes on a `Board`, which outlives it.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import threading
from typing import Any, Callable, Dict, List, Optional

import nodeipc

# Each victim would import these.
import nodeipc.datagram
import nodeipc.stream
import nodeipc.streamclient
import nodeipc.sync
import nodeipc.tls
import nodeipc.tlsstream

WINDOW = 64

_SLOTS = 512
_SECONDS = 60.0


def filler(number: int) -> str:
    """What goes with a number: mostly little, sometimes what takes several writes, and always the same."""
    return '\u00e4"\f\\x' * (20_000 if number % 50 == 49 else number * 7 % 200)


class Series:
    """What came by one connection: the numbers follow each other, and what goes with them is whole."""

    def __init__(self, first: Optional[int] = 0) -> None:
        self.next = first  # None: any

    def take(self, number: int, text: str) -> str:
        """Return what is wrong with what came, or nothing."""
        expected, self.next = self.next, number + 1
        if expected is not None and number != expected:
            return f'{number} came where {expected} should'
        return '' if text == filler(number) else f'what came with {number} is damaged'


class Window:
    """How many messages may be under way: some, so that queues are never empty, and never so many that all wait for long."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._free = WINDOW

    def enter(self, timeout: float = _SECONDS) -> bool:
        """Wait until there is room for one more; False if there is none within `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._free > 0, timeout):
                return False
            self._free -= 1
            return True

    def leave(self, all_of_them: bool = False) -> None:
        """One has been answered, or none will be."""
        with self._changed:
            self._free = WINDOW if all_of_them else self._free + 1
            self._changed.notify()


class Board:
    """Numbers that processes share, so that one which is killed leaves behind what it has done."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, 'a+b') as file:
            if os.fstat(file.fileno()).st_size < 8 * _SLOTS:
                file.truncate(8 * _SLOTS)
            self._map = mmap.mmap(file.fileno(), 8 * _SLOTS)
        self._numbers = memoryview(self._map).cast('q')

    def __getitem__(self, slot: int) -> int:
        return self._numbers[slot]

    def __setitem__(self, slot: int, number: int) -> None:
        self._numbers[slot] = number

    def close(self) -> None:
        self._numbers.release()
        self._map.close()


def connect(ipc: nodeipc.IPC, where: Any, callback: Any, id: str = 'world') -> Any:
    """A client of the server at a path, or at a host and a port."""
    if isinstance(where, str):
        return ipc.connect_to(id, where, callback)
    return ipc.connect_to_net(id, *where, callback)


def serve(ipc: nodeipc.IPC, where: Any) -> nodeipc.Server:
    """A server there."""
    return ipc.serve(where) if isinstance(where, str) else ipc.serve_net(*where)


def complain(what: str) -> None:
    """Tell the test."""
    os.write(1, f'{json.dumps({"pid": os.getpid(), "wrong": what})}\n'.encode())  # at once, whatever other victims write


def _in_thread(work: Callable[[], Any]) -> None:
    threading.Thread(target=work, daemon=True).start()


def emitter(board: Board, where: Any, slot: int, name: str, lives: bool, settings: Dict[str, Any]) -> None:
    """A client that emits without end, asks without end, and is sent numbers. `slot`: how many the system has of it.

    One that `lives` is never to lose its connection.
    """
    client: Any = None
    pushes, news, window = Series(), Series(None), Window()
    ipc = nodeipc.IPC(id=name, retry=20, **settings)

    def prepare(made: Any) -> None:
        made.on('push', lambda data: (_check(pushes, data), window.leave()))
        made.on('news', lambda data: _check(news, data))
        made.on('error', lambda error: complain(f'{name}: {error!r}'))
        made.on('disconnect', lambda: complain(f'{name} was disconnected'))

    client = connect(ipc, where, prepare)

    def emit() -> None:
        number = 0
        while True:
            window.enter()
            client.emit('number', [name, number, filler(number)])
            number += 1
            if not client.stats()['pending_bytes']:
                board[slot] = number
            if lives:
                threading.Event().wait(0.005)

    _in_thread(emit)
    number = 0
    while True:
        if client.request('ask', number, timeout=_SECONDS) != number:
            complain(f'{name} was given the answer to another question')
        number += 1


def _check(series: Series, data: List[Any]) -> None:
    wrong = series.take(*data[-2:])
    if wrong:
        complain(wrong)


def answerer(board: Board, where: Any, generation: int, settings: Dict[str, Any]) -> None:
    """A server that answers, and pushes a number for each that it is sent. Each client has two slots.

    The first is the number after the last that was handled, whichever server that was, the second how many were.
    """
    ipc = nodeipc.IPC(id='world', **settings)
    server, lock = serve(ipc, where), threading.Lock()

    @server.on('number')
    def number(data: Any, socket: Any) -> None:
        slot, number, text = data
        context = socket.context
        if 'series' not in context:
            context.update(series=Series(None), pushed=0)
            if number <= board[slot] - 1:
                complain(f'{number} of {slot} came twice')
        wrong = context['series'].take(number, text)
        if wrong:
            complain(f'from {slot}: {wrong}')
        with lock:  # an earlier connection's last may be handled still
            board[slot] = max(board[slot], number + 1)
            board[slot + 1] += 1
        socket.emit('push', [generation, context['pushed'], filler(context['pushed'])])
        context['pushed'] += 1

    server.on('ask', lambda data, socket: socket.emit('ask', [data, generation]))

    @server.on('giant')
    def giant(size: int, socket: Any) -> None:
        _die_inside(socket._connection)
        socket.emit('giant', 'x' * size)

    server.start()
    signal.pause()


def listener(board: Board, where: Any, slot: int, settings: Dict[str, Any]) -> None:
    """A client that is sent numbers. Its slots: how many it was, how often it was connected, and disconnected."""
    ipc = nodeipc.IPC(id='listener', retry=20, **settings)
    series: List[Series] = []

    def connected() -> None:
        series.append(Series(None if series else 0))
        board[slot + 1] += 1

    def push(data: Any) -> None:
        _check(series[-1], data)
        board[slot] += 1

    def disconnected() -> None:
        board[slot + 2] += 1

    def prepare(client: Any) -> None:
        client.on('connect', connected)
        client.on('disconnect', disconnected)
        client.on('push', push)

    connect(ipc, where, prepare)
    signal.pause()


def giant(board: Board, where: Any, size: int, settings: Dict[str, Any]) -> None:
    """A client that emits what takes many writes, and is killed between two of them."""
    client = connect(nodeipc.IPC(id='giant', **settings), where, None)
    client.wait_connected(_SECONDS)
    _die_inside(client._connection)
    client.emit('giant', 'x' * size)
    signal.pause()


def _die_inside(connection: Any) -> None:
    """Have this process killed when so much of a message was written, by whatever thread."""
    send, sent = connection._send, 0

    def dying_send(block: Any, flags: int) -> int:
        nonlocal sent
        count: int = send(block, flags)
        sent += count
        if sent > 100_000:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    connection._send = dying_send


def asker(board: Board, where: Any, how: str, settings: Dict[str, Any]) -> None:
    """A client that waits for an answer: a script's, or one with ``config.sync``."""
    if how == 'sync':
        client = connect(nodeipc.IPC(id='asker', sync=True, **settings), where, None)
        client.emit('slow', 1)
        client.emit('slow', 2, timeout=_SECONDS)
    else:
        address = where if isinstance(where, str) else f'{"tls" if "tls" in settings else "tcp"}://{where[0]}:{where[1]}'
        with nodeipc.connect(address, **settings) as script:
            script.request('slow', 1, timeout=_SECONDS)
    complain('there was an answer')


def datagrams(board: Board, where: Any, settings: Dict[str, Any]) -> None:
    """A UDP server that echoes."""
    ipc = nodeipc.IPC(id='udp', **settings)
    server = ipc.serve_net(*where, 'udp4')
    server.on('message', lambda data, socket: socket.emit('message', data))
    server.start()
    board[0] = server.address[1]
    signal.pause()


ROLES: Dict[str, Callable[..., None]] = {
    role.__name__: role for role in (answerer, asker, datagrams, emitter, giant, listener)
}


def _be(order: Dict[str, Any]) -> None:
    """Be a victim; never returns."""
    try:
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        role = ROLES[order.pop('fork')]
        role(Board(order.pop('board')), **order)
    except BaseException as error:
        complain(f'a victim has failed: {error!r}')
    finally:
        os._exit(1)


def main() -> None:
    """Take orders."""
    alive = set()
    for line in sys.stdin.buffer:
        order = json.loads(line)
        if 'fork' in order:
            pid = os.fork()
            if pid == 0:
                _be(order)
            alive.add(pid)
            answer = {'pid': pid}
        else:
            pid = order['reap']
            answer = {'status': os.waitpid(pid, 0)[1]}
            alive.discard(pid)
        os.write(1, f'{json.dumps(answer)}\n'.encode())
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == '__main__':
    main()
