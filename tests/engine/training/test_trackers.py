"""Trackers: what they are given, and that none of them can end a training."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grids import Grid, grid

from engine import recipe
from engine.commands import outcome
from engine.evaluation import accuracies
from engine.recipe.checks import TRACKERS
from engine.recipe.schema import Recipe
from engine.training import trackers
from engine.training.trackers import KINDS, Trackers, subject

__all__ = ["grid"]
KIND_OF_VALUES = ("accuracy", "accuracy before")


class Recorder:
    """A package of a tracker and its run, which keeps what it is given and may fail."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.logged, self.closed = fails, [], 0
        self.inits: list[dict[str, Any]] = []

    def init(self, **words: Any) -> Recorder:
        self.inits.append(words)
        return self

    def log(self, values: dict[str, float], step: int | None) -> None:
        if self.fails:
            raise OSError("the server is away")
        self.logged.append((values, step))

    def finish(self) -> None:
        self.closed += 1


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorder]:
    """Installs a package of this name."""

    def install(name: str, fails: bool = False) -> Recorder:
        monkeypatch.setitem(sys.modules, name, recorder := Recorder(fails))  # type: ignore[arg-type]
        return recorder

    return install


def of_emoji(*words: str) -> Recipe:
    return recipe.load("emoji/ewc", ["downstream=twemoji", *words])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_gets_group_recipe_and_numbers(
    name: str, package: Callable[..., Recorder], tmp_path: Path
) -> None:
    run = package(name)
    cell = of_emoji(f"trackers=[{name}]", "seed=3", "method.lam=0.25", f"runs={tmp_path}")
    assert set(TRACKERS) == set(KINDS)
    with Trackers(cell) as trackers:
        trackers.log({"train/loss": 0.5}, 7)
    (given,) = run.inits
    assert given["group"] == "emoji" and given["config"]["optimizer.lr"] == cell.optimizer.lr
    assert given["name"].startswith("EWC on twemoji lam=0.25 ") and " seed=3 " in given["name"]
    assert run.logged == [({"train/loss": 0.5}, 7)] and run.closed == 1


def test_a_run_is_that_of_its_cell(tmp_path: Path) -> None:
    same = subject(of_emoji(f"runs={tmp_path}"))
    assert subject(of_emoji(f"runs={tmp_path}", "trackers=[wandb]")).id == same.id
    others = [
        subject(of_emoji(f"runs={tmp_path / place}", *words))
        for place, *words in (("", "seed=9"), ("", "train.epochs=1"), ("elsewhere",))
    ]
    assert len({other.id for other in [same, *others]}) == 4
    assert len({other.name for other in [same, *others]}) == 4


def test_a_tracker_that_fails_is_left_out_with_a_warning(
    package: Callable[..., Recorder],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package("wandb", fails=True)
    works = package("trackio")
    caplog.set_level(logging.WARNING)
    with Trackers(of_emoji("trackers=[wandb,trackio]", f"runs={tmp_path}")) as trackers:
        trackers.log({"train/loss": 0.5}, 1)
        trackers.log({"train/loss": 0.4}, 2)
    assert [step for _, step in works.logged] == [1, 2]
    assert caplog.text.count("trackers=wandb goes on without it: the server is away") == 1
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Trackers(of_emoji("trackers=[wandb]", f"runs={tmp_path}")) as trackers:
        assert not trackers
    assert "pip install wandb" in caplog.text


def test_a_users_tracker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any class of these three methods, by module and name."""
    (tmp_path / "my_tracker.py").write_text(
        "logged = []\nclass Printed:\n"
        "    def __init__(self, subject): self.name = subject.name\n"
        "    def log(self, values, step): logged.append((self.name, values, step))\n"
        "    def close(self): logged.append('closed')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cell = of_emoji("trackers=[my_tracker:Printed]", f"runs={tmp_path}")
    with Trackers(cell) as trackers:
        trackers.log({"train/loss": 0.5}, 1)
    logged = sys.modules.pop("my_tracker").logged
    assert logged == [(subject(cell).name, {"train/loss": 0.5}, 1), "closed"]


@pytest.mark.parametrize("name", ["wand", "mlflow"])
def test_an_unknown_tracker_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"trackers: '{name}' is not known.*wandb"):
        of_emoji(f"trackers=[{name}]")


@pytest.mark.slow
def test_a_cell_has_one_run_and_is_the_same(
    grid: Grid, package: Callable[..., Recorder], capsys: pytest.CaptureFixture
) -> None:
    """Its training and its evaluation log to it, whose last values are accuracies and RI."""
    run = package("wandb")
    words = "method=ewc", "optimizer.lr=0.011"
    assert grid.builder(*words).key() == grid.builder(*words, "trackers=[wandb]").key()
    builder, cell = grid.build(*words, "trackers=[wandb]")
    names = {name for values, _ in run.logged for name in values}
    assert names == {"train/loss", "train/lr", "train/images/s", "train/penalty"}
    assert run.closed == 1
    outcome.show(builder.run, cell)
    values, step = run.logged[-1]
    sets = ("upstream", "outline", "tinted", "few")
    assert values.keys() == {f"{kind}/{name}" for kind in KIND_OF_VALUES for name in sets} | {"RI"}
    assert f"RI {values['RI']:+.2f}" in capsys.readouterr().out and step is None
    training, evaluation = run.inits
    assert training == evaluation and training["config"]["optimizer.lr"] == 0.011
    rows = accuracies.compared(builder.run, cell.entries[0].mix)
    trackers.log_accuracies(builder.recipe, rows)  # as a campaign's column does
    assert run.logged[-1][0] == values
