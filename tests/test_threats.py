"""The README's table of threats names a test for each row, and there is such a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import List

ROOT = Path(__file__).parent.parent


def test_every_threat_is_shown_by_a_test_that_is_there() -> None:
    shown_by = _last_cells(_section('### Threats'))
    assert len(shown_by) > 20
    tests = {
        name
        for path in (ROOT / 'tests').rglob('test_*.py')
        for name in re.findall(r'^def (test_\w+)\(', path.read_text('utf-8'), re.MULTILINE)
    }
    assert [name for name in shown_by if name not in tests] == []


def _section(heading: str) -> str:
    text = (ROOT / 'README.md').read_text('utf-8')
    return re.split('\n#+ ', text.split(f'{heading}\n', 1)[1])[0]


def _last_cells(text: str) -> List[str]:
    return re.findall(r'^\|.*\| `(test_\w+)` \|$', text, re.MULTILINE)
