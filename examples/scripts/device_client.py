"""A device that reports to collector_server.py, which says how to run it. A reading leaves it when it is stored there."""

import collections
import itertools
import sys

import nodeipc

ADDRESS = f'tcp://127.0.0.1:{(sys.argv[1:] or [8000])[0]}'
waiting = collections.deque(maxlen=10000)  # then the oldest leave
numbers = itertools.count()

with nodeipc.connect(ADDRESS, retry=100, retry_max=60000) as collector:
    while not collector.wait(0.1):  # the time between two readings; Ctrl-C ends it
        waiting.append((next(numbers), {'celsius': 21.5}))
        try:
            while waiting:
                collector.call('store', *waiting[0], timeout=5)
                waiting.popleft()
        except (TimeoutError, ConnectionError):
            pass  # it is not stored, or we do not know: again the next time
