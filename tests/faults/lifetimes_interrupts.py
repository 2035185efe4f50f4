"""A program whose signal handlers, or objects' ``__del__``, use nodeipc at any moment: while it emits, asks, connects, ends.

Arguments: ``signal``, ``del`` or ``raise``, a seed, how many interruptions, and, as JSON, config.tls of the server and
of the client that most is done with, if that is to be a TLS connection. Prints what came of each kind of act, as JSON;
says on stderr what it should not have met, and dumps the stacks and fails if it hangs.
"""

from __future__ import annotations

import collections
import faulthandler
import gc
import json
import logging
import random
import signal
import sys
import tempfile
import threading
from typing import Any, Callable, Dict, List

import nodeipc
from nodeipc import IPC

_HUNG_SECONDS = 120


class Interrupted(Exception):
    """Raised by a signal handler, as KeyboardInterrupt is."""


class Program:
    """A server, clients that talk to it, and what interrupts that."""

    def __init__(self, directory: str, seed: str, tls: str) -> None:
        self.chance = random.Random(seed)
        self.directory = f'{directory}/'
        self.world = self.make('world')
        self.server = self.world.serve()
        self.ipc = self.make('client')
        self.instances = [self.ipc, self.world]
        if tls:
            settings = json.loads(tls)
            secure, own = self.make('secure', tls=settings[0]), self.make('secure-client', tls=settings[1])
            self.instances += [own, secure]
            #: Of `mine`, which most is done with, and interrupted.
            self.home = secure.serve_net('127.0.0.1', 0)
        else:
            self.home = self.server
        for server in {self.server, self.home}:
            server.on('message', lambda data, socket: socket.emit('message', data))
            server.start()
        self.other, self.third = (self.connect(id) for id in ('other', 'third'))
        self.mine = own.connect_to_net('mine', *self.home.address) if tls else self.connect('mine')
        self.sync = self.make('asking', sync=True)
        self.asking = self.sync.connect_to('world')
        for client in (self.mine, self.other, self.third):
            client.wait_connected()
        self.outcome: Dict[str, Dict[str, int]] = collections.defaultdict(collections.Counter)
        self.unexpected: List[str] = []
        self.left = 0
        self.acts = [name[4:] for name in dir(self) if name.startswith('act_')]

    def make(self, id: str, **settings: Any) -> IPC:
        return IPC(id=id, socket_root=self.directory, retry=5, silent=True, **settings)

    def connect(self, id: str) -> nodeipc.Client:
        return self.ipc.connect_to(id, self.server.address)

    # What interrupts

    def act_emit(self) -> None:
        self.mine.emit('noise', 1)

    def act_emit_elsewhere(self) -> None:
        self.other.emit('noise', 1)

    def act_emit_to_sync(self) -> None:
        self.asking.emit('message', 1)

    def act_broadcast(self) -> None:
        self.home.broadcast('news', 1)

    def act_request(self) -> None:
        assert self.mine.request('message', 'inner', reply='message') is not None

    def act_request_elsewhere(self) -> None:
        assert self.other.request('message', 'inner') == 'inner'

    def act_iterate(self) -> None:
        with self.third.events('message') as events:
            self.third.emit('message', 'inner')
            next(events)

    def act_on_off(self) -> None:
        for emitter in (self.mine, self.home):
            emitter.off('noise', emitter.on('noise', _nothing))
            emitter.once('never', _nothing)
            emitter.off('never')

    def act_on_connect(self) -> None:
        self.mine.off('connect', self.mine.on('connect', _nothing))

    def act_disconnect(self) -> None:
        self.ipc.disconnect(f'spare-{self.chance.randrange(4)}')
        self.connect(f'spare-{self.chance.randrange(4)}')

    def act_close(self) -> None:
        ipc = self.make('short')
        ipc.connect_to('world')
        ipc.close()

    def act_stats(self) -> None:
        self.mine.stats()
        self.home.stats()
        assert len(self.home.sockets) >= 0

    def interrupt(self) -> None:
        """Do one of those, whatever has been interrupted."""
        self.left -= 1
        name = self.chance.choice(self.acts)
        try:
            getattr(self, f'act_{name}')()
            self.outcome[name]['done'] += 1
        except RuntimeError as error:
            if 'signal handler or __del__' not in str(error):
                self.unexpected.append(f'{name}: {error!r}')
            self.outcome[name]['refused'] += 1
        except Exception as error:
            self.unexpected.append(f'{name}: {error!r}')

    # What is interrupted

    def work(self) -> None:
        kind = self.chance.choice(('emit', 'request', 'batch', 'connect', 'on', 'broadcast', 'flush', 'once'))
        client = self.mine
        if kind == 'emit':
            client.emit('noise', 'x' * 100)
        elif kind == 'request':
            assert client.request('message', 'outer') in ('outer', 'inner')
        elif kind == 'batch':
            with client.batch():
                client.emit('noise', 1)
                client.emit('noise', 2)
        elif kind == 'connect':
            spare = self.connect(f'worked-{threading.get_ident()}')
            spare.wait_connected()
            spare.disconnect()
        elif kind == 'broadcast':
            self.home.broadcast('news', 1)
        elif kind == 'flush':
            client.flush()
        else:
            client.off('noise', client.on('noise', _nothing))

    def by_signals(self, count: int) -> None:
        """Interrupt the main thread `count` times."""
        self.left = count
        is_inside = False

        def handle(*_: Any) -> None:
            nonlocal is_inside
            if is_inside:
                return
            is_inside = True
            try:
                self.interrupt()
            finally:
                is_inside = False
                signal.setitimer(signal.ITIMER_REAL, self.chance.uniform(2e-5, 6e-4) if self.left > 0 else 0)

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 1e-3)
        while self.left > 0:
            self.work()

    def by_collector(self, count: int) -> None:
        """Have the collector run ``__del__`` wherever it comes to, in three threads and the library's own."""
        self.left = count
        here = threading.local()
        program = self

        class Garbage:
            def __init__(self) -> None:
                self.me = self

            def __del__(self) -> None:
                if not getattr(here, 'is_inside', False) and program.left > 0:
                    here.is_inside = True
                    program.interrupt()
                    here.is_inside = False

        def litter(*_: Any) -> None:
            Garbage()

        def litter_serving(*_: Any) -> None:  # where nobody may wait for what this very connection is to be asked next
            here.is_inside = True
            Garbage()
            here.is_inside = False

        self.mine.on('message', litter)
        self.home.on('noise', litter_serving)
        self.server.on('connect', litter_serving)

        def drive() -> None:
            while self.left > 0:
                litter()
                self.work()

        gc.set_threshold(1)
        threads = [threading.Thread(target=drive) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gc.set_threshold(700)

    def by_exceptions(self, count: int) -> None:
        """Raise out of whatever is under way."""
        self.left = count
        is_armed = False

        def handle(*_: Any) -> None:
            nonlocal is_armed
            if is_armed:
                is_armed = False  # once
                raise Interrupted

        def work() -> str:
            """Work until it is interrupted; return what else came of it."""
            nonlocal is_armed
            outcome = ''
            try:
                is_armed = True
                signal.setitimer(signal.ITIMER_REAL, self.chance.uniform(1e-5, 1e-3))
                while is_armed:
                    self.work()
            except nodeipc.NotConnectedError:  # of what has been interrupted, and its connection closed for that
                outcome = 'lost'
            except RuntimeError as error:  # as threading.Condition makes of one that comes when it lets go of its lock
                if 'un-acquired lock' not in str(error):
                    raise
                outcome = 'unlocked'
            is_armed = False
            return outcome

        signal.signal(signal.SIGALRM, handle)
        while self.left > 0:
            self.left -= 1
            try:  # here, and not in there, where from CPython 3.12 on a signal at the end of a loop is outside of its `try`
                outcome = work()
            except Interrupted:
                outcome = 'done'
            self.outcome['raise'][outcome] += 1

    def end(self) -> None:
        """All is as it was: everybody is answered and heard, and closes."""
        for client in (self.mine, self.other, self.third):
            client.wait_connected()
            while client.request('message', 'the end', timeout=10) != 'the end':
                pass  # answers of what was interrupted
        for ipc in (self.sync, *self.instances):
            ipc.close()
        assert {thread.name for thread in threading.enumerate()} == {'MainThread'}


def _nothing(*_: Any) -> None:
    pass


def main(how: str, seed: str, count: str, tls: str = '') -> None:
    logging.getLogger('nodeipc').setLevel(logging.ERROR)  # connections that an exception has cost
    faulthandler.dump_traceback_later(_HUNG_SECONDS, exit=True)
    acts: Dict[str, Callable[[Program, int], None]] = {
        'signal': Program.by_signals, 'del': Program.by_collector, 'raise': Program.by_exceptions,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        program = Program(directory, seed, tls)
        acts[how](program, int(count))
        program.end()
    for text in program.unexpected:
        print(text, file=sys.stderr)
    print(json.dumps(program.outcome))


if __name__ == '__main__':
    main(*sys.argv[1:])
