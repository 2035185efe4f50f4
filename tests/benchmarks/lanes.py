"""The lanes: what is measured, how often, and what is to be reached.

A lane's counts are such that a sample takes one to two seconds in a full run and a third of a second in a quick one, on
a machine of two cores. They are the same for both products; peers that are much slower have a share of them.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

# Ours, and whom it is compared with; a target is against one of these.
OURS = 'nodeipc'
NODE = 'node'
MULTIPROCESSING = 'multiprocessing'
SOCKET = 'socket'
ALONE = 'alone'  # ours in a lane's easier variant

# What a ratio is of.
P50, P99, MEAN = 'p50', 'p99', 'mean'

_IN_FLIGHT = 64

# Of fewer round trips it would be the slowest.
_ENOUGH_FOR_P99 = 1000


# What much slower peers do of a count.
SHARES = {
    ('websockets', 'pipeline'): 0.4,
    ('websockets', 'oneway'): 0.3,
    ('rpyc', 'pipeline'): 0.25,
    ('rpyc', 'oneway'): 0.07,
    ('pyro5', 'oneway'): 0.02,
}


class Lane(NamedTuple):
    """One thing to measure."""

    name: str
    pattern: str
    transport: str
    count: int  # in a full run
    quick: int
    targets: Tuple[Tuple[str, float], ...]  # our time divided by theirs, at most
    against: str = NODE
    payload: str = 'string'
    size: int = 64
    warmup: float = 0.25  # of the count
    window: int = 1
    clients: int = 1
    idle: int = 0
    seconds: float = 60.0  # a sample that takes longer has failed; a quarter of it in a quick run

    @property
    def metrics(self) -> Tuple[str, ...]:
        """What there is to tell of it."""
        if self.window != 1 or self.pattern in ('oneway', 'batch', 'broadcast'):
            return (MEAN,)
        return (P50, P99) if self.count >= _ENOUGH_FOR_P99 else (P50,)

    def pattern_of(self, peer: str) -> str:
        """Return what a peer does in this lane: the same, but for what only we can do."""
        return 'oneway' if peer == NODE and self.pattern == 'batch' else self.pattern

    def spec(self, peer: str, quick: bool, tls: Optional[Mapping[str, str]], share: float = 1.0) -> Dict[str, Any]:
        """Return the specification for a peer, without an address."""
        count = max(1, round((self.quick if quick else self.count) * share))
        return {
            'pattern': self.pattern_of(peer),
            'transport': self.transport,
            'payload': self.payload,
            'size': self.size,
            'count': count,
            'warmup': round(count * self.warmup),
            'window': self.window,
            'clients': self.clients,
            'idle': 0 if peer == ALONE else self.idle,
            'tls': dict(tls) if tls is not None and self.transport == 'tls' else None,
        }

    def messages(self, spec: Mapping[str, Any]) -> int:
        """Return how many the client of such a sample has to report."""
        count = int(spec['count'])
        if self.pattern == 'broadcast':
            return count * self.clients
        return max(1, count // self.clients) * self.clients


_LATENCY = ((P50, 1.0), (P99, 1.0))

LANES = (
    Lane('latency-unix', 'latency', 'unix', 20000, 3600, _LATENCY),
    Lane('latency-tcp', 'latency', 'tcp', 20000, 3600, _LATENCY),
    Lane('pipeline-unix', 'pipeline', 'unix', 120000, 18000, ((MEAN, 0.7),), window=_IN_FLIGHT),
    Lane('pipeline-tcp', 'pipeline', 'tcp', 100000, 15000, ((MEAN, 0.7),), window=_IN_FLIGHT),
    Lane('oneway-unix', 'oneway', 'unix', 400000, 60000, ((MEAN, 1.0),)),
    Lane('oneway-tcp', 'oneway', 'tcp', 240000, 36000, ((MEAN, 1.0),)),
    Lane('batch-unix', 'batch', 'unix', 600000, 90000, ((MEAN, 0.5),)),
    Lane('batch-tcp', 'batch', 'tcp', 400000, 60000, ((MEAN, 0.5),)),
    Lane('latency-tls', 'latency', 'tls', 12000, 2100, ((P50, 1.2),)),
    Lane('pipeline-tls', 'pipeline', 'tls', 50000, 9000, ((MEAN, 0.8),), window=_IN_FLIGHT),
    Lane('latency-udp', 'latency', 'udp', 16000, 3000, ((P50, 1.0),)),
    Lane('broadcast-unix', 'broadcast', 'unix', 3840, 576, ((MEAN, 0.8),), window=_IN_FLIGHT, clients=100),
    Lane('large-1m', 'latency', 'unix', 60, 9, ((P50, 0.5),), size=1 << 20),
    Lane('large-16m', 'latency', 'unix', 3, 1, ((P50, 0.1),), size=16 << 20, warmup=1.0, seconds=120.0),
    Lane('structured', 'pipeline', 'unix', 14000, 2400, ((MEAN, 1.0),), payload='structured', window=_IN_FLIGHT),
    Lane('many', 'many', 'unix', 80000, 14400, ((MEAN, 0.8),), window=4, clients=100),
    Lane('idle-crowd', 'idle', 'unix', 20000, 3600, ((P50, 1.1),), against=ALONE, idle=1000),
    Lane('request', 'request', 'unix', 20000, 3600, ((P50, 1.0),), against=MULTIPROCESSING),
    Lane('workers0', 'workers0', 'unix', 20000, 3600, ((P50, 0.8),)),
)
