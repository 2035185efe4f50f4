"""JSON-RPC 2.0 without a socket: what a peer sent in, what it is answered out."""

from __future__ import annotations

import functools
import json
import math
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest

from nodeipc.errors import RemoteError
from nodeipc.rpc import NOTHING, Methods, is_request, request, responses, result, unsendable

SOCKET = object()


def methods(**functions: Callable[..., Any]) -> Methods:
    made = Methods()
    for name, function in functions.items():
        made.add(name, function)
    return made


def answer(methods: Methods, data: Any) -> Any:
    """The answer, of methods that have no defects."""

    def failed(error: BaseException) -> None:
        raise AssertionError('no method should have failed') from error

    return methods.answer(data, SOCKET, failed)


def call(methods: Methods, method: str, *params: Any, **named: Any) -> Any:
    """The result, or ``[code, message]`` of the error, of a call."""
    failed: List[BaseException] = []
    answer = methods.answer(request(method, params, named, 1), SOCKET, failed.append)
    assert (answer['jsonrpc'], answer['id'], len(answer)) == ('2.0', 1, 3)
    if 'error' not in answer:
        return answer['result']
    assert set(answer['error']) == {'code', 'message'}
    return [answer['error']['code'], answer['error']['message']]


def error(code: int, id: Any = None) -> Dict[str, Any]:
    """A response in the table below: any message that begins as the specification's does."""
    return {'jsonrpc': '2.0', 'error': {'code': code, 'message': MESSAGES[code]}, 'id': id}


MESSAGES = {
    -32600: 'Invalid Request', -32601: 'Method not found', -32602: 'Invalid params', -32603: 'Internal error',
}


def with_plain_messages(response: Any) -> Any:
    """`response`, with what our error messages say beyond the specification's words left out."""
    if isinstance(response, list):
        return [with_plain_messages(member) for member in response]
    if response is NOTHING or 'error' not in response:
        return response
    message = MESSAGES[response['error']['code']]
    assert response['error']['message'].startswith(message)
    return {**response, 'error': {**response['error'], 'message': message}}


# The examples of section 7 of the specification, but for the two of malformed JSON, which is no event.
EXAMPLES: List[Tuple[str, Any]] = [
    ('{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}', {'jsonrpc': '2.0', 'result': 19, 'id': 1}),
    ('{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}', {'jsonrpc': '2.0', 'result': -19, 'id': 2}),
    (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        {'jsonrpc': '2.0', 'result': 19, 'id': 3},
    ),
    (
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        {'jsonrpc': '2.0', 'result': 19, 'id': 4},
    ),
    ('{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', NOTHING),
    ('{"jsonrpc": "2.0", "method": "foobar"}', NOTHING),
    ('{"jsonrpc": "2.0", "method": "foobar", "id": "1"}', error(-32601, '1')),
    ('{"jsonrpc": "2.0", "method": 1, "params": "bar"}', error(-32600)),
    ('[]', error(-32600)),
    ('[1]', [error(-32600)]),
    ('[1,2,3]', [error(-32600), error(-32600), error(-32600)]),
    (
        """[
        {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
        {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
        {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
        ]""",
        [
            {'jsonrpc': '2.0', 'result': 7, 'id': '1'},
            {'jsonrpc': '2.0', 'result': 19, 'id': '2'},
            error(-32600),
            error(-32601, '5'),
            {'jsonrpc': '2.0', 'result': ['hello', 5], 'id': '9'},
        ],
    ),
    (
        """[
        {"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}
        ]""",
        NOTHING,
    ),
]


@pytest.mark.parametrize(('sent', 'expected'), EXAMPLES, ids=[str(number) for number in range(len(EXAMPLES))])
def test_the_examples_of_the_specification(sent: str, expected: Any) -> None:
    notified: List[Any] = []
    served = methods(
        subtract=lambda minuend, subtrahend: minuend - subtrahend,
        sum=lambda *numbers: sum(numbers),
        get_data=lambda: ['hello', 5],
        update=lambda *values: notified.append(values),
        notify_hello=lambda value: notified.append(value),
        notify_sum=lambda *values: notified.append(values),
    )
    assert with_plain_messages(answer(served, json.loads(sent))) == expected
    if sent.startswith('[') and len(sent) > 10:
        assert notified[-1] == 7
    elif 'update' in sent:
        assert notified == [(1, 2, 3, 4, 5)]


