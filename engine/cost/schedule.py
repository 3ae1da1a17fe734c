"""When the jobs of a graph end: a free GPU takes the job with the longest way to the end.

That is list scheduling by highest level first (Hu 1961): optimal for trees of equal jobs, and in
general at most twice as long as the best order (Graham 1966).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter


def levels(hours: Mapping[str, float], after: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Hours from each job's start to the end of the last that waits for it, on free GPUs.

    after: the jobs that each job waits for.
    """
    level = dict(hours)
    for name in reversed(list(TopologicalSorter(after).static_order())):
        for before in after[name]:
            level[before] = max(level[before], hours[before] + level[name])
    return level


def makespan(hours: Mapping[str, float], after: Mapping[str, Sequence[str]], gpus: int) -> float:
    """Hours until the last job ends, where each needs a GPU of `gpus`. Arguments as in `levels`."""
    level = levels(hours, after)
    waits = {name: set(names) for name, names in after.items()}
    before: dict[str, list[str]] = {name: [] for name in after}
    for name, names in waits.items():
        for each in names:
            before[each].append(name)
    ready = [(-level[name], name) for name, names in waits.items() if not names]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < gpus:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + hours[name], name))
        now, finished = heapq.heappop(running)
        for name in before[finished]:
            waits[name].remove(finished)
            if not waits[name]:
                heapq.heappush(ready, (-level[name], name))
    return now
