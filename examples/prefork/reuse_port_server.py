"""A pre-forked server over TCP, of which each worker has a listening socket of its own on the same port (SO_REUSEPORT).

From a checkout, each in a terminal of its own; Ctrl-C or SIGTERM ends the server:

    PYTHONPATH=. python3 examples/prefork/reuse_port_server.py [PORT]
    PYTHONPATH=. python3 examples/prefork/hello_client.py PORT

The port is 8000 if none is given. In world_server.py connections wait in one queue for the worker that is first; here the
kernel deals them out to a queue for each worker, evenly on Linux. Those in the queue of a worker that ends are cut off, and
clients connect again. Any process of the same user can join the port.
"""

import os
import signal
import socket
import sys

from nodeipc import ipc
from nodeipc.colors import debug

if not hasattr(socket, 'SO_REUSEPORT'):
    sys.exit('this platform has no SO_REUSEPORT: a port can be had once only; see world_server.py')

WORKERS = 2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)

ipc.config.id = 'world'
ipc.config.unlink = False

port = int(sys.argv[1]) if sys.argv[1:] else 8000


def work():
    def ready():
        @ipc.server.on('message')
        def message(data, socket):
            ipc.log(debug('got a message : '), data)
            socket.emit('message', {'pid': os.getpid(), 'message': data + ' world!'})

    try:
        listener = socket.create_server(('127.0.0.1', port), reuse_port=True)
    except OSError as error:
        sys.exit(f'port {port}: {error.strerror}')
    ipc.serve_net(ready, sock=listener)
    ipc.server.start()
    ipc.log('worker', os.getpid(), 'serves', port)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ipc.close())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    ipc.wait()


# Signals wait until they can be dealt with: in the parent by sigwait, in a worker when it has started.
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

workers = []
for _ in range(WORKERS):  # before anything is started: threads do not survive a fork
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit()
    workers.append(pid)

while workers and signal.sigwait(SIGNALS) == signal.SIGCHLD:
    for pid in workers[:]:
        if os.waitpid(pid, os.WNOHANG)[0]:
            ipc.log('worker', pid, 'is gone')
            workers.remove(pid)

for pid in workers:
    os.kill(pid, signal.SIGTERM)
for pid in workers:
    os.waitpid(pid, 0)
sys.exit(None if workers else 'no worker is left')
