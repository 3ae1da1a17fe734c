"""Bank evaluation: one pass over a set for all models that must see it; every prediction is kept.

A batch is read and normalised once. Models that share a frozen backbone share its features. What a
model said of a set is an artefact, so nothing is evaluated twice, and metrics read only that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from engine import models
from engine.data.sets import LabelledSet
from engine.evaluation import features
from engine.evaluation.bank import Bank, Forward
from engine.evaluation.batches import chunks, read, reduced, seconds_to_read
from engine.evaluation.verdict import Verdict, predictions_table
from engine.machine import ranks
from engine.machine.files import digest
from engine.models.form import Form
from engine.run import Run
from engine.store import cells
from engine.store.artifacts import Artifact, Store
from engine.store.cells import Cell, Mix, essential
from engine.store.pending import PART, Part, Pending, slices
from loaders.batch import on_device


def evaluate(run: Run, mixes: Sequence[Mix], names: Iterable[str], split: str | Part) -> None:
    """Make the predictions of every mix on every named set that are not there yet."""
    for name in names:
        labelled = run.sets[name]
        missing: list[dict[str, float]] = []
        for mix in map(essential, mixes):
            there = find(run, mix, name, split) is not None
            if not ranks.all_agree(there) and mix not in missing:
                missing.append(mix)
        if missing:
            with run.threads():
                _pass(run, missing, labelled, split)


def find(run: Run, mix: Mix, name: str, split: str | Part) -> Artifact | None:
    """A mix's predictions on a set, or None if it was not evaluated."""
    key = key_of(run, essential(mix), run.sets[name], split)
    return run.store.find("predictions", *key)


def predicted(run: Run, mix: Mix, name: str, split: str | Part) -> Path:
    """Parquet file of a mix's predictions on a set.

    Raises FileNotFoundError if it was not evaluated, ValueError if the file was altered since.
    """
    found = find(run, mix, name, split)
    if found is None:
        label, _ = key_of(run, essential(mix), run.sets[name], split)
        raise FileNotFoundError(
            f"{label} was not evaluated, or that was deleted; run the campaign again"
        )
    return found.checked(PART)


def holdout_accuracy(run: Run, mix: Mix) -> float:
    """Top-1 in percent of a mix on the downstream hold-out."""
    name = run.recipe.downstream
    evaluate(run, [mix], [name], "holdout")
    table = pq.read_table(predicted(run, mix, name, "holdout"), columns=["label", "top1"])
    return 100 * float(np.mean(table["label"].to_numpy() == table["top1"].to_numpy()))


def key_of(
    run: Run, mix: Mapping[str, float], labelled: LabelledSet, split: str | Part
) -> tuple[str, dict[str, Any]]:
    """Label and key of the artefact that holds an essential mix's predictions."""
    if isinstance(split, Part):
        label, key = key_of(run, mix, labelled, split.split)
        return f"{split.name}-{label}", key | {"part": split.name}
    recipe = run.recipe
    split = split if len(labelled.holdout) else "all"
    key = {
        "mix": dict(mix),
        "pack": labelled.pack.fingerprint,
        "split": [split, *labelled.split_key(recipe.dataset)] if split != "all" else "all",
        "batch_size": recipe.evaluate.batch_size,
        "classes": digest(run.sets.classes),  # what top-1 and label count
        **Form.of_evaluation(recipe, run.device).key,
        "machine": run.machine,
    }
    if labelled.mask_rule != "present":
        key["mask"] = labelled.mask_rule
    return f"{'+'.join(n.rsplit('-', 1)[0] for n in mix)}-on-{labelled.name}"[:120], key


