"""What tests of faults share: how often each fault is done, and the table of what was tried and what was lost."""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, List

import pytest

FULL = os.environ.get('FAULTS') == 'full'

# A row of the table for each fault, in the order in which tests told of them: how often, and what was lost.
_rows: Dict[str, List[int]] = {}


@pytest.fixture
def often() -> Callable[[int, int], int]:
    """How often to do something: ``often(in_make_test, in_make_faults)``."""
    return lambda quick, full: full if FULL else quick


@pytest.fixture
def tried() -> Callable[..., None]:
    """Note for the table that a fault was tried: ``tried('a frame cut in the middle, Unix', 100)``.

    `messages` is how many were sent while the connection stood, `lost` how many of them did not arrive though nobody was
    told, came twice or were damaged: a test fails if it is not 0, and says so before it does.
    """

    def note(fault: str, times: int = 1, messages: int = 0, lost: int = 0) -> None:
        row = _rows.setdefault(fault, [0, 0, 0])
        for column, count in enumerate((times, messages, lost)):
            row[column] += count

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not (FULL and _rows):
        return
    terminalreporter.section('faults tried')
    terminalreporter.write_line('| fault | times | messages | lost, doubled or damaged |\n|---|---:|---:|---:|')
    for fault, (times, messages, lost) in _rows.items():
        terminalreporter.write_line(f'| {fault} | {times:,} | {format(messages, ",") if messages else ""} | {lost} |')
