"""JSON-RPC 2.0 over real sockets: `method`, `call` and `notify` of servers, of clients, and of a server's sockets."""

from __future__ import annotations

import gc
import json
import logging
import threading
from typing import Any, Callable, Dict, List, Optional

import pytest

import nodeipc
from nodeipc import EmitTimeout, NotConnectedError, ProtocolError, RemoteError, RequestTimeout
from nodeipc.waiters import Waiter

from .certificates import Certificates
from .conftest import Log, eventually

# For what must come; on a machine under load.
SECONDS = 20

# For what must not.
MOMENT = 0.05

unix_only = pytest.mark.parametrize('transport', ['unix'], indirect=True)


def calculator(world: Any) -> Any:
    """Have a server calculate."""

    @world.server.method
    def add(augend: float, addend: float = 1) -> float:
        return augend + addend

    @world.server.method('no operation')
    def nothing() -> None:
        pass

    return world.start()


def in_threads(count: int, function: Callable[[int], Any]) -> List[Any]:
    """What `function` returns when called with 0, 1, … in threads, all at once."""
    results: List[Any] = [None] * count
    failures: List[BaseException] = []
    together = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            together.wait(SECONDS)
            results[number] = function(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    if failures:
        raise failures[0]
    return results


def refusal(call: Callable[[], Any]) -> RemoteError:
    """The error that a call is answered with."""
    with pytest.raises(RemoteError) as caught:
        call()
    return caught.value


class Plain:
    """A plain socket that speaks in rpc events."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self._buffer = b''

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *exception: object) -> None:
        self.sock.close()

    def send(self, *data: Any) -> None:
        self.sock.sendall(b''.join(json.dumps({'type': 'rpc', 'data': datum}).encode() + b'\f' for datum in data))

    def receive(self) -> Any:
        while b'\f' not in self._buffer:
            chunk = self.sock.recv(65536)
            assert chunk, 'the connection was closed'
            self._buffer += chunk
        frame, _, self._buffer = self._buffer.partition(b'\f')
        event = json.loads(frame)
        assert event['type'] == 'rpc'
        return event['data']


def call_of(method: str, *params: Any, id: Any = 1) -> Dict[str, Any]:
    return {'jsonrpc': '2.0', 'method': method, 'params': list(params), 'id': id}


# Calls of clients


def test_a_client_calls_methods_of_its_server(pair: Any) -> None:
    client = calculator(pair()).connect()
    assert client.call('add', 1, 2, timeout=SECONDS) == 3
    assert client.call('add', 1.5, timeout=SECONDS) == 2.5
    assert client.call('add', augend=1, addend=3, timeout=SECONDS) == 4
    assert client.call('no operation', timeout=SECONDS) is None


def test_method_is_a_decorator_that_leaves_the_function_as_it_is(pair: Any) -> None:
    world = pair()

    def double(number: int) -> int:
        return 2 * number

    assert world.server.method(double) is double
    assert world.server.method('twice')(double) is double
    assert world.server.method()(double) is double
    client = world.start().connect()
    assert client.call('double', 2, timeout=SECONDS) == client.call('twice', 2, timeout=SECONDS) == 4


@pytest.mark.parametrize('side', ['server', 'client'])
def test_what_cannot_be_a_method_is_refused(pair: Any, transport: str, side: str) -> None:
    world = pair().start()
    end = world.server if side == 'server' else world.connect()

    async def coroutine() -> None: ...

    with pytest.raises(TypeError, match='plain function'):
        end.method(coroutine)
    with pytest.raises(TypeError):
        end.method(5)
    with pytest.raises(ValueError, match='reserves'):
        end.method('rpc.discover')(lambda: None)


def test_values_of_every_kind_are_params_and_results(pair: Any) -> None:
    world = pair()
    world.server.method('same')(lambda value: value)
    client = world.start().connect()
    for value in (None, True, 0, -1.5, '', 'ünï ☃ \f \u2028', [], {}, [1, [2, {'a': None}]], {'error': {'code': 1}}, 2**70):
        assert client.call('same', value, timeout=SECONDS) == value
        assert client.call('same', value=value, timeout=SECONDS) == value


@unix_only
def test_params_may_have_any_names(pair: Any) -> None:
    world = pair()
    world.server.method('names')(lambda **named: sorted(named))
    client = world.start().connect()
    assert client.call('names', self=1, method=2, params=3, socket=4, id=5, timeout=SECONDS) == [
        'id', 'method', 'params', 'self', 'socket'
    ]


@unix_only
def test_methods_may_come_and_change_while_clients_are_connected(pair: Any) -> None:
    world = calculator(pair())
    client = world.connect()
    assert refusal(lambda: client.call('late', timeout=SECONDS)).code == -32601
    world.server.method('late')(lambda: 'first')
    assert client.call('late', timeout=SECONDS) == 'first'
    world.server.method('late')(lambda: 'second')
    assert client.call('late', timeout=SECONDS) == 'second'


def test_a_method_is_given_the_socket_of_its_caller_if_it_wants_it(pair: Any) -> None:
    world = pair()

    @world.server.method
    def visits(step: int = 1, *, socket: nodeipc.Socket) -> int:
        socket.context['visits'] = socket.context.get('visits', 0) + step
        return int(socket.context['visits'])

    world.start()
    first, second = world.connect(), world.connect()
    assert first.call('visits', timeout=SECONDS) == 1
    assert first.call('visits', step=2, timeout=SECONDS) == 3
    assert second.call('visits', timeout=SECONDS) == 1
    assert refusal(lambda: first.call('visits', socket=1, timeout=SECONDS)).code == -32602


def test_threads_that_call_at_once_each_get_their_own_answer(pair: Any) -> None:
    client = calculator(pair()).connect()

    def call(number: int) -> List[float]:
        return [client.call('add', 1000 * number, turn, timeout=SECONDS) for turn in range(20)]

    assert in_threads(16, call) == [[1000 * number + turn for turn in range(20)] for number in range(16)]


def test_answers_may_come_in_any_order_and_in_batches(pair: Any) -> None:
    world = pair()
    waiting: List[Any] = []

    @world.server.on('rpc')
    def answer_the_last_first(request: Any, socket: nodeipc.Socket) -> None:
        waiting.insert(0, {'jsonrpc': '2.0', 'result': request['params'][0], 'id': request['id']})
        if len(waiting) == 8:
            socket.emit('rpc', waiting[:3])
            for response in waiting[3:]:
                socket.emit('rpc', response)

    client = world.start().connect()
    assert in_threads(8, lambda number: client.call('same', number, timeout=SECONDS)) == list(range(8))


def test_a_notification_is_run_in_order_and_never_answered(pair: Any) -> None:
    world = pair()
    noted: List[Any] = []
    world.server.method('note')(lambda *values: noted.append(values))
    world.server.method('count')(lambda: len(noted))

    @world.server.method
    def fail() -> None:
        raise ValueError('unheard')

    log = Log()
    client = world.start().connect(log)
    assert client.notify('note', 1) is None
    client.notify('note')
    client.notify('fail')
    client.notify('unknown')
    client.notify('note', 'too', 'many')
    assert client.call('count', timeout=SECONDS) == 3
    assert noted == [(1,), (), ('too', 'many')]
    assert len(log.of('rpc')) <= 1  # the answer of `count`


@unix_only
def test_a_call_that_json_rpc_does_not_have_raises_at_once(pair: Any) -> None:
    client = calculator(pair()).connect()
    for function in (client.call, client.notify):
        with pytest.raises(TypeError, match='not both'):
            function('add', 1, addend=2)
        with pytest.raises(TypeError, match='must be a str'):
            function(5)
        with pytest.raises(TypeError, match="'rpc'.*set"):
            function('add', {1}, 2)
        with pytest.raises(ValueError, match="'rpc'"):
            function('add', float('nan'), 2)
    assert client.call('add', 1, 2, timeout=SECONDS) == 3


# Errors


def test_an_exception_becomes_an_error_without_its_traceback(pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    world = pair()
    log = Log()
    world.server.on('error', lambda *arguments: log('error', *arguments))

    @world.server.method
    def divide(dividend: float, divisor: float) -> float:
        return dividend / divisor

    client = world.start().connect()
    with caplog.at_level(logging.CRITICAL + 1, 'nodeipc'):
        error = refusal(lambda: client.call('divide', 1, 0, timeout=SECONDS))
    assert (error.code, error.message, error.data) == (-32000, 'ZeroDivisionError: division by zero', None)
    assert str(error) == 'ZeroDivisionError: division by zero [-32000]'
    ((reported, socket),) = log.wait('error')
    assert isinstance(reported, ZeroDivisionError)
    assert socket in world.server.sockets
    assert client.call('divide', 1, 2, timeout=SECONDS) == 0.5


def test_the_traceback_of_a_method_is_in_the_log_of_its_own_side(pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    world = pair()

    @world.server.method
    def fail_in_some_way() -> None:
        raise ValueError('in some way')

    client = world.start().connect()
    refusal(lambda: client.call('fail_in_some_way', timeout=SECONDS))
    assert eventually(lambda: [record for record in caplog.records if record.levelno >= logging.ERROR])
    assert 'fail_in_some_way' in caplog.text
    assert 'Traceback' in caplog.text
    assert world.server.stats()['errors'] == 1


@pytest.mark.parametrize('raised', [SystemExit(3), KeyboardInterrupt(), RecursionError('x')], ids=repr)
@unix_only
def test_nothing_that_a_method_raises_ends_more_than_its_call(pair: Any, raised: BaseException) -> None:
    world = calculator(pair())

    @world.server.method
    def fail() -> None:
        raise raised

    client = world.connect()
    for _ in range(3):
        assert refusal(lambda: client.call('fail', timeout=SECONDS)).code == -32000
    assert client.call('add', 1, 2, timeout=SECONDS) == 3


def test_a_remote_error_passes_through(pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    world = pair()
    log = Log()

    @world.server.method
    def refuse(*, socket: Any) -> None:
        raise RemoteError(17, 'not today', {'tomorrow': [1, None]})

    @world.server.method
    def ask_back(*, socket: nodeipc.Socket) -> Any:
        return socket.call('refuse too', timeout=SECONDS)

    client = world.start().connect(log)

    @client.method('refuse too')
    def refuse_too() -> None:
        raise RemoteError(18, 'neither')

    error = refusal(lambda: client.call('refuse', timeout=SECONDS))
    assert (error.code, error.message, error.data) == (17, 'not today', {'tomorrow': [1, None]})
    error = refusal(lambda: client.call('ask_back', timeout=SECONDS))
    assert (error.code, error.message, error.data) == (18, 'neither', None)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not log.of('error')


def test_unknown_methods_and_params_that_do_not_fit(pair: Any) -> None:
    client = calculator(pair()).connect()
    error = refusal(lambda: client.call('subtract', 1, 2, timeout=SECONDS))
    assert error.code == -32601
    assert 'subtract' in error.message
    for call in (
        lambda: client.call('add', timeout=SECONDS),
        lambda: client.call('add', 1, 2, 3, timeout=SECONDS),
        lambda: client.call('add', augend=1, subtrahend=2, timeout=SECONDS),
    ):
        assert refusal(call).code == -32602


@pytest.mark.parametrize('value', [{1}, b'bytes', float('nan'), 'x' * 100_000], ids=['set', 'bytes', 'nan', 'too large'])
def test_a_result_that_cannot_be_sent_is_an_error_and_not_lost(
    pair: Any, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world = calculator(pair(max_message_size=10_000))
    log = Log()
    world.server.on('error', lambda *arguments: log('error', *arguments))
    world.server.method('result')(lambda: value)

    @world.server.method
    def data() -> None:
        raise RemoteError(17, 'refused', value)

    client = world.connect()
    error = refusal(lambda: client.call('result', timeout=SECONDS))
    assert (error.code, error.data) == (-32603, None)
    assert 'cannot be sent' in error.message
    log.wait('error')  # a defect of the server, which should know
    error = refusal(lambda: client.call('data', timeout=SECONDS))
    assert (error.code, error.message, error.data) == (17, 'refused', None)
    assert client.call('add', 1, 2, timeout=SECONDS) == 3


def test_a_malformed_error_is_raised_and_says_so(pair: Any) -> None:
    world = pair()
    world.server.on('rpc', lambda request, socket: socket.emit('rpc', {'error': request['method'], 'id': request['id']}))
    client = world.start().connect()
    assert 'malformed' in refusal(lambda: client.call('nonsense', timeout=SECONDS)).message


# Timeouts and lost connections


def test_a_timeout_leaves_nothing_behind_and_late_answers_are_ignored(pair: Any) -> None:
    world = calculator(pair())
    gate = threading.Event()

    @world.server.method
    def late() -> str:
        gate.wait(SECONDS)
        return 'late'

    client = world.connect()
    assert client.call('add', 1, 2, timeout=SECONDS) == 3
    for _ in range(3):
        with pytest.raises(RequestTimeout) as caught:
            client.call('late', timeout=MOMENT)
        assert isinstance(caught.value, TimeoutError)
        assert 'late' in str(caught.value)
        assert str(MOMENT) in str(caught.value)
    del caught
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Waiter)]
    gate.set()
    assert client.call('add', 3, 4, timeout=SECONDS) == 7


def test_a_call_that_cannot_be_sent_in_time_is_not_sent(make: Any) -> None:
    client = make().connect_to('world')
    with pytest.raises(EmitTimeout):
        client.call('add', 1, 2, timeout=MOMENT)
    with pytest.raises(EmitTimeout):
        client.call('add', 1, 2, timeout=0)
    calls: List[Any] = []
    server = make().serve()
    server.on('rpc', lambda data, socket: calls.append(data))
    server.method('ping')(lambda: 'pong')
    server.start()
    assert client.call('ping', timeout=SECONDS) == 'pong'
    assert len(calls) <= 1


def test_a_lost_connection_ends_a_call_at_once_and_the_next_one_is_called_again(pair: Any) -> None:
    world = calculator(pair())

    @world.server.method
    def hang_up(*, socket: nodeipc.Socket) -> None:
        socket.close()
        eventually(lambda: not socket.connected)  # or it may be answered still

    client = world.connect()
    with pytest.raises(NotConnectedError, match='closed the connection'):
        client.call('hang_up', timeout=SECONDS)
    assert client.call('add', 1, 2, timeout=SECONDS) == 3


@pytest.mark.parametrize('how', ['stop', 'disconnect'])
def test_calls_end_when_either_end_does(pair: Any, transport: str, how: str) -> None:
    world = pair()
    called = threading.Semaphore(0)
    gate = threading.Event()

    @world.server.method
    def wait() -> None:
        called.release()
        gate.wait(SECONDS)

    client = world.start().connect(retry=60_000)
    failures: List[Exception] = []

    def call() -> None:
        try:
            client.call('wait', timeout=SECONDS)
        except NotConnectedError as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert called.acquire(timeout=SECONDS)
    eventually(lambda: world.server.stats()['messages_in'] == 3)
    if how == 'stop':
        world.server.stop(MOMENT)
    else:
        client.disconnect(MOMENT)
    for thread in threads:
        thread.join(SECONDS)
    gate.set()
    assert len(failures) == 3
    if how == 'disconnect':
        with pytest.raises(NotConnectedError):
            client.call('wait', timeout=SECONDS)


# Calls of servers


@pytest.mark.parametrize('workers', [0, 1, 4])
def test_a_server_calls_back_the_client_that_is_calling_it(pair: Any, transport: str, workers: int) -> None:
    world = pair(workers=workers)

    @world.server.method
    def greet(*, socket: nodeipc.Socket) -> Any:
        return f'hello {socket.call("name", timeout=SECONDS)}'

    client = world.start().connect(workers=workers)
    client.method('name')(lambda: 'world')
    for _ in range(3):
        assert client.call('greet', timeout=SECONDS) == 'hello world'


def test_a_server_calls_and_notifies_its_clients(pair: Any) -> None:
    world = pair().start()
    clients = [world.connect() for _ in range(3)]
    noted: List[Any] = []
    for number, client in enumerate(clients):
        client.wait_connected(SECONDS)
        client.method('number')(lambda plus=0, number=number: number + plus)
        client.method('note')(noted.append)
    eventually(lambda: len(world.server.sockets) == 3)
    assert sorted(socket.call('number', timeout=SECONDS) for socket in world.server.sockets) == [0, 1, 2]
    assert sorted(socket.call('number', plus=5, timeout=SECONDS) for socket in world.server.sockets) == [5, 6, 7]
    assert refusal(lambda: world.server.sockets[0].call('unknown', timeout=SECONDS)).code == -32601
    for socket in world.server.sockets:
        socket.notify('note', 'noted')
    eventually(lambda: noted == ['noted'] * 3)


def test_a_client_that_leaves_ends_the_calls_of_the_server(pair: Any) -> None:
    world = pair().start()
    client = world.connect()
    client.wait_connected(SECONDS)
    client.method('leave')(lambda: client.disconnect())
    (socket,) = eventually(lambda: world.server.sockets)
    with pytest.raises(NotConnectedError):
        socket.call('leave', timeout=SECONDS)
    with pytest.raises(NotConnectedError):
        socket.call('leave', timeout=SECONDS)


def test_a_method_of_a_client_that_fails_is_reported_there(pair: Any, caplog: pytest.LogCaptureFixture) -> None:
    world = pair().start()
    log = Log()
    client = world.connect(log)
    client.wait_connected(SECONDS)

    @client.method
    def fail() -> None:
        raise KeyError('key')

    (socket,) = eventually(lambda: world.server.sockets)
    error = refusal(lambda: socket.call('fail', timeout=SECONDS))
    assert (error.code, error.message, error.data) == (-32000, "KeyError: 'key'", None)
    ((reported,),) = log.wait('error')
    assert isinstance(reported, KeyError)


def test_ids_of_the_two_directions_do_not_meet(pair: Any) -> None:
    # Both count their calls from the same number, and each answers as many as it makes.
    world = pair()
    world.server.method('of server')(lambda number: -number)
    client = world.start().connect()
    client.method('of client')(lambda number: 2 * number)
    client.wait_connected(SECONDS)
    (socket,) = eventually(lambda: world.server.sockets)

    def call(number: int) -> List[Any]:
        if number % 2:
            return [socket.call('of client', turn, timeout=SECONDS) for turn in range(30)]
        return [client.call('of server', turn, timeout=SECONDS) for turn in range(30)]

    expected = [[-turn for turn in range(30)], [2 * turn for turn in range(30)]]
    assert in_threads(4, call) == expected * 2


def test_a_late_answer_is_not_taken_for_that_of_a_call_on_the_next_connection(pair: Any) -> None:
    world = pair()
    answers: List[Any] = []
    world.server.on('rpc', lambda data, socket: answers.append((socket, data['result'])))
    world.start()
    client = world.connect()
    gate, called = threading.Event(), threading.Event()

    @client.method
    def slow() -> str:
        called.set()
        gate.wait(SECONDS)
        return 'slow'

    client.method('fast')(lambda: 'fast')
    client.wait_connected(SECONDS)
    (first,) = eventually(lambda: world.server.sockets)

    def call_slow() -> None:
        with pytest.raises(NotConnectedError):
            first.call('slow', timeout=SECONDS)

    calling = threading.Thread(target=call_slow)
    calling.start()
    assert called.wait(SECONDS)
    first.close()
    calling.join(SECONDS)
    (second,) = eventually(lambda: [socket for socket in world.server.sockets if socket is not first])
    waiting = threading.Timer(MOMENT, gate.set)  # while this waits, or before: both must be well
    waiting.start()
    assert second.call('fast', timeout=SECONDS) == 'fast'
    waiting.join(SECONDS)
    assert eventually(lambda: answers) == [(second, 'fast')]  # nor does it bother anybody


# Peers without methods, and applications with handlers of their own


@unix_only
def test_who_has_no_methods_says_so(pair: Any) -> None:
    world = pair().start()
    client = world.connect()
    assert refusal(lambda: client.call('add', 1, 2, timeout=SECONDS)).code == -32601
    client.notify('add', 1, 2)
    (socket,) = world.server.sockets
    assert refusal(lambda: socket.call('add', 1, 2, timeout=SECONDS)).code == -32601
    with Plain(world.raw()) as plain:
        plain.send('hello', {}, [], None, {'jsonrpc': '2.0', 'method': 'x'}, {'jsonrpc': '2.0', 'result': 1, 'id': 1})
        plain.send([call_of('x', id=1), call_of('y', id='2')])  # the first that is JSON-RPC for sure
        assert [(answer['id'], answer['error']['code']) for answer in plain.receive()] == [(1, -32601), ('2', -32601)]


@unix_only
def test_who_handles_rpc_events_without_methods_has_them_for_itself(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('rpc', lambda data, socket: log('rpc', data))
    world.start()
    with Plain(world.raw()) as plain:
        plain.send(call_of('x'), 'hello', call_of('y'))
        assert log.wait('rpc', 3) == [(call_of('x'),), ('hello',), (call_of('y'),)]
        (socket,) = world.server.sockets
        socket.emit('rpc', 'first')
        assert plain.receive() == 'first'
    client = world.connect()
    with pytest.raises(RequestTimeout):
        client.call('add', 1, 2, timeout=MOMENT)


@unix_only
def test_a_peer_that_echoes_is_no_endless_conversation(pair: Any) -> None:
    world = pair()
    world.server.on('rpc', lambda data, socket: socket.emit('rpc', data))
    client = world.start().connect()
    assert refusal(lambda: client.call('ping', timeout=SECONDS)).code == -32601
    client.method('ping')(lambda: 'pong')
    assert client.call('ping', timeout=SECONDS) == 'pong'
    client.notify('ping')
    client.emit('rpc', 'nonsense')
    assert client.call('ping', timeout=SECONDS) == 'pong'
    eventually(lambda: client.stats()['messages_in'] == client.stats()['messages_out'])
    assert client.stats()['messages_in'] <= 9  # call, answer; call, answer; notification; nonsense, error; call, answer


# As it is on the wire


@unix_only
def test_batches_are_answered_as_the_specification_says(pair: Any) -> None:
    world = calculator(pair())
    noted: List[Any] = []
    world.server.method('note')(noted.append)
    with Plain(world.raw()) as plain:
        note = {'jsonrpc': '2.0', 'method': 'note', 'params': [1]}
        plain.send([call_of('add', 1, 2, id='a'), note, 5, call_of('x', id=2)])
        added, invalid, unknown = plain.receive()
        assert added == {'jsonrpc': '2.0', 'result': 3, 'id': 'a'}
        assert (invalid['error']['code'], invalid['id']) == (-32600, None)
        assert (unknown['error']['code'], unknown['id']) == (-32601, 2)
        plain.send([{**note, 'params': [2]}], [], [call_of('add', 3, 4, id=None)])
        empty = plain.receive()
        assert (empty['error']['code'], empty['id']) == (-32600, None)
        assert plain.receive() == [{'jsonrpc': '2.0', 'result': 7, 'id': None}]
    assert noted == [1, 2]


@unix_only
def test_nonsense_is_answered_and_the_connection_stays(pair: Any) -> None:
    world = calculator(pair())
    with Plain(world.raw()) as plain:
        for nonsense in (
            None, 'add', 5, {}, {'jsonrpc': '2.0', 'method': {}, 'id': [1]}, {'method': 'add', 'id': 7},
            {'jsonrpc': '2.0', 'method': 'add', 'params': 'x'}, {'jsonrpc': '2.0', 'method': 'add', 'id': {}},
        ):
            plain.send(nonsense)
            assert plain.receive()['error']['code'] == -32600
        plain.sock.sendall(b'{"type":"rpc","data":{"jsonrpc":"2.0","method":"add","params":[1],"id":1e999}}\f')
        assert plain.receive()['error']['code'] == -32600
        plain.send(call_of('add', 1, 2, id=1.5))
        assert plain.receive() == {'jsonrpc': '2.0', 'result': 3, 'id': 1.5}


@unix_only
def test_results_of_a_batch_that_can_be_sent_are(pair: Any) -> None:
    world = calculator(pair(max_message_size=10_000))
    world.server.method('set')(lambda: {1})
    world.server.method('large')(lambda: 'x' * 5000)
    with Plain(world.raw()) as plain:
        plain.send([call_of('add', 1, 2), call_of('set', id=2)])
        added, failed = plain.receive()
        assert added == {'jsonrpc': '2.0', 'result': 3, 'id': 1}
        assert failed['error']['code'] == -32603
        plain.send([call_of('large', id=1), call_of('large', id=2)])
        assert [(answer['error']['code'], answer['id']) for answer in plain.receive()] == [(-32603, 1), (-32603, 2)]


@unix_only
def test_a_call_is_what_the_specification_says(make: Any, pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('rpc', lambda data, socket: log('rpc', data))
    client = world.start().connect()
    client.notify('plain')
    client.notify('positional', 1, [2])
    client.notify('named', a=1)
    with pytest.raises(RequestTimeout):
        client.call('call', timeout=MOMENT)
    *notifications, (call,) = log.wait('rpc', 4)
    assert notifications == [
        ({'jsonrpc': '2.0', 'method': 'plain'},),
        ({'jsonrpc': '2.0', 'method': 'positional', 'params': [1, [2]]},),
        ({'jsonrpc': '2.0', 'method': 'named', 'params': {'a': 1}},),
    ]
    assert call == {'jsonrpc': '2.0', 'method': 'call', 'id': call['id']}
    assert isinstance(call['id'], int)


# Settings


@pytest.mark.parametrize('parser', ['fast', 'guarded', 'assured'])
@unix_only
def test_every_profile_carries_calls(pair: Any, parser: str) -> None:
    world = calculator(pair(parser=parser, allowed_events=['rpc']))
    client = world.connect(parser=parser, allowed_events=['rpc'])
    client.method('name')(lambda: 'world')
    assert client.call('add', 1, 2, timeout=SECONDS) == 3
    (socket,) = world.server.sockets
    assert socket.call('name', timeout=SECONDS) == 'world'


@unix_only
def test_assured_carries_no_calls_unless_they_are_allowed(pair: Any) -> None:
    world = calculator(pair(parser='assured', allowed_events=['message']))
    client = world.connect(parser='assured', allowed_events=['message'])
    for function in (client.call, client.notify):
        with pytest.raises(ProtocolError, match="'rpc'.*allowed_events") as caught:
            function('add', 1, 2)
        assert caught.value.code == 'ERR_IPC_EVENT_NOT_ALLOWED'
    careless = world.connect(parser='guarded')
    with pytest.raises(NotConnectedError):
        careless.call('add', 1, 2, timeout=SECONDS)


def test_calls_over_tls(make: Any, certificates: Certificates) -> None:
    server = make(tls=certificates.mutual('server')).serve_net('127.0.0.1', 0)
    server.method('who')(lambda *, socket: sorted(socket.certificate)[:1] != [])
    server.start()
    client = make(tls=certificates.mutual('client')).connect_to_net('world', *server.address)
    assert client.call('who', timeout=SECONDS) is True


@unix_only
def test_a_sync_client_can_call(pair: Any) -> None:
    client = calculator(pair()).connect(sync=True)
    assert in_threads(4, lambda number: client.call('add', number, timeout=SECONDS)) == [1, 2, 3, 4]


@unix_only
def test_a_sync_client_answers_a_call_while_it_waits_for_an_answer(pair: Any) -> None:
    world = pair().start()
    client = world.connect(sync=True)
    client.method('name')(lambda: 'world')
    client.emit('message', 'never answered')
    (socket,) = eventually(lambda: world.server.sockets)
    eventually(lambda: world.server.stats()['messages_in'])
    assert [socket.call('name', timeout=SECONDS) for _ in range(3)] == ['world'] * 3


def test_calls_over_udp(make: Any) -> None:
    ends: Dict[str, nodeipc.Server] = {}
    for name in ('world', 'hello'):
        ends[name] = make(id=name).serve_net(0, 'udp4')
        ends[name].method('add')(lambda augend, addend: augend + addend)
        ends[name].start()
    # Each other's peers they are as soon as one has said something.
    ends['hello'].emit(ends['world'].address, 'message', 'hello')
    (peer,) = eventually(lambda: ends['world'].sockets)
    assert peer.call('add', 1, 2, timeout=SECONDS) == 3
    (peer,) = ends['hello'].sockets
    assert peer.call('add', augend=3, addend=4, timeout=SECONDS) == 7
    assert refusal(lambda: peer.call('subtract', timeout=SECONDS)).code == -32601
    ends['hello'].stop()
    (peer,) = ends['world'].sockets
    with pytest.raises(RequestTimeout):
        peer.call('add', 1, 2, timeout=MOMENT)


def test_a_udp_datagram_may_be_a_call(make: Any) -> None:
    import socket

    server = make().serve_net(0, 'udp4')
    server.method('add')(lambda augend, addend: augend + addend)
    server.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        plain.settimeout(SECONDS)
        plain.sendto(json.dumps({'type': 'rpc', 'data': call_of('add', 1, 2)}).encode() + b'\f', server.address)
        assert json.loads(plain.recv(1000)[:-1])['data'] == {'jsonrpc': '2.0', 'result': 3, 'id': 1}


# Interplay


@pytest.mark.parametrize('workers', [0, 1])
@unix_only
def test_a_handler_may_call(pair: Any, workers: int) -> None:
    world = calculator(pair())
    log = Log()

    def ready(client: nodeipc.Client) -> None:
        client.on('connect', lambda: log('sum', client.call('add', 1, 2, timeout=SECONDS)))

    ipc = world.make(id='client', workers=workers)
    ipc.connect_to('world', world.server.address, ready)
    assert log.wait('sum') == [(3,)]


@unix_only
def test_an_answer_does_not_wait_for_handlers(pair: Any) -> None:
    world = calculator(pair())
    gate = threading.Event()
    client = world.connect()
    client.on('news', lambda data: gate.wait(SECONDS))
    client.wait_connected(SECONDS)
    (socket,) = eventually(lambda: world.server.sockets)
    socket.emit('news', 1)
    assert client.call('add', 1, 2, timeout=SECONDS) == 3
    gate.set()


@unix_only
def test_methods_of_different_clients_run_at_the_same_time(pair: Any) -> None:
    world = pair(workers=4)
    together = threading.Barrier(3)
    world.server.method('meet')(lambda: together.wait(SECONDS) >= 0)
    world.start()
    clients = [world.connect() for _ in range(3)]
    assert in_threads(3, lambda number: clients[number].call('meet', timeout=SECONDS)) == [True] * 3


@unix_only
def test_a_method_may_end_its_own_connection_or_server(pair: Any) -> None:
    world = pair()
    world.server.method('stop')(lambda: world.server.stop())
    client = world.start().connect(stop_retrying=True)
    outcome: Optional[Exception] = None
    try:
        client.call('stop', timeout=SECONDS)
    except NotConnectedError as error:  # no answer can be sent any more
        outcome = error
    assert outcome is not None or not world.server.listening
    eventually(lambda: not world.server.listening)
