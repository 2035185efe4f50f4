"""``config.sync``, one request at a time, between nodeipc and real node-ipc peers.

Servers answer late here, so that a request which leaves before the last one is answered would find it unanswered. Any event
is an answer, in node-ipc as in nodeipc, a broadcast too. Where they differ: what ends the turn of a request is, in
node-ipc 9 and 10, a chunk, however many events it completes; and when a connection is lost before the answer came, a sync
client of node-ipc (all three versions) says nothing on the next one either, until the server speaks.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, List, Tuple

import pytest

import nodeipc

from ..conftest import Log, eventually
from .peers import SECONDS, NodePeer, Place, messages

Make = Callable[..., nodeipc.IPC]
StartNode = Callable[[], NodePeer]

# Long enough that what does not wait would overtake the answer by far; nothing depends on it.
LATE_MILLISECONDS = 5

COUNT = 12

# Taking turns is above the transports, so one is enough for most.
unix_only = pytest.mark.parametrize('transport', ['unix'], indirect=True)


class LateAnswers:
    """The handler of a Python server that sends back what comes, a moment later and from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unanswered = 0
        self.unanswered: List[int] = []  # how many requests were, whenever one came

    def __call__(self, *request: Any) -> None:
        *event, socket = request
        with self._lock:
            self._unanswered += 1
            self.unanswered.append(self._unanswered)
        threading.Timer(LATE_MILLISECONDS / 1000, self._answer, [socket, event]).start()

    def _answer(self, socket: nodeipc.Socket, event: List[Any]) -> None:
        with self._lock:
            self._unanswered -= 1
        socket.emit(*event)


def late_node_server(node: NodePeer, place: Place) -> None:
    node.do('echoAfter', milliseconds=LATE_MILLISECONDS)
    node.serve(place)


def sync_client(make: Make, place: Place, **settings: Any) -> Tuple[nodeipc.Client, Log]:
    """A connected client and the log of its events."""
    log = Log()
    client = place.connect(make(sync=True, **settings), lambda client: client.on('*', log))
    log.wait('connect', timeout=SECONDS)
    return client, log


# Python clients


def test_a_node_server_never_has_two_requests_of_a_python_client(make: Make, place: Place, node: NodePeer) -> None:
    late_node_server(node, place)
    client, log = sync_client(make, place)
    for number in range(COUNT):
        client.emit('number', number, timeout=SECONDS)
    answers = log.wait('number', COUNT, timeout=SECONDS)
    assert [data for (data,) in answers] == node.wait('number', COUNT) == list(range(COUNT))
    assert node.wait('unanswered', COUNT) == [1] * COUNT


@unix_only
def test_threads_that_emit_at_once_take_turns(make: Make, place: Place, node: NodePeer) -> None:
    late_node_server(node, place)
    client, log = sync_client(make, place)

    def emit(name: str) -> None:
        for number in range(5):
            client.emit('question', [name, number], timeout=SECONDS)

    threads = [threading.Thread(target=emit, args=(name,)) for name in 'abcd']
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    log.wait('question', 20, timeout=SECONDS)
    arrived = node.wait('question', 20)
    assert [number for name, number in sorted(arrived)] == [0, 1, 2, 3, 4] * 4
    assert [[number for name, number in arrived if name == one] for one in 'abcd'] == [[0, 1, 2, 3, 4]] * 4
    assert node.wait('unanswered', 20) == [1] * 20


@unix_only
def test_what_handlers_emit_takes_its_turn(make: Make, place: Place, node: NodePeer) -> None:
    late_node_server(node, place)
    log = Log()

    def ready(client: nodeipc.Client) -> None:
        client.on('*', log)

        @client.on('connect')
        def greet() -> None:
            client.emit('hello')
            client.emit('message', 'queued behind hello')

        @client.on('hello')
        def ask() -> None:
            for number in range(3):
                client.emit('question', number)

        @client.on('question')
        def end(number: int) -> None:
            if number == 2:
                client.emit('end', True)

    place.connect(make(sync=True), ready)
    log.wait('end', timeout=SECONDS)
    expected = [
        ('hello', '{}'), ('message', '"queued behind hello"'),
        ('question', '0'), ('question', '1'), ('question', '2'), ('end', 'true'),
    ]
    assert messages(log.events) == expected
    node.wait('end')
    assert messages(report for report in node.reports if report.event != 'unanswered') == expected
    assert node.wait('unanswered', 6) == [1] * 6


