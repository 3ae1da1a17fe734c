"""torch.compile for whole models: one graph for batches of any size and all cells of a shape.

By default it is on for GPUs and off for CPUs, where it gained 2 to 4% on small ViTs and takes half
a minute per process.
"""

from __future__ import annotations

import os
import weakref

import torch
from torch import nn

from engine.machine.files import compiled_folder

CACHE = "TORCHINDUCTOR_CACHE_DIR"
GRAPHS = 16  # of a forward pass: training compiles each choice of what learns, evaluation more


def resolve(option: str, device: torch.device) -> str:
    """`auto` means `always` on a GPU and `never` on a CPU."""
    if option == "auto":
        return "always" if device.type == "cuda" else "never"
    return option


def in_place(net: nn.Module, option: str, device: torch.device) -> nn.Module:
    """Compile the forward pass of `net` according to `option`; its state dict does not change.

    Parameters are inputs of the graph, so modules of the same shape share it, and so do the states
    that `functional_call` gives to a module. A batch of one image runs uncompiled, because it would
    need another graph.
    """
    option = resolve(option, device)
    if option == "never":
        return net
    if CACHE not in os.environ:  # torch's own is of one machine, and may be another user's
        os.environ[CACHE] = str(compiled_folder())
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, GRAPHS)  # beyond it, models run uncompiled
    if device.type == "cpu":
        _keep_instruction_sets_apart()
    eager = type(net).forward
    compiled = torch.compile(eager)
    network = weakref.ref(net)  # a strong reference would be a cycle, which frees memory late

    def forward(x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            return eager(network(), x)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return compiled(network(), x)

    net.forward = forward  # type: ignore[method-assign]
    return net


def _keep_instruction_sets_apart() -> None:
    """Separate Inductor's disk cache by CPU instruction set.

    Its keys do not contain the instruction set (torch 2.13), although its code uses the vector
    width: code for AVX-512 that runs on a CPU with AVX2 skips every second vector.
    """
    torch.compiler.config.cache_key_tag = torch.backends.cpu.get_cpu_capability()
