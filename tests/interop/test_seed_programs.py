"""The two UDP programs that node-ipc's documentation has: our examples, their Node originals, and one of each."""

from __future__ import annotations

import socket
from typing import List

from ..conftest import eventually
from .peers import UDP, NodeProgram, Process, PythonProgram

Processes = List[Process]

QUESTION = b'{"type":"get.events.listening","data":{}}\f'


def wait_until_heard(udp: UDP, port: int) -> bytes:
    """Wait until a Python server at `port` says what it listens for; return that."""
    with udp.plain_socket() as sock:
        sock.settimeout(0.05)

        def answer() -> bytes:
            sock.sendto(QUESTION, (udp.host, port))
            try:
                return sock.recv(65536)
            except socket.timeout:
                return b''

        return bytes(eventually(answer))


def test_python_hello_greets_node_world(version: str, processes: Processes) -> None:
    udp = UDP('udp4')
    port = str(udp.free_port())
    world = NodeProgram(version, 'seed_world.mjs', port)
    processes.append(world)
    world.says('world can be heard')
    hello = PythonProgram('udp/hello_server.py', str(udp.free_port()), port)
    processes.append(hello)
    hello.says('got a message from world : Hello world!')
    world.says('got a message from hello : Hello')


def test_node_hello_greets_python_world(version: str, processes: Processes) -> None:
    udp = UDP('udp4')
    port = udp.free_port()
    world = PythonProgram('udp/world_server.py', str(port))
    processes.append(world)
    wait_until_heard(udp, port)
    hello = NodeProgram(version, 'seed_hello.mjs', str(udp.free_port()), str(port))
    processes.append(hello)
    hello.says('got a message from world : Hello world!')
    world.says('got a message from hello : Hello')


def test_python_hello_greets_python_world(processes: Processes) -> None:
    udp = UDP('udp4')
    port = udp.free_port()
    world = PythonProgram('udp/world_server.py', str(port))
    processes.append(world)
    assert b'This event type listens for message strings' in wait_until_heard(udp, port)
    hello = PythonProgram('udp/hello_server.py', str(udp.free_port()), str(port))
    processes.append(hello)
    hello.says('got a message from world : Hello world!')
    world.says('got a message from hello : Hello')
