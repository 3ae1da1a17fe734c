"""How the engine reads each kind of file of a campaign: what a trial of the kind `read` compares.

A reader raises what the engine raises. What it returns holds all that the engine takes from the
file; files that are written anew before they are read, or whenever they are not as they should be,
are read after that.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from engine.data.packs import pack_of
from engine.evaluation import cka, features, passes
from engine.grid import (
    attempts,
    campaign,
    make_record,
    outcomes,
    progress,
    record,
    sites,
    workflow,
)
from engine.grid.sites import Options
from engine.machine.files import cache_folder
from engine.measures import predictions
from engine.models import checkpoints
from engine.otdd import solve
from engine.report import finish
from engine.store import cells, tensors
from engine.store.cells import Cell
from engine.store.checkpoints import CheckpointFiles
from engine.store.pending import PART
from faults.specimen import UNFINISHED, Specimen
from loaders.files import digest

Reader = Callable[[Specimen, Path], Any]


def pack(specimen: Specimen, path: Path) -> Any:
    recipe, name = specimen.builder.recipe, path.parent.name.rpartition("-")[0]
    pack = pack_of(recipe, name, cache_folder())
    images = pack.pixels(range(len(pack)))
    arrays = images, pack.labels, pack.sources, pack.keys
    return arrays, pack.shape, pack.classes, pack.fingerprint, pack.manifest


def marker(specimen: Specimen, path: Path) -> Any:
    """The campaign is finished, or its jobs look for what is there."""
    if not outcomes.finished(specimen.plan):
        outcomes.begin(specimen.plan)


def evaluations(specimen: Specimen, path: Path) -> Any:
    finished = record.find(specimen.name, specimen.words)
    return finished.record, finished.evaluations


def plan(specimen: Specimen, path: Path) -> Any:
    """What `rib report` reads, then what jobs read."""
    return campaign.read(path), _written_anew(specimen, path)


def jobs(specimen: Specimen, path: Path) -> Any:
    return json.loads(_written_anew(specimen, path))


def _written_anew(specimen: Specimen, path: Path) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "_watch", lambda *_: None)
        workflow.run([specimen.plan], sites.checked(Options(cores=2)))
    return path.read_bytes()


def bar(specimen: Specimen, path: Path) -> None:
    """The progress bar moves for a moment; how far is not compared, as its files move all the time
    and hold no result."""

    class Process:
        returncode, polls = 0, iter([None, 0])

        def poll(self) -> int | None:
            return next(self.polls)

    progress.POLL_S = progress.LOG_EVERY_S = 0
    progress.show(cast(Any, Process()), [specimen.plan])
    progress.advance(specimen.plan.path, path.stem, 1, 1)


def attempt(specimen: Specimen, path: Path) -> Any:
    return attempts.read(specimen.plan.path.parent)


def shown(specimen: Specimen, path: Path) -> Any:
    """The files of the report; nothing where it is not whole, and is written anew.

    Writing takes seconds and reads none of them, so it is done only where a folder is in the way.
    """
    if not outcomes.finished(specimen.plan):
        if not path.is_dir():
            return None
        finish.write(specimen.finished, specimen.results)
    folder = specimen.finished.report
    names = sorted(name.relative_to(folder) for name in folder.rglob("*") if name.is_file())
    return {name: (folder / name).read_bytes() for name in names}


def cell(specimen: Specimen, path: Path) -> Any:
    """As methods and rows find it by its key, then as evaluations find it by its name."""
    folder = path.parent
    by_key = Cell(specimen.artifact(folder))
    by_name = passes.stored_cell(specimen.store, folder.name)
    return [_values(cell) for cell in (by_key, by_name)]


def _values(cell: Cell) -> Any:
    is_mixed = not any(
        cells.SELF in row["mix"] for row in cell.meta.get("entries", [{"mix": "self"}])
    )
    weights = {} if is_mixed else cell.state(), cell.prompt()
    return cell.meta, cell.entries, cell.steps, cell.backbone, weights


def backbone(specimen: Specimen, path: Path) -> Any:
    recipe, store = specimen.builder.recipe, specimen.builder.store
    artifact = checkpoints.backbone(recipe.model, store, cache_folder(), recipe.dataset.seed)
    return Cell(artifact).state()


def prediction(specimen: Specimen, path: Path) -> Any:
    file = specimen.artifact(path.parent).checked(PART)
    return predictions.read(file), predictions.mix_of(file)


def blocks(specimen: Specimen, path: Path) -> Any:
    return json.loads(specimen.artifact(path.parent).checked(cka.FILE).read_text())


def feature(specimen: Specimen, path: Path) -> Any:
    run = specimen.builder.run
    for name, training in itertools.product(run.recipe.dataset.places, (False, True)):
        key = features.key_of(run, run.base, run.sets[name], training=training)
        if path.parent == run.store.place("features", path.parent.name.rpartition("-")[0], key):
            return features.stored(run, run.base, run.sets[name], training=training)
    raise AssertionError(f"{path} holds features of no set")


def fisher(specimen: Specimen, path: Path) -> Any:
    key = specimen.key(path.parent)
    return specimen.builder.fisher(key["images"], key["labels"])


def distances(specimen: Specimen, path: Path) -> Any:
    run, store = specimen.builder.run, specimen.builder.store
    names = run.recipe.dataset.places
    return solve.distances(run, names, make_record.DISTANCE, store).plain()


def checkpoint(specimen: Specimen, path: Path) -> Any:
    files = CheckpointFiles(specimen.store, UNFINISHED)
    step = files.newest()
    files.write(3, {"a": torch.zeros(1)}, "{}")
    return step, files.read(step) if step else None


def slices(specimen: Specimen, path: Path) -> Any:
    """The slices that are missing, or all of them joined."""
    unfinished = specimen.slices()
    if unfinished.todo:
        return unfinished.todo
    unfinished.finish()
    artifact = specimen.store.find("predictions", unfinished.label, unfinished.key)
    assert artifact is not None
    return predictions.read(artifact.checked(PART))


MODEL = ("done.json", cells.CELL, tensors.WEIGHTS, tensors.PROMPT)
READERS: Mapping[str, Reader] = {
    **dict.fromkeys(("packs/images.beton", "packs/manifest.json", "packs/samples.npy"), pack),
    **dict.fromkeys(("plan/done", "plan/report.sha256"), marker),
    "plan/evaluations.json": evaluations,
    "plan/plan.json": plan,
    "plan/workflow.json": jobs,
    "plan/progress": bar,
    "plan/attempts": attempt,
    **{f"report/{name}": shown for name in (".csv", ".html", ".parquet", ".tex", ".txt")},
    **{
        f"store/{kind}/{name}": cell
        for kind in ("cells", "snapshots")
        for name in (*MODEL, "recipe.yaml", "versions.json")
    },
    "store/cells/history.json": cell,
    **dict.fromkeys(("store/weights/done.json", "store/weights/weights.safetensors"), backbone),
    **dict.fromkeys(("store/predictions/done.json", f"store/predictions/{PART}"), prediction),
    **dict.fromkeys(("store/cka/done.json", "store/cka/cka.json"), blocks),
    **dict.fromkeys(("store/features/done.json", "store/features/features.npy"), feature),
    **dict.fromkeys(("store/fisher/done.json", "store/fisher/fisher.safetensors"), fisher),
    **dict.fromkeys(("store/distances/done.json", "store/distances/matrix.json"), distances),
    **{
        f"store/pending/{name}": checkpoint
        for name in ("done.json", "progress.json", "state.safetensors")
    },
    "store/pending/.parquet": slices,
}


def digest_of(value: Any) -> str:
    """Equal for equal values, and for no others."""
    return digest(list(_exact(value)))


def _exact(value: Any) -> Iterator[str]:
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape} {value.tobytes().hex()}"
    elif isinstance(value, pa.Table):
        yield f"{value.schema} {value.to_pylist()}"
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield repr(key)
            yield from _exact(value[key])
    elif isinstance(value, list | tuple):
        yield f"{len(value)}"
        for item in value:
            yield from _exact(item)
    else:
        yield repr(value)
