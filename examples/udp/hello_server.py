"""The second of node-ipc's two UDP programs, which speaks first; world_server.py says how to run it.

Its port is 8001, because world has 8000 already and a port can be had once only.
"""

import sys

from nodeipc import ipc
from nodeipc.colors import debug, variable

ipc.config.id = 'hello'
ipc.config.retry = 1500
port = int(sys.argv[1]) if sys.argv[1:] else 8001
if sys.argv[2:]:
    ipc.config.network_port = int(sys.argv[2])  # world's; 8000 if none is given


def ready():
    @ipc.server.on('message')
    def message(data):
        ipc.log(debug('got a message from '), variable(data['from']), debug(':'), variable(data['message']))

    ipc.server.emit(
        {
            'address': 'localhost',
            'port': ipc.config.network_port,
        },
        'message',
        {
            'from': ipc.config.id,
            'message': 'Hello',
        },
    )


ipc.serve_net(port, 'udp4', ready)

ipc.server.define.listen.message = 'This event type listens for message strings as value of data key.'

ipc.server.start()

ipc.wait()
