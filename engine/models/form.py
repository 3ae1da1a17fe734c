"""The form in which a backbone computes: precision, folding and compilation.

Models that are compared must have the same form, so that they do not differ by rounding. In bf16,
folding the batch norms of a small network changed every seventh answer, and a compiled graph rounds
differently from the same operators. So the form is decided once, and the artefacts that depend on
it have it in their key. The head is no part of it: it computes in fp32 (`fp32_head`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine import models
from engine.machine import compiled, precision
from engine.models.folding import Folded, can_fold
from engine.models.same_padding import pad_kernels
from engine.recipe.schema import ModelRecipe, Recipe


@dataclass(frozen=True)
class Form:
    """precision: fp32 | bf16. compile: never | always | cuda_graphs. folded: no batch norms."""

    precision: str
    compile: str
    folded: bool = False

    @classmethod
    def of_training(cls, recipe: Recipe, device: torch.device) -> Form:
        """The form of a model that trains or teaches: it is never folded."""
        return cls(
            precision.resolve(recipe.train.precision, device),
            compiled.resolve(recipe.train.compile, device),
        )

    @classmethod
    def of_evaluation(cls, recipe: Recipe, device: torch.device) -> Form:
        """The form of evaluation: folded where that changes the last digits of fp32 alone."""
        kind = precision.resolve(recipe.evaluate.precision, device)
        compile = compiled.resolve(recipe.evaluate.compile, device)
        model = recipe.model
        foldable = kind == "fp32" and _foldable(model.arch, model.image_size, model.projection)
        return cls(kind, compile, foldable)

    @property
    def key(self) -> dict[str, Any]:
        """Its part in the key of an artefact."""
        key: dict[str, Any] = {"precision": precision.name(self.precision)}
        if self.compile != "never":
            key["compile"] = self.compile
        if self.folded:
            key["folded"] = True
        return key

    def backbone(self, recipe: ModelRecipe, classes: int, device: torch.device) -> Folded:
        """A backbone without its head, for any state of it: images -> pre-logits [B, D]."""
        net = models.create(recipe, classes).to(device).eval()
        weight, _ = models.head_names(net)
        net.set_submodule(weight.removesuffix(".weight"), nn.Identity())
        backbone = Folded(net, self.folded)
        if device.type == "cpu":  # a tenth to a sixth of a forward pass
            pad_kernels(backbone)
        compiled.in_place(backbone, self.compile, device)
        return backbone


@functools.cache
def _foldable(arch: str, image_size: int, projection: int) -> bool:
    model = ModelRecipe(name=arch, arch=arch, image_size=image_size, projection=projection)
    with torch.random.fork_rng(devices=[]):  # weights drawn here must not change later ones
        return can_fold(models.create(model, 2).eval())
