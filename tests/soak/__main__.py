"""``python -m tests.soak``: see `tests.soak`. Exit code 0 if everything was as promised, 1 if not."""

from __future__ import annotations

import argparse
import random
import sys

from .soak import STUCK_SECONDS, main

WRONG = ('lose', 'lose-end', 'double', 'damage', 'leak-thread', 'leak-descriptor', 'hang', 'grow')

parser = argparse.ArgumentParser(prog='python -m tests.soak', description='Servers and clients under load and faults.')
parser.add_argument('--seconds', type=float, default=600, help='how long, with start and end (600)')
parser.add_argument('--seed', type=int, default=None, help='of what is left to chance (another one each time)')
parser.add_argument('--every', type=float, default=None, help='seconds between lines that tell of the progress')
parser.add_argument('--transports', default='unix,tcp,tls,udp', help='which (unix,tcp,tls,udp)')
parser.add_argument('--pace', type=float, default=1.0, help='how long lanes rest, in proportion: 0 is at full speed')
parser.add_argument('--stuck', type=float, default=STUCK_SECONDS, help='seconds without a step that count as a hang')
parser.add_argument('--no-faults', action='store_true', help='disturb nothing')
parser.add_argument('--break', dest='wrong', choices=WRONG, default='', help='have a child do this wrong, to see it found')

if __name__ == '__main__':
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 31)
    if options.every is None:
        options.every = 10.0 if options.seconds <= 600 else 60.0
    sys.exit(main(options))
