"""Checkpoints: an interrupted training ends in the bits of one that was left alone."""

import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.errors import DivergedError, PreemptedError
from engine.machine import preemption
from engine.recipe.methods import METHODS as METHODS_BY_NAME
from engine.store import checkpoints as files_of
from engine.store import made_by
from engine.store.artifacts import Store
from engine.store.cells import Cell
from engine.store.checkpoints import CheckpointFiles
from engine.training import loop, saving
from engine.training.saving import TrainingState
from helpers.damage import flip
from helpers.grids import CONV, Grid, same, weights
from helpers.interruptions import EVERY_STEP, at_step, interrupted, resumed, unhurried

METHODS = [
    ("method=fine_tune", "optimizer.name=adamw", "optimizer.lr=1e-3", "train.accumulation=3"),
    ("method=ewc", "method.fisher_images=5"),
]
SLOW = [
    ("method=visual_prompt", "optimizer.momentum=0"),
    ("method=spd", "optimizer.name=adamw", "optimizer.lr=1e-3"),
    ("method=replay", "method.images=2"),
    ("method=digrap", "optimizer.name=adamw", "optimizer.lr=1e-3"),
    ("method=strong_fine_tune", "method.layer_decay=0.5", "method.mixup=0.3"),
    (
        "method=fine_tune",
        f"model.arch={CONV}",
        "train.freeze_batchnorm=false",
        "train.batch_size=5",
        "model.channels_last=true",
    ),
]
BASES = ((), (f"model.arch={CONV}",), (f"model.arch={CONV}", "model.channels_last=true"))


@pytest.fixture
def empty(grid: Grid, tmp_path: Path) -> Grid:
    """The benchmark with base models and no other cell."""
    return grid.elsewhere(tmp_path / "runs", *(grid.builder(*words) for words in BASES))


TRAINED = [
    name for name in METHODS_BY_NAME.names() if METHODS_BY_NAME.planned({"module": name}).trains
]
OF_CLIP = ("carot", "flyp", "lipsum_ft", "tracer")


@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[] if name == "flyp" else pytest.mark.slow) for name in TRAINED],
)
def test_every_method_that_trains_resumes_from_a_checkpoint(grid, tmp_path, request, method):
    """To the bits of a training that was left alone."""
    words = [f"method={method}", EVERY_STEP, "train.epochs=1"]
    if method in OF_CLIP:
        words = [*request.getfixturevalue("clip_words"), *words]
    if method == "linear_probe":
        words.append("method.variant=released")  # the other has no steps
    _, plain = grid.build(*words, f"runs={tmp_path / 'alone'}")
    words.append(f"runs={tmp_path / 'runs'}")
    interrupted(grid.builder(*words), 2)
    cell, steps = resumed(grid, *words)
    assert steps == [3]
    check_same(cell, plain)


def stored(grid: Grid) -> list[Path]:
    return sorted((grid.runs / "store" / "pending").glob("*/step*"))


def check_same(cell: Cell, plain: Cell) -> None:
    assert cell.name == plain.name
    assert same(weights(cell), weights(plain))
    prompts = [each.prompt() for each in (cell, plain)]
    assert all(p is None for p in prompts) or torch.equal(*map(torch.as_tensor, prompts))
    assert cell.artifact.file("history.json").read_text() == (
        plain.artifact.file("history.json").read_text()
    )


@pytest.mark.parametrize(
    "words",
    [*METHODS, *(pytest.param(words, marks=pytest.mark.slow) for words in SLOW)],
    ids=lambda words: "-".join(words)[7:50],
)
def test_a_resumed_training_is_bit_equal_to_one_that_was_left_alone(grid, empty, words):
    """It is interrupted twice: in the first epoch of two, and in the second or at its end."""
    _, plain = grid.build(*words, "train.checkpoint_minutes=0")
    for step in (2, 4):
        interrupted(empty.builder(EVERY_STEP, *words), step)
        numbers = [path.name[:13] for path in stored(empty)]
        assert numbers == [f"step{last:09d}" for last in (step - 1, step)]
    cell, steps = resumed(empty, *words)
    assert steps == list(range(5, plain.steps + 1))
    check_same(cell, plain)
    assert not stored(empty), "a finished cell needs none"


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(grid, empty, caplog, damaged):
    """And where none is whole, training begins again."""
    _, plain = grid.build()
    interrupted(empty.builder(EVERY_STEP), 4)
    older, newest = stored(empty)
    flip(newest / files_of.STATE, -1000)
    if damaged == 2:
        (older / files_of.FACTS).write_text("{}")
    cell, steps = resumed(empty)
    assert steps == list(range(1 if damaged == 2 else 4, 7))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"damaged checkpoint {newest}:" in warnings[0] and len(warnings) == damaged
    check_same(cell, plain)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_stops_training_after_the_step_with_a_checkpoint(grid, empty, monkeypatch, number):
    """No checkpoint is due: the signal alone causes it."""
    _, plain = grid.build()
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), number))
        with pytest.raises(PreemptedError, match=r"after step 4; the same command .*pending"):
            empty.build()
    assert signal.getsignal(number) is before
    cell, steps = resumed(empty)
    assert steps == [5, 6]
    check_same(cell, plain)


