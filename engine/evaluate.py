"""Bank evaluation: one pass over a set for all models that must see it; every prediction is kept.

A batch is read and normalised once. Models that share a frozen backbone share its features. What a
model said of a set is an artefact, so nothing is evaluated twice, and metrics read only that.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from tqdm import tqdm

from engine import merge, models, precision, predictions, ranks
from engine.artifacts import Artifact
from engine.cells import Cell
from engine.merge import Mix, essential
from engine.sets import LabelledSet

if TYPE_CHECKING:
    from engine.context import Context

PART = "part-00000.parquet"
Model = Callable[[torch.Tensor], torch.Tensor]


def evaluate(context: Context, mixes: Sequence[Mix], names: Iterable[str], split: str) -> None:
    """Make the predictions of every mix on every named set that are not there yet."""
    for name in names:
        labelled = context.sets[name]
        missing: list[dict[str, float]] = []
        for mix in map(essential, mixes):
            absent = context.store.find("predictions", *_key(context, mix, labelled, split)) is None
            if not ranks.all_agree(not absent) and mix not in missing:
                missing.append(mix)
        if missing:
            _pass(context, missing, labelled, split)


def predicted(context: Context, mix: Mix, name: str, split: str) -> Path:
    """Parquet file of a mix's predictions on a set; FileNotFoundError if it was not evaluated."""
    label, key = _key(context, essential(mix), context.sets[name], split)
    found = context.store.find("predictions", label, key)
    if found is None:
        raise FileNotFoundError(f"{label} was not evaluated; run the campaign again")
    return found.file(PART)


def holdout_accuracy(context: Context, mix: Mix) -> float:
    """Top-1 in percent of a mix on the downstream hold-out."""
    name = context.recipe.downstream
    evaluate(context, [mix], [name], "holdout")
    table = pq.read_table(predicted(context, mix, name, "holdout"), columns=["label", "top1"])
    return 100 * float(np.mean(table["label"].to_numpy() == table["top1"].to_numpy()))


def features(context: Context, cell: Cell, labelled: LabelledSet, kind: str) -> torch.Tensor:
    """Pre-logits [N, D] (float32) of a cell's backbone for a whole set, in the pack's order.

    kind: precision of the forward pass, `fp32` or `bf16`.
    """
    net = context.network(cell)
    bank = [lambda x: models.features(net, x).float()]
    return _run(context, bank, labelled, labelled.split("all"), kind)[0]


def _key(
    context: Context, mix: Mix, labelled: LabelledSet, split: str
) -> tuple[str, dict[str, Any]]:
    recipe = context.recipe
    split = split if len(labelled.holdout) else "all"
    key = {
        "mix": dict(mix),
        "pack": labelled.pack.fingerprint,
        "split": [split, recipe.dataset.holdout, recipe.dataset.seed] if split != "all" else "all",
        "precision": precision.resolve(recipe.evaluate.precision, context.device),
        "batch_size": recipe.evaluate.batch_size,
    }
    return f"{'+'.join(n.rsplit('-', 1)[0] for n in mix)}-on-{labelled.name}"[:120], key


def _pass(
    context: Context, mixes: Sequence[dict[str, float]], labelled: LabelledSet, split: str
) -> None:
    positions = labelled.split(split)
    parents = {name: _cell(context, name) for mix in mixes for name in mix}
    from_features = [mix for mix in mixes if _base_backbone(mix, parents, context)]
    full = [mix for mix in mixes if mix not in from_features]
    logits: list[tuple[dict[str, float], torch.Tensor]] = []
    if from_features:
        shared_ND = context.features(context.base, labelled)[positions]
        for mix in from_features:
            head = models.head(context.network(parents[next(iter(mix))]))
            with torch.inference_mode():
                logits.append((mix, head(shared_ND)))
    if full:
        networks = _networks(context, full, parents)
        kind = context.recipe.evaluate.precision
        outputs = _run(context, networks, labelled, positions, kind)
        logits += list(zip(full, outputs, strict=True))
    for mix, logits_NC in logits:
        table = predictions_table(logits_NC, labelled, positions)
        make = functools.partial(
            context.store.make,
            "predictions",
            *_key(context, mix, labelled, split),
            lambda folder, table=table: pq.write_table(table, folder / PART),
        )
        ranks.first(make)


