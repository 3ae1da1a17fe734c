"""Evaluate all models in one pass over each dataset.

A batch is read and normalized once. Models with the same frozen backbone share its features, and an
ensemble uses its members' logits. The predictions of a model on a dataset are an artefact: they are
made once, and metrics read only them. A model is an average of cells' weights or outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from engine import models
from engine.data.sets import LabelledSet
from engine.evaluation import bank, features, ridge
from engine.evaluation.bank import Bank, stored_cell
from engine.evaluation.batches import Reader, read_batches, reduced
from engine.evaluation.reduction import Reduction, predictions_table
from engine.machine import ranks
from engine.measures.predictions import TEMPERATURES, plain_of
from engine.models.execution import Form, Function, Model
from engine.recipe.schema import RIDGE
from engine.run import Run
from engine.store.artifacts import Artifact
from engine.store.cells import Average, Ensemble, canonical_mix
from engine.store.pending import PART, PartialPredictions, slices
from loaders.batches import Batch, on_device
from loaders.files.durable import short_digest


def evaluate(
    run: Run,
    averages: Sequence[Average],
    names: Iterable[str],
    split: str,
    loaded: Bank | None = None,
) -> None:
    """Make the missing predictions of every average of cells on every named dataset.

    loaded: the run's models, for several calls; by default they are loaded for this one.
    """
    loaded = loaded or Bank(run)
    for name in names:
        labelled = run.sets[name]
        missing: list[Average] = []
        for average in (canonical_mix(average) for average in averages):
            artifact = run.find("predictions", *key_of(run, average, labelled, split))
            if artifact is None and average not in missing:
                missing.append(average)
        if missing:
            with run.threads():
                _pass(run, missing, labelled, split, loaded)


def find(run: Run, average: Average, name: str, split: str) -> Artifact | None:
    """Returns the predictions of an average of cells on a dataset, or None if not evaluated."""
    key = key_of(run, canonical_mix(average), run.sets[name], split)
    return run.store.find("predictions", *key)


def predicted(run: Run, average: Average, name: str, split: str) -> Path:
    """Parquet file of the predictions of an average of cells on a dataset.

    Raises FileNotFoundError if it was not evaluated, ValueError if the file was changed.
    """
    if (artifact := find(run, average, name, split)) is None:
        key = key_of(run, canonical_mix(average), run.sets[name], split)
        raise run.store.missing("predictions", *key)
    return artifact.checked(PART)


def holdout_accuracy(run: Run, average: Average) -> float:
    """Top-1 accuracy in percent of an average of cells on the held-out downstream images: of a
    union, the mean over its datasets."""
    names = run.recipe.trained_sets
    evaluate(run, [average], names, "holdout")
    paths = [predicted(run, average, name, "holdout") for name in names]
    tables = [pq.read_table(path, columns=["label", "top1"]) for path in paths]
    return 100 * fmean(
        float(np.mean(table["label"].to_numpy() == table["top1"].to_numpy())) for table in tables
    )


def key_of(
    run: Run, average: Average, labelled: LabelledSet, split: str
) -> tuple[str, dict[str, Any]]:
    """Label and key of the artefact that holds the predictions of a canonical average."""
    recipe = run.recipe
    split = split if len(labelled.holdout) else "all"
    key = {
        "mix": plain_of(average),
        "pack": labelled.pack.fingerprint,
        "split": [split, *labelled.split_key(recipe.dataset)] if split != "all" else "all",
        "batch_size": recipe.evaluate.batch_size,
        "classes": short_digest(run.sets.classes),  # top-1 and label are indices into them
        **Form.of(recipe.evaluate, run.device).key,
        "machine": run.machine,
        **labelled.parts_key,
    }
    if labelled.mask_rule != "present":
        key["mask"] = labelled.mask_rule
    if labelled.outputs_digest:
        key["outputs"] = labelled.outputs_digest
    if labelled.columns:
        of_columns = {name: values.tolist() for name, values in labelled.columns.items()}
        key["columns"] = short_digest(of_columns)
    if labelled.is_probe:
        key |= {"classes": short_digest(labelled.pack.classes), "ridge": RIDGE}
    if recipe.evaluate.calibration:
        key["temperatures"] = TEMPERATURES.tolist()
    return f"{'+'.join(n.rsplit('-', 1)[0] for n in average)}-on-{labelled.name}"[:120], key


def _pass(
    run: Run, averages: Sequence[Average], labelled: LabelledSet, split: str, loaded: Bank
) -> None:
    cuts = slices(labelled.split(split), run.recipe.evaluate.batch_size)
    pending = [
        PartialPredictions(run.store, a, key_of(run, a, labelled, split), cuts) for a in averages
    ]
    for evaluation in pending:
        if not evaluation.todo:  # only its slices remain to be joined
            evaluation.finish()
    heads = {
        evaluation: _head(run, evaluation.average) for evaluation in pending if evaluation.todo
    }
    probes = {evaluation: [head] for evaluation, head in heads.items() if head}
    full = {id(evaluation.average): evaluation for evaluation, head in heads.items() if not head}
    if probes:
        rows_ND = features.stored(run, run.base, labelled)
        reader = functools.partial(_of_features, rows_ND, run.device)
        _evaluate(run, list(probes), list(probes.values()), labelled, reader, lambda x_ND: x_ND)
    if full:
        source = run.sets.source(labelled.name)  # allocates memory before models divide the rest
        normalize = models.Normalize(run.recipe.model, run.device)

        def evaluate_group(group: Sequence[Average], nets: Sequence[Sequence[Model]]) -> None:
            of_group = [full[id(average)] for average in group]
            _evaluate(run, of_group, nets, labelled, source.batches, normalize)

        loaded.in_groups([evaluation.average for evaluation in full.values()], evaluate_group)


def _head(run: Run, average: Average) -> Model | None:
    """The head of an average that is one cell with the base model's frozen backbone."""
    cell = stored_cell(run.store, next(iter(average)))
    if len(average) > 1 or not run.shares_features or cell.backbone != run.base.backbone:
        return None
    tensors = cell.tensors(*models.head_names(run.recipe.model))
    weight, bias = (tensor.to(run.device) for tensor in tensors)
    return Model(lambda x_BD: x_BD, bank.head_of(weight, bias))


