"""Problems side by side: the numbers of one after another, errors by name."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from engine.otdd import problems, solve
from engine.otdd.problems import Labelled, Options
from engine.otdd.side_by_side import side_by_side, workers
from engine.otdd.solve import matrix
from kernels.transport.store import beside_the_copy, most_bytes

CPU = torch.device("cpu")
CLASSES = 3


def labelled(seed: int, n: int = 40, d: int = 5) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    return Labelled(torch.randn(n, d, generator=generator) + labels[:, None] + 0.3 * seed, labels)


SETS = {name: labelled(seed, 40 + seed) for seed, name in enumerate("abcd")}


@pytest.fixture
def cores():
    """Two threads of torch, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "options", [{}, {"debias": False, "relative": False, "eps": 2.0}, {"bracket": 1e-2}]
)
def test_a_matrix_is_the_same_bit_for_bit_as_one_after_another(options, cores, monkeypatch):
    at_once = []
    real = solve.side_by_side

    def counted(work, items, count, device, **words):
        at_once.append(count)
        return real(work, items, count, device, **words)

    monkeypatch.setattr(solve, "side_by_side", counted)
    beside = matrix(SETS, CLASSES, Options(**options))
    assert set(at_once) == {2} and torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = matrix(SETS, CLASSES, Options(**options))
    assert set(at_once) == {1, 2} and np.isfinite(alone.values).all() and alone.values[0, 1] > 0
    for parallel, serial in zip(
        (beside.values, beside.gaps, beside.marginal_errors),
        (alone.values, alone.gaps, alone.marginal_errors),
        strict=True,
    ):
        np.testing.assert_array_equal(parallel, serial)
    assert beside.eps == alone.eps


def test_items_run_at_the_same_time_on_their_share_of_threads(cores):
    barrier = threading.Barrier(2, timeout=30)

    def work(item: int) -> tuple[int, int]:
        barrier.wait()  # breaks unless another is there
        return item * item, torch.get_num_threads()

    squares = side_by_side(work, [1, 2, 3, 4], 2, CPU, label="squares", unit="item")
    assert squares == {k: (k * k, 1) for k in (1, 2, 3, 4)}


def test_after_an_error_what_runs_is_finished_and_nothing_is_begun(cores):
    begun, ended, failing = [], [], threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            failing.set()
            raise ValueError("zero")
        failing.wait(30)
        ended.append(item)
        return item

    with pytest.raises(ValueError, match="zero"):
        side_by_side(work, list(range(50)), 2, CPU, label="x", unit="item")
    assert ended and sorted([0, *ended]) == sorted(begun) and len(begun) < 50
    assert torch.get_num_threads() == 2


def test_as_many_at_once_as_cores_problems_and_memory_allow(cores, caplog):
    assert workers(36, 100, 1000, CPU) == 2
    assert workers(1, 100, 1000, CPU) == 1
    assert not caplog.records
    with caplog.at_level("INFO"):
        assert workers(36, 600, 1000, CPU) == 1
        assert workers(36, 2000, 1000, CPU) == 1  # it may run, and read its costs again
    assert "1 at once, not 2" in caplog.text


def test_memory_is_estimated_for_the_largest_problem(monkeypatch):
    sets = {"small": labelled(0, 20), "large": labelled(1, 300), "mid": labelled(2, 100)}
    clouds = {
        name: problems.Cloud.of(name, points, CLASSES, Options(label_distance="none"))
        for name, points in sets.items()
    }
    within, across = most_bytes(300, 300, 5, CPU), most_bytes(100, 300, 5, CPU)
    assert problems.Problems(clouds, Options()).bytes_each() == within
    assert problems.Problems(clouds, Options(debias=False)).bytes_each() == across < within
    assert problems.Problems(clouds, Options(bracket=0.1)).bytes_each() == across
    monkeypatch.setattr(problems, "_EXACT_BYTES", 10**6)
    exact = problems.Problems(clouds, Options(exact=True)).bytes_each()
    assert exact == 10**6 * 300 * 100
    assert within >= beside_the_copy(300, 300, CPU) + 4 * 300 * 300


def refusing(monkeypatch, refused: tuple[int, int], error: type[Exception]) -> list[tuple]:
    """Problems of a shape have no solution; the shapes and the memory that are asked for."""
    real, asked = problems.transport, []

    def transport(cost, **options):
        asked.append((tuple(cost.shape), options["memory"]))
        if cost.shape == refused:
            raise error("out of luck")
        return real(cost, **options)

    monkeypatch.setattr(problems, "transport", transport)
    return asked


def test_a_problem_may_take_its_share_of_the_memory(cores, monkeypatch):
    asked = refusing(monkeypatch, (0, 0), ValueError)
    monkeypatch.setattr(solve, "free_memory", lambda device: 10**9)
    matrix(SETS, CLASSES, Options())
    assert [memory for _, memory in asked] == 10 * [400_000_000]


@pytest.mark.parametrize(
    ("kind", "message"),
    [(ValueError, r"^a to c: out of luck$"), (RuntimeError, r"^out of luck\nthis was a to c$")],
)
def test_an_error_names_its_pair(cores, monkeypatch, kind, message):
    refusing(monkeypatch, (40, 42), kind)
    with pytest.raises(kind, match=message):
        matrix(SETS, CLASSES, Options())
