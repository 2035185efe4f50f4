"""Addresses of servers: how they read in a message, how a server binds them, and who is on the other end.

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
from .errors import advice

# Connections the kernel keeps until the server accepts them. The system caps it (net.core.somaxconn); a Unix client
# that finds it full is refused outright, so a small one would turn a thousand restarts at once into a thousand errors.
BACKLOG = 1024

_FAMILIES = {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}

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


class TLSAddress(TCPAddress):
    """The address of a server that speaks TLS."""

    __slots__ = ()

    def __str__(self) -> str:
        return super().__str__().replace('tcp', 'tls', 1)


class UDPAddress(NamedTuple):
    """A host, a port, and the version of the Internet Protocol, 4 or 6, that all datagrams of a socket have."""

    host: str
    port: int
    version: int

    def __str__(self) -> str:
        return str(TCPAddress(self.host, self.port)).replace('tcp', 'udp')

    @property
    def max_datagram(self) -> int:
        """Bytes that a datagram can hold: 65,535 without the headers, which version 6 does not count its own of."""
        return 65507 if self.version == 4 else 65527


# node-ipc's names of UDP, and the version of the Internet Protocol that the socket has.
UDP_TYPES = {'udp4': 4, 'udp6': 6}

_LOOPBACK = {4: '127.0.0.1', 6: '::1'}


def udp_address(host: str, port: int, version: int) -> UDPAddress:
    """Return an address of a version; what means this machine in either version means it in this one.

    >>> str(udp_address('localhost', 8000, 6))
    'udp://[::1]:8000'
    """
    if host in ('localhost', '127.0.0.1', '::1'):
        host = _LOOPBACK[version]
    return UDPAddress(host, port, version)


StreamAddress = Union[UnixAddress, TCPAddress]
NetAddress = Union[TCPAddress, UDPAddress]
Address = Union[StreamAddress, UDPAddress]


class Listener(NamedTuple):
    """A socket that listens, or is bound for datagrams, and the file to remove with it."""

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
        sock, file = _bind(address), None
    sock.setblocking(False)
    return Listener(sock, bound_address(sock, address), file)


def adopt(sock: socket.socket) -> Listener:
    """Listen on a socket that somebody else has bound, and whose file is therefore not ours to remove."""
    address = given_address(sock)
    if sock.type == socket.SOCK_STREAM:
        try:
            sock.listen(BACKLOG)
        except OSError as error:
            why = f'cannot listen on the sock= that was given, {sock!r}: {error.strerror}'
            raise OSError(error.errno, why) from error
    sock.setblocking(False)
    return Listener(sock, address, None)


def given_address(sock: socket.socket) -> Address:
    """Return where a socket that somebody else has bound is; raise OSError or ValueError if it cannot serve."""
    if sock.fileno() < 0:
        raise OSError(errno.EBADF, 'the socket that was given as sock= is closed; make a server with a new one')
    address = bound_address(sock)
    if address.path == '' if isinstance(address, UnixAddress) else address.port == 0:
        raise ValueError(f'sock= must be bound: call its bind() first ({sock!r})')
    try:
        sock.getpeername()
    except OSError:
        return address
    raise ValueError(f'sock= must be a socket that is bound, and not connected (systemd: Accept=no): {sock!r}')


def bound_address(sock: socket.socket, asked: Optional[Address] = None) -> Address:
    """Return where `sock` is bound: the real port where 0 was asked for. Raises ValueError for what cannot serve."""
    name = sock.getsockname()
    is_unix = sock.family == getattr(socket, 'AF_UNIX', None)
    if sock.type == socket.SOCK_DGRAM and not is_unix:
        return UDPAddress(name[0], name[1], 6 if sock.family == socket.AF_INET6 else 4)
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f'sock= must be a stream socket, or UDP, not {sock!r}')
    if is_unix:
        return asked if isinstance(asked, UnixAddress) else UnixAddress(os.fsdecode(name))
    return TCPAddress(name[0], name[1])


def readable(where: SocketAddress) -> str:
    """Return a socket address of the Internet as one writes it."""
    return f'[{where[0]}]:{where[1]}' if ':' in str(where[0]) else f'{where[0]}:{where[1]}'


def public(address: Address) -> Union[str, Tuple[str, int]]:
    """Return an address as the standard library writes it: a path, or ``(host, port)``."""
    return address.path if isinstance(address, UnixAddress) else (address.host, address.port)


def resolve(address: NetAddress, family: Optional[int] = None, numeric: bool = False) -> List[Tuple[int, SocketAddress]]:
    """Return the families and socket addresses of a host, in the order to try them. Raises OSError or UnicodeError.

    `family` is 4, 6 or None for both; UDP has its own. With `numeric` a name is refused instead of looked up, so that
    the call takes no time.
    """
    flags = socket.AI_NUMERICHOST if numeric else 0
    if isinstance(address, UDPAddress):
        kind, family = socket.SOCK_DGRAM, address.version
    else:
        kind = socket.SOCK_STREAM
    found = socket.getaddrinfo(address.host, address.port, _FAMILIES[family], kind, flags=flags)
    return [(entry[0], entry[4]) for entry in found]


# Whether the system tells who is on the other end of a Unix socket.
KNOWS_PEERS = hasattr(socket, 'SO_PEERCRED')


def peer_of(sock: socket.socket) -> Optional[Peer]:
    """Return who connected to a Unix socket, or who listens on the one that we connected to.

    None where the system does not tell, or the socket is not one.
    """
    if sock.family != getattr(socket, 'AF_UNIX', None) or not KNOWS_PEERS:
        return None
    # struct ucred of unix(7): pid_t, uid_t, gid_t
    return Peer(*struct.unpack('iII', sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize('iII'))))


def prepare_tcp(sock: socket.socket) -> None:
    """Have a TCP socket send at once, and find out, when the system's time for that is over, that the other host is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _bind(address: NetAddress) -> socket.socket:
    stream = isinstance(address, TCPAddress)
    try:
        family, where = resolve(address)[0]
        sock = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        try:
            # With it a second UDP socket would take the datagrams of the first, and on Windows a second server its port.
            if stream and sys.platform != 'win32':
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(where)
            if stream:
                sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except (OSError, UnicodeError) as error:  # UnicodeError: what cannot be the name of a host
        what_to_do = 'choose another host or port, or stop the server that has it'
        if isinstance(error, OSError):
            what_to_do = advice(error, what_to_do)
        why = getattr(error, 'strerror', None) or error
        raise OSError(getattr(error, 'errno', None), f'cannot listen on {address}: {why}; {what_to_do}') from error
    return sock
