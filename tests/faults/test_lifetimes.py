"""Lives that cross: forks and multiprocessing, the end of the interpreter, signal handlers and ``__del__`` at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, List

import pytest

from ..conftest import eventually

_SECONDS = 20.0

# CPython 3.8 under -X dev crashes in the child of any fork, with or without this library.
_DEV = ['-X', 'dev']
_FORKS = [] if sys.version_info < (3, 9) else _DEV
_QUIET = ['-W', 'ignore:This process:DeprecationWarning']  # is multi-threaded, and forks

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


def start(arguments: List[str], interpreter: List[str] = _DEV) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *interpreter, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': os.getcwd()}, start_new_session=True,
    )  # fmt: skip


def end_of(process: subprocess.Popen[str]) -> str:
    """Return what a program printed that ended well, and said nothing on stderr."""
    try:
        out, err = process.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with its children, who have the pipes, too
        out, err = process.communicate()
        raise AssertionError(f'it hangs: {out} {err}') from None
    assert (process.returncode, err) == (0, '')
    return out


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


@pytest.mark.parametrize('how', ['signal', 'del', 'raise'])
def test_what_interrupts_us_is_done_or_refused_and_never_hangs(how: str, often: Any, tried: Any) -> None:
    """Any act, at any moment of any other; and all works as before when it is over."""
    if how == 'raise' and sys.version_info < (3, 10):
        pytest.skip('an exception at the end of a `with` leaves its lock locked there (https://bugs.python.org/issue29988)')
    count = often(1000, 6000)
    for seed in range(often(1, 10)):
        arguments = ['-m', 'tests.faults.lifetimes_interrupts', how, f'{how} {seed}', str(count)]
        outcome = json.loads(end_of(start(arguments)))
        if how == 'raise':
            assert outcome['raise']['done'] > count // 2
        else:
            never_refused = {'emit_elsewhere', 'on_off', 'on_connect', 'disconnect', 'close', 'stats'}
            assert {act for act in outcome if 'refused' not in outcome[act]} >= never_refused
            assert len(outcome) == 12
        what = {'signal': 'signal handlers', 'del': 'objects collected', 'raise': 'exceptions'}[how]
        tried(f'{what} at random moments', count)


class Interrupted(deque):  # type: ignore[type-arg]
    """A queue that something else is done in the middle of, once."""

    def __init__(self, items: Any, act: Any) -> None:
        super().__init__(items)
        self.acts = [act]

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
    other.connect_to('world', server.address).emit('number', 'closing')
    other.close()

atexit.register(closing)
client = server = ipc.connect_to('world')
client.wait_connected(5)
"""]))  # fmt: skip
    assert out.split() == ['early', 'NotConnectedError', 'NotConnectedError', 'True']
    eventually(lambda: len(numbers) == 3)
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
            client.emit('number', [which, number])
            number += 1
            if which == 3:
                client.request('message', number)
    except nodeipc.NotConnectedError:
        pass

for which in range(4):
    threading.Thread(target=talk, args=(which,), daemon={daemon}).start()
begun.wait()
"""


def check_order(numbers: List[Any]) -> None:
    for which in range(4):
        mine = [number for who, number in list(numbers) if who == which]
        assert mine == list(range(len(mine)))


def test_daemon_threads_that_talk_while_the_interpreter_ends(numbers: List[Any], often: Any, tried: Any) -> None:
    """No crash, no hang, not a word; and what arrived is each one's, in order, without a gap."""
    times = often(6, 100)
    for _ in range(times):
        numbers.clear()
        assert end_of(start(['-c', _TALKING.format(condition='True', daemon=True)])) == ''
        check_order(numbers)
    tried('daemon threads that emit and ask while the interpreter ends', times)


def test_other_threads_are_waited_for_and_all_they_said_arrives(numbers: List[Any]) -> None:
    assert end_of(start(['-c', _TALKING.format(condition='number < 300', daemon=False)])) == ''
    eventually(lambda: len(numbers) == 1200)
    check_order(numbers)


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
        assert pool.map(ask, range(6), 1) == [(number, number) for number in range(6)]
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


@pytest.mark.parametrize('method', ['fork', 'spawn', 'forkserver'])
def test_children_of_multiprocessing_have_their_own_and_the_parent_goes_on(method: str, tmp_path: Path) -> None:
    program = tmp_path / 'program.py'
    program.write_text(_CHILDREN.format(method=method))
    interpreter = [*(_FORKS if method == 'fork' else _DEV), *_QUIET]
    assert end_of(start([str(program)], interpreter)) == 'done\n'


def test_forks_while_every_thread_is_busy(tmp_path: Path, often: Any, tried: Any) -> None:
    """The child talks to its parent through its own instance, or becomes another program; the parent never notices."""
    times = often(12, 200)
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


@pytest.mark.parametrize('method', ['fork', 'spawn', 'forkserver'])
def test_a_child_of_multiprocessing_delivers_what_it_emitted_without_close(
    method: str, numbers: List[Any], tmp_path: Path
) -> None:
    program = tmp_path / 'program.py'
    program.write_text(_TELLER.format(method=method))
    assert end_of(start([str(program)], _FORKS if method == 'fork' else _DEV)) == '0\n'
    eventually(lambda: numbers and len(numbers[0]) == 4_000_000)
