"""Kernels for robust fine-tuning, written in Triton for GPUs and in torch or numba for CPUs.

Losses and optimizer steps that read their tensors once:

>>> import torch
>>> from kernels import EwcParameters, distill_loss, interpolate
>>> logits, labels = torch.zeros(2, 4), torch.tensor([0, 1])
>>> distill_loss(logits, logits, labels)  # the teacher is the student: only cross-entropy is left
tensor([1.3863, 1.3863])
>>> thetas, momenta, anchors = ([x] for x in torch.tensor([[1.0], [0.0], [0.0]]))
>>> parameters = EwcParameters(thetas, {"momentum_buffer": momenta}, anchors)
>>> parameters.sgd_([torch.zeros(1)], lr=0.5, lam=1.0)  # pulled to the anchor
>>> thetas
[tensor([0.5000])]
>>> parents = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
>>> interpolate(parents, torch.tensor([[0.5, 0.5], [0.0, 1.0]]))
tensor([[0.5000, 1.0000],
        [1.0000, 2.0000]])

Fisher information batch by batch, and flat models for `interpolate`:

>>> from kernels import FisherAccumulator, flatten, views
>>> accumulator = FisherAccumulator(torch.nn.Linear(2, 3))
>>> accumulator.update(torch.zeros(8, 2))
>>> accumulator.mean()["weight"].count_nonzero()
tensor(0)
>>> parents, layout = flatten([{"w": torch.ones(2)}, {"w": torch.zeros(2)}])
>>> views(parents[0], layout)
{'w': tensor([1., 1.])}

`kernels.transport` has distances between labelled datasets. Names are imported on first use, so
you can set TRITON_INTERPRET after `import kernels`.
"""

import importlib
from typing import Any

_MODULES = {
    "EwcParameters": "ewc",
    "FisherAccumulator": "fisher",
    "distill_loss": "distill",
    "flatten": "interpolation",
    "interpolate": "interpolation",
    "views": "interpolation",
}
__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
