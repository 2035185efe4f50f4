"""What is at a path, held by a descriptor so that nobody can exchange it between two looks.

Other users may be able to rename and replace files while we look at them. Socket files and their directories are handled
by these, in the threads that start and stop servers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Any, Iterator, Optional, Tuple

# A link to what a descriptor of ours holds, which nobody can lead elsewhere. Linux, unless /proc is not mounted.
_DESCRIPTORS = '/proc/self/fd'


def open_directory(path: str) -> int:
    """Open a directory, for looking names up in it. Raises OSError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        if not hasattr(os, 'O_PATH'):
            raise
        return os.open(path, os.O_PATH | os.O_DIRECTORY)  # it may be searched, and not read


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[None]:
    """Close a descriptor at the end of a `with` block."""
    try:
        yield
    finally:
        os.close(descriptor)


def identity(status: os.stat_result) -> Tuple[int, int]:
    """Return what tells a file from every other, as long as it is there."""
    return status.st_dev, status.st_ino


class Entry:
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

    def __enter__(self) -> Entry:
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
