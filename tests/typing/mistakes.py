"""Mistakes that users make, and below each what ``mypy --strict`` says of it: ``make lint`` compares, word for word.

``# E:`` is an error in the line above, ``# N:`` what is revealed there. Nothing here is ever called.
"""
# ruff: noqa: F821, RUF059

from __future__ import annotations

from typing import Dict

import nodeipc
from nodeipc import ipc


def names() -> None:
    nodeipc.conect('world')
    # E: Module has no attribute "conect"; maybe "connect"?  [attr-defined]
    client = nodeipc.connect('world')
    client.emitt('message')
    # E: "Client" has no attribute "emitt"; maybe "emit"?  [attr-defined]
    client.broadcast('message')
    # E: "Client" has no attribute "broadcast"  [attr-defined]
    client.wait_conected(1)
    # E: "Client" has no attribute "wait_conected"; maybe "wait_connected"?  [attr-defined]
    server = nodeipc.serve('world')
    server.request('message')
    # E: "Server" has no attribute "request"  [attr-defined]
    print(nodeipc.RequestTimeOut)
    # E: Module has no attribute "RequestTimeOut"; maybe "RequestTimeout"?  [attr-defined]


def arguments() -> None:
    nodeipc.connect(8000)
    # E: Argument 1 to "connect" has incompatible type "int"; expected "str | PathLike[str]"  [arg-type]
    client = nodeipc.connect('world')
    client.emit('message', 'hello', 2)
    # E: Too many positional arguments for "emit" of "Client"  [call-arg]
    client.request()
    # E: Missing positional argument "type" in call to "request" of "Asker"  [call-arg]
    client.request('message', 'hello', 2)
    # E: Too many positional arguments for "request" of "Asker"  [call-arg]
    # E: Argument 3 to "request" of "Asker" has incompatible type "int"; expected "str | None"  [arg-type]
    client.request('message', 'hello', timeout='2')
    # E: Argument "timeout" to "request" of "Asker" has incompatible type "str"; expected "float | None"  [arg-type]
    client.request('message', reply=5)
    # E: Argument "reply" to "request" of "Asker" has incompatible type "int"; expected "str | None"  [arg-type]
    client.wait_for('news', 10)
    # E: Too many positional arguments for "wait_for" of "Asker"  [call-arg]
    client.call()
    # E: Too few arguments for "call" of "Asker"  [call-arg]
    client.call(sum, 1, 2)
    # E: Argument 1 to "call" of "Asker" has incompatible type overloaded function; expected "str"  [arg-type]
    client.events(5)
    # E: Argument 1 to "events" of "Client" has incompatible type "int"; expected "str"  [arg-type]
    client.events('news', timeout='10')
    # E: Argument "timeout" to "events" of "Client" has incompatible type "str"; expected "float | None"  [arg-type]
    client.wait('for ever')
    # E: Argument 1 to "wait" of "Client" has incompatible type "str"; expected "float | None"  [arg-type]
    client.on('message', 'print')
    # E: No overload variant of "on" of "Client" matches argument types "str", "str"  [call-overload]
    client.on(5)
    # E: No overload variant of "on" of "Client" matches argument type "int"  [call-overload]
    nodeipc.serve('world').wait('for ever')
    # E: Argument 1 to "wait" of "Server" has incompatible type "str"; expected "float | None"  [arg-type]
    nodeipc.serve('world').method(5)
    # E: No overload variant of "method" of "Role" matches argument type "int"  [call-overload]


def results() -> None:
    client = nodeipc.connect('world')
    reveal_type(client)
    # N: Revealed type is "nodeipc.client.Client"
    reveal_type(client.request('message'))
    # N: Revealed type is "Any"
    reveal_type(client.call('add', 1, 2))
    # N: Revealed type is "Any"
    reveal_type(client.wait_for('news'))
    # N: Revealed type is "Any"
    reveal_type(client.wait(1))
    # N: Revealed type is "bool"
    waited: str = client.wait(1)
    # E: Incompatible types in assignment (expression has type "bool", variable has type "str")  [assignment]
    said = client.notify('news')
    # E: "notify" of "Asker" does not return a value (it only ever returns None)  [func-returns-value]
    print(waited, said)


