"""LP-FT: fine-tunes starting from the linear probe's weights (Kumar et al. 2022)."""

from __future__ import annotations

from torch import nn

from engine import models
from engine.methods.base import Context, Trained
from engine.methods.options.lp_ft import Recipe


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        super().prepare(net, context)
        probe = context.cell("linear_probe")
        models.load_state(net, probe.state(), probe.name)
