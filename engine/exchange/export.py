"""Find the model of any row of a table, and write it as a folder for timm or open_clip.

A row's stored predictions name its cells and their weights in the average, so the exported model is
the one that was evaluated. Nothing is trained.

timm loads `timm.create_model("local-dir:FOLDER", pretrained=True)`, and open_clip
`open_clip.create_model("local-dir:FOLDER")`. Of a CLIP model, logits are
`linear(normalize(embedding), head.weight, head.bias)` with the tensors of `head.safetensors`:
open_clip's folder has both towers, of which fine-tuning changed only the vision tower, and timm's
has the vision tower, which returns the embedding.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine import models
from engine.campaigns.record import FinishedCampaign
from engine.data.packs import pack_folder
from engine.evaluation import bank
from engine.machine.files import cache_folder, room_for
from engine.measures.rows import PRE, Evaluation
from engine.model_files.architectures import open_clip_name
from engine.model_files.descriptions import (
    CELL,
    CROP_MODES,
    HEAD,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    RECIPE,
    TIMM_CONFIG,
    TIMM_WEIGHTS,
    read_description,
)
from engine.model_files.weights import VISUAL
from engine.models import clip
from engine.models.sources import open_clip
from engine.recipe import image_transform, yaml_text
from engine.recipe.schema import ModelRecipe, Recipe
from engine.store import cells, tensors
from engine.store.artifacts import Artifact, Store
from engine.store.cells import Average, Cell, Ensemble, Mix, canonical_mix
from engine.store.tensors import PROMPT
from loaders.files import typed_json
from loaders.files.new_folder import new_folder
from loaders.files.root import Root
from loaders.pack import MANIFEST, Pack

COLUMNS = ("method", "downstream", "setting", "alpha", "seed")  # with options of `rib export`
OF_MODELS = (TIMM_WEIGHTS, TIMM_CONFIG, OPEN_CLIP_WEIGHTS, OPEN_CLIP_CONFIG, HEAD, PROMPT)
LOGITS = f"logits: linear(normalize(embedding), *{HEAD})"
State = Mapping[str, torch.Tensor]
# The name and content of a folder's config, state dicts by file, and how to load the folder, `{}`.
Files = tuple[str, Mapping[str, Any], Mapping[str, State], str]


@dataclass(frozen=True)
class DescribedModel:
    """A model to write.

    mix: the weight of each cell or file. model: architecture and transform, and for open_clip's
    models the weights that contain the text tower. classes: the head's, in order, or empty if
    unknown. state: the tensors, on the CPU. prompt: the input prompt [3, H, W] of a visual-prompt
    cell, which is never mixed.
    """

    title: str
    mix: Mix
    model: ModelRecipe
    classes: Sequence[str]
    state: State
    prompt: torch.Tensor | None = None


def row_of_campaign(campaign: FinishedCampaign, row: Evaluation) -> DescribedModel:
    """The model of a row of a finished campaign's table.

    Raises ValueError if a cell is missing, and for an ensemble, which is several models.
    """
    name = campaign.record.name
    trained = "the pretrained model" if row.method == PRE else f"{row.arm} on {row.downstream}"
    title = f"{trained}, of {name}"
    remedy = f"run `{campaign.plan.shown_command}` again"
    if row.arm.step is not None:
        remedy = (
            "snapshots' weights are removed after evaluation; to keep them, run "
            f"`{campaign.plan.shown_command} train.keep_snapshots=true runs=FOLDER` in another "
            "folder"
        )
    average = campaign.mix(row)
    parents = _parents(Store(campaign.place.store), average, title, remedy)
    planned = campaign.plan.recipe
    model, classes = model_of(parents.values(), planned)
    model = replace(model, weights=planned.model.weights)
    return _one_model(title, average, parents, model, classes)


def row_of_cell(folder: Path, alpha: float | None) -> DescribedModel:
    """The model in a cell's folder, or the one at `alpha` if the folder has several.

    Raises ValueError for an unknown alpha, for several models without an alpha, and for an
    ensemble, which is several models.
    """
    cell = Cell(Artifact(folder))
    entries = {entry.alpha: entry for entry in cell.entries}
    check_choice("--alpha", alpha, list(entries))
    entry = entries[alpha] if alpha in entries else next(iter(entries.values()))
    title = folder.name if entry.alpha is None else f"{folder.name} at alpha {entry.alpha:g}"
    remedy = f"`python engine/launch.py recipe={folder / 'recipe.yaml'}` trains it"
    average = canonical_mix(entry.mix)
    parents = _parents(Store(folder.parents[1]), average, title, remedy)
    described = read_description(folder / CELL)
    model = image_transform.described_model(described.model)
    if open_clip_name(model.arch):
        file = folder / RECIPE
        trained = typed_json.convert(
            yaml_text.read_yaml(file), Recipe, file, "train the cell again"
        )
        model = replace(model, weights=trained.model.weights)
    return _one_model(title, average, parents, model, described.classes or ())


def _one_model(
    title: str,
    average: Average,
    parents: Mapping[str, Cell],
    model: ModelRecipe,
    classes: Sequence[str],
) -> DescribedModel:
    """The model of an average of weights."""
    if isinstance(average, Ensemble):
        folders = (parents[name].artifact.folder for name in average)
        members = [
            str(f) if (f / CELL).is_file() else "CAMPAIGN --method pretrained" for f in folders
        ]
        raise ValueError(
            f"{title} averages the outputs of {len(members)} models and is not a single model. "
            "Export its members, and average their outputs: "
            + "; ".join(f"`rib export {member} --out DIR`" for member in members)
        )
    if len(parents) == 1:
        (cell,) = parents.values()
        state, prompt = cell.state(), cell.prompt()
        return DescribedModel(title, average, model, classes, state, prompt)
    state = bank.mixed([average], parents, torch.device("cpu"))[0]
    return DescribedModel(title, average, model, classes, state)


def choose(rows: Sequence[Evaluation], values: Mapping[str, object]) -> Evaluation:
    """The row with these values by column. None matches any value.

    Raises ValueError, naming the option, if no row or more than one row matches.
    """
    for column in COLUMNS:
        value = values[column]
        of_rows = [getattr(row, column) for row in rows]
        if column == "setting":
            of_rows = list(map(str, of_rows))
            value = "" if value is None and "" in of_rows else value  # the plain grid has no name
        check_choice(f"--{column}", value, list(dict.fromkeys(of_rows)))
        rows = [r for r, of in zip(rows, of_rows, strict=True) if value is None or of == value]
    return rows[0]


def check_choice(option: str, value: object, valid: Sequence[object]) -> None:
    """Raise ValueError unless `value` is in `valid`, or None and `valid` has a single entry."""
    if value in valid or (value is None and len(valid) == 1):
        return
    if valid in ([None], [""]):
        raise ValueError(f"{option} {value}: this row has none; leave the option out")
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in valid)
    if value is None:
        raise ValueError(f"there is more than one such row: add {option}, one of {shown}")
    raise ValueError(f"no row has {option} {value}: choose {shown}")


def model_of(parents: Iterable[Cell], resolved: Recipe) -> tuple[ModelRecipe, tuple[str, ...]]:
    """The cells' model without weights, and its head's classes, as a cell describes them.

    For pretrained weights, the recipe's model, and the classes of the pack that names the head's,
    if it exists.
    """
    for cell in parents:
        if (cell.artifact.folder / CELL).is_file():
            described = read_description(cell.artifact.checked(CELL))
            return image_transform.described_model(described.model), described.classes or ()
    pack = pack_folder(resolved, resolved.dataset.head_classes)
    classes = Pack.open(pack).classes if (pack / MANIFEST).is_file() else ()
    return image_transform.described_model(image_transform.description(resolved.model)), classes


def _parents(store: Store, average: Average, title: str, remedy: str) -> dict[str, Cell]:
    """The cells of an average, by name."""
    parents = {}
    for name in average:
        cell = cells.find(store, name)
        if cell is None:
            raise ValueError(
                f"{store.root} has no finished cell {name}, which {title} needs; {remedy}"
            )
        parents[name] = cell
    return parents


def write_model(row: DescribedModel, out: Path) -> str:
    """Write a model's folder, and return how to load it. Other files in an existing folder stay.

    Raises ValueError for class names that do not match the head, and for an open_clip model without
    its text tower; OSError, naming the folder, if the disk is full.
    """
    remedy = "with --classes FILE, one line per class in the head's order"
    if not row.classes:
        raise ValueError(
            f"neither the cells of {row.title} nor the upstream pack name the head's classes; name "
            f"them {remedy}"
        )
    outputs = len(row.state[models.head_names(row.model)[0]])
    if len(set(row.classes)) != outputs:
        raise ValueError(
            f"{len(set(row.classes))} class names for the {outputs} outputs of {row.title}; name "
            f"each output {remedy}"
        )
    net = models.load_state(models.create(row.model, outputs), row.state, row.title)
    of_model = _of_open_clip if open_clip_name(row.model.arch) else _of_timm
    of_model = _of_timm_clip if row.model.projection else of_model
    config_file, config, states, how = of_model(row, net)
    config = {**config, "made_of": {"row": row.title, "cells": dict(row.mix)}}
    with _written(out, last=config_file) as folder:
        for name, state in states.items():
            tensors.save(state, folder / name)
        if row.prompt is not None:
            tensors.save({"prompt": row.prompt}, folder / PROMPT)
        (folder / config_file).write_text(json.dumps(config, indent=1), "utf-8")
    return how.format(repr(f"local-dir:{out}"))


def _of_timm(row: DescribedModel, net: nn.Module) -> Files:
    config = {**_timm_config(row.model, net, len(row.classes)), "label_names": list(row.classes)}
    how = "timm.create_model({}, pretrained=True)"
    return TIMM_CONFIG, config, {TIMM_WEIGHTS: net.state_dict()}, how


def _of_timm_clip(row: DescribedModel, net: nn.Module) -> Files:
    """A timm ViT with `model.projection`, which is timm's last layer."""
    width = row.model.projection
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("head.")}
    state["head.weight"] = state.pop("fc_norm.linear.weight")
    state["head.bias"] = torch.zeros(width)  # timm's layer has one
    config = {**_timm_config(row.model, net, width), "head": _head(row.classes)}
    states = {TIMM_WEIGHTS: state, HEAD: models.head(net).state_dict()}
    how = "timm.create_model({}, pretrained=True), the vision tower, gives the embedding; "
    return TIMM_CONFIG, config, states, how + LOGITS


