"""``python3 -m nodeipc``: see `nodeipc.cli`."""

import sys

from .supervisor import end_quietly_by_ctrl_c

if __name__ == '__main__':
    end_quietly_by_ctrl_c()  # now, for there is more to import

    from .cli import main

    sys.exit(main())
