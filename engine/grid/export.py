"""A model of a grid as a folder that timm loads: any row of a table, mixes of cells included.

A row's stored predictions are named after the cells that it is made of and the weight of each: it
is exported as it was evaluated, and nothing is trained.
"""

from __future__ import annotations

import functools
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine import models, recipe
from engine.data import packs
from engine.evaluation import merge
from engine.grid import record
from engine.machine.files import room_for
from engine.measures.rows import PRE
from engine.models import clip
from engine.recipe.schema import ModelRecipe, Recipe
from engine.store import cells, tensors
from engine.store.artifacts import Artifact, Store
from engine.store.cells import Cell, Mix, essential
from engine.store.tensors import PROMPT
from loaders.pack import MANIFEST, Pack

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # as timm names them


@dataclass(frozen=True)
class Row:
    """A model of a grid: `mix` of cells in `store`, and how its recipe is resolved.

    again: what makes cells anew that are no longer there.
    """

    title: str
    mix: Mix
    store: Store
    recipe_name: str
    overrides: tuple[str, ...]
    again: str

    @functools.cached_property
    def parents(self) -> dict[str, Cell]:
        """The cells of the mix, by name. Raises ValueError for one that is not there."""
        parents = {}
        for name in self.mix:
            cell = cells.find(self.store, name)
            if cell is None:
                raise ValueError(
                    f"{self.store.root} has no finished cell {name}, of which {self.title} is "
                    f"made; {self.again}"
                )
            parents[name] = cell
        return parents

    @property
    def recipe(self) -> Recipe:
        return recipe.load(self.recipe_name, self.overrides)

    def model(self) -> ModelRecipe:
        """What its cells say of the model; of older cells the recipe's."""
        for cell in self.parents.values():
            if told := cell.meta.get("model"):
                crop = told["crop_pct"]
                rest = {key: value for key, value in told.items() if key != "crop_pct"}
                return ModelRecipe(name=told["arch"], crop=crop, **rest)
        return self.recipe.model

    def classes(self) -> Sequence[str]:
        """The head's classes as its cells say them; of older cells those of the upstream pack.

        Raises ValueError where neither is there.
        """
        for cell in self.parents.values():
            if told := cell.meta.get("classes"):
                return told
        dataset, runs = self.recipe.dataset, self.store.root.parent
        folder = packs.pack_folder(runs, dataset, self.recipe.model, dataset.upstream)
        if not (folder / MANIFEST).is_file():
            raise ValueError(
                f"neither the cells of {self.title} nor {folder} name the head's classes; give "
                "them by --classes FILE, a line each in the head's order"
            )
        return Pack.open(folder).classes

    def state(self) -> dict[str, torch.Tensor]:
        """Its state dict, on the CPU."""
        if len(self.parents) == 1:
            return next(iter(self.parents.values())).state()
        return merge.states([self.mix], self.parents, torch.device("cpu"))[0]

    def prompt(self) -> torch.Tensor | None:
        """The input prompt [3, H, W] where it is a visual-prompt cell, which nothing mixes."""
        return next(iter(self.parents.values())).prompt() if len(self.parents) == 1 else None


def row_of_campaign(
    name: str,
    overrides: Sequence[str],
    *,
    method: str | None,
    downstream: str | None,
    alpha: float | None,
    seed: int | None,
) -> Row:
    """A row of a finished campaign's table; what there is several of must be named.

    Raises ValueError, naming the option, for what is not there or not told; CampaignError where the
    campaign is not finished.
    """
    run = record.find(name, overrides)
    rows = run.record.evaluations
    asked = {"method": method, "downstream": downstream, "alpha": alpha, "seed": seed}
    options = {"method": "--method", "downstream": "--set", "alpha": "--alpha", "seed": "--seed"}
    for key, value in asked.items():
        valid = dict.fromkeys(getattr(row, key) for row in rows)
        _check_choice(options[key], value, list(valid))
        rows = [row for row in rows if value is None or getattr(row, key) == value]
    first = rows[0]
    trained = (
        "the pre-trained model" if first.method == PRE else f"{first.arm} on {first.downstream}"
    )
    command = " ".join(["rib campaign", name, *overrides])
    return Row(
        f"{trained}, of {name}",
        run.mix(first),
        Store(run.store),
        name,
        tuple(overrides),
        f"delete {run.place} and run `{command}` again",
    )


