"""Networks: timm's architectures and open_clip's towers, split at the head.

Every model is a classifier in timm's form with the logits `head(features(x))`, so probes, teachers
and dataset distances, which need only features, never run the backbone twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from engine.errors import RecipeError
from engine.model_files.architectures import open_clip_name, timm_config
from engine.models import clip
from engine.recipe.image_transform import data_config
from engine.recipe.schema import ModelRecipe


class Fp32Linear(nn.Linear):
    """A linear layer that computes in the dtype of its weights (fp32), also under autocast.

    bf16 has 8 significant bits, so close logits would become equal and the first class would win.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return logits(x, self.weight, self.bias)


def logits(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Logits [B, C] of pre-logits [B, D] of any dtype, in the dtype of the weight [C, D].

    bias: [C], or None. Autocast does not change the dtype.
    """
    # The type of the tensors' device may be `meta` (a dry run), which has no autocast.
    with torch.autocast("cuda" if features.is_cuda else "cpu", enabled=False):
        return nn.functional.linear(features.to(weight.dtype), weight, bias)


def create(recipe: ModelRecipe, classes: int) -> nn.Module:
    """The architecture with `classes` outputs, on the CPU; seed its random weights before.

    The head computes in fp32, also under autocast. Raises RecipeError for an architecture that is
    unknown or has no linear head, and if a projection or the image size does not fit it.
    """
    head_names(recipe)  # raises for an architecture with several
    net = _create(recipe, classes)
    head(net).__class__ = Fp32Linear  # which keeps the weights
    return net


def create_for_states(recipe: ModelRecipe, classes: int, device: torch.device) -> nn.Module:
    """The architecture to run with given state dicts, such as by `torch.func.functional_call`.

    It is on the meta device, without weights of its own, unless it has buffers that no state dict
    contains; then on `device`.
    """
    with torch.device("meta"):
        net = create(recipe, classes)
    is_complete = dict(net.named_buffers()).keys() <= net.state_dict().keys()
    return net if is_complete else create(recipe, classes).to(device)


def _create(recipe: ModelRecipe, classes: int) -> nn.Module:
    if open_clip_name(recipe.arch):
        return clip.Tower(recipe.arch, classes)
    import timm  # late, as in `images`

    net = timm.create_model(recipe.arch, num_classes=classes, **size_options(recipe))
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and any(recipe.image_size % side for side in patch):
        raise RecipeError(
            f"model.image_size={recipe.image_size}: {recipe.arch} requires a multiple of {patch[0]}"
        )
    if recipe.projection:
        if not isinstance(getattr(net, "fc_norm", None), nn.Identity):
            raise RecipeError(
                f"model.projection: {recipe.arch} cannot have a projection; CLIP ViTs can"
            )
        net.fc_norm = clip.Projection(int(net.num_features), recipe.projection)  # type: ignore[arg-type]
        net.head = nn.Linear(recipe.projection, classes)
    return net


def size_options(recipe: ModelRecipe) -> dict[str, Any]:
    """timm's options for architectures that are built for an image size."""
    fixed = timm_config(recipe.arch).get("fixed_input_size")
    return {"img_size": recipe.image_size} if fixed else {}


def features(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Pre-logits [B, D] of normalized images [B, 3, H, W]."""
    return net.forward_head(net.forward_features(x), pre_logits=True)  # type: ignore[operator]


def head(net: nn.Module) -> nn.Linear:
    """The linear classifier at the end of a timm model, which computes all its logits.

    Raises RecipeError if the model ends in another way.
    """
    classifier = net.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        raise RecipeError(f"the head of {type(net).__name__} is {classifier}, not a linear layer")
    return classifier


def take_head(net: nn.Module, recipe: ModelRecipe) -> nn.Linear:
    """Remove the head of `net`, whose outputs are then its pre-logits [B, D], and return it."""
    classifier, (weight, _) = head(net), head_names(recipe)
    net.set_submodule(weight.removesuffix(".weight"), nn.Identity())
    return classifier


def head_names(recipe: ModelRecipe) -> tuple[str, str]:
    """State-dict names of the head's weight and bias.

    Raises RecipeError for an architecture that is unknown or has several heads, such as VOLO.
    """
    name = "head"
    if not open_clip_name(recipe.arch):
        name = timm_config(recipe.arch).get("classifier")
    if not isinstance(name, str):
        raise RecipeError(
            f"{recipe.arch} has several heads, {name}: choose an architecture with one"
        )
    return f"{name}.weight", f"{name}.bias"


def load_state(net: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> nn.Module:
    """Copy a state dict into `net`; every key and shape must fit.

    Raises ValueError, naming the source and the first keys that are missing, unexpected, of another
    shape (weights of another architecture or class list) or integers (quantized weights).
    """
    expected = net.state_dict()
    wrong = [
        *(f"{k} is missing" for k in expected if k not in state),
        *(f"{k} is unexpected" for k in state if k not in expected),
        *(
            f"{k} is {list(state[k].shape)}, not {list(tensor.shape)}"
            for k, tensor in expected.items()
            if k in state and state[k].shape != tensor.shape
        ),
        *(
            f"{k} holds whole numbers ({state[k].dtype}), not floating-point ones"
            for k, tensor in expected.items()
            if k in state and tensor.is_floating_point() and not state[k].is_floating_point()
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{source} does not fit {type(net).__name__}: {'; '.join(wrong[:3])}{more}: "
            "give weights of the same architecture and class list"
        )
    net.load_state_dict(dict(state))
    return net


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
