"""The parent of a soak: starts everything, has faults done, looks every second, and says at the end what became of all."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Match, Optional, Tuple

from ..certificates import Certificates
from ..faults.proxy import Proxy
from . import board as fields
from .board import CONNECTIONS, LANE, ROWS, Board, lane_of
from .faults import Injector
from .judge import Judge, Lane
from .processes import Process

MIB = 1 << 20

# What the lanes of a process are. Those that are direct see only what is done to processes.
DIRECT = ('emit', 'batch', 'call', 'news')
PROXIED = ('emit', 'batch', 'request', 'call', 'sync', 'churn', 'news')

# Those that are not one thread.
THREADS = {'emit': 2, 'request': 2, 'call': 2}

# Those are killed and ended; the others live as long as the soak, and are compared with themselves.
MORTAL = ('server-unix', 'server-tls', 'server-udp', 'client-unix-proxied', 'client-tcp-direct', 'client-tls-proxied')

# Bounds: what a process may have more than when it had warmed up.
MORE_THREADS = 64
MORE_DESCRIPTORS = 150
MORE_BYTES = 160 * MIB
# And at the end, when everybody is idle. It is what allocators keep: a server that had warmed up with 20 MiB, before large
# messages came, has 57 at the end, with the same 5.5 MiB of Python's objects, by tracemalloc.
LEFT_BYTES = 64 * MIB

# A row that has taken no step for so long, and nothing disturbed it, is stuck; and so is a child that does not answer.
STUCK_SECONDS = 20.0

# That the server is given at the end to take what was sent by somebody who was ended just before.
LAST_SECONDS = 2.0

# More than any number of a message.
NEVER = 1 << 62

# That a process is given to end, to come back, or to be replaced.
DRAIN_SECONDS = 60.0


class Broken(Exception):
    """An invariant is; no need to go on."""


class Soak:
    def __init__(
        self, seconds: float, seed: int, transports: Tuple[str, ...], wrong: str = '', every: float = 10.0,
        pace: float = 1.0, stuck: float = STUCK_SECONDS, faults: bool = True, say: Callable[[str], Any] = print,
    ) -> None:
        self.seconds, self.seed, self.transports, self.wrong, self.every = seconds, seed, transports, wrong, every
        self.pace, self.stuck, self.with_faults, self.say = pace, stuck, faults, say
        self._asked = ','.join(transports)
        self.judge = Judge()
        self.processes: Dict[str, Process] = {}
        self.proxies: Dict[str, Proxy] = {}
        self.injector = Injector(self, f'{seed}/faults')
        self.leaked_descriptors = self.leaked_threads = 0
        self._random = random.Random(f'{seed}/soak')
        self._problems: List[str] = []
        self.fronts: Dict[str, int] = {}  # the lanes before proxies, by the names of these
        self._next_row = LANE
        self._names: Dict[int, str] = {}  # of lanes, by their first rows
        self._live: Dict[int, str] = {}  # rows that somebody writes, and whose
        self._replaced = 0
        self._leaving: List[Tuple[Process, float]] = []
        self._restarting: List[Tuple[Process, Any, float]] = []
        self._parted: List[Tuple[List[int], float]] = []  # rows that nobody writes any more, and since when
        self._records = -1  # the file that all children write to
        self._unread = b''
        self._progress: Dict[int, Tuple[int, float]] = {}
        self._memory: Dict[str, Tuple[int, int, int]] = {}  # of those who live all the time: warmed up, most, at the end
        self._most_growth = 0  # of any process, in bytes, since it had warmed up
        self._interrupts = 0
        self._kills = 0
        self._is_finishing = False
        self._directory = ''
        self._board: Optional[Board] = None

    # The whole

    def run(self) -> int:
        """Return the exit code: 0 if all promises were kept."""
        self._directory = tempfile.mkdtemp(prefix='soak-')
        self._board = Board(os.path.join(self._directory, 'board'))
        self._records = os.open(os.path.join(self._directory, 'findings'), os.O_RDONLY | os.O_CREAT, 0o600)
        self._began = time.monotonic()
        try:
            try:
                self._start()
                self._warm_up()
                self._disturb()
            except KeyboardInterrupt:
                self.say('interrupted: everybody ends, and this is what there is so far')
            self._finish()
        except Broken as broken:
            self._problems.append(str(broken))
        except KeyboardInterrupt:
            self._problems.append('INTERRUPTED again: nothing was compared')
        finally:
            self._end_all()
        self._report()
        self._board.close()
        os.close(self._records)
        shutil.rmtree(self._directory, ignore_errors=True)
        return 1 if self._problems else 0

    def _start(self) -> None:
        self.say(f'{self.seconds:g} s of {", ".join(self.transports)}; seed {self.seed}')
        certificates = None
        if 'tls' in self.transports:
            try:
                certificates = Certificates(Path(self._directory))
            except LookupError as reason:
                self.say(f'without TLS: {reason}')
                self.transports = tuple(transport for transport in self.transports if transport != 'tls')
        for transport in self.transports:
            address: Any = os.path.join(self._directory, 'server')
            if transport != 'unix':
                address = ['127.0.0.1', self._free_port(socket.SOCK_DGRAM if transport == 'udp' else socket.SOCK_STREAM)]
            settings = {'tls': certificates.server()} if certificates and transport == 'tls' else {}
            spec = {'role': 'server', 'transport': transport, 'settings': settings}
            self._spawn({**spec, 'name': f'server-{transport}', 'address': address})
        self._await_begun()
        for transport in self.transports:
            address = self.processes[f'server-{transport}'].spec['address']
            settings = {'tls': certificates.client()} if certificates and transport == 'tls' else {}
            spec = {'role': 'client', 'transport': transport, 'settings': settings}
            if transport == 'udp':
                self._spawn({**spec, 'name': 'client-udp', 'address': address, 'kinds': ['datagrams']})
                continue
            self._spawn({**spec, 'name': f'client-{transport}-direct', 'address': address, 'kinds': DIRECT})
            for kind in PROXIED:  # each lane has its own, so that it is known whose connection a fault ends
                path = os.path.join(self._directory, f'proxy-{kind}') if transport == 'unix' else None
                name = f'{transport}/{kind}'
                on_break = functools.partial(self._break_front, name)
                self.proxies[name] = Proxy(address if path else (address[0], address[1]), path, on_break=on_break)
            self._spawn({**spec, 'name': f'client-{transport}-proxied', 'address': None, 'kinds': PROXIED})
        self._await_begun()

    def _warm_up(self) -> None:
        self._watch(min(5.0, max(1.0, self.seconds / 20)))
        self._drain()
        for process in self.processes.values():
            process.order('tidy').wait(self.stuck)
            process.first = self._status_of(process)
        self._resume()
        if self.wrong:
            name = next(name for name in self.processes if name.startswith('client'))
            self.processes[name].order(f'break-{self.wrong}')

    def _disturb(self) -> None:
        if self.with_faults:
            self.injector.start()
        remaining = self._began + self.seconds - time.monotonic() - min(5.0, self.seconds / 10)
        self._watch(max(remaining, self.seconds / 3), reports=True)  # also where all of it was taken by the start

    def interrupt(self, *_: Any) -> None:
        """The handler of Ctrl-C and SIGTERM: end soon, but not while a child is being started. The second is in a hurry."""
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt

    def _finish(self) -> None:
        self._is_finishing = True
        self.injector.hurry()
        self._watch(0.5)
        deadline = time.monotonic() + DRAIN_SECONDS
        while (
            self._leaving or self._restarting or self._parted
            or any(process.begun.value is None for process in self.processes.values())
        ):
            if time.monotonic() > deadline:
                raise Broken('HANG: a server or client did not come back')
            self._watch(0.1)
        self._drain()
        self._compare()

    def _watch(self, seconds: float, reports: bool = False) -> None:
        """Let it run, look every second, and do the faults that are due."""
        end = time.monotonic() + seconds
        look, report = 0.0, time.monotonic() + self.every
        while time.monotonic() < end:
            if self._interrupts and not self._is_finishing:
                raise KeyboardInterrupt
            self.injector.turn()
            self._attend()
            now = time.monotonic()
            if now >= look:
                look = now + 1
                self._look()
            if reports and now >= report:
                report = now + self.every
                self._say_progress()
            time.sleep(0.05)

    # Processes

    def _spawn(self, spec: Dict[str, Any]) -> None:
        name = spec['name']
        self._replaced += 1
        spec = {
            **spec, 'board': os.path.join(self._directory, 'board'),
            'findings': os.path.join(self._directory, 'findings'), 'seed': f'{self.seed}/{name}/{self._replaced}',
            'mortal': name in MORTAL and len(self.transports) > 1, 'pace': self.pace,
        }
        if spec['role'] == 'client':
            spec['lanes'] = []
            for kind in spec['kinds']:
                if self._next_row + LANE > ROWS:
                    raise Broken('the board is full')
                row, self._next_row = self._next_row, self._next_row + LANE
                address, front = spec['address'], f'{spec["transport"]}/{kind}'
                self.judge.lanes[row] = Lane(name, f'server-{spec["transport"]}')
                if address is None:
                    address, self.fronts[front] = self.proxies[front].address, row
                spec['lanes'].append([kind, row, address])
                self._names[row] = f'{name}/{kind}'
                for thread in range(THREADS.get(kind, 1)):
                    self._live[row + thread] = name
        self.processes[name] = Process(spec, self._directory, self._replaced)

    def _await_begun(self) -> None:
        for process in self.processes.values():
            if not process.begun.wait(30) or process.begun.value is None:
                raise Broken(f'FAILED: {process.name} did not start: {process.errors()}')

    def replace(self, process: Process, number: int) -> None:
        """End a process, and start another in its place when it is gone."""
        process.is_busy = True
        process.signal(number)
        self._leaving.append((process, time.monotonic() + DRAIN_SECONDS))
        if number == signal.SIGKILL:
            process.spec['killed'] = True

    def await_restart(self, process: Process) -> None:
        """Have a server stop and start."""
        self._restarting.append((process, process.order('restart'), time.monotonic() + DRAIN_SECONDS))

    def _attend(self) -> None:
        """Replace those that are gone, and see that what was begun ends."""
        now = time.monotonic()
        for entry in list(self._restarting):
            process, answer, deadline = entry
            if answer.wait(0):
                process.is_busy = False
                self._end_ends(process)
                self.judge.note(process.name, 1)
                self._restarting.remove(entry)
            elif now > deadline:
                raise Broken(f'HANG: {process.name} did not stop and start in {DRAIN_SECONDS} s\n{process.dump()}')
            else:
                self.judge.note(process.name, 0.1)
        for leaving in list(self._leaving):
            process, deadline = leaving
            if process.popen.poll() is not None:
                self._leaving.remove(leaving)
                self._gone(process)
            elif now > deadline:
                self._leaving.remove(leaving)
                raise Broken(f'HANG: {process.name} did not end in {DRAIN_SECONDS} s after SIGTERM\n{process.dump()}')
            else:
                self.judge.note(process.name, 0.1)
        for name, process in self.processes.items():
            if process.begun.value is None and process not in [process for process, _ in self._leaving]:
                self.judge.note(name, 0.1)
                if process.popen.poll() is not None or now - process.started > DRAIN_SECONDS:
                    raise Broken(f'FAILED: {name} did not start: {process.errors()}')
            elif process.popen.poll() is not None and not process.is_busy:
                raise Broken(f'FAILED: {name} has ended by itself, with {process.popen.returncode}: {process.errors()}')
        for parted in list(self._parted):
            rows, since = parted
            # The server takes its time, and may be stopped; but not when everything is over.
            if now > since + (LAST_SECONDS if self._is_finishing else 15):
                self._parted.remove(parted)
                for row in rows:
                    self._find_tail(row)

    def _break_front(self, name: str, made: float) -> None:
        """A proxy breaks a connection; in the thread of the proxy."""
        if name in self.fronts:
            self.judge.end_lane(self.fronts[name], made)

    def _end_ends(self, process: Process) -> None:
        for end in process.ends:
            end.ended = time.monotonic()
        process.ends = []

    def _find_tail(self, row: int) -> None:
        """What was accepted last by somebody who is gone, and has not arrived."""
        assert self._board is not None
        accepted, high = self._board.get(row, fields.ACCEPTED), self._board.get(row, fields.HIGH)
        if accepted > high:
            self.judge.hear({'what': 'hole', 'row': row, 'first': high + 1, 'last': accepted})

    def _find_kept(self, server: str) -> None:
        """Hear of the connections that a server who is gone has not told the end of."""
        assert self._board is not None
        for row, lane in self.judge.lanes.items():
            for kept in range(row + CONNECTIONS, row + LANE) if lane.server == server else ():
                connection = self._board.connection(kept)
                if connection[0]:
                    self.judge.hear({'what': 'sent', 'row': row, 'connection': connection})
                    self._board.set_connection(kept, 0)

    def _gone(self, process: Process) -> None:
        """A process has ended as it was told to."""
        killed = process.spec.get('killed')
        code = process.release(5)
        if code != 0 and not killed:
            self._problems.append(f'FAILED: {process.name} was ended by SIGTERM, and its exit code is {code}')
        self._end_ends(process)
        self._read()
        self._check_errors(process)
        assert self._board is not None
        rows = [row for row, name in self._live.items() if name == process.name]
        if process.spec['role'] == 'server':
            self._find_kept(process.name)
        for row in rows if killed else ():
            if row == lane_of(row):  # it cannot tell how its connection has ended
                self.judge.hear({
                    'what': 'end', 'row': row, 'accepted': [NEVER] * 2, 'tried': [NEVER] * 2, 'ended': time.monotonic(),
                    'planned': '', 'connection': self._board.connection(row), 'killed': True,
                })
        for row in rows:
            del self._live[row]
            self._progress.pop(row, None)
        if rows and process.spec['transport'] != 'udp':
            self._parted.append((rows, time.monotonic()))
        self._kills += bool(killed)
        spec = {key: value for key, value in process.spec.items() if key not in ('killed', 'lanes')}
        self._spawn(spec)

    def _end_all(self) -> None:
        """Whatever has happened: no process, thread or file of ours is left."""
        with _deaf_to_ctrl_c():
            if not self._problems:
                try:
                    self._part()
                except Broken as broken:
                    self._problems.append(str(broken))
            for process in [*self.processes.values(), *(process for process, _ in self._leaving)]:
                if self._problems:
                    process.popen.kill()
                process.signal(signal.SIGCONT)
                code = process.release(10)
                if not self._problems and not process.is_busy:
                    if code != 0:
                        self._problems.append(f'FAILED: {process.name} was told to end, and its exit code is {code}')
                    self._check_errors(process)
            for proxy in self.proxies.values():
                with contextlib.suppress(BaseException):
                    proxy.close()
            left = [name for name in os.listdir(self._directory) if (Path(self._directory) / name).is_socket()]
            if left and not self._problems:
                self._problems.append(f'LEFT: socket files {left}')

    def _part(self) -> None:
        """Everybody says goodbye, clients first; nothing may be left in any process."""
        for role in ('client', 'server'):
            parting = [
                (process, process.order('end')) for process in self.processes.values() if process.spec['role'] == role
            ]
            for process, answer in parting:
                if process.begun.value is None or process.is_busy:
                    continue
                if not answer.wait(DRAIN_SECONDS) or answer.value is None:
                    self._problems.append(f'HANG: {process.name} did not say goodbye\n{process.dump()}')
                    continue
                value = answer.value
                self.leaked_threads += value['left_threads']
                self.leaked_descriptors += value['left_descriptors']
                if value['left_threads']:
                    self._problems.append(f'LEAK: threads of {process.name} after its end: {value["names"]}')
                if value['left_descriptors']:
                    self._problems.append(f'LEAK: {value["left_descriptors"]} descriptors of {process.name} after its end')
                if role == 'server':
                    self._find_kept(process.name)
        self._read()
        self.judge.turn(all_of_it=True)
        self._problems += self.judge.problems
        self.judge.problems.clear()
        if not self._problems:
            self._check_sums()
        wrong = {name: count for name, count in self.totals().items() if name in ('lost', 'doubled', 'damaged') and count}
        if wrong and not self._problems:
            self._problems.append(f'FAILED: the board has {wrong}, and nobody has told of it')

    # Invariants

    def _look(self) -> None:
        """What is to be true at any time."""
        now = time.monotonic()
        for process in self.processes.values():
            if process.begun.value is None or process.is_busy:
                continue
            status = process.status
            if status is None or status.wait(0):
                if status is not None and status.value is not None:
                    process.resident = status.value['resident']
                    process.most = max(process.most, process.resident)
                    self._check_bounds(process, status.value)
                process.status, process.asked = process.order('status'), now
            elif now - process.asked > self.stuck:
                raise Broken(f'HANG: {process.name} does not answer\n{process.dump()}')
        for name, proxy in self.proxies.items():
            if proxy.failure is not None:
                raise Broken(f'FAILED: {name}: {proxy.failure!r}')
        self._check_progress(now)
        self._read()
        self.judge.turn()
        if self.judge.problems:
            raise Broken('\n'.join(self.judge.problems[:10]))

    def _read(self) -> None:
        """Hear what the children have found."""
        *lines, self._unread = (self._unread + os.read(self._records, 1 << 24)).split(b'\n')
        wrong = []
        for line in lines:
            record = json.loads(line)
            if record['what'] == 'wrong':
                wrong.append(record['text'])
            else:
                self.judge.hear(record)
        if wrong:
            raise Broken('\n'.join(wrong[:10]))

    def _check_bounds(self, process: Process, status: Dict[str, Any]) -> None:
        if process.first is None:
            if time.monotonic() - process.started > 5:
                process.first = status
            return
        self._most_growth = max(self._most_growth, status['resident'] - process.first['resident'])
        for what, more in (('threads', MORE_THREADS), ('descriptors', MORE_DESCRIPTORS), ('resident', MORE_BYTES)):
            before, now = process.first[what], status[what]
            if now > before + more:
                kind = 'GROWN' if what == 'resident' else 'LEAK'
                raise Broken(f'{kind}: {process.name} has {now:,} {what}, and had {before:,} when it had warmed up')

    def _check_progress(self, now: float) -> None:
        assert self._board is not None
        for row, name in self._live.items():
            steps = self._board.get(row, fields.PROGRESS)
            before, since = self._progress.get(row, (-1, now))
            if steps != before or self.judge.stands(row, grace=2):
                self._progress[row] = (steps, now)
            elif now - since > self.stuck:
                process = self.processes[name]
                raise Broken(f'HANG: row {row} of {name} has taken no step for {self.stuck} s, and nothing disturbs it\n'
                             f'{process.dump()}\n{self.processes[self.judge.lanes[lane_of(row)].server].dump()}')

    def _check_errors(self, process: Process) -> None:
        said = process.errors()
        if said:
            self._problems.append(f'STDERR: {process.name} said\n{said[:4000]}')

    def _status_of(self, process: Process) -> Dict[str, Any]:
        answer = process.order('status')
        if not answer.wait(self.stuck):
            raise Broken(f'HANG: {process.name} does not answer\n{process.dump()}')
        if answer.value is None:
            raise Broken(f'FAILED: {process.name} has ended by itself, with {process.popen.wait()}: {process.errors()}')
        return answer.value

    def _drain(self) -> None:
        """Everybody has its last message answered; then all that was sent must be there."""
        clients = [process for process in self.processes.values() if process.spec['role'] == 'client']
        for client in clients:
            client.order('drain').wait(self.stuck)
        deadline = time.monotonic() + 2 * self.stuck
        for client in clients:
            while not self._status_of(client)['drained']:
                if time.monotonic() > deadline:
                    raise Broken(f'HANG: {client.name} has a lane whose last message is not answered\n{client.dump()}')
                time.sleep(0.02)
        for process in self.processes.values():
            self._status_of(process)
        deadline = time.monotonic() + 10
        for row, name in self._live.items():
            if self.processes[name].spec['transport'] == 'udp':
                continue
            while not self._has_all(row):
                if time.monotonic() > deadline:
                    raise Broken(f'LOST: row {row} of {name}, after its last message was answered: {self._state(row)}')
                time.sleep(0.01)

    def _resume(self) -> None:
        for process in self.processes.values():
            if process.spec['role'] == 'client':
                process.order('resume')

    def _has_all(self, row: int) -> bool:
        assert self._board is not None
        lane = lane_of(row)
        seen = self._board.connection(lane)[:2]
        sent = [self._board.connection(kept)[:2] for kept in range(lane + CONNECTIONS, lane + LANE)]
        return self._board.get(row, fields.ACCEPTED) <= self._board.get(row, fields.HIGH) and seen in sent

    def _state(self, row: int) -> str:
        assert self._board is not None
        lane, numbers = lane_of(row), self._board.row(row)
        sent = [self._board.connection(kept)[:2] for kept in range(lane + CONNECTIONS, lane + LANE)]
        return (
            f'{numbers[fields.ACCEPTED]} accepted and {numbers[fields.HIGH]} arrived; down (connection, number) '
            f'{self._board.connection(lane)[:2]} arrived, and sent {[connection for connection in sent if connection[0]]}'
        )

    def _compare(self) -> None:
        """Idle again, everybody has what it had when it was idle before."""
        deadline = time.monotonic() + self.stuck
        for name, process in self.processes.items():
            process.order('tidy').wait(self.stuck)
            status = self._status_of(process)
            if process.first is None or process.spec['mortal']:
                continue
            while status['descriptors'] > process.first['descriptors'] and time.monotonic() < deadline:
                time.sleep(0.1)
                status = self._status_of(process)
            more = status['descriptors'] - process.first['descriptors']
            if more > 0:
                self.leaked_descriptors += more
                self._problems.append(f'LEAK: {name} has {more} descriptors more than when it had warmed up')
            before, after = process.first['resident'], status['resident']
            self._memory[name] = (before, max(process.most, after), after)
            if after > before + LEFT_BYTES:
                self._problems.append(f'GROWN: {name} has {_mib(after)}, and had {_mib(before)} when it had warmed up')

    # What is said

    def totals(self) -> Dict[str, int]:
        """Sums of the board."""
        assert self._board is not None
        sums: Dict[str, int] = collections.Counter()
        for row in (lane + thread for lane in self.judge.lanes for thread in range(CONNECTIONS)):
            numbers = self._board.row(row)
            up = max(numbers[fields.ACCEPTED], numbers[fields.HIGH])
            delivered = numbers[fields.UP_DELIVERED] + numbers[fields.DOWN_DELIVERED]
            sent = up + numbers[fields.DOWN_SENT]
            if self.judge.lanes[lane_of(row)].server == 'server-udp':
                sums['datagrams'] += sent
                sums['arrived'] += delivered
            else:
                sums['sent'] += sent + numbers[fields.NEWS_SENT]
                sums['delivered'] += delivered + numbers[fields.NEWS_DELIVERED]
                sums['reconnects'] += max(0, numbers[fields.CONNECTS] - 1)
            for name, parts in (
                ('lost', (fields.UP_LOST, fields.DOWN_LOST)), ('doubled', (fields.UP_DOUBLE, fields.DOWN_DOUBLE)),
                ('damaged', (fields.UP_DAMAGED, fields.DOWN_DAMAGED)), ('retried', (fields.RETRIED,)),
                ('unanswered', (fields.UNANSWERED,)),
            ):
                sums[name] += sum(numbers[part] for part in parts)
        sums['sent'] += self.judge.uncounted
        sums['lost'] += self.judge.lost
        sums['dropped'], sums['in flight'] = self.judge.dropped, self.judge.in_flight
        return sums

    def _check_sums(self) -> None:
        """What was sent is what was found to have arrived, and the gaps that were found, each counted by itself."""
        assert self._board is not None
        sums = self.totals()
        found = sums['delivered'] + sums['in flight'] + sums['dropped'] + sums['lost']
        if abs(sums['sent'] - found) > self._kills:  # a kill may be between the two counts of a message
            self._problems.append(f'FAILED: {sums["sent"]:,} were sent, and {found:,} found: {dict(sums)}')
        for lane in self.judge.lanes:
            connects = self._board.get(lane, fields.CONNECTS)
            for row in range(lane, lane + CONNECTIONS):
                unanswered = self._board.get(row, fields.UNANSWERED)
                if unanswered > connects:
                    text = f'row {row} has {unanswered} requests without an answer, and {connects} connections'
                    self._problems.append(f'FAILED: {text}')

    def _named(self, text: str) -> str:
        """Say whose the rows are."""

        def name(match: Match[str]) -> str:
            return f'{match.group()} ({self._names.get(lane_of(int(match.group(1))))})'

        return re.sub(r'\brow (\d+)', name, text)

    def _say_progress(self) -> None:
        sums = self.totals()
        faults = sum(self.injector.counts.values())
        memory = sum(process.resident for process in self.processes.values())
        self.say(
            f'{time.monotonic() - self._began:6.0f} s  sent {sums["sent"]:,}  delivered {sums["delivered"]:,}  '
            f'reconnects {sums["reconnects"]:,}  faults {faults:,}  {len(self.processes)} processes, {_mib(memory)}'
        )

    def _report(self) -> None:
        sums = self.totals()
        faults = ', '.join(f'{count:,} {what}' for what, count in sorted(self.injector.counts.items())) or 'none'
        seconds = time.monotonic() - self._began
        self.say(f'seconds {seconds:.0f}, seed {self.seed}, faults: {faults}')
        self.say(
            f'sent {sums["sent"]:,}  delivered {sums["delivered"]:,}  in flight at a cut {sums["in flight"]:,}  '
            f'dropped by goodbyes {sums["dropped"]:,}  lost {sums["lost"]:,}  duplicated {sums["doubled"]:,}  '
            f'damaged {sums["damaged"]:,}'
        )
        self.say(
            f'reconnects {sums["reconnects"]:,}  leaked descriptors {self.leaked_descriptors:,}  '
            f'leaked threads {self.leaked_threads:,}'
        )
        self.say(f'gaps at cuts {self.judge.gaps:,}, of at most {self.judge.most_in_flight:,} messages')
        self.say(
            f'requests that a cut left without an answer {sums["unanswered"]:,}  emits repeated after a timeout '
            f'{sums["retried"]:,}'
        )
        if 'udp' in self.transports:
            sent, arrived = sums['datagrams'], sums['arrived']
            self.say(f'datagrams (UDP may lose) sent {sent:,}  delivered {arrived:,}  not arrived {sent - arrived:,}')
        if self._memory:
            parts = [
                f'{name} {_mib(first)} at the start, {_mib(most)} at most, {_mib(last)} at the end'
                for name, (first, most, last) in self._memory.items()
            ]
            self.say('memory of those that were never replaced, warmed up and at the end idle: ' + '; '.join(parts))
        self.say(f'memory of any process was at most {_mib(self._most_growth)} more than when it had warmed up')
        if self._problems:
            self.say(self._named('\n'.join(['BROKEN:', *self._problems])))
            command = f'python -m tests.soak --seconds {self.seconds:g} --seed {self.seed} --transports {self._asked} '
            command += f'--pace {self.pace:g} --stuck {self.stuck:g}'
            if not self.with_faults:
                command += ' --no-faults'
            if self.wrong:
                command += f' --break {self.wrong}'
            self.say(f'to repeat it: {command}')

    def _free_port(self, kind: int) -> int:
        """One that the system gives nobody as the near end of a connection; or a client that tries to reach a server that is
        down could be given that server's port, and connect to itself."""
        for _ in range(1000):
            port = self._random.randrange(15000, 30000)
            with socket.socket(socket.AF_INET, kind) as probe, contextlib.suppress(OSError):
                probe.bind(('127.0.0.1', port))
                return port
        raise Broken('no port is free')


def _mib(size: int) -> str:
    return f'{size / MIB:.1f} MiB'


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """So that nothing is left behind because somebody is impatient."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def main(arguments: Any) -> int:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a TextIOWrapper
    soak = Soak(
        arguments.seconds, arguments.seed, tuple(arguments.transports.split(',')), arguments.wrong, arguments.every,
        arguments.pace, arguments.stuck, not arguments.no_faults,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as of a job in the background
            signal.signal(number, soak.interrupt)
    return soak.run()
