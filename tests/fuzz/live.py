"""Live sockets: hostile peers beside one that is well-behaved and must not notice.

A round makes a server, a client or a UDP socket, sends it mutated streams in random chunks with random ends, and returns
what was wrong. The input is the seed's; when it arrives is the machine's. What is seen is compared with the reference: all
of its events if the peer stayed to the end, the first of them if it left early.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from random import Random
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import nodeipc

from . import shrink
from .corpus import Material, choose
from .reference import Events, Settings, Verdict, fingerprint, judge
from .shrink import Defect

# What is attacked in which profiles. Assured is for local sockets, or TLS.
ROUNDS = [
    (kind, profile)
    for kind in ('server', 'client', 'server-tcp', 'client-tcp', 'udp')
    for profile in ('fast', 'guarded', 'assured', 'raw')
    if profile != 'assured' or kind in ('server', 'client')
]

_ALLOWED = ('hello', 'ask', 'answer', 'message', 'x', 'news', '☃', 'get.events.listening', 'events.listening')
_SECONDS = 30.0
_LIMIT = 4096
CONNECTIONS = 24  # of a round
_RETRIED_SECONDS = 60.0  # what is spent on making a failing round smaller
_SENDERS = 3  # threads that are hostile at the same time
_WINDOW = 32  # messages that a well-behaved peer has under way
_RESET = struct.pack('ii', 1, 0)  # for SO_LINGER: close with a reset
_ENDS = ('half-close', 'half-close', 'half-close', 'close', 'reset', 'hasty close')


class Result(NamedTuple):
    """What a round has found, and what it sent."""

    problems: List[str]
    streams: int
    frames: int


class Plan:
    """What one hostile connection does; the same for the same seed."""

    def __init__(self, seed: Any, number: int, settings: Settings) -> None:
        rng = Random(f'{seed}/{number}')
        self.number = number
        if settings.parser == 'raw':
            hello = struct.pack('!I', number)
        else:
            hello = b'{"type":"hello","data":%d}%b' % (number, settings.delimiter.encode())
        self.stream = hello + Material(settings, rng).stream()[:200_000]
        cuts = sorted({int(rng.random() * len(self.stream)) for _ in range(int(rng.random() * 12))} - {0})
        self.chunks = [self.stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(self.stream)])]
        self.end = choose(rng, _ENDS)
        self.drip = rng.random() < 0.2  # wait a moment between chunks, so that they arrive as they are
        if settings.parser == 'raw':
            self.verdict = Verdict([], frozenset([None]), 1)
        else:
            self.verdict = judge(self.stream, settings)

    def run(self, sock: socket.socket) -> None:
        """Send all, unless the other end has enough of it, and end."""
        with sock:
            sock.settimeout(_SECONDS)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, ConnectionAbortedError):
                for chunk in self.chunks:
                    sock.sendall(chunk)
                    if self.drip:
                        time.sleep(0.0005)
            try:
                if self.end == 'half-close':
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
                elif self.end == 'close':
                    sock.setblocking(False)
                    sock.recv(65536)
                elif self.end == 'reset' and sock.family == socket.AF_INET:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            except socket.timeout:
                raise
            except OSError:
                pass  # the other end was faster

    def wrong(self, seen: Events) -> Optional[str]:
        """Say what is wrong with the events that handlers saw of this connection."""
        wanted = self.verdict.events
        if self.end != 'half-close':
            wanted = wanted[: len(seen)]
        if fingerprint(seen) == fingerprint(wanted):
            return None
        return f'{self} was seen as {_short(seen)}, expected {_short(self.verdict.events)}'

    def wrong_bytes(self, seen: bytes) -> Optional[str]:
        """The same in raw mode."""
        if seen == (self.stream if self.end == 'half-close' else self.stream[: len(seen)]):
            return None
        return f'{self} was seen as {_short(seen)}'

    def wrong_error(self, error: nodeipc.ProtocolError) -> Optional[str]:
        cut = error.code == 'ERR_IPC_INVALID_MESSAGE' and self.end != 'half-close'  # by a reset, inside a message
        if cut or error.code in self.verdict.codes:
            return None
        return f'{self} was refused with {error}, expected one of {sorted(map(str, self.verdict.codes))}'

    def __str__(self) -> str:
        return f'connection {self.number} ({self.end}) with the chunks {_short(self.chunks)}'


def settings_for(profile: str, seed: Any) -> Settings:
    rng = Random(f'{seed}/settings')
    delimiter = choose(rng, ('\f', '\f', '\n', '\r\n', '☃\f'))
    if profile == 'assured':
        return Settings(profile, delimiter, _LIMIT, 256, False, _ALLOWED)
    return Settings(profile, delimiter, _LIMIT, 256, rng.random() < 0.3)


def run_round(kind: str, profile: str, seed: Any, connections: Sequence[int] = range(CONNECTIONS)) -> Result:
    """Run one round; what leaves a thread, a descriptor or a traceback behind has a problem, too."""
    settings = settings_for(profile, seed)
    plans = [Plan(seed, number, settings) for number in connections]
    problems: List[str] = []
    with _nothing_left(problems), _no_tracebacks(problems), tempfile.TemporaryDirectory() as directory:
        try:
            if kind == 'udp':
                frames = _udp_round(settings, directory, seed, plans, problems)
            else:
                run = _server_round if kind.startswith('server') else _client_round
                run(settings, kind.endswith('tcp'), directory, plans, problems)
                frames = sum(plan.verdict.frames for plan in plans)
        except Exception:
            problems.append(f'the round did not end well: {traceback.format_exc()}')
            frames = 0
    return Result(problems, len(plans), frames)


def defect(kind: str, profile: str, seed: Any, connections: Sequence[int], problems: List[str]) -> Defect:
    """Return what a failing round says, with as few of its connections as fail again."""
    end = time.monotonic() + _RETRIED_SECONDS

    def fails(numbers: Sequence[int]) -> bool:
        tries = (time.monotonic() < end and run_round(kind, profile, seed, numbers).problems for _ in range(3))
        return all(tries)  # for when things happen is not the seed's

    if fails(connections):
        connections = shrink.delete(list(connections), fails)
    what = f'{kind}, {profile}: ' + '\n'.join(problems[:5])
    return Defect(what, shrink.round_test(kind, profile, seed, list(connections)))


def _ipc(id: str, directory: str, settings: Settings, **others: Any) -> nodeipc.IPC:
    return nodeipc.IPC(id=id, socket_root=os.path.join(directory, ''), silent=True, **settings._asdict(), **others)


# A server


def _server_round(settings: Settings, tcp: bool, directory: str, plans: List[Plan], problems: List[str]) -> None:
    raw = settings.parser == 'raw'
    sockets: List[Any] = []
    with _ipc('fuzzed', directory, settings) as ipc:
        server = ipc.serve_net('127.0.0.1', 0) if tcp else ipc.serve()

        def record(type: str, *arguments: Any) -> None:
            if type == 'error' and isinstance(arguments[0], BaseException):
                error, peer = arguments
                problems.extend(_wrong_error(error, "server 'fuzzed'"))
                if peer is not None:
                    peer.context['errors'].append(error)
            elif type == 'connect' and isinstance(arguments[0], nodeipc.Socket):
                arguments[0].context.update(events=[], errors=[], disconnected=0)
                sockets.append(arguments[0])
            elif type == 'socket.disconnected' and isinstance(arguments[0], nodeipc.Socket):
                arguments[0].context['disconnected'] += 1
            elif len(arguments) == 2 and isinstance(arguments[1], nodeipc.Socket):
                arguments[1].context['events'].append((type, arguments[0]))
            elif not (type in ('start', 'stop') and arguments in ((server,), ())):
                problems.append(f'the handlers were given {type!r} and {arguments!r}')

        server.on('*', record)
        server.on('data' if raw else 'ask', _answer_raw if raw else _answer)
        server.start()
        with _ipc('healthy', directory, settings) as other:
            client = other.connect_to_net('fuzzed', *server.address) if tcp else other.connect_to('fuzzed')
            healthy = _Healthy(client, raw)
            threads = [
                threading.Thread(target=_send_plans, args=(plans[start::_SENDERS], server.address, tcp, problems))
                for start in range(_SENDERS)
            ]
            healthy.start()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            problems.extend(healthy.finish())
        ipc.close(_SECONDS)
    for peer in sockets:
        if peer.context['disconnected'] != 1:
            problems.append(f'{peer} was {peer.context["disconnected"]} times disconnected')
    _compare(plans, [(peer.context['events'], peer.context['errors']) for peer in sockets], raw, problems)


def _send_plans(plans: List[Plan], address: Any, tcp: bool, problems: List[str]) -> None:
    for plan in plans:
        try:
            sock = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
            sock.settimeout(_SECONDS)
            sock.connect(address)
            plan.run(sock)
        except OSError as error:
            problems.append(f'{plan} ended with {error!r}')


def _answer(data: Any, socket: Any) -> None:
    with contextlib.suppress(nodeipc.NotConnectedError, nodeipc.EmitTimeout):
        if isinstance(data, int):
            socket.emit('answer', data)


def _answer_raw(data: bytes, socket: Any) -> None:
    with contextlib.suppress(nodeipc.NotConnectedError, nodeipc.EmitTimeout):
        socket.emit(data)


# A client


def _client_round(settings: Settings, tcp: bool, directory: str, plans: List[Plan], problems: List[str]) -> None:
    raw = settings.parser == 'raw'
    connections: List[Tuple[Events, List[Any]]] = []
    ended: List[str] = []
    listener = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
    with listener, _ipc('healthy', directory, settings) as other:
        listener.bind(('127.0.0.1', 0) if tcp else os.path.join(directory, 'app.fuzzed'))
        listener.listen()
        listener.settimeout(_SECONDS)
        server = other.serve()
        server.on('data' if raw else 'ask', _answer_raw if raw else _answer)
        server.start()

        def record(type: str, *arguments: Any) -> None:
            if (type, arguments) == ('connect', ()):
                connections.append(([], []))
            elif (type, arguments) in (('disconnect', ()), ('destroy', ())):
                ended.append(type)
            elif type == 'error' and isinstance(arguments[0], BaseException):
                problems.extend(_wrong_error(arguments[0], "client 'fuzzed'"))
                if connections:
                    connections[-1][1].append(arguments[0])
            elif len(arguments) == 1:
                connections[-1][0].append((type, arguments[0]))
            else:
                problems.append(f'the handlers were given {type!r} and {arguments!r}')

        with _ipc('fuzzed', directory, settings, retry=1) as ipc:
            healthy = _Healthy(ipc.connect_to('healthy'), raw)
            if tcp:
                client = ipc.connect_to_net('fuzzed', *listener.getsockname(), lambda client: client.on('*', record))
            else:
                client = ipc.connect_to('fuzzed', lambda client: client.on('*', record))
            healthy.start()
            for plan in plans:
                plan.run(listener.accept()[0])
            problems.extend(healthy.finish())
            listener.close()
            # Disconnecting drops what was not handled yet.
            if not _within(lambda: ended.count('disconnect') == client.stats()['connections']):
                problems.append(f'{len(ended)} connections ended, of those of {client!r}: {client.stats()}')
            client.disconnect(_SECONDS)
    if ended != ['disconnect'] * len(connections) + ['destroy']:
        problems.append(f'{len(connections)} connections ended so: {ended}')
    _compare(plans, connections, raw, problems)


# What is right for both


def _compare(plans: List[Plan], connections: List[Tuple[Events, List[Any]]], raw: bool, problems: List[str]) -> None:
    """Find the plan of each connection by the number that it sent first, and see whether its events and errors are right."""
    of_plans = {plan.number: plan for plan in plans}
    for seen, errors in connections:
        number = _number_raw(seen) if raw else _number(seen)
        if number is None or number == _HEALTHY:
            continue
        plan = of_plans.pop(number, None)
        if plan is None:
            problems.append(f'a connection that nobody made, or made once: {_short(seen)}')
            continue
        wrong = plan.wrong_bytes(b''.join(data for _, data in seen)) if raw else plan.wrong(seen)
        refusals = [error for error in errors if isinstance(error, nodeipc.ProtocolError)]
        problems.extend(filter(None, [wrong, *map(plan.wrong_error, refusals)]))
        if plan.end == 'half-close' and len(refusals) != (None not in plan.verdict.codes):
            problems.append(f'{plan} was refused {len(refusals)} times: {errors}')
    problems.extend(f'nothing was seen of {plan}' for plan in of_plans.values() if plan.end == 'half-close')


def _number(seen: Events) -> Any:
    if not seen:
        return None
    type, data = seen[0]
    return _HEALTHY if type == 'ask' else data if type == 'hello' else -1


def _number_raw(seen: Events) -> Any:
    start = b''.join(data for _, data in seen)[:4]
    return struct.unpack('!I', start)[0] if len(start) == 4 else None


# UDP


def _udp_round(settings: Settings, directory: str, seed: Any, plans: List[Plan], problems: List[str]) -> int:
    """Send datagrams of the plans' chunks and streams, from some ports, and no more at once than a system keeps."""
    raw = settings.parser == 'raw'
    rng = Random(f'{seed}/udp')
    frames = 0
    seen: Dict[Any, Events] = {}
    with contextlib.ExitStack() as stack:
        ipc = stack.enter_context(_ipc('fuzzed', directory, settings))
        server = ipc.serve_net('127.0.0.1', 0, 'udp4')

        def record(type: str, *arguments: Any) -> None:
            if type == 'error' and isinstance(arguments[0], BaseException):
                error = arguments[0]
                told_of_more = error.__class__ is nodeipc.IPCError and 'more datagram' in str(error)
                problems.extend(_wrong_error(error, "server 'fuzzed'", told_of_more))
            elif len(arguments) == 2 and isinstance(arguments[1], nodeipc.Socket):
                seen.setdefault(arguments[1].address, []).append((type, arguments[0]))

        server.on('*', record)
        server.on('data' if raw else 'ask', _answer_raw if raw else _answer)
        server.start()
        hostile = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(4)]
        healthy = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        wanted: Dict[Any, Events] = {}
        for sock in (*hostile, healthy):
            sock.bind(('127.0.0.1', 0))
            sock.settimeout(_SECONDS)
            wanted[sock.getsockname()] = []
        for number, plan in enumerate(plans):
            for datagram in (plan.stream, plan.stream[: len(plan.chunks[0])], *plan.chunks):
                sender = choose(rng, hostile)
                datagram = datagram[:30_000]
                sender.sendto(datagram, server.address)
                if raw:
                    events: Events = [('data', datagram)]
                    frames += 1
                else:
                    verdict = judge(datagram, settings)
                    events = verdict.events if None in verdict.codes else []
                    frames += verdict.frames
                wanted[sender.getsockname()].extend(events)
            # The answer comes when the server has read everything before the question.
            ask = b'%d' % number if raw else b'{"type":"ask","data":%d}%b' % (number, settings.delimiter.encode())
            answer = ask if raw else ask.replace(b'ask', b'answer')
            healthy.sendto(ask, server.address)
            wanted[healthy.getsockname()].append(('data', ask) if raw else ('ask', number))
            got = healthy.recv(65536)
            if got != answer:
                problems.append(f'the answer to {ask!r} was {got!r}')
        ipc.close(_SECONDS)
    for address, events in wanted.items():
        if fingerprint(seen.get(address, [])) != fingerprint(events):
            problems.append(f'datagrams of one sender were seen as {_short(seen.get(address))}, expected {_short(events)}')
    return frames


