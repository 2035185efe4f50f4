"""A child that has clients: lanes, each of which uses the library in one way, numbers what it says, checks what it hears."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import threading
import time
from typing import Any, Dict, Iterator, List, Optional, Type

import nodeipc

from . import board as fields
from .board import Board
from .child import Role, guarded
from .ledger import Arrivals, Findings
from .payloads import Payloads, checksum, sign
from .servers import check_error

# Longer than any fault: who waits that long is stuck.
PATIENCE = 40.0


class Lane:
    """One client, or one after the other, and the threads that use it. The rows `row` and the next are its threads'.

    A lane is a thread that takes steps, until it is to drain: then it has its last message answered, so that all before it
    must have arrived, and waits.
    """

    threads = 1
    sync = False
    emit_timeout = 60000.0

    def __init__(self, role: ClientRole, row: int, name: str, address: Any) -> None:
        self.role = role
        self.row = row
        self.name = name
        self.address = address
        self.board = role.board
        self.findings = role.findings
        self.random = random.Random(f'{role.spec["seed"]}/{name}')
        self.arrivals = Arrivals(self.board, self.findings, row, self.threads)
        self.drained = [threading.Event() for _ in range(self.threads)]
        self.numbers = [0] * self.threads
        self._renewing = threading.Lock()
        self._leaving = threading.RLock()  # nobody asks while a goodbye is said: whether that has left would be unknown
        self._goodbye = 0  # connections that are being ended by us
        self.ipc: Optional[nodeipc.IPC] = None
        self.client: Any = None
        self.made = 0
        self.runners: List[threading.Thread] = []

    # What lanes differ in

    def step(self, thread: int) -> None:
        """Do something; whoever is disturbed comes back and does it again."""
        raise NotImplementedError

    # What they share

    def start(self) -> None:
        self.ipc = nodeipc.IPC(
            id='soak', silent=True, retry=50, retry_max=400, sync=self.sync, stall_timeout=20000, max_pending_bytes=2 << 20,
            emit_timeout=self.emit_timeout, **self.role.spec['settings']
        )
        self.renew()
        for thread in range(self.threads):
            body = guarded(functools.partial(self._run, thread), self.findings, self.name)
            runner = threading.Thread(target=body, name=f'soak-{self.name}', daemon=True)
            self.runners.append(runner)
            runner.start()

    def end(self) -> None:
        for runner in self.runners:
            runner.join(PATIENCE)
        self._goodbye = self.made
        if self.client is not None:
            self.client.disconnect(PATIENCE)
        if self.ipc is not None:
            self.ipc.close()

    def _run(self, thread: int) -> None:
        role = self.role
        while not role.ended.is_set():
            if role.broken and isinstance(self, Batch):  # the same each time, and with one thread
                self._break()
            if role.draining.is_set():
                if not self.drained[thread].is_set():
                    if not self.have_last_answered(thread):
                        continue
                    self.drained[thread].set()
                role.changed.wait(0.05)
                continue
            self.step(thread)
            self.board.add(self.row + thread, fields.PROGRESS)

    def rest(self, seconds: float) -> None:
        self.role.ended.wait(seconds * self.role.pace)

    def renew(self, old: Any = None) -> None:
        """Make a client, in place of `old`, to which a planned goodbye was said."""
        assert self.ipc is not None
        with self._renewing:
            if self.client is not old:
                return
            self.made += 1
            address = self.address
            connect: Any = self.ipc.connect_to if isinstance(address, str) else self.ipc.connect_to_net
            place = (address,) if isinstance(address, str) else tuple(address)
            self.client = connect(f'{self.name}-{self.made}', *place, self.listen)

    def listen(self, client: Any) -> None:
        goodbyes = self.made
        client.on('connect', self.arrivals.connected)
        client.on('disconnect', lambda: self.arrivals.disconnected(by_us=self._goodbye >= goodbyes))
        client.on('error', lambda error: check_error(self.findings, self.name, error))
        for type in ('down', 'answer', 'last'):
            client.on(type, self.arrivals.take)
        client.on('farewell', self.arrivals.take_farewell)

    def say_goodbye(self) -> None:
        """A planned reconnect: nothing that was emitted may be lost."""
        with self._leaving:
            client = self.client
            if self.random.random() < 0.5:  # else the goodbye has to do it
                with contextlib.suppress(nodeipc.NotConnectedError):  # what was lost with the connection before
                    client.flush(PATIENCE)
            self._goodbye = self.made
            client.disconnect(PATIENCE)
            self.renew(client)

    def be_sent_away(self) -> None:
        """Have the server end the connection, and be the first to emit after that: nothing can be lost for a reason."""
        # Once all before it was handled, this is at once.
        if self.have_last_answered(0) and self.emit(0, 'bye', '', _NOTHING):
            ends, patience = self.arrivals.ends, time.monotonic() + 15
            # What is emitted to a server that ends the connection is lost.
            while self.arrivals.ends == ends and time.monotonic() < patience and not self.role.ended.is_set():
                time.sleep(0.002)

    def message(self, thread: int, payload: Any, summed: int, wants_echo: bool = False) -> List[Any]:
        """The next message of a thread; `accepted` tells that it was emitted."""
        row, number = self.row + thread, self.numbers[thread] + 1
        self.board.set(row, fields.TRIED, number)
        return [row, number, sign(row, number, summed), payload, wants_echo]

    def accepted(self, thread: int, count: int = 1) -> None:
        self.numbers[thread] += count
        self.board.set(self.row + thread, fields.ACCEPTED, self.numbers[thread])

    def emit(self, thread: int, type: str, payload: Any, summed: int, wants_echo: bool = False, **options: Any) -> bool:
        """Emit the next message, with the same number again if it was not sent; False if we are to end meanwhile."""
        message = self.message(thread, payload, summed, wants_echo)
        while not self.role.ended.is_set():
            try:
                self.client.emit(type, message, **options)
            except nodeipc.EmitTimeout:
                self.board.add(self.row + thread, fields.RETRIED)
                options.pop('timeout', None)
            except nodeipc.NotConnectedError:  # another thread has said goodbye, and makes a new one
                self.rest(0.005)
            else:
                self.accepted(thread)
                return True
        return False

    def ask(self, thread: int, type: str, reply: str, payload: Any, summed: int) -> bool:
        """Request, and check the answer; False if the connection was lost meanwhile."""
        message = self.message(thread, payload, summed)
        try:
            answer = self.client.request(type, message, reply=reply, timeout=PATIENCE)
        except nodeipc.NotConnectedError:
            self.board.add(self.row + thread, fields.UNANSWERED)
            self.accepted(thread)  # it has left; nobody knows whether it has arrived
            return False
        self.accepted(thread)
        if answer[4] != message[1] or checksum(answer[3]) != summed:
            self.findings.wrong('DAMAGED', f'{self.name}: the answer to {message[1]} is that to {answer[4]}, or another one')
        return True

    def have_last_answered(self, thread: int) -> bool:
        with self._leaving:
            return self.ask(thread, 'last', 'last', '', _NOTHING)

    def _break(self) -> None:
        """Do wrong, once, for tests of what the soak finds."""
        how, self.role.broken = self.role.broken, ''
        self.role.do_wrong(how, self)


_NOTHING = checksum('')


class Emit(Lane):
    """Two threads that emit, some with little patience, and a planned goodbye now and then while the other one goes on."""

    threads = 2

    def step(self, thread: int) -> None:
        for _ in range(self.random.randrange(1, 40)):
            payload, summed = self.role.payloads.pick()
            options = {'timeout': self.random.choice((0, 0.01, 0.2))} if self.random.random() < 0.1 else {}
            if not self.emit(thread, 'up', payload, summed, self.random.random() < 0.1, **options):
                return
        self.rest(self.random.uniform(0, 0.04))
        if thread == 0 and self.random.random() < 0.02:
            self.say_goodbye()


class Batch(Lane):
    """Batches; an emit in one speaks for all before it, so they have no timeout."""

    def step(self, thread: int) -> None:
        count = self.random.randrange(1, 100)
        begun = self.numbers[0]
        self.board.set(self.row, fields.TRIED, begun + count)
        with self.client.batch():
            for number in range(begun + 1, begun + count + 1):
                payload, summed = self.role.payloads.pick()
                self.client.emit('up', [self.row, number, sign(self.row, number, summed), payload, False])
        self.accepted(0, count)
        self.rest(self.random.uniform(0, 0.1))
        if self.random.random() < 0.02:
            self.say_goodbye()
        elif self.random.random() < 0.04:
            self.be_sent_away()


class Request(Lane):
    """Two threads that ask on the same connection."""

    threads = 2

    def step(self, thread: int) -> None:
        payload, summed = self.role.payloads.pick()
        if self.ask(thread, 'ask', 'answer', payload, summed):
            self.rest(self.random.uniform(0, 0.01))


class Call(Lane):
    """Two threads that call."""

    threads = 2

    def step(self, thread: int) -> None:
        payload, summed = self.role.payloads.pick()
        message = self.message(thread, payload, summed)[:4]
        try:
            answer = self.client.call('check', *message, timeout=PATIENCE)
        except nodeipc.NotConnectedError:
            self.board.add(self.row + thread, fields.UNANSWERED)
            self.accepted(thread)
            return
        self.accepted(thread)
        if answer != message:
            self.findings.wrong('DAMAGED', f'{self.name}: the result of call {message[:2]} is {str(answer)[:80]!r}')
        self.rest(self.random.uniform(0, 0.01))


class Sync(Lane):
    """One request at a time, by `config.sync`."""

    sync = True

    def step(self, thread: int) -> None:
        payload, summed = self.role.payloads.pick()
        self.emit(0, 'ask', payload, summed)
        self.rest(self.random.uniform(0, 0.01))
        if self.random.random() < 0.01:
            self.be_sent_away()


class Churn(Lane):
    """Connects, emits and says goodbye, again and again."""

    def step(self, thread: int) -> None:
        for _ in range(self.random.randrange(1, 20)):
            payload, summed = self.role.payloads.pick()
            if not self.emit(0, 'up', payload, summed, self.random.random() < 0.2):
                return
        self.say_goodbye()
        self.rest(self.random.uniform(0, 0.1))


class News(Lane):
    """Iterates over what is broadcast, with a client as scripts make them; now and then it or the server says goodbye."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._events: Optional[Iterator[Any]] = None
        self._last = (0, 0)
        self._until = 0.0

    def renew(self, old: Any = None) -> None:
        address, settings = self.address, dict(self.role.spec['settings'])
        scheme = 'tls' if 'tls' in settings else 'tcp'
        where = f'unix:{address}' if isinstance(address, str) else f'{scheme}://{address[0]}:{address[1]}'
        self.made += 1
        self.client = nodeipc.connect(
            where, self.listen, silent=True, retry=50, retry_max=400, stall_timeout=20000, max_pending_bytes=2 << 20,
            emit_timeout=60000, **settings
        )
        self._events = self.client.events('news', timeout=0.5)
        self._last = (0, 0)
        self._plan()

    def _plan(self) -> None:
        self._until = time.monotonic() + self.random.uniform(0.5, 5)

    def listen(self, client: Any) -> None:
        super().listen(client)
        client.on('connect', functools.partial(self._tell, client))
        client.on('news', self.arrivals.take_news)

    def _tell(self, client: Any) -> None:
        with contextlib.suppress(nodeipc.NotConnectedError):  # a goodbye was faster
            client.emit('here', [self.row, 0, 0, '', False])

    def step(self, thread: int) -> None:
        assert self._events is not None
        try:
            event = next(self._events)
        except nodeipc.NotConnectedError:
            self._last = (0, 0)
            return
        except nodeipc.RequestTimeout:
            self._quiet()
            return
        sender, number = event.data[:2]  # the handler looks at the rest
        if self._last[0] and (sender, number) != (self._last[0], self._last[1] + 1):
            self.findings.wrong('LOST', f'{self.name}: the iterator gives news {sender, number} after {self._last}')
        self._last = (sender, number)
        if time.monotonic() > self._until and self.random.random() < 0.3:
            self._goodbye = self.made
            self.client.disconnect(PATIENCE)
            self.renew()
        elif time.monotonic() > self._until:
            self._plan()
            self.be_sent_away()

    def _quiet(self) -> None:
        """No news: that is no progress."""
        self.board.add(self.row, fields.PROGRESS, -1)


