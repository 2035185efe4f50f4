"""JSON-RPC 2.0 between nodeipc and node-ipc 14 with the npm package json-rpc-2.0, either one calling the other."""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict, Iterator, List

import pytest

import nodeipc
from nodeipc import NotConnectedError, RemoteError

from ..conftest import Log, eventually
from .peers import MODULES, SECONDS, Missing, NodePeer, Place

Make = Callable[..., nodeipc.IPC]

# JSON-RPC is above the transports, so one is enough for most.
unix_only = pytest.mark.parametrize('transport', ['unix'], indirect=True)


class CallingPeer(NodePeer):
    """rpc_peer.mjs."""

    def meet(self, command: str, place: Place, both: bool = False) -> None:
        """``'serve'`` or ``'connect'``; `both`: it can call and be called."""
        where = {'path': place.path} if place.transport == 'unix' else {'host': place.host, 'port': place.port}
        self.do(command, both=both, **where)
        self.wait('start' if command == 'serve' else 'connect')

    def request(self, method: str, params: Any = None) -> Dict[str, Any]:
        """Have the client call a method of the server, and return how it went; `params` None: it has none."""
        before = len(self.wait('result', 0)), len(self.wait('refused', 0))
        self.do('request', method=method, **({} if params is None else {'params': params}))
        eventually(lambda: (len(self.wait('result', 0)), len(self.wait('refused', 0))) != before, SECONDS)
        outcome = self.reports[-1].data
        assert isinstance(outcome, dict)
        return outcome


@pytest.fixture(scope='module')
def resident_caller() -> Iterator[CallingPeer]:
    if not (MODULES / 'json-rpc-2.0').exists():
        pytest.skip('json-rpc-2.0 is not installed; run `make interop`')
    try:
        peer = CallingPeer('14.0.0', 'rpc_peer.mjs')
    except Missing as reason:
        pytest.skip(str(reason))
    yield peer
    peer.close()


@pytest.fixture
def node(resident_caller: CallingPeer) -> Iterator[CallingPeer]:
    """The Node process of this module, which keeps nothing of one test for the next."""
    yield resident_caller
    resident_caller.reset()


def python_client(make: Make, place: Place, node: CallingPeer, both: bool = False) -> nodeipc.Client:
    """A connected client of a Node server."""
    node.meet('serve', place, both)
    client = place.connect(make())
    client.wait_connected(SECONDS)
    return client


def python_server(make: Make, place: Place) -> nodeipc.Server:
    """A running server with some methods."""
    server = place.serve(make())

    @server.method
    def add(augend: float, addend: float = 1) -> float:
        return augend + addend

    @server.method
    def greet(name: str) -> str:
        return f'hello {name}'

    @server.method
    def fail() -> None:
        raise ZeroDivisionError('division by zero')

    @server.method
    def refuse() -> None:
        raise RemoteError(17, 'not today', {'tomorrow': [1, None]})

    server.method('same')(lambda value: value)
    server.method('nothing')(lambda: None)
    server.start()
    return server


def refusal(call: Callable[[], Any]) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        call()
    return caught.value


