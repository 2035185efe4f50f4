"""A program that does a little of everything with nodeipc, while the order of its locks is looked at.

Arguments: a directory for sockets and, for TLS, the files of a key and a certificate. Prints what `lockorder` saw, as JSON.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import logging
import os
import socket as sockets
import sys
import threading
import time
import warnings
from typing import Any, Callable, Dict, List, Tuple

from . import lockorder

lockorder.track()

import nodeipc  # noqa: E402
from nodeipc import IPC, jsonlines  # noqa: E402

_SECONDS = 20.0
_LARGE = 'x' * 300_000

Connect = Callable[..., nodeipc.Client]


def _eventually(predicate: Callable[[], Any]) -> None:
    end = time.monotonic() + _SECONDS
    while not predicate():
        assert time.monotonic() < end
        time.sleep(0.001)


def _transports(directory: str, tls: Dict[str, str], settings: Dict[str, Any]) -> List[Tuple[IPC, nodeipc.Server, Connect]]:
    worlds = []
    for kind in ('unix', 'tcp', *(['tls'] if tls else [])):
        server_tls = {'private': tls['key'], 'public': tls['certificate']} if kind == 'tls' else None
        client_tls = {'trusted_connections': [tls['ca']]} if kind == 'tls' else None
        world = IPC(id=f'world-{kind}', socket_root=f'{directory}/', tls=server_tls, retry=20, **settings)
        others = IPC(id='others', socket_root=f'{directory}/', tls=client_tls, retry=20, **settings)
        server = world.serve() if kind == 'unix' else world.serve_net('localhost', 0)

        def connect(id: str, others: IPC = others, server: Any = server, kind: str = kind) -> nodeipc.Client:
            if kind == 'unix':
                return others.connect_to(id, server.address)
            return others.connect_to_net(id, 'localhost', server.address[1])

        worlds.append((world, server, connect))
    return worlds


def _talk(world: IPC, server: nodeipc.Server, connect: Connect) -> None:
    gate = threading.Event()
    server.on('message', lambda data, socket: socket.emit('message', data))
    server.on('ask back', lambda data, socket: socket.emit('ask back', socket.request('question', timeout=_SECONDS)))
    server.on('bad', lambda: 1 // 0)
    server.on('leave', lambda data, socket: socket.close())
    server.on('stuck', lambda: gate.wait(_SECONDS))
    server.method('add', lambda a, b: a + b)
    with server.events('iterated', timeout=_SECONDS) as iterated:
        server.start()
        clients = [connect(f'client-{number}') for number in range(3)]
        clients[0].on('question', lambda: clients[0].emit('question', 'answer'))
        errors: List[Any] = []
        server.on('error', lambda error: errors.append(error))

        def drive(client: nodeipc.Client) -> None:
            for number in range(5):
                assert client.request('message', number, timeout=_SECONDS) == number
                assert client.call('add', number, 1, timeout=_SECONDS) == number + 1
                with client.batch():
                    for _ in range(10):
                        client.emit('iterated', _LARGE if number == 3 else number)
                handler = client.on('news', print)
                client.once('news', print)
                client.off('news', handler)
                client.off('news')
            client.flush(_SECONDS)
            client.stats()

        taken: List[Any] = []
        threads = [threading.Thread(target=drive, args=(client,)) for client in clients]
        threads.append(threading.Thread(target=lambda: taken.extend(next(iterated) for _ in range(150))))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 150
    assert clients[0].request('ask back', timeout=_SECONDS) == 'answer'
    with clients[1].events('news', timeout=_SECONDS) as news:
        server.broadcast('news', _LARGE)
        assert next(news).data == _LARGE
        server.stats()
    waiter = threading.Thread(target=clients[1].wait_for, args=('late',), kwargs={'timeout': _SECONDS})
    waiter.start()
    _eventually(lambda: clients[1]._waiters_here.waits)
    for socket in server.sockets:
        with socket.events('never', timeout=_SECONDS):
            socket.emit('late')
    waiter.join()
    clients[1].emit('bad')
    _eventually(lambda: errors)
    clients[2].emit('stuck')
    clients[2].emit('leave')
    gate.set()
    _eventually(lambda: clients[2].stats()['connections'] > 1)


def _come_and_go(world: IPC, server: nodeipc.Server, connect: Connect) -> None:
    """Reconnects, starts and stops, a server that stops in a handler, connections cut, a full queue."""
    heard = threading.Event()
    server.on('hello', lambda data, socket: heard.set())
    client = connect('coming')
    client.on('connect', lambda: client.emit('hello'))
    assert heard.wait(_SECONDS)
    heard.clear()
    for socket in server.sockets:
        socket.close()
    assert heard.wait(_SECONDS)
    if not isinstance(server.address, str):
        return  # the port is another the next time
    for _ in range(2):
        server.stop(_SECONDS)
        heard.clear()
        server.start()
        assert heard.wait(_SECONDS)
    server.on('stop yourself', lambda: server.stop())
    client.emit('stop yourself')
    assert server.wait(_SECONDS)
    starter = threading.Thread(target=server.start)
    starter.start()
    client.wait_connected(_SECONDS)
    starter.join()
    client.emit('hello')
    client.flush(_SECONDS)
    with sockets.socket(sockets.AF_UNIX) as deaf, sockets.socket(sockets.AF_UNIX) as broken:
        stuck: List[Any] = []
        server.once('deaf', lambda data, socket: stuck.append(socket))
        deaf.connect(server.address)
        deaf.sendall(b'{"type":"deaf","data":{}}\f')
        _eventually(lambda: stuck)
        socket = stuck[0]
        try:
            while True:
                socket.emit('much', _LARGE, timeout=0.05)
        except nodeipc.EmitTimeout:
            pass
        broken.connect(server.address)
        broken.sendall(b'nonsense\f')
        assert broken.recv(100) == b''
    client.on('go', lambda: client.disconnect())
    server.broadcast('go')
    assert client.wait(_SECONDS)


def _emit(client: nodeipc.Client, count: int) -> None:
    for number in range(count):
        client.emit('message', number)


def _ask_in_turn(directory: str, workers: int) -> None:
    """config.sync: threads and handlers that stand in line."""
    with IPC(id='asked', socket_root=f'{directory}/', workers=workers) as ipc, ipc.serve() as server:
        server.on('message', lambda data, socket: socket.emit('message', data))
        asking = IPC(id='asking', socket_root=f'{directory}/', sync=True, workers=workers)
        client = asking.connect_to('asked')
        client.once('message', lambda: client.emit('message', 'of a handler'))
        threads = [threading.Thread(target=lambda: _emit(client, 10)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.flush(_SECONDS)
        asking.close(_SECONDS)


def _send_datagrams(directory: str, workers: int) -> None:
    with IPC(id='first', workers=workers) as first, IPC(id='second', workers=workers) as second:
        here, there = first.serve_net('127.0.0.1', 0, 'udp4'), second.serve_net('127.0.0.1', 0, 'udp4')
        here.on('message', lambda data, socket: socket.emit('message', data))
        with here, there, there.events('message', timeout=_SECONDS) as answers:
            for number in range(20):
                there.emit(('somewhere', here.address[1]), 'message', number)
                assert next(answers).data == number
            there.broadcast('message', 1)
            assert there.sockets[0].request('message', 'asked', timeout=_SECONDS) is not None
            here.stats()


def _somewhere(resolve: Callable[..., Any]) -> Callable[..., Any]:
    """Return `socket.getaddrinfo` with one more name, which takes a while to find."""

    def getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
        if host == 'somewhere':
            if named.get('flags', arguments[-1] if arguments else 0) & sockets.AI_NUMERICHOST:
                raise sockets.gaierror(sockets.EAI_NONAME, 'not numeric')
            time.sleep(0.02)
            host = '127.0.0.1'
        return resolve(host, *arguments, **named)

    return getaddrinfo


def _start_by_waiting(directory: str, workers: int) -> None:
    with IPC(id='late', socket_root=f'{directory}/', workers=workers) as ipc:
        server = ipc.serve()
        assert not server.wait(0.01)
        assert not ipc.wait(0.01)


def _fork(directory: str, workers: int) -> None:
    """A child that uses what it inherits the way it may, while the parent's threads are busy."""
    with IPC(id='forking', socket_root=f'{directory}/', workers=workers) as ipc, ipc.serve() as server:
        server.on('message', lambda data, socket: socket.emit('message', data))
        with IPC(id='child', socket_root=f'{directory}/', workers=workers) as other:
            client = other.connect_to('forking')
            client.request('message', timeout=_SECONDS)
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    with IPC(id='own', socket_root=f'{directory}/', workers=workers) as own:
                        asked = own.connect_to('forking').request('message', 'child', timeout=_SECONDS)
                        status = 0 if asked == 'child' and not lockorder.wrong() else 2
                    if lockorder.wrong():
                        print('\n'.join(lockorder.wrong()), file=sys.stderr)
                finally:
                    os._exit(status)
            client.request('message', timeout=_SECONDS)
            assert os.waitpid(pid, 0)[1] == 0


