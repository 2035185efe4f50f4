"""Socket files: the directory they are in, what may be in the way, whose they are and who may use them.

A live server's file is never taken over, a dead one's is replaced, and what is not a socket is never removed. Called
from the threads that start and stop servers.

Other users may be able to rename and replace things while we look at them. So the directory is opened once and
verified, all that is done to the file is done relative to that descriptor, and its mode is set through a descriptor of
its own. Only bind() takes no descriptor; what it made is verified before it is opened to anybody. Not covered: whoever
may rename the socket root itself, in a parent directory that others can write to and that has no sticky bit, can put
another one in its place afterwards. No access to our server comes of it, but clients are led elsewhere;
``config.server_uid`` is their remedy. node-ipc 14 checks no parents either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
from typing import Any, Iterator, Optional, Tuple

from .config import Config
from .errors import ConfigError

# sizeof(sockaddr_un.sun_path), unix(7) and the BSDs' unix(4), less the NUL at its end.
_MAX_PATH_BYTES = 107 if sys.platform.startswith('linux') else 103

# Another starting server holds the directory for microseconds; somebody who holds it longer means ill, and must not be
# able to stop us.
_LOCK_SECONDS = 2.0

_OTHERS = 0o077

# A link to what a descriptor of ours holds, which nobody can lead elsewhere. Linux, unless /proc is not mounted.
_DESCRIPTORS = '/proc/self/fd'


class SocketFile:
    """A socket file of ours, known by its inode and its directory's, and the process that made it.

    The directory is opened again to remove the file, because a descriptor that is kept would have to be closed in every
    child made by fork. So a file is left where its directory was moved meanwhile: a dead socket, which harms nobody.
    """

    __slots__ = ('_directory', '_file', '_pid', '_removed', 'path')

    def __init__(self, path: str, file: os.stat_result, directory: os.stat_result) -> None:
        self.path = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)  # chdir() may come before remove()
        self._file = _identity(file)
        self._directory = _identity(directory)
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
                directory = _open_directory(where)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                # No descriptor left. Better than leaving the file is what can be done without one.
                found = os.stat(where), os.lstat(self.path)
                if tuple(map(_identity, found)) == (self._directory, self._file):
                    os.unlink(self.path)
            else:
                with _closing(directory):
                    found = os.fstat(directory), os.lstat(name, dir_fd=directory)
                    if tuple(map(_identity, found)) == (self._directory, self._file):
                        os.unlink(name, dir_fd=directory)
        self._removed = True


def check_path(path: str) -> None:
    """Raise OSError if no socket can have this path."""
    if not hasattr(socket, 'AF_UNIX'):
        raise OSError(errno.EAFNOSUPPORT, 'this platform has no Unix sockets; use serve_net and connect_to_net', path)
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


def check_assured_path(path: str, config: Config) -> None:
    """Raise `ConfigError` unless `path` is one at which ``parser='assured'`` may serve or connect.

    Such a path is directly inside a socket root that is secured, by its text, as node-ipc 14 sees it; no file is
    looked at.
    """
    root = os.path.abspath(config.socket_root)
    if not config.secure_socket_root:
        why = 'needs a socket root that is verified; set config.secure_socket_root = True'
    elif path.startswith('\0'):
        why = f'needs a socket file, because anybody can take an abstract name; choose a path directly inside {root!r}'
    elif '..' in path.split('/'):
        why = "takes no path with '..', because symbolic links give that another meaning; write it without"
    elif not _is_directly_in(root, path):
        why = f'needs a path directly inside config.socket_root, {root!r}; choose one, or another socket_root'
    else:
        return
    raise ConfigError(f"{_shown(path)}: parser = 'assured' {why} [ERR_IPC_ASSURED_TRANSPORT]")


def verify_root(config: Config) -> None:
    """Raise OSError unless the socket root exists and is what a server would have made: a directory of ours alone."""
    root = os.path.abspath(config.socket_root)
    directory, found = _open_root(root)
    os.close(directory)
    if found.st_mode & _OTHERS:
        raise OSError(
            errno.EPERM,
            f'the socket root is open to others (mode {stat.S_IMODE(found.st_mode):o}); make it 0700, or choose another '
            'config.socket_root',
            root,
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
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if abstract:
            _bind(sock, path)
            sock.listen(backlog)
            return sock, None
        directory = _directory_of(path, config)
        # Between finding a dead file and binding, and between binding and listening, another starting server would
        # take ours for dead: one at a time.
        with _closing(directory), _locked(directory):
            return sock, _bind_in(directory, sock, path, config, backlog)
    except BaseException:
        sock.close()
        raise


def _bind_in(directory: int, sock: socket.socket, path: str, config: Config, backlog: int) -> SocketFile:
    _clear_the_way(path, directory, config.unlink)
    mode = 0o600 | (0o444 if config.readable_all else 0) | (0o222 if config.writable_all else 0)
    # On Linux the file is made with the mode of the descriptor, so that there is no moment at which it is open to
    # others; elsewhere chmod has to do.
    with contextlib.suppress(OSError):
        os.fchmod(sock.fileno(), 0o600 if _Entry.can_chmod() else mode)
    _bind(sock, path)
    try:
        try:
            entry = _Entry(path, directory)
        except FileNotFoundError:
            raise _exchanged(path) from None
        with entry:
            if not (entry.is_socket and entry.is_ours and entry.is_at_path()):
                raise _exchanged(path)
            # A socket of ours need not be this one: whoever may rename things here may have put another there.
            if mode & _OTHERS and entry.answer() not in (errno.ECONNREFUSED, errno.EACCES):
                raise _exchanged(path)
            entry.chmod(mode)
            file = SocketFile(path, entry.status, os.fstat(directory))
            sock.listen(backlog)
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
    advice = {
        errno.ENOENT: 'its directory does not exist; create it, or choose another path',
        errno.EACCES: 'this user may not create files in its directory; choose another path or config.socket_root',
        errno.EADDRINUSE: 'another server is there; stop it, or choose another id or path',
    }.get(error.errno or 0, 'choose another path')
    return OSError(error.errno, f'cannot listen: {error.strerror}; {advice}', path)


def _exchanged(path: str) -> OSError:
    return OSError(
        errno.ESTALE,
        'cannot listen: the socket, or its directory, was exchanged while the server started; choose a directory that '
        "others cannot change, and write its path without '..'",
        path,
    )


# Directories


def _directory_of(path: str, config: Config) -> int:
    """Open the directory of `path`; if that is in the socket root, create the root and see that it is ours alone."""
    root = os.path.abspath(config.socket_root)
    if os.path.commonpath([root, os.path.abspath(path)]) == root:
        try:
            _make_directories(root)
        except OSError as error:
            raise OSError(
                error.errno,
                f'cannot create the socket root: {error.strerror}; choose another config.socket_root',
                root,
            ) from error
        if config.secure_socket_root:
            directory = _secured_root(root)
            if _is_directly_in(root, path):
                return directory
            os.close(directory)
    try:
        return _open_directory(os.path.dirname(path) or '.')
    except OSError as error:
        raise _cannot_listen(error, path) from error


def _is_directly_in(root: str, path: str) -> bool:
    whole = os.path.abspath(path)
    return os.path.dirname(whole) == root != whole


def _make_directories(path: str) -> None:
    """Make a directory and those above it, as os.makedirs, but whatever the umask is, for their owner alone."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    if above != path:
        _make_directories(above)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return  # another starting server was faster
    with _Entry(path) as entry:
        if stat.S_ISDIR(entry.status.st_mode) and entry.is_ours:
            entry.chmod(stat.S_IMODE(entry.status.st_mode) | 0o700)