def predictions_table(
    logits_NC: torch.Tensor, labelled: LabelledSet, positions: np.ndarray
) -> pa.Table:
    """What a model said of each image: top-1, its and the true class's probability, the margin.

    The margin is the true class's logit minus the largest other logit: positive where right.
    """
    logits_NC = logits_NC.float().cpu()
    if labelled.mask is not None:
        logits_NC = logits_NC.masked_fill(~labelled.mask, -torch.inf)
    labels_N1 = labelled.labels[positions].unsqueeze(1)
    probabilities_NC = logits_NC.softmax(dim=1)
    top1_N1 = logits_NC.argmax(dim=1, keepdim=True)
    true_N1 = logits_NC.gather(1, labels_N1)
    others_N = logits_NC.scatter(1, labels_N1, -torch.inf).amax(dim=1)
    columns = {
        "index": positions,
        "source": labelled.pack.sources[positions],
        "label": labels_N1.squeeze(1).numpy(),
        "top1": top1_N1.squeeze(1).numpy(),
        "p_top1": probabilities_NC.gather(1, top1_N1).squeeze(1).numpy(),
        "p_true": probabilities_NC.gather(1, labels_N1).squeeze(1).numpy(),
        "margin": (true_N1.squeeze(1) - others_N).numpy(),
    }
    return pa.table(columns, schema=predictions.SCHEMA)


def _cell(context: Context, name: str) -> Cell:
    for kind in ("cells", "weights"):
        folder = context.store.root / kind / name
        if folder.is_dir():
            return Cell(Artifact(kind, name, folder, {}))
    raise FileNotFoundError(f"no cell {name} under {context.store.root}; run the campaign again")


def _base_backbone(mix: Mix, parents: dict[str, Cell], context: Context) -> bool:
    """Whether the mix is one cell whose backbone is the base model's, untouched."""
    if len(mix) > 1:
        return False
    return parents[next(iter(mix))].backbone == context.base.backbone


def _networks(
    context: Context, mixes: Sequence[dict[str, float]], parents: dict[str, Cell]
) -> list[Model]:
    single = {next(iter(mix)): parents[next(iter(mix))] for mix in mixes if len(mix) == 1}
    skeleton = models.create(context.recipe.model, len(context.sets.classes)).eval()
    by_members: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for mix in mixes:
        if len(mix) > 1:
            by_members.setdefault(tuple(mix), []).append(mix)
    made: dict[int, Model] = {}
    for group in by_members.values():
        for mix, state in zip(group, merge.states(group, parents, context.device), strict=True):
            net = copy.deepcopy(skeleton)
            net.load_state_dict(state, assign=True)
            made[id(mix)] = net.to(context.device)
    networks: list[Model] = []
    for mix in mixes:
        if len(mix) > 1:
            networks.append(made[id(mix)])
            continue
        cell = single[next(iter(mix))]
        networks.append(_prompted(context.network(cell), cell.prompt(), context.device))
    return networks


def _prompted(net: torch.nn.Module, prompt: torch.Tensor | None, device: torch.device) -> Model:
    if prompt is None:
        return net
    prompt_CHW = prompt.to(device)
    return lambda x: net(x + prompt_CHW)


def _run(
    context: Context,
    bank: Sequence[Model],
    labelled: LabelledSet,
    positions: np.ndarray,
    kind: str,
) -> list[torch.Tensor]:
    """Outputs [n, ...] of every model for the images at `positions`, over all ranks, in order."""
    size = context.recipe.evaluate.batch_size
    chunks = [positions[i : i + size] for i in range(0, len(positions), size)]
    mine = np.array_split(np.arange(len(chunks)), ranks.world())[ranks.rank()]
    normalize = models.Normalize(context.recipe.model, context.device)
    source = context.sets.source(labelled.name)
    outputs: list[list[torch.Tensor]] = [[] for _ in bank]
    label = f"{len(bank)} models on {labelled.name}"
    quiet = ranks.rank() > 0 or os.environ.get("RIB_PROGRESS") == "off"
    amp = precision.autocast(kind, context.device)
    bar = tqdm(total=len(mine), desc=label, unit="batch", leave=False, disable=quiet)
    with bar, torch.inference_mode(), amp:
        for batch in source.batches(chunks[i] for i in mine):
            x = normalize(batch.images)
            for model, kept in zip(bank, outputs, strict=True):
                kept.append(model(x).float())
            bar.update()
    return [_gathered(kept, context.device) for kept in outputs]


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
