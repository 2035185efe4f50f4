"""The server of node-ipc's first example, over TCP.

From a checkout, each in a terminal of its own; Ctrl-C ends them:

    PYTHONPATH=. python3 examples/tcp/world_server.py [PORT]
    PYTHONPATH=. python3 examples/tcp/hello_client.py [PORT]
"""

import sys

from nodeipc import ipc
from nodeipc.colors import debug

ipc.config.id = 'world'
ipc.config.retry = 1500
if sys.argv[1:]:
    ipc.config.network_port = int(sys.argv[1])  # 8000 if none is given


def ready():
    @ipc.server.on('message')
    def message(data, socket):
        ipc.log(debug('got a message : '), data)
        socket.emit(
            'message',
            data + ' world!',
        )


ipc.serve_net(ready)

ipc.server.start()

ipc.wait()