# Requests


@pytest.mark.parametrize('id', [0, 1, -7, 1.5, 1e300, '', 'x', '\ud800', '7' * 1000, None])
def test_an_answer_has_the_id_of_its_call(id: Any) -> None:
    answered = answer(methods(ping=lambda: 'pong'), {'jsonrpc': '2.0', 'method': 'ping', 'id': id})
    assert answered == {'jsonrpc': '2.0', 'result': 'pong', 'id': id}
    assert type(answered['id']) is type(id)


@pytest.mark.parametrize(
    'data',
    [
        {},
        None,
        'ping',
        1,
        True,
        {'method': 'ping'},
        {'method': 'ping', 'id': 1},
        {'jsonrpc': '1.0', 'method': 'ping', 'id': 1},
        {'jsonrpc': 2.0, 'method': 'ping', 'id': 1},
        {'jsonrpc': '2.0', 'id': 1},
        {'jsonrpc': '2.0', 'method': None, 'id': 1},
        {'jsonrpc': '2.0', 'method': ['ping'], 'id': 1},
        {'jsonrpc': '2.0', 'method': {}, 'id': 1},
        {'jsonrpc': '2.0', 'method': 'ping', 'params': None, 'id': 1},
        {'jsonrpc': '2.0', 'method': 'ping', 'params': 'all', 'id': 1},
        {'jsonrpc': '2.0', 'method': 'ping', 'params': 5, 'id': 1},
        {'jsonrpc': '2.0', 'method': 'ping', 'params': 5},
        {'jsonrpc': '2.0', 'method': 'ping', 'id': {}},
        {'jsonrpc': '2.0', 'method': 'ping', 'id': [1]},
        {'jsonrpc': '2.0', 'method': 'ping', 'id': True},
        {'jsonrpc': '2.0', 'method': 'ping', 'id': math.inf},  # 1e999
    ],
    ids=lambda data: ascii(data)[:60],
)
def test_what_is_no_request_is_refused_and_not_run(data: Any) -> None:
    def ping(*params: Any) -> None:
        raise AssertionError('was run')

    refused = answer(methods(ping=ping), data)
    # With its id if it has one and is evidently a call; what has no method may come with an id of ours.
    evident = isinstance(data, dict) and 'method' in data and type(data.get('id')) is int
    assert with_plain_messages(refused) == error(-32600, data['id'] if evident else None)
    assert not is_request(data)


@pytest.mark.parametrize(
    'data',
    [
        {'jsonrpc': '2.0', 'result': 19, 'id': 1},
        {'jsonrpc': '2.0', 'result': None, 'id': 1},
        {'jsonrpc': '2.0', 'error': {'code': -32600, 'message': 'Invalid Request'}, 'id': None},
        {'result': 19, 'error': None, 'id': 1},
        {'error': 'malformed'},
        [{'jsonrpc': '2.0', 'result': 19, 'id': 1}, {'jsonrpc': '2.0', 'result': 20, 'id': 2}],
    ],
    ids=ascii,
)
def test_responses_are_not_answered(data: Any) -> None:
    assert answer(methods(ping=lambda: 'pong'), data) is NOTHING
    assert not is_request(data)


def test_notifications_are_run_and_never_answered() -> None:
    ran: List[Any] = []
    failed: List[BaseException] = []

    def fail() -> None:
        raise ValueError('unheard')

    def refuse() -> None:
        raise RemoteError(1, 'unheard')

    served = methods(note=ran.append, fail=fail, refuse=refuse, unsendable=lambda: {1})
    for notification in (
        request('note', [1], {}, None), request('note', [1, 2], {}, None), request('fail', [], {}, None),
        request('refuse', [], {}, None), request('unknown', [], {}, None), request('unsendable', [], {}, None),
    ):
        assert served.answer(notification, SOCKET, failed.append) is NOTHING
        assert served.answer([notification], SOCKET, failed.append) is NOTHING
    assert ran == [1, 1]
    assert [str(error) for error in failed] == ['unheard', 'unheard']


def test_the_calls_of_a_batch_are_run_in_order_and_a_failed_one_stops_none() -> None:
    ran: List[int] = []

    def half(number: int) -> float:
        ran.append(number)
        return 1 / number

    batch = [request('half', [number], {}, number) for number in (2, 0, 4)]
    failed: List[BaseException] = []
    answered = methods(half=half).answer(batch, SOCKET, failed.append)
    assert ran == [2, 0, 4]
    assert [response['id'] for response in answered] == [2, 0, 4]
    assert [response.get('result') for response in answered] == [0.5, None, 0.25]
    assert [type(error) for error in failed] == [ZeroDivisionError]


