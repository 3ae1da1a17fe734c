"""Models: timm's and open_clip's, their evaluation transform, and the split at the head.

Every model of the engine is a classifier in timm's form, whose logits are `head(features(x))`; what
only needs features (a probe, a teacher, the dataset distance) never runs the backbone twice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

from engine.errors import RecipeError, nearest
from engine.models import clip
from engine.models.fp32_head import Fp32Linear
from engine.recipe.schema import ModelRecipe


@dataclass(frozen=True)
class Transform:
    """timm's evaluation transform up to, but without, normalisation: PIL image -> uint8 HWC.

    Picklable and hashable through `spec`, so that packs can be encoded in parallel and named.
    """

    image_size: int
    interpolation: str
    crop: float
    crop_mode: str = "center"  # center | squash | border
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)  # what crop_mode=border adds: the mean, of 1

    @property
    def spec(self) -> dict[str, Any]:
        """What determines the pixels, JSON-able; defaults are left out, as of older packs."""
        usual = {one.name: one.default for one in dataclasses.fields(self)}
        return {name: value for name, value in vars(self).items() if value != usual[name]}

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 [image_size, image_size, 3]."""
        steps: Any = create_transform(
            self.image_size,
            is_training=False,
            interpolation=self.interpolation,
            crop_pct=self.crop,
            crop_mode=self.crop_mode,
            mean=self.fill,
            normalize=False,  # keeps the pixels as uint8, CHW
        )
        return np.ascontiguousarray(np.asarray(steps(image.convert("RGB"))).transpose(1, 2, 0))


def data_config(recipe: ModelRecipe) -> dict[str, Any]:
    """timm's data config of the architecture, with the recipe's own values where it has any."""
    if recipe.arch.startswith(clip.PREFIX):
        config = clip.data_config(recipe.arch, recipe.weights.tag)
    else:
        config = resolve_data_config(pretrained_cfg=_pretrained_cfg(recipe.arch))
    own = {
        "mean": recipe.mean,
        "std": recipe.std,
        "interpolation": recipe.interpolation,
        "crop_pct": recipe.crop,
        "crop_mode": recipe.crop_mode,
    }
    return config | {name: value for name, value in own.items() if value is not None}


def description(recipe: ModelRecipe) -> dict[str, Any]:
    """What must be known beside a model's weights to run it, as plain data; every value resolved.

    Sizes are pixels, mean and std those of pixels between 0 and 1, crop_pct is timm's share.
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


def transform(recipe: ModelRecipe) -> Transform:
    """The evaluation transform of a model, which the protocol also trains on."""
    config = data_config(recipe)
    mode = config["crop_mode"]
    fill = {"fill": tuple(config["mean"])} if mode == "border" else {}
    how = config["interpolation"], float(config["crop_pct"])
    return Transform(recipe.image_size, *how, mode, **fill)


class Normalize(nn.Module):
    """uint8 pixels [B, 3, H, W] -> float32, (x / 255 - mean) / std, on the pixels' device."""

    def __init__(self, recipe: ModelRecipe, device: torch.device) -> None:
        super().__init__()
        config = data_config(recipe)
        mean = torch.tensor(config["mean"]).view(1, 3, 1, 1)
        std = torch.tensor(config["std"]).view(1, 3, 1, 1)
        # mean = 0, std = 1 (MIIL) must leave x / 255 as it is, so one multiply-add serves all.
        self.scale = (1 / (255 * std)).to(device)
        self.shift = (-mean / std).to(device)
        self.memory_format = (
            torch.channels_last if recipe.channels_last else torch.contiguous_format
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.memory_format == torch.channels_last:
            x = torch.addcmul(self.shift, pixels.to(torch.float32), self.scale)
            return x.contiguous(memory_format=torch.channels_last)
        x = torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device)
        for c in range(3):  # packs hold HWC: a channel at a time, the transposition costs no pass
            scale, shift = self.scale[:, c], self.shift[:, c]
            torch.addcmul(shift, pixels[:, c].to(torch.float32), scale, out=x[:, c])
        return x


