"""``config.sync``: the next message leaves when the server has answered the last."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from typing import Any, List

import pytest

from nodeipc import EmitTimeout, NotConnectedError
from nodeipc.connection import Connection

from .conftest import Log, eventually


class Shy:
    """A server that answers when the test says so, and sees how many questions are open at once."""

    def __init__(self, pair: Any, **settings: Any) -> None:
        self.world = pair(**settings)
        self.asked: List[Any] = []
        self.sockets: List[Any] = []
        self.answered = 0
        self.world.server.on('ask', self.ask)
        self.world.start()

    def ask(self, data: Any, socket: Any) -> None:
        self.asked.append(data)
        self.sockets.append(socket)

    def answer(self) -> None:
        """Answer the next question, when it has come."""
        eventually(lambda: len(self.asked) > self.answered)
        assert len(self.asked) == self.answered + 1  # never two at once
        self.answered += 1
        self.sockets[-1].emit('answer', self.asked[-1])


@pytest.fixture
def shy(pair: Any) -> Any:
    return lambda **settings: Shy(pair, **settings)


def echo(pair: Any, **settings: Any) -> Any:
    """A server that answers at once, and notes what it was asked."""
    world = pair(**settings)
    world.asked = []

    @world.server.on('ask')
    def ask(data: Any, socket: Any) -> None:
        world.asked.append(data)
        socket.emit('answer', data)

    return world.start()


def test_an_emit_waits_for_the_answer_to_the_last(shy: Any) -> None:
    server = shy()
    client = server.world.connect(sync=True)
    client.emit('ask', 0)
    emitted = [0]

    def emit() -> None:
        for number in range(1, 6):
            client.emit('ask', number)
            emitted.append(number)

    thread = threading.Thread(target=emit)
    thread.start()
    for number in range(6):
        eventually(lambda number=number: server.asked == list(range(number + 1)))
        assert emitted == list(range(number + 1)) or emitted == list(range(number))
        server.answer()
    thread.join(20)
    assert server.asked == list(range(6))


def test_without_an_answer_an_emit_times_out_and_nothing_is_sent(shy: Any) -> None:
    server = shy()
    client = server.world.connect(sync=True)
    client.emit('ask', 1)
    with pytest.raises(EmitTimeout, match=r"client 'world' .* no turn within 0.05 s.*was not answered.*config.sync"):
        client.emit('ask', 'never', timeout=0.05)
    server.answer()
    client.emit('ask', 2)
    server.answer()
    client.emit('ask', 3)
    server.answer()
    assert server.asked == [1, 2, 3]


def test_the_first_emit_waits_for_a_connection(make: Any) -> None:
    client = make(sync=True).connect_to('nobody')
    with pytest.raises(EmitTimeout, match='no connection within 0.05 s, nothing was sent; is the server running.*cannot'):
        client.emit('ask', 1, timeout=0.05)
    log = Log()
    ipc = make(id='nobody')
    ipc.serve(lambda server: server.on('*', log)).start()
    client.emit('ask', 2, timeout=20)
    assert [data for data, _ in log.wait('ask')] == [2]


def test_many_threads_take_turns(pair: Any) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        world = pair()
        unanswered: queue.Queue[Any] = queue.Queue()
        most: List[int] = [0]

        @world.server.on('ask')
        def ask(data: Any, socket: Any) -> None:
            unanswered.put((data, socket))
            most[0] = max(most[0], unanswered.qsize())

        def answer() -> None:
            for _ in range(400):
                time.sleep(0.0005)  # in which a second question would come
                data, socket = unanswered.get(timeout=60)
                socket.emit('answer', data)

        threading.Thread(target=answer).start()
        world.start()
        log = Log()
        client = world.connect(log, sync=True)

        def emit(n: int) -> None:
            for i in range(50):
                client.emit('ask', [n, i], timeout=60)

        threads = [threading.Thread(target=emit, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        answers = [data for (data,) in log.wait('answer', 400, timeout=60)]
        for thread in threads:
            thread.join(20)
        assert most == [1]
        for n in range(8):
            assert [i for m, i in answers if m == n] == list(range(50))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize('workers', [0, 1, 4])
def test_emits_in_handlers_are_queued_and_leave_in_order(pair: Any, workers: int) -> None:
    world = echo(pair)
    log = Log()

    def ready(client: Any) -> None:
        client.on('*', log)

        @client.on('connect')
        def connect() -> None:
            for number in range(10):
                client.emit('ask', number, timeout=0.1)

        @client.on('answer')
        def answer(data: Any) -> None:
            if isinstance(data, int) and data % 3 == 0:
                client.emit('ask', f'after {data}', timeout=0.1)

    ipc = world.make(id='client', sync=True, workers=workers)
    if world.transport == 'unix':
        ipc.connect_to('world', world.server.address, ready)
    else:
        ipc.connect_to_net('world', *world.server.address, ready)
    expected = [*range(10), 'after 0', 'after 3', 'after 6', 'after 9']
    assert [data for (data,) in log.wait('answer', 14)] == expected
    assert not log.of('error')


def test_a_queued_emit_leaves_after_the_handler_has_returned(shy: Any) -> None:
    server = shy()
    client = server.world.connect(sync=True)
    gate = threading.Event()
    entered = threading.Event()

    @client.on('answer')
    def answer(data: int) -> None:
        client.emit('ask', data + 10)
        entered.set()
        assert gate.wait(20)

    client.emit('ask', 1)
    server.answer()
    assert entered.wait(20)
    assert client.stats()['pending_bytes'] == len(b'{"type":"ask","data":11}\f')
    assert server.asked == [1]
    gate.set()
    eventually(lambda: server.asked == [1, 11])
    eventually(lambda: client.stats()['pending_bytes'] == 0)


def test_handlers_and_threads_have_their_turns_in_the_order_in_which_they_came(shy: Any) -> None:
    server = shy()
    client = server.world.connect(sync=True)
    client.once('answer', lambda: [client.emit('ask', n) for n in ('a', 'b')])
    client.emit('ask', 1)
    thread = threading.Thread(target=client.emit, args=('ask', 'thread'))
    thread.start()
    eventually(lambda: client._line)
    for _ in range(4):
        server.answer()
    thread.join(20)
    assert server.asked == [1, 'thread', 'a', 'b']


def test_handlers_that_go_on_emitting_leave_threads_their_turns(pair: Any) -> None:
    world = echo(pair)
    client = world.connect(sync=True)
    client.on('answer', lambda data: isinstance(data, int) and client.emit('ask', data + 1))
    client.emit('ask', 0)
    for n in range(20):
        client.emit('ask', f'thread {n}', timeout=20)
    client.off('answer')


def test_what_leaves_while_an_event_is_handled_is_not_answered_by_it(shy: Any) -> None:
    server = shy()
    log = Log()
    client = server.world.connect(log, sync=True)
    log.wait('connect')
    inside, gate = threading.Event(), threading.Event()

    @client.on('news')
    def news(which: str) -> None:
        if which == 'slow':
            inside.set()
            assert gate.wait(20)
        else:
            for n in 'abc':
                client.emit('ask', n)

    eventually(lambda: server.world.server.sockets)
    server.world.server.broadcast('news', 'slow')
    assert inside.wait(20)
    client.emit('ask', 'thread')
    gate.set()
    server.answer()
    eventually(lambda: client._turn is None)
    server.world.server.broadcast('news', 'quick')
    for _ in range(3):
        server.answer()  # which sees that there are never two
    assert server.asked == ['thread', 'a', 'b', 'c']


def test_an_empty_raw_message_takes_no_turn(pair: Any) -> None:
    world = pair(raw_buffer=True)
    log = Log()
    world.server.on('*', log)
    world.start()
    client = world.connect(sync=True, raw_buffer=True)
    for _ in range(3):
        client.emit(b'', timeout=20)
    client.emit(b'x', timeout=20)
    log.wait('data')


def test_an_emit_inside_an_emit_of_the_same_thread_is_refused(shy: Any) -> None:
    """As a signal handler or __del__ does; it would wait for what it has interrupted."""
    server = shy()
    client = server.world.connect(sync=True)
    client.emit('ask', 1)
    errors: List[BaseException] = []

    def interrupt(*_: Any) -> None:
        try:
            client.emit('ask', 'inside')
        except RuntimeError as error:
            errors.append(error)

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(EmitTimeout):
            client.emit('ask', 2, timeout=0.25)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    (error,) = errors
    assert 'has interrupted an emit to it' in str(error)
    server.answer()
    client.emit('ask', 3)
    server.answer()


def test_an_emit_inside_another_call_is_refused_if_it_would_wait(shy: Any) -> None:
    """What was interrupted may hold the lock that the answer needs."""
    server = shy()
    client = server.world.connect(sync=True)
    client.emit('ask', 1)
    errors: List[BaseException] = []

    def interrupt(*_: Any) -> None:
        try:
            client.emit('ask', 'inside')
        except RuntimeError as error:
            errors.append(error)

    previous = signal.signal(signal.SIGALRM, interrupt)
    client.once('answer', lambda: client.emit('ask', 2))
    server.answer()
    eventually(lambda: server.asked == [1, 2])
    client.once('answer', lambda: [client.emit('ask', n) for n in 'ab'])
    server.answer()
    eventually(lambda: server.asked == [1, 2, 'a'])
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(EmitTimeout):
            client.flush(0.2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    (error,) = errors
    assert 'or another call of this library' in str(error)
    server.answer()
    server.answer()
    client.emit('ask', 'after', timeout=20)


def test_a_connection_is_there_for_emit_when_wait_connected_says_so(shy: Any) -> None:
    server = shy()
    client = server.world.connect(sync=True)
    assert client.wait_connected(20)
    client.emit('ask', 1, timeout=0)


def test_a_long_handler_of_its_own_does_not_cost_a_client_its_goodbye(pair: Any) -> None:
    world = echo(pair)
    client = world.connect(sync=True, stall_timeout=100)
    queued = threading.Event()

    @client.once('answer')
    def answer() -> None:
        for n in range(3):
            client.emit('ask', n)
        queued.set()
        time.sleep(0.2)  # longer than the server may stall

    client.emit('ask', 'go')
    assert queued.wait(20)
    client.disconnect()
    assert world.asked == ['go', 0, 1, 2]


def test_what_handlers_queue_is_bounded(shy: Any) -> None:
    server = shy()
    log = Log()
    client = server.world.connect(log, sync=True, max_pending_bytes=1000)

    @client.once('answer')
    def flood() -> None:
        while True:
            client.emit('ask', 'x' * 50)

    client.emit('ask', 1)
    server.answer()
    ((error,),) = log.wait('error')
    assert isinstance(error, EmitTimeout)
    assert 'wait for their turns, and a handler cannot wait' in str(error)
    assert 1000 < client.stats()['pending_bytes'] + 80 < 1200
    client.disconnect(timeout=0.05)


def test_any_event_is_an_answer(shy: Any) -> None:
    server = shy()
    client = server.world.connect(sync=True)
    client.emit('ask', 1)
    eventually(lambda: server.asked == [1])
    server.world.server.broadcast('news', 'sun')
    client.emit('ask', 2, timeout=20)
    eventually(lambda: server.asked == [1, 2])


def test_an_answer_whose_handler_raises_is_an_answer(pair: Any) -> None:
    world = echo(pair)
    client = world.connect(sync=True)
    client.on('answer', lambda: [][1])
    for number in range(3):
        client.emit('ask', number, timeout=20)


def test_raw_mode_takes_turns_too(pair: Any) -> None:
    world = pair(raw_buffer=True)
    log = Log()
    world.server.on('*', log)
    world.start()
    client = world.connect(sync=True, raw_buffer=True)
    client.emit(b'one')
    ((_, socket),) = log.wait('data')
    with pytest.raises(EmitTimeout):
        client.emit(b'two', timeout=0.05)
    socket.emit(b'!')
    client.emit(b'three')
    assert [data for data, _ in log.wait('data', 2)] == [b'one', b'three']


def test_a_batch_takes_turns(shy: Any) -> None:
    server = shy()
    client = server.world.connect(sync=True)

    def emit() -> None:
        with client.batch() as same:
            assert same is client
            for number in range(5):
                client.emit('ask', number)

    thread = threading.Thread(target=emit)
    thread.start()
    for _ in range(5):
        server.answer()
    thread.join(20)
    assert server.asked == list(range(5))


def test_emit_in_the_callback_of_connect_to_says_that_it_is_too_early(make: Any) -> None:
    errors: List[BaseException] = []

    def ready(client: Any) -> None:
        try:
            client.emit('ask')
        except NotConnectedError as error:
            errors.append(error)

    make(sync=True).connect_to('nobody', ready)
    assert 'begins to connect when the callback' in str(errors[0])


def test_what_finds_no_room_in_its_turn_is_reported_and_the_next_goes_on(
    shy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = shy()
    log = Log()
    client = server.world.connect(log, sync=True)
    send = Connection.send

    def full_for_a(self: Any, frame: bytes, *arguments: Any) -> bool:
        if b'"a"' in frame:
            raise EmitTimeout('takes no more')
        return send(self, frame, *arguments)

    client.once('answer', lambda: [client.emit('ask', n) for n in 'ab'])
    client.emit('ask', 1)
    monkeypatch.setattr(Connection, 'send', full_for_a)
    server.answer()
    server.answer()
    assert server.asked == [1, 'b']
    assert str(log.wait('error')[0][0]) == 'takes no more'
    eventually(lambda: client.stats()['pending_bytes'] == 0)
    with pytest.raises(EmitTimeout, match='takes no more'):
        client.emit('ask', 'a')
    client.emit('ask', 'c', timeout=20)  # a turn that came to nothing is nobody's
    server.answer()


# Lost connections


def test_a_lost_connection_is_reported_and_ends_the_wait(shy: Any) -> None:
    server = shy()
    log = Log()
    client = server.world.connect(log, sync=True)
    client.emit('ask', 'unanswered')
    eventually(lambda: server.asked == ['unanswered'])
    waiting = threading.Thread(target=client.emit, args=('ask', 'waited'))
    waiting.start()
    server.sockets[-1].close()
    waiting.join(20)
    assert not waiting.is_alive()
    eventually(lambda: server.asked == ['unanswered', 'waited'])  # and nothing again
    ((error,),) = (event for event in log.wait('error') if 'before the last message was answered' in str(event[0]))
    assert isinstance(error, NotConnectedError)
    types = [event[0] for event in log.events]
    assert types.index('error') < types.index('disconnect')


def test_what_was_queued_on_a_lost_connection_is_reported_and_not_sent(shy: Any) -> None:
    server = shy()
    log = Log()
    client = server.world.connect(log, sync=True)
    queued = threading.Event()

    @client.once('answer')
    def answer() -> None:
        for n in 'abc':
            client.emit('ask', n)
        queued.set()

    client.emit('ask', 1)
    server.answer()
    eventually(lambda: server.asked == [1, 'a'])
    assert queued.wait(20)
    server.sockets[-1].close()
    client.emit('ask', 'after', timeout=20)
    eventually(lambda: server.asked == [1, 'a', 'after'])
    for why in ('before the last message was answered', '2 messages that handlers emitted will not be sent'):
        eventually(lambda why=why: any(why in str(error) for (error,) in log.of('error')))
    with pytest.raises(NotConnectedError, match='not delivered'):
        client.flush(20)


def test_an_emit_in_a_disconnect_handler_leaves_on_the_next_connection(pair: Any) -> None:
    world = echo(pair)
    log = Log()
    client = world.connect(log, sync=True)
    client.on('disconnect', lambda: client.emit('ask', 'queued'))
    log.wait('connect')
    client.on('connect', lambda: client.emit('ask', 'first'))
    log.wait('answer')
    world.server.sockets[0].close()
    assert {data for (data,) in log.wait('answer', 3)} == {'first', 'queued'}
    assert not [error for (error,) in log.of('error') if isinstance(error, NotConnectedError)]


def test_a_killed_connection_never_hangs_emitters(pair: Any) -> None:
    """Connections that are closed at any moment; every emit ends, and what is answered is in order."""
    world = pair()
    count = [0]

    @world.server.on('ask')
    def ask(data: Any, socket: Any) -> None:
        count[0] += 1
        if count[0] % 7 == 0:
            socket.close()
        elif count[0] % 11 == 0:
            socket.emit('answer', data)
            socket.close()
        else:
            socket.emit('answer', data)

    world.start()
    log = Log()
    client = world.connect(log, sync=True, retry=1)
    numbers: List[List[int]] = [[] for _ in range(4)]

    def emit(n: int) -> None:
        for i in range(100):
            client.emit('ask', [n, i], timeout=30)
            numbers[n].append(i)

    threads = [threading.Thread(target=emit, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert numbers == [list(range(100))] * 4
    for n in range(4):
        answered = [i for ((m, i),) in log.of('answer') if m == n]
        assert answered == sorted(answered)


# The end


def test_disconnect_lets_the_queue_have_its_turns(pair: Any) -> None:
    world = echo(pair)
    asked = world.asked
    client = world.connect(sync=True)
    client.once('answer', lambda: [client.emit('ask', n) for n in range(20)])
    client.emit('ask', 'go')
    eventually(lambda: 0 in asked)
    client.disconnect()
    assert asked == ['go', *range(20)]
    with pytest.raises(NotConnectedError):
        client.emit('ask')


def test_disconnect_in_a_handler_lets_the_queue_have_its_turns(pair: Any) -> None:
    world = echo(pair)
    asked = world.asked
    log = Log()
    client = world.connect(log, sync=True, stall_timeout=60_000)  # not waited out

    @client.once('answer')
    def answer() -> None:
        for n in range(5):
            client.emit('ask', n)
        client.disconnect()
        with pytest.raises(NotConnectedError):
            client.emit('ask', 'too late')

    client.emit('ask', 'go')
    log.wait('destroy')
    assert asked == ['go', *range(5)]
    assert not log.of('error')


def test_a_server_that_is_slow_has_the_stall_timeout_for_each_answer(pair: Any) -> None:
    world = pair()
    asked: List[Any] = []

    @world.server.on('ask')
    def ask(data: Any, socket: Any) -> None:
        asked.append(data)
        time.sleep(0.06)
        socket.emit('answer', data)

    world.start()
    log = Log()
    client = world.connect(log, sync=True, stall_timeout=250)
    client.once('answer', lambda: [client.emit('ask', n) for n in range(6)])
    client.emit('ask', 'go')
    eventually(lambda: 0 in asked)
    client.disconnect()
    assert asked == ['go', *range(6)]
    assert not log.of('error')


def test_disconnect_gives_up_on_a_server_that_does_not_answer(shy: Any) -> None:
    server = shy()
    log = Log()
    client = server.world.connect(log, sync=True, stall_timeout=100)
    client.once('answer', lambda: [client.emit('ask', n) for n in range(3)])
    client.emit('ask', 'go')
    server.answer()
    eventually(lambda: server.asked == ['go', 0])
    client.disconnect()
    assert server.asked == ['go', 0]
    ((error,),) = log.of('error')
    assert '2 messages that handlers emitted will not be sent' in str(error)
    assert log.events[-1] == ('destroy',)


def test_a_client_that_never_connected_reports_what_was_queued(make: Any) -> None:
    log = Log()

    def ready(client: Any) -> None:
        client.on('*', log)
        client.once('error', lambda: client.emit('ask', 1))

    make(sync=True, max_retries=1, retry=200).connect_to('nobody', ready)
    log.wait('destroy')
    messages = [str(error) for (error,) in log.of('error')]
    assert any('a message that a handler emitted will not be sent' in message for message in messages)


def test_flush_waits_for_the_queue_and_says_so_in_a_handler(shy: Any) -> None:
    server = shy()
    log = Log()
    client = server.world.connect(log, sync=True)

    @client.once('answer')
    def answer() -> None:
        client.emit('ask', 'a')
        client.flush()

    client.emit('ask', 1)
    server.answer()
    ((error,),) = log.wait('error')
    assert isinstance(error, RuntimeError)
    assert 'flush() in a handler' in str(error)
    server.answer()
    client.on('answer', lambda data: data == 2 and [client.emit('ask', n) for n in 'bc'])
    client.emit('ask', 2)
    server.answer()
    eventually(lambda: server.asked[-1] == 'b')
    with pytest.raises(EmitTimeout, match='bytes that handlers emitted had no turn'):
        client.flush(0.05)
    flushing = threading.Thread(target=client.flush, args=(20,))
    flushing.start()
    server.answer()
    flushing.join(20)
    assert not flushing.is_alive()
    eventually(lambda: server.asked[-1] == 'c')


def test_closing_the_instance_ends_a_wait_for_a_turn(shy: Any) -> None:
    server = shy()
    client = server.world.connect(sync=True)
    client.emit('ask', 1)
    errors: List[BaseException] = []

    def emit() -> None:
        try:
            client.emit('ask', 2)
        except NotConnectedError as error:
            errors.append(error)

    thread = threading.Thread(target=emit)
    thread.start()
    eventually(lambda: server.asked == [1])
    client.disconnect()
    thread.join(20)
    assert len(errors) == 1
    assert 'disconnected' in str(errors[0])


def test_the_setting_is_the_clients_own(pair: Any) -> None:
    """A server with sync answers as any other, and clients without it do not wait."""
    world = pair(sync=True)
    log = Log()
    world.server.on('*', log)
    world.start()
    client = world.connect()
    for number in range(10):
        client.emit('ask', number)
    assert [data for data, _ in log.wait('ask', 10)] == list(range(10))
