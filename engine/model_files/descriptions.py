"""Read what the files beside a checkpoint say about its model.

A cell has `cell.json`, timm's folders `config.json`, and open_clip's `open_clip_config.json`. With
the wrong order of classes, mean, std or crop, accuracies would be wrong, so none of these is ever
guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine.model_files.architectures import OPEN_CLIP, open_clip_package, timm_config
from loaders.files.durable import read_json, read_small

CELL, WEIGHTS, PROMPT = "cell.json", "weights.safetensors", "prompt.safetensors"
RECIPE, VERSIONS = "recipe.yaml", "versions.json"  # of a cell, too
TIMM_CONFIG, TIMM_WEIGHTS = "config.json", "model.safetensors"
OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
FOLDERS = (TIMM_CONFIG, OPEN_CLIP_CONFIG)  # of other programs
HEAD = "head.safetensors"  # of a CLIP model, on its unit embeddings
CHECKPOINTS = (WEIGHTS, TIMM_WEIGHTS, "pytorch_model.bin", OPEN_CLIP_WEIGHTS)  # the first is read
CROP_MODES = {"shortest": "center", "squash": "squash"}  # open_clip's resize_mode: timm's crop_mode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """The description of a model in the file `source`.

    model: values of `engine.recipe.image_transform.description`, possibly incomplete. classes: the
    head's, in order, or None if the file does not name them. outputs: of the head, or None if
    unknown. options: further arguments of timm's factory.
    """

    source: Path
    model: Mapping[str, Any]
    classes: tuple[str, ...] | None
    outputs: int | None
    options: Mapping[str, Any] = field(default_factory=dict)


class ForeignFile(ValueError):
    """A JSON file that does not describe a model in a form that the engine knows."""


def checkpoint_in(place: Path) -> Path:
    """The checkpoint at a path: a file, or the weights in a folder of timm, open_clip or a cell.

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


def prompt_beside(checkpoint: Path) -> Path | None:
    """The file with the input prompt of a visual-prompt cell, or None."""
    prompt = checkpoint.with_name(PROMPT)
    return prompt if checkpoint.name in CHECKPOINTS and prompt.is_file() else None


def head_beside(checkpoint: Path) -> Path | None:
    """The file with the head of a CLIP model that `rib export` wrote, or None."""
    head = checkpoint.with_name(HEAD)
    is_clip = checkpoint.name in (TIMM_WEIGHTS, OPEN_CLIP_WEIGHTS)
    return head if is_clip and head.is_file() else None


def read_classes(file: Path) -> tuple[str, ...]:
    """Class names in the head's order, from the lines of a text file or the JSON file of a model.

    Raises ValueError, naming the file, if it contains no class names.
    """
    if file.suffix == ".json":
        classes = read_description(file).classes
    else:
        try:
            lines = [line.strip() for line in read_small(file).decode("utf-8-sig").splitlines()]
        except ValueError as error:
            raise ValueError(f"{file} is not a list of class names: {error}") from error
        classes = tuple(line for line in lines if line)
    if not classes:
        raise ValueError(f"{file} names no classes: write them in the head's order, one per line")
    return classes


def describe_checkpoint(checkpoint: Path, arch: str | None = None) -> Description | None:
    """The description next to a checkpoint, or None.

    A `cell.json` describes the cell's weights only. arch: the user's name for the architecture, if
    any. Raises ValueError, naming the file, if it cannot be read or describes a model that the
    engine does not support; with `arch`, a `config.json` of another program is ignored.
    """
    name = {WEIGHTS: CELL, OPEN_CLIP_WEIGHTS: OPEN_CLIP_CONFIG}.get(checkpoint.name, TIMM_CONFIG)
    file = checkpoint.with_name(name)
    if not file.is_file():
        file = checkpoint.with_name(TIMM_CONFIG)
    if not file.is_file():
        return None
    try:
        described = read_description(file)
    except ForeignFile as error:
        if arch is None or file.name == CELL:
            raise
        log.warning("%s: images are transformed as timm does it for %s", error, arch)
        return None
    _check_options(described)
    return described


