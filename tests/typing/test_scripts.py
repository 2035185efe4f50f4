"""script.py is what users write: it runs, and nothing of the public API is missing in it. mypy's part is `make lint`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nodeipc

from ..test_help import PUBLIC, names_used

SCRIPT = Path(__file__).with_name('script.py')


def test_the_script_does_what_it_says(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, '-S', '-X', 'dev', '-W', 'error', str(SCRIPT)],
        cwd=str(tmp_path),
        env={**os.environ, 'PYTHONPATH': str(SCRIPT.parents[2])},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b'')
    assert done.stdout.decode().splitlines()[-1] == nodeipc.__version__


def test_the_script_uses_every_public_name() -> None:
    used = {name.split('.')[-1] for name in names_used(SCRIPT.read_text('utf-8'))}
    assert {name.split('.')[-1] for name in PUBLIC} <= used
