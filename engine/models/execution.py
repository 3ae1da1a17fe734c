"""How a network runs: its precision and torch.compile.

Compared models must have the same form, so that they do not differ by rounding: a compiled graph
rounds differently from the same operators. So the form is determined once and is part of the keys
of artefacts that depend on it. It excludes the head, which always computes in fp32.

Compilation gives one graph for batches of any size and all cells of a shape. By default it is on
for GPUs and off for CPUs, where it gained 2 to 4% on small ViTs and takes half a minute per
process.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from engine import models
from engine.machine import compat, precision
from engine.machine.files import compiled_folder
from engine.machine.layers import pass_on_bf16
from engine.recipe.schema import EvaluateRecipe, ModelRecipe, TrainRecipe

Function = Callable[[torch.Tensor], torch.Tensor]
CACHE = "TORCHINDUCTOR_CACHE_DIR"
GRAPHS = 16  # of a forward pass: training compiles each choice of what learns, evaluation more


@dataclass(frozen=True)
class Form:
    """precision: fp32 | bf16 | bf16_residual. compile: never | always."""

    precision: str
    compile: str

    @classmethod
    def of(cls, recipe: TrainRecipe | EvaluateRecipe, device: torch.device) -> Form:
        """The form for training and teaching, or for evaluation."""
        return cls(
            precision.resolve(recipe.precision, device), resolve_compile(recipe.compile, device)
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
        return Backbone(compile_in_place(net, self.compile, device))


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


@dataclass(frozen=True, eq=False)
class Model:
    """embed: from normalized images, or stored features, to pre-logits [B, D]. head: from these to
    outputs [B, ...]. A shared `embed` runs once per batch."""

    embed: Function
    head: Function

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


def resolve_compile(option: str, device: torch.device) -> str:
    """`auto` means `always` on a GPU and `never` on a CPU."""
    if option == "auto":
        return "always" if device.type == "cuda" else "never"
    return option


def compile_in_place(net: nn.Module, option: str, device: torch.device) -> nn.Module:
    """Compile the forward pass of `net` according to `option`; its state dict does not change.

    Parameters are inputs of the graph, so modules of the same shape share it, and so do the states
    that `functional_call` gives to a module. A batch of one image runs uncompiled, because it would
    need another graph.
    """
    option = resolve_compile(option, device)
    if option == "never":
        return net
    if CACHE not in os.environ:  # torch's own is of one machine, and may be another user's
        os.environ[CACHE] = str(compiled_folder())
    compat.allow_graphs(GRAPHS)
    if device.type == "cpu":
        _keep_instruction_sets_apart()
    eager = type(net).forward
    compiled = torch.compile(eager)
    network = weakref.ref(net)  # a strong reference would be a cycle, which frees memory late

    def forward(x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            return eager(network(), x)
        compat.mark_batch_dynamic(x)
        return compiled(network(), x)

    net.forward = forward  # type: ignore[method-assign]
    return net


def _keep_instruction_sets_apart() -> None:
    """Separate Inductor's disk cache by CPU instruction set.

    Its keys do not contain the instruction set (torch 2.13), although its code uses the vector
    width: code for AVX-512 that runs on a CPU with AVX2 skips every second vector.
    """
    torch.compiler.config.cache_key_tag = torch.backends.cpu.get_cpu_capability()
