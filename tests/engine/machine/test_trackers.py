"""Trackers: what they are given, and that none of them can end a training."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from grids import Grid, grid

from engine.machine.trackers import KINDS, Subject, Trackers
from engine.recipe.checks import TRACKERS
from engine.training import throughput

__all__ = ["grid"]


class Recorder:
    """A run of a tracker that keeps what it is given, and may fail."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.logged, self.closed = fails, [], 0

    def log(self, values: dict[str, float], step: int) -> None:
        if self.fails:
            raise OSError("the server is away")
        self.logged.append((values, step))

    def finish(self) -> None:
        self.closed += 1


def subject(folder: Path) -> Subject:
    return Subject("emoji", "FT on twemoji", {"seed": 3, "optimizer.lr": 0.1}, folder)


def test_every_tracker_of_recipes_exists() -> None:
    assert set(TRACKERS) == set(KINDS)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_gets_group_recipe_and_numbers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, given = Recorder(), {}
    module: Any = ModuleType(name)
    module.init = lambda **words: given.update(words) or run
    monkeypatch.setitem(sys.modules, name, module)
    with Trackers([name], lambda: subject(tmp_path)) as tracked:
        tracked.log({"train/loss": 0.5}, 7)
    assert (given["group"], given["name"]) == ("emoji", "FT on twemoji")
    assert given["config"] == {"seed": 3, "optimizer.lr": 0.1}
    assert run.logged == [({"train/loss": 0.5}, 7)] and run.closed == 1


def test_a_tracker_that_fails_is_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fails, works = Recorder(fails=True), Recorder()
    for name, run in (("wandb", fails), ("trackio", works)):
        module: Any = ModuleType(name)
        module.init = lambda run=run, **_: run
        monkeypatch.setitem(sys.modules, name, module)
    caplog.set_level(logging.WARNING)
    with Trackers(["wandb", "trackio"], lambda: subject(tmp_path)) as tracked:
        tracked.log({"train/loss": 0.5}, 1)
        tracked.log({"train/loss": 0.4}, 2)
    assert [step for _, step in works.logged] == [1, 2]
    assert caplog.text.count("trackers=wandb goes on without it: the server is away") == 1


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with Trackers(["mlflow"], lambda: subject(tmp_path)) as tracked:
        assert not tracked
    assert (
        "trackers=mlflow goes on without it" in caplog.text and "pip install mlflow" in caplog.text
    )


def test_an_unknown_tracker_is_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match=r"trackers: 'wand' is not known.*wandb"):
        grid.builder("trackers=[wand]")


@pytest.mark.slow
def test_training_is_tracked_and_its_cell_is_the_same(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Recorder()
    module: Any = ModuleType("wandb")
    module.init = lambda **_: run
    monkeypatch.setitem(sys.modules, "wandb", module)
    words = "method=ewc", "optimizer.lr=0.011"
    assert grid.builder(*words).key() == grid.builder(*words, "trackers=[wandb]").key()
    grid.build(*words, "trackers=[wandb]")
    names = {name for values, _ in run.logged for name in values}
    assert names == {"train/loss", "train/lr", "train/images/s", "train/penalty"}
    assert run.closed == 1


@pytest.fixture
def mfu(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Trains with words on a chip of known peak; the shares of it that its tracker gets."""

    def tracked(*words: str) -> list[float]:
        run = Recorder()
        module: Any = ModuleType("wandb")
        module.init = lambda **_: run
        monkeypatch.setitem(sys.modules, "wandb", module)
        monkeypatch.setattr(throughput, "peak_tflops", lambda name, kind: 1.0)
        grid.build("trackers=[wandb]", "train.epochs=1", *words)
        return [values["train/mfu"] for values, _ in run.logged if "train/mfu" in values]

    return tracked


def test_a_compiled_training_on_a_chip_of_known_peak_is_tracked(
    mfu: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    assert all(0 < share < 1 for share in mfu("train.compile=always", "seed=21"))


def test_a_network_whose_operations_cannot_be_counted_is_trained(
    mfu: Callable[..., list[float]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(run: Callable[[], object]) -> float:
        raise NotImplementedError("no meta kernel")

    monkeypatch.setattr(throughput, "flops", refuse)
    assert mfu("seed=22") == []
    assert "trackers get no mfu: the operations cannot be counted (no meta kernel)" in caplog.text
