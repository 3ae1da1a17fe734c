"""Trackers: what they are given, and that none of them can end a training."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.commands import outcome
from engine.errors import RecipeError
from engine.recipe.checks import TRACKERS
from engine.recipe.finder import names_in
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import Recipe
from engine.training.trackers import Trackers, subject
from helpers.grids import Grid


class Recorder:
    """W&B's package and its run, which keeps what it is given and may fail."""

    def __init__(self) -> None:
        self.fails, self.logged, self.closed = False, [], 0
        self.inits: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []

    def init(self, **words: Any) -> Recorder:
        self.inits.append(words)
        return self

    def log(self, values: dict[str, float], step: int | None) -> None:
        if self.fails:
            raise OSError("the server is away")
        self.logged.append((values, step))

    def finish(self, exit_code: int = 0) -> None:
        self.exit_codes.append(exit_code)
        self.closed += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setitem(sys.modules, "wandb", recorder := Recorder())
    return recorder


@pytest.fixture
def of_emoji(tmp_path: Path) -> Callable[..., Recipe]:
    words = ("downstream=twemoji", f"runs={tmp_path}")
    return lambda *more: load_recipe("emoji/ewc", parsed([*words, *more]))


def test_a_run_is_that_of_its_cell(of_emoji, tmp_path):
    assert [*names_in(TRACKERS)] == ["tensorboard", "trackio", "wandb"]
    same = subject(of_emoji())
    assert same.group == "emoji" and same.name.startswith("EWC on twemoji lam=")
    assert subject(of_emoji("trackers=[wandb]")).id == same.id
    words = ("seed=9", "train.epochs=1", f"runs={tmp_path / 'elsewhere'}")
    others = [same, *(subject(of_emoji(word)) for word in words)]
    assert len({other.id for other in others}) == len({other.name for other in others}) == 4


def test_trackio_gets_the_run_of_a_cell(of_emoji, monkeypatch, caplog):
    cell, recorder = of_emoji("trackers=[trackio]"), Recorder()
    monkeypatch.setitem(sys.modules, "trackio", recorder)
    with Trackers(cell) as trackers:
        trackers.log({"train/loss": 0.5}, 1)
    (given,) = recorder.inits
    of = subject(cell)
    assert (given["name"], given["group"], given["resume"]) == (of.name, of.group, "allow")
    assert given["config"]["optimizer.lr"] == cell.optimizer.lr
    assert recorder.logged == [({"train/loss": 0.5}, 1)] and recorder.closed == 1
    monkeypatch.setitem(sys.modules, "trackio", None)
    with Trackers(cell) as trackers:
        trackers.log({"train/loss": 0.5}, 1)
    assert "pip install trackio" in caplog.text


def test_a_tracker_that_fails_is_left_out_with_a_warning(
    wandb, of_emoji, tmp_path, caplog, monkeypatch
):
    """Another one, of a class of the user's, goes on."""
    (tmp_path / "my_tracker.py").write_text(
        "logged = []\nclass Printed:\n"
        "    def __init__(self, subject): self.name = subject.name\n"
        "    def log(self, values, step): logged.append((self.name, values, step))\n"
        "    def close(self): logged.append('closed')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    wandb.fails = True
    cell = of_emoji("trackers=[wandb,my_tracker:Printed]")
    with Trackers(cell) as trackers:
        trackers.log({"train/loss": 0.5}, 1)
        trackers.log({"train/loss": 0.4}, 2)
    logged = sys.modules.pop("my_tracker").logged
    name = subject(cell).name
    assert logged == [
        (name, {"train/loss": 0.5}, 1), (name, {"train/loss": 0.4}, 2), "closed"
    ]  # fmt: skip
    assert caplog.text.count("training continues without trackers=wandb: the server is away") == 1
    monkeypatch.setitem(sys.modules, "wandb", None)
    with Trackers(of_emoji("trackers=[wandb]")) as trackers:
        trackers.log({"train/loss": 0.5}, 1)
    assert "pip install wandb" in caplog.text


def test_a_file_beside_the_campaigns_is_found_from_any_folder(tmp_path, monkeypatch, caplog):
    """As a method's file is; and no package is named for a name of the user's."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_tracker.py").write_text(
        "class Kept:\n"
        "    def __init__(self, subject): self.place = subject.folder / 'kept.txt'\n"
        "    def log(self, values, step): self.place.write_text(f'{values} {step}')\n"
        "    def close(self): pass\n"
    )
    campaign = tmp_path / "mine" / "mine.yaml"
    campaign.write_text("extends: emoji\ntrackers: [my_tracker.py:Kept]\n")
    monkeypatch.chdir(tmp_path)
    kept = Path("kept.txt")
    words = parsed(["downstream=twemoji", "runs=."])
    on_the_line = parsed(["trackers=mine/my_tracker.py:Kept"])
    cells = [load_recipe(str(campaign), words), load_recipe("emoji/ewc", [*words, *on_the_line])]
    for cell in cells:
        assert cell.trackers == [f"{tmp_path}/mine/my_tracker.py:Kept"]
        with Trackers(cell) as trackers:
            trackers.log({"train/loss": 0.5}, 1)
        assert kept.read_text("utf-8") == "{'train/loss': 0.5} 1"
        kept.unlink()
    with pytest.raises(RecipeError, match=r"trackers='my_tracker.py' is not a Python file"):
        load_recipe("emoji/ewc", [*words, *parsed(["trackers=[my_tracker.py:Kept]"])])
    Trackers(load_recipe("emoji/ewc", [*words, *parsed(["trackers=[my_tracker:Kept]"])]))
    assert "as in trackers=[my_tracker.py:Kept]" in caplog.text
    assert "pip" not in caplog.text


@pytest.mark.slow
def test_a_cell_has_one_run_and_is_the_same(grid: Grid, wandb, capsys):
    """Its training and its evaluation log to it, whose last values are accuracies and RI."""
    words = "method=ewc", "optimizer.lr=0.011"
    assert grid.builder(*words).key() == grid.builder(*words, "trackers=[wandb]").key()
    builder, cell = grid.build(*words, "trackers=[wandb]")
    names = {name for values, _ in wandb.logged for name in values}
    assert names == {"train/loss", "train/lr", "train/images/s", "train/penalty"}
    assert wandb.closed == 1
    outcome.show(builder, cell)
    values, step = wandb.logged[-1]
    kinds, sets = ("accuracy", "accuracy before"), ("upstream", "outline", "tinted", "few")
    assert values.keys() == {f"{kind}/{name}" for kind in kinds for name in sets} | {"RI"}
    assert f"RI {values['RI']:+.2f}" in capsys.readouterr().out and step is None
    training, evaluation = wandb.inits
    assert training == evaluation and training["config"]["optimizer.lr"] == 0.011
    assert training["group"] == "cells" and training["name"].startswith("EWC on outline ")


def test_a_run_ends_as_failed_after_an_error(of_emoji, wandb):
    for fails in (False, True):
        with contextlib.suppress(RuntimeError), Trackers(of_emoji("trackers=[wandb]")):
            if fails:
                raise RuntimeError
    assert wandb.exit_codes == [0, 1]
