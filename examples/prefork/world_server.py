"""A pre-forked server: several processes accept from one listening socket, so that handlers use several cores.

From a checkout, each in a terminal of its own; Ctrl-C or SIGTERM ends the server:

    PYTHONPATH=. python3 examples/prefork/world_server.py [PORT]
    PYTHONPATH=. python3 examples/prefork/hello_client.py [PORT]

Over TCP if a port is given, else over a Unix socket. The parent makes the socket and, at the end, removes its file; a
worker that stops or crashes leaves both to the others.
"""

import os
import signal
import socket
import sys

from nodeipc import ipc
from nodeipc.colors import debug

WORKERS = 2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)

ipc.config.id = 'world'
ipc.config.unlink = False

port = int(sys.argv[1]) if sys.argv[1:] else None
path = ipc.config.socket_root + ipc.config.appspace + ipc.config.id  # where clients look for this id


def listen():
    if port is not None:
        return socket.create_server(('127.0.0.1', port))
    os.makedirs(ipc.config.socket_root, mode=0o700, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
    except OSError as error:
        sys.exit(f'{path}: {error.strerror}; if no server is running there, remove it')
    listener.listen()
    return listener


def work(listener):
    def ready():
        @ipc.server.on('message')
        def message(data, socket):
            ipc.log(debug('got a message : '), data)
            socket.emit('message', {'pid': os.getpid(), 'message': data + ' world!'})

    serve = ipc.serve if port is None else ipc.serve_net
    serve(ready, sock=listener)
    ipc.server.start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ipc.close())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    ipc.wait()


# Signals wait until they can be dealt with: in the parent by sigwait, in a worker when it has started.
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

listener = listen()
workers = []
for _ in range(WORKERS):  # before anything is started: threads do not survive a fork
    pid = os.fork()
    if pid == 0:
        work(listener)
        sys.exit()
    workers.append(pid)

ipc.log('workers', *workers, 'serve', path if port is None else listener.getsockname()[1])
listener.close()  # so that nobody waits in its queue when there is no worker left

while workers and signal.sigwait(SIGNALS) == signal.SIGCHLD:
    for pid in workers[:]:
        if os.waitpid(pid, os.WNOHANG)[0]:
            ipc.log('worker', pid, 'is gone')
            workers.remove(pid)

if port is None:
    os.unlink(path)  # first, for then the next server can have it
for pid in workers:
    os.kill(pid, signal.SIGTERM)
for pid in workers:
    os.waitpid(pid, 0)
sys.exit(None if workers else 'no worker is left')
