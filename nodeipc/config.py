"""The settings of an instance: one table of fields, each with its default, its check and its reason.

`Config` is read once, when a server or a client is made; changing it later changes what is made later. A wrong value
raises at the assignment, because that is where the mistake is.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any, Callable, Collection, Dict, Iterator, Mapping, NamedTuple, Optional, Type, Union

from .errors import ConfigError
from .log import to_stdout
from .textcode import text_encoder
from .wire import Parser

if TYPE_CHECKING:  # imported by those who use it: it is slow and large
    from ssl import SSLContext

Check = Callable[[Any], Optional[str]]


class _Field(NamedTuple):
    default: Callable[[], Any]
    check: Check  # returns what the value must be, or None if it is that
    reason: str


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else 'a non-empty str'


def _delimiter(value: Any) -> str | None:
    try:
        return _text(value) or (value.encode() and None)
    except UnicodeEncodeError:
        return 'text that UTF-8 can carry'


def _encoding(value: Any) -> str | None:
    known = isinstance(value, str) and text_encoder(value)
    return None if known else "a text encoding of Python's or Node's: 'utf8', 'latin1', 'utf16le', 'hex', 'base64' ..."


def _parser(value: Any) -> str | None:
    named = value in ('raw', 'fast', 'guarded', 'assured') if isinstance(value, str) else _is_parser(value)
    return None if named else (
        "'raw', 'fast', 'guarded', 'assured', or an object or class with encode(type, data) and decoder()"
    )


def _is_parser(value: Any) -> bool:
    return callable(getattr(value, 'encode', None)) and callable(getattr(value, 'decoder', None))


def _directory(value: Any) -> str | None:
    return None if isinstance(value, str) and value.endswith('/') else "a str that ends in '/'"


def _any_text(value: Any) -> str | None:
    return None if isinstance(value, str) else 'a str'


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else 'True or False'


def _flag_or_none(value: Any) -> str | None:
    return None if value is None or isinstance(value, bool) else 'True, False or None'


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and value == value and abs(value) != float('inf')


def _port(value: Any) -> str | None:
    return None if _is_int(value) and 0 <= value <= 65535 else 'an int from 0 to 65535'


def _count(value: Any) -> str | None:
    return None if _is_int(value) and value >= 0 else 'an int, 0 or more'


def _count_or_none(value: Any) -> str | None:
    return None if value is None or not _count(value) else 'an int, 0 or more, or None for no limit'


def _size(value: Any) -> str | None:
    return None if _is_int(value) and value > 0 else 'a number of bytes, 1 or more'


def _length_or_none(value: Any) -> str | None:
    return None if value is None or not _size(value) else 'a number of characters, 1 or more, or None for no limit'


def _size_or_none(value: Any) -> str | None:
    return None if value is None or not _size(value) else 'a number of bytes, 1 or more, or None'


def _milliseconds(value: Any) -> str | None:
    return None if _is_number(value) and value >= 0 else 'a number of milliseconds, 0 or more'


def _positive_milliseconds(value: Any) -> str | None:
    return None if _is_number(value) and value > 0 else 'a number of milliseconds above 0'


def _milliseconds_or_none(value: Any) -> str | None:
    return None if value is None or not _milliseconds(value) else 'a number of milliseconds, 0 or more, or None'


def _names_or_none(value: Any) -> str | None:
    named = _is_collection(value) and value and all(isinstance(name, str) and name for name in value)
    return None if value is None or named else 'a collection of event names that is not empty, or None'


def _uid(value: Any) -> bool:
    return _is_int(value) and 0 <= value < 2 ** 32 - 1


def _uid_or_none(value: Any) -> str | None:
    return None if value is None or _uid(value) else "a user's number (os.getuid()), or None"


def _uids_or_none(value: Any) -> str | None:
    named = _is_collection(value) and all(map(_uid, value))
    return None if value is None or named else "a collection of users' numbers (os.getuid()), or None for everybody"


def _is_collection(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))


def _path(value: Any) -> str | None:
    is_path = isinstance(value, (str, os.PathLike)) and value and not (isinstance(value, str) and '-----BEGIN' in value)
    return None if is_path else 'the path of a PEM file, not empty and not its text'


def _paths(value: Any) -> str | None:
    return None if not _path(value) or _several(value, _path) else 'the path of a PEM file, not its text, or a list of paths'


def _pem(value: Any) -> str | None:
    return None if isinstance(value, (str, bytes)) and value else 'PEM text'


def _pems(value: Any) -> str | None:
    return None if not _pem(value) or _several(value, _pem) else 'PEM text or bytes, or a list of them, not empty'


def _secret(value: Any) -> str | None:
    return None if isinstance(value, (str, bytes)) else 'a str or bytes'


def _several(values: Any, check: Check) -> bool:
    return isinstance(values, (list, tuple)) and bool(values) and not any(map(check, values))


# What a mapping for `tls` may hold: names of node-ipc, or of Node's TLS, in snake_case.
_TLS_FIELDS: Dict[str, Check] = {
    'private': _path,
    'public': _path,
    'passphrase': _secret,
    'ca': _pems,
    'trusted_connections': _paths,
    'request_cert': _flag,
    'reject_unauthorized': _flag,
    'server_name': _text,
}
_TLS_HINTS = {
    'key': 'private is the path of the key',
    'cert': 'public is the path of the certificate',
    'trustedConnections': 'in Python it is trusted_connections',
    'rejectUnauthorized': 'in Python it is reject_unauthorized',
    'requestCert': 'in Python it is request_cert',
    'servername': 'in Python it is server_name',
}


def _tls(value: Any) -> str | None:
    """Say what is wrong with a value, without showing what it holds: secrets."""
    if value is None or _is_ssl_context(value):
        return None
    if not isinstance(value, Mapping):
        return f'an ssl.SSLContext, a mapping, or None, not of the type {value.__class__.__name__}'
    for name, given in value.items():
        check = _TLS_FIELDS.get(name)
        if check is None:
            hint = _TLS_HINTS.get(name) or f'there are {", ".join(_TLS_FIELDS)}; for anything else give an ssl.SSLContext'
            return f'a mapping of its settings: there is no {name!r}; {hint}'
        if check(given):
            return f'a mapping in which {name!r} is {check(given)} (it has the type {given.__class__.__name__})'
    return None


class _TLSSettings(Mapping[str, Any]):
    """A mapping for `tls` as it was checked, which shows no secret."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = {
            name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in settings.items()
        }

    def __getitem__(self, name: str) -> Any:
        return self._settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def __repr__(self) -> str:
        return repr({name: '...' if name == 'passphrase' else value for name, value in self._settings.items()})


