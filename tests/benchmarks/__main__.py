"""``python3 -m tests.benchmarks``: measure nodeipc and others side by side; ``footprint`` or ``growth`` run those programs.

Samples are interleaved, ours, theirs, ours, theirs …, each with a fresh server and a fresh client, so that what the machine
does meanwhile meets all of them. A sample that fails is repeated once.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from ..certificates import Certificates
from . import machine
from .lanes import ALONE, LANES, MULTIPROCESSING, NODE, OURS, SHARES, SOCKET, Lane
from .report import Outcome, brief, others_table, table
from .sample import Failed, Result, Unsupported, node_peer, python_peer, run

_PROGRAMS = ('footprint', 'growth')

# What needs packages of its own.
_PACKAGES = ('zmq', 'websockets', 'rpyc', 'pyro5')
_OTHERS = (NODE, SOCKET, MULTIPROCESSING, *_PACKAGES)

_PAIRS = 5


class _Screen:
    """Tells on stderr how far it is: a line that changes if somebody watches, else a line for each lane."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._is_terminal:
            print(f'\r\x1b[K{text}', end='', file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        start = '\r\x1b[K' if self._is_terminal else ''
        print(f'{start}{text}', file=sys.stderr, flush=True)


class _Peers(NamedTuple):
    """Commands by the name of the peer, and why others are missing."""

    commands: Dict[str, List[str]]
    missing: Dict[str, str]


def _find_peers(python: str, wanted: Sequence[str], packages: bool) -> _Peers:
    ours = python_peer(OURS, python)
    commands: Dict[str, List[str]] = {OURS: ours, ALONE: ours}
    missing = {}
    for name in wanted:
        if name == NODE:
            node, why = machine.find_node()
            if node is None:
                missing[name] = why
            else:
                commands[name] = node_peer(node)
        elif name not in _PACKAGES:
            commands[name] = python_peer(name, python)
        elif packages and machine.VENV_PYTHON.exists():
            command = python_peer(name, str(machine.VENV_PYTHON))
            if Path(command[-1]).exists():
                commands[name] = command
            else:
                missing[name] = 'there is no such program here'
        elif packages:
            missing[name] = 'its packages are not installed; `make bench` does that, in .venv-bench'
    return _Peers(commands, missing)


class _Bench:
    """Runs lanes with one Python."""

    def __init__(self, peers: _Peers, pairs: int, is_quick: bool, tls: Optional[Dict[str, str]], screen: _Screen) -> None:
        self._peers = peers
        self._pairs = pairs
        self._is_quick = is_quick
        self._tls = tls
        self._screen = screen

    def run(self, lane: Lane, others: Sequence[str], place: str) -> Outcome:
        """Run all samples of a lane."""
        outcome = Outcome(lane)
        peers = [OURS, *(peer for peer in others if peer in self._peers.commands)]
        for pair in range(self._pairs):
            for peer in list(peers):
                self._screen.show(f'{place} {lane.name}: {peer}, {pair + 1} of {self._pairs}')
                try:
                    sample = self._sample_or_repeat(lane, peer, outcome)
                except Unsupported:
                    peers.remove(peer)
                    if peer in (OURS, lane.against):
                        outcome.failures[peer] = 'it says that it cannot do this'
                except Failed as error:
                    peers.remove(peer)
                    outcome.failures[peer] = str(error)
                else:
                    outcome.samples.setdefault(peer, []).append(sample)
            if OURS not in peers:
                break
        return outcome

    def _sample_or_repeat(self, lane: Lane, peer: str, outcome: Outcome) -> Result:
        try:
            return self._sample(lane, peer)
        except Failed as error:
            outcome.repeated.append(f'{peer}: {error}')
            self._screen.say(f'{lane.name}: {peer} is repeated: {brief(str(error))}')
        return self._sample(lane, peer)

    def _sample(self, lane: Lane, peer: str) -> Result:
        spec = lane.spec(peer, self._is_quick, self._tls, SHARES.get((peer, lane.pattern), 1.0))
        return run(self._peers.commands[peer], spec, lane.messages(spec), lane.seconds / (4 if self._is_quick else 1))


def _make_tls(directory: str) -> Dict[str, str]:
    """A key; and a certificate for 127.0.0.1 with that of its CA, to show and to trust.

    Raises LookupError without the openssl command.
    """
    certificates = Certificates(Path(directory))
    chain = Path(directory) / 'chain.pem'
    chain.write_text(Path(certificates.pem('server')).read_text('ascii') + Path(certificates.pem('ca')).read_text('ascii'))
    return {'key': certificates.key('server'), 'cert': str(chain)}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='python3 -m tests.benchmarks', description=__doc__.partition('\n\n')[2])
    parser.add_argument('--quick', action='store_true', help='smaller counts: less than two minutes')
    parser.add_argument('--lanes', metavar='LANE,...', help=f'of {", ".join(lane.name for lane in LANES)}; default: all')
    parser.add_argument(
        '--peers', metavar='PEER,...', help=f'of {", ".join(_OTHERS)}; or "all"; default: those that targets are about'
    )
    parser.add_argument('--pairs', type=int, metavar='N', help=f'samples of each, default {_PAIRS}')
    parser.add_argument('--json', metavar='FILE', help='write all that was measured there')
    parser.add_argument(
        '--python', action='append', metavar='PATH', help='the Python of our side, or "newest"; may be repeated'
    )
    options = parser.parse_args(arguments)
    options.lanes = _chosen(parser, options.lanes, {lane.name: lane for lane in LANES})
    is_all = options.peers == 'all'
    options.peers = _chosen(parser, None if is_all else options.peers, dict.fromkeys(_OTHERS)) if options.peers else None
    options.pairs = options.pairs or _PAIRS
    if options.pairs < 1:
        parser.error('--pairs: one at least')
    return options


