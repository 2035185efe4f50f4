"""The client of the raw example; world_server.py says how to run it."""

from nodeipc import ipc
from nodeipc.colors import debug, notice, rainbow

ipc.config.id = 'hello'
ipc.config.retry = 1500
ipc.config.raw_buffer = True
ipc.config.encoding = 'hex'


def ready():
    @ipc.of.world.on('connect')
    def connect():
        ipc.log(rainbow('## connected to world ##'), ipc.config.retry)
        ipc.of.world.emit([0x68, 0x65, 0x6C, 0x6C, 0x6F])  # a list of bytes: hello
        ipc.of.world.emit('20 77 6f 72 6c 64')  # a str in config.encoding: a space and world
        ipc.of.world.emit(b'!')

    @ipc.of.world.on('disconnect')
    def disconnect():
        ipc.log(notice('disconnected from world'))

    @ipc.of.world.on('data')
    def data(data):
        ipc.log(debug('got bytes from world : '), data, data.hex())


ipc.connect_to('world', ready)

ipc.wait()
