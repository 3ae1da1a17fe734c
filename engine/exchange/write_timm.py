"""Write a model as a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.machine.files import room_for
from engine.models.build import size_options
from engine.models.images import data_config
from engine.recipe.schema import ModelRecipe
from engine.store import tensors
from engine.store.tensors import PROMPT
from loaders.files.root import Root

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # as timm names them
OPEN_CLIP_WEIGHTS, OPEN_CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
HEAD = "head.safetensors"  # of a CLIP model
OF_MODELS = (WEIGHTS, CONFIG, OPEN_CLIP_WEIGHTS, OPEN_CLIP_CONFIG, HEAD, PROMPT)


def write(
    out: Path,
    model: ModelRecipe,
    net: nn.Module,
    classes: Sequence[str],
    prompt: torch.Tensor | None,
    made_of: Mapping[str, Any],
) -> None:
    """Write a timm net in the `local-dir:` layout; other files of an existing folder stay.

    classes: the head's, in order. prompt: [3, H, W], of a visual-prompt cell. made_of: provenance,
    which timm ignores. Raises OSError, naming the folder, if the disk is full.
    """
    config = {**timm_config(model, net, len(classes)), "label_names": list(classes)}
    with written(out, last=CONFIG, prompt=prompt) as folder:
        tensors.save(net.state_dict(), folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps({**config, "made_of": made_of}, indent=1), "utf-8")


@contextlib.contextmanager
def written(out: Path, *, last: str, prompt: torch.Tensor | None) -> Iterator[Path]:
    """A temporary folder whose files replace those of `out` when all are written.

    last: the file without which the folder does not load; it is removed first and written last.
    prompt: is written too. Raises OSError, naming `out`, if the disk is full.
    """
    out = out.resolve()  # resolves links, because files cannot be renamed to another disk
    beside = Root(out.parent)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    with room_for(out):
        beside.make_new(temporary)
        try:
            yield temporary
            if prompt is not None:
                tensors.save({"prompt": prompt}, temporary / PROMPT)
            beside.make(out)
            # Files of a previous model would be loaded instead. The file that is written
            # last is removed first.
            for name in (last, *OF_MODELS):
                beside.remove(out / name)
            for name in sorted(beside.names(temporary), key=last.__eq__):
                beside.rename(temporary / name, out / name)
        finally:
            beside.remove(temporary)


def timm_config(model: ModelRecipe, net: nn.Module, outputs: int) -> dict[str, Any]:
    """timm's config: how to build the net and preprocess images."""
    known: Mapping[str, Any] = net.pretrained_cfg  # type: ignore[assignment]  # of every timm model
    images = data_config(model)
    return {
        "architecture": model.arch,
        "num_classes": outputs,
        "num_features": net.num_features,
        "model_args": size_options(model),
        "pretrained_cfg": {
            **{key: known.get(key) for key in ("fixed_input_size", "first_conv", "classifier")},
            "num_classes": outputs,
            "input_size": [3, model.image_size, model.image_size],
            **{key: images[key] for key in ("interpolation", "crop_pct", "crop_mode")},
            "mean": list(images["mean"]),
            "std": list(images["std"]),
        },
    }
