"""The exceptions of the public API.

Every other module raises these; this one imports none of them. A message names the endpoint concerned and says what to do.
"""

import errno
from typing import Any, TypeVar

E = TypeVar('E', bound=OSError)


class IPCError(Exception):
    """Base of every exception this library defines.

    >>> issubclass(NotConnectedError, IPCError)
    True
    """


class ConfigError(IPCError, ValueError):
    """A setting has a value it cannot have; raised at the assignment.

    >>> from nodeipc import Config
    >>> Config(retry='500')
    Traceback (most recent call last):
    nodeipc.errors.ConfigError: retry must be a number of milliseconds, 0 or more, not '500' (ms between attempts to connect)
    """


class NotConnectedError(IPCError, ConnectionError):
    """There is no connection, and waiting will not bring one.

    Also reported as an ``error`` event when a connection is lost before everything that ``emit`` had queued on it
    was written.
    """


class EmitTimeout(IPCError, TimeoutError):
    """``emit`` or ``flush`` ran out of time. Nothing of the message was sent, and nothing of it will be."""


class RequestTimeout(IPCError, TimeoutError):
    """``request``, ``call``, ``wait_for`` or ``events`` ran out of time. What was asked was sent, and may have been done."""


class RemoteError(IPCError):
    """A call was answered with an error; raised in a method, it is the answer.

    `code` and `message` are JSON-RPC 2.0's, and `data` is what the other end has to say besides, or None.

    >>> error = RemoteError(-32601, 'Method not found')
    >>> error.code, error.message, error.data
    (-32601, 'Method not found', None)
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(code, message, data)
        self.code = code
        self.message = message
        self.data = data

    def __str__(self) -> str:
        return f'{self.message} [{self.code}]'


class ProtocolError(IPCError):
    """A peer broke the wire format or a limit, or a message of ours would.

    `code` is node-ipc 14's name for the violation, such as ``'ERR_IPC_INVALID_JSON'``.

    >>> ProtocolError('ERR_IPC_INVALID_JSON', 'not JSON').code
    'ERR_IPC_INVALID_JSON'
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __str__(self) -> str:
        return f'{self.args[0]} [{self.code}]'

    def __reduce__(self) -> 'tuple[type[ProtocolError], tuple[str, str]]':
        return type(self), (self.code, self.args[0])


def advice(error: OSError, otherwise: str) -> str:
    """What to do about an error that has to do with descriptors; of another, `otherwise`."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return 'close some descriptors, or raise the limit'
    return otherwise


def retold(error: E, message: str) -> E:
    """Return an error of the same class and with the same attributes, that says `message`."""
    told = type(error)(error.errno, message)
    for name in ('library', 'reason', 'verify_code', 'verify_message'):  # of ssl's errors
        if hasattr(error, name):
            setattr(told, name, getattr(error, name))
    told.__cause__ = error.__cause__
    return told