def _is_ssl_context(value: Any) -> bool:
    ssl = sys.modules.get('ssl')  # whoever has a context has imported it
    return ssl is not None and isinstance(value, ssl.SSLContext)


def _function(value: Any) -> str | None:
    return None if callable(value) else 'a callable that takes one str'


class Interface:
    """Where outgoing TCP connections leave from; ``None`` everywhere leaves it to the system.

    `local_address` is an IP address of this machine, `local_port` a port, `family` 4 or 6.

    >>> Interface(local_address='127.0.0.1').local_address
    '127.0.0.1'
    """

    __slots__ = ('family', 'local_address', 'local_port')

    def __init__(
        self, local_address: str | None = None, local_port: int | None = None, family: int | None = None
    ) -> None:
        self.local_address = local_address
        self.local_port = local_port
        self.family = family

    def __setattr__(self, name: str, value: Any) -> None:
        if value is not None:
            if name == 'local_address' and not (isinstance(value, str) and value):
                raise ConfigError(f'interface.local_address must be an IP address or None, not {value!r}')
            if name == 'local_port' and _port(value):
                raise ConfigError(f'interface.local_port must be {_port(value)} or None, not {value!r}')
            if name == 'family' and value not in (4, 6):
                raise ConfigError(f'interface.family must be 4, 6 or None, not {value!r}')
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return (
            f'Interface(local_address={self.local_address!r}, local_port={self.local_port!r}, family={self.family!r})'
        )


def _interface(value: Any) -> str | None:
    return None if isinstance(value, Interface) else 'an Interface or a mapping of its fields'


def default_socket_root() -> str:
    """Return the directory node-ipc 14 puts its sockets in, so that both find each other unconfigured.

    That is ``$XDG_RUNTIME_DIR/node-ipc/``, else ``node-ipc-<uid>/`` in the temporary directory as Node names it: the
    first of ``TMPDIR``, ``TMP``, ``TEMP`` that is set, else ``/tmp`` (`tempfile.gettempdir` asks in another order).
    """
    runtime = os.environ.get('XDG_RUNTIME_DIR')
    if runtime:
        return os.path.join(os.path.normpath(runtime), 'node-ipc', '')
    temporary = os.environ.get('TMPDIR') or os.environ.get('TMP') or os.environ.get('TEMP') or '/tmp'
    user = os.getuid() if hasattr(os, 'getuid') else 'user'
    return os.path.join(os.path.normpath(temporary), f'node-ipc-{user}', '')


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


