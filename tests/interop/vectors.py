"""The rows of tests/wire_vectors.json: events, and the bytes that node-ipc wrote for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

FILE = Path(__file__).parent.parent / 'wire_vectors.json'
ROWS: List[Dict[str, Any]] = json.loads(FILE.read_text('utf-8'))['rows']


def recorded(row: Dict[str, Any], version: str) -> bytes:
    """What `version` wrote. It differs where 9 and 10 write {} for '' and null."""
    return bytes.fromhex(row.get(f'node-ipc {version}', row['node-ipc 14.0.0']))


def arriving(row: Dict[str, Any], version: str) -> Tuple[str, str]:
    """The event that is read when `version`, or Python for 14.0.0, sends a row: as `messages` gives them."""
    message = json.loads(recorded(row, version)[:-1].decode())
    return message['type'], json.dumps(message['data'])


def emit_row(emit: Callable[..., Any], row: Dict[str, Any]) -> None:
    """Emit from Python what a row says. Python has no Date that JSON carries, so the text that one becomes is sent."""
    data = row['data']
    if isinstance(data, dict) and '$undefined' in data:
        emit(row['type'])
    elif isinstance(data, dict) and '$date' in data:
        emit(row['type'], data['$date'])
    else:
        emit(row['type'], data)
