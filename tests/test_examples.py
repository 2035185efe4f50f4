"""The example programs, run as processes the way their comments say."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import pytest

from .conftest import eventually

ROOT = Path(__file__).parent.parent


class Program:
    """A running example, and what it has said so far."""

    def __init__(self, output: Path, *command: str) -> None:
        self.output = output
        self.errors = output.with_suffix('.err')
        with output.open('wb') as stdout, self.errors.open('wb') as stderr:
            self.process = subprocess.Popen(
                (sys.executable, '-S', '-X', 'dev', '-W', 'error', *command),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=str(ROOT),
                env={**os.environ, 'PYTHONPATH': '.', 'PYTHONUNBUFFERED': '1'},
            )

    @property
    def said(self) -> List[str]:
        return self.output.read_text().splitlines()

    def says(self, *lines: str) -> None:
        """Wait until it has said all these, in this order, and nothing else."""
        try:
            eventually(lambda: len(self.said) >= len(lines) or self.process.poll() is not None)
        except AssertionError:
            pass
        assert self.said == list(lines), self.errors.read_text()

    def complains(self, count: int) -> str:
        """Wait until it has complained of so many things, each in a line; return all that."""
        eventually(lambda: self.errors.read_text().count('\n') >= count)
        return self.errors.read_text()

    def interrupt(self, complaints: str = '') -> None:
        """Press Ctrl-C, and see that it ends without a complaint, but for those of before."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0
        assert self.errors.read_text() == complaints


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Run an example: its path below examples/, and its arguments; `quicker` replaces a time in a copy of it."""
    programs: List[Program] = []

    def run_example(path: str, *arguments: str, quicker: Tuple[str, str] = ('', '')) -> Program:
        path = f'examples/{path}'
        if quicker != ('', ''):  # what it waits for, and what it is to wait for instead
            text = (ROOT / path).read_text()
            assert quicker[0] in text
            path = str(tmp_path / f'{len(programs)}.py')
            Path(path).write_text(text.replace(*quicker))
        program = Program(tmp_path / f'{len(programs)}.out', path, *arguments)
        programs.append(program)
        return program

    yield run_example
    for program in programs:
        program.process.kill()
        program.process.wait()


@pytest.fixture
def run_pair(run: Any, transport: str) -> Callable[[str], Program]:
    """Run the world_server.py or hello_client.py of the transport; a server is returned when it listens."""
    arguments = [] if transport == 'unix' else [str(free_port())]

    def run_one(name: str) -> Program:
        program: Program = run(f'{transport}/{name}', *arguments)
        if name == 'world_server.py':
            eventually(lambda: is_listening(*map(int, arguments)) or program.process.poll() is not None)
        return program

    return run_one


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """Return a port that is free and that the system gives to nobody who asks for any."""
    while True:
        port = random.randrange(10000, 30000)
        with socket.socket(type=kind) as sock:
            if kind == socket.SOCK_STREAM:  # UDP sockets would share it
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(('127.0.0.1', port))
            except OSError:
                continue
            return port


def is_listening(port: int = 0) -> bool:
    """Whether the server listens at `port`, or at the path that is everybody's default."""
    family, address = (
        (socket.AF_INET, ('127.0.0.1', port))
        if port
        else (socket.AF_UNIX, os.path.join(os.environ['XDG_RUNTIME_DIR'], 'node-ipc', 'app.world'))
    )
    with socket.socket(family) as sock:
        return sock.connect_ex(address) == 0


def test_hello_and_world_talk_and_end_by_ctrl_c(run_pair: Any) -> None:
    world = run_pair('world_server.py')
    hello = run_pair('hello_client.py')
    connected, answered = '## connected to world ## 1500', 'got a message from world :  hello world!'
    hello.says(connected, answered)
    world.says('got a message :  hello')

    second = run_pair('hello_client.py')
    second.says(connected, answered)
    world.says('got a message :  hello', 'got a message :  hello')
    second.interrupt()
    second.says(connected, answered, 'disconnected from world')

    world.interrupt()
    hello.says(connected, answered, 'disconnected from world')
    hello.interrupt()


def test_over_tls_each_of_the_two_knows_who_the_other_is(run: Any, tmp_path: Path) -> None:
    if shutil.which('openssl') is None:
        pytest.skip('the openssl command is not here to make certificates with')
    where, port = str(tmp_path / 'certificates'), str(free_port())
    assert run('tls/make_certificates.py', where).process.wait(60) == 0
    world = run('tls/world_server.py', where, port)
    hello = run('tls/hello_client.py', where, port)
    said = ['## connected to world ##', 'got a message from world :  hello world!']
    hello.says(*said)
    world.says('got a message from hello :  hello')
    with socket.create_connection(('127.0.0.1', int(port))) as stranger:
        stranger.sendall(b'{"type":"message","data":"let me in"}\f')
        assert 'the other end does not speak TLS' in world.complains(1)
        eventually(lambda: len(world.said) == 2)
    assert re.match('refused :  SSLError: server .* the other end does not speak TLS', world.said[1])
    world.interrupt(world.complains(1))
    hello.says(*said, 'disconnected from world')
    hello.interrupt()