def test_calls_of_a_batch_with_the_same_id_are_all_answered() -> None:
    batch = [request('ping', [], {}, 1)] * 3
    assert answer(methods(ping=lambda: 0), batch) == [{'jsonrpc': '2.0', 'result': 0, 'id': 1}] * 3


def test_batches_have_a_limit_that_keeps_their_answers_small() -> None:
    most = answer(methods(ping=lambda: 0), [1] * 65536)
    assert len(most) == 65536
    assert len({id(member) for member in most}) == 1  # and no object for each
    refused = answer(methods(ping=lambda: 0), [1] * 65537)
    assert with_plain_messages(refused) == error(-32600)
    assert '65536' in refused['error']['message']


def test_errors_show_no_more_of_a_name_than_a_reader_needs() -> None:
    for name in ('x' * 100_000, '\0' * 100_000, '\U0001f600' * 1000):
        code, message = call(methods(), name)
        assert code == -32601
        assert len(message) < 200
        assert '...' in message


# Params


def both(first: int, second: int = 2) -> List[int]:
    return [first, second]


def named_only(*, first: int, second: int = 2) -> List[int]:
    return [first, second]


def whatever(*positional: Any, **named: Any) -> List[Any]:
    return [list(positional), named]


class Calculator:
    def __init__(self, base: int) -> None:
        self.base = base

    def __call__(self, number: int) -> int:
        return self.base + number

    def add(self, number: int) -> int:
        return self.base + number


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*positional: Any, **named: Any) -> Any:
        return function(*positional, **named)

    return wrapper


@pytest.mark.parametrize(
    ('function', 'params', 'named', 'expected'),
    [
        (both, (1,), {}, [1, 2]),
        (both, (1, 3), {}, [1, 3]),
        (both, (), {'second': 3, 'first': 1}, [1, 3]),
        (named_only, (), {'first': 1}, [1, 2]),
        (whatever, (1, 2), {}, [[1, 2], {}]),
        (whatever, (), {'self': 1, 'socket': 2, 'params': 3, 'function': 4}, [
            [], {'self': 1, 'socket': 2, 'params': 3, 'function': 4}
        ]),
        (Calculator(1), (2,), {}, 3),
        (Calculator(1).add, (), {'number': 2}, 3),
        (functools.partial(both, second=5), (1,), {}, [1, 5]),
        (decorated(both), (1,), {}, [1, 2]),
        (len, ('four',), {}, 4),
        (max, (1, 3, 2), {}, 3),  # which does not tell its signature, in most versions
        (sorted, ([2, 1],), {}, [1, 2]),
        (lambda: None, (), {}, None),
    ],
)
def test_params_are_passed_on(function: Any, params: Any, named: Any, expected: Any) -> None:
    assert call(methods(method=function), 'method', *params, **named) == expected


@pytest.mark.parametrize(
    ('function', 'params', 'named'),
    [
        (both, (), {}),
        (both, (1, 2, 3), {}),
        (both, (), {'second': 1}),
        (both, (), {'first': 1, 'third': 1}),
        (named_only, (1,), {}),
        (named_only, (), {}),
        (Calculator(1), (), {}),
        (Calculator(1).add, (), {'number': 1, 'self': 1}),
        (decorated(both), (1, 2, 3), {}),
        (len, (), {}),
        (max, (), {}),
    ],
)
def test_params_that_do_not_fit_are_told_from_defects(function: Any, params: Any, named: Any) -> None:
    code, message = call(methods(method=function), 'method', *params, **named)
    assert code == -32602
    assert len(message) > len('Invalid params: ')
    assert 'Calculator' not in message


def test_a_type_error_inside_a_method_is_no_misfit_of_params() -> None:
    def method(number: Any) -> Any:
        return both(1, 2, 3, number)  # type: ignore[call-arg]

    code, message = call(methods(method=method), 'method', 1)
    assert code == -32000
    assert message.startswith('TypeError: ')


