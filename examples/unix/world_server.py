"""The server of node-ipc's first example, over a Unix socket.

From a checkout, each in a terminal of its own; Ctrl-C ends them:

    PYTHONPATH=. python3 examples/unix/world_server.py
    PYTHONPATH=. python3 examples/unix/hello_client.py
"""

from nodeipc import ipc
from nodeipc.colors import debug

ipc.config.id = 'world'
ipc.config.retry = 1500


def ready():
    @ipc.server.on('message')
    def message(data, socket):
        ipc.log(debug('got a message : '), data)
        socket.emit(
            'message',
            data + ' world!',
        )


ipc.serve(ready)

ipc.server.start()

ipc.wait()
