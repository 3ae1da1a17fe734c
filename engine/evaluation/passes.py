"""Bank evaluation: one pass over a set for all models that must see it; every prediction is kept.

A batch is read and normalised once. Models that share a frozen backbone share its features. What a
model said of a set is an artefact, so nothing is evaluated twice, and metrics read only that.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from tqdm import tqdm

from engine import models
from engine.data import grouping
from engine.data.sets import LabelledSet
from engine.evaluation.bank import Bank, Forward, Model
from engine.machine import precision, ranks
from engine.machine.files import digest
from engine.measures import predictions
from engine.models.form import Form
from engine.store import cells
from engine.store.artifacts import Artifact
from engine.store.cells import Cell, Mix, essential
from engine.store.pending import PART, Part, Pending, keep_array, slices
from loaders.batch import Batch, on_device

if TYPE_CHECKING:
    from engine.grid.build import Context


def evaluate(
    context: Context, mixes: Sequence[Mix], names: Iterable[str], split: str | Part
) -> None:
    """Make the predictions of every mix on every named set that are not there yet."""
    for name in names:
        labelled = context.sets[name]
        missing: list[dict[str, float]] = []
        for mix in map(essential, mixes):
            there = find(context, mix, name, split) is not None
            if not ranks.all_agree(there) and mix not in missing:
                missing.append(mix)
        if missing:
            with context.threads():
                _pass(context, missing, labelled, split)


def find(context: Context, mix: Mix, name: str, split: str | Part) -> Artifact | None:
    """A mix's predictions on a set, or None if it was not evaluated."""
    key = key_of(context, essential(mix), context.sets[name], split)
    return context.store.find("predictions", *key)


def predicted(context: Context, mix: Mix, name: str, split: str | Part) -> Path:
    """Parquet file of a mix's predictions on a set.

    Raises FileNotFoundError if it was not evaluated, ValueError if the file was altered since.
    """
    found = find(context, mix, name, split)
    if found is None:
        label, _ = key_of(context, essential(mix), context.sets[name], split)
        raise FileNotFoundError(
            f"{label} was not evaluated, or that was deleted; run the campaign again"
        )
    return found.checked(PART)


def holdout_accuracy(context: Context, mix: Mix) -> float:
    """Top-1 in percent of a mix on the downstream hold-out."""
    name = context.recipe.downstream
    evaluate(context, [mix], [name], "holdout")
    table = pq.read_table(predicted(context, mix, name, "holdout"), columns=["label", "top1"])
    return 100 * float(np.mean(table["label"].to_numpy() == table["top1"].to_numpy()))


def features(
    context: Context, cell: Cell, labelled: LabelledSet, form: Form, folder: Path
) -> list[Path]:
    """Pre-logits of a cell's backbone for a whole set, slice by slice in the pack's order.

    Returns files of `folder`, float32 [n, D] each; slices that are there are not computed again.
    Raises OSError naming the file where there is no room for it.
    """
    cuts = slices(labelled.split("all"), context.recipe.evaluate.batch_size)
    files = [folder / f"{cut[0]:09d}-{len(cut)}.npy" for cut in cuts]
    todo = [k for k, file in enumerate(files) if not ranks.all_agree(file.is_file())]
    if todo:
        recipe, state = context.recipe, context.network(cell).state_dict()
        for name in models.head_names_of(recipe.model):
            del state[name]
        backbone = form.backbone(recipe.model, len(context.sets.classes), context.device)
        forward = Forward(context)
        bank = [functools.partial(backbone.given, backbone.state(state))]
        read = _read(context, labelled, [cuts[k] for k in todo], f"features of {labelled.name}")
        with closing(read) as pieces:
            for k, batches in zip(todo, pieces, strict=True):
                (made_ND,) = _run(
                    forward, bank, batches, form.precision, lambda _, features: features
                )
                ranks.first(functools.partial(keep_array, files[k], made_ND.cpu().numpy()))
    return files


