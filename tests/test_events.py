"""Registering and calling handlers, as servers and clients do it."""

from __future__ import annotations

import functools
import threading
from typing import Any, Callable, List

import pytest

from nodeipc.events import Emitter

from .conftest import Log, eventually


class Plain(Emitter):
    """An emitter whose errors are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: List[BaseException] = []

    def _report_handler_error(self, error: BaseException, arguments: Any) -> None:
        self.errors.append(error)
        self._publish('error', error)


@pytest.fixture
def emitter() -> Plain:
    return Plain()


def test_handlers_are_called_in_the_order_of_their_registration(emitter: Plain) -> None:
    calls: List[Any] = []
    emitter.on('x', lambda data: calls.append((1, data)))
    emitter.on('x', lambda data: calls.append((2, data)))
    emitter.on('y', lambda data: calls.append((3, data)))
    emitter._publish('x', 'data')
    assert calls == [(1, 'data'), (2, 'data')]


def test_on_is_a_decorator_and_returns_the_handler(emitter: Plain) -> None:
    calls: List[Any] = []

    @emitter.on('x')
    def handler(data: Any) -> None:
        calls.append(data)

    def other(data: Any) -> None:
        calls.append(-data)

    assert emitter.on('x', other) is other
    assert handler.__name__ == 'handler'

    @emitter.once('x')
    def first(data: Any) -> None:
        calls.append('once')

    emitter._publish('x', 1)
    emitter._publish('x', 2)
    assert calls == [1, -1, 'once', 2, -2]


def test_the_star_receives_every_event_with_its_name_first(emitter: Plain) -> None:
    calls: List[Any] = []
    emitter.on('x', lambda data: calls.append(data))
    emitter.on('*', lambda *event: calls.append(event))
    emitter._publish('x', 1, 'socket')
    emitter._publish('unheard')
    emitter._publish('*', 2)  # a peer may send an event of that name
    assert calls == [('x', 1, 'socket'), 1, ('unheard',), ('*', 2)]


class Callable3:
    def __call__(self, a: Any, b: Any, c: Any = None) -> None:
        self.got = (a, b, c)


def test_a_handler_may_take_fewer_arguments(emitter: Plain) -> None:
    calls: List[Any] = []

    class Methods:
        def none(self) -> None:
            calls.append('none')

        def one(self, data: Any) -> None:
            calls.append(('one', data))

        @classmethod
        def of_class(cls, data: Any) -> None:
            calls.append(('class', data))

        @staticmethod
        def static(data: Any) -> None:
            calls.append(('static', data))

    methods = Methods()
    instance = Callable3()

    def keyword_only(data: Any, *, flag: bool = True) -> None:
        calls.append(('keyword', data, flag))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    for handler in (
        lambda: calls.append('lambda'),
        methods.none,
        methods.one,
        Methods.of_class,
        Methods.static,
        lambda data, socket: calls.append((data, socket)),
        lambda *all_of_it: calls.append(all_of_it),
        functools.partial(lambda flag, data: calls.append((flag, data)), 'partial'),
        keyword_only,
        decorate(lambda data: calls.append(('wrapped', data))),
        instance,
        calls.append,
    ):
        emitter.on('x', handler)
    emitter._publish('x', 'data', 'socket')
    assert not emitter.errors
    assert calls == [
        'lambda', 'none', ('one', 'data'), ('class', 'data'), ('static', 'data'), ('data', 'socket'), ('data', 'socket'),
        ('partial', 'data'), ('keyword', 'data', True), ('wrapped', 'data'), 'data',
    ]  # fmt: skip
    assert instance.got == ('data', 'socket', None)


@pytest.mark.parametrize('handler', [5, 'name', object()], ids=repr)
def test_a_handler_must_be_callable(emitter: Plain, handler: Any) -> None:
    with pytest.raises(TypeError, match='a handler must be callable'):
        emitter.on('x', handler)


def test_a_coroutine_function_is_no_handler(emitter: Plain) -> None:
    async def handler(data: Any) -> None: ...

    with pytest.raises(TypeError, match='coroutine'):
        emitter.on('x', handler)
    with pytest.raises(TypeError, match='coroutine'):
        emitter.once('x', functools.partial(handler, 1))


def test_event_names_are_checked(emitter: Plain) -> None:
    with pytest.raises(TypeError, match='event name must be a str'):
        emitter.on(5, print)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match='must not be empty'):
        emitter.on('', print)
    with pytest.raises(TypeError):
        emitter.off(None)  # type: ignore[arg-type]


def test_off_forgets_one_handler_or_all(emitter: Plain) -> None:
    calls: List[Any] = []

    class Methods:
        def handler(self) -> None:
            calls.append('method')

    methods = Methods()

    def one() -> None:
        calls.append('one')

    emitter.on('x', one)
    emitter.once('x', methods.handler)
    emitter.on('*', lambda type: calls.append(type))
    emitter.off('x', methods.handler)  # another object than was registered, but equal
    emitter.off('x', print)
    emitter.off('unknown')
    emitter._publish('x')
    assert calls == ['x', 'one']
    emitter.off('x')
    emitter._publish('x')
    emitter.off('*')
    emitter._publish('x')
    assert calls == ['x', 'one', 'x']


def test_a_dispatch_calls_those_who_were_registered_when_it_began(emitter: Plain) -> None:
    calls: List[Any] = []

    def second() -> None:
        calls.append('second')

    def first() -> None:
        calls.append('first')
        emitter.off('x', second)
        emitter.on('x', lambda: calls.append('new'))

    emitter.on('x', first)
    emitter.on('x', second)
    emitter._publish('x')
    assert calls == ['first', 'second']
    emitter._publish('x')
    assert calls == ['first', 'second', 'first', 'new']


def test_a_once_handler_that_publishes_its_own_event_is_called_once(emitter: Plain) -> None:
    calls: List[Any] = []

    def handler() -> None:
        calls.append(1)
        emitter._publish('x')

    emitter.once('x', handler)
    emitter._publish('x')
    assert calls == [1]


def test_once_is_once_with_many_threads(emitter: Plain) -> None:
    for _ in range(200):
        calls: List[Any] = []
        barrier = threading.Barrier(4)

        def publish(barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            emitter._publish('x', 1)

        emitter.once('x', calls.append)
        threads = [threading.Thread(target=publish) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert calls == [1]


def test_once_is_once_for_two_dispatches_that_began_together(emitter: Plain) -> None:
    calls: List[Any] = []
    emitter.once('x', calls.append)
    began = dict(emitter._handlers)
    emitter._dispatch(began, 'x', (1,))
    emitter._dispatch(began, 'x', (2,))
    assert calls == [1]


def test_a_handler_that_raises_is_reported_and_the_others_are_called(
    emitter: Plain, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log()

    def fails() -> None:
        raise KeyError('gone')

    def leaves() -> None:
        raise SystemExit(3)

    emitter.on('x', fails)
    emitter.on('x', leaves)
    emitter.on('*', log)
    emitter._publish('x')
    assert [type(error) for error in emitter.errors] == [KeyError, SystemExit]
    assert log.events == [('x',), ('error', emitter.errors[0]), ('error', emitter.errors[1])]
    assert 'Traceback' in caplog.text
    assert "KeyError: 'gone'" in caplog.text


def test_an_error_handler_that_raises_is_logged_and_goes_no_further(
    emitter: Plain, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: Any) -> None:
        raise ValueError('in the handler')

    emitter.on('x', fails)
    emitter.on('error', fails)
    emitter.on('*', fails)
    emitter._publish('x')
    # The two handlers of x; what the four handlers of their two error events raise is in the log only.
    assert len(emitter.errors) == 2
    assert caplog.text.count('in the handler\n') >= 6


def test_a_raising_handler_is_reported_as_an_error_event(pair: Any) -> None:
    world = pair()
    log = Log()
    world.server.on('error', functools.partial(log, 'error'))

    @world.server.on('message')
    def fails(data: Any, socket: Any) -> None:
        if data == 'bad':
            raise LookupError(data)
        socket.emit('message', data)

    world.start()
    answers = Log()
    client = world.connect(answers)
    client.emit('message', 'bad')
    client.emit('message', 'good')
    assert answers.wait('message') == [('good',)]
    ((error, socket),) = log.wait('error')
    assert isinstance(error, LookupError)
    assert socket is world.server.sockets[0]
    assert world.server.stats()['errors'] == 1

    @client.on('news')
    def also_fails() -> None:
        raise OSError('client side')

    world.server.broadcast('news')
    ((error,),) = answers.wait('error')
    assert str(error) == 'client side'
    eventually(lambda: client.stats()['errors'] == 1)
