"""A campaign with files of every kind, which trials of the kind `read` change one at a time."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from engine import cli
from engine.grid import attempts, campaign, jobs, record
from engine.grid.build import Builder
from engine.grid.campaign import Plan
from engine.grid.record import FinishedCampaign
from engine.measures import predictions
from engine.report.results import Results, of_campaign
from engine.store import cells, pending
from engine.store.artifacts import MARKER, Artifact, Store
from engine.store.checkpoints import CheckpointFiles
from engine.store.pending import PART, Pending
from engine.training.saving import Progress
from faults.campaign import EWC, Campaign, jobs_in_this_process
from faults.children import fork
from faults.mutations import files_by_kind
from faults.outcome import require

CPU = torch.device("cpu")
SIZE = 8  # images of a batch, and of a slice
ROWS = EWC + "  visual_prompt: {}\n"
WORDS = (
    *("dataset.sets=[outline,few]", f"evaluate.batch_size={SIZE}", "evaluate.cka=8"),
    *("train.snapshots=2", "train.keep_snapshots=true"),
)
UNFINISHED = "ewc-unfinished"  # the cell of the checkpoints


class Specimen:
    """A finished campaign in `runs`, with unfinished work beside it, and a copy of both.

    files: by kind. A builder, the results and the grid are made here, so that no trial has to.
    """

    def __init__(self, images: Campaign) -> None:
        self.folder = images.folder / "read"
        self.runs, self.copy = self.folder / "runs", self.folder / "as it was"
        self.name, self.words = str(self.folder / "shapes.yaml"), [f"runs={self.runs}", *WORDS]
        self.folder.mkdir()
        Path(self.name).write_text(images.file.read_text().partition(EWC)[0] + ROWS)
        self._run()
        self._leave_unfinished()
        self.files = files_by_kind(self.runs)
        shutil.copytree(self.runs, self.copy)
        self._states = dict(_states(self.runs))

    def _run(self) -> None:
        def work() -> int:
            jobs_in_this_process(pytest.MonkeyPatch())
            return cli.main(["campaign", self.name, *self.words])

        ended = fork(work, self.folder / "log", {}).wait()
        require(ended.code == 0, f"the campaign of `read` failed: {ended.text[-2000:]}")

    @cached_property
    def plan(self) -> Plan:
        return campaign.plan(self.name, self.words, cores=2)

    @cached_property
    def builder(self) -> Builder:
        """Of the first column; it makes nothing."""
        return jobs.builders(self.plan, CPU, self.plan.columns[0], finds_only=True)[0]

    @cached_property
    def finished(self) -> FinishedCampaign:
        return record.find(self.name, self.words)

    @cached_property
    def results(self) -> Results:
        return of_campaign(self.finished)

    @cached_property
    def store(self) -> Store:
        return Store(self.runs / "store")

    def artifact(self, folder: Path) -> Artifact:
        """The artefact of a folder, found by the key that its marker had.

        Raises FileNotFoundError as a store that only finds, DamagedFile as `find`.
        """
        words = folder.parent.name, folder.name.rpartition("-")[0], self.key(folder)
        artifact = self.store.find(*words)
        if artifact is None:
            Store(self.store.root, finds_only=True).check_makes(*words)
        assert artifact is not None
        return artifact

    def key(self, folder: Path) -> dict[str, Any]:
        """The key that an artefact's marker had."""
        copy = self.copy if self.copy.exists() else self.runs
        return json.loads((copy / folder.relative_to(self.runs) / MARKER).read_text())["key"]

    def some(self, pattern: str) -> Artifact:
        """The first artefact of a pattern."""
        return self.artifact(min(self.store.root.glob(pattern)))

    def _leave_unfinished(self) -> None:
        state = cells.Cell(self.some("cells/ewc-*")).state()
        for step in (1, 2):
            facts = json.dumps(dataclasses.asdict(Progress(step)))
            CheckpointFiles(self.store, UNFINISHED).write(step, state, facts)
        table, slices = self.table, self.slices()
        for number, cut in list(enumerate(slices.cuts))[:-1]:  # the last would finish them
            rows = np.searchsorted(table["index"].to_numpy(), cut)
            slices.put(number, table.take(rows))
        with attempts.recorded(self.plan.place, "prepare", "prepare", 0):
            pass

    @cached_property
    def table(self) -> pa.Table:
        """The predictions that `slices` are of."""
        return predictions.read(self.some("predictions/ewc-*-on-upstream-*").checked(PART))

    def slices(self) -> Pending:
        """Predictions that come in slice by slice."""
        artifact = self.some("predictions/ewc-*-on-upstream-*")
        stored = json.loads((artifact.folder / MARKER).read_text())["key"]
        key = {**stored, "unfinished": True}
        cuts = pending.slices(self.table["index"].to_numpy(), SIZE)
        return Pending(self.store, key["mix"], ("ewc-unfinished", key), cuts)

    def restore(self) -> None:
        """Let all files be as they were before a trial."""
        now = dict(_states(self.runs))
        for path in [path for path in now if now[path] != self._states.get(path)]:
            place = self.runs / path
            shutil.rmtree(place) if place.is_dir() else place.unlink()
        for path in self._states:
            if now.get(path) != self._states[path]:
                if (self.runs / path).is_dir():
                    shutil.rmtree(self.runs / path)
                (self.runs / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.copy / path, self.runs / path)


def _states(runs: Path) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """By the path of a file: what changes when it is written."""
    for folder, _, names in os.walk(runs):
        for name in names:
            path = os.path.join(folder, name)
            state = os.lstat(path)
            yield os.path.relpath(path, runs), (state.st_size, state.st_mtime_ns, state.st_mode)
