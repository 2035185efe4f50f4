"""A plugin of pytest, ``-p tests.parallel``: the tests in as many processes as there are cores, up to four.

Most tests wait, for other processes and for threads. Whole files are dealt out in the order in which pytest collects them,
and what came of one is shown when it is done. The processes collect for themselves, by the same arguments.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import pytest

_MOST = 4

# The place of a test among those collected, and its name.
Test = Tuple[int, str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--worker', type=int, metavar='FD', help='be one of the processes, whose parent is at FD')


def pytest_configure(config: pytest.Config) -> None:
    fd = config.getoption('worker')
    if fd is not None:
        os.set_inheritable(fd, False)
        config.pluginmanager.register(_Worker(config, Connection(fd)))
    elif (os.cpu_count() or 1) > 1 and not config.option.collectonly:
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
        options = [f'--worker={fd}', '-p', 'no:cacheprovider']
        command = [sys.executable, *flags, '-m', 'pytest', *config.invocation_params.args, *options]
        with theirs:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[fd])
        self.reports: List[Any] = []  # of the file that it is at


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
            for _ in range(min(os.cpu_count() or 1, _MOST, len(files))):
                processes.append(_Process(session.config))
            self._deal(session, iter(files), {process.connection: process for process in processes})
        except BaseException:
            for process in processes:
                process.process.terminate()
            raise
        finally:
            for process in processes:
                process.process.wait()
                process.connection.close()
        return True

    def _deal(self, session: pytest.Session, files: Iterator[List[Test]], processes: Dict[Any, _Process]) -> None:
        config = session.config
        while processes:
            for connection in wait(list(processes)):
                process = processes[connection]
                try:
                    message = process.connection.recv()
                except EOFError:
                    message = 'a process that runs tests has ended, and not said what came of all of them'
                if message == 'next':
                    process.connection.send(next(files, None))
                elif message == 'end':
                    _show(session, process)
                    del processes[connection]
                elif isinstance(message, str):
                    session.shouldfail = message
                    _show(session, process)
                else:
                    report = config.hook.pytest_report_from_serializable(config=config, data=message)
                    if process.reports and _file(process.reports[-1].nodeid) != _file(report.nodeid):
                        _show(session, process)
                    process.reports.append(report)


def _show(session: pytest.Session, process: _Process) -> None:
    """Report what is known of a file; raises session.Failed if that was enough: ``-x``, or the process has failed."""
    hook = session.config.hook
    for report in process.reports:
        if report.when == 'setup':
            hook.pytest_runtest_logstart(nodeid=report.nodeid, location=report.location)
        hook.pytest_runtest_logreport(report=report)
        if report.when == 'teardown':
            hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)
    process.reports.clear()
    if session.shouldfail:
        raise session.Failed(session.shouldfail)


def _file(name: str) -> str:
    return name.split('::')[0]


def _without_addresses(name: str) -> str:
    """Names of tests are made of `repr` of their arguments."""
    return re.sub('0x[0-9a-f]+', '0x', name)
