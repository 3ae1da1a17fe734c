"""Preprocessing: timm's evaluation transform, and normalization.

Functions import timm when they need it, because it takes seconds that planning should not spend.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from engine.errors import RecipeError
from engine.model_files.architectures import open_clip_name, timm_config
from engine.model_files.descriptions import recipe_keys
from engine.models import clip
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


class Normalize(nn.Module):
    """uint8 pixels [B, 3, H, W] -> float32, (x / 255 - mean) / std, on the pixels' device."""

    def __init__(self, recipe: ModelRecipe, device: torch.device) -> None:
        super().__init__()
        config = data_config(recipe)
        mean = torch.tensor(config["mean"]).view(1, 3, 1, 1)
        std = torch.tensor(config["std"]).view(1, 3, 1, 1)
        # mean = 0, std = 1 (MIIL) must give x / 255 exactly, so a multiply-add serves all models.
        self.scale = (1 / (255 * std)).to(device)
        self.shift = (-mean / std).to(device)
        self.memory_format = (
            torch.channels_last if recipe.channels_last else torch.contiguous_format
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = torch.addcmul(self.shift, pixels.to(torch.float32), self.scale)
        return x.contiguous(memory_format=self.memory_format)


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
    return Transform(size, config["interpolation"], float(crop), config.get("crop_mode", "center"))


def data_config(recipe: ModelRecipe) -> dict[str, Any]:
    """timm's data config of the architecture, overridden by the values that the recipe sets.

    Raises RecipeError for a crop mode that packs do not support.
    """
    from timm.data.config import resolve_data_config

    if open_clip_name(recipe.arch):
        config = clip.data_config(recipe.arch, recipe.weights.tag)
    else:
        config = resolve_data_config(pretrained_cfg=timm_config(recipe.arch))
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
        head = f"head fitted on {recipe.head.fit_on or 'the upstream set'}"
        if weights.source == "timm" and re.search("(sig|c)lip", recipe.arch):
            head += (
                ", as timm's weights have no text tower (open_clip:NAME/TAG has it, and a "
                "zero-shot head on ImageNet's classes)"
            )
    elif weights.source == "open_clip":
        sentences = "80 sentences" if weights.templates == "full" else "7 sentences"
        head = f"zero-shot head, {sentences} a class"
    else:
        head = "their own head"
    mean, std = (", ".join(f"{v:.4g}" for v in config[key]) for key in ("mean", "std"))
    return (
        f"{recipe.name}: {source}; {head}; {recipe.image_size} px, {config['interpolation']}, crop "
        f"{config['crop_pct']:g} ({config['crop_mode']}), mean {mean}, std {std}"
    )
