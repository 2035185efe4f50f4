"""Socket files: what may be in the way, whose they are and who may use them.

A live server's file is never taken over, a dead one's is replaced, and what is not a socket is never removed. Called
from the threads that start and stop servers.

Other users may be able to rename and replace things while we look at them. So the directory is opened once and
verified, all that is done to the file is done relative to that descriptor, and its mode is set through a descriptor of
its own. Only bind() takes no descriptor; what it made is verified before it is opened to anybody.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from typing import Iterator, Optional, Tuple

from .config import Config
from .direntry import Entry, closing, identity, open_directory
from .errors import advice
from .socketroot import open_root

# sizeof(sockaddr_un.sun_path), unix(7) and the BSDs' unix(4), less the NUL at its end.
_MAX_PATH_BYTES = 107 if sys.platform.startswith('linux') else 103

# Another starting server holds the directory for microseconds; somebody who holds it longer means ill, and must not be
# able to stop us.
_LOCK_SECONDS = 2.0


class SocketFile:
    """A socket file of ours, known by its inode and its directory's, and the process that made it.

    The directory is opened again to remove the file, because a descriptor that is kept would have to be closed in every
    child made by fork. So a file is left where its directory was moved meanwhile: a dead socket, which harms nobody.
    """

    __slots__ = ('_directory', '_file', '_pid', '_removed', 'path')

    def __init__(self, path: str, file: os.stat_result, directory: os.stat_result) -> None:
        self.path = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)  # chdir() may come before remove()
        self._file = identity(file)
        self._directory = identity(directory)
        self._pid = os.getpid()
        self._removed = False

    def remove(self) -> None:
        """Remove the file, unless it is another server's by now or we are a child of its owner. Idempotent."""
        # Once: when our socket is closed, the system may give the inode's number to another server's file.
        if self._removed or self._pid != os.getpid():
            return
        where, name = os.path.split(self.path)
        with contextlib.suppress(OSError):
            try:
                directory = open_directory(where)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                # No descriptor left. Better than leaving the file is what can be done without one.
                found = os.stat(where), os.lstat(self.path)
                if tuple(map(identity, found)) == (self._directory, self._file):
                    os.unlink(self.path)
            else:
                with closing(directory):
                    found = os.fstat(directory), os.lstat(name, dir_fd=directory)
                    if tuple(map(identity, found)) == (self._directory, self._file):
                        os.unlink(name, dir_fd=directory)
        self._removed = True


_NO_UNIX_SOCKETS = (
    'this platform has no Unix sockets, and named pipes, which node-ipc uses here, are not supported; use serve_net and '
    'connect_to_net'
)


def check_path(path: str) -> None:
    """Raise OSError if no socket can have this path."""
    if not hasattr(socket, 'AF_UNIX'):
        raise OSError(errno.EAFNOSUPPORT, _NO_UNIX_SOCKETS, path)
    abstract = path.startswith('\0')
    if abstract and not sys.platform.startswith('linux'):
        raise OSError(errno.EINVAL, 'abstract socket names exist on Linux only; use a path', path)
    if not abstract and '\0' in path:
        raise ValueError(f'a socket path must not contain a NUL: {path!r}')
    size = len(os.fsencode(path))
    if size > _MAX_PATH_BYTES:
        raise OSError(
            errno.ENAMETOOLONG,
            f'the socket path has {size} bytes and the system allows {_MAX_PATH_BYTES}; '
            'choose a shorter path, id, appspace or socket_root',
            path,
        )


def bind(path: str, config: Config, backlog: int) -> Tuple[socket.socket, Optional[SocketFile]]:
    """Return a socket that listens at `path`, and its file. Raises OSError with the path in it.

    The mode of the file is 0600, and what ``config.readable_all`` and ``config.writable_all`` add, whatever the umask.
    Where the system can set no mode without following symbolic links (Linux without /proc), the umask takes from it.
    """
    check_path(path)
    abstract = path.startswith('\0')
    if not abstract and os.path.basename(path) in ('', '.', '..'):
        raise OSError(errno.EISDIR, 'the path is that of a directory; choose a name inside it', path)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot_listen(error, path) from error
    try:
        if abstract:
            _bind(sock, path)
            sock.listen(backlog)
            return sock, None
        directory = _open_directory_of(path, config)
        # Between finding a dead file and binding, and between binding and listening, another starting server would
        # take ours for dead: one at a time.
        with closing(directory), _locked(directory):
            return sock, _bind_in(directory, sock, path, config, backlog)
    except BaseException:
        sock.close()
        raise


