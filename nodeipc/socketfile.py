"""Socket files: the directory they are in, what may be in the way, and whose they are.

A live server's file is never taken over, a dead one's is replaced, and what is not a socket is never removed. Called
from the threads that start and stop servers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
from typing import Iterator, NamedTuple, Optional, Tuple

from .config import Config

# sizeof(sockaddr_un.sun_path), unix(7) and the BSDs' unix(4), less the NUL at its end.
_MAX_PATH_BYTES = 107 if sys.platform.startswith('linux') else 103

# Another starting server holds the directory for microseconds; somebody who holds it longer means ill, and must not be
# able to stop us.
_LOCK_SECONDS = 2.0


class SocketFile(NamedTuple):
    """A socket file of ours, known by its inode, and the process that made it."""

    path: str
    device: int
    inode: int
    pid: int

    def remove(self) -> None:
        """Remove the file, unless it is another server's by now or we are a child of its owner."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino, os.getpid()) == (self.device, self.inode, self.pid):
                os.unlink(self.path)


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


def bind(path: str, config: Config, backlog: int) -> Tuple[socket.socket, Optional[SocketFile]]:
    """Return a socket that listens at `path`, and its file. Raises OSError with the path in it."""
    check_path(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.startswith('\0'):
            _bind(sock, path)
            sock.listen(backlog)
            return sock, None
        _prepare_root(path, config)
        # Between finding a dead file and binding, and between binding and listening, another starting server would
        # take ours for dead: one at a time.
        with _locked_directory(os.path.dirname(path) or '.'):
            _clear_the_way(path, config.unlink)
            # On Linux the file is made with the mode of the descriptor, so that there is no moment at which it is open
            # to others; elsewhere chmod has to do.
            with contextlib.suppress(OSError):
                os.fchmod(sock.fileno(), 0o600)
            _bind(sock, path)
            try:
                found = os.stat(path)
                mode = 0o600 | (0o444 if config.readable_all else 0) | (0o222 if config.writable_all else 0)
                os.chmod(path, mode)
                sock.listen(backlog)
            except BaseException:
                os.unlink(path)
                raise
        return sock, SocketFile(path, found.st_dev, found.st_ino, os.getpid())
    except BaseException:
        sock.close()
        raise


def _bind(sock: socket.socket, path: str) -> None:
    try:
        sock.bind(path)
    except OSError as error:
        advice = {
            errno.ENOENT: 'its directory does not exist; create it, or choose another path',
            errno.EACCES: 'this user may not create files in its directory; choose another path or config.socket_root',
            errno.EADDRINUSE: 'another server is there; stop it, or choose another id or path',
        }.get(error.errno or 0, 'choose another path')
        raise OSError(error.errno, f'cannot listen: {error.strerror}; {advice}', path) from error


def _prepare_root(path: str, config: Config) -> None:
    """Create the socket root if `path` is in it, and see that it is ours alone."""
    root = os.path.abspath(config.socket_root)
    if os.path.commonpath([root, os.path.abspath(path)]) != root:
        return
    try:
        os.makedirs(root, mode=0o700, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f'cannot create the socket root: {error.strerror}; choose another config.socket_root',
            root,
        ) from error
    if not config.secure_socket_root:
        return
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise OSError(
            error.errno,
            'the socket root must be a directory and no symbolic link; '
            'choose another config.socket_root, or set config.secure_socket_root = False',
            root,
        ) from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & stat.S_ISVTX:
            raise OSError(
                errno.EPERM,
                f'the socket root is shared (owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}); choose a '
                'directory of your own as config.socket_root, or set config.secure_socket_root = False',
                root,
            )
        if found.st_mode & 0o077:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked_directory(directory: str) -> Iterator[None]:
    """Keep other starting servers out of `directory`; without a lock where it cannot be had."""
    try:
        import fcntl

        descriptor = os.open(directory, os.O_RDONLY)
    except (ImportError, OSError):
        yield  # no such directory, or one we may not read: bind() will say what is wrong with it, if anything
        return
    try:
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    break
                time.sleep(0.005)
        yield
    finally:
        os.close(descriptor)


def _clear_the_way(path: str, unlink: bool) -> None:
    """Remove a dead server's socket file; raise OSError for everything else that is at `path`."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OSError(error.errno, f'cannot listen: {error.strerror}; choose another path', path) from error
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(
            errno.EEXIST, 'the path exists and is not a socket; remove it yourself, or choose another path', path
        )
    if _is_alive(path):
        raise OSError(
            errno.EADDRINUSE, 'another server is listening there; stop it, or choose another id or path', path
        )
    if not unlink:
        raise OSError(
            errno.EADDRINUSE, "a dead server's socket is in the way; remove it, or set config.unlink = True", path
        )
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise OSError(
            error.errno, f"a dead server's socket cannot be removed: {error.strerror}; choose another path", path
        ) from error


def _is_alive(path: str) -> bool:
    """Whether anything answers at a socket file. What cannot be told counts as alive: it is not ours to remove."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # a full backlog, no permission, a datagram socket
        return True
