"""A collector of readings that devices report, and that may be restarted, or out of reach, at any time.

From a checkout, each in a terminal of its own; Ctrl-C ends them. The port is 8000 if none is given:

    PYTHONPATH=. python3 examples/scripts/collector_server.py [PORT]
    PYTHONPATH=. python3 examples/scripts/device_client.py [PORT]
"""

import sys

import nodeipc

server = nodeipc.serve(f'tcp://127.0.0.1:{(sys.argv[1:] or [8000])[0]}')
readings = {}  # a database, in earnest


@server.method
def store(number, reading):
    if number not in readings:  # else the answer to the first time was lost
        readings[number] = reading
        print(number, reading['celsius'])


server.wait()
