"""Kernels for robust fine-tuning, written in Triton for GPUs and in torch or numba for CPUs.

Losses and optimizer steps that read their tensors once:

>>> import torch
>>> from kernels import distill_loss, interpolate, sgd_ewc_
>>> logits, labels = torch.zeros(2, 4), torch.tensor([0, 1])
>>> distill_loss(logits, logits, labels)  # the teacher is the student: only cross-entropy is left
tensor([1.3863, 1.3863])
>>> theta, gradient, momentum, anchor = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
>>> sgd_ewc_(theta, gradient, momentum, anchor, lr=0.5, lam=1.0)  # pulled towards the anchor
>>> theta
tensor([0.5000])
>>> parents = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
>>> interpolate(parents, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
tensor([[0.5000, 1.0000],
        [1.0000, 2.0000]])

Fisher information batch by batch, and steps of many tensors:

>>> from kernels import FisherAccumulator, foreach_adamw_ewc_, foreach_sgd_ewc_
>>> accumulator = FisherAccumulator(torch.nn.Linear(2, 3))
>>> accumulator.update(torch.zeros(8, 2))
>>> accumulator.mean()["weight"].count_nonzero()
tensor(0)
>>> thetas, gradients, momenta = ([torch.ones(2), torch.ones(1)] for _ in range(3))
>>> foreach_sgd_ewc_(thetas, gradients, momenta, lr=0.5, momentum=0.0)
>>> thetas
[tensor([0.5000, 0.5000]), tensor([0.5000])]
>>> means, squares = ([torch.zeros(2), torch.zeros(1)] for _ in range(2))
>>> foreach_adamw_ewc_(thetas, gradients, means, squares, steps=[1, 1], lr=0.1)
>>> thetas
[tensor([0.4000, 0.4000]), tensor([0.4000])]

Flat models for `interpolate`, and a step of one tensor:

>>> from kernels import adamw_ewc_, flatten, views
>>> parents, layout = flatten([{"w": torch.ones(2)}, {"w": torch.zeros(2)}])
>>> views(parents[0], layout)
{'w': tensor([1., 1.])}
>>> theta, gradient, mean, square = torch.zeros(4, 3)
>>> adamw_ewc_(theta, gradient + 1, mean, square, step=1, lr=0.1)
>>> theta
tensor([-0.1000, -0.1000, -0.1000])

`kernels.transport` has distances between labelled datasets. Names are imported on first use, so
you can set TRITON_INTERPRET after `import kernels`.
"""

import importlib
from typing import Any

_MODULES = {
    "FisherAccumulator": "fisher",
    "adamw_ewc_": "ewc",
    "distill_loss": "distill",
    "flatten": "interpolation",
    "foreach_adamw_ewc_": "ewc",
    "foreach_sgd_ewc_": "ewc",
    "interpolate": "interpolation",
    "sgd_ewc_": "ewc",
    "views": "interpolation",
}
__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
