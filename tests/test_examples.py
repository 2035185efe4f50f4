"""The example programs, run as processes the way their comments say."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List

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
                (sys.executable, '-X', 'dev', '-W', 'error', *command),
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

    def interrupt(self) -> None:
        """Press Ctrl-C, and see that it ends without a complaint."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(20) == 0
        assert self.errors.read_text() == ''


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Run an example: its path below examples/, and its arguments."""
    programs: List[Program] = []

    def run_example(path: str, *arguments: str) -> Program:
        program = Program(tmp_path / f'{len(programs)}.out', f'examples/{path}', *arguments)
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


def free_port() -> int:
    """Return a port that is free and that the system gives to nobody who asks for any."""
    while True:
        port = random.randrange(10000, 30000)
        with socket.socket() as sock:
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


def test_hello_finds_a_world_that_comes_later_or_comes_back(run: Any) -> None:
    hello = run('unix/hello_client.py')
    conversation = ['## connected to world ## 1500', 'got a message from world :  hello world!']
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
