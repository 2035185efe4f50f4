"""The client of the sync example: each request leaves when the last was answered; world_server.py says how to run it."""

from nodeipc import ipc
from nodeipc.colors import debug, notice, rainbow

ipc.config.id = 'hello'
ipc.config.retry = 1500
ipc.config.sync = True


def ready():
    @ipc.of.world.on('connect')
    def connect():
        ipc.log(rainbow('## connected to world ##'), ipc.config.retry)
        for number in range(3):
            ipc.of.world.emit(
                'message',
                f'hello {number}',
            )

    @ipc.of.world.on('disconnect')
    def disconnect():
        ipc.log(notice('disconnected from world'))

    @ipc.of.world.on('message')
    def message(data):
        ipc.log(debug('got a message from world : '), data)


ipc.connect_to('world', ready)

ipc.wait()