def test_the_socket_is_given_to_whom_wants_it_and_cannot_be_set() -> None:
    def who(number: int = 0, *, socket: Any) -> int:
        assert socket is SOCKET
        return number

    def keeps(*, socket: Any, **named: Any) -> Any:
        assert socket is SOCKET
        return named

    def plain(socket: Any) -> Any:
        return socket

    served = methods(who=who, keeps=keeps, plain=plain)
    assert call(served, 'who') == 0
    assert call(served, 'who', 1) == 1
    assert call(served, 'who', number=2) == 2
    assert call(served, 'who', 1, 2)[0] == -32602
    assert call(served, 'who', socket=1) == [-32602, "Invalid params: got an unexpected keyword argument 'socket'"]
    assert call(served, 'keeps', a=1) == {'a': 1}
    assert call(served, 'keeps', socket=1)[0] == -32602
    assert call(served, 'plain', 1) == 1
    assert call(served, 'plain', socket=1) == 1


def test_a_defaulted_socket_is_not_what_a_caller_can_set() -> None:
    def who(*, socket: Optional[Any] = None) -> bool:
        return socket is SOCKET

    assert call(methods(who=who), 'who') is True
    assert call(methods(who=who), 'who', socket=1)[0] == -32602


# Methods that fail


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError('no text')


