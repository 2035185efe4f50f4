"""Who may do what at a Unix socket: modes, owners, links, directories that are exchanged, and whom the kernel names.

Where the tests run as root, other users are real ones: processes with a uid of their own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from nodeipc import Config, ConfigError, direntry, socketfile, socketroot, tally

from .conftest import Log, eventually

pytestmark = pytest.mark.skipif(not hasattr(socket, 'AF_UNIX'), reason='needs Unix sockets')

is_root = hasattr(os, 'getuid') and os.getuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason='needs root, to be other users as well')
needs_linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='how Linux does it')
needs_peers = pytest.mark.skipif(not hasattr(socket, 'SO_PEERCRED'), reason='needs a system that tells who connects')

STRANGER, FRIEND = 54321, 54322

MODES = [
    ({}, 0o600),
    ({'readable_all': True}, 0o644),
    ({'writable_all': True}, 0o622),
    ({'readable_all': True, 'writable_all': True}, 0o666),
]

# Becomes another user when it has imported what that user may not read, and evaluates the lines it is told.
OTHER_USER = r"""
import errno, json, os, queue, signal, socket, stat, sys, nodeipc
signal.alarm(120)

def ask(client, data):
    answers = queue.Queue()
    client.on('message', answers.put)
    client.emit('message', data, timeout=20)
    return answers.get(timeout=20)

with nodeipc.IPC(silent=True, id='warm') as ipc, ipc.serve_net(port=0) as server:
    server.on('message', lambda data, socket: socket.emit('message', data))
    ask(ipc.connect_to_net('warm', *server.address), 1)
uid = int(sys.argv[1])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
os.chdir('/')
kept = {}

def can(path, how):
    return os.access(path, how)

