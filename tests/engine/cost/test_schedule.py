"""When a graph of jobs ends: small cases by hand, and bounds that hold for every schedule."""

from __future__ import annotations

import numpy as np
import pytest

from engine.cost import schedule


def test_one_gpu_does_one_job_after_another_and_many_wait_for_the_longest_chain() -> None:
    hours = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    after = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
    assert schedule.levels(hours, after) == {"a": 8.0, "b": 6.0, "c": 7.0, "d": 4.0}
    assert schedule.makespan(hours, after, 1) == 10
    assert schedule.makespan(hours, after, 2) == 1 + 3 + 4


def test_the_order_in_which_jobs_are_listed_does_not_matter() -> None:
    hours = {"late": 2.0, "early": 1.0}
    after = {"late": ["early"], "early": []}
    assert schedule.levels(hours, after) == {"late": 2.0, "early": 3.0}
    assert schedule.makespan(hours, after, 5) == 3


def test_the_longest_way_to_the_end_goes_first() -> None:
    """Two GPUs: the chain of small jobs must start at once, although each of its jobs is small."""
    hours = {"big": 3.0, "other": 2.0, **{f"s{k}": 1.0 for k in range(4)}}
    after = {"big": [], "other": [], "s0": [], **{f"s{k}": [f"s{k - 1}"] for k in range(1, 4)}}
    assert schedule.makespan(hours, after, 2) == 5


def test_nothing_takes_no_time() -> None:
    assert schedule.makespan({}, {}, 3) == 0
    assert schedule.makespan({"a": 0.0, "b": 0.0}, {"a": [], "b": ["a"]}, 1) == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_schedule_is_shorter_and_greedy_ones_are_at_most_twice_as_long(seed: int) -> None:
    """The lower bounds are work / m and the longest chain; the upper bound is Graham's (1966)."""
    rng = np.random.default_rng(seed)
    names = [f"j{k}" for k in range(25)]
    hours = {name: float(h) for name, h in zip(names, rng.uniform(0, 5, 25), strict=True)}
    after = {name: [b for b in names[:k] if rng.random() < 0.1] for k, name in enumerate(names)}
    chain = max(schedule.levels(hours, after).values())
    for gpus in (1, 3, 50):
        least = max(sum(hours.values()) / gpus, chain)
        makespan = schedule.makespan(hours, after, gpus)
        assert (
            least - 1e-9 <= makespan <= sum(hours.values()) / gpus + chain * (1 - 1 / gpus) + 1e-9
        )
    assert makespan == pytest.approx(chain), "of 50 GPUs one is always free"
