"""Bank evaluation: one pass over a set for all models that must see it.

A batch is read and normalised once. Models that share a frozen backbone share its features, and an
ensemble has its members' logits. The predictions of a model on a set are an artefact: they are made
once, and metrics read only them. A model is an average of cells, of their weights or their logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from engine import models
from engine.data.sets import LabelledSet
from engine.evaluation import bank, features
from engine.evaluation.batches import chunks, read, reduced
from engine.evaluation.reduction import ClassGaps, Reduction, predictions_table
from engine.machine import ranks
from engine.machine.files import digest
from engine.measures.calibration import BINS, TEMPERATURES
from engine.models.form import Form
from engine.run import Run
from engine.store import cells
from engine.store.artifacts import Artifact, Store
from engine.store.cells import Average, Cell, essential
from engine.store.pending import PART, Pending, slices
from loaders.batch import on_device


def evaluate(
    run: Run,
    averages: Sequence[Average],
    names: Iterable[str],
    split: str,
) -> None:
    """Make the missing predictions of every average of cells on every named set.

    Raises FileNotFoundError where some are missing from a store that only finds.
    """
    for name in names:
        labelled = run.sets[name]
        missing: list[Average] = []
        for average in (essential(each) for each in averages):
            finished = find(run, average, name, split) is not None
            if not ranks.all_agree(finished) and average not in missing:
                run.store.check_makes("predictions", *key_of(run, average, labelled, split))
                missing.append(average)
        if missing:
            with run.threads():
                _pass(run, missing, labelled, split)


def find(run: Run, average: Average, name: str, split: str) -> Artifact | None:
    """The predictions of an average of cells on a set, or None if it was not evaluated."""
    key = key_of(run, essential(average), run.sets[name], split)
    return run.store.find("predictions", *key)


def predicted(run: Run, average: Average, name: str, split: str) -> Path:
    """Parquet file of the predictions of an average of cells on a set.

    Raises FileNotFoundError if it was not evaluated, ValueError if the file was altered since.
    """
    artifact = find(run, average, name, split)
    if artifact is None:
        label, _ = key_of(run, essential(average), run.sets[name], split)
        raise FileNotFoundError(
            f"the store has no predictions of {label}: run the campaign again to make them"
        )
    return artifact.checked(PART)


def holdout_accuracy(run: Run, average: Average) -> float:
    """Top-1 in percent of an average of cells on the downstream hold-out."""
    name = run.recipe.downstream
    evaluate(run, [average], [name], "holdout")
    table = pq.read_table(predicted(run, average, name, "holdout"), columns=["label", "top1"])
    return 100 * float(np.mean(table["label"].to_numpy() == table["top1"].to_numpy()))


def key_of(
    run: Run, average: Average, labelled: LabelledSet, split: str
) -> tuple[str, dict[str, Any]]:
    """Label and key of the artefact that holds the predictions of an essential average."""
    recipe = run.recipe
    split = split if len(labelled.holdout) else "all"
    key = {
        "mix": average,
        "pack": labelled.pack.fingerprint,
        "split": [split, *labelled.split_key(recipe.dataset)] if split != "all" else "all",
        "batch_size": recipe.evaluate.batch_size,
        "classes": digest(run.sets.classes),  # top-1 and label are positions among them
        **Form.of(recipe.evaluate, run.device).key,
        "machine": run.machine,
    }
    if labelled.mask_rule != "present":
        key["mask"] = labelled.mask_rule
    if recipe.evaluate.calibration:
        key["calibration"] = {"temperatures": TEMPERATURES.tolist(), "bins": BINS}
    return f"{'+'.join(n.rsplit('-', 1)[0] for n in average)}-on-{labelled.name}"[:120], key


def _pass(
    run: Run,
    averages: Sequence[Average],
    labelled: LabelledSet,
    split: str,
) -> None:
    cuts = slices(labelled.split(split), run.recipe.evaluate.batch_size)
    pending = [Pending(run.store, a, key_of(run, a, labelled, split), cuts) for a in averages]
    for evaluation in pending:
        if not evaluation.todo:  # only the joining of its slices is left
            evaluation.finish()
    pending = [evaluation for evaluation in pending if evaluation.todo]
    parents = {name: stored_cell(run.store, name) for each in pending for name in each.average}
    probes = [each for each in pending if _shares_base_backbone(run, each.average, parents)]
    full = [each for each in pending if each not in probes]
    if probes:
        _from_features(run, probes, parents, labelled)
    if full:
        _from_images(run, full, parents, labelled)


def _shares_base_backbone(run: Run, average: Average, parents: Mapping[str, Cell]) -> bool:
    """Whether the average is of a single cell, with the base model's frozen backbone."""
    if len(average) > 1 or not run.shares_features:
        return False
    return parents[next(iter(average))].backbone == run.base.backbone