def connect(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
    return 'connected'

def push(path):
    # Send before the server can say no; return what it says.
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        try:
            sock.sendall(b'{"type":"message","data":1}\f' * 100)
            return len(sock.recv(100))
        except (BrokenPipeError, ConnectionResetError):
            return 0

def request(path, **settings):
    with nodeipc.IPC(silent=True, retry=20, **settings) as ipc:
        return ask(ipc.connect_to('x', path), 'hello')

def squat(path):
    kept['squatter'] = sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    os.chmod(path, 0o777)
    sock.listen(5)
    sock.settimeout(20)

def received():
    # All that the next to connect sends.
    with kept['squatter'].accept()[0] as sock:
        sock.settimeout(20)
        return len(sock.recv(100))

def leave(path):
    kept.pop('squatter').close()
    os.unlink(path)

def serve(path, **settings):
    kept['ipc'] = ipc = nodeipc.IPC(silent=True, **settings)
    server = ipc.serve(path)
    server.on('message', lambda data, socket: socket.emit('message', [os.getuid(), data]))
    server.start()
    return server.address

def stop():
    kept.pop('ipc').close()

print('null', flush=True)
for line in sys.stdin:
    try:
        result = eval(line)
    except OSError as error:
        result = errno.errorcode[error.errno]
    print(json.dumps(result), flush=True)
"""


class OtherUser:
    """A process of another user."""

    def __init__(self, uid: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-S', '-c', OTHER_USER, str(uid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, 'PYTHONPATH': os.getcwd()},
        )  # fmt: skip

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, 'the other user is dead'
        return json.loads(line)

    def tell(self, function: str, *arguments: Any, **settings: Any) -> None:
        """Have it call a function, by name; `answer` is what it returns, or the name of the OSError it raises."""
        assert self.process.stdin is not None
        arguments = tuple(str(argument) if isinstance(argument, Path) else argument for argument in arguments)
        self.process.stdin.write(f'{function}(*{arguments!r}, **{settings!r})\n')
        self.process.stdin.flush()

    def ask(self, function: str, *arguments: Any, **settings: Any) -> Any:
        self.tell(function, *arguments, **settings)
        return self.answer()


@pytest.fixture
def become() -> Iterator[Callable[[int], OtherUser]]:
    """Start a process of another user."""
    users: List[OtherUser] = []

    def start(uid: int) -> OtherUser:
        user = OtherUser(uid)
        users.append(user)
        assert user.answer() is None
        return user

    yield start
    for user in users:
        user.process.communicate(timeout=30)
        assert user.process.returncode == 0


@pytest.fixture
def stranger(become: Callable[[int], OtherUser]) -> OtherUser:
    return become(STRANGER)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user can reach and write to, like /tmp; tmp_path is its owner's alone."""
    directory = Path(tempfile.mkdtemp(prefix='nodeipc-', dir='/tmp'))
    directory.chmod(0o1777)
    yield directory
    left = [path for path in directory.rglob('*') if path.is_socket()]
    shutil.rmtree(directory)
    assert not left


@pytest.fixture
def make(public: Path, make: Any) -> Any:
    """Make instances, whose servers are gone before it is seen whether they left anything in `public`."""
    return make


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The default socket root of the test."""
    return tmp_path / 'node-ipc'


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    """Set the umask of the process until the test ends."""

    def set_mask(mask: int) -> None:
        os.umask(mask)

    old = os.umask(0o022)
    yield set_mask
    os.umask(old)


@pytest.fixture
def around_bind(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have something done between the steps of a starting server: just before it binds, just after."""
    bind = socket.socket.bind

    def set_traps(before: Any = None, after: Any = None) -> None:
        def trapped(sock: socket.socket, address: Any) -> None:
            if before is not None:
                before()
            bind(sock, address)
            if after is not None:
                after()

        monkeypatch.setattr(socket.socket, 'bind', trapped)

    return set_traps


def mode(path: Any) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def leave_socket(path: Any) -> None:
    """Leave a socket file that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def refused(make: Any, code: int, path: Any = None, **settings: Any) -> str:
    """The message of the OSError that starting raises, which names the path."""
    server = make(**settings).serve(path and str(path))
    with pytest.raises(OSError, match='.') as caught:
        server.start()
    assert caught.value.errno == code
    assert caught.value.filename in (server.address, os.path.dirname(server.address))
    assert not server.listening
    return str(caught.value)


def answer(data: Any, socket: Any) -> None:
    socket.emit('message', data)


def ask(client: Any, data: Any) -> Any:
    """Emit, and return what the server answers."""
    log = Log()
    client.on('*', log)
    client.emit('message', data, timeout=20)
    return log.wait('message')[0][0]


# The mode of the socket and of its root


@needs_root
@pytest.mark.parametrize(('settings', 'expected'), MODES)
def test_the_mode_is_what_other_users_can_do(
    make: Any, public: Path, stranger: OtherUser, settings: Dict[str, bool], expected: int
) -> None:
    server = make(**settings).serve(str(public / 'x.sock'))
    server.start()
    assert mode(server.address) == expected
    assert stranger.ask('can', server.address, os.R_OK) is bool(settings.get('readable_all'))
    assert stranger.ask('can', server.address, os.W_OK) is bool(settings.get('writable_all'))
    assert stranger.ask('connect', server.address) == ('connected' if settings.get('writable_all') else 'EACCES')


@pytest.mark.parametrize('mask', [0, 0o777])
@pytest.mark.parametrize(('settings', 'expected'), MODES)
def test_the_umask_makes_no_difference(
    make: Any, tmp_path: Path, umask: Any, settings: Dict[str, bool], expected: int, mask: int
) -> None:
    umask(mask)
    server = make(socket_root=f'{tmp_path}/deep/in/own/', **settings).serve()
    server.start()
    umask(0o022)
    assert mode(server.address) == expected
    assert [mode(tmp_path / name) for name in ('deep', 'deep/in', 'deep/in/own')] == [0o700] * 3


@needs_root
@pytest.mark.parametrize('mask', [0, 0o777])
def test_the_umask_makes_no_difference_to_users_whom_modes_bind(public: Path, stranger: OtherUser, mask: int) -> None:
    stranger.ask('os.umask', mask)
    path = stranger.ask('serve', None, id='world', socket_root=f'{public}/deep/own/', readable_all=True)
    assert path == f'{public}/deep/own/app.world'
    assert (mode(path), mode(public / 'deep/own'), mode(public / 'deep')) == (0o644, 0o700, 0o700)
    assert stranger.ask('request', path) == [STRANGER, 'hello']
    stranger.ask('stop')


@needs_linux
@pytest.mark.parametrize('mask', [0, 0o777])
def test_there_is_no_moment_at_which_a_socket_is_more_open_than_asked(
    make: Any, umask: Any, around_bind: Any, public: Path, mask: int
) -> None:
    seen: List[int] = []
    around_bind(after=lambda: seen.append(mode(public / 'x.sock')))
    umask(mask)
    make(readable_all=True).serve(str(public / 'x.sock')).start()
    assert seen == [0o600 & ~mask]


@needs_root
def test_other_users_cannot_even_see_what_is_in_the_root(make: Any, public: Path, stranger: OtherUser) -> None:
    server = make(socket_root=f'{public}/own/', readable_all=True, writable_all=True).serve()
    server.start()
    assert mode(server.address) == 0o666
    assert stranger.ask('os.lstat', server.address) == 'EACCES'
    assert stranger.ask('os.listdir', public / 'own') == 'EACCES'
    assert stranger.ask('connect', server.address) == 'EACCES'


def test_a_root_that_is_made_in_a_directory_to_come_is_its_owners_alone(make: Any, umask: Any, tmp_path: Path) -> None:
    umask(0)
    make(socket_root=f'{tmp_path}/a/b/').serve().start()
    assert (mode(tmp_path / 'a'), mode(tmp_path / 'a/b')) == (0o700, 0o700)


@needs_linux
@pytest.mark.parametrize(('mask', 'expected'), [(0, 0o666), (0o022, 0o644), (0o777, 0)])
def test_without_proc_the_umask_takes_from_the_mode(
    make: Any, monkeypatch: pytest.MonkeyPatch, umask: Any, tmp_path: Path, root: Path, mask: int, expected: int
) -> None:
    monkeypatch.setattr(direntry, '_DESCRIPTORS', str(tmp_path / 'no-proc'))
    root.mkdir(0o700)
    leave_socket(root / 'app.world')
    umask(mask)
    server = make(readable_all=True, writable_all=True).serve()
    server.start()
    assert mode(server.address) == expected
    assert 'another server is listening' in refused(make, errno.EADDRINUSE)
    server.stop()
    assert not os.path.exists(server.address)


# The socket root


@pytest.mark.parametrize('open_to', [0o755, 0o770, 0o777, 0o701])
def test_a_root_with_sockets_alone_is_closed_to_others(make: Any, root: Path, open_to: int) -> None:
    root.mkdir()
    first = make(id='first', secure_socket_root=False).serve()
    first.on('message', answer)
    first.start()
    leave_socket(root / 'app.dead')
    root.chmod(open_to)
    make().serve().start()
    assert mode(root) == 0o700
    assert ask(make().connect_to('first'), 1) == 1
    os.unlink(root / 'app.dead')


def put(kind: str, path: Path) -> None:
    if kind == 'file':
        path.write_text('precious')
    elif kind == 'directory':
        path.mkdir()
    elif kind == 'symlink':
        path.symlink_to('app.dead')
    elif kind == 'fifo':
        os.mkfifo(path)
    else:
        leave_socket(path)
        os.chown(path, STRANGER, STRANGER)


@pytest.mark.parametrize('kind', ['file', 'directory', 'symlink', 'fifo', pytest.param('socket', marks=needs_root)])
def test_a_root_that_holds_anything_else_is_neither_closed_nor_used(make: Any, root: Path, kind: str) -> None:
    """With socket_root = '/run/' and the user root, /run must stay open; and where others have sockets, theirs."""
    root.mkdir()
    leave_socket(root / 'app.dead')
    put(kind, root / 'thing')
    root.chmod(0o755)
    message = refused(make, errno.EPERM)
    assert "'thing'" in message
    for advice in ('a directory for sockets alone', 'make it 0700 yourself', 'secure_socket_root = False'):
        assert advice in message
    assert mode(root) == 0o755
    assert sorted(os.listdir(root)) == ['app.dead', 'thing']
    make(secure_socket_root=False).serve().start()
    assert mode(root) == 0o755
    root.chmod(0o700)
    make(id='second').serve().start()
    os.unlink(root / 'app.dead')
    if kind == 'socket':
        os.unlink(root / 'thing')


@needs_root
def test_roots_sockets_do_not_keep_a_users_root_open(make: Any, public: Path, stranger: OtherUser) -> None:
    (public / 'own').mkdir()
    leave_socket(public / 'own/app.roots')
    os.chown(public / 'own', STRANGER, STRANGER)
    (public / 'own').chmod(0o755)
    assert stranger.ask('serve', None, id='world', socket_root=f'{public}/own/') == f'{public}/own/app.world'
    assert mode(public / 'own') == 0o700
    stranger.ask('stop')
    os.unlink(public / 'own/app.roots')


def test_a_root_that_is_closed_already_may_hold_what_it_likes(make: Any, root: Path) -> None:
    root.mkdir(0o700)  # as node-ipc 14 makes it
    (root / 'file').write_text('')
    leave_socket(root / 'app.node')
    make().serve().start()
    assert mode(root) == 0o700
    os.unlink(root / 'app.node')


@pytest.mark.parametrize('hostile', [False, pytest.param(True, marks=needs_root)])
def test_a_root_that_is_a_symbolic_link_is_refused_and_its_target_not_touched(
    make: Any, public: Path, hostile: bool
) -> None:
    (public / 'private').mkdir()
    (public / 'private').chmod(0o755)
    (public / 'own').symlink_to('private')
    if hostile:
        os.chown(public / 'own', STRANGER, STRANGER, follow_symlinks=False)
    code = errno.ENOTDIR if sys.platform.startswith('linux') else errno.ELOOP
    assert 'no symbolic link' in refused(make, code, socket_root=f'{public}/own/')
    assert mode(public / 'private') == 0o755
    assert os.listdir(public / 'private') == []


@needs_root
def test_a_root_of_another_user_is_refused(make: Any, public: Path, stranger: OtherUser) -> None:
    stranger.ask('os.mkdir', public / 'own', 0o700)
    assert f'is shared (owner {STRANGER}' in refused(make, errno.EPERM, socket_root=f'{public}/own/')
    (public / 'mine').mkdir(0o700)
    assert stranger.ask('serve', None, socket_root=f'{public}/mine/') == 'EACCES'
    (public / 'mine').chmod(0o777)
    assert stranger.ask('serve', None, socket_root=f'{public}/mine/') == 'EPERM'
    # POSIX lets two slashes mean something else, and os.path.abspath keeps them.
    with pytest.raises(PermissionError, match=f'is shared .owner {STRANGER}'):
        make(socket_root=f'/{public}/own/').serve().start()
    assert stranger.ask('serve', None, socket_root=f'/{public}/mine/') == 'EPERM'
    assert os.listdir(public / 'mine') == []


def test_a_path_deeper_in_the_root_is_found_behind_it(make: Any, root: Path) -> None:
    (root / 'deeper').mkdir(parents=True)
    server = make().serve(f'{root}/deeper/x.sock')
    root.chmod(0o700)
    server.on('message', answer)
    server.start()
    assert ask(make().connect_to('x', server.address), 1) == 1
    server.stop()
    assert os.listdir(root / 'deeper') == []


@needs_root
def test_a_directory_that_may_be_written_and_not_read_is_served_in(public: Path, stranger: OtherUser) -> None:
    stranger.ask('os.mkdir', public / 'drop', 0o300)
    path = str(public / 'drop/x.sock')
    assert stranger.ask('serve', path) == path
    assert stranger.ask('request', path) == [STRANGER, 'hello']
    stranger.ask('stop')
    assert os.listdir(public / 'drop') == []


@pytest.mark.parametrize('end', ['', '.', '..'])
def test_a_path_that_ends_as_a_directory_is_refused(make: Any, tmp_path: Path, end: str) -> None:
    assert 'choose a name inside it' in refused(make, errno.EISDIR, f'{tmp_path}/sub/{end}')


@needs_linux
def test_an_abstract_name_has_no_directory(make: Any) -> None:
    server = make().serve(f'\0nodeipc-{os.getpid()}/..')
    server.on('message', answer)
    server.start()
    assert ask(make().connect_to('x', server.address), 1) == 1


# What is exchanged while the server starts


def exchange(directory: Path) -> None:
    """Move a directory away and put another one in its place."""
    directory.rename(f'{directory}.moved')
    directory.mkdir(0o700)


@pytest.mark.parametrize('secure', [True, False])
def test_a_directory_that_is_exchanged_before_bind_is_not_served_in(
    make: Any, root: Path, around_bind: Any, secure: bool
) -> None:
    root.mkdir(0o700)
    around_bind(before=lambda: exchange(root))
    message = refused(make, errno.ESTALE, writable_all=True, secure_socket_root=secure)
    assert 'exchanged while the server started' in message
    assert (os.listdir(root), os.listdir(f'{root}.moved')) == ([], [])


def test_a_directory_that_is_exchanged_after_bind_is_not_served_in(make: Any, root: Path, around_bind: Any) -> None:
    root.mkdir(0o700)
    around_bind(after=lambda: exchange(root))
    refused(make, errno.ESTALE, writable_all=True)
    assert (os.listdir(root), os.listdir(f'{root}.moved')) == ([], [])


def test_a_root_that_is_exchanged_when_it_is_verified_is_not_served_in(
    make: Any, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    root.mkdir()
    root.chmod(0o755)
    fchmod = os.fchmod

    def fchmod_then_exchange(descriptor: int, mode: int) -> None:
        fchmod(descriptor, mode)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            exchange(root)
            root.chmod(0o777)

    monkeypatch.setattr(os, 'fchmod', fchmod_then_exchange)
    refused(make, errno.ESTALE, writable_all=True)
    assert (os.listdir(root), os.listdir(f'{root}.moved')) == ([], [])


def test_a_directory_that_was_exchanged_for_bind_alone_is_noticed(make: Any, root: Path, around_bind: Any) -> None:
    root.mkdir(0o700)

    def back() -> None:
        root.rename(f'{root}.other')
        os.rename(f'{root}.moved', root)

    around_bind(before=lambda: exchange(root), after=back)
    refused(make, errno.ESTALE, writable_all=True)
    assert os.listdir(root) == []
    assert mode(f'{root}.other/app.world') == 0o600  # out of our reach; nobody listens on it
    os.unlink(f'{root}.other/app.world')


def test_a_directory_with_a_live_server_that_is_put_in_the_place_keeps_it(
    make: Any, tmp_path: Path, root: Path, around_bind: Any
) -> None:
    """What is removed after the exchange is what was made, and nobody's live socket."""
    root.mkdir(0o700)
    live = make().serve(str(tmp_path / 'app.world'))
    live.on('message', answer)
    live.start()

    def put_live() -> None:
        root.rename(f'{root}.moved')
        os.symlink(tmp_path, root)

    around_bind(after=put_live)
    refused(make, errno.ESTALE)
    os.unlink(root)
    assert os.listdir(f'{root}.moved') == []
    assert ask(make().connect_to('x', live.address), 1) == 1


@pytest.mark.parametrize('without', ['', pytest.param('/proc', marks=needs_linux)])
def test_a_link_in_the_place_of_the_socket_opens_no_file(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, public: Path, around_bind: Any, without: str
) -> None:
    if without:
        monkeypatch.setattr(direntry, '_DESCRIPTORS', str(tmp_path / 'no-proc'))
    private = tmp_path / 'private'
    private.write_text('secret')
    private.chmod(0o600)
    path = public / 'x.sock'

    def put_link() -> None:
        path.unlink()
        path.symlink_to(private)

    around_bind(after=put_link)
    refused(make, errno.ESTALE, path, readable_all=True, writable_all=True)
    assert mode(private) == 0o600
    assert path.is_symlink()  # no socket, so not ours to remove


@needs_linux
def test_a_link_that_comes_just_before_the_mode_is_set_opens_no_file(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, public: Path
) -> None:
    private = tmp_path / 'private'
    private.write_text('secret')
    private.chmod(0o600)
    path = public / 'x.sock'
    chmod = os.chmod

    def late(*arguments: Any, **options: Any) -> None:
        if not path.is_symlink():
            path.unlink()
            path.symlink_to(private)
        chmod(*arguments, **options)

    monkeypatch.setattr(os, 'chmod', late)
    server = make(writable_all=True).serve(str(path))
    server.start()
    assert path.is_symlink()
    assert mode(private) == 0o600
    server.stop()
    assert path.is_symlink()


def test_another_server_of_ours_in_the_place_of_the_socket_is_not_opened(
    make: Any, tmp_path: Path, public: Path, around_bind: Any
) -> None:
    other = make(id='other').serve(str(tmp_path / 'other.sock'))
    other.on('message', answer)
    other.start()
    path = public / 'x.sock'

    def put_other() -> None:
        path.unlink()
        os.link(other.address, path)

    around_bind(after=put_other)
    refused(make, errno.ESTALE, path, writable_all=True)
    assert mode(other.address) == 0o600
    assert ask(make().connect_to('x', other.address), 1) == 1
    path.unlink()


@needs_root
def test_a_socket_of_somebody_else_in_the_place_of_ours_is_not_taken_for_it(
    make: Any, public: Path, around_bind: Any
) -> None:
    path = public / 'x.sock'

    def put_foreign() -> None:
        path.unlink()
        os.rename(public / 'foreign', path)

    leave_socket(public / 'foreign')
    os.chown(public / 'foreign', STRANGER, STRANGER)
    around_bind(after=put_foreign)
    refused(make, errno.ESTALE, path, writable_all=True)
    assert os.lstat(path).st_uid == STRANGER
    path.unlink()


def test_a_dead_socket_that_is_exchanged_while_it_is_probed_is_not_removed(
    make: Any, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    root.mkdir(0o700)
    path = root / 'app.world'
    leave_socket(path)
    connect = socket.socket.connect_ex

    def exchange_then_connect(sock: socket.socket, address: Any) -> int:
        path.rename(root / 'dead')
        path.write_text('precious')
        return connect(sock, address)

    monkeypatch.setattr(socket.socket, 'connect_ex', exchange_then_connect)
    refused(make, errno.EADDRINUSE)
    assert path.read_text() == 'precious'
    os.unlink(root / 'dead')


@pytest.mark.parametrize('live', [True, False])
def test_a_symbolic_link_to_a_socket_is_neither_followed_nor_removed(
    make: Any, tmp_path: Path, root: Path, live: bool
) -> None:
    root.mkdir(0o700)
    target = tmp_path / 'target.sock'
    if live:
        make().serve(str(target)).start()
    else:
        leave_socket(target)
    (root / 'app.world').symlink_to(target)
    assert 'is not a socket' in refused(make, errno.EEXIST, writable_all=True)
    assert (root / 'app.world').is_symlink()
    assert target.is_socket()
    if not live:
        target.unlink()


def test_a_start_that_fails_after_bind_leaves_no_file(make: Any, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    def fail(sock: socket.socket, backlog: int) -> None:
        raise OSError(errno.ENOBUFS, 'no')

    monkeypatch.setattr(socket.socket, 'listen', fail)
    with pytest.raises(OSError, match='no'):
        make().serve().start()
    assert os.listdir(root) == []


@needs_linux
def test_a_child_that_was_forked_meanwhile_does_not_keep_the_lock(make: Any, root: Path, around_bind: Any) -> None:
    fcntl = pytest.importorskip('fcntl')
    root.mkdir(0o700)
    inherited: List[int] = []

    def fork() -> None:
        """Have what a child has: another descriptor of the same open file."""
        for name in os.listdir('/proc/self/fd'):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(int(name)), os.stat(root)):
                    inherited.append(os.dup(int(name)))

    around_bind(after=fork)
    make().serve().start()
    another = os.open(root, os.O_RDONLY)
    fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert inherited
    for descriptor in (another, *inherited):
        os.close(descriptor)


# Removal


def test_what_is_in_another_directory_in_the_place_of_ours_is_not_removed(make: Any, root: Path) -> None:
    server = make().serve()
    server.start()
    exchange(root)
    os.link(f'{root}.moved/app.world', root / 'app.world')  # the very inode; and yet not the file that was made
    server.stop()
    assert os.listdir(root) == ['app.world']
    os.unlink(f'{root}.moved/app.world')
    os.unlink(root / 'app.world')


def test_a_directory_that_was_away_and_came_back_is_tidied(make: Any, root: Path) -> None:
    server = make().serve()
    server.start()
    root.rename(f'{root}.moved')
    os.rename(f'{root}.moved', root)
    server.stop()
    assert os.listdir(root) == []


def test_a_relative_path_is_removed_from_wherever_the_process_is(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path)
    server = make().serve('./x.sock')
    server.start()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    leave_socket('x.sock')
    server.stop()
    assert os.listdir(tmp_path / 'elsewhere') == ['x.sock']
    assert not (tmp_path / 'x.sock').exists()
    os.unlink('x.sock')


def test_a_file_is_removed_when_no_descriptor_is_left(make: Any) -> None:
    resource = pytest.importorskip('resource')
    server = make().serve()
    server.start()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: List[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with pytest.raises(OSError, match='Too many open files'):
            while True:
                taken.append(os.dup(0))
        server.stop()
        assert not os.path.exists(server.address)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


def test_a_file_that_was_removed_once_is_not_removed_again(root: Path) -> None:
    """The system may give its inode's number to the next server's file; a second name for the inode does the same."""
    path = str(root / 'app.world')
    sock, file = socketfile.bind(path, Config(), 5)
    with sock:
        assert file is not None
        os.link(path, f'{path}.next')
        file.remove()
        os.rename(f'{path}.next', path)
        file.remove()
        assert os.listdir(root) == ['app.world']
    os.unlink(path)


# Whom the kernel names


@needs_root
@needs_peers
def test_only_allowed_users_are_heard(make: Any, public: Path, become: Callable[[int], OtherUser]) -> None:
    stranger, friend = become(STRANGER), become(FRIEND)
    log = Log()
    server = make(writable_all=True, allowed_uids=[os.getuid(), FRIEND]).serve(str(public / 'x.sock'))
    server.on('*', log)
    server.on('message', answer)
    server.start()
    mine = make().connect_to('x', server.address)
    assert ask(mine, 'mine') == 'mine'
    assert stranger.ask('push', server.address) == 0
    ((error, who),) = log.wait('error')
    assert isinstance(error, PermissionError)
    assert who is None
    assert f'user {STRANGER}, pid {stranger.process.pid}, who is not in config.allowed_uids' in str(error)
    assert friend.ask('request', server.address) == 'hello'
    assert ask(mine, 'still') == 'still'
    assert [data for data, _ in log.of('message')] == ['mine', 'hello', 'still']
    assert len(log.of('connect')) == server.stats()['connections_total'] == 2
    assert [socket.peer.uid for (socket,) in log.of('connect')] == [os.getuid(), FRIEND]
    assert server.stats()['bytes_in'] == sum(len(f'{{"type":"message","data":"{data}"}}\f') for data, _ in log.of('message'))


@needs_peers
@pytest.mark.parametrize('allowed', ['nobody', 'another'])
def test_the_owner_is_refused_too_unless_allowed(make: Any, allowed: str) -> None:
    log = Log()
    server = make(allowed_uids=[] if allowed == 'nobody' else {os.getuid() + 1}).serve()
    server.on('*', log)
    server.start()
    client = make(stop_retrying=True).connect_to('world')
    ((error, _),) = log.wait('error')
    assert f'user {os.getuid()}, pid {os.getpid()}' in str(error)
    eventually(lambda: not client.connected)
    assert not log.of('connect')


@needs_peers
def test_a_flood_of_refused_users_is_told_of_in_few_errors(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, '_REPORT_SECONDS', 0.5)  # far longer than the flood
    server = make(allowed_uids=[os.getuid() + 1]).serve()
    log = Log()
    told, go_on = threading.Event(), threading.Event()

    def slow(error: Any) -> None:
        told.set()
        assert go_on.wait(20)

    server.on('error', log_errors(log))
    server.on('error', slow)
    server.start()
    knock(server.address)
    assert told.wait(20)
    for _ in range(300):
        knock(server.address)
    go_on.set()
    first, second = [str(error) for (error,) in log.wait('error', 2)]
    assert ': a connection was refused, of user' in first
    assert ': 300 connections were refused, the last of user' in second
    server.stop()
    assert len(log.of('error')) == 2


def log_errors(log: Log) -> Callable[[Any], None]:
    return lambda error: log('error', error)


def knock(path: str) -> None:
    """Connect, send, and see the connection closed."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        try:
            sock.sendall(b'{"type":"message"}\f')
            assert sock.recv(100) == b''
        except (BrokenPipeError, ConnectionResetError):
            pass


@needs_root
@needs_peers
def test_refused_users_take_no_place_of_allowed_ones(make: Any, public: Path, stranger: OtherUser) -> None:
    server = make(writable_all=True, allowed_uids=[os.getuid()], max_connections=1).serve(str(public / 'x.sock'))
    server.on('message', answer)
    server.start()
    for _ in range(5):
        assert stranger.ask('push', server.address) == 0
    assert ask(make().connect_to('x', server.address), 1) == 1


@needs_root
@needs_peers
def test_a_squatter_gets_nothing_and_the_client_waits_for_the_right_server(
    make: Any, public: Path, stranger: OtherUser
) -> None:
    path = str(public / 'x.sock')
    stranger.ask('squat', path)
    log = Log()
    client = make(server_uid=os.getuid()).connect_to('x', path, lambda client: client.on('*', log))
    emitting = threading.Thread(target=lambda: client.emit('message', 'secret', timeout=60))
    emitting.start()
    for _ in range(3):
        assert stranger.ask('received') == 0
    error = log.wait('error')[0][0]
    assert isinstance(error, PermissionError)
    assert f'run by user {STRANGER} (pid {stranger.process.pid}), and not by user {os.getuid()}' in str(error)
    assert not log.of('connect')
    assert emitting.is_alive()
    assert stranger.ask('leave', path) is None
    heard = Log()
    server = make().serve(path)
    server.on('*', heard)
    server.start()
    assert heard.wait('message')[0][0] == 'secret'
    emitting.join(20)
    assert len(log.wait('connect')) == 1


@needs_root
@needs_peers
def test_the_server_of_the_user_that_was_asked_for_is_talked_to(make: Any, public: Path, stranger: OtherUser) -> None:
    path = str(public / 'x.sock')
    stranger.ask('serve', path)
    client = make(server_uid=STRANGER).connect_to('x', path)
    assert ask(client, 'hello') == [STRANGER, 'hello']
    stranger.ask('stop')


@needs_root
@needs_peers
def test_a_socket_that_is_given_counts_as_of_who_serves_it(make: Any, public: Path) -> None:
    """Not who made it or its file, but who listens last is whom the kernel names."""
    path = str(public / 'x.sock')
    with socket.socket(socket.AF_UNIX) as bound:
        os.seteuid(STRANGER)
        try:
            bound.bind(path)
            bound.listen(5)
        finally:
            os.seteuid(0)
        log = Log()
        client = make(server_uid=0).connect_to('x', path, lambda client: client.on('*', log))
        assert f'run by user {STRANGER}' in str(log.wait('error')[0][0])
        server = make().serve(sock=bound)
        server.on('message', answer)
        server.start()
        assert ask(client, 1) == 1
        server.stop()
    os.unlink(path)


# The profile 'assured'


def test_a_path_directly_in_a_secured_root_is_assured(tmp_path: Path) -> None:
    config = Config(socket_root=f'{tmp_path}/nowhere/')
    for path in ('app.world', 'x', '/x', './x', '...', 'a..b'):
        socketroot.check_assured_path(f'{tmp_path}/nowhere/{path}', config)
    socketroot.check_assured_path('/x', Config(socket_root='/'))
    with pytest.raises(ConfigError, match='directly inside'):
        socketroot.check_assured_path('/', Config(socket_root='/'))
    assert not (tmp_path / 'nowhere').exists()


def test_a_relative_path_may_be_assured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    socketroot.check_assured_path('own/x', Config(socket_root=f'{tmp_path}/own/'))
    socketroot.check_assured_path(f'{tmp_path}/own/x', Config(socket_root='own/'))
    with pytest.raises(ConfigError, match='directly inside'):
        socketroot.check_assured_path('x', Config(socket_root=f'{tmp_path}/own/'))


NOT_ASSURED: List[Tuple[str, str]] = [
    ('/run/x', 'directly inside'),
    ('/run/own', 'directly inside'),
    ('/run/own/', 'directly inside'),
    ('/run/own/.', 'directly inside'),
    ('/run/own/sub/x', 'directly inside'),
    ('/run/owned/x', 'directly inside'),
    ('/run/own/sub/../x', "with '..'"),
    ('/run/own/../own/x', "with '..'"),
    ('/run/own/..', "with '..'"),
    ('/run/own/../x', "with '..'"),
    ('\0/run/own/x', 'abstract'),
    ('/', 'directly inside'),
    ('//run/own/sub/x', 'directly inside'),
]


@pytest.mark.parametrize(('path', 'why'), NOT_ASSURED)
def test_other_paths_are_not_assured(path: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        socketroot.check_assured_path(path, Config(socket_root='/run/own/'))
    assert str(caught.value).startswith(repr(path.replace('\0', '@')))
    assert str(caught.value).endswith('[ERR_IPC_ASSURED_TRANSPORT]')


def test_no_path_is_assured_in_a_root_that_is_not_secured() -> None:
    with pytest.raises(ConfigError, match=r"'/run/own/x': .*secure_socket_root = True \[ERR_IPC_ASSURED_TRANSPORT\]$"):
        socketroot.check_assured_path('/run/own/x', Config(socket_root='/run/own/', secure_socket_root=False))


def test_a_root_of_ours_alone_is_verified_and_none_is_made(make: Any, root: Path, tmp_path: Path) -> None:
    config = Config()
    with pytest.raises(FileNotFoundError) as caught:
        socketroot.verify_root(config)
    assert caught.value.filename == str(root)
    assert not root.exists()
    make().serve().start()
    socketroot.verify_root(config)
    for open_to in (0o710, 0o701, 0o704, 0o777):
        root.chmod(open_to)
        with pytest.raises(PermissionError, match='make it 0700'):
            socketroot.verify_root(config)
        assert mode(root) == open_to
    root.chmod(0o1700)
    with pytest.raises(PermissionError, match='is shared'):
        socketroot.verify_root(config)
    root.chmod(0o700)
    (tmp_path / 'link').symlink_to(root)
    (tmp_path / 'file').write_text('')
    for name in ('link', 'file'):
        with pytest.raises(OSError, match='must be a directory and no symbolic link'):
            socketroot.verify_root(Config(socket_root=f'{tmp_path}/{name}/'))


@needs_root
def test_a_root_of_another_user_is_not_verified(root: Path) -> None:
    root.mkdir(0o700)
    os.chown(root, STRANGER, STRANGER)
    with pytest.raises(PermissionError, match='is shared'):
        socketroot.verify_root(Config())


@pytest.mark.parametrize('path', ['/run/own/x', '//run/own/x', '///run/own/x', '/run//own/./x'])
@pytest.mark.parametrize('root', ['/run/own/', '//run/own/', '/run/own//'])
def test_a_path_is_assured_however_it_is_written(path: str, root: str) -> None:
    socketroot.check_assured_path(path, Config(socket_root=root))


def test_a_relative_path_from_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    program = (
        'import os, nodeipc\n'
        'os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")\n'
        'try: nodeipc.IPC().serve("x.sock").start()\n'
        'except FileNotFoundError as error: print(error)\n'
    )
    environment = {**os.environ, 'PYTHONPATH': os.path.dirname(os.path.dirname(socketroot.__file__))}
    done = subprocess.run(
        [sys.executable, '-S', '-c', program],
        cwd=str(tmp_path), env=environment, stdout=subprocess.PIPE, timeout=60, check=True,
    )
    assert done.stdout.decode().endswith("a relative path starts from is gone; give an absolute one: 'x.sock'\n")