def read_description(file: Path) -> Description:
    """The description in a `cell.json`, or in the config that timm or open_clip writes.

    Raises ForeignFile, naming the file, if it contains no description, and if neither timm nor
    open_clip has the architecture.
    """
    of_program = {
        CELL: ("the engine", _CellFile),
        OPEN_CLIP_CONFIG: ("open_clip", _OpenClipFile),
    }
    program, kind = of_program.get(file.name, ("timm", _TimmFile))
    try:
        return msgspec.convert(read_json(file), kind).describe(file)
    except (OSError, ValueError, LookupError, TypeError, msgspec.ValidationError) as error:
        raise ForeignFile(
            f"{file} was not written by {program} ({error!r}): name the architecture with --arch"
        ) from error


def recipe_keys(model: Mapping[str, Any]) -> dict[str, Any]:
    """A description's values by the keys of the recipe section `model`."""
    return {"crop" if key == "crop_pct" else key: value for key, value in model.items()}


class _CellFile(msgspec.Struct, frozen=True):
    """The part of a `cell.json` that describes its model."""

    model: dict[str, Any]
    classes: tuple[str, ...]

    def describe(self, file: Path) -> Description:
        msgspec.convert(self.model["arch"], str)
        return Description(file, self.model, self.classes, len(self.classes))


class _Head(msgspec.Struct, frozen=True):
    """The head of a CLIP model, in a file of its own."""

    label_names: tuple[str, ...]


class _TimmFile(msgspec.Struct, frozen=True):
    """The keys of a `config.json` that are read. label_names: in the head's order, if a list."""

    architecture: str
    pretrained_cfg: dict[str, Any]
    num_classes: int | None = None
    label_names: list[str] | dict[str, Any] | None = None
    global_pool: str | None = None
    model_args: dict[str, Any] | None = None
    head: _Head | None = None

    def describe(self, file: Path) -> Description:
        timm_config(self.architecture)  # raises RecipeError for an unknown name
        images = {"crop_mode": "center", **self.pretrained_cfg}  # older files lack it
        keys = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
        _, height, width = images["input_size"]
        model = {key: images[key] for key in keys}
        model |= {"arch": self.architecture, "image_size": width}
        classes = tuple(self.label_names) if isinstance(self.label_names, list) else None
        outputs = self.num_classes or images.get("num_classes")
        if self.head is not None:
            model["projection"] = outputs
            classes, outputs = self.head.label_names, len(self.head.label_names)
        pool = {"global_pool": self.global_pool} if self.global_pool else {}
        usual = ("img_size", "num_classes", "in_chans")  # loading checks the shapes
        args = {k: v for k, v in (self.model_args or {}).items() if k not in usual}
        wide = {} if height == width else {"input_size": images["input_size"]}
        return Description(file, model, classes, outputs, pool | args | wide)


class _OpenClipImages(msgspec.Struct, frozen=True):
    size: int
    mean: list[float]
    std: list[float]
    interpolation: str
    resize_mode: str


class _OpenClipFile(msgspec.Struct, frozen=True):
    """An `open_clip_config.json`, which contains the architecture's config but no name."""

    model_cfg: dict[str, Any]
    preprocess_cfg: _OpenClipImages
    head: _Head | None = None

    def describe(self, file: Path) -> Description:
        open_clip, images = open_clip_package(), self.preprocess_cfg
        names = open_clip.list_models()
        name = next((n for n in names if open_clip.get_model_config(n) == self.model_cfg), None)
        if name is None:
            raise ValueError("open_clip has no model with this model_cfg")
        model = {
            "arch": f"{OPEN_CLIP}{name}",
            "image_size": images.size,
            "mean": images.mean,
            "std": images.std,
            "interpolation": images.interpolation,
            "crop_pct": 1.0,
            "crop_mode": CROP_MODES[images.resize_mode],
        }
        if self.head is None:
            return Description(file, model, None, None)
        return Description(file, model, self.head.label_names, len(self.head.label_names))


def _check_options(described: Description) -> None:
    """Raise ValueError if the model was made with options that the engine does not support."""
    options, arch = dict(described.options), described.model["arch"]
    if "global_pool" in options and options["global_pool"] == _pool(arch):
        del options["global_pool"]
    if options:
        words = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ValueError(
            f"{described.source} says that the model was made with {words}, which the engine does "
            f"not support for {arch}: evaluate it with timm's validate.py"
        )


def _pool(arch: str) -> str | None:
    """An architecture's default pooling, or None if unknown."""
    import timm  # imported here: it loads torch
    import torch

    with torch.device("meta"):
        net: Any = timm.create_model(arch)
    pool = getattr(net, "global_pool", None) or getattr(
        getattr(net, "head", None), "global_pool", None
    )
    return pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
