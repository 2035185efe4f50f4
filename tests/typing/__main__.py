"""``python -m tests.typing``, a part of ``make lint``: mypy says of each mistake in mistakes.py what stands below it.

``--write`` puts there what it says now. script.py, which has no mistakes, is among the files that mypy checks anyway.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Dict, List

from mypy import api

MISTAKES = Path(__file__).with_name('mistakes.py')

_KINDS = {'error': 'E', 'note': 'N'}
_COMMENT = re.compile(' *# ([EN]: .*)')


def said() -> Dict[int, List[str]]:
    """What mypy says, by line."""
    options = ['--strict', '--follow-imports=silent', '--no-error-summary', '--hide-error-context', '--no-pretty']
    output, complaint, _ = api.run([*options, str(MISTAKES)])
    if complaint:
        raise SystemExit(complaint)
    found: Dict[int, List[str]] = {}
    for line in output.splitlines():
        where = re.match(r'(.*?):(\d+): (error|note): (.*)', line)
        if where is None or Path(where[1]).name != MISTAKES.name:
            raise SystemExit(f'about something else: {line}')
        if where[3] == 'error' or where[4].startswith('Revealed'):  # other notes explain errors
            found.setdefault(int(where[2]), []).append(f'{_KINDS[where[3]]}: {where[4]}')
    return found


def main() -> int:
    found = said()
    lines = MISTAKES.read_text('utf-8').splitlines()
    if '--write' in sys.argv[1:]:
        written = []
        for number, line in enumerate(lines, 1):
            if not _COMMENT.match(line):
                indent = line[:len(line) - len(line.lstrip())]
                written += [line, *(f'{indent}# {expected}' for expected in found.get(number, []))]
        MISTAKES.write_text('\n'.join(written) + '\n', 'utf-8')
        return 0
    wrong = False
    expected: Dict[int, List[str]] = {}
    of = 0
    for number, line in enumerate(lines, 1):
        comment = _COMMENT.match(line)
        if comment:
            expected.setdefault(of, []).append(comment[1])
        else:
            of = number
    for number in sorted(expected.keys() | found.keys()):
        if expected.get(number) != found.get(number):
            wrong = True
            print(f'{MISTAKES}:{number}: {lines[number - 1].strip()}')
            print(f'    expected: {expected.get(number)}\n    mypy says: {found.get(number)}')
    return int(wrong)


if __name__ == '__main__':
    sys.exit(main())
