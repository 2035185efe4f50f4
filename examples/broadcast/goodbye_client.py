"""The second client of the broadcast example; world_server.py says how to run it."""

from nodeipc import ipc
from nodeipc.colors import debug, notice, rainbow, variable

ipc.config.id = 'goodbye'
ipc.config.retry = 1500


def ready():
    @ipc.of.world.on('connect')
    def connect():
        ipc.log(rainbow('## connected to world ##'), ipc.config.retry)
        ipc.of.world.emit(
            'app.message',
            {
                'id': ipc.config.id,
                'message': 'goodbye',
            },
        )

    @ipc.of.world.on('disconnect')
    def disconnect():
        ipc.log(notice('disconnected from world'))

    @ipc.of.world.on('app.message')
    def app_message(data):
        ipc.log(debug('got a broadcast from'), variable(data['id']), debug(': '), data['message'])


ipc.connect_to('world', ready)

ipc.wait()