# The well-behaved peer

_HEALTHY = 0xFFFFFFFF


class _Healthy:
    """A client that emits numbers and counts what is answered, in a thread of its own."""

    def __init__(self, client: Any, raw: bool) -> None:
        self._client = client
        self._raw = raw
        self._changed = threading.Condition()
        self._sent = 0
        self._answers: List[Any] = []
        self._stopped = False
        self._problems: List[str] = []
        self._thread = threading.Thread(target=self._run)
        client.on('data' if raw else 'answer', self._answered)
        client.on('disconnect', self._lost)
        client.on('error', lambda error: self._problems.append(f'the healthy client has an error: {error!r}'))

    def start(self) -> None:
        self._client.wait_connected(_SECONDS)  # before the hostile ones are
        self._thread.start()

    def finish(self) -> List[str]:
        """Stop when all is answered; return what was wrong."""
        self._stopped = True
        self._thread.join()
        with self._changed:
            if not self._changed.wait_for(lambda: self._behind() <= 0 or self._problems, _SECONDS):
                self._problems.append(f'{self._behind()} answers to the healthy client are missing')
        if self._raw:
            right = b''.join(self._answers) == b''.join(map(self._frame, range(self._sent)))
        else:
            right = self._answers == list(range(self._sent))
        if not right:
            self._problems.append(f'the healthy client was answered {_short(self._answers)} to {self._sent} numbers')
        self._client.off('disconnect')
        self._client.disconnect(_SECONDS)
        return self._problems

    def _run(self) -> None:
        try:
            while not (self._problems or (self._stopped and self._sent)):
                if self._raw:
                    self._client.emit(self._frame(self._sent))
                else:
                    self._client.emit('ask', self._sent)
                with self._changed:
                    self._sent += 1
                    self._changed.wait_for(lambda: self._behind() < _WINDOW or self._problems, _SECONDS)
        except Exception as error:
            self._problems.append(f'the healthy client cannot emit: {error!r}')

    @staticmethod
    def _frame(number: int) -> bytes:
        return struct.pack('!II', 0xFFFFFFFF, number)  # where hostile ones have their number, none

    def _answered(self, data: Any) -> None:
        with self._changed:
            self._answers.append(data)
            self._changed.notify_all()

    def _lost(self) -> None:
        with self._changed:
            self._problems.append('the healthy client lost its connection')
            self._changed.notify_all()

    def _behind(self) -> int:
        answered = sum(map(len, self._answers)) // 8 if self._raw else len(self._answers)
        return self._sent - answered


