"""What lies beside a checkpoint and says what weights alone do not: a cell's or timm's JSON file.

Without the order of the head's classes an accuracy is that of other answers; without mean, std and
crop it is that of other images. Neither is guessed here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import models, recipe
from engine.data import imagenet
from engine.data.sets import pack_folder
from engine.recipe.schema import Recipe
from engine.store.cells import CELL
from engine.store.tensors import PROMPT, WEIGHTS
from loaders.pack import MANIFEST, Pack

TIMMS = "config.json"
OF_FOLDERS = (WEIGHTS, "model.safetensors", "pytorch_model.bin")  # a cell's and timm's own names

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """What the file `source` says of a model: values of `models.description`, as far as it tells
    them, and the head's classes in order; None where it does not name them."""

    source: Path
    model: Mapping[str, Any]
    classes: tuple[str, ...] | None


def file_of(place: Path) -> Path:
    """The checkpoint at a place: a file, or the weights in the folder of a cell or of timm.

    Raises ValueError for a folder without any; a mixed cell has none.
    """
    if not place.is_dir():
        return place
    for name in OF_FOLDERS:
        if (place / name).is_file():
            return place / name
    if (place / CELL).is_file():
        raise ValueError(
            f"{place} is a mix of other cells and holds no weights; `rib evaluate --campaign NAME` "
            "judges it with all rows of its campaign"
        )
    raise ValueError(f"{place} holds no checkpoint; one of {', '.join(OF_FOLDERS)} should be there")


def prompt_of(checkpoint: Path) -> Path | None:
    """The file of the input prompt that belongs to the weights of a visual-prompt cell, if any."""
    prompt = checkpoint.with_name(PROMPT)
    return prompt if checkpoint.name in OF_FOLDERS and prompt.is_file() else None


def listed(file: Path) -> tuple[str, ...]:
    """Class names in the head's order: the lines of a text file, or those of another model's JSON.

    Raises ValueError naming the file where it holds none.
    """
    if file.suffix == ".json":
        classes = read(file).classes
    else:
        try:
            lines = [line.strip() for line in file.read_text().splitlines()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is no list of class names: {error}") from error
        classes = tuple(line for line in lines if line)
    if not classes:
        raise ValueError(f"{file} names no classes; write them in the head's order, a line each")
    return classes


def beside(checkpoints: Sequence[Path], arch: str | None) -> dict[Path, Description | None]:
    """What lies beside each checkpoint: None where nothing says anything.

    A `cell.json` speaks of the cell's own weights only. `arch` is the user's word, if any. Raises
    ValueError naming a file that cannot be read; a foreign `config.json` is passed over where the
    architecture is told by `arch`.
    """
    found: dict[Path, Description | None] = {}
    for checkpoint in checkpoints:
        cell, timms = checkpoint.with_name(CELL), checkpoint.with_name(TIMMS)
        found[checkpoint] = None
        if checkpoint.name == WEIGHTS and cell.is_file():
            found[checkpoint] = read(cell)
        elif timms.is_file():
            try:
                found[checkpoint] = read(timms)
            except ValueError as error:
                if arch is None:
                    raise
                log.warning("%s: images are made as timm makes them for %s", error, arch)
    return found


def read(file: Path) -> Description:
    """The description in a `cell.json`, or in the `config.json` that timm writes.

    Raises ValueError naming the file if it holds none.
    """
    try:
        values = json.loads(file.read_text())
        return _of_cell(file, values) if file.name == CELL else _of_timm(file, values)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        what = "cell.json of the engine's" if file.name == CELL else "config.json of timm's"
        raise ValueError(f"{file} is no {what} ({error!r}): name the model by --arch") from error


def of_recipe(source: Path, resolved: Recipe, runs: Path) -> Description:
    """What a recipe says of its model. The classes are those of the upstream pack, if it exists."""
    pack = pack_folder(runs, resolved.dataset, resolved.model, resolved.dataset.upstream)
    classes = Pack.open(pack).classes if (pack / MANIFEST).is_file() else None
    return Description(source, models.description(resolved.model), classes)


def model_of(found: Mapping[Path, Description | None], arch: str | None) -> tuple[str, list[str]]:
    """Architecture of some checkpoints, and `key=value` words for what else is known of them.

    A checkpoint without a description is taken for a model like the others. Raises ValueError
    where two disagree, where `arch` is another, or where nothing tells the architecture.
    """
    model: dict[str, Any] = {}
    sources: dict[str, Path] = {}
    for description in filter(None, found.values()):
        for key, value in description.model.items():
            if model.setdefault(key, value) != value:
                raise ValueError(
                    f"{sources[key]} says {key} {model[key]}, {description.source} says {value}: "
                    "evaluate these models apart"
                )
            sources.setdefault(key, description.source)
    if arch is None and not model:
        raise ValueError(
            f"{next(iter(found))} says nothing of its architecture, and neither {CELL} nor {TIMMS} "
            "lies beside it: name it by --arch"
        )
    if arch is None or not model:
        return arch or model["arch"], _words(model)
    if arch.partition(".")[0] != model["arch"].partition(".")[0]:
        raise ValueError(f"{sources['arch']} says that the model is {model['arch']}, not {arch}")
    return model["arch"], _words(model)


def classes_of(found: Mapping[Path, Description | None]) -> tuple[str, ...] | None:
    """The classes of the head that some checkpoints share; None where nothing beside them says.

    Checkpoints that say nothing may stand beside models of ImageNet-1K alone, whose order of
    classes is everybody's. Raises ValueError where two disagree, or where some say nothing.
    """
    told = {d.source: d.classes for d in found.values() if d is not None and d.classes}
    if not told:
        return None
    (source, classes), *others = told.items()
    for other, theirs in others:
        if theirs != classes:
            raise ValueError(
                f"{source} and {other} name other classes, or in another order: evaluate these "
                "models apart"
            )
    silent = [file for file, d in found.items() if d is None or not d.classes]
    if silent and classes != imagenet.wnids():
        raise ValueError(
            f"nothing says which class each output of {silent[0]} is; if they are those of the "
            f"other models, add --classes {source}"
        )
    return classes


def _words(model: Mapping[str, Any]) -> list[str]:
    return [f"model.{'crop' if key == 'crop_pct' else key}={model[key]}" for key in model]


def _of_cell(file: Path, values: Mapping[str, Any]) -> Description:
    if "model" in values:
        return Description(file, values["model"], tuple(values["classes"]))
    # Older cells left it to their recipe.
    runs = next(iter(file.resolve().parents[3:4]), Path())  # of runs/store/cells/NAME/cell.json
    return of_recipe(file, recipe.load(str(file.with_name("recipe.yaml"))), runs)


def _of_timm(file: Path, values: Mapping[str, Any]) -> Description:
    config = values["pretrained_cfg"]
    names = values.get("label_names")  # a list in the head's order, where timm was given one
    return Description(
        file,
        {
            "arch": values["architecture"],
            "image_size": config["input_size"][-1],
            "crop_pct": config["crop_pct"],
            "crop_mode": config.get("crop_mode", "center"),  # older files lack it
            **{key: config[key] for key in ("interpolation", "mean", "std")},
        },
        tuple(names) if isinstance(names, list) else None,
    )
