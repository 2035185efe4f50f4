"""Calls methods of calculator_server.py, which says how to run it."""

import nodeipc

with nodeipc.connect('calculator') as calculator:
    print('1 + 2 =', calculator.call('add', 1, 2, timeout=20))
    print('1 / 4 =', calculator.call('divide', a=1, b=4, timeout=20))
    try:
        calculator.call('divide', 1, 0, timeout=20)
    except nodeipc.RemoteError as error:
        print('1 / 0:', error.message)
