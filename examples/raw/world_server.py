"""A server of bytes instead of events, for peers in C, firmware and the like: whatever arrives is a `data` event.

From a checkout, each in a terminal of its own; Ctrl-C ends them:

    PYTHONPATH=. python3 examples/raw/world_server.py
    PYTHONPATH=. python3 examples/raw/hello_client.py

A raw stream has no message boundaries: what one side emits at once may arrive in pieces, and what it emits in pieces at
once. Here it does not matter, for each byte is answered by its capital; a real protocol says where a message ends.
"""

from nodeipc import ipc
from nodeipc.colors import debug

ipc.config.id = 'world'
ipc.config.raw_buffer = True
ipc.config.encoding = 'hex'


def ready():
    @ipc.server.on('data')
    def data(data, socket):
        ipc.log(debug('got bytes : '), data, data.hex())
        socket.emit(data.upper().hex())  # a str is text in config.encoding


ipc.serve(ready)

ipc.server.start()

ipc.wait()
