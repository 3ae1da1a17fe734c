"""torch.compile for whole models: one graph serves batches of any size, and every cell of a shape.

On a GPU it is on unless a recipe says otherwise. On a CPU it gained 2 to 4% on small ViTs and takes
half a minute in each process, so there it is off.
"""

from __future__ import annotations

import weakref

import torch
from torch import nn

CUDA_GRAPHS = "cuda_graphs"
GRAPHS = 16  # of one forward pass: one for each choice of what learns, and those of evaluation


def resolve(option: str, device: torch.device) -> str:
    """`auto` means `always` on a GPU and `never` elsewhere.

    Raises ValueError for `cuda_graphs` without a GPU.
    """
    if option == CUDA_GRAPHS and device.type != "cuda":
        raise ValueError(f"evaluate.compile={CUDA_GRAPHS} needs a GPU; use always or never")
    if option == "auto":
        return "always" if device.type == "cuda" else "never"
    return option


def in_place(net: nn.Module, option: str, device: torch.device) -> nn.Module:
    """Compile the forward pass of `net` as `option` says; its state dict stays as it is.

    Parameters are inputs of the graph, so modules of one shape share it, as do states that
    `functional_call` puts into one module. A batch of one image runs uncompiled: it would need a
    graph of its own.
    """
    wanted = resolve(option, device)
    if wanted == "never":
        return net
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, GRAPHS)  # beyond it, models run uncompiled
    graphs = wanted == CUDA_GRAPHS
    plain = type(net).forward
    run = torch.compile(plain, mode="reduce-overhead" if graphs else None)
    own = weakref.ref(net)  # a cycle would keep the weights on the device until they are collected

    def forward(x: torch.Tensor) -> torch.Tensor:
        if len(x) == 1:
            return plain(own(), x)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        if not graphs:
            return run(own(), x)
        torch.compiler.cudagraph_mark_step_begin()
        return run(own(), x).clone()  # the next batch is written to the same memory

    net.forward = forward  # type: ignore[method-assign]
    return net
