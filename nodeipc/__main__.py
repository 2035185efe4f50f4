"""``python3 -m nodeipc``: see `nodeipc.cli`."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