def _open_directory(path: str) -> int:
    """Open a directory, for looking names up in it. Raises OSError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        if not hasattr(os, 'O_PATH'):
            raise
        return os.open(path, os.O_PATH | os.O_DIRECTORY)  # it may be searched, and not read


def _open_root(root: str) -> Tuple[int, os.stat_result]:
    """Open the socket root and see that it is a directory of ours, of whatever mode. Raises OSError."""
    try:
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EMLINK):  # EMLINK: what FreeBSD says of a link
            why = 'the socket root must be a directory and no symbolic link'
        else:
            why = f'cannot open the socket root: {error.strerror}'
        raise OSError(
            error.errno,
            f'{why}; choose another config.socket_root, or set config.secure_socket_root = False',
            root,
        ) from error
    try:
        found = os.fstat(directory)
        if found.st_uid != os.geteuid() or found.st_mode & stat.S_ISVTX:
            raise OSError(
                errno.EPERM,
                f'the socket root is shared (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}); choose a '
                'directory of your own as config.socket_root, or set config.secure_socket_root = False',
                root,
            )
    except BaseException:
        os.close(directory)
        raise
    return directory, found


def _secured_root(root: str) -> int:
    """Open the socket root, which is closed to others if it is that and no directory of somebody's. Raises OSError."""
    directory, found = _open_root(root)
    try:
        if found.st_mode & _OTHERS:
            # Closing /run, say, or where other users' servers are, would stop more than strangers.
            intruder = _not_a_socket_of_ours(directory)
            if intruder is not None:
                raise OSError(
                    errno.EPERM,
                    f'the socket root is open to others (mode {stat.S_IMODE(found.st_mode):o}), and is not closed to them '
                    f'because it holds more than sockets of ours: {intruder!r}; choose a directory for sockets alone as '
                    'config.socket_root, make it 0700 yourself, or set config.secure_socket_root = False',
                    root,
                )
            os.fchmod(directory, 0o700)
    except OSError as error:
        os.close(directory)
        if error.filename is not None:
            raise
        raise OSError(error.errno, f'cannot secure the socket root: {error.strerror}', root) from error
    except BaseException:
        os.close(directory)
        raise
    return directory


