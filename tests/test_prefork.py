"""Several processes at one address: inherited sockets, SO_REUSEPORT, systemd's, forks, and the examples of all that."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple, Union

import pytest

from .conftest import Log, eventually

ROOT = Path(__file__).parent.parent
Address = Union[str, Tuple[str, int]]

needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
needs_reuse_port = pytest.mark.skipif(not hasattr(socket, 'SO_REUSEPORT'), reason='needs SO_REUSEPORT')

# Serves the socket whose descriptor it is given, answers with its process id, and evaluates the lines it is told.
WORKER = """
import os, socket, sys, threading, nodeipc
ipc = nodeipc.IPC(id='world', unlink=False)
sock = socket.socket(fileno=int(sys.argv[1]))
server = (ipc.serve if sock.family == socket.AF_UNIX else ipc.serve_net)(sock=sock)
server.on('message', lambda data, socket: socket.emit('message', [os.getpid(), data]))
server.start()
ipc.log('ready')
for line in sys.stdin:
    ipc.log(eval(line))
"""

# The same, but between hearing of a connection and accepting it, it waits until `go` is set.
LATE_WORKER = WORKER.replace('sock = socket.socket(', """
class Late(socket.socket):
    def accept(self):
        if not go.is_set():
            ipc.log('heard of one')
        go.wait()
        try:
            return super().accept()
        except BlockingIOError:
            ipc.log('there is none')
            raise
