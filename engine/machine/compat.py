"""Names of torch and DeepSpeed that are not public, each with the reason for its use.

They may change without notice: setup.py has upper bounds, and `make newest` tries versions beyond
them. `kernels.fisher` looks for `BatchNorm` itself, since kernels import nothing of the engine.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d

# `_foreach_*`, operations on lists of tensors: a few launches for all of a model's tensors. The
# optimizers of torch are made of them, and there are no public ones, nor type stubs.
LISTS: Any = torch
BatchNorm = nn.modules.batchnorm._BatchNorm  # the base class of all, SyncBatchNorm among them
# Public since torch 2.15. DeepSpeed's groups, which only average gradients, keep the default.
set_timeout = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout


def forget_constructor(optimizer: Any, kind: type) -> None:
    """Lets a ZeroRedundancyOptimizer keep a class in place of the constructor that it was given,
    which holds all that the constructor was bound to, such as the whole penalty."""
    optimizer._optim_constructor = kind


def without_operators(deepspeed: ModuleType) -> None:
    """Marks DeepSpeed's operators for CPUs as missing; the engine calls none of them.

    Otherwise DeepSpeed looks for a compiler for each in each process (about a second), and then
    compiles one for 40 s that only inference on several CPU ranks calls.
    """
    deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


def allow_graphs(count: int) -> None:
    """Lets torch.compile make so many graphs of a function; beyond its limit, it runs uncompiled
    without an error."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, count)


def mark_batch_dynamic(x: torch.Tensor) -> None:
    """Lets one graph serve all batch sizes, and makes no error where it cannot."""
    torch._dynamo.maybe_mark_dynamic(x, 0)
