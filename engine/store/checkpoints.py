"""Checkpoints of a training on disk: the two latest, until the cell is finished.

Each is an artefact in `pending/<name of the cell>`, so it is there whole or not at all, and its
checksums show damage. The cell's name stands for all that determines its training.
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

from engine.store import tensors
from engine.store.artifacts import MARKER, Artifact, Store

log = logging.getLogger(__name__)
STATE, FACTS = "state.safetensors", "progress.json"
STEP = re.compile("step([0-9]{9})-")  # begins the name of a checkpoint
KEPT = 2


class CheckpointFiles:
    """The checkpoints of a cell, by the optimizer step after which they were taken."""

    def __init__(self, store: Store, cell: str) -> None:
        self._store, self._cell = Store(store.files.below("pending")), cell
        self.folder = self._store.root / cell

    def write(self, step: int, state: Mapping[str, torch.Tensor], facts: str) -> None:
        """Store a checkpoint, with facts as JSON, and remove all but the latest two up to it.

        Later ones are of a training that went further before it had to begin again.
        Raises OSError naming the file where the disk is full.
        """

        def build(folder: Path) -> None:
            tensors.save(state, folder / STATE)
            (folder / FACTS).write_text(facts, "utf-8")

        self._store.make(*self._key(step), build)
        steps = self.steps()
        latest = [each for each in steps if each <= step][:KEPT]
        for other in set(steps) - set(latest):
            self._drop(other)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, the latest first."""
        files = self._store.files.below(self._cell)
        names = [name for name in files.folders() if files.has(f"{name}/{MARKER}")]
        return sorted((int(m[1]) for m in map(STEP.match, names) if m), reverse=True)

    def newest(self, before: float = math.inf) -> int:
        """The last step before `before` with a whole checkpoint; 0 without one.

        A damaged checkpoint is removed, with a warning.
        """
        for step in self.steps():
            if step >= before:
                continue
            try:
                self.read(step)
            except ValueError:
                log.warning(
                    f"the checkpoint {self._store.place(*self._key(step))} is damaged and removed: "
                    "training resumes from the previous one, or starts again"
                )
                self._drop(step)
            else:
                return step
        return 0

    def read(self, step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors, on the CPU, and facts of a checkpoint.

        Raises FileNotFoundError where there is none of this step, ValueError where it is damaged.
        """
        artifact = self._store.find(*self._key(step))
        if artifact is None:
            raise FileNotFoundError(f"{self._store.place(*self._key(step))} is missing")
        facts = json.loads(artifact.checked(FACTS).read_text("utf-8"))
        return load_file(artifact.checked(STATE)), facts

    def remove(self) -> None:
        """Remove all of them."""
        self._store.files.remove(self._cell)

    def _drop(self, step: int) -> None:
        self._store.remove(Artifact(self._store.place(*self._key(step))))

    def _key(self, step: int) -> tuple[str, str, dict[str, Any]]:
        return self._cell, f"step{step:09d}", {"cell": self._cell, "step": step}