def _open_directory_of(path: str, config: Config) -> int:
    directory = open_root(path, config)
    if directory is not None:
        return directory
    try:
        return open_directory(os.path.dirname(path) or '.')
    except OSError as error:
        raise _cannot_listen(error, path) from error


def _bind_in(directory: int, sock: socket.socket, path: str, config: Config, backlog: int) -> SocketFile:
    _clear_the_way(path, directory, config.unlink)
    mode = 0o600 | (0o444 if config.readable_all else 0) | (0o222 if config.writable_all else 0)
    # On Linux the file is made with the mode of the descriptor, so that there is no moment at which it is open to
    # others; elsewhere chmod has to do.
    with contextlib.suppress(OSError):
        os.fchmod(sock.fileno(), 0o600 if Entry.can_chmod() else mode)
    _bind(sock, path)
    try:
        try:
            entry = Entry(path, directory)
        except FileNotFoundError:
            raise _exchanged(path) from None
        with entry:
            if not (entry.is_socket and entry.is_ours and entry.is_at_path()):
                raise _exchanged(path)
            # A socket of ours need not be this one: whoever may rename things here may have put another there.
            if mode != 0o600 and entry.answer() not in (errno.ECONNREFUSED, errno.EACCES):
                raise _exchanged(path)
            file = SocketFile(path, entry.status, os.fstat(directory))
            try:
                entry.chmod(mode)
                sock.listen(backlog)
            except OSError as error:
                raise _cannot_listen(error, path) from error
        return file
    except BaseException:
        sock.close()
        _take_back(path, directory)
        raise


def _bind(sock: socket.socket, path: str) -> None:
    try:
        sock.bind(path)
    except OSError as error:
        raise _cannot_listen(error, path) from error


def _cannot_listen(error: OSError, path: str) -> OSError:
    what_to_do = {
        errno.ENOENT: 'its directory does not exist; create it, or choose another path',
        errno.EACCES: 'this user may not create files in its directory; choose another path or config.socket_root',
        errno.EADDRINUSE: 'another server is there; stop it, or choose another id or path',
    }.get(error.errno or 0, 'choose another path')
    return OSError(error.errno, f'cannot listen: {error.strerror}; {advice(error, what_to_do)}', path)


def _exchanged(path: str) -> OSError:
    return OSError(
        errno.ESTALE,
        'cannot listen: the socket, or its directory, was exchanged while the server started; choose a directory that '
        "others cannot change, and write its path without '..'",
        path,
    )


@contextlib.contextmanager
def _locked(directory: int) -> Iterator[None]:
    """Keep other starting servers out of a directory; without a lock where it cannot be had."""
    import fcntl

    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.005)
                continue
        except OSError:  # a directory that may not be read, a file system without locks
            pass
        break
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(directory, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor, too


def _clear_the_way(path: str, directory: int, unlink: bool) -> None:
    """Remove a dead server's socket file; raise OSError for everything else that is at `path`."""
    try:
        entry = Entry(path, directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_listen(error, path) from error
    with entry:
        if not entry.is_socket:
            raise OSError(
                errno.EEXIST, 'the path exists and is not a socket; remove it yourself, or choose another path', path
            )
        # What cannot be told counts as alive, and is not ours to remove: a full backlog, no permission, a datagram socket.
        answer = entry.answer()
        if answer not in (errno.ECONNREFUSED, errno.ENOENT):
            who = 'another server is listening there; stop it'
            if answer == errno.EACCES:
                who = f'a socket of user {entry.status.st_uid} is there; have it removed'
            raise OSError(errno.EADDRINUSE, f'{who}, or choose another id or path', path)
        if not unlink:
            raise OSError(
                errno.EADDRINUSE, "a dead server's socket is in the way; remove it, or set config.unlink = True", path
            )
        try:
            entry.unlink()
        except OSError as error:
            raise OSError(
                error.errno, f"a dead server's socket cannot be removed: {error.strerror}; choose another path", path
            ) from error


def _take_back(path: str, directory: int) -> None:
    """Remove the socket file that was made at `path`, in `directory` or where its path leads instead."""
    with contextlib.suppress(OSError):
        _remove_if_dead_and_ours(path, directory)
    with contextlib.suppress(OSError):
        elsewhere = open_directory(os.path.dirname(path) or '.')
        with closing(elsewhere):
            _remove_if_dead_and_ours(path, elsewhere)


def _remove_if_dead_and_ours(path: str, directory: int) -> None:
    with Entry(path, directory) as entry:
        if entry.is_socket and entry.is_ours and entry.answer() == errno.ECONNREFUSED:
            entry.unlink()


