"""A peer whose connection does harm: ``faulty.py FAULT COMMAND... ROLE SPEC``, for the tests of what the benchmark verifies.

The server is COMMAND's, as it is. Between it and COMMAND's client stands a proxy, on a Unix socket, that does to one of
the messages what FAULT says: ``lose``, ``damage``, ``repeat`` or ``none``, ``up`` to the server or ``down`` from it, and
which of those with the payload it is, as in ``lose-up-3``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading

_MARK, _DAMAGED = b'0123456789', b'0123456798'
_END = b'\f'


def main(fault: str, *rest: str) -> None:
    """Be the peer."""
    *command, role, text = rest
    if role == 'client':
        spec = json.loads(text)
        path = spec['address'] + '-proxy'
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(100)
        threading.Thread(target=_accept, args=(listener, spec['address'], fault), daemon=True).start()
        sys.exit(subprocess.call([*command, role, json.dumps({**spec, 'address': path})]))
    os.execv(command[0], [*command, role, text])


def _accept(listener: socket.socket, address: str, fault: str) -> None:
    what, direction, number = fault.split('-')
    while True:
        client = listener.accept()[0]
        server = socket.socket(socket.AF_UNIX)
        server.connect(address)
        for name, source, target in (('up', client, server), ('down', server, client)):
            is_faulty = name == direction
            arguments = (source, target, what if is_faulty else 'none', int(number))
            threading.Thread(target=_copy, args=arguments, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket, what: str, number: int) -> None:
    seen = 0
    with source.makefile('rb') as stream:
        frame = b''
        while True:
            byte = stream.read(1)
            if not byte:
                break
            frame += byte
            if byte != _END:
                continue
            seen += _MARK in frame
            if seen == number and _MARK in frame:
                frame = {'lose': b'', 'damage': frame.replace(_MARK, _DAMAGED), 'repeat': frame * 2, 'none': frame}[what]
            target.sendall(frame)
            frame = b''
    target.shutdown(socket.SHUT_WR)


if __name__ == '__main__':
    main(*sys.argv[1:])
