"""A plugin of pytest, ``-p tests.parallel``: the tests in as many processes as there are cores, up to four.

Most tests wait, for other processes and for threads. Whole files are dealt out in the order in which pytest collects them,
and what came of one is shown when it is done; so ``-x`` ends the run with a file, too. The processes collect for themselves,
by the same arguments. What needs the terminal, or a directory of its own (``-s``, ``--pdb``, ``--basetemp``), is
done in one process, as without the plugin.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import pytest

_MOST = 4

# How often to look whether a process has ended whose child still has its end of the connection.
_LOOK_SECONDS = 1.0

# What tests are given to clean up when the run is ended early.
_END_SECONDS = 20.0

_ALONE = ('usepdb', 'trace', 'setuponly', 'setupshow', 'setupplan', 'collectonly', 'basetemp')

# The place of a test among those collected, and its name.
Test = Tuple[int, str]


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--worker', type=int, metavar='FD', help='be one of the processes, whose parent is at FD')


def pytest_configure(config: pytest.Config) -> None:
    fd = config.getoption('worker')
    if fd is not None:
        os.set_inheritable(fd, False)
        config.pluginmanager.register(_Worker(config, Connection(fd)))
    elif cores() > 1 and config.option.capture != 'no' and not any(config.getoption(name, None) for name in _ALONE):
        config.pluginmanager.register(_Parent())


class _Worker:
    """Asks its parent for tests, and sends it reports.

    It asks when one test is left to run: pytest keeps what this and the next have in common, and has to know the next.
    """

    def __init__(self, config: pytest.Config, parent: Connection) -> None:
        self._config = config
        self._parent = parent

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = self._asked_for(session.items)
        item = next(items, None)
        while item is not None:
            following = next(items, None)
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            item = following
        session.testsfailed = 0  # those are the parent's to count; what comes after this is in our exit status
        self._parent.send('end')
        return True

    def _asked_for(self, items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
        while True:
            self._parent.send('next')
            tests: Optional[List[Test]] = self._parent.recv()
            if tests is None:
                return
            for number, name in tests:
                if _without_addresses(items[number].nodeid) != _without_addresses(name):
                    raise RuntimeError(f'two processes collect different tests: {items[number].nodeid}, {name}')
                yield items[number]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._parent.send(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_internalerror(self, excrepr: object) -> None:
        self._parent.send(str(excrepr))


class _Process:
    """A worker, for its parent."""

    def __init__(self, config: pytest.Config) -> None:
        self.connection, theirs = Pipe()
        fd = theirs.fileno()
        flags = ['-X', 'dev'] if sys.flags.dev_mode else []
        command = [sys.executable, *flags, '-m', 'pytest', *config.invocation_params.args, f'--worker={fd}']
        with theirs:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[fd],
                start_new_session=True,  # Ctrl-C is the parent's, who tells
            )  # fmt: skip
        self.reports: List[Any] = []  # of the file that it is at
        self._given = 'the first test'  # the last file that it was given

    def recv(self) -> Any:
        """Return what it says next; that it has ended, if it has."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return self.last_words()

    def rest(self) -> Iterator[Any]:
        """The reports that it has sent and that were not received."""
        try:
            while self.connection.poll():
                message = self.connection.recv()
                if not isinstance(message, str):
                    yield message
        except (EOFError, OSError):
            pass

    def give(self, tests: Optional[List[Test]]) -> None:
        if tests is not None:
            self._given = _file(tests[0][1])
        try:
            self.connection.send(tests)
        except OSError:
            pass  # it has ended, and `recv` will say so

    def last_words(self) -> str:
        where = f'before {self._given} was done' + (f', after {self.reports[-1].nodeid}' if self.reports else '')
        return f'a process that runs tests has ended with status {self.process.wait()}, {where}'

    def end(self) -> None:
        """Have it end: let go by closing the connection, and by Ctrl-C, so that tests clean up; or by force."""
        self.connection.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Parent:
    """Deals out the tests, and reports what comes of them as its own."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Optional[bool]:
        if session.testsfailed:
            return None  # something cannot be collected; pytest tells
        tests = enumerate(item.nodeid for item in session.items)
        files = [list(group) for _, group in itertools.groupby(tests, lambda test: _file(test[1]))]
        processes: List[_Process] = []
        try:
            for _ in range(min(cores(), _MOST, len(files))):
                processes.append(_Process(session.config))
            self._deal(session, iter(files), {process.connection: process for process in processes})
            for process in processes:
                status = process.process.wait()
                if status:
                    raise _failed(session, f'after the last test a process has ended with status {status}; see stderr')
        finally:
            for process in processes:
                for message in process.rest():
                    _take(session, process, message)
                _show(session, process)
            for process in processes:
                process.end()
        return True

    def _deal(self, session: pytest.Session, files: Iterator[List[Test]], processes: Dict[Any, _Process]) -> None:
        while processes:
            ready = wait(list(processes), _LOOK_SECONDS)
            for connection, process in list(processes.items()):
                if connection not in ready and (process.process.poll() is None or connection.poll()):
                    continue
                message = process.recv() if connection in ready else process.last_words()
                if message == 'next':
                    process.give(next(files, None))
                elif message == 'end':
                    _show(session, process)
                    del processes[connection]
                elif isinstance(message, str):
                    raise _failed(session, message)
                else:
                    _take(session, process, message)
                    if session.shouldfail:  # -x
                        raise session.Failed(session.shouldfail)


def _take(session: pytest.Session, process: _Process, message: Any) -> None:
    """Keep the report that `message` is until its file is done; what is kept of another file is shown."""
    report = session.config.hook.pytest_report_from_serializable(config=session.config, data=message)
    if process.reports and _file(process.reports[-1].nodeid) != _file(report.nodeid):
        _show(session, process)
    process.reports.append(report)


def _show(session: pytest.Session, process: _Process) -> None:
    """Report what is known of a file."""
    hook = session.config.hook
    for report in process.reports:
        if report.when == 'setup':
            hook.pytest_runtest_logstart(nodeid=report.nodeid, location=report.location)
        hook.pytest_runtest_logreport(report=report)
        if report.when == 'teardown':
            hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)
    process.reports.clear()


def _failed(session: pytest.Session, why: str) -> Exception:
    session.shouldfail = why
    return session.Failed(why)


def _file(name: str) -> str:
    return name.split('::')[0]


def _without_addresses(name: str) -> str:
    """Names of tests are made of `repr` of their arguments."""
    return re.sub('0x[0-9a-f]+', '0x', name)
