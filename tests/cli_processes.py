"""The command line as processes: what its tests start, type at and listen to."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, List

ROOT = Path(__file__).parent.parent

# A loaded machine starts several interpreters meanwhile.
SECONDS = 30.0

# No help from outside: output is buffered where it is for users.
ENVIRONMENT = {'PYTHONUNBUFFERED': ''}

# Without site, which takes longer to import than all of nodeipc.
NODEIPC = (sys.executable, '-S', '-X', 'dev', '-W', 'error', '-m', 'nodeipc')


class Command:
    """A running ``nodeipc ...``, in a session of its own as a shell would have it."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        self._said = {1: b'', 2: b''}
        pipes: Any = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE)
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            (*NODEIPC, *arguments),
            cwd=str(ROOT),
            env={**os.environ, **ENVIRONMENT},
            **{**pipes, 'start_new_session': True, **options},
        )

    def type(self, text: str) -> None:
        """Write to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def line(self) -> str:
        """Wait for a line of its stdout and return it; empty at the end."""
        return self._line(1, self.process.stdout)

    def lines(self, count: int) -> List[str]:
        """Wait for some lines."""
        return [self.line() for _ in range(count)]

    def complaint(self) -> str:
        """Wait for a line of its stderr and return it; empty at the end."""
        return self._line(2, self.process.stderr)

    def listening(self) -> str:
        """Wait until it serves; return where."""
        said = self.complaint()
        assert said.startswith('nodeipc serve: listening at '), said
        return said[len('nodeipc serve: listening at '):]

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(number)

    def ends(self) -> List[Any]:
        """Wait until it has ended; return its exit code, and what it said that was not heard yet."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process.stdin = None
        output, errors = self.process.communicate(timeout=SECONDS)
        rest = [said.decode() for said in (self._said[1] + (output or b''), self._said[2] + (errors or b''))]
        return [self.process.returncode, *rest]

    def close(self) -> None:
        """End it, in whatever state it is."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _line(self, which: int, pipe: Any) -> str:
        end = time.monotonic() + SECONDS
        while b'\n' not in self._said[which]:
            ready = select.select((pipe,), (), (), max(0, end - time.monotonic()))[0]
            assert ready, f'no line within {SECONDS} s; so far: {self._said}'
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                break
            self._said[which] += chunk
        line, _, self._said[which] = self._said[which].partition(b'\n')
        return line.decode()


def run(*arguments: str, typed: bytes = b'', **options: Any) -> List[Any]:
    """Run ``nodeipc ...`` to its end; return its exit code, its output and its errors."""
    done = subprocess.run(
        (*NODEIPC, *arguments),
        input=typed,
        stdout=options.pop('stdout', subprocess.PIPE),
        stderr=subprocess.PIPE,
        cwd=str(ROOT),
        env={**os.environ, **ENVIRONMENT},
        timeout=SECONDS,
        **options,
    )
    return [done.returncode, (done.stdout or b'').decode(), done.stderr.decode()]
