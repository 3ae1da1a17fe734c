"""Read the JSON file next to a checkpoint: a cell's `cell.json`, or timm's `config.json`.

With the wrong order of classes, mean, std or crop, accuracies would be wrong, so none of these is
ever guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from engine import models
from engine.data import imagenet
from engine.data.packs import pack_folder
from engine.model_files import timm_folder
from engine.recipe.schema import ModelRecipe, Recipe
from engine.store.cells import CELL, Mix
from engine.store.tensors import PROMPT, WEIGHTS
from loaders.files.durable import read_json, read_small
from loaders.pack import MANIFEST, Pack

CHECKPOINTS = (WEIGHTS, *timm_folder.WEIGHTS)  # in folders of a cell or timm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """The description of a model in the file `source`.

    model: values of `models.description`, possibly incomplete. classes: the head's, in order, or
    None if the file does not name them. options: further arguments of timm's factory.
    """

    source: Path
    model: Mapping[str, Any]
    classes: tuple[str, ...] | None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DescribedModel:
    """A model: its parts, its description, and its tensors on the CPU.

    mix: the weight of each cell or file. prompt: the input prompt [3, H, W] of a visual-prompt
    cell, which is never mixed. pretrained: for open_clip's models, the model whose weights contain
    the text tower.
    """

    title: str
    mix: Mix
    description: Description
    state: Mapping[str, torch.Tensor]
    prompt: torch.Tensor | None = None
    pretrained: ModelRecipe | None = None


def file_of(place: Path) -> Path:
    """The checkpoint at a path: a file, or the weights in a timm folder or a cell.

    Raises ValueError for a folder without weights, such as that of a mix.
    """
    if not place.is_dir():
        return place
    for name in CHECKPOINTS:
        if (place / name).is_file():
            return place / name
    if (place / CELL).is_file():
        raise ValueError(
            f"{place} is a mix of cells without weights of its own: `rib evaluate --campaign NAME` "
            "evaluates all rows of its campaign"
        )
    raise ValueError(
        f"{place} contains no checkpoint ({', '.join(CHECKPOINTS)}): give the path of the file"
    )


def prompt_of(checkpoint: Path) -> Path | None:
    """The file with the input prompt of a visual-prompt cell, or None."""
    prompt = checkpoint.with_name(PROMPT)
    return prompt if checkpoint.name in CHECKPOINTS and prompt.is_file() else None


def listed(file: Path) -> tuple[str, ...]:
    """Class names in the head's order, from the lines of a text file or the JSON file of a model.

    Raises ValueError, naming the file, if it contains no class names.
    """
    if file.suffix == ".json":
        classes = read(file).classes
    else:
        try:
            lines = [line.strip() for line in read_small(file).decode("utf-8-sig").splitlines()]
        except ValueError as error:
            raise ValueError(f"{file} is not a list of class names: {error}") from error
        classes = tuple(line for line in lines if line)
    if not classes:
        raise ValueError(f"{file} names no classes: write them in the head's order, one per line")
    return classes


def beside(checkpoints: Sequence[Path], arch: str | None) -> dict[Path, Description | None]:
    """The description next to each checkpoint, or None.

    A `cell.json` describes the cell's weights only. arch: the user's name for the architecture, if
    any. Raises ValueError, naming the file, if it cannot be read or describes a model that the
    engine does not support; with `arch`, a `config.json` of another program is ignored.
    """
    descriptions: dict[Path, Description | None] = {}
    for checkpoint in checkpoints:
        cell, config = checkpoint.with_name(CELL), checkpoint.with_name(timm_folder.CONFIG)
        descriptions[checkpoint] = None
        if checkpoint.name == WEIGHTS and cell.is_file():
            descriptions[checkpoint] = read(cell)
        elif config.is_file():
            try:
                descriptions[checkpoint] = read(config)
            except ValueError as error:
                if arch is None:
                    raise
                log.warning("%s: images are transformed as timm does it for %s", error, arch)
        if description := descriptions[checkpoint]:
            arch_of = description.model["arch"]
            timm_folder.check_options(description.source, arch_of, description.options)
    return descriptions


class _CellFile(msgspec.Struct, frozen=True):
    """The part of a `cell.json` that describes its model."""

    model: dict[str, Any]
    classes: tuple[str, ...]


def read(file: Path) -> Description:
    """The description in a `cell.json`, or in the `config.json` that timm writes.

    Raises ValueError, naming the file, if it contains no description.
    """
    if file.name != CELL:
        folder = timm_folder.read(file)
        return Description(file, folder.model, folder.classes, folder.options)
    try:
        cell = msgspec.convert(read_json(file), _CellFile)
        msgspec.convert(cell.model["arch"], str)
        return Description(file, cell.model, cell.classes)
    except (OSError, ValueError, LookupError, TypeError, msgspec.ValidationError) as error:
        raise ValueError(
            f"{file} was not written by the engine ({error!r}): name the architecture with --arch"
        ) from error


def of_recipe(source: Path, resolved: Recipe, runs: Path) -> Description:
    """The description of a recipe's model, with the classes of the upstream pack if it exists."""
    pack = pack_folder(runs, resolved.dataset, resolved.model, resolved.dataset.upstream)
    classes = Pack.open(pack).classes if (pack / MANIFEST).is_file() else None
    return Description(source, models.description(resolved.model), classes)


def model_of(
    descriptions: Mapping[Path, Description | None], arch: str | None
) -> tuple[str, dict[str, Any]]:
    """The common architecture of checkpoints, and the model's settings by recipe key.

    A checkpoint without a description is assumed to be the same model. Raises ValueError if
    descriptions or `arch` disagree, or the architecture is unknown.
    """
    model: dict[str, Any] = {}
    sources: dict[str, Path] = {}
    for description in filter(None, descriptions.values()):
        for key, value in description.model.items():
            if model.setdefault(key, value) != value:
                raise ValueError(
                    f"{sources[key]} says {key} {model[key]}, {description.source} says {value}: "
                    "give models that agree in this"
                )
            sources.setdefault(key, description.source)
    if arch is None and not model:
        raise ValueError(
            f"{next(iter(descriptions))} does not name its architecture, and there is neither a "
            f"{CELL} nor a {timm_folder.CONFIG} next to it: name it with --arch"
        )
    known = model.get("arch", arch)
    if arch is not None and arch.partition(".")[0] != known.partition(".")[0]:
        raise ValueError(f"{sources['arch']} says that the model is {known}, not {arch}")
    names = {"crop_pct": "crop"}
    return known, {f"model.{names.get(key, key)}": value for key, value in model.items()}


def classes_of(descriptions: Mapping[Path, Description | None]) -> tuple[str, ...] | None:
    """The common classes of the checkpoints' heads, or None if no description names them.

    A checkpoint may lack class names only if the others have ImageNet-1K's, whose order is
    standard.
    Raises ValueError if it lacks them otherwise, or if two checkpoints disagree.
    """
    named = {d.source: d.classes for d in descriptions.values() if d is not None and d.classes}
    if not named:
        return None
    source, classes = next(iter(named.items()))
    for file, names in named.items():
        if names != classes:
            raise ValueError(
                f"{source} and {file} have different classes, or another order: give models with "
                "the same head"
            )
    nameless = [file for file, d in descriptions.items() if d is None or not d.classes]
    if nameless and classes != imagenet.wnids():
        raise ValueError(
            f"no file names the classes of {nameless[0]}'s outputs: if they are those of the other "
            f"models, add --classes {source}"
        )
    return classes
