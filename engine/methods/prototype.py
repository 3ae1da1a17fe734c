"""Class prototypes: a head made of features alone, for a model that never saw an upstream head.

It stands in for the zero-shot head of CLIP's text tower where there is none: the mean feature of a
class's training images takes the place of the class name's text feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from engine import models
from engine.methods import objectives
from engine.methods.base import FrozenBackbone
from engine.methods.context import Context
from engine.recipe import schema
from engine.recipe.checks import in_range
from engine.store.cells import Export


@dataclass(frozen=True)
class Recipe(schema.MethodRecipe):
    scale: float = schema.HeadRecipe.scale

    def check(self, cell: schema.Recipe) -> None:
        in_range("method.scale", self.scale, 0, math.inf, "low")


class Method(FrozenBackbone):
    recipe: Recipe

    @property
    def passes(self) -> float:
        return 0.0

    def prepare(self, net: nn.Module, context: Context) -> None:
        """Raise ValueError where an output of the head has no training image."""
        super().prepare(net, context)
        target, rows_n = context.target, context.target.training(context.recipe)
        images = torch.bincount(target.labels[rows_n], minlength=models.head(net).out_features)
        if empty := (images == 0).nonzero().flatten().tolist():
            raise ValueError(
                f"{len(empty)} of the head's classes have no training image in {target.name} "
                f"(outputs {', '.join(map(str, empty[:3]))}{', ...' * (len(empty) > 3)}), and so "
                "no prototype; add images, or set model.head.kind=probe"
            )
        self.problem = objectives.Prototypes(
            context.features(context.base, target, training=True),
            self.targets_N,
            torch.from_numpy(rows_n),
            self.recipe.scale,
        )

    def export(self) -> Export:
        return Export(self.net.state_dict(), shares_backbone=True)