def key_of(
    context: Context, mix: Mapping[str, float], labelled: LabelledSet, split: str | Part
) -> tuple[str, dict[str, Any]]:
    """Label and key of the artefact that holds an essential mix's predictions."""
    if isinstance(split, Part):
        label, key = key_of(context, mix, labelled, split.split)
        return f"{split.name}-{label}", key | {"part": split.name}
    recipe = context.recipe
    split = split if len(labelled.holdout) else "all"
    key = {
        "mix": dict(mix),
        "pack": labelled.pack.fingerprint,
        "split": [split, *labelled.split_key(recipe.dataset)] if split != "all" else "all",
        "batch_size": recipe.evaluate.batch_size,
        "classes": digest(context.sets.classes),  # what top-1 and label count
        **Form.of_evaluation(recipe, context.device).key,
        "machine": context.machine,
    }
    if labelled.mask_rule != "present":
        key["mask"] = labelled.mask_rule
    return f"{'+'.join(n.rsplit('-', 1)[0] for n in mix)}-on-{labelled.name}"[:120], key


def _pass(
    context: Context, mixes: Sequence[dict[str, float]], labelled: LabelledSet, split: str | Part
) -> None:
    places = split.places if isinstance(split, Part) else labelled.split(split)
    cuts = slices(places, context.recipe.evaluate.batch_size)
    pending = [
        Pending(context.store, mix, key_of(context, mix, labelled, split), cuts) for mix in mixes
    ]
    for one in pending:
        if not one.todo:  # stopped between its last slice and its end
            one.finish()
    pending = [one for one in pending if one.todo]
    parents = {name: stored_cell(context, name) for one in pending for name in one.mix}
    probes = [one for one in pending if _base_backbone(one.mix, context)]
    full = [one for one in pending if one not in probes]
    if probes:
        _from_features(context, probes, parents, labelled)
    if full:
        _from_images(context, full, parents, labelled)


def _from_features(
    context: Context, probes: Sequence[Pending], parents: Mapping[str, Cell], labelled: LabelledSet
) -> None:
    """Models that share the base model's backbone: its features go through all heads at once."""
    shared_ND = context.features(context.base, labelled)
    names = models.head_names_of(context.recipe.model)
    heads = [_head(context, parents[next(iter(one.mix))], names) for one in probes]
    weights_HDC = torch.stack([weight for weight, _ in heads]).transpose(1, 2)
    biases_H1C = torch.stack([bias for _, bias in heads]).unsqueeze(1)
    verdict = Verdict(labelled, context.device)
    for number, cut in enumerate(probes[0].cuts):
        if not any(number in one.todo for one in probes):
            continue
        said = []
        with torch.inference_mode():
            for index in _chunks(context, cut):
                x_ND = on_device(shared_ND[index], context.device)
                # Gives each head's logits bit for bit, which one wide product of all does not.
                x_HND = x_ND.expand(len(heads), *x_ND.shape)
                logits_HNC = torch.baddbmm(biases_H1C, x_HND, weights_HDC)
                said.append(torch.stack([verdict(index, logits) for logits in logits_HNC]))
        for one, said_N4 in zip(probes, torch.cat(said, dim=1), strict=True):
            if number in one.todo:
                one.put(number, predictions_table(said_N4, labelled, cut))


def _head(context: Context, cell: Cell, names: tuple[str, str]) -> list[torch.Tensor]:
    """Weight [C, D] and bias [C]; a pre-trained backbone gets the head that `network` gives it."""
    if cell.artifact.kind == "weights":
        head = models.head(context.network(cell))
        return [head.weight.detach(), head.bias.detach()]
    return [tensor.to(context.device) for tensor in cell.tensors(*names)]


