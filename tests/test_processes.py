"""Threads and processes: races, stress, fork, the end of the interpreter, and what idling costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any, Iterator, List

import pytest

from nodeipc import IPC, EmitTimeout, NotConnectedError, lookup
from nodeipc import ipc as ready_made

from .conftest import Log, eventually


@pytest.fixture
def impatient() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run(script: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    # CPython 3.8 under -X dev crashes in the child of any fork, with or without this library.
    dev = [] if 'os.fork' in script and sys.version_info < (3, 9) else ['-X', 'dev']
    return subprocess.run(
        [sys.executable, '-S', *dev, '-W', 'error', '-c', script], capture_output=True, text=True, check=False,
        env={**os.environ, 'PYTHONPATH': os.getcwd()}, timeout=timeout,
    )  # fmt: skip


def test_emits_handlers_and_registrations_of_many_threads(pair: Any, impatient: None) -> None:
    world = pair()
    got: List[Any] = []
    world.server.on('message', lambda data, socket: (got.append(data), socket.emit('message', data)))
    world.start()
    clients = [world.connect() for _ in range(3)]
    answers: List[Any] = []
    for client in clients:
        client.on('message', answers.append)
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            handler = lambda data, socket: None  # noqa: E731
            world.server.on('message', handler)
            world.server.off('message', handler)
            world.server.stats()
            world.server.broadcast('noise', 1)

    def send(which: int) -> None:
        for number in range(60):
            clients[which % 3].emit('message', [which, number])

    churner = threading.Thread(target=churn)
    senders = [threading.Thread(target=send, args=(which,)) for which in range(12)]
    for thread in (churner, *senders):
        thread.start()
    for thread in senders:
        thread.join()
    eventually(lambda: len(got) == 720 and len(answers) == 720)
    stop.set()
    churner.join()
    for which in range(12):
        assert [number for who, number in got if who == which] == list(range(60))


def test_closing_while_everything_is_under_way(make: Any, impatient: None) -> None:
    for _ in range(15):
        ipc = make(id='busy', emit_timeout=2000)
        server = ipc.serve()
        server.on('message', lambda data, socket: socket.emit('message', data))
        server.start()
        unexpected: List[BaseException] = []

        def talk(ipc: IPC = ipc, unexpected: List[BaseException] = unexpected) -> None:
            try:
                client = ipc.connect_to(f'busy-{threading.get_ident()}', ipc.server.address)
                while True:
                    client.emit('message', 'x' * 500)
            except (NotConnectedError, EmitTimeout):
                pass
            except BaseException as error:
                unexpected.append(error)

        def cast(server: Any = server, unexpected: List[BaseException] = unexpected) -> None:
            try:
                while server.listening:
                    server.broadcast('news', 1)
            except BaseException as error:
                unexpected.append(error)

        threads = [threading.Thread(target=target) for target in (talk, talk, talk, cast)]
        for thread in threads:
            thread.start()
        eventually(lambda server=server: server.stats()['messages_in'] > 20)
        closers = [threading.Thread(target=ipc.close) for _ in range(3)]
        for closer in closers:
            closer.start()
        for thread in (*closers, *threads):
            thread.join(30)
            assert not thread.is_alive()
        assert not unexpected
        ipc.close()


def test_disconnect_races_connect(pair: Any, impatient: None) -> None:
    world = pair().start()
    for _ in range(40):
        log = Log()
        client = world.connect(log)
        client.disconnect()
        names = [event[0] for event in log.events]
        assert names in (['destroy'], ['connect', 'disconnect', 'destroy'])


def test_start_and_stop_race(make: Any, impatient: None) -> None:
    server = make().serve()
    for _ in range(30):
        server.start()
        stoppers = [threading.Thread(target=server.stop) for _ in range(3)]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join(20)
            assert not stopper.is_alive()
        assert not os.path.exists(server.address)


def test_stops_of_one_run_do_not_stop_the_next(make: Any) -> None:
    ipc = make()
    server = ipc.serve()
    client = make(id='client').connect_to('world', server.address)
    client.on('connect', lambda: client.emit('message'))
    log = Log()
    server.on('message', lambda: log('message'))
    with ipc.serve_net('127.0.0.1', 0):  # which keeps the reactor running
        for run in range(1, 30):
            server.start()
            log.wait('message', run)
            goodbyes = [threading.Thread(target=server._begin_goodbye) for _ in range(3)]
            for thread in goodbyes:
                thread.start()
            server.stop()
            for thread in goodbyes:
                thread.join(20)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_fork_leaves_parent_and_child_sane(tmp_path: Any) -> None:
    """Both in a process of its own: the test's has threads that fork would copy the locks of."""
    result = run("""
import os, sys, threading, time, warnings, nodeipc
warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
parent = nodeipc.IPC(id='parent')
server = parent.serve()
got = []
server.on('message', got.append)
server.start()
client = parent.connect_to('parent')
client.emit('message', 'before')
while not got: time.sleep(0.001)
pid = os.fork()
if pid == 0:
    assert parent.wait(0) and len(parent.of) == 0
    assert not server.listening and not client.connected
    try:
        client.emit('message', 'from the child')
    except nodeipc.NotConnectedError as error:
        assert 'after fork' in str(error), error
    else:
        raise SystemExit('emit on a client of the parent did not raise')
    client.disconnect(); server.stop(); parent.close()
    # an instance starts afresh, with its settings
    parent.config.id = 'child'
    mine = parent.serve()
    mine.on('message', lambda data, socket: socket.emit('message', data))
    mine.start()
    parent.connect_to('parent').emit('message', 'new client of the child')
    assert threading.active_count() >= 2
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
while len(got) < 2: time.sleep(0.001)
client.emit('message', 'after')
while len(got) < 3: time.sleep(0.001)
assert os.path.exists(server.address)
parent.close()
print(got)
""")
    assert result.stdout == "['before', 'new client of the child', 'after']\n", result.stderr
    assert result.returncode == 0


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_fork_while_another_thread_opens_the_instance_leaves_the_child_a_fresh_one() -> None:
    result = run("""
import os, signal, threading, warnings, nodeipc, nodeipc.instance
warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
real, entered, leave = nodeipc.instance.Engine, threading.Event(), threading.Event()
class Slow(real):
    def __init__(self, workers):
        entered.set()
        leave.wait()
        super().__init__(workers)
nodeipc.instance.Engine = Slow
ipc = nodeipc.IPC(id='x')
thread = threading.Thread(target=lambda: ipc.connect_to('nobody'))
thread.start()
entered.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    nodeipc.instance.Engine = real
    ipc.serve().start()
    ipc.close()
    os._exit(0)
print(os.waitpid(pid, 0)[1])
leave.set()
thread.join()
ipc.close()
""")
    assert (result.stdout, result.stderr) == ('0\n', '')


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_fork_leaves_udp_servers_and_sync_clients_to_the_parent() -> None:
    result = run("""
import os, sys, threading, time, warnings, nodeipc
warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
parent = nodeipc.IPC(id='parent')
server = parent.serve_net(0, 'udp4')
got, answers = [], []
server.on('message', lambda data, socket: got.append(data))
server.start()
server.emit(server.address, 'message', 'before')
asking = nodeipc.IPC(id='asking', sync=True)
stream = asking.serve()
stream.on('ask', lambda data, socket: socket.emit('answer', data))
stream.start()
client = asking.connect_to('asking')
client.on('answer', answers.append)
client.emit('ask', 1)
while not got or not answers: time.sleep(0.001)
peer = server.sockets[0]
pid = os.fork()
if pid == 0:
    for emit in (lambda: server.emit(peer, 'x'), lambda: peer.emit('x'), lambda: server.emit(('name.invalid', 9), 'x'),
                 lambda: client.emit('ask', 2)):
        try:
            emit()
        except nodeipc.NotConnectedError:
            pass
        else:
            raise SystemExit('an emit with what is the parent\\'s did not raise')
    assert not server.listening and not server.sockets and not peer.connected
    peer.close(); server.stop(); client.disconnect(); parent.close(); asking.close()
    mine = parent.serve_net(0, 'udp4')
    mine.start()
    mine.emit(server.address, 'message', 'from the child')
    parent.close()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
while len(got) < 2: time.sleep(0.001)
client.emit('ask', 2)
client.emit('ask', 3)
while len(answers) < 3: time.sleep(0.001)
server.emit(server.address, 'message', 'after')
while len(got) < 3: time.sleep(0.001)
print(got, answers)
""")
    assert result.stdout == "['before', 'from the child', 'after'] [1, 2, 3]\n", result.stderr
    assert result.returncode == 0


