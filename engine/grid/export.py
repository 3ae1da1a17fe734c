"""A model of a grid as a folder that timm loads: any row of a table, mixes of cells included.

A row's stored predictions name the cells that it is made of, and the weight of each. So the model
is exported as it was evaluated, and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine import models
from engine.data import descriptions
from engine.data.descriptions import Description
from engine.evaluation import bank
from engine.grid.choice import check_choice
from engine.grid.record import FinishedCampaign
from engine.measures.rows import PRE, Evaluation
from engine.models import clip, export
from engine.recipe.schema import ModelRecipe, Recipe
from engine.store import cells
from engine.store.artifacts import Artifact, Store
from engine.store.cells import CELL, Cell, Mix, essential


@dataclass(frozen=True)
class Row:
    """A model: what it is made of, what is known of it, and its tensors on the CPU.

    mix: the weight of each cell, or of each file. prompt: the input prompt [3, H, W] of a
    visual-prompt cell, which is never mixed.
    """

    title: str
    mix: Mix
    description: Description
    state: Mapping[str, torch.Tensor]
    prompt: torch.Tensor | None = None


def row_of_campaign(campaign: FinishedCampaign, row: Evaluation) -> Row:
    """A row of a finished campaign's table. Raises ValueError where a cell is gone."""
    name = campaign.record.name
    trained = "the pre-trained model" if row.method == PRE else f"{row.arm} on {row.downstream}"
    title = f"{trained}, of {name}"
    remedy = f"run `{campaign.plan.command}` again"
    mix = campaign.mix(row)
    parents = _parents(Store(campaign.store), mix, title, remedy)
    return _mixed(title, mix, parents, description_of(parents.values(), campaign.plan.recipe))


def row_of_cell(folder: Path, alpha: float | None) -> Row:
    """The model that a cell's folder offers; of several, that of `alpha`.

    Raises ValueError for an alpha that it does not offer, or if it offers several and `alpha` is
    None.
    """
    cell = Cell(Artifact(folder))
    entries = {entry.alpha: entry for entry in cell.entries}
    check_choice("--alpha", alpha, list(entries))
    entry = entries[alpha] if alpha in entries else next(iter(entries.values()))
    title = folder.name if entry.alpha is None else f"{folder.name} at alpha {entry.alpha:g}"
    remedy = f"`python engine/launch.py recipe={folder / 'recipe.yaml'}` trains it"
    mix = essential(entry.mix)
    parents = _parents(Store(folder.parents[1]), mix, title, remedy)
    return _mixed(title, mix, parents, descriptions.read(folder / CELL))


def _mixed(title: str, mix: Mix, parents: Mapping[str, Cell], description: Description) -> Row:
    if len(parents) == 1:
        (cell,) = parents.values()
        return Row(title, mix, description, cell.state(), cell.prompt())
    return Row(title, mix, description, bank.mixed([mix], parents, torch.device("cpu"))[0])


def description_of(parents: Iterable[Cell], resolved: Recipe) -> Description:
    """What the cells say of their model and its classes; of bare weights, what the recipe says."""
    for cell in parents:
        if (cell.artifact.folder / CELL).is_file():
            return descriptions.read(cell.artifact.checked(CELL))
    runs = Path(resolved.runs)
    return descriptions.of_recipe(runs, resolved, runs)


def write(row: Row, out: Path, classes: Sequence[str] = ()) -> int:
    """Write a row as timm's `local-dir:` layout; returns the number of its classes.

    classes: the head's, in place of those that the cells name. Other files of an existing folder
    stay. Raises ValueError for a model that timm does not have, and for names that do not fit the
    head.
    """
    values = dict(row.description.model)
    model = ModelRecipe(name=values["arch"], crop=values.pop("crop_pct"), **values)
    if model.arch.startswith(clip.PREFIX) or model.projection:
        raise ValueError(f"{row.title} is a CLIP tower under its projection, which timm has not")
    names = list(classes or row.description.classes or ())
    if not names:
        raise ValueError(
            f"neither the cells of {row.title} nor the upstream pack name the head's classes; give "
            "them by --classes FILE, a line each in the head's order"
        )
    outputs = len(row.state[models.head_names_of(model)[0]])
    if len(set(names)) != outputs:
        raise ValueError(
            f"{len(set(names))} class names for the {outputs} outputs of {row.title}; give as many "
            "by --classes FILE, a line each in the head's order"
        )
    net = models.load_state(models.create(model, outputs), dict(row.state), row.title)
    made_of = {"row": row.title, "cells": dict(row.mix)}
    export.write(out, model, net, names, row.prompt, made_of)
    return outputs


def _parents(store: Store, mix: Mix, title: str, remedy: str) -> dict[str, Cell]:
    """The cells of a mix, by name. Raises ValueError where a cell is missing."""
    parents = {}
    for name in mix:
        cell = cells.find(store, name)
        if cell is None:
            raise ValueError(
                f"{store.root} has no finished cell {name}, which is a part of {title}; {remedy}"
            )
        parents[name] = cell
    return parents