def _from_images(
    context: Context, full: Sequence[Pending], parents: Mapping[str, Cell], labelled: LabelledSet
) -> None:
    """All other models: every batch is read and normalised once for those on the device."""
    of = {id(one.mix): one for one in full}
    cuts = full[0].cuts
    todo = [number for number in range(len(cuts)) if any(number in one.todo for one in full)]
    context.sets.source(labelled.name)  # takes its memory before shares of the rest are taken
    slice_bytes = max(map(len, cuts)) * 3 * math.prod(labelled.pack.shape)
    bank = Bank(context, [one.mix for one in full], parents, slice_bytes)
    forward, verdict = Forward(context), Verdict(labelled, context.device)
    kind = Form.of_evaluation(context.recipe, context.device).precision
    places = np.concatenate([cuts[number] for number in todo])
    for groups in bank.passes(len(todo), lambda: _seconds_to_read(context, labelled, places)):
        ones = [of[id(mix)] for group in groups for mix in group]
        wanted = [number for number in todo if any(number in one.todo for one in ones)]
        label = f"{len(ones)} models on {labelled.name}"
        pieces = _read(context, labelled, [cuts[number] for number in wanted], label)
        for number, batches in zip(wanted, pieces, strict=True):
            seen = batches if len(groups) == 1 else list(batches)
            for group in groups:
                if not any(number in of[id(mix)].todo for mix in group):
                    continue
                pairs = zip(group, bank.models(group), strict=True)
                some = [(of[id(mix)], model) for mix, model in pairs]
                some = [(one, model) for one, model in some if number in one.todo]
                said = _run(forward, [model for _, model in some], seen, kind, verdict)
                for (one, _), said_N4 in zip(some, said, strict=True):
                    one.put(number, predictions_table(said_N4, labelled, cuts[number]))


class Verdict:
    """Reduces logits [B, C] to what is kept of an image, float32 [B, 4], where the logits are.

    The columns: top-1, its probability, the true class's probability, and the margin, which is the
    true class's logit minus the largest other logit: positive where right.
    """

    def __init__(self, labelled: LabelledSet, device: torch.device) -> None:
        self._labels_N = labelled.labels.to(device)
        self._out_C = None if labelled.mask is None else ~labelled.mask.to(device)
        self._members_GM = None if labelled.members is None else labelled.members.to(device)

    def __call__(self, index: np.ndarray, logits_BC: torch.Tensor) -> torch.Tensor:
        """`index` (int64 [B]): places of the images in the set."""
        logits_BC = grouping.grouped(logits_BC, self._members_GM)
        if self._out_C is not None:
            logits_BC = logits_BC.masked_fill(self._out_C, -torch.inf)
        labels_B1 = self._labels_N[on_device(index, self._labels_N.device)].unsqueeze(1)
        p_BC = logits_BC.softmax(dim=1)
        top1_B1 = logits_BC.argmax(dim=1, keepdim=True)
        others_B1 = logits_BC.scatter(1, labels_B1, -torch.inf).amax(dim=1, keepdim=True)
        margin_B1 = logits_BC.gather(1, labels_B1) - others_B1
        columns = top1_B1, p_BC.gather(1, top1_B1), p_BC.gather(1, labels_B1), margin_B1
        return torch.cat([column.float() for column in columns], dim=1)


def predictions_table(
    said_N4: torch.Tensor, labelled: LabelledSet, positions: np.ndarray
) -> pa.Table:
    """The rows of a store from verdicts [N, 4] on the images at `positions` (int64 [N])."""
    top1_N, *numbers = said_N4.cpu().unbind(dim=1)
    columns = {
        "index": positions,
        "source": labelled.pack.sources[positions],
        "label": labelled.labels[positions].numpy(),
        "top1": top1_N.to(torch.int64).numpy(),
        **{
            name: column.contiguous().numpy()
            for name, column in zip(predictions.PROBABILITIES, numbers, strict=True)
        },
    }
    schema = predictions.SCHEMA
    if labelled.group is not None:
        columns["group"] = labelled.group[positions]
        schema = schema.append(predictions.GROUP)
    return pa.table(columns, schema=schema)


