"""A model of a grid as a folder that timm loads: any row of a table, mixes of cells included.

A row's stored predictions name the cells that it is made of, and the weight of each. So the model
is exported as it was evaluated, and nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from engine import models
from engine.data import descriptions
from engine.data.descriptions import DescribedModel, Description
from engine.evaluation import bank
from engine.grid.record import FinishedCampaign
from engine.measures import dynamics
from engine.measures.rows import PRE, Evaluation
from engine.models import clip, export
from engine.recipe.schema import ModelRecipe, Recipe
from engine.store import cells
from engine.store.artifacts import Artifact, Store
from engine.store.cells import CELL, Average, Cell, Ensemble, essential

OPTIONS = {
    "method": "--method",
    "downstream": "--set",
    "setting": "--setting",
    "alpha": "--alpha",
    "seed": "--seed",
}  # of `rib export`, by the column that each chooses in


def row_of_campaign(campaign: FinishedCampaign, row: Evaluation) -> DescribedModel:
    """A row of a finished campaign's table.

    Raises ValueError where a cell is gone, and for an ensemble, which is several models.
    """
    name = campaign.record.name
    trained = "the pre-trained model" if row.method == PRE else f"{row.arm} on {row.downstream}"
    title = f"{trained}, of {name}"
    remedy = f"run `{campaign.plan.command}` again"
    if dynamics.step_of(row.arm) is not None:
        remedy = (
            "weights during training are removed once they are evaluated; a run in another folder, "
            f"`{campaign.plan.command} train.keep_snapshots=true runs=FOLDER`, keeps them"
        )
    average = campaign.mix(row)
    parents = _parents(Store(campaign.store), average, title, remedy)
    return _one_model(
        title, average, parents, description_of(parents.values(), campaign.plan.recipe)
    )


def row_of_cell(folder: Path, alpha: float | None) -> DescribedModel:
    """The model that a cell's folder offers; of several, that of `alpha`.

    Raises ValueError for an alpha that it does not offer, or if it offers several and `alpha` is
    None, and for an ensemble, which is several models.
    """
    cell = Cell(Artifact(folder))
    entries = {entry.alpha: entry for entry in cell.entries}
    check_choice("--alpha", alpha, list(entries))
    entry = entries[alpha] if alpha in entries else next(iter(entries.values()))
    title = folder.name if entry.alpha is None else f"{folder.name} at alpha {entry.alpha:g}"
    remedy = f"`python engine/launch.py recipe={folder / 'recipe.yaml'}` trains it"
    average = essential(entry.mix)
    parents = _parents(Store(folder.parents[1]), average, title, remedy)
    return _one_model(title, average, parents, descriptions.read(folder / CELL))


def _one_model(
    title: str, average: Average, parents: Mapping[str, Cell], description: Description
) -> DescribedModel:
    """The row of an average of weights. Raises ValueError for an ensemble, naming its members."""
    if isinstance(average, Ensemble):
        folders = (parents[name].artifact.folder for name in average)
        members = [str(f) if (f / CELL).is_file() else "CAMPAIGN --method pre" for f in folders]
        raise ValueError(
            f"{title} is the mean of the logits of {len(members)} models, which no single model "
            "has. Export its members, and average their logits: "
            + "; ".join(f"`rib export {member} --out DIR`" for member in members)
        )
    if len(parents) == 1:
        (cell,) = parents.values()
        return DescribedModel(title, average, description, cell.state(), cell.prompt())
    state = bank.mixed([average], parents, torch.device("cpu"))[0]
    return DescribedModel(title, average, description, state)


def choose(rows: Sequence[Evaluation], values: Mapping[str, object]) -> Evaluation:
    """The row that these values choose, by column; None where the user chose nothing.

    Raises ValueError, naming the option, where there is no such row or more than one.
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
    """Raise ValueError unless `value` is valid, or None where there is no choice."""
    if value in valid or (value is None and len(valid) == 1):
        return
    if valid in ([None], [""]):
        raise ValueError(f"{option} {value}: this row has none; leave the option out")
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in valid)
    if value is None:
        raise ValueError(f"there is more than one such row: add {option}, one of {shown}")
    raise ValueError(f"there is no row of {option} {value}, only of {shown}")


def description_of(parents: Iterable[Cell], resolved: Recipe) -> Description:
    """What the cells say of their model and its classes; of bare weights, what the recipe says."""
    for cell in parents:
        if (cell.artifact.folder / CELL).is_file():
            return descriptions.read(cell.artifact.checked(CELL))
    runs = Path(resolved.runs)
    return descriptions.of_recipe(runs, resolved, runs)


def write(row: DescribedModel, out: Path, classes: Sequence[str] = ()) -> int:
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
    outputs = len(row.state[models.head_names(model)[0]])
    if len(set(names)) != outputs:
        raise ValueError(
            f"{len(set(names))} class names for the {outputs} outputs of {row.title}; give as many "
            "by --classes FILE, a line each in the head's order"
        )
    net = models.load_state(models.create(model, outputs), dict(row.state), row.title)
    made_of = {"row": row.title, "cells": dict(row.mix)}
    export.write(out, model, net, names, row.prompt, made_of)
    return outputs


def _parents(store: Store, average: Average, title: str, remedy: str) -> dict[str, Cell]:
    """The cells of an average, by name. Raises ValueError where a cell is missing."""
    parents = {}
    for name in average:
        cell = cells.find(store, name)
        if cell is None:
            raise ValueError(
                f"{store.root} has no finished cell {name}, which is a part of {title}; {remedy}"
            )
        parents[name] = cell
    return parents
