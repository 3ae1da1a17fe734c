"""A model's preprocessing: timm's evaluation transform, and the constants of normalization.

Functions import timm and open_clip when they need them, because that takes seconds that planning
should not spend.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from engine.errors import RecipeError
from engine.model_files.architectures import (
    open_clip_config,
    open_clip_name,
    open_clip_package,
    timm_config,
)
from engine.model_files.descriptions import CROP_MODES, recipe_keys
from engine.recipe.schema import ModelRecipe


@dataclass(frozen=True)
class Transform:
    """timm's evaluation transform without normalization, its last step: PIL image -> uint8 HWC.

    It can be pickled, for encoding in parallel, and `spec` is part of a pack's name.
    """

    image_size: int
    interpolation: str
    crop: float
    crop_mode: str = "center"  # or squash

    @property
    def spec(self) -> dict[str, Any]:
        """The settings that determine the pixels, as JSON values, without defaults."""
        return {k: v for k, v in vars(self).items() if (k, v) != ("crop_mode", "center")}

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 [image_size, image_size, 3]."""
        from timm.data.transforms_factory import create_transform

        steps: Any = create_transform(
            self.image_size,
            is_training=False,
            interpolation=self.interpolation,
            crop_pct=self.crop,
            crop_mode=self.crop_mode,
            normalize=False,  # keeps pixels as uint8, CHW
        )
        return np.ascontiguousarray(np.asarray(steps(image.convert("RGB"))).transpose(1, 2, 0))


def transform(recipe: ModelRecipe) -> Transform:
    """A model's evaluation transform, which the protocol also uses for training."""
    config = data_config(recipe)
    crop = float(config["crop_pct"])
    return Transform(recipe.image_size, config["interpolation"], crop, config["crop_mode"])


def crop_from(recipe: ModelRecipe) -> ModelRecipe:
    """The model whose evaluation transform stores images that training crops: the whole square at
    8/7 of the size, such as 256 pixels for 224."""
    return dataclasses.replace(recipe, image_size=round(recipe.image_size * 8 / 7), crop=1.0)


def published_transform(arch: str) -> Transform:
    """The transform of timm's published accuracies: at the test size, if the weights have one."""
    config = timm_config(arch)
    size = (config.get("test_input_size") or config["input_size"])[-1]
    crop = config.get("test_crop_pct") or config["crop_pct"]
    return Transform(size, config["interpolation"], float(crop), config["crop_mode"])


def data_config(recipe: ModelRecipe) -> dict[str, Any]:
    """timm's data config of the architecture, overridden by the values that the recipe sets.

    Raises RecipeError for a crop mode that packs do not support.
    """
    if open_clip_name(recipe.arch):
        config = clip_data_config(recipe.arch, recipe.weights.tag)
    else:
        config = dict(timm_config(recipe.arch))
    overrides = {
        "mean": recipe.mean,
        "std": recipe.std,
        "interpolation": recipe.interpolation,
        "crop_pct": recipe.crop,
        "crop_mode": recipe.crop_mode,
    }
    config |= {name: value for name, value in overrides.items() if value is not None}
    if config["crop_mode"] not in ("center", "squash"):
        raise RecipeError(
            f"{recipe.arch} uses crop_mode={config['crop_mode']}, which packs do not support: "
            "add model.crop_mode=center or model.crop_mode=squash"
        )
    return config


def clip_data_config(arch: str, tag: str) -> dict[str, Any]:
    """timm's data config for open_clip's tower with the weights `tag`.

    Without a tag, that of the first weights in open_clip's list, which are OpenAI's if available.
    """
    open_clip, name = open_clip_package(), open_clip_name(arch)
    size = open_clip_config(name)["vision_cfg"]["image_size"]
    openai = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    openai |= {"interpolation": "bicubic", "resize_mode": "shortest"}
    tags = [tag] if tag else open_clip.list_pretrained_tags_by_model(name)
    stored = open_clip.get_pretrained_cfg(name, tags[0]) if tags else {}
    chosen = {key: stored.get(key) or openai[key] for key in openai}
    return {
        "input_size": (3, *(size if isinstance(size, list | tuple) else (size, size))),
        "mean": tuple(chosen["mean"]),
        "std": tuple(chosen["std"]),
        "interpolation": chosen["interpolation"],
        "crop_pct": 1.0,
        "crop_mode": CROP_MODES[chosen["resize_mode"]],
    }


def description(recipe: ModelRecipe) -> dict[str, Any]:
    """Everything except the weights that is needed to run a model, as resolved JSON values.

    Sizes are in pixels; mean and std refer to pixels from 0 to 1; crop_pct is timm's.
    """
    config = data_config(recipe)
    return {
        "arch": recipe.arch,
        "projection": recipe.projection,
        "image_size": recipe.image_size,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
        "crop_pct": float(config["crop_pct"]),
        "crop_mode": config["crop_mode"],
        "channels_last": recipe.channels_last,
    }


def described_model(description: Mapping[str, Any]) -> ModelRecipe:
    """The recipe of a model without its weights: the inverse of `description`."""
    return ModelRecipe(name=description["arch"], **recipe_keys(description))


def choices(recipe: ModelRecipe) -> str:
    """A model's weights, head and transform, as one line."""
    weights, config = recipe.weights, data_config(recipe)
    source = {
        "timm": f"timm's weights of {recipe.arch}",
        "open_clip": f"open_clip's weights {weights.tag} of {weights.clip}",
        "pypi": f"{weights.package} {weights.version} of PyPI",
        "random": "random weights",
        "file": "the weights",
    }[weights.source]
    source += f" in {weights.path}" if weights.path else ""
    if recipe.head.fit:
        head = f"head fitted on {recipe.head.fit_on or 'the upstream dataset'}"
        if weights.source == "timm" and re.search("(sig|c)lip", recipe.arch):
            head += (
                ", as timm's weights have no text tower (open_clip:NAME/TAG has it, and a "
                "zero-shot head)"
            )
    elif recipe.has_text_tower:
        head = "zero-shot head"
    else:
        head = "their own head"
    mean, std = (", ".join(f"{v:.4g}" for v in config[key]) for key in ("mean", "std"))
    return (
        f"{recipe.name}: {source}; {head}; {recipe.image_size} px, {config['interpolation']}, crop "
        f"{config['crop_pct']:g} ({config['crop_mode']}), mean {mean}, std {std}"
    )