def test_a_signal_after_the_last_step_leaves_a_checkpoint_too(grid, empty, monkeypatch):
    _, plain = grid.build()
    with monkeypatch.context() as patch:
        epochs = loop.epochs

        def signalled(*words: Any) -> Any:
            history = epochs(*words)
            os.kill(os.getpid(), signal.SIGTERM)
            return history

        patch.setattr(loop, "epochs", signalled)
        with pytest.raises(PreemptedError, match=r"after step 6; the same command .*pending"):
            empty.build()
    cell, steps = resumed(empty)
    assert steps == []
    check_same(cell, plain)


def test_a_checkpoint_is_due_by_the_clock(empty, monkeypatch):
    clock = iter(range(0, 10_000, 25))  # seconds; looked at once a step, and once at a checkpoint
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    unhurried(monkeypatch)
    written, write = [], CheckpointFiles.write

    def noted(self: CheckpointFiles, step: int, *rest: Any) -> None:
        written.append(step)
        write(self, step, *rest)

    monkeypatch.setattr(CheckpointFiles, "write", noted)
    empty.build("train.checkpoint_minutes=1", "train.epochs=3")
    assert written == [3, 6, 9]


def test_without_checkpoints_none_is_written_and_signals_are_left_alone(empty, monkeypatch):
    monkeypatch.setattr(TrainingState, "copy", None)
    monkeypatch.setattr(preemption, "noticed", None)
    empty.build("train.checkpoint_minutes=0")
    assert not stored(empty)


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(grid, empty, monkeypatch, caplog):
    _, plain = grid.build()

    def full(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(CheckpointFiles, "write", full)
    _, cell = empty.build(EVERY_STEP)
    assert "training continues without the checkpoint of step 1: no room" in caplog.text
    check_same(cell, plain)


def test_a_rate_that_is_far_too_high_stops_and_leaves_the_last_good_weights(empty, caplog):
    with pytest.raises(DivergedError, match=r"FT on outline: .* not finite by step 3 \(lr \d"):
        empty.build(EVERY_STEP, "optimizer.lr=1e20")
    states = [load_file(folder / "state.safetensors") for folder in stored(empty)]
    assert states and all(t.isfinite().all() for state in states for t in state.values())
    assert "the last good weights are in the checkpoint of step" in caplog.text
    assert not list((empty.runs / "store" / "cells").glob("fine_tune-*"))


def test_a_last_step_that_spoils_the_weights_leaves_no_cell(empty):
    """The only loss is that of the first step, and it is finite."""
    words = ("train.epochs=1", "train.batch_size=25", "train.warmup_steps=0")
    with pytest.raises(DivergedError, match="a weight is not finite by step 1 "):
        empty.build("optimizer.lr=1e39", *words)
    assert not list((empty.runs / "store" / "cells").glob("fine_tune-*"))


def test_a_signal_while_a_training_diverges_ends_the_job(empty, monkeypatch):
    """A campaign goes on after a diverged trial, so DivergedError would hide the signal."""

    def spoil(*_: Any) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(loop, "is_finite", spoil)
    with pytest.raises(PreemptedError, match="a signal ended training, which had diverged"):
        empty.build("train.epochs=1")


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with preemption.noticed() as noticed:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert not noticed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert noticed()
    signal.signal(signal.SIGUSR1, before)


def test_a_second_interrupt_ends_at_once():
    with preemption.noticed() as came:
        os.kill(os.getpid(), signal.SIGINT)
        assert came()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_folder_in_place_of_a_marker_is_no_checkpoint(tmp_path):
    files = CheckpointFiles(Store(tmp_path), "cell")
    for step in (1, 2):
        files.write(step, {"a": torch.zeros(1)}, "{}")
    (marker,) = files.folder.glob("step000000002*/done.json")
    marker.unlink()
    marker.mkdir()
    assert files.newest() == 1
    files.write(2, {"a": torch.ones(1)}, "{}")
    assert files.steps() == [2, 1] and files.newest() == 2
    assert files.newest(before=2) == 1 and files.newest(before=1) == 0


def test_checkpoints_of_other_code_are_passed_over_with_a_warning(tmp_path, monkeypatch, caplog):
    files = CheckpointFiles(Store(tmp_path), "cell")
    files.write(1, {"a": torch.zeros(1)}, "{}")
    monkeypatch.setattr(made_by, "installed", lambda: {"torch": "1.0"})
    assert files.newest() == 0
    assert f"{files.folder} is of other code or versions: training starts again" in caplog.text
    caplog.clear()
    files.write(2, {"a": torch.ones(1)}, "{}")
    assert files.newest() == 2 and files.newest(before=2) == 0 and not caplog.text


def test_a_training_that_begins_again_keeps_its_checkpoints(tmp_path):
    """Snapshots that are asked for later lie before the checkpoints that are there."""
    files = CheckpointFiles(Store(tmp_path), "cell")
    for step in (90, 100, 10, 20, 30):
        files.write(step, {"a": torch.zeros(1)}, "{}")
        assert step in files.steps()
    assert files.steps() == [30, 20]
