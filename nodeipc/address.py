"""Addresses of stream servers: how they read in a message, how a server binds them, and who is on the other end.

Binding and looking up names take as long as they take, so nothing here is called on a reactor thread but `peer_of`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import Any, List, NamedTuple, Optional, Tuple, Union

from . import socketfile
from .config import Config

# Connections the kernel keeps until the server accepts them. The system caps it (net.core.somaxconn); a Unix client
# that finds it full is refused outright, so a small one would turn a thousand restarts at once into a thousand errors.
BACKLOG = 1024

SocketAddress = Union[str, bytes, Tuple[Any, ...]]


class Peer(NamedTuple):
    """The process on the other end of a Unix socket, by the kernel's word at the time it connected."""

    pid: int
    uid: int
    gid: int


class UnixAddress(NamedTuple):
    """A Unix socket path; one that begins with a NUL is a name in Linux's abstract namespace, which has no file."""

    path: str

    def __str__(self) -> str:
        return 'unix:@' + self.path[1:] if self.is_abstract else 'unix:' + self.path

    @property
    def is_abstract(self) -> bool:
        return self.path.startswith('\0')

    def check(self) -> None:
        """Raise OSError if the system cannot have such a path."""
        socketfile.check_path(self.path)


class TCPAddress(NamedTuple):
    """A host, by name or IP address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f'[{self.host}]' if ':' in self.host else self.host
        return f'tcp://{host}:{self.port}'

    def check(self) -> None:
        """TCP addresses are found wrong when they are looked up."""


Address = Union[UnixAddress, TCPAddress]


class Listener(NamedTuple):
    """A socket that listens, and the file to remove with it."""

    socket: socket.socket
    address: Address
    file: Optional[socketfile.SocketFile]

    def close(self) -> None:
        """Stop listening and remove the socket file, if it is still ours."""
        if self.file is not None:
            self.file.remove()  # first: once the socket is closed another server may take the path
        self.socket.close()


def listen(address: Address, config: Config) -> Listener:
    """Bind `address` and listen. Raises OSError, with the address in it."""
    if isinstance(address, UnixAddress):
        sock, file = socketfile.bind(address.path, config, BACKLOG)
    else:
        sock, file = _bind_tcp(address), None
    sock.setblocking(False)
    return Listener(sock, bound_address(sock, address), file)


def adopt(sock: socket.socket) -> Listener:
    """Listen on a socket that somebody else has bound, and whose file is therefore not ours to remove."""
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, 'the socket that was given as sock= is closed; make a server with a new one')
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f'sock= must be a stream socket, not {sock!r}')
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f'cannot listen on the sock= that was given, {sock!r}: {error.strerror}') from error
    sock.setblocking(False)
    return Listener(sock, bound_address(sock), None)


def bound_address(sock: socket.socket, asked: Optional[Address] = None) -> Address:
    """Return where `sock` is bound: the real port where 0 was asked for."""
    name = sock.getsockname()
    if sock.family == getattr(socket, 'AF_UNIX', None):
        if isinstance(asked, UnixAddress):
            return asked
        return UnixAddress(os.fsdecode(name))
    return TCPAddress(name[0], name[1])


def public(address: Address) -> Union[str, Tuple[str, int]]:
    """Return an address as the standard library writes it: a path, or ``(host, port)``."""
    return address.path if isinstance(address, UnixAddress) else (address.host, address.port)


def resolve(address: TCPAddress, family: Optional[int], numeric: bool = False) -> List[Tuple[int, SocketAddress]]:
    """Return the families and socket addresses of a host, in the order to try them. Raises OSError.

    With `numeric` a name is refused instead of looked up, so that the call takes no time.
    """
    families = {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}
    found = socket.getaddrinfo(
        address.host,
        address.port,
        families[family],
        socket.SOCK_STREAM,
        flags=socket.AI_NUMERICHOST if numeric else 0,
    )
    return [(entry[0], entry[4]) for entry in found]


def peer_of(sock: socket.socket) -> Optional[Peer]:
    """Return who connected to a Unix socket; None where the system does not tell, or the socket is not one."""
    if sock.family != getattr(socket, 'AF_UNIX', None) or not hasattr(socket, 'SO_PEERCRED'):
        return None
    # struct ucred of unix(7): pid_t, uid_t, gid_t
    return Peer(*struct.unpack('iII', sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize('iII'))))


def _bind_tcp(address: TCPAddress) -> socket.socket:
    try:
        family, where = resolve(address, None)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if sys.platform != 'win32':  # there it would let two servers share a port
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise OSError(
            error.errno,
            f'cannot listen on {address}: {error.strerror}; choose another host or port, or stop the server that has it',
        ) from error
    return sock