def stored_cell(context: Context, name: str) -> Cell:
    """A cell, or a backbone's weights, by name; FileNotFoundError where there is none."""
    cell = cells.find(context.store, name)
    if cell is None:
        raise FileNotFoundError(
            f"no cell {name} under {context.store.root}; the same command makes it when run again"
        )
    return cell


def _base_backbone(mix: Mix, context: Context) -> bool:
    """Whether the mix is one cell whose backbone is the base model's, untouched."""
    if len(mix) > 1 or not context.keeps_features:
        return False
    return stored_cell(context, next(iter(mix))).backbone == context.base.backbone


def _chunks(context: Context, positions: np.ndarray) -> list[np.ndarray]:
    size = context.recipe.evaluate.batch_size
    return [positions[i : i + size] for i in range(0, len(positions), size)]


def _read(
    context: Context, labelled: LabelledSet, pieces: Sequence[np.ndarray], label: str
) -> Generator[Iterator[Batch], None, None]:
    """This rank's batches of each piece; one reader runs ahead through all pieces.

    Its progress bar ends with it: batches are to be used while it is open.
    """
    mine = []
    for piece in pieces:
        chunks = _chunks(context, piece)
        numbers = np.array_split(np.arange(len(chunks)), ranks.world())[ranks.rank()]
        mine.append([chunks[number] for number in numbers])
    source = context.sets.source(labelled.name)
    asked = itertools.chain.from_iterable(mine)
    quiet = ranks.rank() > 0 or os.environ.get("RIB_PROGRESS") == "off"
    count = sum(map(len, mine))
    with tqdm(source.batches(asked), label, count, unit="batch", leave=False, disable=quiet) as bar:
        batches = iter(bar)
        for chunks in mine:
            yield itertools.islice(batches, len(chunks))


def _seconds_to_read(context: Context, labelled: LabelledSet, places: np.ndarray) -> float:
    """An estimate for the images at `places` (int64 [n]), the same on all ranks.

    Each rank reads a batch, where there are as many, and the slowest is waited for.
    """
    chunks = _chunks(context, places)
    first = np.concatenate(chunks[: ranks.world()])
    start = time.perf_counter()
    with closing(_read(context, labelled, [first], "try")) as pieces:
        for _ in next(pieces):
            pass
    slowest = -ranks.least(start - time.perf_counter())
    return slowest * math.ceil(len(chunks) / ranks.world())


def _run(
    forward: Forward,
    bank: Sequence[Model],
    batches: Iterable[Batch],
    kind: str,
    reduce: Callable[[np.ndarray, torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """`reduce(index, outputs)` [n, ...] of every model for the batches of all ranks, in order."""
    kept: list[list[torch.Tensor]] = [[] for _ in bank]
    with torch.inference_mode(), precision.autocast(kind, forward.device):
        for batch in batches:
            x_BCHW = forward.normalize(batch.images)
            for model, mine in zip(bank, kept, strict=True):
                mine.append(reduce(batch.index, forward(model, x_BCHW)))
    return [_gathered(mine, forward.device) for mine in kept]


def _gathered(kept: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    if ranks.world() == 1:
        return torch.cat(kept)
    mine = torch.cat(kept) if kept else torch.zeros(0, 0, device=device)
    sizes = torch.zeros(ranks.world(), 2, dtype=torch.int64, device=device)
    sizes[ranks.rank()] = torch.tensor(mine.shape)
    dist.all_reduce(sizes)
    rows, columns = int(sizes[:, 0].max()), int(sizes[:, 1].max())
    padded = mine.new_zeros(rows, columns)
    padded[: mine.shape[0], : mine.shape[1]] = mine
    parts = [torch.empty_like(padded) for _ in range(ranks.world())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes[:, 0].tolist(), strict=True)])
