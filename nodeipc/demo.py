"""``python3 -m nodeipc demo``: two processes talk, over a Unix socket, TCP, TLS and UDP.

The calling process is the stage: it starts the two, shows what they say as they say it, and ends them. It has no thread,
and it leaves no process and no file behind when it is interrupted, terminated or fails. `_world` and `_hello`, at the
end, are the two roles: what an application would write.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from typing import Any, Callable, Deque, Iterator, List, Tuple, Union

from . import colors
from .client import Client
from .events import Emitter
from .instance import IPC
from .log import render
from .server import Server, Socket
from .socketfile import check_path

# What one step may take before the demo is given up: far more than on the slowest machine, and bounded.
_STEP_SECONDS = 15.0

# Of `hello`: soon enough not to bore, late enough for the disconnection to be seen.
_RETRY_MILLISECONDS = 200

_PINGS = 1000

# What the certificates are for.
_NAMES = 'subjectAltName=IP:127.0.0.1'

_COMMAND = (sys.executable, '-m', 'nodeipc.demo')

_LABELS = {'demo': colors.data, 'world': colors.variable, 'hello': colors.good}


def run() -> int:
    """Show the demo on standard output; return 0, or 1 when a process failed or hung, with the reason on stderr.

    For the main thread only, because it handles signals.
    """
    check_path('demo')  # before what Windows has not, either
    with _termination_raises(), _signals(signal.SIG_BLOCK), \
            tempfile.TemporaryDirectory(prefix='nodeipc-demo-') as directory, \
            contextlib.closing(_Stage(directory)) as stage:
        try:
            _play(stage)
            code = 0
        except _Failure as failure:
            print(f'nodeipc demo: {failure}', file=sys.stderr)
            code = 1
        stage.show_errors()
        return code


def _play(stage: _Stage) -> None:
    stage.say(f'pid {os.getpid()} starts two processes, world and hello, which talk over a Unix socket')
    world = stage.enter('world', 'unix')
    stage.wait_for(world, 'listening')
    hello = stage.enter('hello', 'unix')
    unix = stage.wait_for(hello, 'round trip')

    stage.say('world is stopped and started again; hello finds it by itself')
    stage.exit(world)
    world = stage.enter('world', 'unix')
    stage.wait_for(hello, 'round trip')
    stage.exit(hello)
    stage.exit(world)

    took = {'the Unix socket': unix, 'TCP': _play_again(stage, 'tcp')}
    try:
        stage.make_certificates()
    except _Failure as failure:
        stage.say(f'TLS is left out: {failure}')
    else:
        took['TLS'] = _play_again(stage, 'tls')
    took['UDP'] = _play_again(stage, 'udp')
    stage.say(
        'done: messages, replies, broadcasts and a reconnection between two processes; a round trip took '
        f'{", ".join(f"{_micro(seconds)} over {way}" for way, seconds in took.items())} (medians of {_PINGS:,})'
    )


def _play_again(stage: _Stage, transport: str) -> float:
    more = ', each of the two showing a certificate that the other trusts' if transport == 'tls' else ''
    stage.say(f'the same over {transport.upper()}{more}')
    world = stage.enter('world', transport)
    _, port = stage.wait_for(world, 'listening')
    hello = stage.enter('hello', transport, port)
    median: float = stage.wait_for(hello, 'round trip')
    stage.exit(hello)
    stage.exit(world)
    return median


class _Failure(Exception):
    """A process of the demo failed or hung."""


class _Player:
    """A child process, and what it wrote to stderr so far. It ends when its stdin does: when the stage says so or dies."""

    def __init__(self, role: str, process: subprocess.Popen[bytes]) -> None:
        self.role = role
        self.process = process
        self.stdin: Any = process.stdin
        self.stderr: Any = process.stderr
        self.errors = b''
        self.gone = False

    def __str__(self) -> str:
        return f'{self.role} (pid {self.process.pid})'


class _Stage:
    """The child processes, and the one pipe that they all write to.

    Because it is one, what a process says in answer to another is shown after what it answers. A line is a JSON array:
    who, what and a value; ``says`` is for the audience, everything else for the stage.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._players: List[_Player] = []
        self._selector = selectors.DefaultSelector()
        self._pipe, self._children_pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._unfinished_line = b''
        self._heard: Deque[Tuple[str, str, Any]] = deque()

    def close(self) -> None:
        """Kill what is still running and close everything."""
        for player in self._players:
            player.process.kill()
            player.process.wait()
            player.stdin.close()
            player.stderr.close()
        self._selector.close()
        os.close(self._pipe)
        os.close(self._children_pipe)

    def say(self, text: str) -> None:
        """Show a line of the stage's own."""
        _show('demo', text)

    def make_certificates(self) -> None:
        """Make a key and a certificate for each role, which the other will trust. Raises _Failure where that cannot be."""
        for role in ('world', 'hello'):
            own = ('-keyout', f'{role}.key', '-out', f'{role}.pem', '-subj', f'/CN={role}', '-addext', _NAMES)
            key = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes')
            command = ('openssl', 'req', '-x509', '-days', '1', *key, *own)
            try:
                process = subprocess.Popen(
                    command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
                )
            except OSError as error:
                raise _Failure(f'certificates are made by the openssl command, which does not run here ({error})') from error
            with process:
                try:
                    with _signals(signal.SIG_UNBLOCK):
                        _, errors = process.communicate(timeout=_STEP_SECONDS)
                except subprocess.TimeoutExpired:
                    raise _Failure(f'the openssl command made no certificate within {_STEP_SECONDS:g} s') from None
                finally:
                    process.kill()
            if process.returncode != 0:
                raise _Failure(f'openssl makes no certificates: {errors.decode(errors="replace").strip()}')

    def enter(self, role: str, transport: str, port: int = 0) -> _Player:
        """Start a process, for the Unix socket in the directory of the stage, or for world's port; 0: any that is free."""
        # It finds this very package, and its directory is an empty one, in which nothing can hide a module.
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.pathsep.join(filter(None, (package, os.environ.get('PYTHONPATH'))))
        try:
            process = subprocess.Popen(
                (*_COMMAND, role, self._directory, transport, str(port)),
                stdin=subprocess.PIPE,
                stdout=self._children_pipe,
                stderr=subprocess.PIPE,
                cwd=self._directory,
                env={**os.environ, 'PYTHONPATH': path},
                start_new_session=True,  # a Ctrl-C is for the stage alone
            )
        except OSError as error:
            raise _Failure(f'{role} cannot be started: {error}') from error
        player = _Player(role, process)
        self._players.append(player)
        self._selector.register(player.stderr, selectors.EVENT_READ, player)
        return player

    def wait_for(self, player: _Player, what: str) -> Any:
        """Show what is said until `player` tells `what`; return the value it tells with it."""
        deadline = time.monotonic() + _STEP_SECONDS
        while True:
            while self._heard:
                heard = self._heard.popleft()
                self._show(heard)
                if heard[:2] == (player.role, what):
                    return heard[2]
            for other in self._players:
                if other.gone and (other is player or other.process.returncode != 0):
                    raise _Failure(f'{other} ended with exit code {other.process.returncode}, but had more to do')
            self._listen(deadline, f'{player} has not come to {what!r}')

    def exit(self, player: _Player) -> None:
        """Have a process end, and show what is said until it has."""
        deadline = time.monotonic() + _STEP_SECONDS
        player.stdin.close()
        while not player.gone:
            self._listen(deadline, f'{player} has not ended')
            while self._heard:
                self._show(self._heard.popleft())
        if player.process.returncode != 0:
            raise _Failure(f'{player} ended with exit code {player.process.returncode}')

    def show_errors(self) -> None:
        """Show what the processes wrote to stderr."""
        for player in self._players:
            if player.errors:
                print(f'{player} wrote to stderr:\n{player.errors.decode(errors="replace")}', file=sys.stderr)

    def _show(self, heard: Tuple[str, str, Any]) -> None:
        who, what, value = heard
        if what == 'says':
            _show(who, value)

    def _listen(self, deadline: float, complaint: str) -> None:
        """Wait until something is said or somebody is gone."""
        remaining = deadline - time.monotonic()
        with _signals(signal.SIG_UNBLOCK):
            ready = self._selector.select(remaining) if remaining > 0 else []
        if not ready:
            raise _Failure(f'{complaint} within {_STEP_SECONDS:g} s')
        for key, _ in ready:
            if key.data is not None:
                self._read_errors(key.data)
        # Last, and all that the pipe can hold, so that of somebody who is gone everything has been read.
        with contextlib.suppress(BlockingIOError):
            *lines, self._unfinished_line = (self._unfinished_line + os.read(self._pipe, 1 << 20)).split(b'\n')
            self._heard.extend(tuple(json.loads(line)) for line in lines)

    def _read_errors(self, player: _Player) -> None:
        chunk = os.read(player.stderr.fileno(), 1 << 16)
        player.errors += chunk
        if not chunk:
            self._selector.unregister(player.stderr)
            with contextlib.suppress(subprocess.TimeoutExpired):  # then it has no exit code, which is not 0 either
                player.process.wait(_STEP_SECONDS)
            player.gone = True


