"""A process of the soak: does what its parent asks for on stdin, a line of JSON each, and ends when that ends.

Its stdout is for the answers, so whatever prints goes to stderr, on which nothing is expected. SIGTERM is a planned end.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import logging
import os
import select
import signal
import sys
import threading
from typing import Any, Callable, Dict

from .board import Board
from .ledger import Findings

# That threads and descriptors are given to be gone after the end.
_END_SECONDS = 5.0


class Role:
    """What a child is: see `servers` and `lanes`."""

    def begin(self) -> Dict[str, Any]:
        """Start; return what the parent has to know."""
        raise NotImplementedError

    def end(self) -> None:
        """Say goodbye; nothing may be left after it."""
        raise NotImplementedError

    def status(self) -> Dict[str, Any]:
        return {}

    def do(self, what: str) -> None:
        """Whatever else it can."""
        raise NotImplementedError


class _Warnings(logging.Handler):
    """The library's warnings are part of what faults do, and counted; its errors are not."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter('%(levelname)s %(message)s'))
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        if record.levelno >= logging.ERROR:
            print(self.format(record), file=sys.stderr, flush=True)


def descriptors() -> int:
    """How many are open; 0 where nobody tells."""
    with contextlib.suppress(OSError):
        return len(os.listdir('/proc/self/fd')) - 1
    return 0


def resident() -> int:
    """Bytes of memory that are in use; 0 where nobody tells."""
    with contextlib.suppress(OSError), open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    return 0


def tidy() -> None:
    """Give back what the allocator keeps, as far as that is possible."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Child:
    def __init__(self, spec: Dict[str, Any]) -> None:
        self._answers = os.fdopen(os.dup(1), 'w')
        os.dup2(2, 1)
        self._answering = threading.Lock()
        self._warnings = _Warnings()
        logging.getLogger('nodeipc').addHandler(self._warnings)
        self.findings = Findings(spec['findings'])
        self._woken, self._waker = os.pipe()
        signal.signal(signal.SIGTERM, lambda *_: os.write(self._waker, b't') and None)
        board = Board(spec['board'])
        if spec['role'] == 'server':
            from .servers import ServerRole

            self._role: Role = ServerRole(spec, board, self.findings)
        else:
            from .lanes import ClientRole

            self._role = ClientRole(spec, board, self.findings)
        tidy()
        self._first = (threading.active_count(), descriptors())

    def run(self) -> None:
        self._answer(0, self._role.begin())
        buffer = b''
        while True:
            ready, _, _ = select.select([0, self._woken], [], [])
            if self._woken in ready:
                self._role.end()
                self._answer(-1, {})
                return
            chunk = os.read(0, 1 << 16)
            if not chunk:
                return
            *lines, buffer = (buffer + chunk).split(b'\n')
            for line in lines:
                self._obey(json.loads(line))

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent was killed
            self._answers.close()

    def _obey(self, order: Dict[str, Any]) -> None:
        what, id = order['do'], order['id']
        if what == 'status':
            self._answer(id, {
                **self._role.status(), 'threads': threading.active_count(),
                'descriptors': descriptors(), 'resident': resident(), 'warnings': self._warnings.count,
            })
        elif what == 'tidy':
            tidy()
            self._answer(id, {'resident': resident()})
        else:  # takes its time
            threading.Thread(target=self._later, args=(id, what), name=f'soak-{what}', daemon=True).start()

    def _later(self, id: int, what: str) -> None:
        if what != 'end':
            self._role.do(what)
            self._answer(id, {})
            return
        self._role.end()
        self._role = Role()
        me, patience = 1, threading.Event()  # me: the thread that does this
        for _ in range(int(_END_SECONDS / 0.05)):
            gc.collect()
            left = (threading.active_count() - me - self._first[0], descriptors() - self._first[1])
            if max(left) <= 0:
                break
            patience.wait(0.05)
        self._answer(id, {
            'left_threads': max(0, left[0]), 'left_descriptors': max(0, left[1]),
            'names': [thread.name for thread in threading.enumerate()],
        })

    def _answer(self, id: int, answer: Dict[str, Any]) -> None:
        with self._answering, contextlib.suppress(BrokenPipeError):
            self._answers.write(json.dumps({'id': id, **answer}) + '\n')
            self._answers.flush()


def guarded(function: Callable[[], Any], findings: Findings, name: str) -> Callable[[], None]:
    """Return `function` as the body of a thread whose failure is a finding."""

    def run() -> None:
        try:
            function()
        except BaseException as error:
            import traceback

            findings.wrong('FAILED', f'{name}: {error!r}\n{traceback.format_exc()}')

    return run


def main() -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    child = Child(json.loads(sys.argv[1]))
    child.run()
    child.close()


if __name__ == '__main__':
    main()