def test_hello_finds_a_world_that_comes_later_or_comes_back(run: Any) -> None:
    hello = run('unix/hello_client.py', quicker=('retry = 1500', 'retry = 150'))
    conversation = ['## connected to world ## 150', 'got a message from world :  hello world!']
    world = run('unix/world_server.py')
    hello.says(*conversation)
    world.interrupt()
    world = run('unix/world_server.py')
    hello.says(*conversation, 'disconnected from world', *conversation)
    hello.interrupt()
    world.interrupt()


def test_a_broadcast_reaches_every_client(run: Any) -> None:
    world = run('broadcast/world_server.py')
    eventually(is_listening)
    hello = run('broadcast/hello_client.py')
    connected = '## connected to world ## 1500'
    from_hello, from_goodbye = 'got a broadcast from world :  hello world!', 'got a broadcast from world :  goodbye world!'
    hello.says(connected, from_hello)
    goodbye = run('broadcast/goodbye_client.py')
    hello.says(connected, from_hello, from_goodbye)
    goodbye.says(connected, from_goodbye)
    world.says('got a message from hello :  hello', 'got a message from goodbye :  goodbye')

    world.interrupt()
    hello.says(connected, from_hello, from_goodbye, 'disconnected from world')
    goodbye.says(connected, from_goodbye, 'disconnected from world')
    hello.interrupt()
    goodbye.interrupt()


def udp_events(port: int) -> Any:
    """Return what the UDP server at `port` says it listens for; None if there is no answer (yet)."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect(('127.0.0.1', port))
        try:
            sock.send(b'{"type":"get.events.listening","data":{}}\f')
            return json.loads(sock.recv(65536).rstrip(b'\f'))['data']
        except OSError:
            return None


def test_udp_hello_and_world_talk_and_say_what_they_listen_for(run: Any) -> None:
    events = {'message': 'This event type listens for message strings as value of data key.'}
    world_port = free_port(socket.SOCK_DGRAM)
    world = run('udp/world_server.py', str(world_port))
    assert eventually(lambda: udp_events(world_port)) == {'id': 'world', 'events': events}

    hello_port = free_port(socket.SOCK_DGRAM)
    hello = run('udp/hello_server.py', str(hello_port), str(world_port))
    hello.says('got a message from  world : Hello world!')
    world.says('got a message from  hello : Hello')
    assert eventually(lambda: udp_events(hello_port)) == {'id': 'hello', 'events': events}

    hello.interrupt()
    world.interrupt()
    hello.says('got a message from  world : Hello world!')
    world.says('got a message from  hello : Hello')


def raw_bytes(program: Program) -> bytes:
    """Return the bytes that a program of the raw example has got, in however many pieces."""
    return bytes.fromhex(''.join(line.split()[-1] for line in program.said if line.startswith('got bytes')))


def test_raw_hello_and_world_exchange_bytes(run: Any) -> None:
    world = run('raw/world_server.py')
    eventually(is_listening)
    hello = run('raw/hello_client.py')
    eventually(lambda: raw_bytes(hello) == b'HELLO WORLD!')
    assert raw_bytes(world) == b'hello world!'
    assert hello.said[0] == '## connected to world ## 1500'

    world.interrupt()
    eventually(lambda: hello.said[-1] == 'disconnected from world')
    hello.interrupt()
    assert raw_bytes(hello) == b'HELLO WORLD!'


class Talker:
    """Somebody at nc."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(('127.0.0.1', port), timeout=20)
        self._answers = self.sock.makefile('rb')

    def __enter__(self) -> Talker:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._answers.close()
        self.sock.close()

    def types(self, text: bytes) -> None:
        self.sock.sendall(text)

    def gets(self, type: str, data: Any) -> None:
        """Wait for an answer, and see that it is this."""
        assert json.loads(self._answers.readline()) == {'type': type, 'data': data}

    def is_left(self) -> bool:
        """Whether the server closes the connection and says nothing more."""
        try:
            return not self._answers.read()
        except ConnectionResetError:  # it had not read everything
            return True


@pytest.fixture
def line_server(run: Any) -> Tuple[Program, int]:
    """The line server, and the port where it listens."""
    port = free_port()
    server: Program = run('parser/line_server.py', str(port))
    eventually(lambda: is_listening(port) or server.process.poll() is not None)
    return server, port


