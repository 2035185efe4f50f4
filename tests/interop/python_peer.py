"""A nodeipc peer in a process of its own, so that a test can kill it.

``python3 -m tests.interop.python_peer serve|connect SETTINGS unix PATH|tcp HOST PORT``; the settings are fields of the
config, as a JSON object. The server sends back each ``message``; the client says ``hello`` whenever it is connected. It
ends when stdin does, so that it never outlives a test.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from nodeipc import IPC


def main(role: str, settings: str, transport: str, *where: str) -> None:
    with IPC(id='world', retry=20, **json.loads(settings)) as ipc:
        if role == 'serve':
            server = ipc.serve(where[0]) if transport == 'unix' else ipc.serve_net(where[0], int(where[1]))

            @server.on('message')
            def answer(data: Any, socket: Any) -> None:
                socket.emit('message', data)

            server.start()
        else:
            client = (
                ipc.connect_to('world', where[0])
                if transport == 'unix'
                else ipc.connect_to_net('world', where[0], int(where[1]))
            )
            client.on('connect', lambda: client.emit('hello', os.getpid()))
        sys.stdin.read()


if __name__ == '__main__':
    main(*sys.argv[1:])
