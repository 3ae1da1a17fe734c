"""The form in which images pass through backbones: the same for all models that are compared.

A difference between two models must not be a difference of rounding. In bf16, folding the batch
norms of a small network changed every seventh answer, and a compiled graph rounds otherwise than
the same operators one by one. So precision, folding and compilation are decided once, and artefacts
that depend on them are named after them. The head stays outside, in fp32 (`fp32_head`).
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
from engine.recipe.schema import ModelRecipe, Recipe


@dataclass(frozen=True)
class Form:
    """precision: fp32 | bf16. compile: never | always | cuda_graphs. folded: batch norms are."""

    precision: str
    compile: str
    folded: bool = False

    @classmethod
    def of_training(cls, recipe: Recipe, device: torch.device) -> Form:
        """Of what a model learns from: like the model that learns, it is never folded."""
        train = recipe.train
        kind = precision.resolve(train.precision, device)
        return cls(kind, compiled.resolve(train.compile, device))

    @classmethod
    def of_evaluation(cls, recipe: Recipe, device: torch.device) -> Form:
        """Folded where that changes no more than fp32's last digits."""
        kind = precision.resolve(recipe.evaluate.precision, device)
        compile = compiled.resolve(recipe.evaluate.compile, device)
        model = recipe.model
        foldable = kind == "fp32" and _foldable(model.arch, model.image_size, model.projection)
        return cls(kind, compile, foldable)

    @property
    def key(self) -> dict[str, Any]:
        """What the key of an artefact says of it."""
        key: dict[str, Any] = {"precision": precision.name(self.precision)}
        if self.compile != "never":
            key["compile"] = self.compile
        if self.folded:
            key["folded"] = True
        return key

    def backbone(self, recipe: ModelRecipe, classes: int, device: torch.device) -> Folded:
        """A module for the states of an architecture, heads left out: images -> pre-logits."""
        net = models.create(recipe, classes).to(device).eval()
        weight, _ = models.head_names(net)
        net.set_submodule(weight.removesuffix(".weight"), nn.Identity())
        backbone = Folded(net, self.folded)
        compiled.in_place(backbone, self.compile, device)
        return backbone


@functools.cache
def _foldable(arch: str, image_size: int, projection: int) -> bool:
    model = ModelRecipe(name=arch, arch=arch, image_size=image_size, projection=projection)
    with torch.random.fork_rng(devices=[]):  # a key that is asked for must not change what is drawn
        return can_fold(models.create(model, 2).eval())
