"""Simulates a workflow: when each job starts and ends on a number of GPUs, or of cores."""

from __future__ import annotations

import dataclasses
import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """hours: from its start to its end. places: GPUs, or cores, that it takes. needs: names of jobs
    that end before it starts. priority: of two jobs that could start, the higher does."""

    name: str
    hours: float
    places: int = 1
    needs: Sequence[str] = ()
    priority: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """spans: hours from the workflow's start at which each job starts and ends, by its name.
    work: hours of all jobs, each times its places."""

    spans: Mapping[str, tuple[float, float]]
    work: float

    @property
    def hours(self) -> float:
        return max(end for _, end in self.spans.values())


def simulate(jobs: Sequence[Job], places: int, notice: float = 0.0) -> Schedule:
    """Starts each job as soon as its needs have ended and its places are free; among several, the
    one of the highest priority, then the first.

    A workflow engine that polls a scheduler starts what needs a job `notice` hours after its end;
    the job's places are free at once. Raises AssertionError for a job that cannot ever start.
    """
    left = {job.name: len(job.needs) for job in jobs}
    dependents = defaultdict(list)
    for number, job in enumerate(jobs):
        for need in job.needs:
            dependents[need].append((number, job))
    ready: dict[int, list] = defaultdict(list)  # heaps, by places
    events: list = []  # (hour, number, places that come free, jobs that become ready)
    spans: dict[str, tuple[float, float]] = {}

    def enqueue(number: int, job: Job) -> None:
        assert job.places <= places, f"{job.name} takes {job.places} places of {places}"
        heapq.heappush(ready[job.places], (-job.priority, number, job))

    for number, job in enumerate(jobs):
        if not job.needs:
            enqueue(number, job)
    now, free = 0.0, places
    while True:
        while fitting := [heap for size, heap in ready.items() if heap and size <= free]:
            _, number, job = heapq.heappop(min(fitting))
            spans[job.name] = now, now + job.hours
            free -= job.places
            heapq.heappush(events, (now + job.hours, number, "free", job))
        if not events:
            break
        now, number, kind, job = heapq.heappop(events)
        if kind == "free":
            free += job.places
            heapq.heappush(events, (now + notice, number, "noticed", job))
            continue
        for number, dependent in dependents[job.name]:
            left[dependent.name] -= 1
            if not left[dependent.name]:
                enqueue(number, dependent)
    assert len(spans) == len(jobs), "a job needs one that does not end"
    return Schedule(spans, sum(job.hours * job.places for job in jobs))


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with the hours of the longest chain that each begins as its priority. Every job
    comes after those that it needs."""
    after: dict[str, float] = defaultdict(float)  # hours of the longest chain that needs a job
    ranked = []
    for job in reversed(jobs):
        priority = job.hours + after[job.name]
        for need in job.needs:
            after[need] = max(after[need], priority)
        ranked.append(dataclasses.replace(job, priority=priority))
    return ranked[::-1]
