"""Methods that other processes call, by JSON-RPC 2.0 in `rpc` events.

From a checkout, each in a terminal of its own; Ctrl-C ends the server:

    PYTHONPATH=. python3 examples/scripts/calculator_server.py
    PYTHONPATH=. python3 examples/scripts/calculator_client.py
"""

import nodeipc

server = nodeipc.serve('calculator')


@server.method
def add(a, b):
    return a + b


@server.method
def divide(a, b):
    if b == 0:
        raise nodeipc.RemoteError(1, f'{a} cannot be divided by 0')
    return a / b


server.wait()
