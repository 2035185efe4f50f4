"""Lives that cross: forks and multiprocessing, the end of the interpreter, signal handlers and ``__del__`` at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, Callable, List, Optional

import pytest

from ..conftest import eventually

_SECONDS = 20.0

# CPython 3.8 under -X dev crashes in the child of any fork, with or without this library.
_DEV = ['-X', 'dev']
_FORKS = [] if sys.version_info < (3, 9) else _DEV
_QUIET = ['-W', 'ignore:This process:DeprecationWarning']  # is multi-threaded, and forks

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


def start(arguments: List[str], interpreter: List[str] = _DEV, root: Optional[Path] = None) -> subprocess.Popen[str]:
    """Start a program, whose Unix sockets are in `root` if not where the test's are."""
    environment = {**os.environ, 'PYTHONPATH': os.getcwd()}
    if root is not None:
        root.mkdir(mode=0o700)
        environment['XDG_RUNTIME_DIR'] = str(root)
    return subprocess.Popen(
        [sys.executable, *interpreter, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip


def end_of(process: subprocess.Popen[str]) -> str:
    """Return what a program printed that ended well, and said nothing on stderr."""
    try:
        out, err = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with its children, who have the pipes, too
        out, err = process.communicate()
        raise AssertionError(f'it hangs: {out} {err}') from None
    assert (process.returncode, err) == (0, '')
    return out


def ends_of(processes: List[subprocess.Popen[str]]) -> List[str]:
    """As `end_of` each of them; none is left, whatever one of them has done."""
    try:
        return [end_of(process) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def numbers(make: Any) -> List[Any]:
    """What programs have emitted to the server `world`, which answers."""
    got: List[Any] = []
    server = make(id='world').serve()
    server.on('number', lambda data, socket: got.append(data))
    server.on('message', lambda data, socket: socket.emit('message', data))
    server.start()
    return got


# Signal handlers and __del__


# How, and whether one of the connections is a TLS one.
_INTERRUPTED = (('signal', False), ('signal', True), ('del', False), ('del', True), ('raise', False))


def test_what_interrupts_us_is_done_or_refused_and_never_hangs(
    request: pytest.FixtureRequest, often: Any, tried: Any
) -> None:
    """Any act, at any moment of any other; and all works as before when it is over."""
    count = often(500, 6000)
    files = ''
    if shutil.which('openssl'):
        certificates = request.getfixturevalue('certificates')
        files = json.dumps([certificates.server(), certificates.client()])
    # An exception at the end of a `with` leaves its lock locked before 3.10 (https://bugs.python.org/issue29988).
    can_raise = sys.version_info >= (3, 10)
    variants = [(how, tls) for how, tls in _INTERRUPTED if (files or not tls) and (can_raise or how != 'raise')]
    for seed in range(often(1, 10)):
        processes = [
            start(['-m', 'tests.faults.lifetimes_interrupts', how, f'{how} {seed}', str(count), files if tls else ''])
            for how, tls in variants
        ]
        for (how, tls), out in zip(variants, ends_of(processes)):
            outcome = json.loads(out)
            if how == 'raise':
                assert outcome['raise']['done'] > count // 2
            else:
                never_refused = {'emit_elsewhere', 'on_off', 'on_connect', 'disconnect', 'close', 'stats'}
                assert {act for act in outcome if 'refused' not in outcome[act]} >= never_refused
                assert len(outcome) == 12
            what = {'signal': 'signal handlers', 'del': 'objects collected', 'raise': 'exceptions'}[how]
            tried(f'{what} at random moments, {"a TLS and Unix connections" if tls else "Unix"}', count)


class Interrupted(deque):  # type: ignore[type-arg]
    """A queue that something else is done in the middle of, once."""

    def __init__(self, items: Any, act: Any) -> None:
        super().__init__(items)
        self.acts = [act]

    def extend(self, items: Any) -> None:
        super().extend(items)
        if self.acts:
            self.acts.pop()()

    def append(self, item: Any) -> None:
        super().append(item)
        if self.acts:
            self.acts.pop()()


def test_a_strand_that_is_posted_to_by_what_interrupts_a_post(make: Any) -> None:
    """Both are handled, once, and one at a time."""
    ipc = make()
    ipc.serve().start()
    client = ipc.connect_to('world')
    client.wait_connected(_SECONDS)
    eventually(lambda: client._announced and client._strand.is_idle)
    called: List[int] = []
    act = lambda: client.on('connect', lambda: called.append(2))  # noqa: E731  # what a __del__ may do
    client._strand._items = Interrupted(client._strand._items, act)
    thread = threading.Thread(target=client.on, args=('connect', lambda: called.append(1)), daemon=True)
    thread.start()
    thread.join(_SECONDS)
    assert not thread.is_alive()
    eventually(lambda: sorted(called) == [1, 2] and client._strand.is_idle)


class InterruptedLock:
    """A lock whose holder is interrupted as soon as it has it, again and again, for an act that may need the lock, too."""

    def __init__(self, lock: Any, act: Callable[[], Any]) -> None:
        self._lock = lock
        self._act = act
        self._here = threading.local()
        self.times = 0

    def __enter__(self) -> None:
        # What waits for ever for a lock that its own thread holds is told, where a test would hang.
        if not self.acquire(timeout=_SECONDS / 4):
            raise AssertionError('who interrupts the holder of a lock waits for it')

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return bool(self._lock.acquire(blocking, timeout)) and self._interrupt()

    def release(self) -> None:
        self._lock.release()

    def _interrupt(self) -> bool:
        if not getattr(self._here, 'is_inside', False):
            self._here.is_inside = True
            try:
                self._act()
            finally:
                self._here.is_inside = False
            self.times += 1
        return True

    def __exit__(self, *_: Any) -> None:
        self.release()


def test_events_that_are_posted_to_a_strand_by_what_interrupts_that(make: Any) -> None:
    """The reactor posts what it has read, and runs what then needs the same strand: both are handled."""
    ipc = make()
    server = ipc.serve()
    server.on('ask', lambda data, socket: socket.emit('message', 1))
    server.start()
    client = ipc.connect_to('world')
    client.wait_connected(_SECONDS)
    eventually(lambda: client._announced and client._strand.is_idle)
    got: List[int] = []
    client.on('message', got.append)
    eventually(lambda: client._strand.is_idle)
    strand = client._strand
    lock = strand._lock = InterruptedLock(strand._lock, lambda: None)
    strand._items = Interrupted(strand._items, lambda: strand.post_events([('message', 2)], 10))
    client.emit('ask')
    eventually(lambda: sorted(got) == [1, 2])
    assert lock.times
    assert client.connected
    assert client.stats()['connections'] == 1


def test_who_receives_by_tls_may_be_interrupted_for_an_emit_to_the_same_connection(make: Any, certificates: Any) -> None:
    """By a ``__del__`` on the reactor's thread: it is sent, and what is being received arrives as it should."""
    server = make(tls=certificates.server()).serve_net('127.0.0.1', 0)
    noise: List[int] = []
    server.on('noise', lambda data, socket: noise.append(data))
    server.on('ask', lambda data, socket: socket.emit('ask', data))
    server.start()
    client = make(id='client', tls=certificates.client()).connect_to_net('world', *server.address)
    assert client.request('ask', 'first', timeout=_SECONDS) == 'first'  # and the tickets of the session have come
    here = threading.current_thread()
    tried: List[int] = []

    def act() -> None:
        if threading.current_thread() is not here and len(tried) < 200:
            tried.append(len(tried))
            client.emit('noise', tried[-1])

    stream = client._connection._tls
    stream._lock = InterruptedLock(stream._lock, act)
    # One by one: the asker is not inside the connection while the reactor is.
    for number in range(50):
        assert client.request('ask', number, timeout=_SECONDS) == number
    assert len(tried) >= 50
    client.flush(_SECONDS)
    eventually(lambda: noise == tried)
    assert client.stats()['connections'] == 1


# The end of the interpreter


def test_handlers_of_atexit_before_and_after_ours(numbers: List[Any]) -> None:
    """Those registered after the import run first, and all works in them; those from before it are told that it is over."""
    out = end_of(start(['-c', """
import atexit

def late():
    for act in (lambda: client.emit('number', 'late'), lambda: client.request('message', 'late', timeout=5)):
        try:
            act()
            print('done')
        except nodeipc.NotConnectedError as error:
            print('NotConnectedError')
    ipc.close()
    print(ipc.wait(5))

atexit.register(late)
import nodeipc
ipc = nodeipc.IPC(id='client')

def early():
    client.emit('number', 'early')
    print(client.request('message', 'early', timeout=5))
    ipc.connect_to('another', server.address).emit('number', 'x' * 3_000_000)

atexit.register(early)

def closing():
    other = nodeipc.IPC(id='other')
    try:
        other.connect_to('world', server.address).emit('number', 'closing')
    except RuntimeError as error:
        print('threadless' if 'open it before the script ends' in str(error) else error)
    other.close()

atexit.register(closing)
client = server = ipc.connect_to('world')
client.wait_connected(5)
"""]))  # fmt: skip
    threadless = out.startswith('threadless')
    assert not threadless or sys.version_info[:2] == (3, 12)  # which starts no threads in these handlers
    assert out.split()[threadless:] == ['early', 'NotConnectedError', 'NotConnectedError', 'True']
    eventually(lambda: len(numbers) == 3 - threadless)
    assert [number[:7] for number in numbers if number != 'closing'] == ['early', 'x' * 7]
    assert len(max(numbers, key=len)) == 3_000_000


def test_an_instance_that_is_opened_after_ours_has_ended_harms_nobody() -> None:
    end_of(start(['-c', """
import atexit

def late():
    try:
        with nodeipc.IPC(id='late') as ipc, ipc.serve() as server:
            ipc.connect_to('late').request('nothing', timeout=0.1)
    except (RuntimeError, nodeipc.RequestTimeout):
        pass

atexit.register(late)
import nodeipc
nodeipc.IPC(id='first').serve().start()
"""]))  # fmt: skip


_TALKING = """
import sys, threading, nodeipc
sys.setswitchinterval(1e-5)
ipc = nodeipc.IPC(id='client')
client = ipc.connect_to('world')
client.wait_connected(10)
begun = threading.Barrier(5)

def talk(which):
    number = 0
    begun.wait()
    try:
        while {condition}:
            client.emit('number', [{program!r}, which, number])
            number += 1
            if which == 3:
                client.request('message', number)
    except nodeipc.NotConnectedError:
        pass

for which in range(4):
    threading.Thread(target=talk, args=(which,), daemon={daemon}).start()
begun.wait()
"""


def check_order(numbers: List[Any], program: int) -> None:
    for which in range(4):
        mine = [number for *who, number in list(numbers) if who == [program, which]]
        assert mine == list(range(len(mine)))


def test_daemon_threads_that_talk_while_the_interpreter_ends(numbers: List[Any], often: Any, tried: Any) -> None:
    """No crash, no hang, not a word; and what arrived is each one's, in order, without a gap."""
    times, at_once = often(6, 99), 3
    for _ in range(0, times, at_once):
        numbers.clear()
        programs = [_TALKING.format(program=number, condition='True', daemon=True) for number in range(at_once)]
        assert ends_of([start(['-c', program]) for program in programs]) == [''] * at_once
        for number in range(at_once):
            check_order(numbers, number)
    tried('daemon threads that emit and ask while the interpreter ends', times)


def test_other_threads_are_waited_for_and_all_they_said_arrives(numbers: List[Any]) -> None:
    assert end_of(start(['-c', _TALKING.format(program=0, condition='number < 300', daemon=False)])) == ''
    eventually(lambda: len(numbers) == 1200)
    check_order(numbers, 0)


# Processes that are made of this one


_CHILDREN = """
import multiprocessing, os, sys, threading, nodeipc

def ask(number):
    ipc = nodeipc.ipc  # inherited, or made by the import
    assert not len(ipc.of) and ipc.server is None or not ipc.server.listening, ipc
    own = nodeipc.IPC(id=f'child {{number}}')
    answer = own.connect_to('parent').request('message', number, timeout=20)
    with ipc:
        ipc.config.id = f'ready-made {{number}}'
        again = ipc.connect_to('parent').request('message', number, timeout=20)
    own.close()
    return answer, again

def tell(number):
    with nodeipc.IPC(id='teller') as ipc:
        ipc.connect_to('parent').emit('number', [number, 'x' * 3_000_000])

if __name__ == '__main__':
    context = multiprocessing.get_context({method!r})
    got = []
    ipc = nodeipc.ipc
    ipc.config.id = 'parent'
    server = ipc.serve()
    server.on('message', lambda data, socket: socket.emit('message', data))
    server.on('number', lambda data: got.append(data[0]))
    server.start()
    client = nodeipc.IPC(id='client').connect_to('parent')
    over = threading.Event()
    talked = []

    def talk():
        while not over.is_set():
            assert client.request('message', 'busy', timeout=20) == 'busy'
            talked.append(1)

    talker = threading.Thread(target=talk)
    talker.start()
    with context.Pool(2) as pool:
        assert pool.map(ask, range(4), 1) == [(number, number) for number in range(4)]
        pool.close()
        pool.join()
    tellers = [context.Process(target=tell, args=(number,)) for number in range(2)]
    for teller in tellers:
        teller.start()
    for teller in tellers:
        teller.join()
        assert teller.exitcode == 0
    over.set()
    talker.join()
    assert client.request('message', 'still', timeout=20) == 'still' and talked
    ipc.close()
    assert sorted(got) == [0, 1], got
    print('done')
"""


_METHODS = ('fork', 'spawn', 'forkserver')


def test_children_of_multiprocessing_have_their_own_and_the_parent_goes_on(tmp_path: Path) -> None:
    """However they are made; the three programs at the same time, each with a socket root of its own."""
    processes = []
    for method in _METHODS:
        program = tmp_path / f'program_{method}.py'
        program.write_text(_CHILDREN.format(method=method))
        interpreter = [*(_FORKS if method == 'fork' else _DEV), *_QUIET]
        processes.append(start([str(program)], interpreter, tmp_path / method))
    assert ends_of(processes) == ['done\n'] * 3


def test_forks_while_every_thread_is_busy(tmp_path: Path, often: Any, tried: Any) -> None:
    """The child talks to its parent through its own instance, or becomes another program; the parent never notices."""
    times = often(8, 200)
    program = """
import os, sys, threading, nodeipc
sys.setswitchinterval(1e-5)
world = nodeipc.IPC(id='world')
server = world.serve()
server.on('message', lambda data, socket: socket.emit('message', data))
server.start()
ipc = nodeipc.IPC(id='client')
clients = [ipc.connect_to(f'client {which}', server.address) for which in range(3)]
over = threading.Event()
failed = []

def talk(which):
    number = 0
    try:
        while not over.is_set():
            if clients[which].request('message', [which, number], timeout=20) != [which, number]:
                failed.append((which, number))
            clients[which].on('news', print)
            clients[which].off('news')
            number += 1
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=talk, args=(which,)) for which in range(3)]
for thread in threads:
    thread.start()
CHILD = '''
import nodeipc
with nodeipc.connect('world') as client:
    assert client.request('message', 'executed', timeout=20) == 'executed'
'''
for round in range(int(sys.argv[1])):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if round % 4 == 3:
                os.execv(sys.executable, [sys.executable, '-c', CHILD])
            try:
                clients[0].emit('message', 'of the parent', timeout=5)
            except nodeipc.NotConnectedError:
                with ipc:  # starts afresh
                    client = ipc.connect_to('world', server.address)
                    if client.request('message', 'child', timeout=20) == 'child' and not server.listening:
                        status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, round
over.set()
for thread in threads:
    thread.join()
ipc.close()
world.close()
print(failed)
"""
    assert end_of(start([*_QUIET, '-c', program, str(times)], _FORKS)) == '[]\n'
    tried('forks, with and without exec, while every thread is busy', times)


_TELLER = """
import multiprocessing, nodeipc

def tell():
    nodeipc.IPC(id='teller').connect_to('world').emit('number', 'x' * 4_000_000)

if __name__ == '__main__':
    nodeipc.IPC(id='parent')
    child = multiprocessing.get_context({method!r}).Process(target=tell)
    child.start()
    child.join()
    print(child.exitcode)
"""


def test_a_child_of_multiprocessing_delivers_what_it_emitted_without_close(numbers: List[Any], tmp_path: Path) -> None:
    """However it is made; three at the same time."""
    processes = []
    for method in _METHODS:
        program = tmp_path / f'program_{method}.py'
        program.write_text(_TELLER.format(method=method))
        processes.append(start([str(program)], _FORKS if method == 'fork' else _DEV))
    assert ends_of(processes) == ['0\n'] * 3
    eventually(lambda: [len(number) for number in numbers] == [4_000_000] * 3)
