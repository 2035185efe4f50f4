r"""A parser of one's own: a TCP server that speaks lines of JSON, to nc and to a few lines of any language.

From a checkout; Ctrl-C ends it. The port is 8000 if none is given:

    PYTHONPATH=. python3 examples/parser/line_server.py [PORT]

Type at it with `nc 127.0.0.1 8000`. Each line is a JSON value, and each of these is answered by a line:

    {"type":"message","data":"hello"}       an event of this type
    "hello"                                 anything without a type is a `line` event
    {"type":"get.events.listening"}         what does the server listen for?

Or from Python:

    import socket
    with socket.create_connection(('127.0.0.1', 8000)) as sock:
        sock.sendall(b'"hello"\n')
        print(sock.makefile().readline())
"""

import json
import sys
from typing import Any, Iterator, Tuple

from nodeipc import EventDecoder, Socket, ipc
from nodeipc.colors import debug

MAX_LINE = 65536  # bytes; a peer that never ends its line must not fill the memory


class LineParser:
    """One line of JSON for each event. `encode` may be called by several threads at once; it keeps nothing."""

    def encode(self, type: str, data: Any) -> bytes:
        return json.dumps({'type': type, 'data': data}, allow_nan=False).encode() + b'\n'

    def decoder(self) -> EventDecoder:
        return LineDecoder()


class LineDecoder:
    """Decodes one connection. What `feed` raises ends that connection, and no other."""

    def __init__(self) -> None:
        self.unfinished = b''

    def feed(self, data: bytes) -> Iterator[Tuple[str, Any]]:
        if not data:
            data = b'\n'  # the end of the stream ends the last line, too
        *lines, self.unfinished = (self.unfinished + data).split(b'\n')
        for line in lines:
            check_length(line)
            if line.strip():
                yield event(line)
        check_length(self.unfinished)


def check_length(line: bytes) -> None:
    if len(line) > MAX_LINE:
        raise ValueError(f'a line is longer than {MAX_LINE} bytes')


def event(line: bytes) -> Tuple[str, Any]:
    value = json.loads(line, parse_constant=refuse)
    if isinstance(value, dict) and isinstance(value.get('type'), str):
        return value['type'], value.get('data', {})
    return 'line', value


def refuse(constant: str) -> Any:
    raise ValueError(f'{constant} is not JSON')  # though Python reads and writes it


ipc.config.id = 'lines'
ipc.config.parser = LineParser()
if sys.argv[1:]:
    ipc.config.network_port = int(sys.argv[1])  # 8000 if none is given

server = ipc.serve_net()

server.define.listen.message = 'A string, which is greeted.'
server.define.listen.line = 'Any JSON value, which is sent back.'


@server.on('message')
def message(data: Any, socket: Socket) -> None:
    ipc.log(debug('got a message : '), data)
    socket.emit('message', f'{data} world!')


@server.on('line')
def line(value: Any, socket: Socket) -> None:
    ipc.log(debug('got a line : '), value)
    socket.emit('line', value)


server.start()

ipc.wait()