def _chosen(parser: argparse.ArgumentParser, text: Optional[str], known: Mapping[str, Any]) -> List[str]:
    names = list(known) if text is None else text.split(',')
    for name in names:
        if name not in known:
            parser.error(f'no {name!r} here; there are {", ".join(known)}')
    return names


def _pythons(wanted: Optional[List[str]]) -> List[str]:
    """Interpreters of different versions, the first as asked."""
    found: Dict[str, str] = {}
    for python in wanted or [sys.executable]:
        python = machine.newest_python() if python == 'newest' else python
        version = machine.python_version(python)
        if not version:
            sys.exit(f'--python {python}: that is no Python that runs')
        found.setdefault(version, python)
    return list(found.values())


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, and return 1 if anything has failed. A target that is not met is no failure."""
    options = _parse(arguments)
    screen = _Screen()
    facts = {**machine.facts(), 'quick': options.quick, 'pairs': options.pairs}
    pythons = _pythons(options.python)
    begin = time.monotonic()
    runs: List[Dict[str, Any]] = []
    interrupted = ''
    has_failed = False
    print(_headline(facts))
    with tempfile.TemporaryDirectory(prefix='nodeipc-bench-') as directory:
        if 'PYTHONPATH' not in os.environ:  # else it says which nodeipc to measure
            # Somebody may be working on the original.
            shutil.copytree(machine.CHECKOUT / 'nodeipc', Path(directory) / 'copy' / 'nodeipc')
            os.environ['PYTHONPATH'] = str(Path(directory) / 'copy')
        try:
            tls: Optional[Dict[str, str]] = _make_tls(directory)
        except LookupError as reason:
            tls = None
            screen.say(f'the TLS lanes are skipped: {reason}')
        for number, python in enumerate(pythons):
            outcomes: List[Outcome] = []
            wanted = options.peers if options.peers is not None else [NODE, MULTIPROCESSING]
            peers = _find_peers(python, wanted, packages=number == 0)
            for name, reason in peers.missing.items():
                screen.say(f'{name} is skipped: {reason}')
            bench = _Bench(peers, options.pairs, options.quick, tls, screen)
            lanes = [lane for lane in LANES if lane.name in options.lanes and (tls or lane.transport != 'tls')]
            try:
                for place, lane in enumerate(lanes):
                    others = wanted if options.peers is not None else [lane.against]
                    if lane.against == ALONE:
                        others = [ALONE]
                    outcome = bench.run(lane, others, f'[{place + 1}/{len(lanes)}]')
                    outcomes.append(outcome)
                    has_failed = has_failed or bool(outcome.failures)
                    screen.say(outcome.summary())
            except KeyboardInterrupt:
                interrupted = 'interrupted: what was measured until then'
            described = machine.describe_python(python)
            print(_section(described, outcomes, peers, interrupted), flush=True)
            results = [outcome.as_json() for outcome in outcomes]
            runs.append({'python': described, 'lanes': results, 'missing': peers.missing})
            facts['seconds'] = round(time.monotonic() - begin, 1)
            facts['load_at_end'] = machine.load()
            if options.json:
                text = json.dumps({**facts, 'runs': runs}, indent=1, ensure_ascii=False)
                Path(options.json).parent.mkdir(parents=True, exist_ok=True)
                Path(options.json).write_text(text + '\n', 'utf-8')
            if interrupted:
                break
    screen.say(f'{facts["seconds"]:.0f} s')
    return 130 if interrupted else int(has_failed)


def _headline(facts: Mapping[str, Any]) -> str:
    commit = f'commit {facts["commit"][:12]}' if facts['commit'] else 'no commit'
    if facts['dirty']:
        commit += ' and uncommitted changes'
    how = f'{"quick, " if facts["quick"] else ""}{facts["pairs"]} pairs'
    where = f'{facts["cpu"]}, {facts["cores"]} cores, {facts["system"]}, load {facts["load"]}'
    return f'{facts["date"]}; {commit}; {how}  \n{where}'


def _section(python: str, outcomes: List[Outcome], peers: _Peers, note: str) -> str:
    versions = dict.fromkeys(
        samples[0].version for outcome in outcomes for samples in outcome.samples.values() if samples[0].version
    )
    lines = ['', f'{python}: {"; ".join(versions)}', *filter(None, [note]), '', table(outcomes)]
    others = others_table(outcomes)
    if others:
        lines += ['', 'Others: their time; ours ÷ theirs', '', others]
    repeated = [f'{outcome.lane.name}: {reason}' for outcome in outcomes for reason in outcome.repeated]
    if repeated:
        lines.append(f'\nSamples that had failed and were repeated: {"; ".join(map(brief, repeated))}')
    lines += [f'\n{name} was skipped: {reason}' for name, reason in peers.missing.items()]
    return '\n'.join(lines)


def _end(signal_number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == '__main__':
    if sys.argv[1:2] and sys.argv[1] in _PROGRAMS:
        program = f'{__package__}.{sys.argv.pop(1)}'
        runpy.run_module(program, run_name='__main__', alter_sys=True)
    else:
        signal.signal(signal.SIGTERM, _end)
        sys.exit(main(sys.argv[1:]))
