"""A server that broadcasts what each client says to all of them, over a Unix socket.

From a checkout, each in a terminal of its own; Ctrl-C ends them:

    PYTHONPATH=. python3 examples/broadcast/world_server.py
    PYTHONPATH=. python3 examples/broadcast/hello_client.py
    PYTHONPATH=. python3 examples/broadcast/goodbye_client.py
"""

from nodeipc import ipc
from nodeipc.colors import debug, variable

ipc.config.id = 'world'
ipc.config.retry = 1500


def ready():
    @ipc.server.on('app.message')
    def app_message(data):
        ipc.log(debug('got a message from'), variable(data['id']), debug(': '), data['message'])
        ipc.server.broadcast(
            'app.message',
            {
                'id': ipc.config.id,
                'message': data['message'] + ' world!',
            },
        )


ipc.serve(ready)

ipc.server.define.listen['app.message'] = 'An id and a message; the message is broadcast.'
ipc.server.define.broadcast['app.message'] = "The server's id, and what a client said."

ipc.server.start()

ipc.wait()
