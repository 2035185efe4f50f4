"""A server on a socket that systemd has made: the first client starts it, and those that come during a restart wait for it.

nodeipc.socket, for the path where clients of the same user look for world (for TCP it is ListenStream=127.0.0.1:8000):

    [Socket]
    ListenStream=%t/node-ipc/app.world
    DirectoryMode=0700
    SocketMode=0600

nodeipc.service, if the checkout is nodeipc in the home directory:

    [Service]
    WorkingDirectory=%h/nodeipc
    Environment=PYTHONPATH=.
    ExecStart=python3 examples/prefork/systemd_server.py

Both in ~/.config/systemd/user; then, from the checkout:

    systemctl --user daemon-reload && systemctl --user start nodeipc.socket
    PYTHONPATH=. python3 examples/prefork/hello_client.py
"""

import os
import signal
import socket
import sys

from nodeipc import ipc
from nodeipc.colors import debug

FIRST = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)

ipc.config.id = 'world'
ipc.config.unlink = False


def given():
    # Taken out of the environment and closed on exec, so that no child takes them for its own.
    pid, count = os.environ.pop('LISTEN_PID', None), os.environ.pop('LISTEN_FDS', None)
    if pid != str(os.getpid()) or count != '1':
        sys.exit(f'systemd gives no socket, or several: LISTEN_PID={pid} (this is {os.getpid()}), LISTEN_FDS={count}')
    os.set_inheritable(FIRST, False)
    return socket.socket(fileno=FIRST)


def ready():
    @ipc.server.on('message')
    def message(data, socket):
        ipc.log(debug('got a message : '), data)
        socket.emit('message', {'pid': os.getpid(), 'message': data + ' world!'})


listener = given()
serve = ipc.serve if listener.family == socket.AF_UNIX else ipc.serve_net
serve(ready, sock=listener)

ipc.server.start()

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: ipc.close())
ipc.log(os.getpid(), 'serves', listener.getsockname())

ipc.wait()
