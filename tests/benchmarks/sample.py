"""Run a peer once, a fresh server and a fresh client, and return what the client has measured.

Whatever happens, both have ended when it returns; and should the runner be killed, the server ends with its stdin, and
the client with the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Mapping, NamedTuple, Optional

_HERE = Path(__file__).parent
_CHECKOUT = _HERE.parents[1]

_START_SECONDS = 30.0
_END_SECONDS = 10.0

# The status of a peer that does not do this.
_UNSUPPORTED = 3

_REASON_CHARACTERS = 500


class Unsupported(Exception):
    """The peer does not do such a pattern, or not over such a transport."""


class Failed(Exception):
    """The sample is worth nothing; the message says why."""


class Result(NamedTuple):
    """What a client has measured; times in microseconds."""

    mean: float
    p50: Optional[float]
    p99: Optional[float]
    messages: int
    seconds: float
    version: str


def run(command: List[str], spec: Mapping[str, Any], messages: int, seconds: float) -> Result:
    """Run a sample with `command` as the peer, which has to report so many messages within so many seconds.

    Raises `Unsupported` or `Failed`.
    """
    with tempfile.TemporaryDirectory(prefix='nodeipc-bench-') as directory, contextlib.ExitStack() as stack:
        path = os.path.join(directory, 'socket') if spec['transport'] == 'unix' else None
        server = stack.enter_context(_running(command, 'server', {**spec, 'address': path}))
        port = _read_port(server)
        client = stack.enter_context(_running(command, 'client', {**spec, 'address': path or port}))
        output = _read(client, seconds)
        _check_status(client, 'client', _wait(client, _END_SECONDS))
        result = _parse(output, messages)
        server.stdin.close()
        _check_status(server, 'server', _wait(server, _END_SECONDS))
        return result


class _Process(NamedTuple):
    popen: subprocess.Popen[bytes]
    stdin: IO[bytes]
    stdout: IO[bytes]
    errors: IO[bytes]


@contextlib.contextmanager
def _running(command: List[str], role: str, spec: Mapping[str, Any]) -> Iterator[_Process]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith('NODE_')}
    search = filter(None, (environment.get('PYTHONPATH'), str(_CHECKOUT)))
    environment['PYTHONPATH'] = os.pathsep.join(search)
    with tempfile.TemporaryFile() as errors:
        popen = subprocess.Popen(
            [*command, role, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            start_new_session=True,  # a Ctrl-C is for the runner, which ends them; and so is what they start
        )
        assert popen.stdin is not None and popen.stdout is not None
        try:
            yield _Process(popen, popen.stdin, popen.stdout, errors)
        finally:
            with contextlib.suppress(ProcessLookupError):
                if popen.poll() is None:
                    os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
            with contextlib.suppress(BrokenPipeError):
                popen.stdin.close()
            popen.stdout.close()


def _read_port(server: _Process) -> int:
    line = _read(server, _START_SECONDS, b'\n')
    words = line.decode(errors='replace').split()
    if len(words) == 2 and words[0] == 'ready' and words[1].isdigit():
        return int(words[1])
    if not line:
        _check_status(server, 'server', _wait(server, _END_SECONDS))
    raise Failed(f'the server has said {line[:_REASON_CHARACTERS]!r} where "ready PORT" was expected')


def _read(process: _Process, seconds: float, until: Optional[bytes] = None) -> bytes:
    """Read to the end, or so far that there is `until`."""
    found = b''
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while until is None or until not in found:
            if not selector.select(end - time.monotonic()):
                raise Failed(f'it has taken more than {seconds:g} s{_reason(process)}')
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                break
            found += chunk
    return found


def _wait(process: _Process, seconds: float) -> Optional[int]:
    try:
        return process.popen.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _check_status(process: _Process, role: str, status: Optional[int]) -> None:
    if status == _UNSUPPORTED:
        raise Unsupported
    if status is None:
        raise Failed(f'the {role} has not ended by itself{_reason(process)}')
    if status != 0:
        raise Failed(f'the {role} has ended with status {status}{_reason(process)}')


def _reason(process: _Process) -> str:
    process.errors.seek(0)
    text = process.errors.read().decode(errors='replace').strip()
    return f': ...{text[-_REASON_CHARACTERS:]}' if len(text) > _REASON_CHARACTERS else f': {text}' if text else ''


def _parse(output: bytes, messages: int) -> Result:
    try:
        fields: Dict[str, Any] = json.loads(output)
        result = Result(
            mean=float(fields['seconds']) / fields['messages'] * 1e6,
            p50=fields['p50_us'],
            p99=fields['p99_us'],
            messages=fields['messages'],
            seconds=fields['seconds'],
            version=fields['version'],
        )
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise Failed(f'the client has printed {output[:_REASON_CHARACTERS]!r}: {error!r}') from error
    if result.messages != messages:
        raise Failed(f'the client has measured {result.messages} messages and should have measured {messages}')
    if not result.seconds > 0:
        raise Failed(f'the client says that it took {result.seconds} s')
    return result


def python_peer(name: str, python: str = sys.executable) -> List[str]:
    """Return the command of a peer that is a Python program."""
    return [python, str(_HERE / 'peers' / f'{name}_peer.py')]


def node_peer(node: str) -> List[str]:
    """Return the command of the node-ipc peer."""
    return [node, str(_HERE / 'peers' / 'node_peer.mjs')]