def _pass(
    run: Run, mixes: Sequence[dict[str, float]], labelled: LabelledSet, split: str | Part
) -> None:
    places = split.places if isinstance(split, Part) else labelled.split(split)
    cuts = slices(places, run.recipe.evaluate.batch_size)
    pending = [Pending(run.store, mix, key_of(run, mix, labelled, split), cuts) for mix in mixes]
    for one in pending:
        if not one.todo:  # stopped between its last slice and its end
            one.finish()
    pending = [one for one in pending if one.todo]
    parents = {name: stored_cell(run.store, name) for one in pending for name in one.mix}
    probes = [one for one in pending if _base_backbone(one.mix, run)]
    full = [one for one in pending if one not in probes]
    if probes:
        _from_features(run, probes, parents, labelled)
    if full:
        _from_images(run, full, parents, labelled)


def _from_features(
    run: Run, probes: Sequence[Pending], parents: Mapping[str, Cell], labelled: LabelledSet
) -> None:
    """Models that share the base model's backbone: its features go through all heads at once."""
    shared_ND = features.stored(run, run.base, labelled)
    names = models.head_names_of(run.recipe.model)
    heads = [_head(run, parents[next(iter(one.mix))], names) for one in probes]
    weights_HDC = torch.stack([weight for weight, _ in heads]).transpose(1, 2)
    biases_H1C = torch.stack([bias for _, bias in heads]).unsqueeze(1)
    verdict = Verdict(labelled, run.device)
    for number, cut in enumerate(probes[0].cuts):
        if not any(number in one.todo for one in probes):
            continue
        said = []
        with torch.inference_mode():
            for index in chunks(run, cut):
                x_ND = on_device(shared_ND[index], run.device)
                # Gives each head's logits bit for bit, which one wide product of all does not.
                x_HND = x_ND.expand(len(heads), *x_ND.shape)
                logits_HNC = torch.baddbmm(biases_H1C, x_HND, weights_HDC)
                said.append(torch.stack([verdict(index, logits) for logits in logits_HNC]))
        for one, said_N4 in zip(probes, torch.cat(said, dim=1), strict=True):
            if number in one.todo:
                one.put(number, predictions_table(said_N4, labelled, cut))


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
    of = {id(one.mix): one for one in full}
    cuts = full[0].cuts
    todo = [number for number in range(len(cuts)) if any(number in one.todo for one in full)]
    run.sets.source(labelled.name)  # takes its memory before shares of the rest are taken
    slice_bytes = max(map(len, cuts)) * 3 * math.prod(labelled.pack.shape)
    bank = Bank(run, [one.mix for one in full], parents, slice_bytes)
    forward, verdict = Forward(run), Verdict(labelled, run.device)
    kind = Form.of_evaluation(run.recipe, run.device).precision
    places = np.concatenate([cuts[number] for number in todo])
    for groups in bank.passes(len(todo), lambda: seconds_to_read(run, labelled, places)):
        ones = [of[id(mix)] for group in groups for mix in group]
        wanted = [number for number in todo if any(number in one.todo for one in ones)]
        label = f"{len(ones)} models on {labelled.name}"
        pieces = read(run, labelled, [cuts[number] for number in wanted], label)
        for number, batches in zip(wanted, pieces, strict=True):
            seen = batches if len(groups) == 1 else list(batches)
            for group in groups:
                if not any(number in of[id(mix)].todo for mix in group):
                    continue
                pairs = zip(group, bank.models(group), strict=True)
                some = [(of[id(mix)], model) for mix, model in pairs]
                some = [(one, model) for one, model in some if number in one.todo]
                said = reduced(forward, [model for _, model in some], seen, kind, verdict)
                for (one, _), said_N4 in zip(some, said, strict=True):
                    one.put(number, predictions_table(said_N4, labelled, cuts[number]))


def stored_cell(store: Store, name: str) -> Cell:
    """A cell, or a backbone's weights, by name; FileNotFoundError where there is none."""
    cell = cells.find(store, name)
    if cell is None:
        raise FileNotFoundError(
            f"no cell {name} under {store.root}; the same command makes it when run again"
        )
    return cell


def _base_backbone(mix: Mix, run: Run) -> bool:
    """Whether the mix is one cell whose backbone is the base model's, untouched."""
    if len(mix) > 1 or not run.shares_features:
        return False
    return stored_cell(run.store, next(iter(mix))).backbone == run.base.backbone
