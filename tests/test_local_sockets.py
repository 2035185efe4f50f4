"""Unix socket paths: where they are, who may be in the way, and whose file it is."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Iterator

import pytest

from nodeipc import socketfile

from .conftest import Log, eventually


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The default socket root of the test."""
    return tmp_path / 'node-ipc'


@pytest.fixture
def dead(root: Path) -> Path:
    """A socket file that nobody listens on."""
    root.mkdir(mode=0o700)
    path = root / 'app.world'
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


def mode(path: Any) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def refused(make: Any, code: int, path: Any = None, **settings: Any) -> str:
    """The message of the OSError that starting raises, which names the path."""
    server = make(**settings).serve(path)
    with pytest.raises(OSError, match='.') as caught:
        server.start()
    assert caught.value.errno == code
    assert caught.value.filename in (server.address, os.path.dirname(server.address))
    assert str(caught.value.filename) in str(caught.value)
    assert not server.listening
    return str(caught.value)


def test_the_default_path_is_socket_root_appspace_id(make: Any, root: Path) -> None:
    server = make(id='my-service', appspace='space.').serve()
    server.start()
    assert server.address == f'{root}/space.my-service'
    assert stat.S_ISSOCK(os.lstat(server.address).st_mode)
    server.stop()
    assert not os.path.exists(server.address)


def test_the_root_and_the_socket_are_the_owners_alone(make: Any, root: Path) -> None:
    old = os.umask(0)
    try:
        server = make().serve()
        server.start()
    finally:
        os.umask(old)
    assert mode(root) == 0o700
    assert mode(server.address) == 0o600


def test_a_root_that_is_open_to_others_is_closed_to_them(make: Any, root: Path) -> None:
    root.mkdir(mode=0o755)
    root.chmod(0o755)
    make().serve().start()
    assert mode(root) == 0o700


def test_an_insecure_root_is_left_as_it_is(make: Any, root: Path) -> None:
    root.mkdir()
    root.chmod(0o755)
    make(secure_socket_root=False).serve().start()
    assert mode(root) == 0o755


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({}, 0o600),
        ({'readable_all': True}, 0o644),
        ({'writable_all': True}, 0o622),
        ({'readable_all': True, 'writable_all': True}, 0o666),
    ],
)
def test_the_mode_of_the_socket_is_a_setting(make: Any, settings: Any, expected: int) -> None:
    server = make(**settings).serve()
    server.start()
    assert mode(server.address) == expected


def test_a_shared_root_is_refused_and_not_changed(make: Any, root: Path) -> None:
    root.mkdir()
    root.chmod(0o1777)
    message = refused(make, errno.EPERM)
    assert 'is shared' in message
    assert 'secure_socket_root = False' in message
    assert mode(root) == 0o1777
    make(secure_socket_root=False).serve().start()


def test_a_root_that_is_a_symbolic_link_is_refused(make: Any, root: Path, tmp_path: Path) -> None:
    (tmp_path / 'elsewhere').mkdir()
    root.symlink_to(tmp_path / 'elsewhere')
    assert 'no symbolic link' in refused(make, errno.ENOTDIR if sys.platform.startswith('linux') else errno.ELOOP)


def test_a_root_that_is_a_file_is_refused(make: Any, root: Path) -> None:
    root.write_text('mine')
    assert 'cannot create the socket root' in refused(make, errno.EEXIST)
    assert root.read_text() == 'mine'


@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() != 0, reason='needs root to give a directory away')
def test_a_root_of_another_user_is_refused(make: Any, root: Path) -> None:
    root.mkdir()
    os.chown(root, 12345, 12345)
    assert 'is shared (owner 12345' in refused(make, errno.EPERM)


def test_paths_outside_the_root_are_the_applications_own(make: Any, tmp_path: Path, root: Path) -> None:
    server = make().serve(str(tmp_path / 'mine.sock'))
    server.start()
    assert not root.exists()
    client = make().connect_to('x', str(tmp_path / 'mine.sock'))
    assert client.wait_connected(10)


def test_a_missing_directory_is_said_clearly(make: Any, tmp_path: Path) -> None:
    assert 'directory does not exist; create it' in refused(make, errno.ENOENT, tmp_path / 'no' / 'such' / 'x.sock')


def test_a_path_that_is_too_long_is_said_clearly(make: Any, tmp_path: Path) -> None:
    path = str(tmp_path / ('x' * 200))
    for use in (make().serve, lambda path: make().connect_to('x', path)):
        with pytest.raises(OSError, match=r'has \d+ bytes and the system allows 107.*shorter') as caught:
            use(path)
        assert caught.value.errno == errno.ENAMETOOLONG
        assert path in str(caught.value)


