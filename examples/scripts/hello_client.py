"""A script that asks world_server.py, which says how to run it, or any node-ipc server of that name."""

import nodeipc

with nodeipc.connect('world') as world:
    print(world.request('message', 'hello', timeout=20))
    print(world.request('message', 'goodbye', timeout=20))
