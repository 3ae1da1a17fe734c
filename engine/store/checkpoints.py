"""Checkpoints of a training on disk: the latest two, until the cell is finished.

Each is an artefact in `pending/<name of the cell>`, so it is complete or absent, and its checksums
reveal damage. Its name covers what made it, so that no training of other code is resumed.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from engine.store import made_by, tensors
from engine.store.artifacts import MARKER, PENDING, Artifact, Store

log = logging.getLogger(__name__)
STATE, FACTS = "state.safetensors", "progress.json"
STEP = re.compile("step([0-9]{9})-")  # prefix of a checkpoint's name
KEPT = 2


class CheckpointFiles:
    """The checkpoints of a cell, by number of completed optimizer steps."""

    def __init__(self, store: Store, cell: str) -> None:
        self._store, self._cell = Store(store.files.below(PENDING)), cell
        self.folder = self._store.root / cell

    def write(self, step: int, state: Mapping[str, torch.Tensor], facts: str) -> None:
        """Stores a checkpoint with facts as JSON, and keeps only it and the one before.

        Later checkpoints come from an earlier run that went further before training had to restart.
        Raises OSError naming the file if the disk is full.
        """

        def build(folder: Path) -> None:
            tensors.save(state, folder / STATE)
            (folder / FACTS).write_text(facts, "utf-8")

        self._store.make(*self._key(step), build)
        steps = self.steps()
        latest = [saved for saved in steps if saved <= step][:KEPT]
        for other in set(steps) - set(latest):
            self._drop(other)

    def steps(self) -> list[int]:
        """Returns the steps of the finished checkpoints, latest first."""
        files = self._store.files.below(self._cell)
        names = [name for name in files.folders() if files.has(f"{name}/{MARKER}")]
        steps = [int(m[1]) for m in map(STEP.match, names) if m]
        of_cell = (step for step in steps if self._store.place(*self._key(step)).name in names)
        return sorted(of_cell, reverse=True)

    def newest(self, before: float = math.inf) -> int:
        """Returns the last step before `before` with an undamaged checkpoint, or 0.

        Removes damaged checkpoints, and passes over those of other code, with a warning.
        """
        for step in (earlier for earlier in self.steps() if earlier < before):
            try:
                self.read(step)
            except ValueError:
                log.warning(
                    f"removing the damaged checkpoint {self._store.place(*self._key(step))}: "
                    "training resumes from the previous one, or starts again"
                )
                self._drop(step)
            else:
                return step
        if not self.steps() and any(map(STEP.match, self._store.files.folders(self._cell))):
            log.warning(f"{self.folder} is of other code or versions: training starts again")
        return 0

    def read(self, step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Returns a checkpoint's tensors, on the CPU, and facts.

        Raises FileNotFoundError if there is none for this step, and ValueError if it is damaged.
        """
        artifact = self._store.find(*self._key(step))
        if artifact is None:
            raise FileNotFoundError(f"{self._store.place(*self._key(step))} is missing")
        facts = json.loads(artifact.checked(FACTS).read_text("utf-8"))
        return load_file(artifact.checked(STATE)), facts

    def remove(self) -> None:
        """Removes all checkpoints of the cell."""
        self._store.files.remove(self._cell)

    def _drop(self, step: int) -> None:
        self._store.remove(Artifact(self._store.place(*self._key(step))))

    def _key(self, step: int) -> tuple[str, str, dict[str, Any]]:
        key = {"cell": self._cell, "step": step, "made_by": {**made_by.installed()}}
        return self._cell, f"step{step:09d}", key
