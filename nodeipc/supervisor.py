"""How a command is a good citizen of a shell: what signals, closed pipes and errors do to it, wherever it is.

The command runs in a thread of its own, and the main thread does nothing but wait: for its end, a signal, or the reader of
our output to leave. So nothing is ever interrupted in the middle, and no signal is missed that comes just before a wait.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, TypeVar

from .client import Client
from .jsonlines import STDOUT, Output
from .log import logger
from .server import Server

E = TypeVar('E', Client, Server)

# Ctrl-C, a polite kill, a terminal that was closed.
_ENDING = tuple(getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name))

# What goodbyes may take when somebody wants us to end: what was emitted is delivered, unless the other end is stuck.
_GOODBYE_SECONDS = 1.0

# The errors of the output that poll() tells without being asked: its reader has left, or its terminal is gone.
_GONE = getattr(select, 'POLLERR', 0) | getattr(select, 'POLLHUP', 0)

# Of what we write for people, where the terminal has no such characters.
_PLAIN = str.maketrans('█µ', '#u')


class Session:
    """What a running command has: its output, its voice, and what is to be closed at the end."""

    def __init__(self, command: str, fail: Callable[[BaseException], Any]) -> None:
        self.command = command
        self.output = Output()
        #: Ends the command with an error that happened in another thread than its own.
        self.fail = fail
        self._endpoints: List[Any] = []
        self._ended = False
        self._shows = sys.stderr is not None and sys.stderr.isatty()
        self._shown = False

    def add(self, endpoint: E) -> E:
        """Have a client or server closed at the end; return it."""
        self._endpoints.append(endpoint)
        return endpoint

    def print(self, value: Any) -> None:
        """Write a line of JSON. Raises what `Output.write` raises."""
        try:
            self.output.value(value)
        except RecursionError:
            logger.warning('a value is nested too deep to be printed, and is left out')

    def write(self, text: str) -> None:
        """Write text for people, in the characters that the terminal has. Raises what `Output.write` raises."""
        encoding = getattr(sys.stdout, 'encoding', None) or 'utf-8'
        try:
            self.output.write(text.encode(encoding))
        except UnicodeEncodeError:
            self.output.write(text.translate(_PLAIN).encode(encoding, 'backslashreplace'))

    def show(self, progress: str) -> None:
        """Show on a terminal how far it is, until there is something else to say."""
        if self._shows and not self._ended:
            self._shown = True
            to_stderr(f'\r{progress}')

    def tell(self, message: str) -> None:
        """Say something to people, on stderr, in one line."""
        if not self._ended:
            self._show_no_more()
            tell(self.command, message)

    def close(self) -> None:
        """Say goodbye for all endpoints, in a bounded time. What the command says from now on, of that, is not heard."""
        self._ended = True
        self._show_no_more()
        for endpoint in self._endpoints:
            end = endpoint.stop if isinstance(endpoint, Server) else endpoint.disconnect
            end(_GOODBYE_SECONDS)

    def _show_no_more(self) -> None:
        if self._shown:
            self._shown = False
            to_stderr('\r\033[K')  # back to the beginning, and erase to the end of the line


class CommandError(Exception):
    """What a command cannot do, in words for people."""


class Interrupted(Exception):
    """The command was ended from outside, and is to be left with an exit code, though its thread may wait somewhere."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def tell(command: str, message: object) -> None:
    """Print ``nodeipc COMMAND: message`` on stderr, in one line that no peer can make another of."""
    line = ''.join(map(_visible, ' '.join(str(message).split('\n'))))
    to_stderr(f'nodeipc {command}: {line}\n')


def to_stderr(text: str) -> None:
    """Write to stderr, if somebody reads it."""
    if sys.stderr is not None:  # else print() would take stdout
        try:
            print(text, end='', file=sys.stderr, flush=True)
        except (OSError, ValueError):
            pass  # nobody is there to be told


def _visible(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def supervise(job: Callable[[Session], int], command: str, follows_output: bool) -> int:
    """Run `job` and return its exit code, or raise what it raises.

    Raises Interrupted if a signal or, with `follows_output`, the reader of our output that leaves is faster. For the main
    thread only. Signals are handled as before when it returns.
    """
    with _Alarm() as alarm:
        outcome = _Outcome(alarm.ring)
        session = Session(command, outcome.fail)
        thread = threading.Thread(target=outcome.of, args=(job, session), name='nodeipc-command', daemon=True)
        thread.start()
        code = alarm.wait(STDOUT if follows_output else None)
        session.close()
    if code is not None:
        raise Interrupted(code)
    if outcome.is_of_job:  # else it may wait for anything still
        thread.join()
    return outcome.get()


class _Outcome:
    """How a job ends; the first that tells it is right."""

    def __init__(self, done: Callable[[], Any]) -> None:
        self._done = done
        self._outcomes: List[Callable[[], int]] = []
        self.is_of_job = False

    def of(self, job: Callable[[Session], int], session: Session) -> None:
        try:
            code = job(session)
        except BaseException as error:
            self.is_of_job = True
            self.fail(error)
        else:
            self.is_of_job = True
            self._outcomes.append(lambda: code)
            self._done()

    def fail(self, error: BaseException) -> None:
        def fail() -> int:
            raise error

        self._outcomes.append(fail)
        self._done()

    def get(self) -> int:
        try:
            return self._outcomes[0]()
        finally:
            del self._outcomes[:]  # errors refer to frames, and those to this


class _Alarm:
    """Wakes the main thread. Python's own handlers would run only when it has something else to do."""

    def __enter__(self) -> _Alarm:
        self._in, self._out = socket.socketpair()
        for end in (self._in, self._out):
            end.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._out.fileno(), warn_on_full_buffer=False)
        self._handlers: Dict[int, Any] = {}
        for number in _ENDING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup, and the like
                self._handlers[number] = signal.signal(number, _do_nothing)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._in.close()
        self._out.close()

    def ring(self) -> None:
        """The job is done; any thread."""
        try:
            self._out.send(b'\0')
        except OSError:
            pass  # nobody waits any more

    def wait(self, output: Optional[int]) -> Optional[int]:
        """Return an exit code if the job is to be ended, None when it is done. `output` is whose reader may leave."""
        for number in self._rings(output):
            if number == 0:
                return None
            if number in self._handlers:
                return 128 + number
        return 0

    def _rings(self, output: Optional[int]) -> Iterator[int]:
        """Yield 0 or the numbers of signals; end when the reader of the output has left."""
        if not hasattr(select, 'poll'):
            while select.select([self._in], (), ()):
                yield from self._in.recv(64)
        poll = select.poll()
        poll.register(self._in, select.POLLIN)
        if output is not None:
            poll.register(output, 0)
        while True:
            for descriptor, what in poll.poll():
                if descriptor == self._in.fileno():
                    yield from self._in.recv(64)
                elif what & _GONE:
                    return
                else:
                    poll.unregister(descriptor)  # it is closed: whoever writes to it will learn that


def _do_nothing(number: int, frame: Any) -> None:
    pass


def end_quietly_by_ctrl_c() -> None:
    """Have Ctrl-C end the process at once and without a traceback, whenever nothing is supervised."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored: nohup, and the like
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def leave(code: int) -> None:
    """End the process at once, with threads that wait for who knows what; everything is closed and nothing is buffered."""
    os._exit(code)