_FIELDS: Dict[str, _Field] = {
    'id': _Field(socket.gethostname, _text, "this service's name (the host name), the last part of its default socket path"),
    'appspace': _Field(_constant('app.'), _any_text, 'namespace of socket paths'),
    'socket_root': _Field(default_socket_root, _directory, 'directory of local sockets'),
    'secure_socket_root': _Field(_constant(True), _flag, 'make the root owner-only, verify it, refuse symlinks'),
    'network_host': _Field(_constant('127.0.0.1'), _text, 'TCP host when none is given'),
    'network_port': _Field(_constant(8000), _port, 'TCP port when none is given'),
    'encoding': _Field(_constant('utf8'), _encoding, "how raw mode turns text into bytes; Node's names too"),
    'raw_buffer': _Field(_constant(False), _flag, "bytes in data events, no framing; the same as parser='raw'"),
    'parser': _Field(
        _constant('fast'),
        _parser,
        "the wire format: 'fast' (JSON and the delimiter), 'guarded' and 'assured' (for peers that are not trusted), 'raw', "
        'or a Parser',
    ),
    'delimiter': _Field(_constant('\f'), _delimiter, 'ends a message; a form feed cannot stand raw in JSON'),
    'sync': _Field(_constant(False), _flag, 'one request at a time: the next emit leaves when the last was answered'),
    'retry': _Field(_constant(500), _milliseconds, 'ms between attempts to connect'),
    'max_retries': _Field(_constant(None), _count_or_none, 'attempts in a row after the first; None: for ever'),
    'stop_retrying': _Field(_constant(False), _flag, 'never try again'),
    'retry_max': _Field(_constant(None), _milliseconds_or_none, 'ms up to which the delay doubles, with jitter'),
    'emit_timeout': _Field(_constant(10000), _milliseconds_or_none, 'ms an emit may block; None: for ever'),
    'connect_timeout': _Field(_constant(10000), _positive_milliseconds, 'ms one attempt to connect may take'),
    'max_connections': _Field(_constant(100), _count, 'clients of one server; more are refused'),
    'max_message_size': _Field(
        _constant(None), _size_or_none, "bytes of one message; None: 64 MiB, in 'guarded' and 'assured' 1 MiB"
    ),
    'max_pending_bytes': _Field(_constant(8 << 20), _size, 'bytes that may wait to be written, per connection'),
    'stall_timeout': _Field(_constant(5000), _positive_milliseconds, 'ms a peer may take nothing while it is waited for'),
    'max_event_name_length': _Field(
        _constant(256), _length_or_none, "'guarded' and 'assured': characters of an event's name, as JavaScript counts"
    ),
    'message_timeout': _Field(
        _constant(30000),
        _milliseconds_or_none,
        "'guarded' and 'assured': ms from the first byte of a message to its last; 0 or None: for ever",
    ),
    'allow_reserved_events': _Field(
        _constant(False), _flag, "'guarded': peers may emit events with the names of local ones, such as 'connect'"
    ),
    'allowed_events': _Field(
        _constant(None), _names_or_none, "'assured': the only names that may be emitted or received"
    ),
    'identify_peer': _Field(_constant(False), _flag, "copy a payload's id to socket.id"),
    'tls': _Field(
        _constant(None),
        _tls,
        'what TCP is encrypted with: an ssl.SSLContext, or a mapping of private (path of the key), public (path of the '
        'certificate), passphrase (of the key), ca (PEM) and trusted_connections (paths) for whom to trust, request_cert (a '
        'server asks clients for theirs; True if it has a ca), reject_unauthorized (True), server_name (the name in the '
        "server's certificate, if it is not the host)",
    ),
    'allowed_uids': _Field(_constant(None), _uids_or_none, 'Unix: the users who may connect; None: whoever the mode lets'),
    'server_uid': _Field(_constant(None), _uid_or_none, 'Unix: the user whose server a client talks to; None: anybody'),
    'readable_all': _Field(_constant(False), _flag, 'every user may read the socket file'),
    'writable_all': _Field(_constant(False), _flag, 'every user may write to (connect to) the socket file'),
    'unlink': _Field(_constant(True), _flag, 'replace the socket file of a dead server'),
    'interface': _Field(Interface, _interface, 'where outgoing TCP connections leave from'),
    'workers': _Field(
        lambda: min(8, (os.cpu_count() or 1) + 4),
        _count,
        'handlers that run at a time, at most (min(8, cores + 4)); 0: all on the one that reads the sockets',
    ),
    'silent': _Field(_constant(False), _flag, 'ipc.log prints nothing'),
    'logger': _Field(_constant(to_stdout), _function, 'what ipc.log prints a line with (standard output)'),
    'log_in_color': _Field(_constant(None), _flag_or_none, 'colour in ipc.log; None: on a terminal only'),
    'log_depth': _Field(_constant(5), _count_or_none, 'levels of nested values that ipc.log shows'),
    'log_payloads': _Field(_constant(False), _flag, 'ipc.log every event that is sent or received'),
}

