"""A seeded, bounded mutation fuzzer of the wire layer and of live sockets: ``python3 -m tests.fuzz --help``, ``make fuzz``.

`corpus` makes streams of frames, good and bad; `reference` says plainly what is in them; `wire` compares nodeipc with it on
many chunkings of each stream; `live` sends streams to servers, clients and UDP sockets that others are using meanwhile;
`shrink` makes a test case of what differs. The standard library only, and no clock: a seed makes the same input again.
"""