def test_the_end_of_a_script_sends_what_a_udp_server_answers(make: Any) -> None:
    """A handler that has begun when the script ends answers, and the answer leaves."""
    server = make(id='here').serve_net(0, 'udp4')
    log = Log()
    server.on('*', log)
    server.on('here', lambda data, socket: socket.emit('ask', 'how'))
    server.start()
    result = run(f"""
import nodeipc, threading, time
begun = threading.Event()
def answer(data, socket):
    begun.set()
    time.sleep(0.3)
    socket.emit('answer', data)
server = nodeipc.ipc.serve_net(0, 'udp4')
server.on('ask', answer)
server.start()
server.emit({server.address!r}, 'here')
begun.wait(20)
""")
    assert (result.returncode, result.stderr) == (0, '')
    assert log.wait('answer')[0][0] == 'how'


def test_ctrl_c_interrupts_what_waits(make: Any, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up, and a turn of a sync client; both can be used after it."""
    gate = threading.Event()
    resolve = lookup.resolve

    def slow(address: Any, family: Any = None, numeric: bool = False) -> Any:
        if numeric:
            return resolve(address, family, True)
        gate.wait(30)
        raise OSError(-2, 'Name or service not known')

    monkeypatch.setattr(lookup, 'resolve', slow)
    server = make(id='udp').serve_net(0, 'udp4')
    log = Log()
    server.on('*', log)
    server.start()
    world = pair()
    sockets: List[Any] = []
    world.server.on('ask', lambda data, socket: sockets.append(socket))
    world.start()
    client = world.connect(sync=True)
    client.emit('ask', 1)
    previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    try:
        for wait in (
            lambda: server.emit(('name.invalid', 9), 'x', timeout=30),
            lambda: client.emit('ask', 2, timeout=30),
        ):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        gate.set()
    server.emit(server.address, 'x')
    log.wait('x')
    eventually(lambda: sockets)
    sockets[0].emit('answer')
    client.emit('ask', 3, timeout=20)
    eventually(lambda: len(sockets) == 2)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_fork_under_load_does_not_disturb_the_parent() -> None:
    result = run("""
import os, threading, time, warnings, nodeipc
warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
ipc = nodeipc.IPC(id='parent')
server = ipc.serve()
server.on('message', lambda data, socket: socket.emit('message', data))
server.start()
client = ipc.connect_to('parent')
answers = []
client.on('message', answers.append)
def send():
    for number in range(2000):
        client.emit('message', number)
sender = threading.Thread(target=send)
sender.start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        ipc.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
sender.join()
while len(answers) < 2000: time.sleep(0.001)
assert answers == list(range(2000))
ipc.close()
print('done')
""")
    assert result.stdout == 'done\n', result.stderr


def test_the_end_of_a_script_closes_what_is_open() -> None:
    result = run("""
import nodeipc, threading, time
from nodeipc import ipc
ipc.config.id = 'world'
server = ipc.serve()
done = []
server.on('message', lambda data, socket: (time.sleep(0.05), done.append(data)))
server.on('stop', lambda: print('stopped after', done, flush=True))
server.start()
client = ipc.connect_to('world')
client.on('destroy', lambda: print('destroyed', flush=True))
client.emit('message', 1)
while not server.stats()['messages_in']: time.sleep(0.001)
""")
    assert result.stdout == 'stopped after [1]\ndestroyed\n', result.stderr
    assert result.stderr == ''


def test_a_handler_that_never_returns_does_not_keep_the_interpreter_alive() -> None:
    result = run("""
import nodeipc, nodeipc.instance, threading
nodeipc.deadline.EXIT_SECONDS = 0.2
ipc = nodeipc.IPC(id='world')
started = threading.Event()
ipc.serve().on('message', lambda: (started.set(), threading.Event().wait()))
ipc.server.start()
ipc.connect_to('world').emit('message')
started.wait()
""", timeout=30)
    assert result.returncode == 0
    assert result.stderr == ''


def test_ctrl_c_interrupts_a_blocked_emit_and_the_connection_survives(pair: Any) -> None:
    world = pair()
    gate = threading.Event()
    got: List[Any] = []

    @world.server.on('block')
    def handle(data: Any) -> None:
        gate.wait(20)
        got.append(data[0])

    world.start()
    client = world.connect(max_pending_bytes=100_000)
    sent = 0
    previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    signal.setitimer(signal.ITIMER_REAL, 0.25)
    try:
        with pytest.raises(KeyboardInterrupt):
            while True:
                client.emit('block', [sent, 'x' * 100_000], timeout=30)
                sent += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    gate.set()
    client.emit('block', ['last'])
    eventually(lambda: got and got[-1] == 'last')
    assert got == [*range(sent), 'last']


def test_an_idle_instance_makes_no_system_call(tmp_path: Any) -> None:
    """Invariant 6, as the kernel counts it: the threads' voluntary context switches stand still."""
    script = """
import nodeipc, os, time
ipc = nodeipc.IPC(id='world')
ipc.serve().on('message', lambda data, socket: socket.emit('message', data))
ipc.server.start()
client = ipc.connect_to('world')
answers = []
client.on('message', answers.append)
client.emit('message', 1)
udp = nodeipc.IPC(id='udp', sync=True)
server = udp.serve_net(0, 'udp4')
server.on('message', answers.append)
server.start()
server.emit(('localhost', server.address[1]), 'message', 2)
asking = udp.connect_to('world')
asking.on('message', answers.append)
asking.emit('message', 3)
while len(answers) < 3: time.sleep(0.001)
def switches():
    total = 0
    for task in os.listdir('/proc/self/task'):
        if int(task) != os.getpid():
            for line in open(f'/proc/self/task/{task}/status'):
                if 'ctxt_switches' in line: total += int(line.split()[1])
    return total
while True:  # until everything has come to rest
    before = switches(); time.sleep(0.1)
    if switches() == before: break
before = switches(); time.sleep(1.1); print(switches() - before)
ipc.close()
"""
    if not os.path.isdir('/proc/self/task'):
        pytest.skip('needs /proc')
    result = run(script)
    assert result.stdout == '0\n', result.stderr


def test_threads_are_as_many_as_are_busy(make: Any) -> None:
    before = threading.active_count()
    ipc = make(workers=4)
    log = Log()
    ipc.serve().on('message', lambda data, socket: socket.emit('message', data))
    ipc.server.start()
    client = ipc.connect_to('world', lambda client: client.on('*', log))
    for number in range(20):
        client.emit('message', number)
        log.wait('message', number + 1)
    assert threading.active_count() - before <= 1 + 4
    ipc.close()
    assert threading.active_count() == before


def test_the_ready_made_instance_works() -> None:
    log = Log()
    ready_made.config.id = 'ready'
    try:
        ready_made.serve().on('*', log)
        ready_made.server.start()
        ready_made.connect_to('ready').emit('message', 1)
        log.wait('message')
    finally:
        ready_made.close()


def test_the_library_imports_nothing_but_the_standard_library() -> None:
    result = run("""
import sys
before = set(sys.modules)
import nodeipc
names = {name.split('.')[0] for name in set(sys.modules) - before}
print(sorted(names - set(getattr(sys, 'stdlib_module_names', names)) - {'nodeipc'}))
print('ssl' in sys.modules, 'asyncio' in sys.modules, 'inspect' in sys.modules)
""")
    assert result.stdout.splitlines()[0] == '[]'
    assert result.stdout.splitlines()[1] == 'False False False'