def in_threads(count: int, function: Callable[[int], Any]) -> List[Any]:
    results: List[Any] = [None] * count

    def run(number: int) -> None:
        results[number] = function(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return results


VALUES = [None, True, 0, -1.5, '', 'ünï ☃ \f', [], {}, [1, [2, {'a': None}]], {'jsonrpc': '2.0', 'error': {}, 'id': 1}]


# A Node server


def test_python_calls_node(make: Make, place: Place, node: CallingPeer) -> None:
    client = python_client(make, place, node)
    assert client.call('add', 1, 2, timeout=SECONDS) == 3
    assert client.call('greet', name='world', timeout=SECONDS) == 'hello world'
    assert client.call('nothing', timeout=SECONDS) is None
    for value in VALUES:
        assert client.call('same', value, timeout=SECONDS) == value


@unix_only
def test_errors_of_node_are_raised_in_python(make: Make, place: Place, node: CallingPeer) -> None:
    client = python_client(make, place, node)
    error = refusal(lambda: client.call('refuse', timeout=SECONDS))
    assert (error.code, error.message, error.data) == (17, 'not today', {'tomorrow': [1, None]})
    error = refusal(lambda: client.call('fail', timeout=SECONDS))
    assert (error.code, error.message, error.data) == (0, 'in Node', None)  # the package's own choice of a code
    error = refusal(lambda: client.call('unknown', timeout=SECONDS))
    assert (error.code, error.message) == (-32601, 'Method not found')


@unix_only
def test_parallel_calls_of_python_get_their_own_answers_of_node_in_any_order(
    make: Make, place: Place, node: CallingPeer
) -> None:
    client = python_client(make, place, node)
    # The first is answered last.
    assert in_threads(16, lambda number: client.call('later', 32 - 2 * number, number, timeout=SECONDS)) == list(range(16))


@unix_only
def test_notifications_of_python_reach_node_and_are_not_answered(make: Make, place: Place, node: CallingPeer) -> None:
    client = python_client(make, place, node)
    log = Log()
    client.on('rpc', lambda data: log('rpc', data))
    client.notify('note', 1, 'two')
    client.notify('note', three=3)
    client.notify('fail')
    client.notify('unknown')
    assert client.call('notes', timeout=SECONDS) == [[1, 'two'], {'three': 3}]
    assert len(log.of('rpc')) <= 1  # the answer of `notes`


@unix_only
def test_a_node_server_that_hangs_up_ends_a_call_of_python_at_once(make: Make, place: Place, node: CallingPeer) -> None:
    client = python_client(make, place, node)
    with pytest.raises(NotConnectedError):
        client.call('hangUp', timeout=SECONDS)
    assert client.call('add', 1, 2, timeout=SECONDS) == 3


@unix_only
def test_node_answers_the_batches_of_python(make: Make, place: Place, node: CallingPeer) -> None:
    client = python_client(make, place, node)
    log = Log()
    client.on('rpc', lambda data: log('rpc', data))
    batch = [{'jsonrpc': '2.0', 'method': method, 'params': [1, 2], 'id': method} for method in ('add', 'unknown')]
    client.emit('rpc', batch)
    (((added, unknown),),) = log.wait('rpc', timeout=SECONDS)
    assert added == {'jsonrpc': '2.0', 'result': 3, 'id': 'add'}
    assert (unknown['error']['code'], unknown['id']) == (-32601, 'unknown')


# A Node client


def test_node_calls_python(make: Make, place: Place, node: CallingPeer) -> None:
    python_server(make, place)
    node.meet('connect', place)
    assert node.request('add', [1, 2]) == {'result': 3}
    assert node.request('add', {'augend': 1}) == {'result': 2}
    assert node.request('greet', {'name': 'world'}) == {'result': 'hello world'}
    assert node.request('nothing') == {'result': None}
    for value in VALUES:
        assert node.request('same', [value]) == {'result': value}


@unix_only
def test_errors_of_python_are_raised_in_node(make: Make, place: Place, node: CallingPeer) -> None:
    server = python_server(make, place)
    log = Log()
    server.on('error', lambda error: log('error', error))
    node.meet('connect', place)
    assert node.request('refuse') == {'code': 17, 'message': 'not today', 'data': {'tomorrow': [1, None]}}
    assert node.request('fail') == {'code': -32000, 'message': 'ZeroDivisionError: division by zero'}
    assert node.request('unknown')['code'] == -32601
    assert node.request('add', [1, 2, 3])['code'] == -32602
    assert node.request('add', 'text')['code'] == -32600
    assert len(log.wait('error')) == 1


@unix_only
def test_batches_of_node_are_answered(make: Make, place: Place, node: CallingPeer) -> None:
    server = python_server(make, place)
    noted: List[Any] = []
    server.method('note')(lambda *values: noted.append(values))
    node.meet('connect', place)
    requests = [
        {'jsonrpc': '2.0', 'method': 'add', 'params': [1, 2], 'id': 100},
        {'jsonrpc': '2.0', 'method': 'note', 'params': ['in a batch']},
        {'jsonrpc': '2.0', 'method': 'unknown', 'id': 'x'},
    ]
    node.do('batch', requests=requests)
    ((added, unknown),) = node.wait('responses')
    assert added == {'jsonrpc': '2.0', 'result': 3, 'id': 100}
    assert (unknown['error']['code'], unknown['id']) == (-32601, 'x')
    node.do('notify', method='note', params=['alone'])
    node.do('notify', method='fail')
    assert node.request('nothing') == {'result': None}
    assert noted == [('in a batch',), ('alone',)]


@unix_only
def test_parallel_calls_of_node_get_their_own_answers(make: Make, place: Place, node: CallingPeer) -> None:
    python_server(make, place)
    node.meet('connect', place)
    for number in range(100):
        node.do('request', key=number, method='add', params=[number, 1000])
    assert sorted(node.wait('result', 100), key=lambda outcome: outcome['key']) == [
        {'key': number, 'result': number + 1000} for number in range(100)
    ]


# Both ways on one connection


@unix_only
def test_node_calls_back_the_python_client_that_calls_it(make: Make, place: Place, node: CallingPeer) -> None:
    client = python_client(make, place, node, both=True)
    client.method('double')(lambda number: 2 * number)

    @client.method
    def fail() -> None:
        raise RemoteError(18, 'in Python')

    assert client.call('askBack', 'double', [21], timeout=SECONDS) == 42
    error = refusal(lambda: client.call('askBack', 'fail', [], timeout=SECONDS))
    assert error.message == 'in Python'
    assert in_threads(8, lambda number: client.call('askBack', 'double', [number], timeout=SECONDS)) == list(range(0, 16, 2))
    assert not node.wait('error', 0)


@unix_only
def test_python_calls_back_the_node_client_that_calls_it(make: Make, place: Place, node: CallingPeer) -> None:
    server = python_server(make, place)

    @server.method
    def ask_back(method: str, params: Any, *, socket: nodeipc.Socket) -> Any:
        return socket.call(method, *params, timeout=SECONDS)

    node.meet('connect', place, both=True)
    assert node.request('ask_back', ['add', [1, 2]]) == {'result': 3}
    assert node.request('ask_back', ['refuse', []]) == {'code': 17, 'message': 'not today', 'data': {'tomorrow': [1, None]}}
    assert node.request('ask_back', ['unknown', []])['code'] == -32601
    (socket,) = server.sockets
    assert socket.call('greet', name='Node', timeout=SECONDS) == 'hello Node'
    socket.notify('note', 'from Python')
    assert socket.call('notes', timeout=SECONDS) == [['from Python']]
    assert not node.wait('error', 0)