def events() -> None:
    for event in nodeipc.connect('world').events('news'):
        reveal_type(event.type)
        # N: Revealed type is "str"
        reveal_type(event.data)
        # N: Revealed type is "Any"
        reveal_type(event.socket)
        # N: Revealed type is "nodeipc.client.Client"
        print(event.date)
        # E: "Event[Client]" has no attribute "date"  [attr-defined]
        event.socket.wait_connected(1)
        event.socket.broadcast('message')
        # E: "Client" has no attribute "broadcast"  [attr-defined]
    for event_of_server in nodeipc.serve('world').events():
        reveal_type(event_of_server.socket)
        # N: Revealed type is "nodeipc.server.Socket"
        event_of_server.socket.emit('message')
        event_of_server.socket.wait_connected(1)
        # E: "Socket" has no attribute "wait_connected"; maybe "connected"?  [attr-defined]
        type, data, socket = event_of_server
        reveal_type(type)
        # N: Revealed type is "str"
        reveal_type(socket)
        # N: Revealed type is "nodeipc.server.Socket"
        type, data = event_of_server
        # E: Too many values to unpack (2 expected, 3 provided)  [misc]
    with nodeipc.serve('world') as server:
        reveal_type(server)
        # N: Revealed type is "nodeipc.server.Server"
        for event_of_socket in server.sockets[0].events('message'):
            reveal_type(event_of_socket.socket)
            # N: Revealed type is "nodeipc.server.Socket"


def decorators() -> None:
    server = nodeipc.serve('world')

    @server.method
    def add(a: int, b: int) -> int:
        return a + b

    @server.method('sub')
    def subtract(a: int, b: int) -> int:
        return a - b

    @server.on('message')
    def answer(data: str, socket: nodeipc.Socket) -> None:
        socket.emitt('message', data)
        # E: "Socket" has no attribute "emitt"; maybe "emit"?  [attr-defined]

    reveal_type(add(1, 2))
    # N: Revealed type is "int"
    add('1', 2)
    # E: Argument 1 to "add" has incompatible type "str"; expected "int"  [arg-type]
    subtract(1)
    # E: Missing positional argument "b" in call to "subtract"  [call-arg]
    answer('hello')
    # E: Missing positional argument "socket" in call to "answer"  [call-arg]

    @server.method
    def later(a: int) -> Dict[str, int]:
        return a
        # E: Incompatible return value type (got "int", expected "dict[str, int]")  [return-value]


def settings() -> None:
    config = nodeipc.Config()
    config.retry = '500'
    # E: Incompatible types in assignment (expression has type "str", variable has type "float")  [assignment]
    config.rety = 500
    # E: "Config" has no attribute "rety"; maybe "retry"?  [attr-defined]
    config.max_retries = float('inf')
    # E: Incompatible types in assignment (expression has type "float", variable has type "int | None")  [assignment]
    ipc.server.startt()
    # E: Item "Server" of "Server | Any" has no attribute "startt"  [union-attr]
    ipc.of.world.emitt('message')
    # E: "Client" has no attribute "emitt"; maybe "emit"?  [attr-defined]


def errors() -> None:
    try:
        nodeipc.connect('world').call('add', 1, 2)
    except nodeipc.RemoteError as error:
        code: str = error.code
        # E: Incompatible types in assignment (expression has type "int", variable has type "str")  [assignment]
        print(code, error.reason)
        # E: "RemoteError" has no attribute "reason"  [attr-defined]
    except nodeipc.RequestTimeout as late:
        print(late.code)
        # E: "RequestTimeout" has no attribute "code"  [attr-defined]