def _of_open_clip(row: DescribedModel, net: nn.Module) -> Files:
    """open_clip's model with the vision tower of `net` and the pretrained text tower."""
    name, weights = open_clip_name(row.model.arch), row.model.weights
    if weights.source != "open_clip" and not weights.path:
        raise ValueError(
            f"{row.title}: no file contains the text tower, which open_clip's state dict needs; "
            "name a checkpoint saved by open_clip, for example with --base"
        )
    model = replace(row.model, weights=replace(weights, clip=name))
    both = open_clip.open_model(model, cache_folder()).state_dict()
    tower = {k: v for k, v in net.state_dict().items() if k.startswith(VISUAL)}
    images = image_transform.data_config(row.model)
    resize = {timms: ours for ours, timms in CROP_MODES.items()}[images["crop_mode"]]
    config = {
        "model_cfg": clip.config(name),
        "preprocess_cfg": {
            "size": row.model.image_size,
            "mean": list(images["mean"]),
            "std": list(images["std"]),
            "interpolation": images["interpolation"],
            "resize_mode": resize,
        },
        "head": _head(row.classes),
    }
    states = {OPEN_CLIP_WEIGHTS: {**both, **tower}, HEAD: models.head(net).state_dict()}
    how = "open_clip.create_model({}), both towers; the text tower is the pretrained one; "
    return OPEN_CLIP_CONFIG, config, states, how + LOGITS


