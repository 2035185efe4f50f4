"""A server for a hostile network: mutual TLS, and only the events that it knows.

From a checkout, each in a terminal of its own; Ctrl-C ends them:

    PYTHONPATH=. python3 examples/tls/make_certificates.py CERTIFICATES
    PYTHONPATH=. python3 examples/tls/world_server.py CERTIFICATES [PORT]
    PYTHONPATH=. python3 examples/tls/hello_client.py CERTIFICATES [PORT]
"""

import os
import sys

from nodeipc import ipc
from nodeipc.colors import debug, notice

certificates = sys.argv[1]
ipc.config.id = 'world'
ipc.config.parser = 'assured'
ipc.config.allowed_events = ['message']
ipc.config.tls = {
    'private': os.path.join(certificates, 'world.key'),
    'public': os.path.join(certificates, 'world.pem'),
    'trusted_connections': os.path.join(certificates, 'ca.pem'),
}
if sys.argv[2:]:
    ipc.config.network_port = int(sys.argv[2])  # 8000 if none is given


def name_of(certificate):
    """The common name of its subject; authorize by it, or by what your CA writes into certificates."""
    return dict(field[0] for field in certificate['subject'])['commonName']


def ready():
    @ipc.server.on('message')
    def message(data, socket):
        ipc.log(debug(f'got a message from {name_of(socket.certificate)} : '), data)
        socket.emit('message', data + ' world!')

    @ipc.server.on('error')
    def error(error):
        ipc.log(notice('refused : '), error)


ipc.serve_net(ready)

ipc.server.start()

ipc.wait()