def _not_a_socket_of_ours(directory: int) -> Optional[str]:
    """Return the name of the first thing in a directory that is no socket of this user or of root."""
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
                return entry.name
    return None


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


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


# What is in them


class _Entry:
    """What is at a path, links not followed, held so that nobody can exchange it between two looks. Use with `with`.

    The last part of the path is looked up in `directory`, if given. Raises OSError. A system without O_PATH or /proc
    cannot hold it: there it is looked up again each time.
    """

    __slots__ = ('_descriptor', '_directory', '_name', '_path', '_way', 'status')

    def __init__(self, path: str, directory: Optional[int] = None) -> None:
        self._path = path
        self._directory = directory
        self._name = path if directory is None else os.path.basename(path)
        self._descriptor = -1
        self._way = path
        if not self._can_hold():
            self.status = os.lstat(self._name, dir_fd=directory)
            return
        self._descriptor = os.open(self._name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory)
        try:
            self.status = os.fstat(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._way = f'{_DESCRIPTORS}/{self._descriptor}'

    def __enter__(self) -> _Entry:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    @staticmethod
    def _can_hold() -> bool:
        return hasattr(os, 'O_PATH') and os.path.isdir(_DESCRIPTORS)

    @classmethod
    def can_chmod(cls) -> bool:
        """Whether the mode of a file can be set here without following symbolic links."""
        return cls._can_hold() or os.chmod in os.supports_follow_symlinks

    @property
    def is_socket(self) -> bool:
        return stat.S_ISSOCK(self.status.st_mode)

    @property
    def is_ours(self) -> bool:
        return self.status.st_uid == os.geteuid()

    def is_at_path(self) -> bool:
        """Whether its path still leads to it."""
        try:
            return os.path.samestat(os.lstat(self._path), self.status)
        except OSError:
            return False

    def answer(self) -> int:
        """Return what connecting to this socket ends in: 0, or the number of the error."""
        if self._descriptor < 0 and not self.is_at_path():
            return errno.ESTALE
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            return probe.connect_ex(self._way)

    def chmod(self, mode: int) -> None:
        """Set its mode. Raises OSError."""
        if stat.S_IMODE(self.status.st_mode) == mode:
            return
        if self._descriptor >= 0:
            os.chmod(self._way, mode)
        elif self.can_chmod():
            os.chmod(self._name, mode, dir_fd=self._directory, follow_symlinks=False)
        elif stat.S_IMODE(self.status.st_mode) & ~mode:
            raise OSError(errno.EOPNOTSUPP, 'this system cannot close it to others without following links', self._path)

    def unlink(self) -> None:
        """Remove it, if it is still there. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(self._name, dir_fd=self._directory), self.status):
                os.unlink(self._name, dir_fd=self._directory)


def _clear_the_way(path: str, directory: int, unlink: bool) -> None:
    """Remove a dead server's socket file; raise OSError for everything else that is at `path`."""
    try:
        entry = _Entry(path, directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OSError(error.errno, f'cannot listen: {error.strerror}; choose another path', path) from error
    with entry:
        if not entry.is_socket:
            raise OSError(
                errno.EEXIST, 'the path exists and is not a socket; remove it yourself, or choose another path', path
            )
        # What cannot be told counts as alive, and is not ours to remove: a full backlog, no permission, a datagram socket.
        if entry.answer() not in (errno.ECONNREFUSED, errno.ENOENT):
            raise OSError(
                errno.EADDRINUSE, 'another server is listening there; stop it, or choose another id or path', path
            )
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
        elsewhere = _open_directory(os.path.dirname(path) or '.')
        with _closing(elsewhere):
            _remove_if_dead_and_ours(path, elsewhere)


def _remove_if_dead_and_ours(path: str, directory: int) -> None:
    with _Entry(path, directory) as entry:
        if entry.is_socket and entry.is_ours and entry.answer() == errno.ECONNREFUSED:
            entry.unlink()


def _identity(status: os.stat_result) -> Tuple[int, int]:
    return status.st_dev, status.st_ino


def _shown(path: str) -> str:
    return repr(path) if '\0' not in path else repr(path.replace('\0', '@', 1))
