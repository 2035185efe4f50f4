"""TLS over a connected socket: a stream that sends and receives as a plain socket does.

Connections write to it and read from it on the same path as TCP; the bytes pass through OpenSSL in between, by way of
memory, so that it never touches a socket and nothing ever waits for a peer.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from typing import Any, Dict, List, Optional, Union

from .errors import retold
from .tls import BROKEN_VERSIONS, NOT_TLS, explained, is_end

# The plain bytes of one record, RFC 8446, 5.1. Each is given to the socket by itself: the peer decrypts one while we encrypt
# the next; 16 MiB took a quarter longer, at least, four at a time.
_RECORD_BYTES = 16 << 10

# What one call of `send` takes at most, because its caller holds a lock.
_SEND_BYTES = 256 << 10

_RECEIVE_BYTES = 64 << 10

# A fatal alert, protocol_version: RFC 8446, 5.1 and 6.
_ALERT = b'\x15\x03\x01\x00\x02\x02\x46'

# In TLS 1.3 a client has done its part before the server looks at its certificate. A connection that breaks so soon, before
# the server has said anything, was refused, most likely.
_PROBATION_SECONDS = 10.0

# What the protocol itself may have to say (alerts, new keys) to a peer that does not read.
_MAX_UNSENT_BYTES = 256 << 10

_NO_SIGPIPE = getattr(socket, 'MSG_NOSIGNAL', 0)

Block = Union[bytes, bytearray, memoryview]


class TLSStream:
    """A TLS connection over `sock`, which is connected and non-blocking.

    `send` and `recv` are those of a non-blocking socket, and raise OSError in words that a person understands. Any thread
    may send, the reactor's alone receives.
    """

    __slots__ = (
        '_cut', '_deaf', '_ended', '_failure', '_header', '_heard', '_in_use', '_incoming', '_lock', '_outgoing',
        '_peer', '_proven', '_said_goodbye', '_sock', '_taken', '_tls', '_to_come', '_unsent', '_waits_for_peer',
        'bytes_out', 'certificate',
    )

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_name: Optional[str] = None) -> None:
        """`server_name` is None at a server's end. Raises ValueError or ssl.SSLError for one that cannot be."""
        self._sock = sock
        self._peer = 'the client' if server_name is None else 'the server'
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_name is None, server_name)

        # Guards all below and the TLS object itself, which is not for two threads, and each write to the socket. Held while
        # some records are encrypted or decrypted and for non-blocking calls; innermost. Re-entrant, because __del__ and
        # signal handlers may interrupt its holder: they find _in_use.
        self._lock = threading.RLock()
        self._in_use = False
        self._unsent: Block = b''  # encrypted, and not taken by the socket yet
        self._taken = 0  # plain bytes that are encrypted in _unsent, and that send() has not told of
        self._waits_for_peer = False  # nothing can be encrypted before something is received: a renegotiation
        self._said_goodbye = False
        self.bytes_out = 0  # encrypted bytes that the socket took

        # The reactor thread's own. Of the record that is being received: the start of its header, or how much is to come.
        self._header = b''
        self._to_come = 0
        self._deaf = False  # nothing can be decrypted any more, and nobody is there to read it
        self._heard = False  # the peer, since the handshake
        #: The peer's, as `ssl.SSLSocket.getpeercert` gives it; None without a verified one.
        self.certificate: Optional[Dict[str, Any]] = None
        self._proven = 0.0  # when a connection on which nothing was heard counts as one that stood
        self._cut = False  # the connection has ended
        self._ended = False
        self._failure: Optional[OSError] = None

    # Reactor thread

    def handshake(self) -> bool:
        """Go on with the handshake as far as possible; True when it is done. Raises OSError."""
        with self._lock:
            try:
                self._receive(_RECEIVE_BYTES)
                self._tls.do_handshake()
                version = self._tls.version()
                if version in BROKEN_VERSIONS:  # by leave of the application's own context
                    raise OSError(errno.EPROTO, f'{self._peer} speaks {version}, which is broken; TLS 1.2 is needed')
                self.certificate = self._tls.getpeercert() or None
            except ssl.SSLWantReadError:
                self._write()
                return False
            except ssl.SSLError as error:
                if error.reason in NOT_TLS:
                    self._unsent = _ALERT  # OpenSSL says nothing to who does not speak TLS, but ours understand this
                self._try_to_write()  # the alert, so that the other end learns why
                raise explained(error, self._peer) from error
            except ConnectionError as error:
                raise retold(error, f'{error.strerror} during the TLS handshake; does {self._peer} speak TLS?') from None
            except ValueError as error:  # getpeercert(): a name in it is not UTF-8
                raise OSError(errno.EPROTO, f'the certificate of {self._peer} cannot be read: {error}') from error
            self._write()
            self._proven = time.monotonic() + _PROBATION_SECONDS
            return True

    @property
    def is_on_probation(self) -> bool:
        """Whether it is a client's, new, and the server has said nothing: it may still refuse our certificate."""
        return self._peer == 'the server' and not self._heard and time.monotonic() < self._proven

    @property
    def is_inside_record(self) -> bool:
        """Whether a record has begun and not ended."""
        return bool(self._header or self._to_come)

    @property
    def wants_to_write(self) -> bool:
        """Whether something waits until the socket takes more."""
        return bool(self._unsent)

    @property
    def can_encrypt(self) -> bool:
        """Whether `send` takes more when the socket does, and not only when something was received."""
        return not self._waits_for_peer

    @property
    def has_more(self) -> bool:
        """Whether `recv` has something to tell without the socket: the end."""
        return self._ended or self._failure is not None

    def recv(self, size: int) -> bytes:
        """Return what can be decrypted, having read up to `size` bytes of the socket; empty: the end.

        That is the peer's close_notify or, because node-ipc sends none, the end of the connection between two records.
        Raises BlockingIOError if there is nothing yet, and OSError.
        """
        with self._lock:
            if self._deaf:
                return self._sock.recv(size)
            if not self.has_more:
                self._in_use = True
                try:
                    self._receive(size)
                    parts = self._decrypt()
                    self._waits_for_peer = False
                    self._try_to_write()  # what the protocol answers
                finally:
                    self._in_use = False
                if parts:
                    self._heard = True
                    return parts[0] if len(parts) == 1 else b''.join(parts)
            if self._failure is not None:
                if self._said_goodbye:
                    self._failure, self._deaf = None, True
                    raise BlockingIOError
                raise self._failure
            if self._ended:
                return b''
            raise BlockingIOError

    def flush(self) -> bool:
        """Write what is encrypted; False if some of it has to wait. Raises OSError."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._in_use = True
            return self._write()
        finally:
            self._in_use = False
            self._lock.release()

    def say_goodbye(self) -> bool:
        """Tell the peer that nothing follows; False if that has to wait until the socket takes it. Raises OSError."""
        with self._lock:
            if not self._said_goodbye:
                self._said_goodbye = self._in_use = True
                try:
                    self._tls.unwrap()
                except ssl.SSLError:
                    pass  # it has written the close_notify and wants the peer's, or there is nobody to tell
            return self.flush()

    # Any thread

    def send(self, data: Block, flags: int = 0) -> int:
        """Encrypt and write some of `data`; return how many bytes of it the socket has taken.

        Raises BlockingIOError if it has taken none, and then the next call has to begin with the same bytes; and OSError.
        """
        # The reactor may be reading, and what interrupts it there may want the connection's lock, which the caller has.
        if not self._lock.acquire(blocking=False):
            raise BlockingIOError
        try:
            if self._in_use:
                raise BlockingIOError  # we have interrupted it
            self._in_use = True
            try:
                sent = self._encrypt(data) if self._write() else 0
            except ssl.SSLError as error:
                raise explained(error, self._peer) from error
            finally:
                self._in_use = False
        finally:
            self._lock.release()
        if not sent:
            raise BlockingIOError
        return sent

    # With the lock held

    def _encrypt(self, data: Block) -> int:
        sent, self._taken = self._taken, 0
        size = min(len(data), _SEND_BYTES)
        try:
            while sent < size:
                self._taken = self._tls.write(data[sent:sent + _RECORD_BYTES])
                if not self._write():
                    break  # it is taken until all of it is written, and this is called again
                sent += self._taken
                self._taken = 0
        except ssl.SSLWantReadError:
            self._waits_for_peer = True
        except OSError:
            if not sent:
                raise
            # What has left must not be sent again, by another connection; the next call fails as this one.
        return sent

    def _receive(self, size: int) -> None:
        """Have what the socket has for us decrypted next."""
        try:
            chunk = self._sock.recv(size)
        except (BlockingIOError, InterruptedError):
            return
        if chunk:
            self._incoming.write(chunk)
            self._follow(chunk)
        else:
            self._incoming.write_eof()
            self._cut = True

    def _follow(self, chunk: bytes) -> None:
        """Keep track of where records end: OpenSSL does not tell an end inside of one from an end between two.

        A record is 5 bytes, of which the last two are the length of the rest, and the rest: RFC 8446, 5.1.
        """
        if self._header:
            chunk = self._header + chunk
            self._header = b''
        position, size = self._to_come, len(chunk)
        while position + 5 <= size:
            position += 5 + (chunk[position + 3] << 8 | chunk[position + 4])
        if position < size:
            self._header, self._to_come = chunk[position:], 0
        else:
            self._to_come = position - size

    def _decrypt(self) -> List[bytes]:
        parts: List[bytes] = []
        tls, incoming = self._tls, self._incoming
        try:
            while True:
                part = tls.read(_RECORD_BYTES)
                if not part:
                    break
                parts.append(part)
                if not (incoming.pending or self._cut or tls.pending()):
                    return parts  # to be told so by an error costs 1 µs
            ended = True
        except ssl.SSLWantReadError:
            ended = False
        except ssl.SSLError as error:
            ended = is_end(error)
            if not ended:
                self._failure = explained(error, self._peer)
        if ended:
            self._failure = self._explain_end(bool(parts))
            self._ended = self._failure is None
        return parts

    def _explain_end(self, heard: bool) -> Optional[OSError]:
        """Return what is wrong with the end, if anything. A close_notify is noticed before the end of the connection."""
        if self.is_inside_record:
            return OSError(errno.ECONNRESET, f'{self._peer} ended it in the middle of a TLS record')
        if self._cut and self.is_on_probation and not heard:  # Node does so, when TLS 1.3 is done on our side already
            why = 'the server ended it before it said anything; if it asks for certificates, does it trust ours?'
            return OSError(errno.ECONNRESET, why)
        return None

    def _write(self) -> bool:
        unsent: Block = self._unsent
        if self._outgoing.pending:
            new = self._outgoing.read()
            unsent = b''.join((unsent, new)) if unsent else new
            self._unsent = unsent
        while unsent:
            try:
                count = self._sock.send(unsent, _NO_SIGPIPE)
            except (BlockingIOError, InterruptedError):
                if len(unsent) > _MAX_UNSENT_BYTES:
                    raise OSError(errno.ENOBUFS, f'{self._peer} asks for ever more and reads nothing') from None
                return False
            self.bytes_out += count
            unsent = self._unsent = memoryview(unsent)[count:] if count < len(unsent) else b''
        return True

    def _try_to_write(self) -> None:
        try:
            self._write()
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise
            # Else whoever sends or receives next will hear of it.