def _from_features(
    run: Run, probes: Sequence[Pending], parents: Mapping[str, Cell], labelled: LabelledSet
) -> None:
    """Models that share the base model's backbone: its features go through all heads at once."""
    shared_ND = features.stored(run, run.base, labelled)
    names = models.head_names(run.recipe.model)
    heads = [_head(run, parents[next(iter(probe.average))], names) for probe in probes]
    weights_HDC = torch.stack([weight for weight, _ in heads]).transpose(1, 2)
    biases_H1C = torch.stack([bias for _, bias in heads]).unsqueeze(1)
    reductions = _reductions(run, labelled)
    for number in _unfinished(probes):
        parts: list[list[list[torch.Tensor]]] = [[[] for _ in reductions] for _ in probes]
        with torch.inference_mode():
            for index in chunks(run, probes[0].cuts[number]):
                x_ND = on_device(shared_ND[index], run.device)
                # Gives each head's logits bit for bit, which one wide product of all does not.
                x_HND = x_ND.expand(len(heads), *x_ND.shape)
                logits_HNC = torch.baddbmm(biases_H1C, x_HND, weights_HDC)
                for logits, of_head in zip(logits_HNC, parts, strict=True):
                    for reduce, rows in zip(reductions, of_head, strict=True):
                        rows.append(reduce(index, logits))
        _put(number, labelled, probes, [[torch.cat(rows) for rows in of] for of in parts])


def _head(run: Run, cell: Cell, names: tuple[str, str]) -> list[torch.Tensor]:
    """Weight [C, D] and bias [C]; a pre-trained backbone gets the head that `network` gives it."""
    if cell.artifact.kind == "weights":
        head = models.head(run.network(cell))
        return [head.weight.detach(), head.bias.detach()]
    return [tensor.to(run.device) for tensor in cell.tensors(*names)]


def _from_images(
    run: Run, full: Sequence[Pending], parents: Mapping[str, Cell], labelled: LabelledSet
) -> None:
    """All other models: every batch is read and normalised once for those on the device."""
    by_average = {id(evaluation.average): evaluation for evaluation in full}
    run.sets.source(labelled.name)  # takes its memory before shares of the rest are taken
    normalize = models.Normalize(run.recipe.model, run.device)
    reductions = _reductions(run, labelled)
    kind = Form.of(run.recipe.evaluate, run.device).precision
    for group, nets in bank.loaded(run, [evaluation.average for evaluation in full], parents):
        pending = [by_average[id(average)] for average in group]
        numbers = _unfinished(pending)
        label = f"{len(pending)} models on {labelled.name}"
        pieces = read(run, labelled, [full[0].cuts[number] for number in numbers], label)
        for number, batches in zip(numbers, pieces, strict=True):
            missing = [k for k, evaluation in enumerate(pending) if number in evaluation.todo]
            rows = reduced(normalize, [nets[k] for k in missing], batches, kind, reductions)
            _put(number, labelled, [pending[k] for k in missing], rows)
        del nets  # before the next group is loaded


def _reductions(run: Run, labelled: LabelledSet) -> list[Reduction]:
    calibration = run.recipe.evaluate.calibration
    rows = Reduction(labelled, run.device, calibration=calibration)
    return [rows, ClassGaps(labelled, run.device)] if calibration else [rows]


def _unfinished(evaluations: Sequence[Pending]) -> list[int]:
    """Numbers of the slices that some evaluation lacks."""
    return sorted(set[int]().union(*(evaluation.todo for evaluation in evaluations)))


def _put(
    number: int,
    labelled: LabelledSet,
    evaluations: Sequence[Pending],
    rows: Iterable[Sequence[torch.Tensor]],
) -> None:
    """Store each evaluation's predictions of slice `number`, where they are missing."""
    for evaluation, of_evaluation in zip(evaluations, rows, strict=True):
        if number in evaluation.todo:
            table = predictions_table(of_evaluation, labelled, evaluation.cuts[number])
            evaluation.put(number, table)


def stored_cell(store: Store, name: str) -> Cell:
    """A cell, or a backbone's weights, by name; FileNotFoundError where there is none."""
    cell = cells.find(store, name)
    if cell is None:
        raise FileNotFoundError(
            f"no cell {name} under {store.root}: run the same command again to make it"
        )
    return cell
