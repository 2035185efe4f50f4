"""The client of world_server.py, which says how to run it."""

import os
import sys

from nodeipc import ipc
from nodeipc.colors import debug, notice, rainbow

certificates = sys.argv[1]
ipc.config.id = 'hello'
ipc.config.retry = 1500
ipc.config.parser = 'assured'
ipc.config.allowed_events = ['message']
ipc.config.tls = {
    'private': os.path.join(certificates, 'hello.key'),
    'public': os.path.join(certificates, 'hello.pem'),
    'trusted_connections': os.path.join(certificates, 'ca.pem'),
}
if sys.argv[2:]:
    ipc.config.network_port = int(sys.argv[2])  # 8000 if none is given


def ready():
    @ipc.of.world.on('connect')
    def connect():
        ipc.log(rainbow('## connected to world ##'))
        ipc.of.world.emit('message', 'hello')

    @ipc.of.world.on('disconnect')
    def disconnect():
        ipc.log(notice('disconnected from world'))

    @ipc.of.world.on('message')
    def message(data):
        ipc.log(debug('got a message from world : '), data)


ipc.connect_to_net('world', ready)

ipc.wait()