# What must not happen beside


def _wrong_error(error: Any, name: str, allowed: bool = False) -> List[str]:
    if not (allowed or isinstance(error, (nodeipc.ProtocolError, OSError))):
        return [f'an error event was {error!r}']
    return [] if name in str(error) else [f'an error event does not name the endpoint: {error!r}']


@contextlib.contextmanager
def _no_tracebacks(problems: List[str]) -> Iterator[None]:
    """Peers are worth a warning, never an error or a traceback: those are for defects and for handlers that raise."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR or record.exc_info:
                problems.append(f'was logged: {logging.Formatter().format(record)}')

    logger, listener = logging.getLogger('nodeipc'), Listener()
    hooks = threading.excepthook, sys.unraisablehook
    level, propagate = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    threading.excepthook = lambda failure: problems.append(
        'a thread ended with ' + ''.join(traceback.format_exception(*failure[:3]))
    )
    sys.unraisablehook = lambda failure: problems.append(f'was ignored: {failure.exc_value!r} in {failure.object!r}')
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        logger.setLevel(level)
        logger.propagate = propagate
        logger.removeHandler(listener)


@contextlib.contextmanager
def _nothing_left(problems: List[str]) -> Iterator[None]:
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield

    def left() -> List[Any]:
        return [*(set(threading.enumerate()) - threads), *(_descriptors() - descriptors)]

    _within(lambda: not left())
    problems.extend(f'was left behind: {thing}' for thing in left())


def _descriptors() -> Set[str]:
    found = set()
    for name in os.listdir('/proc/self/fd') if os.path.isdir('/proc/self/fd') else ():
        with contextlib.suppress(OSError):
            found.add(f'descriptor {name} {os.readlink(f"/proc/self/fd/{name}")}')
    return found


def _within(predicate: Callable[[], bool], seconds: float = _SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 1000 else f'{text[:1000]}... ({len(text)} characters)'
