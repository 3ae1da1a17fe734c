"""The execution mode of a backbone: precision and compilation.

Compared models must have the same form, so that they do not differ by rounding: a compiled graph
rounds differently from the same operators. So the form is determined once and is part of the keys
of artefacts that depend on it. It excludes the head, which always computes in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from engine import models
from engine.machine import precision
from engine.models import compiled
from engine.models.layers import pass_on_bf16
from engine.recipe.schema import EvaluateRecipe, ModelRecipe, TrainRecipe


@dataclass(frozen=True)
class Form:
    """precision: fp32 | bf16 | bf16_residual. compile: never | always."""

    precision: str
    compile: str

    @classmethod
    def of(cls, recipe: TrainRecipe | EvaluateRecipe, device: torch.device) -> Form:
        """The form for training and teaching, or for evaluation."""
        return cls(
            precision.resolve(recipe.precision, device), compiled.resolve(recipe.compile, device)
        )

    @property
    def key(self) -> dict[str, Any]:
        """Its part in the key of an artefact."""
        key: dict[str, Any] = {"precision": precision.name(self.precision)}
        if self.compile != "never":
            key["compile"] = self.compile
        return key

    def backbone(self, recipe: ModelRecipe, classes: int, device: torch.device) -> Backbone:
        """A backbone without its head, for any state dict: images -> pre-logits [B, D]."""
        net = models.create_for_states(recipe, classes, device)
        models.take_head(net, recipe)
        if self.precision == precision.RESIDUAL:
            pass_on_bf16(net)
        return Backbone(compiled.in_place(net, self.compile, device))


class Backbone:
    """A network in eval mode that runs with given weights, such as those of a mix."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net.eval()
        # In eval mode, timm's attention with biases caches a tensor that depends on its weights.
        self._caches = any(hasattr(module, "attention_bias_cache") for module in net.modules())

    def given(self, state: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Outputs for weights from `self.state`. Raises RuntimeError if names do not match."""
        if self._caches:
            self.net.train().eval()  # empties the cache
        return functional_call(self.net, dict(state), (x,), strict=True)

    def state(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights that `given` takes, from a state dict of the network."""
        stored = self.net.state_dict().keys()
        return {n: b for n, b in self.net.named_buffers() if n not in stored} | dict(state)