_ENDING = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


@contextlib.contextmanager
def _signals(how: signal.Sigmasks) -> Iterator[None]:
    """Block or unblock Ctrl-C and the like. The stage takes them only while it waits, so never with half a child."""
    before = signal.pthread_sigmask(how, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _termination_raises() -> Iterator[None]:
    """Have all of them end this process by an exception, as Ctrl-C does."""

    def end(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(who: str, text: str) -> None:
    """Print a line: in colour if the output is a terminal, and with what characters it has."""
    line = render([_LABELS[who](f'{who:5} │'), text])
    encoding = sys.stdout.encoding or 'utf-8'
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        line = line.replace('│', '|').replace('µ', 'u').encode(encoding, 'backslashreplace').decode(encoding)
    print(line, flush=True)


def _micro(seconds: float) -> str:
    return f'{seconds * 1e6:.0f} µs'


# The child processes

Emit = Callable[[str, Any], None]
Say = Callable[..., None]
Tell = Callable[[str, Any], None]


def _world(ipc: IPC, transport: str, say: Say, tell: Tell) -> None:
    """The server: it answers each message and broadcasts that it came."""

    def ready(server: Server) -> None:
        say(colors.good, f'pid {os.getpid()}, listening at', _readable(server.address))

        @server.on('connect')
        def connect(socket: Socket) -> None:
            who = f'pid {socket.peer.pid}' if socket.peer else _readable(socket.address)
            if socket.certificate:
                who += ', with the certificate of ' + socket.certificate['subject'][0][0][1]
            say(colors.good, 'heard a new peer :' if transport == 'udp' else 'a client connected :', who)

        @server.on('message')
        def message(data: Any, socket: Socket) -> None:
            say(colors.debug, 'got a message :', data)
            socket.emit('message', data + ' world!')
            server.broadcast('news', f'somebody said {data}')

        @server.on('ping')
        def ping(data: Any, socket: Socket) -> None:
            socket.emit('pong', data)

        @server.on('socket.disconnected')
        def disconnected() -> None:
            say(colors.notice, 'forgot a peer' if transport == 'udp' else 'a client disconnected')

    if transport == 'unix':
        server = ipc.serve(ready)
    elif transport != 'udp':
        server = ipc.serve_net(ready)
    else:
        server = ipc.serve_net('udp4', ready)
    server.start()
    tell('listening', server.address)


def _hello(ipc: IPC, transport: str, say: Say, tell: Tell) -> None:
    """The client: each time it is connected it says hello, and then measures how long a round trip takes.

    UDP has neither clients nor connections: there it is a server too, and begins by itself. It repeats nothing that may be
    lost, for the stage waits so long and no longer.
    """

    def converse(here: Emitter, emit: Emit) -> None:
        seconds: List[float] = []

        @here.on('message')
        def message(data: Any) -> None:
            say(colors.debug, 'got a message from world :', data)

        @here.on('news')
        def news(data: Any) -> None:
            say(colors.debug, 'got a broadcast from world :', data)
            seconds.clear()
            emit('ping', time.perf_counter())

        @here.on('pong')
        def pong(emitted: float) -> None:
            seconds.append(time.perf_counter() - emitted)
            if len(seconds) < _PINGS:
                emit('ping', time.perf_counter())
            else:
                median = sorted(seconds)[_PINGS // 2]
                say(colors.debug, f'{_PINGS:,} pings there and back, median :', _micro(median))
                tell('round trip', median)

    def ready(world: Client) -> None:
        say(colors.good, f'pid {os.getpid()}, connecting to', _readable(world.address))
        converse(world, world.emit)

        @world.on('connect')
        def connect() -> None:
            say(colors.rainbow, '## connected to world ##')
            world.emit('message', 'hello')

        @world.on('disconnect')
        def disconnect() -> None:
            say(colors.notice, 'disconnected from world')

    def ready_udp(server: Server) -> None:
        world = (ipc.config.network_host, ipc.config.network_port)
        say(colors.good, f'pid {os.getpid()}, at', _readable(server.address), 'emits to', _readable(world))
        emit = functools.partial(server.emit, world)
        converse(server, emit)
        emit('message', 'hello')

    if transport == 'unix':
        ipc.connect_to('world', ready)
    elif transport != 'udp':
        ipc.connect_to_net('world', ready)
    else:
        ipc.serve_net(0, 'udp4', ready_udp).start()


def _readable(address: Union[str, Tuple[str, int]]) -> str:
    return address if isinstance(address, str) else '{}:{}'.format(*address)


def _main(role: str, directory: str, transport: str, port: str) -> None:
    """Play a role in a child process until stdin ends."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)

    def tell(what: str, value: Any) -> None:
        os.write(1, json.dumps([role, what, value]).encode() + b'\n')  # one write: lines never mix

    def say(theme: Callable[..., str], text: str, *values: Any) -> None:
        ipc.log(theme(text, force=True), *values)  # the stage takes the colours out if it has no terminal

    ipc = IPC(id=role, retry=_RETRY_MILLISECONDS, log_in_color=True, logger=lambda line: tell('says', line))
    ipc.config.socket_root = os.path.join(directory, '')
    ipc.config.network_port = int(port)
    if transport == 'tls':
        other = 'hello' if role == 'world' else 'world'
        ipc.config.tls = {
            'private': os.path.join(directory, f'{role}.key'),
            'public': os.path.join(directory, f'{role}.pem'),
            'trusted_connections': os.path.join(directory, f'{other}.pem'),
        }
    with ipc:
        {'world': _world, 'hello': _hello}[role](ipc, transport, say, tell)
        sys.stdin.read()
        say(colors.notice, 'stopping')


if __name__ == '__main__':
    _main(*sys.argv[1:])