class Datagrams(Lane):
    """UDP, which may lose: numbers come at most once, and undamaged."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._payloads = Payloads(f'{self.role.spec["seed"]}/{self.name}', 4000)
        self._seen: Dict[int, int] = {}
        self._heard = 0

    def renew(self, old: Any = None) -> None:
        host, port = self.address
        self.made += 1
        self.client = nodeipc.connect(f'udp://{host}:{port}', self.listen, silent=True)

    def listen(self, client: Any) -> None:
        client.on('connect', lambda: self.board.add(self.row, fields.CONNECTS))
        for type in ('down', 'last'):
            client.on(type, self._take)

    def _take(self, data: Any) -> None:
        token, number, signature, payload, _ = data
        if signature != sign(self.row, number, checksum(payload)):
            self.board.add(self.row, fields.DOWN_DAMAGED)
            self.findings.wrong('DAMAGED', f'{self.name}: datagram {number} is not what was sent')
        if number <= self._seen.get(token, 0):
            self.board.add(self.row, fields.DOWN_DOUBLE)
            self.findings.wrong('DUPLICATED', f'{self.name}: datagram {number} came after {self._seen[token]}')
        self._seen[token] = number
        self.board.add(self.row, fields.DOWN_DELIVERED)

    def step(self, thread: int) -> None:
        for _ in range(self.random.randrange(1, 10)):
            payload, summed = self._payloads.pick()
            message = self.message(0, payload, summed, self.random.random() < 0.2)
            with contextlib.suppress(OSError):  # nobody is there
                self.client.emit('up', message)
            self.accepted(0)  # or lost, as datagrams are
        heard = sum(self._seen.values())
        if heard == self._heard:
            self.board.add(self.row, fields.PROGRESS, -1)  # nobody answers: that is none
        self._heard = heard
        self.rest(self.random.uniform(0, 0.02))

    def have_last_answered(self, thread: int) -> bool:
        message = self.message(0, '', _NOTHING)
        try:
            self.client.request('last', message, timeout=1)
        except (OSError, nodeipc.IPCError):
            return False
        finally:
            self.accepted(0)
        return True


KINDS: Dict[str, Type[Lane]] = {
    'emit': Emit, 'batch': Batch, 'request': Request, 'call': Call, 'sync': Sync, 'churn': Churn, 'news': News,
    'datagrams': Datagrams,
}


class ClientRole(Role):
    def __init__(self, spec: Dict[str, Any], board: Board, findings: Findings) -> None:
        self.spec = spec
        self.board = board
        self.findings = findings
        self.pace = spec['pace']
        self.payloads = Payloads(spec['seed'])
        self.ended = threading.Event()
        self.draining = threading.Event()
        self.changed = threading.Event()  # never set: to wait a little
        self.broken = ''
        self._kept: List[Any] = []
        self._lanes = [
            KINDS[kind](self, row, f'{spec["name"]}/{kind}', address) for kind, row, address in spec['lanes']
        ]

    def begin(self) -> Dict[str, Any]:
        for lane in self._lanes:
            lane.start()
        return {}

    def end(self) -> None:
        self.ended.set()
        for lane in self._lanes:
            lane.end()
        self._lanes.clear()

    def status(self) -> Dict[str, Any]:
        return {'drained': all(drained.is_set() for lane in self._lanes for drained in lane.drained)}

    def do(self, what: str) -> None:
        if what == 'drain':
            for lane in self._lanes:
                for drained in lane.drained:
                    drained.clear()
            self.draining.set()
        elif what == 'resume':
            self.draining.clear()
        elif what.startswith('break-'):
            self.broken = what[len('break-'):]
        else:
            raise ValueError(what)

    def do_wrong(self, how: str, lane: Lane) -> None:
        """What a test of the soak asks for; in the thread of the lane."""
        if how == 'lose':
            lane.message(0, '', _NOTHING)
            lane.accepted(0)
        elif how == 'lose-end':
            lane.message(0, '', _NOTHING)
            lane.accepted(0)
            lane.say_goodbye()
        elif how == 'double':
            message = lane.message(0, '', _NOTHING)
            lane.client.emit('up', message)
            lane.client.emit('up', message)
            lane.accepted(0)
        elif how == 'damage':
            lane.emit(0, 'up', 'damaged', _NOTHING)
        elif how == 'leak-thread':
            threading.Thread(target=threading.Event().wait, name='leaked', daemon=True).start()
        elif how == 'leak-descriptor':
            self._kept.append(os.open(os.devnull, os.O_RDONLY))
        elif how == 'hang':
            threading.Event().wait()
        elif how == 'grow':
            for _ in range(40):
                self._kept.append(b'x' * (8 << 20))
        else:
            raise ValueError(how)

