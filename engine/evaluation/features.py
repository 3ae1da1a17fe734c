"""Features of a frozen backbone, computed once for a set and stored, and a teacher from them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import models
from engine.data.sets import LabelledSet
from engine.evaluation.bank import Forward
from engine.evaluation.batches import read, reduced
from engine.machine import ranks
from engine.models.form import Form
from engine.run import Run
from engine.store import pending
from engine.store.cells import Cell
from engine.store.pending import keep_array, slices
from loaders.batch import on_device


def stored(run: Run, cell: Cell, labelled: LabelledSet, *, training: bool = False) -> torch.Tensor:
    """Pre-logits [N, D] (float32, on the CPU) of a cell's backbone for a whole set.

    The tensor is mapped from its file, so a set of any size takes no memory; `on_device` moves the
    rows of a batch. training: in the form of training, where weights depend on the features. Raises
    FileNotFoundError where they are missing from a store that only finds.
    """
    key = key_of(run, cell, labelled, training=training)
    label = f"{cell.backbone.rsplit('-', 1)[0]}-{labelled.name}"
    artifact = run.find("features", label, key)
    if artifact is None:
        run.store.check_makes("features", label, key)
        slices = run.store.root / "pending" / run.store.place("features", label, key).name
        with run.threads():
            files = sliced(run, cell, labelled, _form(run, training), slices)

        def write(folder: Path) -> None:
            pending.join_arrays(files, folder / "features.npy", len(labelled.split("all")))

        artifact = ranks.first(lambda: run.store.make("features", label, key, write))
        if ranks.rank() == 0:
            shutil.rmtree(slices, ignore_errors=True)
    # Copy-on-write: torch wants a writable array, and the file must not change.
    array = np.load(artifact.checked("features.npy"), mmap_mode="c", allow_pickle=False)
    return torch.from_numpy(array)


def key_of(
    run: Run, cell: Cell, labelled: LabelledSet, *, training: bool = False
) -> dict[str, Any]:
    """Everything that determines the features of a set."""
    return {
        "model": cell.backbone,
        "pack": labelled.pack.fingerprint,
        "batch_size": run.recipe.evaluate.batch_size,
        **_form(run, training).key,
        "machine": run.machine,
    }


def _form(run: Run, training: bool) -> Form:
    make = Form.of_training if training else Form.of_evaluation
    return make(run.recipe, run.device)


def teacher(run: Run, cell: Cell, labelled: LabelledSet) -> Callable[[np.ndarray], torch.Tensor]:
    """A teacher: gives logits [b, C] for the images at `index` (int64 [b]) of a set.

    They are float32, on the device, and carry no gradient. The head reads features that are
    computed once a set; only a batch of them is on the device.
    """
    features_ND = stored(run, cell, labelled, training=True)
    head = models.head(run.network(cell))

    @torch.no_grad()
    def logits(index: np.ndarray) -> torch.Tensor:
        with torch.autocast(run.device.type, enabled=False):
            return head(on_device(features_ND[index], run.device))

    return logits


def sliced(run: Run, cell: Cell, labelled: LabelledSet, form: Form, folder: Path) -> list[Path]:
    """Pre-logits of a cell's backbone for a whole set, slice by slice in the pack's order.

    Returns files of `folder`, float32 [n, D] each; existing files are not computed again. Raises
    OSError naming the file where there is no room for it.
    """
    cuts = slices(labelled.split("all"), run.recipe.evaluate.batch_size)
    files = [folder / f"{cut[0]:09d}-{len(cut)}.npz" for cut in cuts]
    todo = [k for k, file in enumerate(files) if not ranks.all_agree(file.is_file())]
    if todo:
        recipe, state = run.recipe, run.network(cell).state_dict()
        for name in models.head_names_of(recipe.model):
            del state[name]
        backbone = form.backbone(recipe.model, len(run.sets.classes), run.device)
        forward = Forward(run)
        model = functools.partial(backbone.given, backbone.state(state))
        reader = read(run, labelled, [cuts[k] for k in todo], f"features of {labelled.name}")
        with closing(reader) as pieces:
            for k, batches in zip(todo, pieces, strict=True):
                (x_ND,) = reduced(forward, [[model]], batches, form.precision, lambda _, x_BD: x_BD)
                ranks.first(functools.partial(keep_array, files[k], x_ND.cpu().numpy()))
    return files