def _head(classes: Sequence[str]) -> dict[str, Any]:
    return {"file": HEAD, "label_names": list(classes)}


def _timm_config(model: ModelRecipe, net: nn.Module, outputs: int) -> dict[str, Any]:
    """timm's config: how to build the net and preprocess images."""
    known: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]  # of every timm model
    images = image_transform.data_config(model)
    return {
        "architecture": model.arch,
        "num_classes": outputs,
        "num_features": net.num_features,
        "model_args": models.size_options(model),
        "pretrained_cfg": {
            **{key: known.get(key) for key in ("fixed_input_size", "first_conv", "classifier")},
            "num_classes": outputs,
            "input_size": [3, model.image_size, model.image_size],
            **{key: images[key] for key in ("interpolation", "crop_pct", "crop_mode")},
            "mean": list(images["mean"]),
            "std": list(images["std"]),
        },
    }


@contextlib.contextmanager
def _written(out: Path, *, last: str) -> Iterator[Path]:
    """A temporary folder whose files replace those of `out` when all are written.

    last: the file without which the folder does not load; it is removed first and written last.
    """
    out = out.resolve()  # resolves links, because files cannot be renamed to another disk
    beside = Root(out.parent)
    with room_for(out), new_folder(out) as new:
        yield new
        beside.make(out)
        # Files of a previous model would be loaded instead. The file that is written last is
        # removed first.
        for name in (last, *OF_MODELS):
            beside.remove(out / name)
        for name in sorted(beside.names(new), key=last.__eq__):
            beside.rename(new / name, out / name)