def _of_features(
    rows_ND: torch.Tensor, device: torch.device, batches: Iterable[np.ndarray]
) -> Iterator[Batch]:
    """Stored features [N, D] of a dataset, used instead of its images."""
    for index in batches:
        yield Batch(index, device, functools.partial(on_device, rows_ND[index], device))


def _evaluate(
    run: Run,
    pending: Sequence[PartialPredictions],
    nets: Sequence[Sequence[Model]],
    labelled: LabelledSet,
    reader: Reader,
    inputs: Function,
) -> None:
    """Store the missing slices of evaluations; nets, reader, inputs: as of `batches`.

    On a probe set, heads are fitted first; a net is then a single model.
    """
    if labelled.is_probe:
        models = [model for (model,) in nets]
        fitted = ridge.with_fitted_heads(run, models, labelled, reader, inputs)
        nets = [[model] for model in fitted]
    reductions = [
        Reduction(
            labelled,
            run.device,
            calibration=run.recipe.evaluate.calibration,
            weights=average.weights if isinstance(average, Ensemble) else "equal",
        )
        for average in (evaluation.average for evaluation in pending)
    ]
    kind = Form.of(run.recipe.evaluate, run.device).precision
    numbers = sorted(set[int]().union(*(evaluation.todo for evaluation in pending)))
    cuts = pending[0].cuts
    label = f"{len(pending)} model{'s' * (len(pending) > 1)} on {labelled.name}"
    pieces = read_batches(run, reader, [cuts[number] for number in numbers], label)

    def put(
        number: int, evaluations: Sequence[PartialPredictions], rows: Sequence[torch.Tensor]
    ) -> None:
        for evaluation, of_evaluation in zip(evaluations, rows, strict=True):
            evaluation.put(number, predictions_table(of_evaluation, labelled, cuts[number]))

    written: Future[None] | None = None
    with ThreadPoolExecutor(
        1, "predictions"
    ) as writer:  # writes during the computation of the next slice
        for number, batches in zip(numbers, pieces, strict=True):
            missing = [k for k, evaluation in enumerate(pending) if number in evaluation.todo]
            of_missing = [(nets[k], reductions[k]) for k in missing]
            rows = reduced(run, inputs, of_missing, batches, kind)
            on_host = [of_evaluation.cpu() for of_evaluation in rows]
            if written is not None:
                ranks.first(written.result)
            written = writer.submit(put, number, [pending[k] for k in missing], on_host)
        if written is not None:
            ranks.first(written.result)
    for evaluation in pending:
        evaluation.finish()
