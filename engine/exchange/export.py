"""Export the model of any row of a table, including weight averages, as a folder for timm.

A row's stored predictions name its cells and their weights in the average, so the exported model is
the one that was evaluated. Nothing is trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import models, recipe
from engine.campaigns.record import FinishedCampaign
from engine.data import descriptions
from engine.data.descriptions import DescribedModel, Description
from engine.evaluation import bank
from engine.exchange import write_clip, write_timm
from engine.machine.files import cache_folder
from engine.measures import dynamics
from engine.measures.rows import PRE, Evaluation
from engine.models import clip, zero_shot
from engine.recipe import yaml_text
from engine.recipe.resolve import NEEDS
from engine.recipe.schema import ModelRecipe, Recipe
from engine.store import cells
from engine.store.artifacts import Artifact, Store
from engine.store.cells import CELL, Average, Cell, Ensemble, canonical_mix

RECIPE = "recipe.yaml"  # of a cell


@dataclass(frozen=True)
class Written:
    """An exported model. classes: outputs of its head. how: instructions for loading it."""

    classes: int
    how: str


OPTIONS = {
    "method": "--method",
    "downstream": "--set",
    "setting": "--setting",
    "alpha": "--alpha",
    "seed": "--seed",
}  # options of `rib export`, by the column that each filters


def row_of_campaign(campaign: FinishedCampaign, row: Evaluation) -> DescribedModel:
    """The model of a row of a finished campaign's table.

    Raises ValueError if a cell is missing, and for an ensemble, which is several models.
    """
    name = campaign.record.name
    trained = "the pretrained model" if row.method == PRE else f"{row.arm} on {row.downstream}"
    title = f"{trained}, of {name}"
    remedy = f"run `{campaign.plan.shown_command}` again"
    if dynamics.step_of(row.arm) is not None:
        remedy = (
            "snapshots' weights are removed after evaluation; to keep them, run "
            f"`{campaign.plan.shown_command} train.keep_snapshots=true runs=FOLDER` in another "
            "folder"
        )
    average = campaign.mix(row)
    parents = _parents(Store(campaign.place.store), average, title, remedy)
    planned = campaign.plan.recipe
    described = description_of(parents.values(), planned)
    return _one_model(title, average, parents, described, planned.model)


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
    described = descriptions.read(folder / CELL)
    pretrained = None
    if described.model["arch"].startswith(clip.PREFIX):
        values = yaml_text.read(folder / RECIPE)
        pretrained = recipe.of_values({k: v for k, v in values.items() if k != NEEDS}).model
    return _one_model(title, average, parents, described, pretrained)


def _one_model(
    title: str,
    average: Average,
    parents: Mapping[str, Cell],
    description: Description,
    pretrained: ModelRecipe | None,
) -> DescribedModel:
    """The model of an average of weights. Raises ValueError for an ensemble, naming its members."""
    if isinstance(average, Ensemble):
        folders = (parents[name].artifact.folder for name in average)
        members = [str(f) if (f / CELL).is_file() else "CAMPAIGN --method pre" for f in folders]
        raise ValueError(
            f"{title} averages the outputs of {len(members)} models and is not a single model. "
            "Export its members, and average their outputs: "
            + "; ".join(f"`rib export {member} --out DIR`" for member in members)
        )
    if len(parents) == 1:
        (cell,) = parents.values()
        state, prompt = cell.state(), cell.prompt()
        return DescribedModel(title, average, description, state, prompt, pretrained)
    state = bank.mixed([average], parents, torch.device("cpu"))[0]
    return DescribedModel(title, average, description, state, pretrained=pretrained)


def choose(rows: Sequence[Evaluation], values: Mapping[str, object]) -> Evaluation:
    """The row with these values by column. None matches any value.

    Raises ValueError, naming the option, if no row or more than one row matches.
    """
    for column, option in OPTIONS.items():
        value = values[column]
        of_rows = [getattr(row, column) for row in rows]
        if column == "setting":
            of_rows = list(map(str, of_rows))
            value = "" if value is None and "" in of_rows else value  # the plain grid has no name
        check_choice(option, value, list(dict.fromkeys(of_rows)))
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


def description_of(parents: Iterable[Cell], resolved: Recipe) -> Description:
    """The cells' description of their model and classes, or the recipe's for pretrained weights."""
    for cell in parents:
        if (cell.artifact.folder / CELL).is_file():
            return descriptions.read(cell.artifact.checked(CELL))
    runs = Path(resolved.runs)
    return descriptions.of_recipe(runs, resolved, runs)


def write(row: DescribedModel, out: Path, classes: Sequence[str] = ()) -> Written:
    """Write a row's model as a folder for timm, or for open_clip if it is an open_clip model.

    classes: the head's class names, if they differ from those of the cells. Other files in an
    existing folder stay. Raises ValueError for names that do not match the head, and for an
    open_clip model without its text tower.
    """
    values = dict(row.description.model)
    model = ModelRecipe(name=values["arch"], crop=values.pop("crop_pct"), **values)
    names = list(classes or row.description.classes or ())
    if not names:
        raise ValueError(
            f"neither the cells of {row.title} nor the upstream pack name the head's classes; name "
            "them with --classes FILE, one line per class in the head's order"
        )
    outputs = len(row.state[models.head_names(model)[0]])
    if len(set(names)) != outputs:
        raise ValueError(
            f"{len(set(names))} class names for the {outputs} outputs of {row.title}; name each "
            "output with --classes FILE, one line per class in the head's order"
        )
    net = models.load_state(models.create(model, outputs), dict(row.state), row.title)
    made_of = {"row": row.title, "cells": dict(row.mix)}
    head = f"logits: linear(normalize(embedding), *{write_timm.HEAD})"
    if model.arch.startswith(clip.PREFIX):
        both = _both_towers(row, model)
        write_clip.to_open_clip(out, model, net, both, names, row.prompt, made_of)
        load = f"open_clip.create_model({f'local-dir:{out}'!r})"
        return Written(
            outputs, f"{load}, both towers; the text tower is the pretrained one; {head}"
        )
    load = f"timm.create_model({f'local-dir:{out}'!r}, pretrained=True)"
    if model.projection:
        write_clip.to_timm(out, model, net, names, row.prompt, made_of)
        return Written(outputs, f"{load}, the vision tower, gives the embedding; {head}")
    write_timm.write(out, model, net, names, row.prompt, made_of)
    return Written(outputs, load)


def _both_towers(row: DescribedModel, model: ModelRecipe) -> Mapping[str, torch.Tensor]:
    """open_clip's state dict of the pretrained weights, both towers."""
    if row.pretrained is None:
        raise ValueError(
            f"{row.title}: no file contains the text tower, which open_clip's state dict needs; "
            "name a checkpoint saved by open_clip, for example with --base"
        )
    weights = row.pretrained.weights
    weights = dataclasses.replace(weights, clip=model.arch.removeprefix(clip.PREFIX))
    pretrained = dataclasses.replace(row.pretrained, weights=weights)
    return zero_shot.open_model(pretrained, cache_folder()).state_dict()


def _parents(store: Store, average: Average, title: str, remedy: str) -> dict[str, Cell]:
    """The cells of an average, by name. Raises ValueError if a cell is missing."""
    parents = {}
    for name in average:
        cell = cells.find(store, name)
        if cell is None:
            raise ValueError(
                f"{store.root} has no finished cell {name}, which {title} needs; {remedy}"
            )
        parents[name] = cell
    return parents
