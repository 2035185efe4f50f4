"""Programs of test_shortage.py: ``python -m tests.faults.shortage_programs PROGRAM ARGUMENTS...``, in the root of the tree.

Whatever takes something away from a whole process, or is large, is here. Each prints its findings as JSON, one line each.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Tuple

SECONDS = 30
WORKERS = 4
ASK = b'{"type":"ask","data":1}\f'
ANSWER = b'{"type":"answer","data":1}\f'


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def eventually(predicate: Callable[[], Any], timeout: float = SECONDS) -> None:
    end = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < end, f'not within {timeout} s'
        time.sleep(0.001)


def descriptors() -> List[str]:
    return sorted(os.listdir('/proc/self/fd'))


def more_descriptors() -> None:
    """As many as may be."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def answering(nodeipc: Any, id: str, **settings: Any) -> Tuple[Any, Any, List[str]]:
    """An instance, its server that answers, and the errors that it reports."""
    ipc = nodeipc.IPC(id=id, silent=True, **settings)
    server = ipc.serve()
    errors: List[str] = []
    server.on('error', lambda error: errors.append(f'{error.__class__.__name__}: {error}'))
    server.on('ask', lambda data, socket: socket.emit('answer', data))
    return ipc, server, errors


# Descriptors


def few_descriptors(*kinds: str) -> None:
    """Start, of each kind, with each number of descriptors that are left, from none.

    It works, or says what is wrong and leaves nothing.
    """
    import nodeipc

    with nodeipc.IPC(id='first') as first, first.serve():  # what is imported later
        first.connect_to('first').wait_connected(SECONDS)
    with nodeipc.IPC() as first, first.serve_net('127.0.0.1', 0):
        pass
    first_address = first.server.address
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for kind in kinds:
        _few_descriptors(kind, nodeipc, first_address, soft, hard)


