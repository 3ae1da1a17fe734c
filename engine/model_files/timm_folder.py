"""Read a model's description from the `config.json` that timm writes next to weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from loaders.files.durable import read_json

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is read


@dataclass(frozen=True)
class TimmFolder:
    """A model as timm's file describes it.

    model: `arch`, `image_size`, and the transform with timm's names. outputs: of the head, or None
    if unknown. classes: the head's, in order, or None if not listed. options: further arguments
    of timm's factory.
    """

    model: Mapping[str, Any]
    outputs: int | None
    classes: tuple[str, ...] | None
    options: Mapping[str, Any] = field(default_factory=dict)


class _File(msgspec.Struct, frozen=True):
    """The keys of a `config.json` that are read. label_names: in the head's order, if a list."""

    architecture: str
    pretrained_cfg: dict[str, Any]
    num_classes: int | None = None
    label_names: list[str] | dict[str, Any] | None = None
    global_pool: str | None = None
    model_args: dict[str, Any] | None = None


def read(file: Path) -> TimmFolder:
    """Read a `config.json`. Raises ValueError, naming the file, if timm did not write it."""
    try:
        return _read(msgspec.convert(read_json(file), _File))
    except (OSError, ValueError, LookupError, TypeError, msgspec.ValidationError) as error:
        raise ValueError(
            f"{file} was not written by timm ({error!r}): name the architecture with --arch"
        ) from error


def _read(config: _File) -> TimmFolder:
    images = {"crop_mode": "center", **config.pretrained_cfg}  # older files lack it
    model = {key: images[key] for key in ("crop_pct", "crop_mode", "interpolation", "mean", "std")}
    _, height, width = images["input_size"]
    model |= {"arch": config.architecture, "image_size": width}
    classes = tuple(config.label_names) if isinstance(config.label_names, list) else None
    pool = {"global_pool": config.global_pool} if config.global_pool else {}
    usual = ("img_size", "num_classes", "in_chans")  # loading checks the shapes
    args = {k: v for k, v in (config.model_args or {}).items() if k not in usual}
    wide = {} if height == width else {"input_size": images["input_size"]}
    outputs = config.num_classes or images.get("num_classes")
    return TimmFolder(model, outputs, classes, pool | args | wide)


def check_options(file: Path, arch: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError if the model was made with options that the engine does not support."""
    options = dict(options)
    if "global_pool" in options and options["global_pool"] == _pool(arch):
        del options["global_pool"]
    if options:
        words = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ValueError(
            f"{file} says that the model was made with {words}, which the engine does not "
            f"support for {arch}: evaluate it with timm's validate.py"
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
