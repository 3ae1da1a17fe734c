"""Interleaved timing: what else the machine does must hit subject and peer alike."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence

import torch

Run = Callable[[], object]
# More than any GPU's L2: what a run finds there must not be what the run before left.
_FLUSH_BYTES = 256 << 20


def interleave(
    runs: Sequence[Run],
    device: torch.device,
    *,
    seconds: float,
    least: int = 5,
    most: int = 100,
    processor_time: bool = False,
    warm: bool = True,
) -> list[list[float]]:
    """Milliseconds of every run, a number a round: A B C, C B A, A B C, ...

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
    return times


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
