"""The client of node-ipc's first example, over a Unix socket; world_server.py says how to run it."""

from nodeipc import ipc
from nodeipc.colors import debug, notice, rainbow

ipc.config.id = 'hello'
ipc.config.retry = 1500


def ready():
    @ipc.of.world.on('connect')
    def connect():
        ipc.log(rainbow('## connected to world ##'), ipc.config.retry)
        ipc.of.world.emit(
            'message',
            'hello',
        )

    @ipc.of.world.on('disconnect')
    def disconnect():
        ipc.log(notice('disconnected from world'))

    @ipc.of.world.on('message')
    def message(data):
        ipc.log(debug('got a message from world : '), data)


ipc.connect_to('world', ready)

ipc.wait()
