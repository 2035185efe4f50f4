"""Six clients, one after the other, of any of the prefork servers; world_server.py says how to run it."""

import queue
import sys

from nodeipc import ipc
from nodeipc.colors import debug, variable

ipc.config.id = 'hello'
ipc.config.retry = 1500

answers = queue.Queue()

for _ in range(6):
    if sys.argv[1:]:
        ipc.connect_to_net('world', int(sys.argv[1]))
    else:
        ipc.connect_to('world')
    ipc.of.world.on('message', answers.put)
    ipc.of.world.emit('message', 'hello')

    answer = answers.get(timeout=10)
    ipc.log(debug('process'), variable(answer['pid']), debug('answered : '), answer['message'])
    ipc.disconnect('world')

ipc.close()
