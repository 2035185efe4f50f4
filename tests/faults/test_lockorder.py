"""Locks are taken in the one order that is written down in `lockorder`, so that no two threads wait for each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Set

import pytest

from ..certificates import Certificates
from . import lockorder

# What the program need not come to: a system that takes no datagrams, a close that waits long, and a command.
_UNSEEN = {'channel.Channel._room', 'benchmark._Bench._lost', 'benchmark._Bench.done'}


def _listed() -> Set[str]:
    return {lock.name for lock in lockorder.ORDER} | set(lockorder.CONDITIONS) | set(lockorder.GATES)


def test_every_lock_in_the_source_is_in_the_list_and_the_list_has_no_others() -> None:
    assert set(lockorder.in_source().values()) == _listed()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_locks_are_taken_down_the_list_whatever_is_done(certificates: Certificates, tmp_path: Path) -> None:
    """A little of everything, in a process of its own, whose locks are all watched from the first."""
    files = (certificates.key('server'), certificates.pem('server'), certificates.pem('ca'))
    # CPython 3.8 under -X dev crashes in the child of any fork, with or without this library.
    dev = [] if sys.version_info < (3, 9) else ['-X', 'dev']
    done = subprocess.run(
        [sys.executable, *dev, '-m', 'tests.faults.threads_workload', str(tmp_path), *files],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, '')
    saw = json.loads(done.stdout)
    assert not saw['wrong'], '\n'.join(saw['wrong'])
    assert not saw['cycle']
    assert ['server.Server._first_start', 'role.Role._lock'] in saw['edges']  # or nothing is seen
    assert set(saw['taken']) | _UNSEEN == _listed()


def test_what_goes_up_the_list_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    seen: Any = {}
    monkeypatch.setattr(lockorder, 'edges', seen)
    monkeypatch.setattr(lockorder, 'taken', set())
    upper = lockorder._RLock('role.Role._lock', threading.RLock())
    lower, other = (lockorder._Lock('strands.Strand._lock', threading.Lock()) for _ in range(2))
    gate = lockorder._Lock('waiters.Waiter._wake', threading.Lock())
    gate.acquire()  # by who makes it
    with upper, upper, lower:
        assert other.acquire(False)  # which cannot wait
        other.release()
    assert lockorder.wrong() == []
    with lower, upper:
        pass
    assert [text.split('\n')[0] for text in lockorder.wrong()] == ['strands.Strand._lock -> role.Role._lock']
    assert lockorder.cycle()[0] == lockorder.cycle()[-1]
    with lower, other:  # of two strands: one may be the other's in another thread
        pass
    with upper:
        gate.acquire(timeout=0.001)
    assert len(lockorder.wrong()) == 3
    condition = threading.Condition(upper)  # type: ignore[arg-type]
    with upper, upper:
        condition.wait(0.001)
        assert lockorder._held.locks == [upper, upper]
    assert lockorder._held.locks == []
