"""What came out: medians, ratios pair by pair, and whether the targets are met, as a table and as JSON."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List, NamedTuple, Optional

from .lanes import ALONE, MEAN, MULTIPROCESSING, NODE, OURS, P50, P99, SOCKET, Lane
from .sample import Result

_TITLES = {
    OURS: 'nodeipc', NODE: 'node-ipc 14', ALONE: 'nodeipc without the crowd', MULTIPROCESSING: 'multiprocessing',
    SOCKET: 'bare sockets', 'zmq': 'pyzmq', 'pyro5': 'Pyro5',
}
_METRICS = {P50: 'p50', P99: 'p99', MEAN: 'per message'}


class Ratio(NamedTuple):
    """Our time divided by theirs, over all pairs."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f'{self.median:.2f} ({self.least:.2f}\N{EN DASH}{self.most:.2f})'


def brief(reason: str) -> str:
    """Return a reason in a line: how it ended, and the last line of what was said, which tells most."""
    first, _, rest = reason.partition('\n')
    return f'{first.partition(": ")[0]}: {rest.splitlines()[-1]}' if rest else first


class Outcome:
    """The samples of one lane."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.samples: Dict[str, List[Result]] = {}
        self.failures: Dict[str, str] = {}  # by peer
        self.repeated: List[str] = []  # why samples had to be

    def metric(self, peer: str, metric: str) -> List[float]:
        """Return the microseconds of each sample."""
        values = [getattr(sample, metric) for sample in self.samples.get(peer, ())]
        return [float(value) for value in values if value is not None]

    def median(self, peer: str, metric: str) -> Optional[float]:
        """Return the median of a peer's samples, in microseconds."""
        values = self.metric(peer, metric)
        return statistics.median(values) if values else None

    def ratio(self, peer: str, metric: str) -> Optional[Ratio]:
        """Return our time divided by that of a peer, each sample of ours with the peer's next one."""
        ratios = [ours / theirs for ours, theirs in zip(self.metric(OURS, metric), self.metric(peer, metric))]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None

    def is_met(self, metric: str, target: float) -> Optional[bool]:
        """Whether a target is met; None if that is not known."""
        ratio = self.ratio(self.lane.against, metric)
        return None if ratio is None else ratio.median <= target

    def summary(self) -> str:
        """Return a line for whoever watches."""
        parts = []
        for metric, target in self.lane.targets:
            ratio = self.ratio(self.lane.against, metric)
            if ratio is not None:
                verdict = 'met' if ratio.median <= target else 'NOT met'
                parts.append(f'{metric} {ratio} of {self.lane.against}, at most {target:g}: {verdict}')
        parts += [f'{peer} FAILED: {brief(reason)}' for peer, reason in self.failures.items()]
        return f'{self.lane.name}: {"; ".join(parts) or "measured, nothing to compare with"}'

    def as_json(self) -> Dict[str, Any]:
        """Return all of it."""
        lane = self.lane
        peers = {}
        for peer, samples in self.samples.items():
            ratios = {metric: self.ratio(peer, metric) for metric in lane.metrics} if peer != OURS else {}
            peers[peer] = {
                'samples': [sample._asdict() for sample in samples],
                'median_us': {metric: self.median(peer, metric) for metric in lane.metrics},
                'ratio': {metric: ratio and ratio._asdict() for metric, ratio in ratios.items()},
            }
        targets = [
            {'metric': metric, 'at_most': target, 'against': lane.against, 'met': self.is_met(metric, target)}
            for metric, target in lane.targets
        ]
        troubles = {'failures': self.failures, 'repeated': self.repeated}
        return {'lane': lane._asdict(), 'peers': peers, 'targets': targets, **troubles}


def table(outcomes: List[Outcome]) -> str:
    """Return a table, in Markdown, of the lanes and their targets."""
    lines = [
        '| lane | | nodeipc | compared with | theirs | ours ÷ theirs | at most | |',
        '|---|---|---:|---|---:|---:|---:|---|',
    ]
    for outcome in outcomes:
        lane = outcome.lane
        targets = dict(lane.targets)
        for metric in lane.metrics:
            ratio = outcome.ratio(lane.against, metric)
            target = targets.get(metric)
            if target is None and ratio is None:
                continue
            met = None if target is None else outcome.is_met(metric, target)
            verdict = '' if target is None else {True: 'met', False: '**not met**', None: 'not known'}[met]
            failure = outcome.failures.get(OURS) or outcome.failures.get(lane.against)
            if failure:
                verdict = f'FAILED: {brief(failure)}'.replace('|', '/')
            cells = [
                lane.name,
                _METRICS[metric],
                _time(outcome.median(OURS, metric)),
                _TITLES.get(lane.against, lane.against),
                _time(outcome.median(lane.against, metric)),
                str(ratio or ''),
                '' if target is None else f'{target:g}',
                verdict,
            ]
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def others_table(outcomes: List[Outcome]) -> str:
    """Return a table of the peers that no target is about: their time, and ours divided by it; empty if there are none."""
    shown = {(outcome.lane.name, outcome.lane.against) for outcome in outcomes}
    peers: List[str] = []
    for outcome in outcomes:
        for peer in (*outcome.samples, *outcome.failures):
            if peer not in (OURS, ALONE, NODE) and peer not in peers and (outcome.lane.name, peer) not in shown:
                peers.append(peer)
    if not peers:
        return ''
    titles = ' | '.join(_TITLES.get(peer, peer) for peer in peers)
    lines = [f'| lane | | nodeipc | {titles} |', '|---|---|---:|' + '---:|' * len(peers)]
    for outcome in outcomes:
        for metric in outcome.lane.metrics:
            cells = [_cell(outcome, peer, metric) for peer in peers]
            if any(cells):
                ours = _time(outcome.median(OURS, metric))
                lines.append(f'| {outcome.lane.name} | {_METRICS[metric]} | {ours} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def _cell(outcome: Outcome, peer: str, metric: str) -> str:
    if peer in outcome.failures:
        return 'FAILED'
    ratio = outcome.ratio(peer, metric)
    return f'{_time(outcome.median(peer, metric))}; {ratio.median:.2f}' if ratio else ''


def _time(microseconds: Optional[float]) -> str:
    if microseconds is None:
        return ''
    for unit, size in (('s', 1e6), ('ms', 1e3)):
        if microseconds >= size:
            return f'{microseconds / size:.3g} {unit}'
    return f'{microseconds:.3g} µs'
