"""Other platforms than this one, as far as one can have them here: `make test` as if it ran there.

======================= =======================================================================================
NODEIPC_TEST_SELECTOR   ``select``, ``poll`` or ``epoll``: used wherever the library asks for the best there is
NODEIPC_TEST_NO_IPV6    anything: the system knows no sockets of IPv6
======================= =======================================================================================

`prepare`, which conftest calls before anything else, has that here and in the interpreters that tests start: those find a
``selectors`` or ``socket`` module before the real one. Not in what a child starts itself, nor in one started with ``-I``.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import pytest

_SELECTOR = os.environ.get('NODEIPC_TEST_SELECTOR', '')
_NO_IPV6 = bool(os.environ.get('NODEIPC_TEST_NO_IPV6'))

# Modules that children find before the real ones, whose text these run first; and, for here, what they then change.
_REAL = """
import os
_path = os.path.join(os.path.dirname(os.__file__), __name__ + '.py')
with open(_path, encoding='utf-8') as _file:
    exec(compile(_file.read(), _path, 'exec'))
"""
_CHANGES = {}
if _SELECTOR:
    _CHANGES['selectors'] = f'DefaultSelector = {_SELECTOR.capitalize()}Selector\n'
if _NO_IPV6:
    _CHANGES['socket'] = """
def _without_ipv6(self, family=-1, type=-1, proto=-1, fileno=None, _init=socket.__init__):
    if family == AF_INET6 and fileno is None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    _init(self, family, type, proto, fileno)
import errno
socket.__init__ = _without_ipv6
has_ipv6 = False
"""


def prepare() -> None:
    """Do what the environment asks for; raises NameError for a selector that this platform has not."""
    if not _CHANGES:
        return
    directory = tempfile.mkdtemp(prefix='test-platform-')
    atexit.register(shutil.rmtree, directory, True)
    os.chmod(directory, 0o755)  # for other users, too
    for name, change in _CHANGES.items():
        exec(change, vars(importlib.import_module(name)))
        with open(os.path.join(directory, f'{name}.py'), 'w', encoding='utf-8') as file:
            file.write(_REAL + change)
    start = subprocess.Popen.__init__

    def start_there(self: Any, args: Any, *more: Any, **options: Any) -> None:
        command = args if isinstance(args, (str, bytes)) else args[0]
        if command == sys.executable:
            environment = dict(options.get('env') or os.environ)
            path = environment.get('PYTHONPATH')
            environment['PYTHONPATH'] = directory + (os.pathsep + path if path else '')
            options['env'] = environment
        start(self, args, *more, **options)

    subprocess.Popen.__init__ = start_there  # type: ignore[method-assign,assignment]


def needs_descriptors(count: int) -> None:
    """Skip the test if it opens more descriptors than a selector may have to do with."""
    if _SELECTOR == 'select' and count > 900:
        pytest.skip(f'select() knows no descriptor from 1024 on, and this needs {count}')