def _close(ipc: IPC, *event: Any) -> None:
    ipc.close(1)


def _end_together(directory: str, workers: int) -> None:
    """Instances that are closed while threads use them, and in a handler."""
    for in_handler in (False, True):
        ipc = IPC(id='ending', socket_root=f'{directory}/', workers=workers, retry=20)
        server = ipc.serve()
        server.on('end', functools.partial(_close, ipc))
        server.start()
        client = ipc.connect_to('ending')

        def drive(client: nodeipc.Client = client) -> None:
            with contextlib.suppress(nodeipc.NotConnectedError, nodeipc.EmitTimeout):
                while True:
                    with contextlib.suppress(nodeipc.RequestTimeout):
                        client.request('nothing', timeout=0.001)

        client.wait_connected(_SECONDS)
        thread = threading.Thread(target=drive)
        thread.start()
        if in_handler:
            client.emit('end')
        else:
            ipc.close(1)
        thread.join()
        ipc.wait(_SECONDS)
        ipc.close(1)


def main(directory: str, *tls: str) -> None:
    faulthandler.dump_traceback_later(40, exit=True)
    warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
    logging.getLogger('nodeipc').addHandler(logging.NullHandler())
    sys.setswitchinterval(1e-5)
    sockets.getaddrinfo = _somewhere(sockets.getaddrinfo)
    files = dict(zip(('key', 'certificate', 'ca'), tls))
    for workers in (0, 4):
        for world, server, connect in _transports(directory, files, {'workers': workers, 'silent': True}):
            if workers:
                _talk(world, server, connect)
                _come_and_go(world, server, connect)
            world.close(_SECONDS)
        for act in (_start_by_waiting, _ask_in_turn, _send_datagrams, _fork, _end_together):
            act(directory, workers)
    jsonlines.Output().write(b'')
    print(json.dumps({
        'edges': sorted(lockorder.edges), 'wrong': lockorder.wrong(), 'cycle': lockorder.cycle(),
        'taken': sorted(lockorder.taken),
    }))  # fmt: skip


if __name__ == '__main__':
    main(*sys.argv[1:])
