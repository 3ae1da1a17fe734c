"""CLIP models: unit embeddings, open_clip's vision towers, and what text towers read.

The architecture `open_clip:NAME` is the vision tower of open_clip's model NAME, run by
open_clip's code. With a linear head on top it is a classifier like any timm model.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.model_files.architectures import open_clip_config as config
from engine.model_files.architectures import open_clip_name
from engine.model_files.architectures import open_clip_package as package
from engine.models import hub_errors
from engine.recipe.schema import WeightsRecipe


class Projection(nn.Module):
    """CLIP's image embedding: pre-logits [B, D] -> unit vectors [B, E] (Radford et al. 2021)."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, embedding, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.linear(x).float(), dim=-1)


class Tower(nn.Module):
    """open_clip's vision tower with a head on its unit embeddings, with timm's interface.

    Takes images of the tower's size. Initially has random weights on the CPU.
    """

    def __init__(self, arch: str, classes: int) -> None:
        super().__init__()
        name = open_clip_name(arch)
        self.visual = blank(name).visual
        self.head = nn.Linear(config(name)["embed_dim"], classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.visual(x)
        pooled = outputs[0] if isinstance(outputs, tuple) else outputs  # CoCa returns tokens too
        return nn.functional.normalize(pooled.float(), dim=-1)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.forward_features(x))

    def get_classifier(self) -> nn.Linear:
        return self.head


def projection(net: Any) -> torch.Tensor:
    """The projection matrix [D, E] of a vision tower of timm or open_clip.

    Raises ValueError for towers without one, such as ResNets, which pool by attention.
    """
    if isinstance(norm := getattr(net, "fc_norm", None), Projection):
        return norm.linear.weight.T
    matrix = getattr(getattr(net, "visual", None), "proj", None)
    if not isinstance(matrix, torch.Tensor):
        raise ValueError(
            "the vision tower has no projection matrix to keep orthogonal: choose a CLIP ViT, or "
            "another method, such as flyp"
        )
    return matrix


def blank(name: str) -> Any:
    """open_clip's model with random weights, in eval mode, in fp32, on torch's default device.

    Raises RecipeError for an unknown name, and ValueError for a model that open_clip cannot build,
    such as one of a package that is not installed.
    """
    config(name)
    random = {"load_weights": False, "pretrained_image": False, "pretrained_text": False}
    device = torch.get_default_device()  # open_clip moves its model, which `meta` does not allow
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # open_clip warns of random weights
    try:
        return package().create_model(name, device=device, **random).eval()
    except hub_errors.ERRORS as error:
        raise ValueError(f"open_clip could not build {name}: {hub_errors.reason(error)}") from error
    finally:
        logging.disable(before)


@dataclass(frozen=True)
class ClassTexts:
    """What a text tower reads: the words of each of the head's classes, in order, in each template.

    A template has `{}` in place of the words.
    """

    words: tuple[str, ...]
    templates: tuple[str, ...]

    def key(self, weights: WeightsRecipe) -> dict[str, Any]:
        """Its part in the key of an artefact; {} for ImageNet-1K's, which `weights` says."""
        return {} if self == imagenets_texts(weights) else {"texts": dataclasses.asdict(self)}


def imagenets_texts(weights: WeightsRecipe) -> ClassTexts:
    """OpenAI's words of IN-1K's classes, in the order of sorted wnids, in 80 or 7 templates."""
    open_clip = package()
    templates = open_clip.SIMPLE_IMAGENET_TEMPLATES
    if weights.templates == "full":
        templates = open_clip.OPENAI_IMAGENET_TEMPLATES
    words = tuple(open_clip.IMAGENET_CLASSNAMES)
    return ClassTexts(words, tuple(template("{}") for template in templates))
