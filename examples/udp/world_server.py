"""The first of node-ipc's two UDP programs. In UDP there are no clients: each end is a server, on a port of its own.

From a checkout, each in a terminal of its own, this one first, for nothing waits for a UDP server; Ctrl-C ends them:

    PYTHONPATH=. python3 examples/udp/world_server.py [PORT]
    PYTHONPATH=. python3 examples/udp/hello_server.py [PORT [WORLD_PORT]]
"""

import sys

from nodeipc import ipc
from nodeipc.colors import debug, variable

ipc.config.id = 'world'
ipc.config.retry = 1500
if sys.argv[1:]:
    ipc.config.network_port = int(sys.argv[1])  # 8000 if none is given


def ready():
    @ipc.server.on('message')
    def message(data, socket):
        ipc.log(debug('got a message from '), variable(data['from']), debug(':'), variable(data['message']))
        ipc.server.emit(
            socket,
            'message',
            {
                'from': ipc.config.id,
                'message': data['message'] + ' world!',
            },
        )


ipc.serve_net('udp4', ready)

ipc.server.define.listen.message = 'This event type listens for message strings as value of data key.'

ipc.server.start()

ipc.wait()
