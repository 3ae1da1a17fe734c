"""What is timed: entrants of a contest, by turns, once their results are the same.

A case is a module of this package with `contests(device, scale)`, which gives Contest after
Contest, each built when its turn comes. `CASES` lists them.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bench.timing import Run, interleave

CASES = ("headline", "kernels", "transport", "loader", "train", "evaluation", "grid")
TABLES = ("published_throughput",)  # modules whose `rows` time nothing
SKIPPED: list[str] = []  # peers of the case that runs, each with its reason


@dataclass(frozen=True)
class Scale:
    """quick: tiny sizes. full: also sizes at which a peer takes minutes. drawn: pictures of noise
    in place of photos, which are downloaded; quick ones always are."""

    quick: bool = False
    full: bool = False
    drawn: bool = False

    @property
    def draws(self) -> bool:
        return self.quick or self.drawn


@dataclass(frozen=True)
class Entrant:
    """Something to time. images: that a run deals with. bytes: that it must move. least_ms: that
    its operations take at the device's peak. facts: more columns of its row."""

    name: str
    run: Run
    images: int = 0
    bytes: float = 0.0
    least_ms: float = 0.0
    facts: Mapping[str, float] = field(default_factory=dict)

    def rates(self, milliseconds: float) -> dict[str, float]:
        """Images a second, GB/s and MFU, where they are known, and the facts."""
        rates = {
            "images_s": 1e3 * self.images / milliseconds,
            "gb_s": self.bytes / milliseconds / 1e6,
            "mfu": self.least_ms / milliseconds,
        }
        return {name: rate for name, rate in rates.items() if rate} | dict(self.facts)


@dataclass(frozen=True)
class Contest:
    """Ours at one size against its peers, at least `rounds` times.

    check: raises AssertionError unless the entrants give the same; before anything is timed.
    processor_time: on a CPU, of all threads and ended processes together. warm: whether all run
    once before they are timed.
    """

    name: str
    ours: Entrant
    peers: tuple[Entrant, ...]
    check: Callable[[], object] = lambda: None
    rounds: int = 5
    processor_time: bool = False
    warm: bool = True


def cases(name: str) -> Callable[[torch.device, Scale], Iterator[Contest]]:
    """The contests of a case. Raises ModuleNotFoundError where one of its packages is missing."""
    return importlib.import_module(f"bench.{name}").contests


def rows(name: str, device: torch.device, scale: Scale, seconds: float) -> Iterator[dict[str, Any]]:
    """The rows of a case, as soon as each is known. Raises as `cases` and `hold`."""
    if name in TABLES:
        yield from importlib.import_module(f"bench.{name}").rows()
        return
    for current in cases(name)(device, scale):
        yield from hold(current, device, seconds=seconds)
        del current  # before the next is built: two would not fit


def hold(contest: Contest, device: torch.device, *, seconds: float) -> list[dict[str, Any]]:
    """A row for each peer. ratio: our time over the peer's, the median of paired runs, with its
    quartiles `low` and `high`; ms: medians. Raises AssertionError of the contest's check."""
    contest.check()
    entrants = (contest.ours, *contest.peers)
    ours, *theirs = interleave(
        [entrant.run for entrant in entrants],
        device,
        seconds=seconds,
        least=contest.rounds,
        processor_time=contest.processor_time,
        warm=contest.warm,
    )
    rows = []
    for peer, times in zip(contest.peers, theirs, strict=True):
        ratios = [a / b for a, b in zip(ours, times, strict=True)]
        low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
        ms, peer_ms = statistics.median(ours), statistics.median(times)
        row = {"contest": contest.name, "ours": contest.ours.name, "peer": peer.name}
        row |= {"ms": ms, "peer_ms": peer_ms, "ratio": ratio, "low": low, "high": high}
        row |= {"rounds": len(ours), **contest.ours.rates(ms)}
        row |= {f"peer_{name}": rate for name, rate in peer.rates(peer_ms).items()}
        rows.append(row)
    return rows


def tried(peer: str, build: Callable[[], Entrant]) -> list[Entrant]:
    """The peer that `build` makes; none, said by name, where its package is missing or fails."""
    try:
        return [build()]
    except Exception as error:
        SKIPPED.append(f"{peer} ({(str(error) or repr(error)).splitlines()[0]})")
        print(f"peer skipped: {SKIPPED[-1]}")
        return []
