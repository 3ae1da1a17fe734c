"""The JSON file beside a checkpoint, a cell's or timm's, which tells what weights alone do not.

With another order of the head's classes, or another mean, std or crop, an accuracy would be wrong.
So neither is guessed.
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
from engine.recipe import timm_folder
from engine.recipe.schema import ModelRecipe, Recipe
from engine.store.cells import CELL, Mix
from engine.store.tensors import PROMPT, WEIGHTS
from loaders.files import read_json, read_small
from loaders.pack import MANIFEST, Pack

CHECKPOINTS = (WEIGHTS, *timm_folder.WEIGHTS)  # in folders of a cell or timm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """What the file `source` says of a model.

    model: values of `models.description`, possibly not all. classes: those of the head in order,
    None where the file does not name them. options: what timm's factory was given beside these.
    """

    source: Path
    model: Mapping[str, Any]
    classes: tuple[str, ...] | None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DescribedModel:
    """A model: what it is made of, what is known of it, and its tensors on the CPU.

    mix: the weight of each cell, or of each file. prompt: the input prompt [3, H, W] of a
    visual-prompt cell, which is never mixed. pretrained: the model whose weights hold the text
    tower, of one of open_clip's.
    """

    title: str
    mix: Mix
    description: Description
    state: Mapping[str, torch.Tensor]
    prompt: torch.Tensor | None = None
    pretrained: ModelRecipe | None = None


def file_of(place: Path) -> Path:
    """The checkpoint at a path: a file, or the weights in a folder of a cell or of timm.

    Raises ValueError for a folder without weights, such as a mixed cell's.
    """
    if not place.is_dir():
        return place
    for name in CHECKPOINTS:
        if (place / name).is_file():
            return place / name
    if (place / CELL).is_file():
        raise ValueError(
            f"{place} is a mix of cells and holds no weights; `rib evaluate --campaign NAME` "
            "evaluates it with all rows of its campaign"
        )
    raise ValueError(f"{place} holds no checkpoint ({', '.join(CHECKPOINTS)}); give its file")


def prompt_of(checkpoint: Path) -> Path | None:
    """The file of the input prompt that belongs to the weights of a visual-prompt cell, if any."""
    prompt = checkpoint.with_name(PROMPT)
    return prompt if checkpoint.name in CHECKPOINTS and prompt.is_file() else None


def listed(file: Path) -> tuple[str, ...]:
    """Class names in the head's order, from the lines of a text file or the JSON file of a model.

    Raises ValueError naming a file that holds no class names.
    """
    if file.suffix == ".json":
        classes = read(file).classes
    else:
        try:
            lines = [line.strip() for line in read_small(file).decode("utf-8-sig").splitlines()]
        except ValueError as error:
            raise ValueError(f"{file} is no list of class names: {error}") from error
        classes = tuple(line for line in lines if line)
    if not classes:
        raise ValueError(f"{file} names no classes; write them in the head's order, a line each")
    return classes


def beside(checkpoints: Sequence[Path], arch: str | None) -> dict[Path, Description | None]:
    """The description beside each checkpoint, None where there is none.

    A `cell.json` describes the cell's weights only. arch: the user's name for the architecture, if
    any. Raises ValueError naming a file that cannot be read, or that tells of a model which the
    engine builds otherwise; with `arch` a `config.json` of another program is ignored.
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
    """What a `cell.json` says of its model."""

    model: dict[str, Any]
    classes: tuple[str, ...]


def read(file: Path) -> Description:
    """The description in a `cell.json`, or in the `config.json` that timm writes.

    Raises ValueError naming a file that holds no description.
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
            f"{file} was not written by the engine ({error!r}); name the model by --arch"
        ) from error


def of_recipe(source: Path, resolved: Recipe, runs: Path) -> Description:
    """What a recipe says of its model. The classes are those of the upstream pack, if it exists."""
    pack = pack_folder(runs, resolved.dataset, resolved.model, resolved.dataset.upstream)
    classes = Pack.open(pack).classes if (pack / MANIFEST).is_file() else None
    return Description(source, models.description(resolved.model), classes)


def model_of(
    descriptions: Mapping[Path, Description | None], arch: str | None
) -> tuple[str, dict[str, Any]]:
    """The architecture that checkpoints share, and the model's settings by key of a recipe.

    A checkpoint without a description is assumed to be the same model. Raises ValueError where two
    descriptions or `arch` disagree, or where nothing tells the architecture.
    """
    model: dict[str, Any] = {}
    sources: dict[str, Path] = {}
    for description in filter(None, descriptions.values()):
        for key, value in description.model.items():
            if model.setdefault(key, value) != value:
                raise ValueError(
                    f"{sources[key]} says {key} {model[key]}, {description.source} says {value}: "
                    "take only models that are alike in this"
                )
            sources.setdefault(key, description.source)
    if arch is None and not model:
        raise ValueError(
            f"{next(iter(descriptions))} does not tell its architecture, and neither {CELL} nor "
            f"{timm_folder.CONFIG} lies beside it: name it by --arch"
        )
    known = model.get("arch", arch)
    if arch is not None and arch.partition(".")[0] != known.partition(".")[0]:
        raise ValueError(f"{sources['arch']} says that the model is {known}, not {arch}")
    names = {"crop_pct": "crop"}
    return known, {f"model.{names.get(key, key)}": value for key, value in model.items()}


def classes_of(descriptions: Mapping[Path, Description | None]) -> tuple[str, ...] | None:
    """The head's classes, which the checkpoints share; None where no description names them.

    Only beside models of ImageNet-1K, whose order of classes is the same everywhere, may a
    checkpoint have no class names. Raises ValueError where it has none, or where two disagree.
    """
    named = {d.source: d.classes for d in descriptions.values() if d is not None and d.classes}
    if not named:
        return None
    source, classes = next(iter(named.items()))
    for file, names in named.items():
        if names != classes:
            raise ValueError(
                f"{source} and {file} name other classes, or in another order: take only models "
                "of one head"
            )
    nameless = [file for file, d in descriptions.items() if d is None or not d.classes]
    if nameless and classes != imagenet.wnids():
        raise ValueError(
            f"nothing says which class each output of {nameless[0]} is; if the classes are those "
            f"of the other models, add --classes {source}"
        )
    return classes
