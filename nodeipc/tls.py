"""What ``config.tls`` means: contexts for servers and clients, checked where they are made, and errors in plain words.

Imported when an endpoint with TLS is made, and not before, because `ssl` is slow to import. Nothing here knows a
connection; files are read by the threads that make endpoints.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
from typing import Any, List, Mapping, Optional, Union

from .errors import ConfigError, retold

TLSSettings = Union[ssl.SSLContext, Mapping[str, Any]]

# What OpenSSL looks for in a directory of certificates: the hash of a name, and a number. openssl-rehash(1).
_HASHED = re.compile(r'[0-9a-f]{8}\.[0-9]+')

ASSURED_TLS = 'ERR_IPC_ASSURED_TLS'

# Versions that an application's own context may let through and that are broken, RFC 8996.
BROKEN_VERSIONS = frozenset(['SSLv2', 'SSLv3', 'TLSv1', 'TLSv1.1'])


def server_context(settings: TLSSettings, who: str, assured: bool) -> ssl.SSLContext:
    """Return what a server accepts connections with. `who` is the server, for messages.

    Raises ConfigError: without a key and a certificate, for files that cannot be read or do not fit; with `assured`, if
    clients need not show a certificate.
    """
    context = _given(settings, 'PROTOCOL_TLS_CLIENT', who, 'ssl.PROTOCOL_TLS_SERVER')
    if context is None:
        context = _make_server_context(settings, who)
    elif context.sni_callback is None and not _has_certificate(context):
        raise ConfigError(f'{who}: config.tls has no certificate; call its load_cert_chain()')
    if assured and context.verify_mode != ssl.CERT_REQUIRED:
        raise ConfigError(
            f"{who}: parser='assured' needs clients with certificates on the network: set tls ca or trusted_connections to "
            f'whom to trust, and leave request_cert and reject_unauthorized on [{ASSURED_TLS}]'
        )
    return context


def client_context(settings: TLSSettings, who: str, assured: bool) -> ssl.SSLContext:
    """Return what a client connects with. `who` is the client, for messages.

    Raises ConfigError for files that cannot be read or do not fit; with `assured`, if the client has no certificate or
    does not verify the server's.
    """
    context = _given(settings, 'PROTOCOL_TLS_SERVER', who, 'ssl.create_default_context()')
    if context is None:
        context = _make_client_context(settings, who, assured)
    if assured and not (context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname):
        raise ConfigError(
            f"{who}: parser='assured' verifies the server on the network: leave tls reject_unauthorized on [{ASSURED_TLS}]"
        )
    return context


def server_name(settings: TLSSettings, host: str) -> str:
    """Return the name that a server's certificate has to be for."""
    return host if isinstance(settings, ssl.SSLContext) else settings.get('server_name', host)


def check_server_name(context: ssl.SSLContext, name: str, who: str) -> None:
    """Raise ConfigError if no certificate can be for a name."""
    try:
        context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except (ValueError, TypeError, ssl.SSLError) as error:  # ValueError: IDNA has its own kinds
        why = f'no TLS server can have the name {name!r} ({error}); set another tls server_name'
        raise ConfigError(f'{who}: {why}') from error


def _given(settings: TLSSettings, wrong: str, who: str, right: str) -> Optional[ssl.SSLContext]:
    if not isinstance(settings, ssl.SSLContext):
        return None
    if settings.protocol == getattr(ssl, wrong):
        raise ConfigError(f'{who}: config.tls is a context of the wrong side, ssl.{wrong}; make one with {right}')
    return settings


def _make_server_context(settings: TLSSettings, who: str) -> ssl.SSLContext:
    assert not isinstance(settings, ssl.SSLContext)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    if not ('private' in settings and 'public' in settings):
        raise ConfigError(
            f'{who}: a TLS server needs a key and a certificate; set tls private and public to the paths of their PEM files'
        )
    _load_own(context, settings, who)
    trusts = _load_trusted(context, settings, who)
    if settings.get('request_cert', trusts):
        if not trusts:
            raise ConfigError(f'{who}: tls request_cert needs ca or trusted_connections: whose certificates to trust')
        required = settings.get('reject_unauthorized', True)
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def _make_client_context(settings: TLSSettings, who: str, assured: bool) -> ssl.SSLContext:
    assert not isinstance(settings, ssl.SSLContext)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies, and checks the name
    _harden(context)
    if not settings.get('reject_unauthorized', True):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    own = 'private' in settings and 'public' in settings
    if own:
        _load_own(context, settings, who)
    elif 'private' in settings or 'public' in settings:
        raise ConfigError(f'{who}: tls private and public, the key and its certificate, go together; set both')
    trusts = _load_trusted(context, settings, who)
    if assured and not (own and trusts):
        raise ConfigError(
            f"{who}: parser='assured' needs a key and a certificate on the network (tls private and public) and whom to "
            f'trust (ca or trusted_connections) [{ASSURED_TLS}]'
        )
    if not trusts:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could have a server of TLS 1.2 compute one handshake after the other on one connection.
    context.options |= getattr(ssl, 'OP_NO_RENEGOTIATION', 0)