def test_the_longest_path_works(make: Any, tmp_path: Path) -> None:
    directory = Path('/tmp') / f'nodeipc-{os.getpid()}'
    directory.mkdir()
    try:
        path = str(directory) + '/' + 'é' * ((107 - len(str(directory)) - 1) // 2)
        path += 'x' * (107 - len(os.fsencode(path)))
        server = make().serve(path)
        server.start()
        assert make().connect_to('x', path).wait_connected(10)
        server.stop()
    finally:
        shutil.rmtree(directory)


@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() == 0, reason='root may write everywhere')
def test_a_directory_without_permission_is_said_clearly(make: Any, tmp_path: Path) -> None:
    (tmp_path / 'closed').mkdir(mode=0o500)
    assert 'may not create files' in refused(make, errno.EACCES, tmp_path / 'closed' / 'x.sock')


@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() != 0, reason='becomes another user')
def test_a_directory_without_permission_is_said_clearly_to_another_user(tmp_path: Path) -> None:
    closed = Path('/tmp') / f'nodeipc-closed-{os.getpid()}'
    closed.mkdir(mode=0o755)
    script = (
        'import os, nodeipc\n'
        'with nodeipc.IPC() as ipc, ipc.serve(): pass\n'  # imports what that user may not read
        'os.setgid(12345); os.setuid(12345)\n'
        'try:\n'
        f'    nodeipc.IPC().serve({str(closed / "x.sock")!r}).start()\n'
        'except PermissionError as error:\n'
        '    print(error)\n'
    )
    try:
        run = subprocess.run(
            [sys.executable, '-S', '-c', script], capture_output=True, text=True, check=False,
            env={**os.environ, 'PYTHONPATH': os.getcwd()}, timeout=30,
        )  # fmt: skip
    finally:
        closed.rmdir()
    assert 'may not create files in its directory' in run.stdout, run.stderr


def test_a_live_server_is_never_taken_over(make: Any) -> None:
    log = Log()
    first = make().serve()
    first.on('*', log)
    first.start()
    assert 'another server is listening there' in refused(make, errno.EADDRINUSE)
    make().connect_to('world').emit('message', 'still here')
    assert log.wait('message')[0][0] == 'still here'


def test_a_live_server_with_a_full_backlog_is_not_taken_for_dead(make: Any, root: Path) -> None:
    root.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as other:
        busy.bind(str(root / 'app.world'))
        busy.listen(0)
        other.connect(busy.getsockname())
        assert 'another server is listening' in refused(make, errno.EADDRINUSE)
    os.unlink(root / 'app.world')


def test_a_dead_socket_file_is_replaced(make: Any, dead: Path) -> None:
    make().serve().start()
    assert make().connect_to('world').wait_connected(10)


def test_a_dead_socket_file_stays_unless_unlink(make: Any, dead: Path) -> None:
    assert 'config.unlink = True' in refused(make, errno.EADDRINUSE, unlink=False)
    assert dead.is_socket()
    dead.unlink()


@pytest.mark.parametrize('kind', ['file', 'directory', 'symlink', 'fifo'])
def test_what_is_not_a_socket_is_never_removed(make: Any, root: Path, kind: str) -> None:
    root.mkdir(mode=0o700)
    path = root / 'app.world'
    if kind == 'file':
        path.write_text('precious')
    elif kind == 'directory':
        path.mkdir()
    elif kind == 'symlink':
        path.symlink_to('/nowhere')
    else:
        os.mkfifo(path)
    before = os.lstat(path)
    assert 'is not a socket' in refused(make, errno.EEXIST)
    assert os.lstat(path).st_ino == before.st_ino


def test_stop_removes_its_own_socket_file_only(make: Any, root: Path) -> None:
    server = make().serve()
    server.start()
    os.unlink(server.address)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(server.address)
        server.stop()
        assert os.path.exists(server.address)
    os.unlink(server.address)


def test_many_servers_that_start_at_once_leave_one_live(make: Any, dead: Path) -> None:
    """Between finding a dead file, removing it, binding and listening, nobody else may do the same."""
    for _ in range(10):
        servers = [make().serve() for _ in range(6)]
        barrier = threading.Barrier(len(servers))
        failed = Log()

        def start(server: Any, barrier: threading.Barrier = barrier, failed: Log = failed) -> None:
            barrier.wait()
            try:
                server.start()
            except OSError as refusal:
                failed('error', refusal)

        threads = [threading.Thread(target=start, args=(server,)) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (live,) = [server for server in servers if server.listening]
        assert {error.errno for (error,) in failed.of('error')} == {errno.EADDRINUSE}
        log = Log()
        live.on('*', log)
        client = make().connect_to('world')
        client.emit('message')
        log.wait('message')
        client.disconnect()
        live.stop()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(dead))
    dead.unlink()


