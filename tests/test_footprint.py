"""What a small device must not pay for: modules that nobody asked for, and system calls while nothing happens.

Times and bytes are measured by ``python -m tests.benchmarks.footprint``; here is what is the same each time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any, Iterator

import pytest

from .benchmarks.footprint import calls_while_idle

# Slow to import or large, and no part of events over plain sockets.
UNWANTED = [
    'asyncio', 'concurrent.futures', 'email', 'hashlib', 'http', 'inspect', 'multiprocessing', 'ssl', 'subprocess',
    'nodeipc.channel', 'nodeipc.datagram', 'nodeipc.datagramclient', 'nodeipc.sync', 'random', 'tempfile', 'urllib',
]  # fmt: skip

PROGRAM = """
import sys, threading
import nodeipc
def found():
    print(*[name for name in sys.argv[1:] if name in sys.modules], flush=True)
found()
ipc = nodeipc.IPC(id='world', silent=True)
ipc.serve().on('message', lambda data, socket: socket.emit('message', data))
tcp = nodeipc.IPC(id='tcp', silent=True)
tcp.serve_net('127.0.0.1', 0).on('message', lambda data, socket: socket.emit('message', data))
waiting = []
for server, connect in ((ipc.server, ipc.connect_to), (tcp.server, tcp.connect_to_net)):
    server.start()
    client = connect('other', *([server.address] if isinstance(server.address, str) else server.address))
    assert client.wait_connected(60)
    assert client.request('message', 'hello', timeout=60) == 'hello'
    client.emit('message')
    events = client.events('news')
    threading.Thread(target=next, args=(events, None), daemon=True).start()
found()
sys.stdin.read()
ipc.close()
tcp.close()
"""


@pytest.fixture
def program() -> Iterator[Any]:
    """Servers and clients, over Unix and TCP, in an interpreter that imports nothing by itself, not even `site`."""
    child = subprocess.Popen(
        [sys.executable, '-S', '-c', PROGRAM, *UNWANTED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': os.getcwd()},
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    yield child
    child.stdin.close()
    child.stdout.close()
    try:
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()


def test_nothing_large_is_imported_by_the_library_nor_by_plain_servers_and_clients(program: Any) -> None:
    assert program.stdout.readline() == '\n'  # by import nodeipc
    assert program.stdout.readline() == '\n'  # by all of them that have spoken


def test_servers_and_clients_make_no_system_call_while_they_have_nothing_to_do(program: Any) -> None:
    strace = shutil.which('strace')
    if strace is None:
        pytest.skip('needs strace')
    for _ in range(2):
        assert program.stdout.readline()
    calls = calls_while_idle(strace, program.pid, 1.0)
    if calls is None:
        pytest.skip('strace may not attach to a process here')
    assert not calls
