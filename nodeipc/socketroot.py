"""The socket root: the directory of local sockets, its owner's alone.

Made, verified and closed to others in the threads that start servers, through a descriptor. Not covered: whoever may rename
the root itself, in a parent directory that others can write to and that has no sticky bit, can put another one in its
place afterwards. No access to our server comes of it, but clients are led elsewhere; ``config.server_uid`` is their
remedy. node-ipc 14 checks no parents either.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Optional, Tuple

from .config import Config
from .direntry import Entry
from .errors import ConfigError, advice

_OTHERS = 0o077


def check_assured_path(path: str, config: Config) -> None:
    """Raise `ConfigError` unless `path` is one at which ``parser='assured'`` may serve or connect.

    Such a path is directly inside a socket root that is secured, by its text, as node-ipc 14 sees it; no file is
    looked at.
    """
    root = _absolute(config.socket_root)
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
    root = _absolute(config.socket_root)
    directory, found = _open_directory(root)
    os.close(directory)
    if found.st_mode & _OTHERS:
        raise OSError(
            errno.EPERM,
            f'the socket root is open to others (mode {stat.S_IMODE(found.st_mode):o}); make it 0700, or choose another '
            'config.socket_root',
            root,
        )


def open_root(path: str, config: Config) -> Optional[int]:
    """Make the socket root if `path` is in it, and see that it is ours alone; open it if `path` is directly in it.

    Raises OSError.
    """
    root = _absolute(config.socket_root)
    if os.path.commonpath([root, _absolute(path)]) != root:
        return None
    try:
        _make_directories(root)
    except OSError as error:
        why = f'cannot create the socket root: {error.strerror}; choose another config.socket_root'
        raise OSError(error.errno, why, root) from error
    if not config.secure_socket_root:
        return None
    directory = _secured_root(root)
    if _is_directly_in(root, path):
        return directory
    os.close(directory)
    return None


def _absolute(path: str) -> str:
    """As os.path.abspath, but for two slashes at the beginning, which it keeps and which mean one. Raises OSError."""
    try:
        whole = os.path.abspath(path)
    except FileNotFoundError as error:
        why = 'the directory that a relative path starts from is gone; give an absolute one'
        raise OSError(error.errno, why, path) from error
    return whole[1:] if whole.startswith('//') else whole


def _is_directly_in(root: str, path: str) -> bool:
    whole = _absolute(path)
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
    with Entry(path) as entry:
        if stat.S_ISDIR(entry.status.st_mode) and entry.is_ours:
            entry.chmod(stat.S_IMODE(entry.status.st_mode) | 0o700)


def _open_directory(root: str) -> Tuple[int, os.stat_result]:
    """Open the socket root and see that it is a directory of ours, of whatever mode. Raises OSError."""
    try:
        directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EMLINK):  # EMLINK: what FreeBSD says of a link
            why = 'the socket root must be a directory and no symbolic link'
        else:
            why = f'cannot open the socket root: {error.strerror}'
        what_to_do = advice(error, 'choose another config.socket_root, or set config.secure_socket_root = False')
        raise OSError(error.errno, f'{why}; {what_to_do}', root) from error
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
    directory, found = _open_directory(root)
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
        what_to_do = advice(error, 'make it 0700 yourself, or choose another config.socket_root')
        raise OSError(error.errno, f'cannot secure the socket root: {error.strerror}; {what_to_do}', root) from error
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


def _shown(path: str) -> str:
    return repr(path) if '\0' not in path else repr(path.replace('\0', '@', 1))
