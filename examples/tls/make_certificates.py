"""Make keys and certificates for world and hello with the openssl command, in the directory that is given.

A CA of our own signs both. Give each machine its own key and certificate and ca.pem, and keep ca.key away from both.
"""

import subprocess
import sys
from pathlib import Path

if len(sys.argv) != 2:
    sys.exit('usage: make_certificates.py DIRECTORY')
directory = Path(sys.argv[1])
directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def openssl(*arguments):
    done = subprocess.run(['openssl', *arguments], cwd=str(directory), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(done.stdout.decode(errors='replace'))


if not (directory / 'ca.pem').exists():
    openssl(
        'req', '-x509', '-newkey', 'rsa:3072', '-nodes', '-days', '3650', '-subj', '/CN=our-ca',
        '-addext', 'keyUsage=critical,keyCertSign,cRLSign', '-keyout', 'ca.key', '-out', 'ca.pem',
    )
for name in 'world', 'hello':
    openssl('req', '-newkey', 'rsa:3072', '-nodes', '-subj', f'/CN={name}', '-keyout', f'{name}.key', '-out', f'{name}.csr')
    names = 'DNS:localhost,IP:127.0.0.1,IP:::1'  # the hosts it is for
    (directory / f'{name}.ext').write_text(f'authorityKeyIdentifier=keyid\nsubjectAltName={names}\n')
    openssl(
        'x509', '-req', '-in', f'{name}.csr', '-days', '365', '-extfile', f'{name}.ext',
        '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-out', f'{name}.pem',
    )