def _few_descriptors(kind: str, nodeipc: Any, first_address: Any, soft: int, hard: int) -> None:
    found: List[Any] = [kind]
    before, threads = descriptors(), threading.active_count()
    for free in itertools.count():
        ipc = nodeipc.IPC(id=f'few-{kind}')
        with socket.socket() as lowest:
            limit = lowest.fileno() + free
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        path, error, failed = '', None, threading.Event()
        try:
            if kind == 'client':
                client = ipc.connect_to('nobody', '/nowhere', lambda client, failed=failed: client.on('error', failed.set))
                path = str(client.address)
                assert failed.wait(SECONDS)
            else:
                server = ipc.serve() if kind == 'unix' else ipc.serve_net(*first_address)
                path = server.address if kind == 'unix' else f'{first_address[0]}:{first_address[1]}'
                server.start()
        except OSError as caught:
            error = [caught.errno, str(caught)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if error:
            gc.collect()
            left = [descriptors() != before, threading.active_count() - threads]
        ipc.close(SECONDS)
        ipc.config.id += '-again'
        with ipc.serve() as again:  # the same instance, when there are some
            again.on('ask', lambda data, socket: socket.emit('answer', data))
            assert ipc.connect_to('again', again.address).request('ask', 1, reply='answer', timeout=SECONDS) == 1
        ipc.close(SECONDS)
        if not error:
            break
        found.append([free, path or '/nowhere', error, left])
    say([*found, free])


def handlers_without_descriptors() -> None:
    """A handler uses up all descriptors, and then does what needs some, or none."""
    import nodeipc

    ipc, server, errors = answering(nodeipc, 'world')
    taken: List[Any] = []
    outcome: Dict[str, Any] = {}

    @server.on('take')
    def take(data: Any, client: Any) -> None:
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        for what, act in (
            ('serve', lambda: nodeipc.IPC(id='inner').serve().start()),
            ('connect', lambda: nodeipc.IPC(id='inner').connect_to('world')),
            ('emit', lambda: client.emit('note', 'x' * 100_000)),
            ('broadcast', lambda: server.broadcast('note', 'x')),
            ('stats', server.stats),
        ):
            try:
                act()
                outcome[what] = None
            except OSError as error:
                outcome[what] = [error.errno, str(error)]
        client.emit('taken')

    @server.on('give')
    def give(data: Any, client: Any) -> None:
        while taken:
            os.close(taken.pop())
        with nodeipc.IPC(id='inner') as inner, inner.serve() as here:
            here.on('ask', lambda data, socket: socket.emit('answer', data))
            client.emit('given', inner.connect_to('inner').request('ask', 7, reply='answer', timeout=SECONDS))

    server.start()
    notes: List[int] = []
    with nodeipc.IPC(id='clients') as clients:
        client = clients.connect_to('world', lambda client: client.on('note', lambda data: notes.append(len(data))))
        waiting = clients.connect_to('waiting', server.address)
        assert waiting.wait_connected(SECONDS) and client.wait_connected(SECONDS)
        eventually(lambda: len(server.sockets) == 2)
        before = descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 20, hard))
        client.request('take', reply='taken', timeout=SECONDS)
        assert waiting.request('ask', 1, reply='answer', timeout=SECONDS) == 1
        given = client.request('give', reply='given', timeout=SECONDS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        gc.collect()
        eventually(lambda: descriptors() == before)
        say([outcome, notes, given, errors])
    ipc.close(SECONDS)


# Disks; run in a mount namespace of its own


def disk(directory: str) -> None:
    """Serve in a file system that is full, or read-only."""
    import nodeipc

    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'nr_inodes=16,size=1m', 'none', directory], check=True)
    root = os.path.join(directory, 'root', '')
    before = threading.active_count(), descriptors()

    def files() -> List[str]:
        return sorted(os.path.join(where, name) for where, _, names in os.walk(directory) for name in names)

    def fails(**settings: Any) -> List[Any]:
        """What start() raises: its number, its path, what it says, and whether anything is left."""
        settings.setdefault('socket_root', root)
        settings.setdefault('id', 'world')
        ipc = nodeipc.IPC(**settings)
        server = ipc.serve()
        before_it = files()
        try:
            server.start()
        except OSError as error:
            found = [error.errno, error.filename, str(error)]
        gc.collect()
        is_clean = (threading.active_count(), descriptors()) == before and not server.listening
        return [*found, is_clean and files() == before_it]

    def serves() -> bool:
        with nodeipc.IPC(id='world', socket_root=root) as ipc, ipc.serve() as server:
            server.on('ask', lambda data, socket: socket.emit('answer', data))
            answer = ipc.connect_to('world').request('ask', 5, reply='answer', timeout=SECONDS)
        return bool(answer == 5) and not os.path.exists(server.address)

    def fill() -> List[str]:
        made: List[str] = []
        while True:
            name = os.path.join(directory, f'filler-{len(made)}')
            try:
                os.close(os.open(name, os.O_CREAT))
            except OSError:
                return made
            made.append(name)

    def remount(how: str) -> None:
        subprocess.run(['mount', '-o', f'remount,{how}', directory], check=True)

    fillers = fill()
    say(['full, no root', *fails()])
    os.unlink(fillers.pop())
    say(['full, a root', *fails()])
    say(['full, a path', *fails(socket_root=directory + '/other/', secure_socket_root=False)])
    for filler in fillers:
        os.unlink(filler)
    say(['room again', serves()])

    # What is served goes on when the disk is full or cannot be written any more.
    running, server, errors = answering(nodeipc, 'running', socket_root=root)
    server.start()
    clients = nodeipc.IPC(id='clients')
    client = clients.connect_to('running', server.address)
    fillers = fill()
    assert client.request('ask', 1, reply='answer', timeout=SECONDS) == 1
    server.stop(SECONDS)
    say(['full, a stop', os.path.exists(server.address)])
    for filler in fillers:
        os.unlink(filler)
    server.start()
    assert client.wait_connected(SECONDS)
    remount('ro')
    late = clients.connect_to('late', server.address)
    assert client.request('ask', 1, reply='answer', timeout=SECONDS) == 1
    assert late.request('ask', 1, reply='answer', timeout=SECONDS) == 1
    clients.close(SECONDS)
    running.close(SECONDS)
    say(['read-only, a stop', os.path.exists(server.address), errors])
    before = threading.active_count(), descriptors()

    say(['read-only, a dead file', *fails(id='running')])
    say(['read-only, a root', *fails()])
    say(['read-only, no root', *fails(socket_root=directory + '/other/')])
    remount('rw')
    os.chmod(root, 0o755)
    remount('ro')
    say(['read-only, a root for all', *fails()])
    remount('rw')
    running.config.id = 'running'
    running.server.start()  # the dead file is replaced
    running.close(SECONDS)
    say(['room again', serves() and not os.listdir(root)])


