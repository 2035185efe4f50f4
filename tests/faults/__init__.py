"""What breaks between processes, done on purpose; see the README for what was tried and what was lost.

``make test`` does each fault often enough to notice a change, ``make faults`` as often as the README's table says.
"""