def test_a_request_that_a_killed_node_server_left_unanswered_holds_up_no_other(
    make: Make, place: Place, start_node: StartNode, node: NodePeer
) -> None:
    first, second = start_node(), node
    first.serve(place)  # and never answers
    client, log = sync_client(make, place)
    client.emit('message', 'unanswered')
    first.wait('message')
    waiting = threading.Thread(target=client.emit, args=('message', 'waiting'), kwargs={'timeout': SECONDS})
    waiting.start()
    first.kill()
    log.wait('disconnect', timeout=SECONDS)
    eventually(lambda: any('not sent again' in str(error) for (error,) in log.of('error')), SECONDS)
    late_node_server(second, place)
    waiting.join(SECONDS)
    client.emit('message', 'next', timeout=SECONDS)
    assert log.wait('message', 2, timeout=SECONDS) == [('waiting',), ('next',)]
    assert second.wait('message', 2) == ['waiting', 'next']
    assert second.wait('unanswered', 2) == [1, 1]


@unix_only
def test_a_node_server_never_has_two_payloads_of_a_raw_python_client(make: Make, place: Place, node: NodePeer) -> None:
    node.be_raw()
    late_node_server(node, place)
    client, log = sync_client(make, place, raw_buffer=True)
    payloads = [bytes([number, 255 - number]) for number in range(COUNT)]
    for payload in payloads:
        client.emit(payload, timeout=SECONDS)
    answers = log.wait('data', COUNT, timeout=SECONDS)
    assert [data for (data,) in answers] == [bytes.fromhex(hex) for hex in node.wait('data', COUNT)] == payloads
    assert node.wait('unanswered', COUNT) == [1] * COUNT


# Node clients


def test_a_python_server_never_has_two_requests_of_a_node_client(make: Make, place: Place, node: NodePeer) -> None:
    server = place.serve(make())
    answer = LateAnswers()
    server.on('number', lambda data, socket: answer('number', data, socket))
    server.start()
    node.do('configure', settings={'sync': True})
    node.connect(place)
    node.do('emitNumbers', id='world', type='number', count=COUNT)
    assert node.wait('number', COUNT) == list(range(COUNT))
    assert answer.unanswered == [1] * COUNT


@unix_only
def test_a_python_server_never_has_two_payloads_of_a_raw_node_client(make: Make, place: Place, node: NodePeer) -> None:
    server = place.serve(make(raw_buffer=True))
    answer = LateAnswers()
    server.on('data', answer)
    server.start()
    node.be_raw()
    node.do('configure', settings={'sync': True})
    node.connect(place)
    payloads = [bytes([number, 255 - number]) for number in range(COUNT)]
    for payload in payloads:
        node.emit_raw(payload)
    assert node.wait_bytes(2 * COUNT) == b''.join(payloads)
    assert answer.unanswered == [1] * COUNT


# Both


@unix_only
def test_a_broadcast_is_an_answer_to_both(make: Make, place: Place, node: NodePeer) -> None:
    server = place.serve(make())
    log = Log()
    server.on('*', log)
    server.start()
    node.do('configure', settings={'sync': True})
    node.connect(place)
    client, _ = sync_client(make, place)
    log.wait('connect', 2, timeout=SECONDS)
    for number in range(2):
        node.emit('question', number)
    client.emit('message', 0)
    emitting = threading.Thread(target=client.emit, args=('message', 1), kwargs={'timeout': SECONDS})
    emitting.start()
    log.wait('question', timeout=SECONDS)
    log.wait('message', timeout=SECONDS)
    server.broadcast('news', 'for all')
    emitting.join(SECONDS)
    assert [data for data, _ in log.wait('question', 2, timeout=SECONDS)] == [0, 1]
    assert [data for data, _ in log.wait('message', 2, timeout=SECONDS)] == [0, 1]
