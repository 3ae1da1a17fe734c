"""LP-FT: fine-tuning that starts from the finished linear probe (Kumar et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from engine import models
from engine.methods.base import Trained
from engine.recipe.schema import MethodRecipe

if TYPE_CHECKING:
    from engine.context import Context

Recipe = MethodRecipe


class Method(Trained):
    needs = ("linear_probe",)

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        probe = context.cell("linear_probe")
        models.load_state(net, probe.state(), probe.name)