go = threading.Event()
go.set()
sock = Late(""")  # fmt: skip

# Does what systemd does: descriptor 3 is the socket, and two variables say so. Then it becomes the program.
SYSTEMD = """
import os, sys
descriptor, pid, count, *command = sys.argv[1:]
if descriptor != '3':
    os.dup2(int(descriptor), 3)
    os.close(int(descriptor))
os.environ['LISTEN_PID'] = str(os.getpid()) if pid == 'self' else pid
os.environ['LISTEN_FDS'] = count
os.execv(sys.executable, [sys.executable, '-S', '-X', 'dev', '-W', 'error', *command])
"""

# Has a running server and client, and a child that serves and connects, too, until it is told to end.
FORKING = """
import os, signal, socket, sys, threading, warnings, nodeipc
warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
kind, ending = sys.argv[1:]
parent = nodeipc.IPC(id='parent')
if kind == 'given':
    os.makedirs(parent.config.socket_root, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(parent.config.socket_root + 'app.parent')
    server = parent.serve(sock=sock)
else:
    server = parent.serve() if kind == 'path' else parent.serve_net('127.0.0.1', 0)
server.on('message', lambda data, socket: socket.emit('message', [os.getpid(), data]))
server.start()
client = parent.connect_to('outside')
client.emit('message', 'before')

def fork():
    pid = os.fork()
    if pid:
        threading.Thread(target=lambda: parent.log('its status is', os.waitpid(pid, 0)[1])).start()
        return
    if kind != 'tcp':  # where the system would choose another port
        try:
            server.start()
        except OSError as error:
            parent.log(error)
    child = nodeipc.IPC(id='child')
    end, answered = threading.Event(), threading.Event()
    child.serve().on('message', lambda data, socket: socket.emit('message', [os.getpid(), data]))
    child.server.on('end', end.set)
    child.server.start()
    up = child.connect_to_net('parent', *server.address) if kind == 'tcp' else child.connect_to('parent')
    up.on('message', lambda data: (child.log('answered by', *data), answered.set()))
    up.emit('message', 'child')
    answered.wait()
    child.log('child', os.getpid())
    end.wait()
    if ending == 'exit':
        sys.exit()
    elif ending == '_exit':
        os._exit(0)
    else:
        os.kill(os.getpid(), signal.SIGKILL)

parent.log(server.address if kind != 'tcp' else server.address[1])
for line in sys.stdin:
    eval(line)
parent.close()
if kind == 'given':
    os.unlink(server.address)
"""

# The same with nothing but UDP servers.
FORKING_UDP = """
import os, sys, threading, warnings, nodeipc
warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)

def serve():
    ipc = nodeipc.IPC(id='world')
    server = ipc.serve_net('127.0.0.1', 0, 'udp4')
    server.on('message', lambda data, socket: socket.emit('message', [os.getpid(), data]))
    server.start()
    return server

def fork():
    pid = os.fork()
    if pid:
        threading.Thread(target=lambda: nodeipc.ipc.log('its status is', os.waitpid(pid, 0)[1])).start()
        return
    end = threading.Event()
    mine = serve()
    mine.on('end', end.set)
    nodeipc.ipc.log('child', mine.address[1])
    end.wait()
    eval(sys.argv[1])

server = serve()
nodeipc.ipc.log(server.address[1])
for line in sys.stdin:
    eval(line)
"""

# Has a child that was forked while its server started, and no server any more; its input is the child's, too.
FORKING_IN_CALLBACK = """
import os, sys, warnings, nodeipc
warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
pids = []

def bound():
    pids.append(os.fork())
    if not pids[0]:
        nodeipc.ipc.log('the child is there')
        sys.stdin.read()
        os._exit(0)

ipc = nodeipc.IPC(id='world')
server = ipc.serve_net('127.0.0.1', 0, bound) if sys.argv[1] == 'tcp' else ipc.serve_net('127.0.0.1', 0, 'udp4', bound)
server.start()
ipc.close()
ipc.log(server.address[1])
os.waitpid(pids[0], 0)
"""


class Program:
    """A process, in a session of its own so that what it forks can be ended with it, and what it has said so far."""

    def __init__(self, output: Path, *command: str, forks: bool = False, pass_fds: Sequence[int] = ()) -> None:
        self.output = output
        self.errors = output.with_suffix('.err')
        self.is_over = False
        # CPython 3.8 under -X dev crashes in the child of any fork, with or without this library.
        dev = [] if forks and sys.version_info < (3, 9) else ['-X', 'dev']
        with output.open('wb') as stdout, self.errors.open('wb') as stderr:
            self.process = subprocess.Popen(
                [sys.executable, '-S', *dev, '-W', 'error', *command],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                text=True,
                cwd=str(ROOT),
                env={**os.environ, 'PYTHONPATH': '.'},
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.pid = self.process.pid

    @property
    def said(self) -> List[str]:
        """The lines that are complete."""
        return self.output.read_text().split('\n')[:-1]

    def hear(self, count: int) -> List[str]:
        """Wait until it has said so many lines, and return all of them."""
        eventually(lambda: len(self.said) >= count or self.process.poll() is not None)
        assert len(self.said) >= count, self.errors.read_text()
        return self.said

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + '\n')
        self.process.stdin.flush()

    def value(self, expression: str) -> str:
        """What the expression is in that process."""
        count = len(self.said)
        self.tell(expression)
        return self.hear(count + 1)[count]

    def pause(self) -> None:
        """Return when it does nothing any more."""
        os.kill(self.pid, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(self.pid, os.WUNTRACED)[1])

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def ends(self, status: int = 0, complaint: str = '') -> None:
        """Wait until it is over, and see that it leaves no child and complains of nothing, or of this."""
        eventually(lambda: self.process.poll() is not None)
        with pytest.raises(ProcessLookupError):
            os.killpg(self.pid, 0)
        self.is_over = True
        errors = self.errors.read_text()
        assert self.process.returncode == status, errors
        assert complaint in errors if complaint else errors == ''

    def clear_away(self) -> None:
        if not self.is_over:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.close_input()
        self.process.wait()


class Caller:
    """A client, and what it hears of a server that answers with its process id."""

    def __init__(self, ipc: Any, id: str, address: Address) -> None:
        self.log = Log()

        def listen(client: Any) -> None:
            client.on('*', self.log)

        if isinstance(address, str):
            self.client = ipc.connect_to(id, address, listen)
        else:
            self.client = ipc.connect_to_net(id, *address, listen)

    def ask(self, data: Any = 'hello') -> int:
        """Return who answers."""
        count = len(self.log.of('message'))
        self.client.emit('message', data)
        (answer,) = self.log.wait('message', count + 1)[count]
        pid, echo = answer
        assert echo == data
        return int(pid)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start a Python process with these arguments."""
    programs: List[Program] = []

    def start_one(*command: str, **how: Any) -> Program:
        program = Program(tmp_path / f'{len(programs)}.out', *command, **how)
        programs.append(program)
        return program

    yield start_one
    for program in programs:
        program.clear_away()


@pytest.fixture
def start_workers(start: Callable[..., Program]) -> Callable[..., List[Program]]:
    """Start a worker for each socket; return when they serve."""

    def start_some(*socks: socket.socket, script: str = WORKER) -> List[Program]:
        workers = [start('-c', script, str(sock.fileno()), pass_fds=[sock.fileno()]) for sock in socks]
        for worker in workers:
            assert worker.hear(1) == ['ready']
        return workers

    return start_some


@pytest.fixture
def call(make: Any) -> Callable[[Address], Caller]:
    """Make one more client, all in the same instance."""
    ipc = make(id='client')
    count = iter(range(10**6))
    return lambda address: Caller(ipc, f'world-{next(count)}', address)


@pytest.fixture
def listener(transport: str, tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that listens, and that nobody accepts from yet."""
    if transport == 'tcp':
        with socket.create_server(('127.0.0.1', 0)) as sock:
            yield sock
        return
    path = tmp_path / 'given.sock'
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield sock
    path.unlink()  # whoever binds, removes: so it must be there still


@pytest.fixture
def world_path(tmp_path: Path) -> Path:
    """Where clients look for world if they are told nothing else."""
    return tmp_path / 'node-ipc' / 'app.world'


def connection_refused(address: Address) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        return sock.connect_ex(address) == errno.ECONNREFUSED


# One listening socket


def test_every_process_serves_and_each_connection_is_one_processs(
    listener: socket.socket, start_workers: Any, call: Callable[[Address], Caller]
) -> None:
    address = listener.getsockname()
    workers = start_workers(listener, listener, listener)
    listener.close()  # in this process
    served: Dict[int, int] = Counter()
    callers: List[Tuple[int, Caller]] = []
    for worker in workers:
        others = [other for other in workers if other is not worker]
        for other in others:
            other.pause()
        for _ in range(4):
            caller = call(address)
            assert caller.ask(0) == worker.pid
            callers.append((worker.pid, caller))
            served[worker.pid] += 1
        for other in others:
            other.resume()
    for caller in [call(address) for _ in range(30)]:  # all at once, for whom is first
        pid = caller.ask(0)
        callers.append((pid, caller))
        served[pid] += 1

    for number in range(1, 30):
        for _, caller in callers:
            caller.client.emit('message', number)
    for pid, caller in callers:
        assert caller.log.wait('message', 30) == [([pid, number],) for number in range(30)]
        assert [event for event, *_ in caller.log.events if event != 'message'] == ['connect']

    for worker in workers:
        assert worker.value("server.stats()['connections_total']") == str(served[worker.pid])
    for worker in workers:
        worker.close_input()
    for worker in workers:
        worker.ends()


def test_a_process_that_hears_of_a_connection_and_finds_none_goes_on(
    listener: socket.socket, start_workers: Any, call: Callable[[Address], Caller]
) -> None:
    address = listener.getsockname()
    (late,) = start_workers(listener, script=LATE_WORKER)
    first = call(address)
    assert first.ask() == late.pid
    late.value('go.clear()')
    second = call(address)
    eventually(lambda: 'heard of one' in late.said)
    (quick,) = start_workers(listener)
    listener.close()
    assert second.ask() == quick.pid
    late.tell('go.set()')
    eventually(lambda: 'there is none' in late.said)

    assert first.ask() == late.pid
    quick.value('server.stop()')
    second.log.wait('disconnect')
    assert second.ask() == late.pid
    for worker in (late, quick):
        worker.close_input()
        worker.ends()


@pytest.mark.parametrize('ending', ['stop', 'kill'])
def test_a_process_that_ends_leaves_the_socket_to_the_others(
    listener: socket.socket, start_workers: Any, call: Callable[[Address], Caller], ending: str
) -> None:
    address = listener.getsockname()
    leaving, staying = start_workers(listener, listener)
    listener.close()
    staying.pause()
    abandoned = call(address)
    assert abandoned.ask() == leaving.pid
    staying.resume()
    leaving.pause()
    kept = call(address)
    assert kept.ask() == staying.pid
    leaving.resume()

    if ending == 'stop':
        leaving.value('server.stop()')
        assert leaving.process.poll() is None
    else:
        leaving.process.kill()
        leaving.ends(-signal.SIGKILL)
    abandoned.log.wait('disconnect')
    assert abandoned.ask() == staying.pid
    assert kept.ask() == staying.pid
    assert kept.log.of('disconnect') == []
    for _ in range(5):
        assert call(address).ask() == staying.pid

    staying.value('server.stop()')
    assert connection_refused(address)  # nobody has the socket open any more
    staying.close_input()
    staying.ends()


# What is no listening socket


def test_a_given_socket_can_be_served_once(make: Any, transport: str, listener: socket.socket) -> None:
    ipc = make()
    server = (ipc.serve if transport == 'unix' else ipc.serve_net)(sock=listener)
    server.start()
    server.stop()
    assert listener.fileno() == -1
    with pytest.raises(OSError, match='given as sock= is closed; make a server with a new one') as caught:
        server.start()
    assert caught.value.errno == errno.EBADF
    assert not server.listening
    assert ipc.wait(0) is True


def test_a_closed_socket_is_refused(make: Any, transport: str, listener: socket.socket) -> None:
    listener.close()
    ipc = make()
    with pytest.raises(OSError, match='given as sock= is closed') as caught:
        (ipc.serve if transport == 'unix' else ipc.serve_net)(sock=listener).start()
    assert caught.value.errno == errno.EBADF


def test_a_connection_is_refused_and_stays_as_it_is(make: Any, listener: socket.socket) -> None:
    """Which is what systemd gives with Accept=yes."""
    ipc = make()
    with socket.socket(listener.family) as peer:
        peer.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection:
            with pytest.raises(ValueError, match='bound, and not connected'):
                (ipc.serve if listener.family == socket.AF_UNIX else ipc.serve_net)(sock=connection)
            peer.sendall(b'still there')
            assert connection.recv(100) == b'still there'


def test_a_unix_datagram_socket_is_refused_and_stays_as_it_is(make: Any, tmp_path: Path) -> None:
    path = str(tmp_path / 'datagram.sock')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        sock.bind(path)
        with pytest.raises(ValueError, match='must be a stream socket'):
            make().serve(sock=sock).start()
        peer.sendto(b'still there', path)
        assert sock.recv(100) == b'still there'
    os.unlink(path)


def test_a_descriptor_or_a_second_address_is_refused(make: Any, transport: str, listener: socket.socket) -> None:
    ipc = make()
    serve, elsewhere = (ipc.serve, '/elsewhere') if transport == 'unix' else (ipc.serve_net, 8000)
    with pytest.raises(TypeError, match=r'socket\.socket\(fileno='):
        serve(sock=listener.fileno())
    with pytest.raises(TypeError, match='leave out the address'):
        serve(elsewhere, sock=listener)
    assert ipc.server is None


# UDP


class UDPCaller:
    """What `Caller` is, and a plain socket."""

    def __init__(self, address: Address) -> None:
        self.sock = socket.socket(type=socket.SOCK_DGRAM)
        self.sock.settimeout(20)
        self.sock.connect(address)

    def emit(self, data: Any) -> None:
        self.sock.send(json.dumps({'type': 'message', 'data': data}).encode() + b'\f')

    def answer(self) -> Any:
        return json.loads(self.sock.recv(1 << 16).rstrip(b'\f'))['data']

    def ask(self, data: Any = 'hello') -> int:
        self.emit(data)
        pid, echo = self.answer()
        assert echo == data
        return int(pid)


@pytest.fixture
def call_udp() -> Iterator[Callable[[Address], UDPCaller]]:
    callers: List[UDPCaller] = []

    def call_one(address: Address) -> UDPCaller:
        callers.append(UDPCaller(address))
        return callers[-1]

    yield call_one
    for caller in callers:
        caller.sock.close()


def test_every_process_gets_datagrams_and_each_is_one_processs(
    start_workers: Any, call_udp: Callable[[Address], UDPCaller]
) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(('127.0.0.1', 0))
        caller = call_udp(sock.getsockname())
        first, second = start_workers(sock, sock)
    for worker, other in ((first, second), (second, first)):
        other.pause()
        assert caller.ask() == worker.pid
        other.resume()
    for number in range(40):
        caller.emit(number)
    answers = [caller.answer() for _ in range(40)]
    assert sorted(number for _, number in answers) == list(range(40))
    served = Counter(pid for pid, _ in answers)
    for worker in (first, second):
        assert worker.value("server.stats()['messages_in']") == str(served[worker.pid] + 1)

    first.value('server.stop()')
    for _ in range(5):
        assert caller.ask() == second.pid
    for worker in (first, second):
        worker.close_input()
        worker.ends()


# SO_REUSEPORT


@needs_reuse_port
@pytest.mark.parametrize('ending', ['stop', 'kill'])
def test_processes_that_share_a_port_share_the_clients(
    start_workers: Any, call: Callable[[Address], Caller], ending: str
) -> None:
    with socket.create_server(('127.0.0.1', 0), reuse_port=True) as first:
        address = first.getsockname()
        with socket.create_server(address, reuse_port=True) as second:
            leaving, staying = start_workers(first, second)
    by: Dict[int, Caller] = {}

    def both_have_answered() -> bool:
        caller = call(address)
        by[caller.ask()] = caller
        return set(by) == {leaving.pid, staying.pid}

    eventually(both_have_answered)
    if ending == 'stop':
        leaving.value('server.stop()')
    else:
        leaving.process.kill()
        leaving.ends(-signal.SIGKILL)
    by[leaving.pid].log.wait('disconnect')
    for caller in (*by.values(), *(call(address) for _ in range(5))):
        assert caller.ask() == staying.pid
    assert by[staying.pid].log.of('disconnect') == []
    staying.close_input()
    staying.ends()


# Fork


@needs_fork
@pytest.mark.parametrize('ending', ['exit', '_exit', 'kill'])
@pytest.mark.parametrize('kind', ['path', 'given', 'tcp'])
def test_a_child_serves_and_ends_and_its_parents_connections_never_notice(
    make: Any, start: Any, call: Callable[[Address], Caller], tmp_path: Path, kind: str, ending: str
) -> None:
    outside = Log()
    server = make(id='outside').serve()
    server.on('*', outside)
    server.start()
    parent = start('-c', FORKING, kind, ending, forks=True)
    where = parent.hear(1)[0]
    address = ('127.0.0.1', int(where)) if kind == 'tcp' else where
    caller = call(address)
    assert caller.ask('before') == parent.pid
    outside.wait('message')

    parent.tell('fork()')
    refusals = [] if kind == 'tcp' else [parent.hear(2)[1]]
    for refusal in refusals:  # of the parent's server, in the child
        assert ('another server is listening' if kind == 'path' else 'is closed; make a server with a new one') in refusal
    by_parent, child = parent.hear(3 + len(refusals))[1 + len(refusals) :]
    assert by_parent == f'answered by {parent.pid} child'
    child_pid = int(child.split()[1])
    assert child_pid != parent.pid
    path = tmp_path / 'node-ipc' / 'app.child'
    to_child = call(str(path))
    assert to_child.ask() == child_pid
    assert caller.ask('while') == parent.pid
    parent.tell("client.emit('message', 'while')")
    outside.wait('message', 2)

    to_child.client.emit('end')
    assert parent.hear(4 + len(refusals))[-1] == f'its status is {signal.SIGKILL if ending == "kill" else 0:d}'
    to_child.log.wait('disconnect')
    to_child.client.disconnect()
    if ending == 'exit':
        assert not path.exists()
    else:
        path.unlink()
    assert caller.ask('after') == parent.pid
    assert call(address).ask('after') == parent.pid
    parent.tell("client.emit('message', 'after')")
    outside.wait('message', 3)
    assert [data for data, _ in outside.of('message')] == ['before', 'while', 'after']
    assert len(outside.of('connect')) == len(caller.log.of('connect')) == 1
    assert outside.of('socket.disconnected') == caller.log.of('disconnect') == []
    assert kind == 'tcp' or Path(where).is_socket()
    parent.close_input()
    parent.ends()
    assert kind == 'tcp' or not Path(where).exists()


@needs_fork
@pytest.mark.parametrize('ending', ['sys.exit()', 'os._exit(0)'])
def test_a_child_leaves_its_parents_udp_server_alone(
    start: Any, call_udp: Callable[[Address], UDPCaller], ending: str
) -> None:
    parent = start('-c', FORKING_UDP, ending, forks=True)
    caller = call_udp(('127.0.0.1', int(parent.hear(1)[0])))
    assert caller.ask('before') == parent.pid
    parent.tell('fork()')
    ready, port = parent.hear(2)[1].split()
    child = call_udp(('127.0.0.1', int(port)))
    assert ready == 'child'
    child_pid = child.ask()
    assert child_pid != parent.pid
    assert [caller.ask(number) for number in range(5)] == [parent.pid] * 5
    child.sock.send(b'{"type":"end"}\f')
    assert parent.hear(3)[2] == 'its status is 0'
    assert [caller.ask(number) for number in range(5)] == [parent.pid] * 5
    parent.close_input()
    parent.ends()


@needs_fork
@pytest.mark.parametrize('kind', ['tcp', 'udp4'])
def test_a_child_of_the_callback_does_not_keep_the_address(start: Any, kind: str) -> None:
    """It is forked when the address is bound, and before the server listens."""
    parent = start('-c', FORKING_IN_CALLBACK, kind, forks=True)
    (port,) = {*parent.hear(2)} - {'the child is there'}
    with socket.socket(type=socket.SOCK_STREAM if kind == 'tcp' else socket.SOCK_DGRAM) as next_server:
        next_server.bind(('127.0.0.1', int(port)))
    parent.close_input()
    parent.ends()


# The examples


def spoken_to(program: Program, first: int, *, count: int = 6) -> None:
    """Wait until the program has logged so many messages after the first lines."""
    lines = program.hear(first + count)
    assert lines[first:] == ['got a message :  hello'] * count


def answerers(hello: Program) -> List[int]:
    """The processes that answered hello_client.py, which ends by itself."""
    hello.ends()
    words = [line.split() for line in hello.said]
    assert [(*line[:1], *line[2:]) for line in words] == [('process', 'answered', ':', 'hello', 'world!')] * 6
    return [int(line[1]) for line in words]


def end_by(number: int, program: Program) -> None:
    """Press Ctrl-C, which all processes of the terminal get, or have the parent terminated."""
    if number == signal.SIGINT:
        os.killpg(program.pid, number)
    else:
        os.kill(program.pid, number)


@needs_fork
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_prefork_example_serves_and_ends_properly(start: Any, transport: str, world_path: Path, number: int) -> None:
    world = start('examples/prefork/world_server.py', *(['0'] if transport == 'tcp' else []), forks=True)
    what, first, second, serve, where = world.hear(1)[0].split()
    assert (what, serve) == ('workers', 'serve')
    assert transport == 'tcp' or where == str(world_path)
    assert transport == 'tcp' or world_path.parent.stat().st_mode & 0o077 == 0
    hello = start('examples/prefork/hello_client.py', *([where] if transport == 'tcp' else []))
    assert set(answerers(hello)) <= {int(first), int(second)}
    spoken_to(world, 1)
    end_by(number, world)
    world.ends()
    assert not world_path.exists()


@needs_fork
def test_the_prefork_example_survives_a_worker_and_ends_without_any(start: Any, world_path: Path) -> None:
    world = start('examples/prefork/world_server.py', forks=True)
    first, second = map(int, world.hear(1)[0].split()[1:3])
    os.kill(first, signal.SIGKILL)
    assert world.hear(2)[1] == f'worker {first} is gone'
    assert set(answerers(start('examples/prefork/hello_client.py'))) == {second}
    assert world_path.is_socket()
    second_world = start('examples/prefork/world_server.py', forks=True)
    second_world.ends(1, 'if no server is running there, remove it')
    assert world_path.is_socket()
    os.kill(second, signal.SIGKILL)
    world.ends(1, 'no worker is left')
    assert not world_path.exists()


@needs_fork
@needs_reuse_port
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_reuse_port_example_serves_and_ends_properly(start: Any, number: int) -> None:
    with socket.socket() as reservation:  # which does not listen, so no client comes to it
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind(('127.0.0.1', 0))
        port = str(reservation.getsockname()[1])
        world = start('examples/prefork/reuse_port_server.py', port, forks=True)
        workers = {int(line.split()[1]) for line in world.hear(2)}
        assert sorted(world.said) == sorted(f'worker {pid} serves {port}' for pid in workers)
        assert set(answerers(start('examples/prefork/hello_client.py', port))) <= workers
        spoken_to(world, 2)
        end_by(number, world)
        world.ends()


@needs_fork
@needs_reuse_port
def test_the_reuse_port_example_says_why_it_cannot_serve(start: Any) -> None:
    program = "import runpy, socket; del socket.SO_REUSEPORT; runpy.run_path('examples/prefork/reuse_port_server.py')"
    start('-c', program).ends(1, 'this platform has no SO_REUSEPORT')
    with socket.create_server(('127.0.0.1', 0)) as other:
        port = str(other.getsockname()[1])
        world = start('examples/prefork/reuse_port_server.py', port, forks=True)
        world.ends(1, f'port {port}: Address already in use')
        assert 'no worker is left' in world.errors.read_text()


def test_the_systemd_example_serves_who_came_before_it_and_during_its_restart(
    start: Any, listener: socket.socket, call: Callable[[Address], Caller]
) -> None:
    descriptor = listener.fileno()
    caller = call(listener.getsockname())
    for count, number in enumerate((signal.SIGTERM, signal.SIGINT), 1):
        caller.client.emit('message', 'early')
        world = start(
            '-c', SYSTEMD, str(descriptor), 'self', '1', 'examples/prefork/systemd_server.py', pass_fds=[descriptor]
        )
        assert {line.split()[1] for line in world.hear(2)} == {'serves', 'a'}
        (answer,) = caller.log.wait('message', count)[-1]
        assert answer == {'pid': world.pid, 'message': 'early world!'}
        os.kill(world.pid, number)
        world.ends()
        caller.log.wait('disconnect', count)
    listener.close()


@pytest.mark.parametrize(('pid', 'count'), [('self', '2'), ('self', ''), ('1', '1')])
@pytest.mark.parametrize('transport', ['unix'])
def test_the_systemd_example_takes_only_what_is_given_to_it(
    start: Any, listener: socket.socket, pid: str, count: str
) -> None:
    descriptor = listener.fileno()
    world = start('-c', SYSTEMD, str(descriptor), pid, count, 'examples/prefork/systemd_server.py', pass_fds=[descriptor])
    world.ends(1, 'systemd gives no socket')
    assert world.said == []
