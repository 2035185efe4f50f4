"""Certificates for the tests, made by the ``openssl`` command when they run: no key is ever committed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict

# What Python's own contexts ask for, from 3.13 on (VERIFY_X509_STRICT).
_CA_KEY_USAGE = 'keyUsage=critical,keyCertSign,cRLSign'
_KEY_IDENTIFIERS = 'subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n'

# Whom the server's certificate is for.
_HERE = 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1'


def openssl() -> str:
    """Return the command; raise LookupError where there is none."""
    command = shutil.which('openssl')
    if command is None:
        raise LookupError('the openssl command is not here to make certificates with')
    return command


class Certificates:
    """A directory of keys and certificates, NAME.key and NAME.pem, made when they are first asked for.

    ========== ================================================
    ca         signs all but the strangers'
    server     for localhost, 127.0.0.1 and ::1
    client     of somebody called "client"
    expired    as server, until yesterday
    elsewhere  as server, for elsewhere.example
    encrypted  as server, with a passphrase for its key
    other-ca   a CA that nobody trusts
    stranger   as server and as client, signed by other-ca
    selfsigned as server, signed by itself
    rsa        as server, with an RSA key
    ========== ================================================
    """

    passphrase = 'open sesame'

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._openssl = openssl()

    def key(self, name: str) -> str:
        """The path of a key."""
        self._make(name)
        return str(self._directory / f'{name}.key')

    def pem(self, name: str) -> str:
        """The path of a certificate."""
        self._make(name)
        return str(self._directory / f'{name}.pem')

    def server(self, name: str = 'server', **more: Any) -> Dict[str, Any]:
        """``config.tls`` of a server that asks no client who it is."""
        return {'private': self.key(name), 'public': self.pem(name), **more}

    def client(self, **more: Any) -> Dict[str, Any]:
        """``config.tls`` of a client that trusts the CA."""
        return {'trusted_connections': self.pem('ca'), **more}

    def mutual(self, name: str, **more: Any) -> Dict[str, Any]:
        """``config.tls`` of an end that shows a certificate and wants one."""
        return {**self.server(name), 'trusted_connections': self.pem('ca'), **more}

    def _make(self, name: str) -> None:
        if (self._directory / f'{name}.pem').exists():
            return
        kind = ['rsa:2048'] if name == 'rsa' else ['ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1']
        key = ['-newkey', *kind, '-keyout', f'{name}.key']
        key += ['-passout', f'pass:{self.passphrase}'] if name == 'encrypted' else ['-nodes']
        if name in ('ca', 'other-ca', 'selfsigned'):
            extension = ['-addext', _HERE if name == 'selfsigned' else _CA_KEY_USAGE]
            self._run('req', '-x509', *key, '-days', '2', '-subj', f'/CN={name}', *extension, '-out', f'{name}.pem')
            return
        ca = 'other-ca' if name == 'stranger' else 'ca'
        self._make(ca)
        extension = 'subjectAltName=DNS:elsewhere.example' if name == 'elsewhere' else _HERE
        (self._directory / f'{name}.ext').write_text(_KEY_IDENTIFIERS + ('' if name == 'client' else f'{extension}\n'))
        self._run('req', *key, '-subj', f'/CN={name}', '-out', f'{name}.csr')
        signed = ['-CA', f'{ca}.pem', '-CAkey', f'{ca}.key', '-set_serial', str(abs(hash(name)))]
        signed += ['-days', '-1' if name == 'expired' else '2', '-extfile', f'{name}.ext']
        self._run('x509', '-req', '-in', f'{name}.csr', *signed, '-out', f'{name}.pem')

    def _run(self, *arguments: str) -> None:
        command = [self._openssl, *arguments]
        done = subprocess.run(
            command, cwd=str(self._directory), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
        assert done.returncode == 0, done.stdout.decode(errors='replace')