@pytest.mark.parametrize(
    ('raised', 'message'),
    [
        (ZeroDivisionError('division by zero'), 'ZeroDivisionError: division by zero'),
        (KeyError('name'), "KeyError: 'name'"),
        (ValueError(), 'ValueError'),
        (SystemExit(3), 'SystemExit: 3'),
        (KeyboardInterrupt(), 'KeyboardInterrupt'),
        (MemoryError(), 'MemoryError'),
        (RecursionError('too deep'), 'RecursionError: too deep'),
        (StopIteration('x'), 'StopIteration: x'),
        (Unprintable(), 'Unprintable'),
        (ValueError('x' * 100_000), f'{"ValueError: ":x<2000}...'),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_a_method_raises_is_told_without_its_traceback(raised: BaseException, message: str) -> None:
    def method() -> None:
        raise raised

    failed: List[BaseException] = []
    answered = methods(method=method).answer(request('method', [], {}, 1), SOCKET, failed.append)
    assert answered['error'] == {'code': -32000, 'message': message}
    assert failed == [raised]


def test_endless_recursion_ends_the_call_alone() -> None:
    def method() -> Any:
        return method()

    code, message = call(methods(method=method), 'method')
    assert code == -32000
    assert message.startswith('RecursionError')


@pytest.mark.parametrize(
    ('raised', 'sent'),
    [
        (RemoteError(17, 'refused'), {'code': 17, 'message': 'refused'}),
        (RemoteError(-1, 'refused', {'why': [1]}), {'code': -1, 'message': 'refused', 'data': {'why': [1]}}),
        (RemoteError(0, '', False), {'code': 0, 'message': '', 'data': False}),
        (RemoteError('E', 'refused'), {'code': -32000, 'message': 'refused'}),  # type: ignore[arg-type]
        (RemoteError(True, 'refused'), {'code': -32000, 'message': 'refused'}),
        (RemoteError(10 ** 5000, 'refused'), {'code': -32000, 'message': 'refused'}),
        (RemoteError(1, ValueError('refused')), {'code': 1, 'message': 'refused'}),  # type: ignore[arg-type]
    ],
)
def test_a_remote_error_is_sent_as_it_is(raised: RemoteError, sent: Any) -> None:
    def method() -> None:
        raise raised

    assert answer(methods(method=method), request('method', [], {}, 1)) == {'jsonrpc': '2.0', 'error': sent, 'id': 1}
    json.dumps(sent)


class Codeless(RemoteError):
    def __init__(self) -> None:
        pass


def test_a_defect_beyond_a_method_is_an_internal_error_of_that_call_alone() -> None:
    def codeless() -> None:
        raise Codeless

    def fail() -> None:
        raise ValueError

    def failed(error: BaseException) -> None:
        raise RuntimeError('so did what was to report it')

    served = methods(codeless=codeless, fail=fail, ping=lambda: 'pong')
    batch = [request(name, [], {}, number) for number, name in enumerate(['codeless', 'ping', 'fail'])]
    answered = served.answer(batch, SOCKET, failed)
    assert [response['id'] for response in answered] == [0, 1, 2]
    assert answered[1]['result'] == 'pong'
    assert answered[0]['error'] == answered[2]['error'] == {'code': -32603, 'message': 'Internal error'}


# Results that cannot be sent


def sent(response: Any) -> bool:
    try:
        json.dumps(response, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


@pytest.mark.parametrize('value', [{1, 2}, b'bytes', math.nan, object(), [[1, {2}]]], ids=ascii)
def test_a_result_that_cannot_be_sent_becomes_an_error(value: Any) -> None:
    answered = answer(methods(method=lambda: value), request('method', [], {}, 'a'))
    assert not sent(answered)
    replaced = unsendable(answered, TypeError("event 'rpc': JSON cannot carry the data"))
    assert replaced == {
        'jsonrpc': '2.0',
        'error': {
            'code': -32603,
            'message': "Internal error: the result cannot be sent: event 'rpc': JSON cannot carry the data",
        },
        'id': 'a',
    }


def test_an_error_whose_data_cannot_be_sent_is_sent_without() -> None:
    def method() -> None:
        raise RemoteError(17, 'refused', {1})

    answered = answer(methods(method=method), request('method', [], {}, 1))
    assert unsendable(answered, TypeError('a set')) == {
        'jsonrpc': '2.0', 'error': {'code': 17, 'message': 'refused'}, 'id': 1,
    }


def test_what_of_a_batch_can_be_sent_is_sent() -> None:
    served = methods(good=lambda: 'good', bad=lambda: {1}, worse=lambda: math.nan)
    batch = [request(name, [], {}, number) for number, name in enumerate(['good', 'bad', 'unknown', 'worse'])]
    replaced = unsendable(answer(served, batch), TypeError('a set'))
    assert sent(replaced)
    assert replaced[0]['result'] == 'good'
    assert [response.get('error', {}).get('code') for response in replaced] == [
        None, -32603, -32601, -32603,
    ]


def test_a_batch_of_results_that_is_too_large_becomes_one_of_errors() -> None:
    served = methods(large=lambda: 'x' * 1000)
    answered = answer(served, [request('large', [], {}, number) for number in range(3)])
    replaced = unsendable(answered, ValueError('more than max_message_size'))
    assert len(json.dumps(replaced)) < 600
    assert [response['id'] for response in replaced] == [0, 1, 2]
    assert all('max_message_size' in response['error']['message'] for response in replaced)


# Registering


def test_methods_are_counted_and_can_be_replaced() -> None:
    served = Methods()
    assert not served
    assert call(served, 'ping')[0] == -32601
    served.add('ping', lambda: 1)
    served.add('ping', lambda: 2)
    assert len(served) == 1
    assert bool(served)
    assert call(served, 'ping') == 2


async def coroutine() -> None: ...


async def asynchronous_generator() -> Any:
    yield 1


def generator() -> Any:
    yield 1


class Asynchronous:
    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    'function',
    [None, 1, 'text', coroutine, asynchronous_generator, generator, Asynchronous(), functools.partial(coroutine)],
    ids=ascii,
)
def test_what_cannot_be_a_method_is_refused_at_once(function: Any) -> None:
    with pytest.raises(TypeError, match='a method must'):
        Methods().add('method', function)


@pytest.mark.parametrize(
    ('name', 'refused'), [(None, TypeError), (1, TypeError), ('', ValueError), ('rpc.x', ValueError)]
)
def test_names_that_no_method_can_have(name: Any, refused: Any) -> None:
    with pytest.raises(refused, match='name'):
        Methods().add(name, lambda: None)


@pytest.mark.parametrize('name', ['rpc', 'rpc_', '__class__', '__init__', 'add', '*', ' ', 'a.b/c', '\0', 'connect'])
def test_methods_have_any_other_name_and_only_those_are_called(name: str) -> None:
    served = Methods()
    assert call(served, name)[0] == -32601
    served.add(name, lambda: 'called')
    assert call(served, name) == 'called'


# Calls


def test_calls_have_the_members_that_they_need() -> None:
    assert request('m', (), {}, 7) == {'jsonrpc': '2.0', 'method': 'm', 'id': 7}
    assert request('m', (1, 'x'), {}, 7) == {'jsonrpc': '2.0', 'method': 'm', 'params': [1, 'x'], 'id': 7}
    assert request('m', (), {'a': 1}, 0) == {'jsonrpc': '2.0', 'method': 'm', 'params': {'a': 1}, 'id': 0}
    assert request('m', (), {}, None) == {'jsonrpc': '2.0', 'method': 'm'}


def test_calls_that_json_rpc_does_not_have_are_refused() -> None:
    with pytest.raises(TypeError, match='not both'):
        request('m', (1,), {'a': 1}, 1)
    with pytest.raises(TypeError, match='must be a str'):
        request(1, (), {}, 1)  # type: ignore[arg-type]


def test_requests_are_told_from_other_data() -> None:
    assert is_request(request('m', (), {}, 1))
    assert is_request({'jsonrpc': '2.0', 'method': 'm', 'id': None})
    assert is_request([1, request('m', (), {}, None), request('m', (), {}, 1)])
    for other in (request('m', (), {}, None), [request('m', (), {}, None)], [], 'text', None, [[request('m', (), {}, 1)]]):
        assert not is_request(other)


# Responses


@pytest.mark.parametrize('id', [1, 1.0, 'x', 0])
def test_responses_are_found(id: Any) -> None:
    good = {'jsonrpc': '2.0', 'result': None, 'id': id}
    bad = {'jsonrpc': '2.0', 'error': {'code': 1, 'message': 'm'}, 'id': id}
    assert list(responses(good)) == [good]
    assert list(responses([good, 1, bad, request('m', (), {}, 1)])) == [good, bad]


@pytest.mark.parametrize(
    'data',
    [
        None, 1, 'text', {}, [], [[]], {'id': 1}, {'result': 1}, {'result': 1, 'id': None}, {'result': 1, 'id': True},
        {'result': 1, 'id': []}, {'result': 1, 'id': {}}, {'error': 1, 'id': False},
        {'jsonrpc': '2.0', 'method': 'm', 'result': 1, 'id': 1},
    ],
    ids=ascii,
)
def test_other_data_holds_no_responses_that_could_be_looked_up(data: Any) -> None:
    assert not responses(data)


def test_no_more_responses_are_looked_for_than_a_batch_may_have() -> None:
    good = {'jsonrpc': '2.0', 'result': 1, 'id': 1}
    assert len(responses([good] * 65536)) == 65536
    assert not responses([good] * 65537)


def test_results_are_returned() -> None:
    for value in (None, 0, False, [], {'error': 1}):
        assert result({'jsonrpc': '2.0', 'result': value, 'id': 1}, 'world') is value
        assert result({'result': value, 'error': None, 'id': 1}, 'world') is value


@pytest.mark.parametrize(
    ('error', 'code', 'message', 'data'),
    [
        ({'code': -32601, 'message': 'Method not found'}, -32601, 'Method not found', None),
        ({'code': 1, 'message': '', 'data': [1]}, 1, '', [1]),
        ({'code': 1.0, 'message': 'm'}, 1, 'm', None),
    ],
)
def test_errors_are_raised(error: Any, code: int, message: str, data: Any) -> None:
    with pytest.raises(RemoteError) as caught:
        result({'jsonrpc': '2.0', 'error': error, 'id': 1}, 'world')
    assert (caught.value.code, caught.value.message, caught.value.data) == (code, message, data)
    assert type(caught.value.code) is int


@pytest.mark.parametrize(
    ('response', 'code', 'says'),
    [
        ({'error': None}, -32603, 'None'),
        ({'error': 'broken'}, -32603, 'broken'),
        ({'error': ['x' * 10_000]}, -32603, 'an array'),
        ({'error': {}}, -32603, 'None'),
        ({'error': {'code': 'ENOENT', 'message': 'no such file'}}, -32603, 'no such file'),
        ({'error': {'code': True, 'message': 'm'}}, -32603, 'True'),
        ({'error': {'code': 1.5, 'message': 'm'}}, -32603, '1.5'),
        ({'error': {'code': math.inf, 'message': 'm'}}, -32603, 'inf'),
        ({'error': {'code': 17}}, 17, 'None'),
        ({'error': {'code': 17, 'message': 18}}, 17, '18'),
        ({'error': {'code': 17, 'message': 'm'}, 'result': 1}, 17, 'both'),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_malformed_errors_are_raised_and_say_so(response: Any, code: int, says: str) -> None:
    with pytest.raises(RemoteError) as caught:
        result({'jsonrpc': '2.0', **response, 'id': 1}, 'world')
    assert caught.value.code == code
    assert caught.value.message.startswith('world answered with ')
    assert says in caught.value.message
    assert len(caught.value.message) < 400