def row_of_cell(folder: Path, alpha: float | None) -> Row:
    """The model that a cell's folder offers; of several, that of `alpha`.

    Raises ValueError for an alpha that it does not offer, or for several where none is asked for.
    """
    cell = Cell(Artifact("cells", folder.name, folder, {}))
    entries = {entry.alpha: entry for entry in cell.entries}
    _check_choice("--alpha", alpha, list(entries))
    entry = entries[alpha] if alpha in entries else next(iter(entries.values()))
    saved = folder / "recipe.yaml"
    return Row(
        folder.name if entry.alpha is None else f"{folder.name} at alpha {entry.alpha:g}",
        essential(entry.mix),
        Store(folder.parents[1]),
        str(saved),
        (),
        f"`python engine/launch.py recipe={saved}` trains it",
    )


def write(row: Row, out: Path, classes: Sequence[str] = ()) -> int:
    """Write a row as timm's `local-dir:` layout; returns the number of its classes.

    classes: the head's, in place of those that the cells name. A folder that is there keeps its
    other files. Raises ValueError for a model that timm has not, or names that do not fit the head.
    """
    model = row.model()
    if model.arch.startswith(clip.PREFIX) or model.projection:
        raise ValueError(f"{row.title} is a CLIP tower under its projection, which timm has not")
    state = row.state()
    outputs = len(state[models.head_names_of(model)[0]])
    names = list(classes or row.classes())
    if len(set(names)) != outputs:
        raise ValueError(
            f"{len(set(names))} class names for the {outputs} outputs of {row.title}; give as many "
            "by --classes FILE, a line each in the head's order"
        )
    net = models.load_state(models.create(model, outputs), state, row.title)
    part = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    with room_for(out):
        part.mkdir(parents=True)
        try:
            tensors.save(net.state_dict(), part / WEIGHTS)
            (part / CONFIG).write_text(json.dumps(_config(row, model, net, names), indent=1))
            prompt = row.prompt()
            if prompt is not None:
                tensors.save({"prompt": prompt}, part / PROMPT)
            _into_place(part, out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return outputs


def _into_place(part: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    (out / PROMPT).unlink(missing_ok=True)  # of another model
    for file in part.iterdir():
        file.replace(out / file.name)


def _config(
    row: Row, model: ModelRecipe, net: torch.nn.Module, classes: Sequence[str]
) -> dict[str, Any]:
    """What timm reads: how the net is built, and how images are made ready for it."""
    known: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]  # of every timm model
    images = models.data_config(model)
    return {
        "architecture": model.arch,
        "num_classes": len(classes),
        "num_features": net.num_features,
        "label_names": list(classes),
        "model_args": models.size_options(model),
        "pretrained_cfg": {
            **{key: known.get(key) for key in ("fixed_input_size", "first_conv", "classifier")},
            "num_classes": len(classes),
            "input_size": [3, model.image_size, model.image_size],
            **{key: images[key] for key in ("interpolation", "crop_pct", "crop_mode")},
            "mean": list(images["mean"]),
            "std": list(images["std"]),
        },
        "made_of": {"row": row.title, "cells": dict(row.mix)},
    }


def _check_choice(option: str, value: object, valid: Sequence[object]) -> None:
    """ValueError unless the value is one of the valid ones, or None where there is only one."""
    if value in valid or (value is None and len(valid) == 1):
        return
    if valid in ([None], [""]):
        raise ValueError(f"{option} {value}: this row has none; leave the option out")
    shown = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in valid)
    if value is None:
        raise ValueError(f"there is more than one such row: add {option}, one of {shown}")
    raise ValueError(f"there is no row of {option} {value}, only of {shown}")
