"""Trackio, whose runs have the functions of Weights & Biases's."""

from __future__ import annotations

import importlib

from engine.training.trackers import wandb
from engine.training.trackers.base import Subject


class Tracker(wandb.Tracker):
    """Logs to the project `rib` on this machine, or where Trackio's variables say
    (TRACKIO_DIR, TRACKIO_SPACE_ID)."""

    def __init__(self, subject: Subject) -> None:
        trackio = importlib.import_module("trackio")  # pyright would take `import` for this file
        self._run = trackio.init(
            project="rib",
            group=subject.group,
            name=subject.name,
            config=dict(subject.config),
            resume="allow",
            embed=False,
        )

    def fail(self) -> None:
        self.close()  # Trackio has no failed runs
