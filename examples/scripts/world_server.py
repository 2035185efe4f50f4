"""A whole server in a loop: it answers messages, over a Unix socket.

From a checkout, each in a terminal of its own; Ctrl-C ends the server:

    PYTHONPATH=. python3 examples/scripts/world_server.py
    PYTHONPATH=. python3 examples/scripts/hello_client.py
"""

import nodeipc

with nodeipc.serve('world') as server:
    try:
        for event in server.events('message'):
            print('got a message:', event.data)
            event.socket.emit('message', event.data + ' world!')
    except KeyboardInterrupt:
        pass
