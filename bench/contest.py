"""What is timed: entrants of a contest, by turns, once their results are the same. What else the
machine does then hits all alike.

A case is a module of this package with `contests(device, scale)`, which gives Contest after
Contest, each built when its turn comes. `CASES` lists them.
"""

from __future__ import annotations

import importlib
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

Run = Callable[[], object]
CASES = ("headline", "kernels", "transport", "loader", "train", "evaluation", "grid")
TABLES = ("predicted", "published_throughput")  # modules whose `rows` time nothing
SKIPPED: list[str] = []  # peers of the case that runs, each with its reason
KEY = ("contest", "ours", "peer")  # columns that name a row
# More than any GPU's L2: what a run finds there must not be what the run before left.
_FLUSH_BYTES = 256 << 20


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
    """The rows of a case: of each contest those of its first round, then those of all its rounds,
    with the same `KEY`. Raises as `cases` and `hold`."""
    if name in TABLES:
        yield from importlib.import_module(f"bench.{name}").rows()
        return
    for current in cases(name)(device, scale):
        yield from hold(current, device, seconds=seconds)
        del current  # before the next is built: two would not fit


def hold(contest: Contest, device: torch.device, *, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for each peer after the first round, since a stage's limit may end the others, and
    again after all. ratio: our time over the peer's, the median of paired runs, with its quartiles
    `low` and `high`; ms: medians; failed: why a peer has no time, where it lacks memory. Raises
    AssertionError of the contest's check."""
    contest.check()
    failures: dict[str, str] = {}
    times: list[list[float]] = []
    for times in rounds(
        [contest.ours.run, *(_while_it_fits(peer, failures) for peer in contest.peers)],
        device,
        seconds=seconds,
        least=contest.rounds,
        processor_time=contest.processor_time,
        warm=contest.warm,
    ):
        if len(times[0]) == 1:
            yield from _rows(contest, times, failures)
    if len(times[0]) > 1:
        yield from _rows(contest, times, failures)


def _rows(
    contest: Contest, times: Sequence[Sequence[float]], failures: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    ours, *of_peers = times
    ms = statistics.median(ours)
    for peer, peer_times in zip(contest.peers, of_peers, strict=True):
        row = {"contest": contest.name, "ours": contest.ours.name, "peer": peer.name}
        if peer.name in failures:
            row |= {"ms": ms, "rounds": len(ours), **contest.ours.rates(ms)}
            yield row | {"failed": failures[peer.name]}
            continue
        ratios = [a / b for a, b in zip(ours, peer_times, strict=True)]
        low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
        peer_ms = statistics.median(peer_times)
        row |= {"ms": ms, "peer_ms": peer_ms, "ratio": ratio, "low": low, "high": high}
        row |= {"rounds": len(ours), **contest.ours.rates(ms)}
        yield row | {f"peer_{name}": rate for name, rate in peer.rates(peer_ms).items()}


def _while_it_fits(peer: Entrant, failures: dict[str, str]) -> Run:
    """A peer's run until memory does not suffice, which `failures` then says by its name."""

    def run() -> None:
        if peer.name not in failures:
            try:
                peer.run()
            except (torch.OutOfMemoryError, MemoryError) as error:
                failures[peer.name] = (str(error) or repr(error)).splitlines()[0]

    return run


def tried(peer: str, build: Callable[[], Entrant]) -> list[Entrant]:
    """The peer that `build` makes; none, said by name, where its package is missing or fails."""
    try:
        return [build()]
    except Exception as error:
        SKIPPED.append(f"{peer} ({(str(error) or repr(error)).splitlines()[0]})")
        print(f"peer skipped: {SKIPPED[-1]}")
        return []


def interleave(
    runs: Sequence[Run], device: torch.device, *, seconds: float, **options: Any
) -> list[list[float]]:
    """Milliseconds of every run, a number a round, after the last of `rounds`."""
    *_, times = rounds(runs, device, seconds=seconds, **options)
    return times


def rounds(
    runs: Sequence[Run],
    device: torch.device,
    *,
    seconds: float,
    least: int = 5,
    most: int = 100,
    processor_time: bool = False,
    warm: bool = True,
) -> Iterator[list[list[float]]]:
    """Milliseconds of every run so far, a number a round, after each round: A B C, C B A, ...

    Rounds go on until `seconds` have passed, at least `least` and at most `most` of them. On CUDA
    the L2 cache is flushed before each run and events take the time. processor_time: on a CPU, of
    all threads and ended processes together, which other work on the machine lengthens less. warm:
    each run goes before the rounds too, untimed, on CUDA up to three times within a second.
    """
    if device.type == "cuda":
        clock = _cuda_clock(device)
    else:
        clock = _cpu_clock(processor_seconds if processor_time else time.perf_counter)
    for run in runs if warm else ():
        begin = time.perf_counter()
        run()
        for _ in range(2 if device.type == "cuda" else 0):
            if time.perf_counter() - begin < 1:
                run()
    times: list[list[float]] = [[] for _ in runs]
    start = time.perf_counter()
    for number in range(most):
        if number >= least and time.perf_counter() - start > seconds:
            break
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for entrant in order:
            times[entrant].append(clock(runs[entrant]))
        yield times


def repeated(run: Run, times: int, device: torch.device) -> Run:
    """`times` runs in a row; on CUDA as one CUDA graph, so that short kernels do not wait for the
    host. Their data may stay in the L2 cache."""

    def runs() -> None:
        for _ in range(times):
            run()

    if device.type != "cuda":
        return runs
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        runs()  # compiles, and allocates what stays
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        runs()
    return graph.replay


def processor_seconds() -> float:
    """Of this process, all its threads, and of the processes that it started and that ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _cpu_clock(now: Callable[[], float]) -> Callable[[Run], float]:
    def clock(run: Run) -> float:
        start = now()
        run()
        return (now() - start) * 1e3

    return clock


def _cuda_clock(device: torch.device) -> Callable[[Run], float]:
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)

    def clock(run: Run) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        first.record()
        run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)

    return clock