def _load_own(context: ssl.SSLContext, settings: Mapping[str, Any], who: str) -> None:
    public, private = (_readable(settings[name], f'tls {name}', who) for name in ('public', 'private'))
    passphrase = settings.get('passphrase')
    asked = False

    def password() -> Union[str, bytes]:
        nonlocal asked
        asked = True
        if passphrase is None:  # OpenSSL would ask on the terminal
            raise ConfigError(f'{who}: the key in {private} is encrypted; set tls passphrase')
        return passphrase  # type: ignore[no-any-return]

    try:
        context.load_cert_chain(public, private, password)
    except ssl.SSLError as error:
        reason = error.reason or ''
        if 'MISMATCH' in reason:
            why = f'the key in {private} does not belong to the certificate in {public}'
        elif asked:
            why = f'the key in {private} cannot be decrypted with the tls passphrase'
        else:
            why = f'{private} and {public} are not PEM files of a key and its certificate ({_plain(error)})'
        raise ConfigError(f'{who}: {why}') from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f'{who}: the tls passphrase cannot be used: {error}') from error


def _load_trusted(context: ssl.SSLContext, settings: Mapping[str, Any], who: str) -> bool:
    """Trust whom the settings say; False if they say nothing."""
    texts, paths = _listed(settings.get('ca')), _listed(settings.get('trusted_connections'))
    for text in texts:
        if isinstance(text, str):
            text = text.encode('ascii', 'ignore')
        text = text.decode('ascii', 'ignore')  # comments between the certificates may be in any letters
        _trust(context, who, 'tls ca holds no PEM certificate; paths go into trusted_connections', cadata=text)
    for path in paths:
        path = _readable(path, 'tls trusted_connections', who, or_directory=True)
        if not os.path.isdir(path):
            _trust(context, who, f'tls trusted_connections: {path} holds no PEM certificate', cafile=path)
        elif any(_HASHED.fullmatch(name) for name in os.listdir(path)):
            _trust(context, who, f'tls trusted_connections: {path} holds no PEM certificate', capath=path)
        else:
            why = 'holds no certificate under the name that OpenSSL looks for; run: openssl rehash'
            raise ConfigError(f'{who}: tls trusted_connections: the directory {path} {why} {path}')
    return bool(texts or paths)


def _trust(context: ssl.SSLContext, who: str, complaint: str, **where: str) -> None:
    try:
        context.load_verify_locations(**where)
    except (ssl.SSLError, ValueError) as error:  # ValueError: nothing is left
        why = _plain(error) if isinstance(error, ssl.SSLError) else error
        raise ConfigError(f'{who}: {complaint} ({why})') from error


def _readable(path: Union[str, os.PathLike[str]], what: str, who: str, or_directory: bool = False) -> str:
    """Return a path as text, if it can be read: OpenSSL does not say which of two cannot."""
    path = os.fsdecode(path)
    try:
        if not (or_directory and os.path.isdir(path)):
            open(path, 'rb').close()
    except (OSError, ValueError) as error:
        why = getattr(error, 'strerror', None) or error
        raise ConfigError(f'{who}: {what}: cannot read {path!r}: {why}') from error
    return path


