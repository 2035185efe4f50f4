"""Platforms that are not at hand: without Unix sockets, without IPv6, with another selector, or Python told to optimize."""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest

from .cli_processes import ROOT
from .conftest import Log
from .interop.peers import Missing, NodePeer, Place, find_node

SECONDS = 60

# What Windows lacks, taken away when the standard library has looked at it, and before nodeipc does.
WITHOUT = """
import argparse, inspect, ipaddress, json, logging, os, re, select, selectors, shlex, shutil, signal, socket, ssl, subprocess
import sys, tempfile, traceback, urllib.parse
for module in 'fcntl', 'grp', 'pwd', 'pty', 'resource', 'termios', 'tty':
    sys.modules[module] = None
for module, names in {
    socket: 'AF_UNIX SO_PEERCRED SO_REUSEPORT MSG_DONTWAIT MSG_NOSIGNAL recv_fds send_fds',
    os: 'fork register_at_fork getuid geteuid getgid getegid fchmod fchown chown O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_PATH '
        'sched_getaffinity killpg setsid getpgid getpgrp tcgetpgrp',
    signal: 'SIGHUP SIGPIPE SIGALRM SIGUSR1 SIGTSTP SIGTTOU SIGTTIN SIGWINCH SIGCHLD SIGQUIT SIGKILL SIGCONT setitimer '
            'pthread_sigmask',
    select: 'epoll poll',
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
os.supports_dir_fd, os.supports_follow_symlinks = set(), set()
selectors.DefaultSelector = selectors.SelectSelector
def socketpair():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen()
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]
socket.socketpair = socketpair
sys.platform = 'win32'
"""


