"""What a bench case is made of, and how a contest becomes rows of the table.

A case is a module of this package that defines

    KERNELS    the modules of kernels/ it times
    gate       gate(device): raises AssertionError unless what will be timed is right
    contests   contests(device, scale): Contest after Contest, each built when its turn comes

`CASES` lists them; `load` imports one, so that a case whose packages are missing can be skipped by
name while the others run.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch

from bench.roofline import Roofline, Work
from bench.timing import Run, interleave

CASES = (
    "optimizer",
    "loader",
    "train",
    "fisher",
    "distill",
    "interpolate",
    "evaluation",
    "grid",
    "transport",
    "bures",
)


@dataclass(frozen=True)
class Scale:
    """quick: tiny sizes. batch: images of a model's step, where 64 take too long. full: also sizes
    at which a peer takes minutes. drawn: pictures of noise in place of photos, which are
    downloaded; quick ones always are.
    """

    quick: bool = False
    batch: int | None = None
    full: bool = False
    drawn: bool = False

    @property
    def draws(self) -> bool:
        return self.quick or self.drawn


@dataclass(frozen=True)
class Load:
    """What a run deals with: images, their products' FLOPs, the most bytes that tensors held."""

    images: int
    flops: float = 0.0
    peak_bytes: float = 0.0

    def rates(self, milliseconds: float, roofline: Roofline) -> dict[str, float]:
        """images_s, and where they are known mfu (of `roofline.peak_gflop_s`) and peak_mb."""
        rates = {
            "images_s": 1e3 * self.images / milliseconds,
            "mfu": self.flops / milliseconds / 1e6 / roofline.peak_gflop_s,
            "peak_mb": self.peak_bytes / 1e6,
        }
        return {name: value for name, value in rates.items() if value}


@dataclass(frozen=True)
class Entrant:
    """Something to time. For a peer, `target` is the greatest time ratio the subject may show.

    `work`: what its time is predicted from, where that is known from bytes and FLOPs.
    `share`: of that work, what `run` does where all of it would take too long; times are divided by
    it, and the name says so. `figures`: numbers that `run` writes down, for the JSON.
    """

    name: str
    run: Run
    work: Work | None = None
    target: float | None = None
    load: Load | None = None
    share: float = 1.0
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contest:
    """A subject of ours at one size against its peers, at least `rounds` times.

    Entrants of one contest disturb each other's caches: peers many times slower get their own.
    processor_time: on a CPU, milliseconds of processor time, of all threads and ended processes
    together. warm: whether all run once before they are timed.
    """

    name: str
    subject: Entrant
    peers: tuple[Entrant, ...]
    rounds: int = 5
    processor_time: bool = False
    warm: bool = True


@dataclass(frozen=True)
class Row:
    """A subject against one peer. Ratios are the subject's time over the peer's.

    measured, low, high: median and quartiles of the ratios of `rounds` paired runs; of_minima: the
    ratio of the two shortest times; roofline: predicted over median time of the subject, 1 at best;
    rates: `Load.rates` of both, by name, where they have a load; figures: likewise.
    """

    contest: str
    subject: str
    peer: str
    subject_ms: float
    peer_ms: float
    predicted: float | None
    measured: float
    low: float
    high: float
    of_minima: float
    target: float | None
    roofline: float | None
    rounds: int
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        if self.target is None:
            return "-"
        return "met" if self.measured <= self.target else "MISSED"


class Case(Protocol):
    KERNELS: tuple[str, ...]
    gate: Callable[[torch.device], None]
    contests: Callable[[torch.device, Scale], Iterator[Contest]]


def load(name: str) -> Case:
    """The case of that name. Raises ImportError where one of its packages is missing."""
    return cast(Case, importlib.import_module(f"bench.{name}"))


def hold(
    contest: Contest, roofline: Roofline, device: torch.device, *, seconds: float
) -> list[Row]:
    """Times a contest, a row for each peer. Predictions are made before anything runs."""
    entrants = (contest.subject, *contest.peers)
    expected = [e.work and roofline.milliseconds(e.work) for e in entrants]
    times = interleave(
        [entrant.run for entrant in entrants],
        device,
        seconds=seconds,
        least=contest.rounds,
        processor_time=contest.processor_time,
        warm=contest.warm,
    )
    times = [
        [ms / entrant.share for ms in measured]
        for entrant, measured in zip(entrants, times, strict=True)
    ]
    rows = []
    for peer, peer_expected, peer_times in zip(contest.peers, expected[1:], times[1:], strict=True):
        ratios = [
            subject_time / peer_time
            for subject_time, peer_time in zip(times[0], peer_times, strict=True)
        ]
        low, median, high = _quartiles(ratios)
        subject_ms, peer_ms = statistics.median(times[0]), statistics.median(peer_times)
        timed = ((contest.subject, subject_ms), (peer, peer_ms))
        predicted = expected[0] / peer_expected if expected[0] and peer_expected else None
        rows.append(
            Row(
                contest=contest.name,
                subject=contest.subject.name,
                peer=peer.name,
                subject_ms=subject_ms,
                peer_ms=peer_ms,
                predicted=predicted,
                measured=median,
                low=low,
                high=high,
                of_minima=min(times[0]) / min(peer_times),
                target=peer.target,
                roofline=expected[0] / subject_ms if expected[0] else None,
                rounds=len(ratios),
                rates={e.name: e.load.rates(ms, roofline) for e, ms in timed if e.load},
                figures={e.name: e.figures for e, _ in timed if e.figures},
            )
        )
    return rows


def _quartiles(ratios: Sequence[float]) -> Sequence[float]:
    if len(ratios) == 1:
        return [*ratios] * 3
    return statistics.quantiles(ratios, n=4, method="inclusive")
