"""Problems side by side: the numbers of one after another, errors by name."""

import threading
import time

import numpy as np
import pytest
import torch

from engine.otdd import problems, solve
from engine.otdd.problems import DistanceOptions, Labelled
from engine.otdd.side_by_side import side_by_side, workers
from engine.otdd.solve import matrix
from helpers import clouds
from helpers.clouds import CLASSES, D
from kernels.transport.store import most_bytes

CPU = torch.device("cpu")


def labelled(seed: int, n: int) -> Labelled:
    return Labelled(*clouds.labelled(n, seed, 0.3 * seed))


SETS = {name: labelled(seed, 40 + seed) for seed, name in enumerate("abcd")}


@pytest.fixture
def cores():
    """Two threads of torch, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("options", [{}, {"debias": False, "eps": 0.2}])
def test_a_matrix_is_the_same_bit_for_bit_as_one_after_another(options, cores, monkeypatch):
    at_once = []

    def counted(work, items, count, device):
        at_once.append(count)
        return side_by_side(work, items, count, device)

    monkeypatch.setattr(solve, "side_by_side", counted)
    beside = matrix(SETS, CLASSES, DistanceOptions(**options))
    assert set(at_once) == {2} and torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = matrix(SETS, CLASSES, DistanceOptions(**options))
    assert set(at_once) == {1, 2} and np.isfinite(alone.values).all() and alone.values[0, 1] > 0
    assert beside.plain() == alone.plain()


def test_items_run_at_the_same_time_on_their_share_of_threads(cores):
    barrier = threading.Barrier(2, timeout=30)

    def work(item: int) -> tuple[int, int]:
        barrier.wait()  # breaks unless another is there
        return item * item, torch.get_num_threads()

    squares = side_by_side(work, [1, 2, 3, 4], 2, CPU)
    assert squares == {k: (k * k, 1) for k in (1, 2, 3, 4)}


def test_after_an_error_what_runs_is_finished_and_nothing_is_begun(cores):
    begun, ended, failing = [], [], threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            failing.set()
            raise ValueError("zero")
        failing.wait(30)
        time.sleep(0.02)
        ended.append(item)

    with pytest.raises(ValueError, match="zero"):
        side_by_side(work, list(range(50)), 2, CPU)
    assert ended and sorted([0, *ended]) == sorted(begun) and len(begun) < 50
    assert torch.get_num_threads() == 2


def test_as_many_at_once_as_cores_problems_and_memory_allow(cores):
    assert workers(36, 100, 1000, CPU) == 2
    assert workers(1, 100, 1000, CPU) == 1
    assert workers(36, 2000, 1000, CPU) == 1  # it may run, and read its costs again


def test_memory_is_estimated_for_the_largest_problem():
    sets = {"small": labelled(0, 20), "large": labelled(1, 300), "mid": labelled(2, 100)}
    clouds = {
        name: problems.Cloud.of(name, points, CLASSES, DistanceOptions())
        for name, points in sets.items()
    }
    within, across = most_bytes(300, 300, D, CPU), most_bytes(100, 300, D, CPU)
    for options, most in ((DistanceOptions(), within), (DistanceOptions(debias=False), across)):
        assert problems.Problems(clouds, options).bytes_each() == most
    assert across < within


def test_a_problem_has_its_share_of_the_memory_and_names_its_pair(cores, monkeypatch):
    real, asked = problems.transport, []

    def transport(cost, **options):
        asked.append(options["memory"])
        if cost.shape == (40, 42):
            raise ValueError("out of luck")
        return real(cost, **options)

    monkeypatch.setattr(problems, "transport", transport)
    monkeypatch.setattr(solve, "free_memory", lambda device: 10**9)
    with pytest.raises(ValueError, match=r"^a to c: out of luck$"):
        matrix(SETS, CLASSES, DistanceOptions())
    assert set(asked) == {400_000_000}
