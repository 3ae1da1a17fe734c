"""Find the model of any row of a table, including weight averages, to export it.

A row's stored predictions name its cells and their weights in the average, so the exported model is
the one that was evaluated. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from engine.campaigns.record import FinishedCampaign
from engine.data.packs import pack_folder
from engine.evaluation import bank
from engine.exchange.write import DescribedModel
from engine.measures import dynamics
from engine.measures.rows import PRE, Evaluation
from engine.model_files.architectures import open_clip_name
from engine.model_files.descriptions import CELL, RECIPE, read_description
from engine.recipe import preprocessing, yaml_text
from engine.recipe.schema import ModelRecipe, Recipe
from engine.store import cells
from engine.store.artifacts import Artifact, Store
from engine.store.cells import Average, Cell, Ensemble, canonical_mix
from loaders.files import typed_json
from loaders.pack import MANIFEST, Pack

COLUMNS = ("method", "downstream", "setting", "alpha", "seed")  # with options of `rib export`


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
    model = preprocessing.described_model(described.model)
    if open_clip_name(model.arch):
        file = folder / RECIPE
        trained = typed_json.convert(yaml_text.read(file), Recipe, file, "train the cell again")
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
        members = [str(f) if (f / CELL).is_file() else "CAMPAIGN --method pre" for f in folders]
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

    For pretrained weights, the recipe's model, and the classes of the upstream pack if it exists.
    """
    for cell in parents:
        if (cell.artifact.folder / CELL).is_file():
            described = read_description(cell.artifact.checked(CELL))
            return preprocessing.described_model(described.model), described.classes or ()
    pack = pack_folder(resolved, resolved.dataset.upstream)
    classes = Pack.open(pack).classes if (pack / MANIFEST).is_file() else ()
    return preprocessing.described_model(preprocessing.description(resolved.model)), classes


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
