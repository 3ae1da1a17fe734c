"""Optimal transport between labelled sets, from class distances to certified values."""

from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import debiased, transport, unregularised

__all__ = [
    "GroundCost",
    "bures_squared",
    "class_gaussians",
    "debiased",
    "transport",
    "unregularised",
]
