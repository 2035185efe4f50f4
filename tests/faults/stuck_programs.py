"""Programs of test_stuck.py: ``python -m tests.faults.stuck_programs PROGRAM ARGUMENTS...``, from the root of the tree.

Whatever could hang or leave a process behind is here. Each prints its findings as JSON, one line each.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import warnings
from typing import Any, Callable, Dict, List

import nodeipc
import nodeipc.engine
import nodeipc.instance
import nodeipc.reactor
import nodeipc.workers

SECONDS = 30


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def be_impatient(set: Callable[[Any, str, float], Any]) -> None:
    """Make short how long handlers that may be stuck are waited for, that tests of those that are need not be long."""
    set(nodeipc.deadline, 'EXIT_SECONDS', 0.1)
    set(nodeipc.engine, '_LOOK_SECONDS', 0.1)
    set(nodeipc.reactor, '_ANSWER_SECONDS', 0.2)
    set(nodeipc.workers, '_END_SECONDS', 0.3)


def never_returns(side: str, workers: str) -> None:
    """The script ends, and a handler does not. Patience at exit is made short, that the test is."""
    be_impatient(setattr)
    begun = threading.Event()

    def stuck() -> None:
        begun.set()
        threading.Event().wait()

    mine = {'stall_timeout': 200, 'workers': int(workers)}
    server = nodeipc.IPC(id=f'server-{side}-{workers}', **(mine if side == 'server' else {})).serve()
    clients = nodeipc.IPC(id='clients', **(mine if side == 'client' else {}))
    server.on('connect', lambda socket: socket.emit('do'))
    if side == 'server':
        server.on('do', stuck)
    server.start()
    client = clients.connect_to('client', server.address, lambda client: client.on('do', stuck))
    if side == 'server':
        client.off('do')
        client.emit('do')
    assert begun.wait(SECONDS)
    say('ends')


def forks(side: str, workers: str) -> None:
    """A handler forks: a child that leaves at once, and one that has an instance of its own."""
    warnings.filterwarnings('ignore', category=DeprecationWarning)  # of 3.12: the process has threads
    server = nodeipc.IPC(id=f'server-{side}-{workers}', workers=int(workers) if side == 'server' else 2).serve()
    clients = nodeipc.IPC(id='clients', workers=int(workers) if side == 'client' else 2)

    def child(what: str) -> None:
        if server.listening or server.sockets or any(client.connected for client in made):
            os._exit(3)  # they are the parent's
        if what == 'instance':
            with nodeipc.IPC(id=f'child-{os.getpid()}') as mine, mine.serve() as here:
                here.on('ask', lambda data, socket: socket.emit('answer', data))
                answer = mine.connect_to(mine.config.id).request('ask', 'own', reply='answer', timeout=SECONDS)
            if answer != 'own' or os.path.exists(here.address):
                os._exit(1)
        os._exit(0)

    def fork(what: str) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                child(what)
            finally:
                os._exit(2)
        return os.waitpid(pid, 0)[1]

    if side == 'server':
        server.on('fork', lambda data, socket: socket.emit('status', fork(data)))
        server.on('ask', lambda data, socket: socket.emit('answer', data))
    sockets: List[Any] = []
    server.on('connect', sockets.append)
    server.start()

    def prepare(client: Any) -> None:
        if side == 'client':
            client.on('fork', lambda data: client.emit('status', fork(data)))
            client.on('ask', lambda data: client.emit('answer', data))

    made = [clients.connect_to(f'client-{number}', server.address, prepare) for number in range(2)]
    while len(sockets) < 2:
        time.sleep(0.001)
    first, second = made if side == 'server' else sockets
    statuses, answers = [], []
    for number, what in enumerate(['leave', 'instance'] * 3):
        statuses.append(first.request('fork', what, reply='status', timeout=SECONDS))
        for peer in (first, second):
            answers.append(peer.request('ask', number, reply='answer', timeout=SECONDS) == number)
    say([statuses, all(answers), server.stats()['connections_total'], os.path.exists(server.address)])
    clients.close(SECONDS)
    server.stop(SECONDS)


def recursion(side: str, workers: str, size: str) -> None:
    """A handler emits from every depth near the recursion limit. Says how often the ends were of one mind afterwards.

    The codec is as shallow as can be, so that what runs out of stack is not the encoding alone.
    """
    settings: Dict[str, Any] = {'parser': Shallow(), 'retry': 5, 'silent': True}
    server = nodeipc.IPC(id=f'server-{workers}', workers=int(workers) if side == 'server' else 2, **settings).serve()
    clients = nodeipc.IPC(id='clients', workers=int(workers) if side == 'client' else 2, **settings)
    payload = 'x' * int(size)
    delivered: List[int] = []
    outcome: Dict[int, str] = {}

    def deep(frames: int, emit: Callable[..., Any]) -> None:
        if frames:
            deep(frames - 1, emit)
        else:
            emit('deep', payload)

    def handle(margin: int, emit: Callable[..., Any]) -> None:
        depth, frame = 0, sys._getframe()
        while frame is not None:
            depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
        try:
            deep(sys.getrecursionlimit() - depth - margin, emit)
            outcome[margin] = 'emitted'
        except RecursionError:
            outcome[margin] = 'refused'

    def note(data: str) -> None:
        delivered.append(len(data))

    lost = threading.Event()
    if side == 'server':
        server.on('do', lambda data, socket: handle(data, socket.emit))
    else:
        server.on('deep', note)
    server.on('ask', lambda data, socket: socket.emit('answer', data))
    sockets: List[Any] = []
    server.on('connect', sockets.append)
    server.start()

    def prepare(client: Any) -> None:
        client.on('disconnect', lost.set)
        if side == 'client':
            client.on('do', lambda data: handle(data, client.emit))
        else:
            client.on('deep', note)

    client = clients.connect_to('client', server.address, prepare)
    standing = 0
    for margin in range(40, 0, -1):
        assert client.wait_connected(SECONDS)
        while not (sockets and sockets[-1].connected):
            time.sleep(0.001)
        lost.clear()
        before = len(delivered)
        (client if side == 'server' else sockets[-1]).emit('do', margin)
        end = time.monotonic() + SECONDS
        while margin not in outcome:
            assert time.monotonic() < end, 'the handler was not called'
            time.sleep(0.001)
        # Whatever raised: the message has arrived, or the connection was lost, or it stands and takes the next one.
        if outcome[margin] == 'emitted':
            while len(delivered) == before and not lost.is_set():
                assert time.monotonic() < end, f'emitted {margin} frames below the limit, and neither delivered nor lost'
                time.sleep(0.001)
        while True:
            assert time.monotonic() < end, f'{margin} frames below the limit: it stands still, and nobody is told'
            try:
                answer = client.request('ask', margin, reply='answer', timeout=2)
                break
            except nodeipc.NotConnectedError:  # asked just before it was lost
                pass
            except TimeoutError as error:
                raise SystemExit(f'{margin} frames below the limit: it stands still, and nobody is told: {error}') from None
        assert answer == margin
        standing += 1
    say([standing, set(delivered) <= {int(size)}, sorted(set(outcome.values()))])
    clients.close(SECONDS)
    server.stop(SECONDS)


class Shallow:
    """A codec that calls next to nothing: four bytes of length, then ``repr((type, data))`` that Python reads again."""

    def encode(self, type: str, data: Any) -> bytes:
        body = f'{type}\0{data}'.encode()
        return len(body).to_bytes(4, 'big') + body

    class Decoder:
        def __init__(self) -> None:
            self._rest = bytearray()

        def feed(self, data: bytes) -> Any:
            self._rest += data
            while len(self._rest) >= 4:
                end = 4 + int.from_bytes(self._rest[:4], 'big')
                if len(self._rest) < end:
                    return
                type, _, data = bytes(self._rest[4:end]).decode().partition('\0')  # type: ignore[assignment]
                del self._rest[:end]
                yield type, int(data) if data.isdigit() else data

    def decoder(self) -> Any:
        return self.Decoder()


# A producer and a consumer


BODY = 'x' * 1000
PAUSE = 0.001
MESSAGES_A_PAUSE = 8
QUEUE = 256 << 10


def consume(role: str, how: str, seconds: str) -> None:
    """Handle some messages a millisecond; say how many came, and how many of them not once and in order."""
    came, wrong = [0], [0]
    done = threading.Event()

    def handle(data: Any) -> None:
        number, _ = data
        wrong[0] += number != came[0]
        came[0] += 1
        if came[0] % MESSAGES_A_PAUSE == 0:
            time.sleep(PAUSE)

    ipc = nodeipc.IPC(id=how, silent=True)
    if role == 'server':
        server = ipc.serve()
        server.on('item', handle)
        server.on('done', lambda data, socket: (socket.emit('done'), done.set()))
        server.start()
        say('ready')
    else:
        say('ready')
        client = ipc.connect_to(how, lambda client: (client.on('item', handle), client.on('done', lambda: done.set())))
        client.emit('begin')
    assert done.wait(float(seconds) + 2 * SECONDS)
    say([came[0], wrong[0]])
    sys.stdin.read()
    ipc.close(SECONDS)


def produce(role: str, how: str, seconds: str) -> None:
    """Emit as fast as it goes; say how many were emitted, and how many times faster it could have been."""
    ipc = nodeipc.IPC(id=how, silent=True, max_pending_bytes=QUEUE, emit_timeout=60_000)
    begun = threading.Event()
    emit: Callable[..., Any]
    if role == 'client':
        client = ipc.connect_to(how)
        assert client.wait_connected(SECONDS)
        emit = client.emit
    else:
        server = ipc.serve()
        server.on('begin', lambda: begun.set())
        server.start()
        assert begun.wait(SECONDS)
        emit = server.broadcast if how == 'broadcast' else server.sockets[0].emit
    say('begins')
    sent, began, spent = 0, time.monotonic(), time.thread_time()
    while time.monotonic() - began < float(seconds):
        for _ in range(10):
            emit('item', [sent, BODY])
            sent += 1
    # What it did not spend it has waited for the consumer. Of other processes' load both sides have their share.
    ratio = (time.monotonic() - began) / (time.thread_time() - spent)
    emit('done')
    say([sent, ratio])
    sys.stdin.read()
    ipc.close(SECONDS)


if __name__ == '__main__':
    globals()[sys.argv[1]](*sys.argv[2:])
