"""Trainings that end between two steps, and what they take when they go on."""

from collections.abc import Callable
from typing import Any

import pytest

from engine.cells.build import Builder
from engine.methods.base import Trained
from engine.store.cells import Cell
from engine.training import loop
from engine.training.saving import Saving, TrainingProgress
from helpers.grids import Grid

EVERY_STEP = "train.checkpoint_minutes=1e-9"


class Stopped(Exception):
    """Ends a training or an evaluation as a signal would."""


def at_step(patch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Do `act` before optimizer step `number`, counted from 0."""
    rate = loop.optim.learning_rate

    def acting(step: int, *words: Any) -> float:
        if step == number:
            act()
        return rate(step, *words)

    patch.setattr(loop.optim, "learning_rate", acting)


def stop() -> None:
    raise Stopped


def unhurried(patch: pytest.MonkeyPatch) -> None:
    """Wait for each checkpoint, so that none is left out because the disk is slow."""
    submit = Saving.submit

    def waiting(self: Any, work: Any) -> Any:
        future = submit(self, work)
        future.result()
        return future

    patch.setattr(Saving, "submit", waiting)


def interrupted(builder: Builder, step: int) -> None:
    """Train a cell of EVERY_STEP until before step `step`."""
    with pytest.MonkeyPatch.context() as patch:
        unhurried(patch)
        at_step(patch, step, stop)
        with pytest.raises(Stopped):
            builder.build()


def steps_taken(patch: pytest.MonkeyPatch) -> list[int]:
    """The optimizer steps that trainings take from now on, counted from 1."""
    steps, take = [], Saving.take

    def noted(self: Saving, progress: TrainingProgress, method: Trained) -> None:
        steps.append(progress.step)
        take(self, progress, method)

    patch.setattr(Saving, "take", noted)
    return steps


def resumed(grid: Grid, *words: str) -> tuple[Cell, list[int]]:
    """The cell, and the steps that it took now."""
    with pytest.MonkeyPatch.context() as patch:
        steps = steps_taken(patch)
        _, cell = grid.build(*words)
    return cell, steps
