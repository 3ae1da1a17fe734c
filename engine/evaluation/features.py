"""Stored features of a frozen backbone, computed once per dataset, and a teacher on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import models
from engine.data.sets import LabelledSet
from engine.evaluation.batches import alone, read_batches, reduced
from engine.machine import ranks
from engine.machine.files import room_for
from engine.models.execution import Form, Function, Model
from engine.run import Run
from engine.store.artifacts import PENDING
from engine.store.cells import Cell
from engine.store.pending import slices
from loaders.batches import Batch, on_device

FILE = "features.npy"


def stored(run: Run, cell: Cell, labelled: LabelledSet, *, training: bool = False) -> torch.Tensor:
    """Pre-logits [N, D] (float32, on the CPU) of a cell's backbone for a whole dataset.

    The tensor is memory-mapped, or in memory for a union, which has its parts' features;
    `on_device` moves the rows of a batch. training: compute as in training, for features that
    weights depend on.
    """
    if labelled.parts:
        return torch.cat([stored(run, cell, part, training=training) for part in labelled.parts])
    key = key_of(run, cell, labelled, training=training)
    label = f"{cell.backbone.rsplit('-', 1)[0]}-{labelled.name}"
    files = run.store.files
    file = f"{PENDING}/{run.store.place('features', label, key).name}.npy"

    def compute() -> Callable[[Path], object]:
        _compute(run, cell, labelled, _form(run, training), file)
        return lambda folder: files.rename(files.path / file, folder / FILE)

    artifact = run.make("features", label, key, compute)
    # Copy-on-write: torch requires a writable array, but the file must not change.
    array = np.load(artifact.checked(FILE), mmap_mode="c", allow_pickle=False)
    return torch.from_numpy(array)


def key_of(
    run: Run, cell: Cell, labelled: LabelledSet, *, training: bool = False
) -> dict[str, Any]:
    """Everything that determines the features of a dataset."""
    return {
        "model": cell.backbone,
        "pack": labelled.pack.fingerprint,
        "batch_size": run.recipe.evaluate.batch_size,
        **_form(run, training).key,
        "machine": run.machine,
    }


def _form(run: Run, training: bool) -> Form:
    return Form.of(run.recipe.train if training else run.recipe.evaluate, run.device)


def embedder(run: Run, cell: Cell, labelled: LabelledSet) -> Callable[[Batch], torch.Tensor]:
    """A function from a training batch of a dataset to pre-logits [b, D] of a cell's backbone.

    They are float32, on the device, without gradient. They are read from stored features, or
    computed in the step if training augments images.
    """
    if not run.recipe.train.augment:
        features_ND = stored(run, cell, labelled, training=True)
        return lambda batch: on_device(features_ND[batch.index], run.device)
    backbone = _backbone(run, cell, _form(run, training=True))
    normalize = models.Normalize(run.recipe.model, run.device)

    @torch.no_grad()
    def embed(batch: Batch) -> torch.Tensor:
        with run.autocast:
            return backbone(normalize(batch.images)).float()

    return embed


def teacher(run: Run, cell: Cell, labelled: LabelledSet) -> Callable[[Batch], torch.Tensor]:
    """A teacher: a function from a training batch of a dataset to logits [b, C].

    They are float32, on the device, without gradient.
    """
    embed, head = embedder(run, cell, labelled), models.head(run.network(cell))

    @torch.no_grad()
    def logits(batch: Batch) -> torch.Tensor:
        return head(embed(batch))

    return logits


def _backbone(run: Run, cell: Cell, form: Form) -> Function:
    state = run.network(cell).state_dict()
    for name in models.head_names(run.recipe.model):
        del state[name]
    backbone = form.backbone(run.recipe.model, len(run.sets.classes), run.device)
    return functools.partial(backbone.given, backbone.state(state))


def _compute(run: Run, cell: Cell, labelled: LabelledSet, form: Form, file: str) -> None:
    """Write the pre-logits of a cell's backbone for a whole dataset to a file, slice by slice.

    file: its name in the store.
    """
    everything, normalize = labelled.split("all"), models.Normalize(run.recipe.model, run.device)
    model = Model(_backbone(run, cell, form), lambda x_BD: x_BD)
    cuts = slices(everything, run.recipe.evaluate.batch_size)
    reader = run.sets.source(labelled.name).batches
    pieces = read_batches(run, reader, cuts, f"features of {labelled.name}")
    path = run.store.root / file
    for number, batches in enumerate(pieces):
        (x_ND,) = reduced(run, normalize, [([model], alone)], batches, form.precision)
        with ranks.together():
            if ranks.rank() > 0:
                continue
            array_ND = np.ascontiguousarray(x_ND.cpu().numpy())
            with room_for(path), run.store.files.open(file, "ab" if number else "wb") as sink:
                if not number:
                    header = np.lib.format.header_data_from_array_1_0(array_ND)
                    header["shape"] = (len(everything), array_ND.shape[1])
                    np.lib.format.write_array_header_1_0(sink, header)
                sink.write(array_ND.data)
