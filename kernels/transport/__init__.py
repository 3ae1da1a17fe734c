"""Optimal transport between labelled datasets, from class distances to certified values.

>>> import torch
>>> from kernels.transport import GroundCost, bures_squared, class_gaussians, debiased, transport
>>> x, labels = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
>>> a, b = class_gaussians(x, labels, 2), class_gaussians(x + 3, labels, 2)
>>> bures_squared(a, b)  # for equal covariances, the squared distance of the means
tensor([[ 9.0000, 49.0000],
        [ 1.0000,  9.0000]], dtype=torch.float64)
>>> pairs = (x, x + 3), (x, x), (x + 3, x + 3)
>>> terms = [transport(GroundCost(*pair), eps=0.5, tolerance=1e-5) for pair in pairs]
>>> round(debiased(*terms).value, 2)
9.0
"""

from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import debiased, transport

__all__ = [
    "GroundCost",
    "bures_squared",
    "class_gaussians",
    "debiased",
    "transport",
]
