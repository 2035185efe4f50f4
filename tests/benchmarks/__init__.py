"""nodeipc measured side by side with node-ipc and others: ``python3 -m tests.benchmarks --help``, ``make bench``.

`lanes` says what is measured and what is to be reached; `peers` are the programs that are measured, each a server and a
client; `sample` runs one of them once; `machine` and `report` say where it was, and what came out. `footprint` and
`growth` stand by themselves.
"""