def test_a_directory_that_somebody_keeps_locked_delays_but_does_not_stop_a_server(
    make: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip('fcntl')
    root.mkdir(mode=0o700)
    monkeypatch.setattr(socketfile, '_LOCK_SECONDS', 0.05)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        make().serve().start()
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='abstract names are Linux only')
def test_an_abstract_name_works_and_leaves_no_file(make: Any, tmp_path: Path) -> None:
    name = f'\0nodeipc-test-{os.getpid()}'
    log = Log()
    server = make().serve(name)
    server.on('*', log)
    server.start()
    assert server.address == name
    client = make().connect_to('x', name)
    client.emit('message', 1)
    ((_, accepted),) = log.wait('message')
    assert accepted.address == name
    assert f'unix:@nodeipc-test-{os.getpid()}' in str(server)
    with pytest.raises(OSError, match='another server') as caught:
        make().serve(name).start()
    assert caught.value.errno == errno.EADDRINUSE
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def bound(transport: str, tmp_path: Path) -> Iterator[socket.socket]:
    family = socket.AF_UNIX if transport == 'unix' else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind(str(tmp_path / 'given.sock') if transport == 'unix' else ('127.0.0.1', 0))
        yield sock
    if transport == 'unix':
        os.unlink(tmp_path / 'given.sock')  # whoever binds, removes


def test_a_socket_that_is_bound_already_is_served(make: Any, transport: str, bound: socket.socket) -> None:
    ipc = make()
    log = Log()
    server = ipc.serve(sock=bound) if transport == 'unix' else ipc.serve_net(sock=bound)
    server.on('*', log)
    server.start()
    assert server.address == bound.getsockname()
    connect = ipc.connect_to if transport == 'unix' else ipc.connect_to_net
    address = (server.address,) if transport == 'unix' else server.address
    connect('x', *address).emit('message', 1)
    log.wait('message')
    server.stop()
    assert transport == 'tcp' or os.path.exists(server.address)


def test_only_stream_sockets_and_udp_can_be_served(make: Any) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match='stream socket, or UDP'):
        make().serve(sock=sock)


@pytest.mark.parametrize('kind', [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_is_not_bound_is_refused(make: Any, kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as sock, pytest.raises(ValueError, match='must be bound: call its bind'):
        make().serve_net(sock=sock)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ValueError, match='must be bound: call its bind'):
        make().serve(sock=sock)


def test_a_tcp_port_that_is_in_use_is_said_clearly(make: Any) -> None:
    first = make().serve_net('127.0.0.1', 0)
    first.start()
    port = first.address[1]
    with pytest.raises(OSError, match=rf'cannot listen on tcp://127.0.0.1:{port}: .*in use.*choose another') as caught:
        make().serve_net('127.0.0.1', port).start()
    assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match='cannot listen on tcp://no.such.host.invalid:1'):
        make().serve_net('no.such.host.invalid', 1).start()


def test_a_tcp_server_can_be_started_again_at_once(make: Any) -> None:
    server = make().serve_net('127.0.0.1', 0)
    server.start()
    port = server.address[1]
    again = make().serve_net('127.0.0.1', port)
    client = make().connect_to_net('x', '127.0.0.1', port)
    assert client.wait_connected(10)
    server.stop()  # closes first, so its end of the connection stays in TIME_WAIT
    again.start()
    eventually(lambda: again.sockets)


def test_a_failed_start_leaves_nothing(make: Any, root: Path) -> None:
    root.mkdir(mode=0o700)
    (root / 'app.world').write_text('')
    server = make().serve()
    for _ in range(20):
        with pytest.raises(OSError, match='not a socket'):
            server.start()
    (root / 'app.world').unlink()
    server.start()


def test_the_file_of_a_server_is_removed_at_the_end_of_the_script(root: Path) -> None:
    script = "import nodeipc; nodeipc.IPC(id='world').serve().start()"
    subprocess.run(
        [sys.executable, '-S', '-c', script], check=True, timeout=30, env={**os.environ, 'PYTHONPATH': os.getcwd()}
    )
    assert root.is_dir()
    assert list(root.iterdir()) == []


def test_ipv6_is_served(make: Any) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(('::1', 0))
    except OSError:
        pytest.skip('this machine has no IPv6')
    log = Log()
    server = make(id='six').serve_net('::1', 0)
    server.on('*', log)
    with server:
        assert str(server).startswith("server 'six' (tcp://[::1]:")
        client = make().connect_to_net('six', *server.address)
        client.emit('message')
        assert log.wait('message')[0][1].address[0] == '::1'