def create(recipe: ModelRecipe, classes: int) -> nn.Module:
    """The architecture with `classes` outputs, randomly initialised (seed it before), on the CPU.

    Its head computes in fp32 under autocast too. Raises RecipeError for an architecture that is
    unknown, has no linear head, or takes no projection or no image of this size.
    """
    net = _create(recipe, classes)
    head(net).__class__ = Fp32Linear  # with the weights that it was given
    return net


def _create(recipe: ModelRecipe, classes: int) -> nn.Module:
    if recipe.arch.startswith(clip.PREFIX):
        return clip.Tower(recipe.arch, classes)
    net = timm.create_model(recipe.arch, num_classes=classes, **size_options(recipe))
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and any(recipe.image_size % side for side in patch):
        raise RecipeError(
            f"model.image_size={recipe.image_size}: {recipe.arch} takes multiples of {patch[0]}"
        )
    if recipe.projection:
        if not isinstance(getattr(net, "fc_norm", None), nn.Identity):
            raise RecipeError(f"model.projection: {recipe.arch} has no place for one; CLIP ViTs do")
        net.fc_norm = clip.Projection(int(net.num_features), recipe.projection)  # type: ignore[arg-type]
        net.head = nn.Linear(recipe.projection, classes)
    return net


def size_options(recipe: ModelRecipe) -> dict[str, Any]:
    """What timm must be told of the image size: an architecture may be made for one."""
    fixed = _pretrained_cfg(recipe.arch).get("fixed_input_size")
    return {"img_size": recipe.image_size} if fixed else {}


def features(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Pre-logits [B, D] of normalised images [B, 3, H, W]."""
    return net.forward_head(net.forward_features(x), pre_logits=True)  # type: ignore[operator]


def head(net: nn.Module) -> nn.Linear:
    """The linear classifier at the end of a timm model, from which all its logits come.

    Raises RecipeError where the model ends otherwise.
    """
    if getattr(net, "aux_head", None) is not None:  # VOLO
        raise RecipeError(
            f"{type(net).__name__} adds the logits of a second head to those of its first; "
            "take an architecture with one linear head"
        )
    classifier = net.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        raise RecipeError(f"the head of {type(net).__name__} is {classifier}, not a linear layer")
    return classifier


def head_names(net: nn.Module) -> tuple[str, str]:
    """State-dict names of the head's weight and bias."""
    classifier = head(net)
    prefix = next(name for name, module in net.named_modules() if module is classifier)
    return f"{prefix}.weight", f"{prefix}.bias"


def head_names_of(recipe: ModelRecipe) -> tuple[str, str]:
    """`head_names` of an architecture, which is built once a run to tell them."""
    return _head_names(recipe.arch, recipe.image_size, recipe.projection)


def load_state(net: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> nn.Module:
    """Copy a state dict into `net`; every key and shape must fit.

    Raises ValueError naming the source and the first keys that are missing, unexpected or of
    another shape (weights of another architecture or another class list).
    """
    own = net.state_dict()
    wrong = [
        *(f"{k} is missing" for k in own if k not in state),
        *(f"{k} is unexpected" for k in state if k not in own),
        *(
            f"{k} is {list(state[k].shape)}, not {list(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{source} does not fit {type(net).__name__}: {'; '.join(wrong[:3])}{more}; "
            "give weights of the same architecture and class list"
        )
    net.load_state_dict(dict(state))
    return net


@functools.cache
def _head_names(arch: str, image_size: int, projection: int) -> tuple[str, str]:
    own = ModelRecipe(name=arch, arch=arch, image_size=image_size, projection=projection)
    return head_names(create(own, 2))


@functools.cache
def _pretrained_cfg(arch: str) -> dict[str, Any]:
    known = timm.list_models() + timm.list_pretrained()
    if arch not in known:
        raise RecipeError(f"timm has no architecture {arch!r}{nearest(arch, known)}")
    cfg = timm.get_pretrained_cfg(arch)
    return cfg.to_dict() if cfg else {}
