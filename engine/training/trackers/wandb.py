"""Weights & Biases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from engine.training.trackers.base import Subject
from loaders.files.root import Root


class Tracker:
    """Logs to the project `rib`. Set WANDB_MODE=offline on nodes without a network."""

    def __init__(self, subject: Subject) -> None:
        wandb = importlib.import_module("wandb")  # pyright would take `import` for this file
        Root(subject.folder).make("wandb")  # wandb writes there; raises if it is a link
        self._run = wandb.init(
            project="rib",
            group=subject.group,
            name=subject.name,
            id=subject.id,
            config=dict(subject.config),
            dir=str(subject.folder),
            resume="allow",
            reinit="create_new",
        )

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()

    def fail(self) -> None:
        self._run.finish(exit_code=1)
