"""``python3 -m tests.fuzz``: fuzz for a number of frames and some seconds, and print what was done, or the first defect."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Callable, Dict, List, Optional, Tuple

from . import live
from .shrink import Defect
from .wire import PROFILES, Checker, Tally

# The parts of the frames that the profiles get. Raw mode has none, so little of it is enough.
_WEIGHTS = {'fast': 3.0, 'guarded': 3.0, 'assured': 3.0, 'raw': 0.5}
_TURN = 200  # streams of one profile before the next has its turn

Progress = Callable[[str], None]


def fuzz_wire(
    profiles: List[str], frames: int, seed: object, progress: Progress
) -> Tuple[Dict[str, Tally], Optional[Defect]]:
    """Run until that many frames were judged, or something is wrong."""
    checkers = {profile: Checker(profile, seed) for profile in profiles}
    tallies = {profile: checker.tally for profile, checker in checkers.items()}
    done = 0
    while done < frames:
        profile = min(tallies, key=lambda name: tallies[name].frames / _WEIGHTS[name])
        step = checkers[profile].step
        for _ in range(_TURN):
            defect = step()
            if defect is not None:
                return tallies, defect
        done = sum(tally.frames for tally in tallies.values())
        progress(f'{done:,} of {frames:,} frames')
    return tallies, None


def fuzz_live(profiles: List[str], seconds: float, seed: object, progress: Progress) -> Tuple[Tally, Optional[Defect]]:
    """Run rounds of all kinds until time is up, each kind once at least, or something is wrong."""
    tally = Tally()
    rounds = [(kind, profile) for kind, profile in live.ROUNDS if profile in profiles]
    end = time.monotonic() + seconds
    number = 0
    while seconds and (number < len(rounds) or time.monotonic() < end):
        kind, profile = rounds[number % len(rounds)]
        round_seed = f'{seed}/{number}'
        connections = range(live.CONNECTIONS)
        result = live.run_round(kind, profile, round_seed, connections)
        if result.problems:
            return tally, live.defect(kind, profile, round_seed, connections, result.problems)
        tally.streams += result.streams
        tally.frames += result.frames
        number += 1
        progress(f'live: {number:,} rounds, {tally.streams:,} connections, {tally.frames:,} frames')
    return tally, None


def show_table(tallies: Dict[str, Tally], live_tally: Tally) -> None:
    row = '{:<32}' + '{:>13}' * len(tallies)

    def show(what: str, numbers: List[int]) -> None:
        print(row.format(what, *(f'{number:,}' for number in numbers)))

    print(row.format('', *tallies))
    show('streams', [tally.streams for tally in tallies.values()])
    show('frames judged', [tally.frames for tally in tallies.values()])
    show('chunkings of streams', [tally.chunkings for tally in tallies.values()])
    show('datagrams', [tally.datagrams for tally in tallies.values()])
    show('events encoded', [tally.encoded for tally in tallies.values()])
    for code in sorted({code for tally in tallies.values() for code in tally.refused}):
        show(code, [tally.refused[code] for tally in tallies.values()])
    print(f'live sockets: {live_tally.streams:,} connections and senders, {live_tally.frames:,} frames')


def main(arguments: Optional[List[str]] = None) -> int:
    """Return 0, or 1 if there is a defect, which is printed as a test case."""
    parser = argparse.ArgumentParser(prog='python3 -m tests.fuzz', description='Fuzz the wire layer and live sockets.')
    parser.add_argument('--frames', type=int, default=500_000, help='frames over the wire layer (%(default)s)')
    parser.add_argument('--seed', type=int, help='repeats a run (default: the clock)')
    parser.add_argument('--profile', action='append', choices=PROFILES, help='only this one; may be repeated')
    parser.add_argument('--live-seconds', type=float, default=15.0, help='seconds over live sockets; 0: none (%(default)s)')
    options = parser.parse_args(arguments)
    seed = int(time.time()) if options.seed is None else options.seed
    profiles = options.profile or list(PROFILES)
    progress = _progress_on_a_terminal()
    print(f'seed {seed}', flush=True)
    began = time.perf_counter()
    tallies, defect = fuzz_wire(profiles, options.frames, seed, progress)
    wire_seconds = time.perf_counter() - began
    live_tally = Tally()
    if defect is None:
        live_tally, defect = fuzz_live(profiles, options.live_seconds, seed, progress)
    progress('')
    show_table(tallies, live_tally)
    frames = sum(tally.frames for tally in tallies.values())
    print(f'seed {seed}: {frames:,} frames in {wire_seconds:.1f} s, {frames / wire_seconds:,.0f} frames/s; '
          f'with live sockets {time.perf_counter() - began:.1f} s; {"no defect" if defect is None else "a DEFECT"}')
    if defect is not None:
        print(f'\n{defect.what}\n\n{defect.test}')
    return 0 if defect is None else 1


def _progress_on_a_terminal() -> Progress:
    last = 0.0

    def show(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if not text or now - last > 0.2:
            last = now
            print(f'\r\x1b[K{text}', end='', file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else lambda text: None


if __name__ == '__main__':
    sys.exit(main())
