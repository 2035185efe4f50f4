"""Starting the programs of stuck_programs.py and shortage_programs.py, and hearing what they have found."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, List, Sequence


class Programs:
    """Starts programs of a module; `end` leaves none."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._started: List[Any] = []

    def __call__(self, *arguments: object, prefix: Sequence[str] = ()) -> Any:
        """Start one, with `prefix` before the command."""
        process = subprocess.Popen(
            [*prefix, sys.executable, '-m', self._module, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    def end(self) -> None:
        """Kill those that are still there."""
        for process in self._started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                pipe.close()


def heard(process: Any) -> Any:
    """The next finding of a program."""
    line = process.stdout.readline()
    assert line, f'{process.args} ended: {process.stderr.read()}'
    return json.loads(line)


def findings(process: Any, timeout: float = 60) -> List[Any]:
    """What a program has found when it has ended, by itself and well."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f'{process.args} did not end; it printed {out!r} and {err!r}') from None
    assert process.returncode == 0, f'{process.args} printed {out!r} and {err}'
    return [json.loads(line) for line in out.splitlines()]
