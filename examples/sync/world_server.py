"""A server that takes its time, and a client that sends one request at a time, over a Unix socket.

From a checkout, each in a terminal of its own; Ctrl-C ends them:

    PYTHONPATH=. python3 examples/sync/world_server.py
    PYTHONPATH=. python3 examples/sync/hello_client.py

Without config.sync in hello_client.py all its requests would be here before the first is answered.
"""

import threading

from nodeipc import NotConnectedError, ipc
from nodeipc.colors import debug, notice

ipc.config.id = 'world'
ipc.config.retry = 1500


def ready():
    @ipc.server.on('message')
    def message(data, socket):
        ipc.log(debug('got a message : '), data)
        threading.Timer(0.5, answer, (data, socket)).start()


def answer(data, socket):
    ipc.log(debug('answering : '), data)
    try:
        socket.emit(
            'message',
            data + ' world!',
        )
    except NotConnectedError:
        ipc.log(notice('nobody waits for the answer any more'))


ipc.serve(ready)

ipc.server.start()

ipc.wait()
