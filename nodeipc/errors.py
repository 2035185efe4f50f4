"""The exceptions of the public API.

Every other module raises these; this one imports none of them. A message names the endpoint concerned and says what to do.
"""

from typing import TypeVar

E = TypeVar('E', bound=OSError)


class IPCError(Exception):
    """Base of every exception this library defines.

    >>> issubclass(NotConnectedError, IPCError)
    True
    """


class ConfigError(IPCError, ValueError):
    """A setting has a value it cannot have; raised at the assignment."""


class NotConnectedError(IPCError, ConnectionError):
    """There is no connection, and waiting will not bring one.

    Also reported as an ``error`` event when a connection is lost before everything that ``emit`` had queued on it
    was written.
    """


class EmitTimeout(IPCError, TimeoutError):
    """``emit`` or ``flush`` ran out of time. Nothing of the message was sent, and nothing of it will be."""


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


def retold(error: E, message: str) -> E:
    """Return an error of the same class and with the same attributes, that says `message`."""
    told = type(error)(error.errno, message)
    for name in ('library', 'reason', 'verify_code', 'verify_message'):  # of ssl's errors
        if hasattr(error, name):
            setattr(told, name, getattr(error, name))
    told.__cause__ = error.__cause__
    return told
