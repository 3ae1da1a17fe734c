"""Write a CLIP model for its own library: towers, and a head on the unit embeddings.

Logits are `linear(normalize(embedding), head.weight, head.bias)`. open_clip's folder has both
towers, of which fine-tuning changed only the vision tower; timm's has the vision tower, which
returns the embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.exchange.write_timm import (
    CONFIG,
    HEAD,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    WEIGHTS,
    timm_config,
    written,
)
from engine.models import clip
from engine.models.build import head as head_of
from engine.models.images import data_config
from engine.recipe.schema import ModelRecipe
from engine.store import tensors

_VISUAL = "visual."


def to_timm(
    out: Path,
    model: ModelRecipe,
    net: nn.Module,
    classes: Sequence[str],
    prompt: torch.Tensor | None,
    made_of: Mapping[str, Any],
) -> None:
    """Write a timm ViT with `model.projection`; its head goes to `head.safetensors`.

    As `engine.exchange.write_timm.write`.
    """
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("head.")}
    state["head.weight"] = state.pop("fc_norm.linear.weight")
    state["head.bias"] = torch.zeros(model.projection)  # timm's layer has one
    config = timm_config(model, net, model.projection) | {"head": _head(classes)}
    with written(out, last=CONFIG, prompt=prompt) as folder:
        tensors.save(state, folder / WEIGHTS)
        tensors.save(head_of(net).state_dict(), folder / HEAD)
        (folder / CONFIG).write_text(json.dumps({**config, "made_of": made_of}, indent=1), "utf-8")


def to_open_clip(
    out: Path,
    model: ModelRecipe,
    net: nn.Module,
    both: Mapping[str, torch.Tensor],
    classes: Sequence[str],
    prompt: torch.Tensor | None,
    made_of: Mapping[str, Any],
) -> None:
    """Write open_clip's model with the vision tower of `net` and the text tower of `both`.

    both: the state dict of open_clip's model. As `engine.exchange.write_timm.write`.
    """
    tower = {k: v for k, v in net.state_dict().items() if k.startswith(_VISUAL)}
    images = data_config(model)
    resize = {timms: ours for ours, timms in clip.CROP_MODES.items()}[images["crop_mode"]]
    config = {
        "model_cfg": clip.config(model.arch.removeprefix(clip.PREFIX)),
        "preprocess_cfg": {
            "size": model.image_size,
            "mean": list(images["mean"]),
            "std": list(images["std"]),
            "interpolation": images["interpolation"],
            "resize_mode": resize,
        },
        "head": _head(classes),
        "made_of": made_of,
    }
    with written(out, last=OPEN_CLIP_CONFIG, prompt=prompt) as folder:
        tensors.save({**both, **tower}, folder / OPEN_CLIP_WEIGHTS)
        tensors.save(head_of(net).state_dict(), folder / HEAD)
        (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=1), "utf-8")


def _head(classes: Sequence[str]) -> dict[str, Any]:
    return {"file": HEAD, "label_names": list(classes)}