def _described(name: str, field: _Field) -> str:
    default = '' if name in ('id', 'socket_root', 'interface', 'workers', 'logger') else f' ({field.default()!r})'
    return f'{name}{default}: {field.reason}'



class Config:
    __doc__ = """The settings of an `IPC` instance. Durations are milliseconds, as in node-ipc; sizes are bytes.

    Raises `ConfigError` for a value that a field cannot have, and AttributeError for a field that does not exist.

    >>> config = Config(id='world', retry=1500)
    >>> config.retry
    1500
    >>> config.rety = 5
    Traceback (most recent call last):
    AttributeError: there is no setting 'rety'; did you mean 'retry'?

    The fields:

    """ + '\n    '.join(_described(name, field) for name, field in _FIELDS.items())

    __slots__ = tuple(_FIELDS)

    id: str
    appspace: str
    socket_root: str
    secure_socket_root: bool
    network_host: str
    network_port: int
    encoding: str
    raw_buffer: bool
    parser: Union[str, Parser, Type[Parser]]
    delimiter: str
    sync: bool
    retry: float
    max_retries: Optional[int]
    stop_retrying: bool
    retry_max: Optional[float]
    emit_timeout: Optional[float]
    connect_timeout: float
    max_connections: int
    max_message_size: Optional[int]
    max_pending_bytes: int
    stall_timeout: float
    max_event_name_length: Optional[int]
    message_timeout: Optional[float]
    allow_reserved_events: bool
    allowed_events: Optional[Collection[str]]
    identify_peer: bool
    tls: Union[SSLContext, Mapping[str, Any], None]
    allowed_uids: Optional[Collection[int]]
    server_uid: Optional[int]
    readable_all: bool
    writable_all: bool
    unlink: bool
    interface: Interface
    workers: int
    silent: bool
    logger: Callable[[str], Any]
    log_in_color: Optional[bool]
    log_depth: Optional[int]
    log_payloads: bool

    def __init__(self, **settings: Any) -> None:
        for name, field in _FIELDS.items():
            super().__setattr__(name, field.default())
        self.update(settings)

    def update(self, settings: Mapping[str, Any]) -> None:
        """Assign several `settings`; raises as the assignments would.

        >>> config = Config()
        >>> config.update({'id': 'world', 'retry': 1500})
        >>> config.id, config.retry
        ('world', 1500)
        """
        for name, value in settings.items():
            setattr(self, name, value)

    def copy(self) -> Config:
        """Return an independent copy.

        >>> config = Config(id='world')
        >>> copy = config.copy()
        >>> copy.id = 'other'
        >>> config.id
        'world'
        """
        twin = Config.__new__(Config)
        for name in _FIELDS:
            object.__setattr__(twin, name, getattr(self, name))
        twin.interface = Interface(*(getattr(self.interface, name) for name in ('local_address', 'local_port', 'family')))
        return twin

    def _assign(self, name: str, value: Any) -> None:
        field = _FIELDS.get(name)
        if field is None:
            raise AttributeError(_unknown(name))
        if name == 'interface' and isinstance(value, Mapping):
            try:
                value = Interface(**value)
            except TypeError as error:
                raise ConfigError(f'interface takes local_address, local_port and family ({error})') from None
        wanted = field.check(value)
        if wanted:
            shown = '' if name == 'tls' else f', not {value!r}'
            raise ConfigError(f'{name} must be {wanted}{shown} ({field.reason})')
        if name == 'tls' and isinstance(value, Mapping):
            value = _TLSSettings(value)
        elif name in ('allowed_events', 'allowed_uids') and value is not None:
            value = tuple(value)  # the application's own may change
        super().__setattr__(name, value)

    def _missing(self, name: str) -> Any:
        raise AttributeError(name if name.startswith('__') else _unknown(name))

    if not TYPE_CHECKING:  # for a type checker there would be no unknown field any more
        __setattr__ = _assign
        __getattr__ = _missing

    def __repr__(self) -> str:
        return 'Config({})'.format(', '.join(f'{name}={getattr(self, name)!r}' for name in _FIELDS))


def _unknown(name: str) -> str:
    import difflib  # for the mistake only

    snake_case = ''.join('_' + letter.lower() if letter.isupper() else letter for letter in name)
    near = difflib.get_close_matches(snake_case, _FIELDS, n=1, cutoff=0)
    return f'there is no setting {name!r}; did you mean {near[0]!r}?'


def seconds(milliseconds: float | None) -> float | None:
    """Convert a setting to what the standard library takes."""
    return None if milliseconds is None else milliseconds / 1000