def _listed(value: Any) -> List[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _has_certificate(context: ssl.SSLContext) -> bool:
    """Whether a server can answer with it; nothing but a first step of a handshake tells."""
    hello = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    hello.check_hostname = False
    with contextlib.suppress(ssl.SSLError):  # as much as there is: the context may allow only what is not usual
        hello.set_ciphers('ALL:@SECLEVEL=0')
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        try:
            hello.wrap_bio(to_client, to_server).do_handshake()
        except ssl.SSLWantReadError:
            pass
        context.wrap_bio(to_server, to_client, server_side=True).do_handshake()
    except ssl.SSLWantReadError:
        return True
    except ssl.SSLError as error:
        return error.reason not in ('NO_SHARED_CIPHER', 'NO_SUITABLE_SIGNATURE_ALGORITHM')
    return True


# What OpenSSL says, in part, and what it means. X509_V_ERR_* of x509_vfy.h, and reasons of sslerr.h.

_CERTIFICATE = {
    9: 'is not valid yet; is the clock of this machine right?',
    10: 'has expired; renew it',
    18: 'is self-signed and not trusted; if it is the right one, put it into tls trusted_connections',
    19: 'is signed by a CA that is not trusted; put that into tls trusted_connections',
    20: 'is not signed by anybody who is trusted; put its CA into tls trusted_connections',
    21: 'is not signed by anybody who is trusted; put its CA into tls trusted_connections',
    23: 'is revoked',
    26: 'is not meant for this purpose (its extended key usage)',
    62: 'is for another name; connect by the name that it has, or set tls server_name to it',
    64: 'is for another address; connect by the name or address that it has, or set tls server_name to it',
}

#: Reasons that mean that the peer does not speak TLS.
NOT_TLS = ('WRONG_VERSION_NUMBER', 'HTTP_REQUEST', 'HTTPS_PROXY_REQUEST', 'RECORD_LAYER_FAILURE', 'UNKNOWN_PROTOCOL')

_REASONS = (
    (
        NOT_TLS,
        'the other end does not speak TLS; set config.tls on both sides, or on neither',
    ),
    (
        ('UNSUPPORTED_PROTOCOL', 'PROTOCOL_VERSION', 'VERSION_TOO_LOW', 'VERSION_TOO_HIGH'),
        'the two ends have no version of TLS in common; 1.2 or newer is needed',
    ),
    (
        ('PEER_DID_NOT_RETURN_A_CERTIFICATE',),
        'the client has shown no certificate; set tls private and public there',
    ),
    (
        ('CERTIFICATE_REQUIRED',),
        'the server wants a certificate of this client; set tls private and public',
    ),
    (
        ('UNKNOWN_CA', 'BAD_CERTIFICATE', 'CERTIFICATE_EXPIRED', 'CERTIFICATE_UNKNOWN', 'CERTIFICATE_REVOKED',
         'UNSUPPORTED_CERTIFICATE', 'ACCESS_DENIED'),
        'the other end refuses our certificate; is it signed by a CA that is trusted there, valid, and for the right name?',
    ),
    (
        ('NO_SHARED_CIPHER',),
        'the two ends have no way to encrypt in common; has the server a certificate?',
    ),
    (
        ('HANDSHAKE_FAILURE',),
        'the other end broke the handshake off: they have no way to encrypt in common, the server has no certificate, or it '
        'wants one of the client (tls private and public)',
    ),
)


def explained(error: ssl.SSLError, peer: str) -> ssl.SSLError:
    """Return the error again, saying what went wrong and what to do. `peer` is the other end: ``'the server'``."""
    told = retold(error, _meaning(error, peer))
    told.__cause__ = error
    return told


def is_end(error: ssl.SSLError) -> bool:
    """Whether all that an error says is that the peer is gone. Which it is depends on the versions of OpenSSL and Python."""
    return isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) or 'UNEXPECTED_EOF' in (error.reason or '')


def _meaning(error: ssl.SSLError, peer: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        what = _CERTIFICATE.get(error.verify_code, 'was not accepted')
        return f'the certificate of {peer} {what} ({error.verify_message})'
    reason = error.reason or ''
    if is_end(error):
        certificate = 'the certificate of this server' if peer == 'the client' else 'our certificate, if it wants one'
        return f'{peer} closed the connection during the handshake; does it speak TLS, and trust {certificate}?'
    for parts, meaning in _REASONS:
        if any(part in reason for part in parts):
            return f'{meaning} ({_plain(error)})'
    return f'TLS failed: {_plain(error)}'


def _plain(error: ssl.SSLError) -> str:
    """Return OpenSSL's words without its source lines."""
    return (error.reason or str(error).split(' (_ssl.c')[0]).lower().replace('_', ' ')
