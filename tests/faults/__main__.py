"""`make faults`: trials of each kind until the time is over, and what fell short.

PYTHONPATH=tests python -m faults [--minutes 15] [--seed N] [--kinds KIND ...] [--trials N]

Its kind and its seed determine a trial, but for moments that are counted in seconds. The exit code
is 1 if any trial fell short.
"""

import argparse
import contextlib
import math
import random
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults import disk, ending, sharing
from faults.campaign import Campaign, warm_up
from faults.forked import FellShort, Skipped, end_all

KINDS: dict[str, Callable[[Campaign, random.Random], str]] = {
    "kill": ending.kill,
    "tree": ending.tree,
    "ranks": ending.ranks,
    "mutate": disk.mutate,
    "full": disk.full,
    "readonly": disk.readonly,
    "shared": sharing.shared,
}
QUICK = {"mutate": 10}  # trials for one of each other kind


@dataclass
class Tally:
    """Trials of a kind. skipped: why there are none. short: those that fell short, by seed."""

    trials: int = 0
    skipped: str = ""
    short: dict[int, str] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description="make faults")
    parser.add_argument("--minutes", type=float, default=15.0, help="of trials; default: 15")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--trials", type=float, default=math.inf, help="of each kind, at most")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder and processes go too
    disk.keep_mounts()
    warm_up()
    most, tallies = arguments.trials, {kind: Tally() for kind in arguments.kinds}
    order = deque(kind for kind in tallies for _ in range(QUICK.get(kind, 1)))
    with tempfile.TemporaryDirectory(prefix="rib-faults-") as folder:
        print("running the campaign undisturbed", flush=True)
        campaign = Campaign(Path(folder))
        end = time.monotonic() + arguments.minutes * 60
        with contextlib.suppress(KeyboardInterrupt):
            while order and time.monotonic() < end:
                kind = order.popleft()
                tally = tallies[kind]
                if not tally.skipped and tally.trials < most:
                    run_trial(campaign, kind, arguments.seed + tally.trials, tally)
                    order.append(kind)
    return show(tallies)


def run_trial(campaign: Campaign, kind: str, seed: int, tally: Tally) -> None:
    try:
        done = KINDS[kind](campaign, random.Random(f"{kind} {seed}"))
        print(f"{kind} {seed}: {done:.200}: as it should", flush=True)
        tally.trials += 1
    except Skipped as why:
        tally.skipped = str(why)
    except FellShort as why:
        print(f"{kind} {seed}: fell short: {why}", flush=True)
        tally.trials += 1
        tally.short[seed] = str(why)
    finally:
        end_all()


def show(tallies: dict[str, Tally]) -> int:
    """Print what trials did, and how to repeat those that fell short; the exit code."""
    for kind, tally in tallies.items():
        done = f"{tally.trials} trials, {len(tally.short)} fell short"
        print(f"{kind:<8} {f'skipped: {tally.skipped}' if tally.skipped else done}")
        for seed, why in tally.short.items():
            print(f"  seed {seed}: {why.splitlines()[0][:300]}")
            again = f"--kinds {kind} --seed {seed} --trials 1"
            print(f"  again: PYTHONPATH=tests python -m faults {again}")
    return int(any(tally.short for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
