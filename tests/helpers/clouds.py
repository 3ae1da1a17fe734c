"""Labelled clouds of points, and the transport problem between two of them."""

import torch
from torch import Tensor

from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.cost import GroundCost

CLASSES, D = 5, 16


def labelled(n: int, seed: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    labels[:CLASSES] = torch.arange(CLASSES)
    centres = torch.linspace(-2, 2, CLASSES)[:, None] * torch.ones(D)
    return centres[labels] + torch.randn(n, D, generator=generator) + shift, labels


def problem(
    n: int, m: int, seed: int = 0, shift: float = 0.3, device: torch.device | str = "cpu"
) -> GroundCost:
    x, labels_x = (tensor.to(device) for tensor in labelled(n, seed))
    y, labels_y = (tensor.to(device) for tensor in labelled(m, seed + 1, shift))
    table = bures_squared(
        class_gaussians(x, labels_x, CLASSES), class_gaussians(y, labels_y, CLASSES)
    )
    return GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=table)


def dense(cost: GroundCost) -> Tensor:
    return cost.rows(0, cost.shape[0])


def self_problem(n: int) -> GroundCost:
    """The cost between n samples and themselves."""
    x, labels = labelled(n, 0)
    table = bures_squared(class_gaussians(x, labels, CLASSES))
    return GroundCost(x, x, labels_x=labels, labels_y=labels, table=table)


def entropic_transport(cost: Tensor, eps: float, iterations: int) -> tuple[Tensor, Tensor, float]:
    """The twin of `kernels.transport.transport`: potentials f, g and the value, in float64.

    Solves min_P <P, C> + eps KL(P || a b^T) with uniform marginals by alternating log-domain
    updates.
    """
    cost = cost.double()
    log_a, log_b = (-torch.tensor(float(size)).double().log() for size in cost.shape)
    f, g = cost.new_zeros(cost.shape[0]), cost.new_zeros(cost.shape[1])
    for _ in range(iterations):
        g = -eps * torch.logsumexp((f[:, None] - cost) / eps + log_a, 0)
        f = -eps * torch.logsumexp((g - cost) / eps + log_b, 1)
    return f, g, float(f.mean() + g.mean())
