"""The children of a soak, as their parent sees them: started, asked, disturbed, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Dict, List, Optional

from .judge import End

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Answer:
    """What a child will answer."""

    def __init__(self) -> None:
        self._came = threading.Event()
        self.value: Optional[Dict[str, Any]] = None

    def give(self, value: Optional[Dict[str, Any]]) -> None:
        self.value = value
        self._came.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has come, or will never come because the child is gone."""
        return self._came.wait(seconds)


class Process:
    """A child. It is ready when the answer `begun` has come; `parting` is what it says when it was ended by SIGTERM."""

    def __init__(self, spec: Dict[str, Any], directory: str, number: int) -> None:
        self.spec = spec
        self.name: str = spec['name']
        self.started = time.monotonic()
        self.is_busy = False  # with something that it was asked to do, such as to end
        self.status: Optional[Answer] = None  # that was asked for
        self.asked = 0.0
        self.ends: List[End] = []  # that its end is for connections, if it is a server
        self.resident = self.most = 0  # bytes of memory, at last and at most
        self.first: Optional[Dict[str, Any]] = None  # its status when it had warmed up
        self.begun, self.parting = Answer(), Answer()
        self._errors_path = os.path.join(directory, f'{self.name}-{number}.stderr')
        self._sending = threading.Lock()
        self._stops: List[subprocess.Popen[bytes]] = []
        self._answers: Dict[int, Answer] = {0: self.begun, -1: self.parting}
        self._last = 0
        with open(self._errors_path, 'wb') as errors:
            # In a session of its own: Ctrl-C, and a SIGTERM for the whole group, are for us.
            self.popen = subprocess.Popen(
                [sys.executable, '-W', 'always::ResourceWarning', '-m', 'tests.soak.child', json.dumps(spec)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, name=f'soak-{self.name}', daemon=True)
        self._listener.start()

    def order(self, what: str) -> Answer:
        """Have the child do something."""
        answer = Answer()
        with self._sending:
            self._last += 1
            self._answers[self._last] = answer
            try:
                assert self.popen.stdin is not None
                self.popen.stdin.write(json.dumps({'do': what, 'id': self._last}).encode() + b'\n')
                self.popen.stdin.flush()
            except (OSError, ValueError):
                answer.give(None)
        return answer

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(number)

    def stop_for(self, seconds: float) -> None:
        """SIGSTOP; whatever becomes of us, somebody sends SIGCONT."""
        command = ['sh', '-c', 'kill -STOP $1; sleep $2; kill -CONT $1', 'sh', str(self.popen.pid), str(seconds)]
        self._stops = [stop for stop in self._stops if stop.poll() is None]
        silent: Any = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
        self._stops.append(subprocess.Popen(command, start_new_session=True, **silent))

    def errors(self) -> str:
        """What it has said on stderr."""
        with open(self._errors_path, errors='replace') as file:
            return file.read()

    def dump(self) -> str:
        """The stacks of all its threads."""
        before = len(self.errors())
        self.signal(signal.SIGUSR1)
        for _ in range(20):
            time.sleep(0.05)
        return self.errors()[before:]

    def release(self, seconds: float) -> Optional[int]:
        """End it by closing its stdin, or by force when it takes longer; return its exit code."""
        with contextlib.suppress(OSError, ValueError):
            assert self.popen.stdin is not None
            self.popen.stdin.close()
        try:
            self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for stop in self._stops:  # before the number of the process is another's
            stop.kill()
            stop.wait()
        self._listener.join(5)
        return self.popen.returncode

    def _listen(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                value = json.loads(line)
                answer = self._answers.pop(value['id'], None)
                if answer is not None:
                    answer.give(value)
        with self._sending:
            answers: List[Answer] = list(self._answers.values())
            self._answers.clear()
        for answer in answers:
            answer.give(None)