def test_each_line_is_answered_however_the_lines_are_cut(line_server: Tuple[Program, int]) -> None:
    server, port = line_server
    with Talker(port) as talker:
        talker.types(b'{"type":"message","data":"hello"}\n')
        talker.gets('message', 'hello world!')
        talker.types(b'"hello"\n{"type":"mess')
        talker.gets('line', 'hello')  # so the start of the next has been read
        talker.types(b'age","data":"in two"}\n')
        talker.gets('message', 'in two world!')

        talker.types(b'"two"\n\r\n{"lines":["at once"]}\r\n')
        talker.gets('line', 'two')
        talker.gets('line', {'lines': ['at once']})

        talker.types(b'{"type":"get.events.listening"}\n')
        descriptions = {'message': 'A string, which is greeted.', 'line': 'Any JSON value, which is sent back.'}
        talker.gets('events.listening', {'id': 'lines', 'events': descriptions})
    server.says(
        'got a message :  hello',
        'got a line :  hello',
        'got a message :  in two',
        'got a line :  two',
        "got a line :  {'lines': ['at once']}",
    )
    server.interrupt()


def test_the_end_of_the_stream_ends_the_last_line(line_server: Tuple[Program, int]) -> None:
    server, port = line_server
    with Talker(port) as talker:
        talker.types(b'"first"\n"last"')
        talker.sock.shutdown(socket.SHUT_WR)
        talker.gets('line', 'first')
        talker.gets('line', 'last')
        assert talker.is_left()
    server.interrupt()


def test_a_malformed_line_closes_only_its_connection(line_server: Tuple[Program, int]) -> None:
    server, port = line_server
    with Talker(port) as other:
        other.types(b'"before"\n')
        other.gets('line', 'before')
        malformed = [b'nonsense\n', b'{"half":\n', b'NaN\n', b'"\xff"\n', b'"' + b'x' * 65536]
        for number, line in enumerate(malformed, 1):
            with Talker(port) as talker:
                talker.types(b'"good"\n')
                talker.gets('line', 'good')
                talker.types(line)
                assert talker.is_left(), line
            server.complains(number)
        with Talker(port) as talker:
            talker.types(b'"without an end')
            talker.sock.shutdown(socket.SHUT_WR)
            assert talker.is_left()
        complaints = server.complains(len(malformed) + 1)
        other.types(b'"after"\n')
        other.gets('line', 'after')
    assert complaints.count('refused what came') == len(complaints.splitlines()) == len(malformed) + 1
    server.interrupt(complaints)


def test_a_sync_client_asks_when_the_last_was_answered(run: Any) -> None:
    world = run('sync/world_server.py', quicker=('Timer(0.5,', 'Timer(0.1,'))  # still longer than a request takes to come
    eventually(is_listening)
    hello = run('sync/hello_client.py')
    conversation = [
        '## connected to world ## 1500',
        'got a message from world :  hello 0 world!',
        'got a message from world :  hello 1 world!',
        'got a message from world :  hello 2 world!',
    ]
    hello.says(*conversation)
    world.says(
        'got a message :  hello 0',
        'answering :  hello 0',
        'got a message :  hello 1',
        'answering :  hello 1',
        'got a message :  hello 2',
        'answering :  hello 2',
    )
    world.interrupt()
    hello.says(*conversation, 'disconnected from world')
    hello.interrupt()


def test_scripts_ask_and_loop(run: Any) -> None:
    world = run('scripts/world_server.py')
    hello = run('scripts/hello_client.py')
    hello.says('hello world!', 'goodbye world!')
    assert hello.process.wait(20) == 0
    world.says('got a message: hello', 'got a message: goodbye')
    world.interrupt()


def test_scripts_call_methods(run: Any) -> None:
    calculator = run('scripts/calculator_server.py')
    client = run('scripts/calculator_client.py')
    client.says('1 + 2 = 3', '1 / 4 = 0.25', '1 / 0: 1 cannot be divided by 0')
    assert client.process.wait(20) == 0
    calculator.interrupt()


def test_a_device_reports_every_reading_though_its_collector_dies_and_is_restarted(run: Any) -> None:
    port = free_port()
    with socket.create_server(('127.0.0.1', port)) as dying:
        device = run('scripts/device_client.py', str(port))
        with dying.accept()[0] as connection:
            assert b'"store"' in connection.recv(65536)  # and is not answered
    first = run('scripts/collector_server.py', str(port))
    eventually(lambda: len(first.said) >= 3)
    first.interrupt()
    second = run('scripts/collector_server.py', str(port))
    eventually(lambda: len(second.said) >= 3)
    device.process.kill()  # at any moment
    second.interrupt()
    numbers = [int(line.split()[0]) for line in first.said + second.said]
    assert sorted(set(numbers)) == list(range(len(set(numbers))))
    assert len(numbers) - len(set(numbers)) <= 1  # that whose answer the restart took away