# Threads


def threads(workers: str) -> None:
    """No thread can be started: from the beginning, in the middle, while a handler blocks; and then some can again."""
    import logging

    import nodeipc

    warnings: List[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    logging.getLogger('nodeipc').addHandler(Notes())
    logging.getLogger('nodeipc').propagate = False
    short = threading.Event()
    granted: List[str] = []

    def refusing(start: Callable[..., Any]) -> Callable[..., Any]:
        def start_thread(function: Any, *arguments: Any, **named: Any) -> Any:
            if short.is_set() and function.__self__.name not in granted:
                raise RuntimeError("can't start new thread")
            return start(function, *arguments, **named)

        return start_thread

    for name in ('_start_new_thread', '_start_joinable_thread'):  # the latter from 3.13 on
        if hasattr(threading, name):
            setattr(threading, name, refusing(getattr(threading, name)))

    # At start.
    before = threading.active_count(), descriptors()
    short.set()
    refused = []
    for begin in (
        lambda ipc: ipc.serve().start(),
        lambda ipc: ipc.serve_net('127.0.0.1', 0).start(),
        lambda ipc: ipc.connect_to('world'),
    ):
        ipc = nodeipc.IPC(id='world', workers=int(workers))
        try:
            begin(ipc)
        except RuntimeError as error:
            refused.append(str(error))
        assert (threading.active_count(), descriptors()) == before
        assert ipc.wait(0)
    say(refused)

    # In the middle: there was one for each instance, and there are no more.
    granted.append('nodeipc-reactor')
    ipc, server, errors = answering(nodeipc, 'world', workers=int(workers))
    gate, begun = threading.Event(), threading.Event()
    server.on('block', lambda: (begun.set(), gate.wait(SECONDS)))
    server.on('slow', lambda: time.sleep(0.002))
    server.start()
    clients = nodeipc.IPC(id='clients', workers=int(workers), retry=5)
    made = [clients.connect_to(f'client-{number}', server.address) for number in range(5)]
    for client in made:
        client.emit('slow')
        for number in range(20):
            client.emit('slow')
            assert client.request('ask', number, reply='answer', timeout=SECONDS) == number
    # A host name needs a thread to be looked up.
    failures: List[str] = []
    named = clients.connect_to_net('named', 'localhost', 1)
    named.on('error', lambda error: failures.append(str(error)))
    eventually(lambda: failures)
    # A handler that blocks holds up the others, who lose nothing.
    made[0].emit('block')
    assert begun.wait(SECONDS)
    answers: List[List[int]] = [[] for _ in made]
    for client, got in zip(made, answers):
        client.on('answer', got.append)
    for number in range(50):
        for client in made:
            client.emit('ask', number, timeout=SECONDS)
    gate.set()
    eventually(lambda: all(got == list(range(50)) for got in answers))
    names = [thread.name for thread in threading.enumerate()]
    assert names == ['MainThread', 'nodeipc-reactor', 'nodeipc-reactor'], names
    say([failures[0], errors, sum('no thread can be started' in text for text in warnings)])

    # There are threads again.
    short.clear()
    granted.clear()
    gate.clear()
    begun.clear()
    eventually(lambda: any('refused' in text for text in failures))  # it was looked up
    named.disconnect()
    for _ in range(10):
        assert made[1].request('ask', 7, reply='answer', timeout=SECONDS) == 7
    if int(workers) > 1:
        made[0].emit('block')
        assert begun.wait(SECONDS)
        assert made[1].request('ask', 7, reply='answer', timeout=SECONDS) == 7
        gate.set()

    # Ends that need a thread.
    server.on('close', lambda: ipc.close())
    single = nodeipc.connect('nobody-there', stop_retrying=True)
    short.set()
    over = single.wait(SECONDS)
    made[0].emit('close')
    eventually(lambda: not server.listening)
    single.disconnect()
    clients.close(SECONDS)
    ipc.close(SECONDS)
    eventually(lambda: threading.active_count() == before[0])
    gc.collect()
    say([over, descriptors() == before[1], sorted(set(errors))])


# Memory


def little_memory() -> None:
    """A server that has some 32 MB, and answers until its input ends."""
    import nodeipc

    ipc, server, errors = answering(nodeipc, 'world', workers=2)
    server.start()
    with open('/proc/self/statm') as statm:
        size = int(statm.read().split()[0]) * os.sysconf('SC_PAGE_SIZE')
    resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
    say(server.address)
    sys.stdin.read()
    say([errors, server.stats()['connections_total'], server.stats()['connections']])
    ipc.close(SECONDS)


# Connections


def resident() -> int:
    with open('/proc/self/statm') as statm:
        return int(statm.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def report(server: Any) -> Dict[str, Any]:
    gc.collect()
    return {
        'descriptors': len(descriptors()), 'threads': threading.active_count(), 'blocks': sys.getallocatedblocks(),
        'resident': resident(), 'total': server.stats()['connections_total'], 'unfinished': len(server._unfinished),
    }


def many_served(transport: str) -> None:
    """A server that tells how it is whenever it is told ``report``."""
    import nodeipc

    more_descriptors()
    ipc = nodeipc.IPC(id='world', silent=True, max_connections=5000, workers=WORKERS)
    server = ipc.serve() if transport == 'unix' else ipc.serve_net('127.0.0.1', 0)
    server.on('ask', lambda data, socket: socket.emit('answer', data))
    server.on('report', lambda data, socket: socket.emit('report', report(server)))
    server.start()
    say(server.address)
    sys.stdin.read()
    ipc.close(SECONDS)


def come_and_go() -> None:
    """Connect, ask, and leave, again and again, by plain sockets and by clients at the same time.

    Orders are lines on stdin: where, for how many seconds, and how often at least. Says how often it was, how often the
    answer was wrong, and how many seconds it took.
    """
    import nodeipc

    for line in sys.stdin:
        where, seconds, least = json.loads(line)
        where = tuple(where) if isinstance(where, list) else where
        began = time.monotonic()
        done = {'sockets': 0, 'clients': 0}
        wrong: List[Any] = []

        def goes_on(began: float = began, seconds: float = seconds, least: int = least, done: Dict[str, int] = done) -> bool:
            return time.monotonic() - began < seconds or sum(done.values()) < least

        def by_sockets(where: Any = where, goes_on: Any = goes_on, done: Any = done, wrong: Any = wrong) -> None:
            while goes_on():
                with socket.socket(socket.AF_UNIX if isinstance(where, str) else socket.AF_INET) as sock:
                    sock.connect(where)
                    sock.sendall(ASK)
                    if sock.recv(len(ANSWER), socket.MSG_WAITALL) != ANSWER:
                        wrong.append('sockets')
                    if not isinstance(where, str):  # or the system would remember thousands of them for a minute
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
                done['sockets'] += 1

        other = threading.Thread(target=by_sockets)
        other.start()
        with nodeipc.IPC(id='clients') as ipc:
            connect = ipc.connect_to if isinstance(where, str) else ipc.connect_to_net
            while goes_on():
                client = connect('world', *([where] if isinstance(where, str) else where))
                if client.request('ask', done['clients'], reply='answer', timeout=SECONDS) != done['clients']:
                    wrong.append('clients')
                client.disconnect()
                done['clients'] += 1
        other.join()
        say([sum(done.values()), len(wrong), time.monotonic() - began])


def many_clients(count: str) -> None:
    """So many clients of one instance, at once; each asks. The path of the server is a line on stdin."""
    import nodeipc

    more_descriptors()
    ipc = nodeipc.IPC(id='clients')
    with nodeipc.IPC(id='first') as first, first.serve():
        first.connect_to('first').wait_connected(SECONDS)
    (path,) = json.loads(sys.stdin.readline())
    gc.collect()
    before = len(descriptors()), threading.active_count()
    blocks = sys.getallocatedblocks()
    clients = [ipc.connect_to(f'client-{number}', path) for number in range(int(count))]
    assert all(client.wait_connected(SECONDS) for client in clients)
    right = sum(
        client.request('ask', number, reply='answer', timeout=SECONDS) == number for number, client in enumerate(clients)
    )
    say([right, sum(client.connected for client in clients)])
    sys.stdin.readline()
    ipc.close(SECONDS)
    del clients, ipc
    gc.collect()
    say([[len(descriptors()), threading.active_count()] == list(before), sys.getallocatedblocks() - blocks])


# Clocks


def clock(certificates: str) -> None:
    """The wall clock jumps by hours, back and forth, each time that anybody looks at it."""
    jumps = itertools.count()
    real = time.time
    looked = [0]

    def jumping() -> float:
        looked[0] += 1
        return real() + 3600 * (next(jumps) % 7 - 3) * 5

    time.time = jumping
    if hasattr(time, 'time_ns'):
        time.time_ns = lambda: int(jumping() * 1e9)

    import nodeipc

    took: Dict[str, float] = {}

    def timed(what: str, act: Callable[[], Any]) -> None:
        began = time.monotonic()
        act()
        took[what] = time.monotonic() - began

    def raises(kind: type, act: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            try:
                act()
            except kind:
                return
            raise AssertionError(f'{kind} was not raised')

        return call

    ipc, server, errors = answering(nodeipc, 'world', parser='guarded', message_timeout=100, stall_timeout=100)
    clients = nodeipc.IPC(id='clients', retry=10, parser='guarded')
    client = clients.connect_to('world')
    timed('emit without a connection', raises(nodeipc.EmitTimeout, lambda: client.emit('ask', timeout=0.1)))
    timed('wait_connected', lambda: client.wait_connected(0.1) and 1 / 0)
    server.start()
    timed('a retry', lambda: client.wait_connected(SECONDS) or 1 / 0)
    timed('a request', raises(nodeipc.RequestTimeout, lambda: client.request('nothing', timeout=0.1)))
    timed('events', raises(nodeipc.RequestTimeout, lambda: next(client.events('nothing', timeout=0.1))))
    assert client.request('ask', 1, reply='answer', timeout=SECONDS) == 1
    with socket.socket(socket.AF_UNIX) as late:
        late.connect(server.address)
        late.sendall(ASK[:5])
        timed('a message that is not complete', lambda: late.recv(10))
    for number in range(200):
        assert client.request('ask', number, reply='answer', timeout=SECONDS) == number
    server.stop(SECONDS)
    server.start()
    timed('a reconnect', lambda: client.request('ask', 2, reply='answer', timeout=SECONDS))
    if certificates:
        files = json.loads(certificates)
        secure = nodeipc.IPC(id='secure', tls={'private': files[0], 'public': files[1]}, connect_timeout=SECONDS * 1000)
        over = secure.serve_net('127.0.0.1', 0)
        over.on('ask', lambda data, socket: socket.emit('answer', data))
        over.start()
        trusting = nodeipc.IPC(id='trusting', tls={'trusted_connections': files[2]}, connect_timeout=SECONDS * 1000)
        talker = trusting.connect_to_net('secure', 'localhost', over.address[1])
        timed('a handshake', lambda: talker.request('ask', 3, reply='answer', timeout=SECONDS))
        trusting.close(SECONDS)
        secure.close(SECONDS)
    timed('close', lambda: (clients.close(SECONDS), ipc.close(SECONDS)))
    say([took, errors, looked[0]])


if __name__ == '__main__':
    globals()[sys.argv[1]](*sys.argv[2:])
