"""A session in a shell: the command line, pipes and all, with a real node-ipc 14 server and a real node-ipc 14 client."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Iterator, List

import pytest

from ..conftest import eventually
from .peers import HERE, SECONDS, Missing, NodePeer, Place, Process, Speaker

SESSION = r'''
set -u
code() { "$@"; echo "exit code $?"; }
sensor() { for degrees in 20.5 21; do echo "{\"degrees\": $degrees}"; done; }

# A node-ipc server
nodeipc request "$NODE" message '"K\u00f6ln"'
nodeipc request "$NODE" question '[1, {"a": null}]' --timeout 20
sensor | nodeipc emit "$NODE" hello -
printf '1\n"two"\n' | nodeipc request "$NODE" message - | $FILTER
nodeipc listen "$NODE" news | head -n 2 | $FILTER .data
code nodeipc request "$NODE" unheard --timeout 0.2 2> errors
code nodeipc describe "$NODE" --timeout 0.1 2>> errors
code nodeipc emit "$NODE" message hello 2>> errors
nodeipc bench "$NODE" --seconds 0.05 --json | $FILTER '.one_at_a_time.messages > 0'

# A node-ipc client
mkfifo typed
nodeipc serve "$OURS" --echo > events < typed &
exec 3> typed
echo serving
until grep -q '"bye"' events; do sleep 0.02; done
$FILTER '[.type, .data]' < events
echo 'news {"headline": "hello"}' >&3
read -r _  # until the client has it
exec 3>&-
nodeipc request "$OURS" message '"still there"'
kill %1
code wait %1
code test -e "$OURS"
'''


@pytest.fixture
def node(processes: List[Process]) -> NodePeer:
    """The latest node-ipc."""
    try:
        peer = NodePeer('14.0.0')
    except Missing as reason:
        pytest.skip(str(reason))
    processes.append(peer)
    return peer


@pytest.fixture
def tcp(tmp_path: Path) -> Iterator[Place]:
    """Where the Node server is; ours has a Unix socket. A session takes seconds, so there is one."""
    place = Place('tcp', tmp_path)
    yield place
    place.close()


class Session(Speaker):
    """The shell, what it prints and, in files, what it complains of."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.lines: List[str] = []
        self.errors = directory / 'stderr'
        command = directory / 'bin' / 'nodeipc'  # as it is where it is installed
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -X dev -W error -m nodeipc "$@"\n')
        command.chmod(0o755)
        path = f'{command.parent}{os.pathsep}{os.environ["PATH"]}'
        with self.errors.open('wb') as stderr:
            super().__init__(
                ['bash', '-c', SESSION],
                stderr=stderr,
                cwd=str(directory),
                env={**os.environ, 'PATH': path, 'PYTHONPATH': str(HERE.parents[1]), **variables},
                start_new_session=True,
            )

    def says(self, *lines: str) -> None:
        """Wait until it has printed these lines, and no others meanwhile."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: len(self.lines) >= len(lines) or not self._reader.is_alive(), SECONDS)
        said, self.lines = self.lines[:len(lines)], self.lines[len(lines):]
        assert said == list(lines), self.errors.read_text('utf-8')

    def go_on(self) -> None:
        """Give it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(b'\n')
        self.process.stdin.flush()

    def close(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.killed = True
        super().close()

    def _hear(self, line: bytes) -> None:
        self.lines.append(line.decode().rstrip('\n'))


@pytest.mark.skipif(not (shutil.which('bash') and shutil.which('jq')), reason='a session with bash and jq')
def test_a_shell_session_with_a_node_server_and_a_node_client(
    tcp: Place, node: NodePeer, processes: List[Process], tmp_path: Path
) -> None:
    node.do('echo')
    node.serve(tcp)
    ours = str(tmp_path / 'ours')
    shell = Session(tmp_path, NODE=f'tcp://{tcp.host}:{tcp.port}', OURS=ours, FILTER='jq -c --unbuffered')
    processes.append(shell)

    shell.says('"K\u00f6ln"', '[1,{"a":null}]', '1', '"two"')
    assert node.wait('hello', 2, of='server') == [{'degrees': 20.5}, {'degrees': 21}]
    node.wait('connect', 5, of='server')
    node.do('broadcast', type='answer', data='nobody listens')
    for headline in ('first', 'K\u00f6ln'):
        node.do('broadcast', type='news', data={'headline': headline})
    shell.says('{"headline":"first"}', '{"headline":"K\u00f6ln"}')
    shell.says('exit code 3', 'exit code 3', 'exit code 2', 'true', 'serving')

    eventually(lambda: os.path.exists(ours), SECONDS)
    node.do('connectTo', id='ours', path=ours)
    node.wait('connect', of='ours')
    for data in ('hello', [1.5, None], 'bye'):
        node.emit('message', data, id='ours')
    assert node.wait('message', 3, of='ours') == ['hello', [1.5, None], 'bye']
    shell.says('["message","hello"]', '["message",[1.5,null]]', '["message","bye"]')
    assert node.wait('news', of='ours') == [{'headline': 'hello'}]
    shell.go_on()
    shell.says('"still there"', 'exit code 143', 'exit code 1')
    assert shell.process.wait(SECONDS) == 0
    assert shell.errors.read_text('utf-8') == f'nodeipc serve: listening at unix:{ours}\n'
    complaints = (tmp_path / 'errors').read_text('utf-8').splitlines()
    assert [line.split(':')[0] for line in complaints] == ['nodeipc request', 'nodeipc describe', 'usage', 'nodeipc emit']
    assert json.dumps('hello') in complaints[-1]