def run(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        [sys.executable, '-S', *options, '-W', 'error', '-c', program],
        cwd=str(ROOT), capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip


def said_by(program: str, *options: str) -> List[str]:
    """Run a program that ends well and complains of nothing; return the lines of its output."""
    done = run(program, *options)
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout.splitlines()


def test_without_unix_sockets_the_error_says_what_to_do_instead() -> None:
    program = WITHOUT + r"""
import nodeipc
for start in (
    lambda: nodeipc.IPC(id='world').serve().start(),
    lambda: nodeipc.serve('world').start(),
    lambda: nodeipc.serve(r'\\.\pipe\app.world').start(),
    lambda: nodeipc.IPC(id='hello').connect_to('world'),
    lambda: nodeipc.connect('world'),
):
    try:
        start()
    except OSError as error:
        print(error)
"""
    said = said_by(program)
    assert len(said) == 5
    for line in said:
        assert 'no Unix sockets' in line
        assert 'named pipes' in line
        assert 'serve_net and connect_to_net' in line


def test_without_unix_sockets_fork_and_modules_of_unix_the_rest_works() -> None:
    program = WITHOUT + """
import nodeipc, threading
with nodeipc.IPC(id='world', silent=True) as ipc, nodeipc.IPC(id='client', silent=True) as other:
    server = ipc.serve_net('127.0.0.1', 0)
    server.on('ask', lambda data, socket: socket.emit('ask', data))
    server.start()
    client = other.connect_to_net('world', *server.address)
    print(client.request('ask', 1, timeout=30))
    print(len(client.request('ask', 'x' * 3_000_000, timeout=30)))
    udp = ipc.serve_net('127.0.0.1', 0, 'udp4')
    udp.on('ask', lambda data, socket: socket.emit('ask', data))
    udp.start()
    with nodeipc.connect('udp://127.0.0.1:%d' % udp.address[1]) as client:
        print(client.request('ask', 2, timeout=30))
    udp.stop()
    server.stop()
print(threading.active_count())
"""
    assert said_by(program) == ['1', '3000000', '2', '1']


@pytest.mark.parametrize('command', ['serve world', 'demo'])
def test_the_command_line_says_what_is_missing_where_there_are_no_unix_sockets(command: str) -> None:
    done = run(f'{WITHOUT}\nfrom nodeipc.cli import main\nsys.exit(main({command.split()!r}))')
    assert done.returncode == 1, done.stderr
    assert 'no Unix sockets' in done.stderr
    assert 'Traceback' not in done.stderr


# Python without assert statements and docstrings


OPTIMIZED = pytest.mark.parametrize('option', ['-O', '-OO'])

ROUND_TRIPS = """
import nodeipc
assert False, 'there are assertions'
for parser in ('fast', 'guarded', 'assured'):
    settings = {'parser': parser, 'allowed_events': ['ask', 'rpc'] if parser == 'assured' else None}
    with nodeipc.serve('world', **settings) as server, nodeipc.connect('world', **settings) as client:
        server.on('ask', lambda data, socket: socket.emit('ask', data))
        server.method('add')(lambda a, b: a + b)
        try:
            client.emit('ask', float('nan'))
        except ValueError:
            print(parser, client.request('ask', {'a': [1, None]}, timeout=30), client.call('add', 1, 2, timeout=30))
print(nodeipc.IPC.__doc__ is None)
"""


@OPTIMIZED
def test_round_trips_without_assertions_and_docstrings(option: str) -> None:
    answers = [f"{parser} {{'a': [1, None]}} 3" for parser in ('fast', 'guarded', 'assured')]
    assert said_by(ROUND_TRIPS, option) == [*answers, str(option == '-OO')]


def test_the_benchmark_without_assertions_and_docstrings() -> None:
    program = "import sys; from nodeipc.cli import main; sys.exit(main('bench --seconds 0.05 --json'.split()))"
    (figures,) = said_by(program, '-OO')
    assert json.loads(figures)


def test_the_demo_without_assertions_and_docstrings() -> None:
    """Its children inherit that; it speaks over Unix, TCP, TLS and UDP."""
    program = "import sys; from nodeipc.cli import main; sys.exit(main(['demo']))"
    *_, last = said_by(program, '-OO')
    assert 'done: messages, replies, broadcasts and a reconnection' in last


def test_a_node_client_and_a_server_without_assertions_and_docstrings(tmp_path: Path, transport: str) -> None:
    try:
        find_node('14.0.0')
    except Missing as reason:
        pytest.skip(str(reason))
    place = Place(transport, tmp_path)
    where = [place.path] if transport == 'unix' else [place.host, str(place.port)]
    command = [sys.executable, '-S', '-OO', '-m', 'tests.interop.python_peer', 'serve', '{}', transport, *where]
    server = subprocess.Popen(command, cwd=str(ROOT), stdin=subprocess.PIPE)
    node = NodePeer('14.0.0')
    try:
        node.connect(place)
        node.wait('connect')
        node.emit('message', {'a': [1, None, '\N{SNOWMAN}']})
        assert node.wait('message') == [{'a': [1, None, '\N{SNOWMAN}']}]
    finally:
        node.close()
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(SECONDS) == 0
        place.close()


# Without IPv6: as good as NODEIPC_TEST_NO_IPV6, for a machine that has it


@pytest.fixture
def no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names have addresses of both versions, IPv6 first, and there are no sockets for that."""
    real = socket.socket.__init__
    look_up = socket.getaddrinfo

    def initialize(self: Any, family: int = -1, type: int = -1, proto: int = -1, fileno: Any = None) -> None:
        if family == socket.AF_INET6 and fileno is None:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        real(self, family, type, proto, fileno)

    def both(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        found = look_up('127.0.0.1' if host == 'localhost' else host, port, family, type, proto, flags)
        if host == 'localhost' and family == socket.AF_UNSPEC:
            found.insert(0, (socket.AF_INET6, type, found[0][2], '', ('::1', port, 0, 0)))
        return found

    monkeypatch.setattr(socket.socket, '__init__', initialize)
    monkeypatch.setattr(socket, 'has_ipv6', False)
    monkeypatch.setattr(socket, 'getaddrinfo', both)


def test_localhost_is_found_without_ipv6_though_its_name_has_such_an_address_first(make: Any, no_ipv6: None) -> None:
    server = make().serve_net(port=0)
    log = Log()
    server.on('*', log)
    server.start()
    assert server.address[0] == '127.0.0.1'
    errors = Log()
    client = make(id='client').connect_to_net('world', 'localhost', server.address[1], lambda client: client.on('*', errors))
    client.emit('message', 1)
    log.wait('message')
    assert errors.of('error') == []


def test_without_ipv6_its_addresses_are_refused_clearly(make: Any, no_ipv6: None) -> None:
    for arguments in (('::1', 0), ('::1', 0, 'udp6')):
        with pytest.raises(OSError, match=r"\[?::1\]?:0") as caught:
            make().serve_net(*arguments).start()
        assert caught.value.errno == errno.EAFNOSUPPORT
        assert os.strerror(errno.EAFNOSUPPORT) in str(caught.value)
    log = Log()
    make(max_retries=0).connect_to_net('world', '::1', 9, lambda client: client.on('*', log))
    ((error,),) = log.wait('error')
    assert '[::1]:9' in str(error)
    log.wait('destroy')


# select(), which knows no descriptor from 1024 on


def test_a_descriptor_that_select_cannot_have_costs_its_connection_alone(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip('resource')
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 1100:
        pytest.skip('needs 1100 descriptors')
    monkeypatch.setattr(selectors, 'DefaultSelector', selectors.SelectSelector)
    server = make().serve()
    server.on('ask', lambda data, socket: socket.emit('ask', data))
    log = Log()
    server.on('*', log)
    server.start()
    instance = make(id='client')
    client = instance.connect_to('world', server.address)
    assert client.request('ask', 1, timeout=20) == 1
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while taken[-1] < 1023:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        with socket.socket(socket.AF_UNIX) as one_too_many:
            one_too_many.connect(server.address)
            ((error, _), *_) = log.wait('error')
            assert "server 'world'" in str(error)
            assert 'select' in str(error)
            assert client.request('ask', 2, timeout=20) == 2
            other = instance.connect_to('other', server.address, lambda client: client.on('*', log))
            assert 'select' in str(log.wait('error', 2)[1][0])
            assert not other.connected
            assert client.request('ask', 3, timeout=20) == 3
    finally:
        for descriptor in taken:
            os.close(descriptor)
    assert other.wait_connected(20)  # now that there are others
    assert other.request('ask', 4, timeout=20) == 4
