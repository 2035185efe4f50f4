"""A user's script that uses all of the public API, for ``mypy --strict`` to find nothing in. It does what it says, too.

No annotation here is for mypy's sake, but for the parameters of functions: what the library returns has its types.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple, Union

import nodeipc
from nodeipc import (
    IPC,
    Client,
    Config,
    ConfigError,
    EmitTimeout,
    Event,
    EventDecoder,
    EventIterator,
    Interface,
    IPCError,
    NotConnectedError,
    Parser,
    ProtocolError,
    RemoteError,
    RequestTimeout,
    Server,
    Socket,
    connect,
    ipc,
    serve,
)


def one_liners(path: Path) -> None:
    """connect and serve, with everything a script asks of them."""
    server: Server = serve(path, id='world', retry=100)

    @server.on('message')
    def answer(data: str, socket: Socket) -> None:
        socket.emit('message', f'{data} world!')

    @server.method
    def add(a: int, b: int) -> int:
        return a + b

    @server.method('who')
    def who_calls(*, socket: Socket) -> Dict[str, Any]:
        return {'pid': socket.peer.pid if socket.peer else None, 'calls back': socket.call('name', timeout=10)}

    with server, connect(str(path), emit_timeout=None) as client:
        added: int = add(1, 2)  # still the function that it was

        @client.method
        def name() -> str:
            return 'script'

        reply: str = client.request('message', 'hello', timeout=10)
        same = client.request('message', 'hello', reply='message', timeout=None)
        total: int = client.call('add', 1, 2, timeout=10)
        who: Dict[str, Any] = client.call('who', timeout=10)
        client.notify('add', 1, 2)
        print(added, reply, same, total, who['calls back'], name())

        headline: str = exchange(server, client)
        print(headline, [type for type, _, _ in received(server, client)])
        errors(client)
        print(connection(client), stopped(server))


def exchange(server: Server, client: Client) -> str:
    """wait_for, while somebody broadcasts."""
    timer = threading.Timer(0.05, server.broadcast, ('news', 'a headline'))
    with client.events('news', timeout=10) as events:
        timer.start()
        event = next(events)
        timer.join()
    later = threading.Timer(0.05, server.broadcast, ['news'])
    later.start()
    client.wait_for('news', timeout=10)
    later.join()
    headline: str = event.data
    return headline


def received(server: Server, client: Client) -> Iterator[Event[Socket]]:
    """events, on servers, their sockets and clients."""
    requests: EventIterator[Socket] = server.events('question', timeout=10)
    client.emit('question', {'number': 1})
    for event in requests:
        type: str = event.type
        event.socket.emit('answer', event.data['number'] + 1)
        event.socket.context['last'] = type
        type, data, socket = event
        with socket.events() as of_one:
            client.emit('question', data)
            _, _, who = next(of_one)
            print(who.id, who is socket, socket.request('ping', timeout=0.01) if not who.connected else 'connected')
        yield event
        requests.close()
    answers = client.events('answer')
    from_server: Client = next(answers).socket if not client.connected else client
    from_server.emit('question', [])
    answers.close()


def errors(client: Client) -> None:
    """What is raised has attributes with types, and fits the classes that everybody knows."""
    try:
        client.call('divide', 1, 0, timeout=10)
    except RemoteError as error:
        code: int = error.code
        message: str = error.message
        print(code, message, error.data)
    try:
        client.request('nothing', timeout=0.01)
    except RequestTimeout as timeout:
        late: TimeoutError = timeout
        print(late.__class__.__name__)
    try:
        Config(retry=-1)
    except ConfigError as wrong:
        value: ValueError = wrong
        print(str(value).split(',')[0])
    with connect('tcp://127.0.0.1:1', emit_timeout=1, max_retries=0) as nobody:
        try:
            nobody.emit('message', timeout=0.01)
        except (EmitTimeout, NotConnectedError) as failed:
            base: IPCError = failed
            system: Union[TimeoutError, ConnectionError] = failed
            print(str(base) == str(system))
    print(ProtocolError('ERR_IPC_INVALID_JSON', 'not JSON').code.lower())


def connection(client: Client) -> List[Union[bool, int]]:
    """The rest of a client."""
    with client.batch() as batch:
        batch.emit('message', 'one')
        batch.emit('message', 'two', timeout=1)
    client.flush(10)

    @client.once('message')
    def once(data: str) -> None:
        print(data)

    def never(error: Exception) -> None:
        print(error)

    client.on('error', never)
    client.off('error', never)
    client.off('message')
    counters: Dict[str, int] = client.stats()
    client.wait_connected(1)
    print(client.id, client.address)
    client.disconnect(timeout=10)
    client.disconnect()
    return [client.connected, client.wait(1), counters['errors']]


def stopped(server: Server) -> bool:
    """The rest of a server, and of its sockets."""
    server.define.listen.message = 'a string'
    server.define.broadcast['news'] = 'a headline'
    sockets: Tuple[Socket, ...] = server.sockets
    for socket in sockets:
        socket.id = 'known'
        print(socket.address, socket.certificate, socket.pending_bytes, socket.context, socket.peer)
        try:
            server.emit(socket, 'news', 'the last')
            socket.notify('news', 'the last')
            if socket.connected and not socket.context:
                socket.wait_for('never', timeout=1)
        except NotConnectedError as gone:  # the client is about to leave, or has left
            print(gone)
        socket.close()
    print(server.listening, server.address, server.stats()['connections_total'])
    server.stop(10)
    return server.wait(timeout=1)


class Lines:
    """A parser of one's own is one, without a base class."""

    def encode(self, type: Any, data: Any) -> bytes:
        return f'{type}\n'.encode()

    def decoder(self) -> EventDecoder:
        return LinesDecoder()


class LinesDecoder:
    def feed(self, data: bytes) -> List[Tuple[str, Any]]:
        return [(line.decode(), None) for line in data.splitlines()]


def instances() -> None:
    """Instances, with callbacks that take what they like."""
    parser: Parser = Lines()
    config = Config(id='other', parser=parser)
    config.update({'silent': True})
    config.interface = Interface(local_address='127.0.0.1')
    config.tls = None
    config.max_retries = None

    def ready(server: Server) -> None:
        print(server.listening)

    def begin() -> None:
        ipc.log('a callback without arguments')

    with IPC(config.copy(), retry=100) as other, other.serve_net('127.0.0.1', 0, ready) as server:
        host, port = server.address
        client = other.connect_to_net('other', host, port, begin)
        if 'other' in other.of:
            print(other.of.other is other.of['other'] is client, list(other.of), other.config.id)
        client.wait_connected(10)
        other.disconnect('other')
        print(other.server is server, other.server.listening, other.wait(0))
    with IPC(id='udp', workers=1) as udp, udp.serve_net(0, 'udp4') as peer:
        peer.emit(('127.0.0.1', 1), 'message', 'to nobody')
        peer.emit({'address': '127.0.0.1', 'port': 1}, 'message')
    ipc.config.silent = True
    ipc.connect_to('nobody', begin).disconnect()
    ipc.serve(os.devnull, ready)
    ipc.close(timeout=10)


if __name__ == '__main__':
    one_liners(Path('script.sock').resolve())
    instances()
    print(nodeipc.__version__)
