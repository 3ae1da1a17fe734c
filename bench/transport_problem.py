"""The problem that transport's contests solve: two labelled samples, and their costs."""

from __future__ import annotations

import numpy as np
import torch

from bench.roofline import Work
from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.cost import GroundCost

EPS = 0.05  # of the mean cost
DIMENSION = 768


class Problem:
    """Two samples of n from mixtures whose spectrum decays as 1 / k, classes drawn at random.

    The second has its classes moved, as another style of the same concepts would. The table holds
    distances of means: what is in it costs a solver nothing.
    """

    def __init__(self, n: int, classes: int, device: torch.device, *, d: int = DIMENSION) -> None:
        generator = torch.Generator().manual_seed(0)
        scale = torch.arange(1, d + 1) ** -0.5
        centres = torch.randn(classes, d, generator=generator) * scale
        self.n = n
        self.features, self.labels = [], []
        for k in range(2):
            labels = torch.randint(classes, (n,), generator=generator)
            labels[:classes] = torch.arange(classes)
            moved = centres + 0.5 * k * torch.randn(classes, d, generator=generator) * scale
            noise = torch.randn(n, d, generator=generator)
            self.features.append((moved[labels] + 0.7 * noise * scale).to(device))
            self.labels.append(labels.to(device))
        a, b = (
            class_gaussians(*pair, classes) for pair in zip(self.features, self.labels, strict=True)
        )
        pairs = ((a, b), (a, None), (b, None))
        self.table, *self.self_tables = (bures_squared(*pair, means_only=True) for pair in pairs)
        self.eps = EPS * self.cost().mean

    @property
    def product(self) -> Work:
        """The float32 product of the features."""
        return Work(flops=2 * self.n**2 * self.features[0].shape[1])

    def cost(self) -> GroundCost:
        x, y = self.features
        labels_x, labels_y = self.labels
        return GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=self.table)

    def self_cost(self, k: int) -> GroundCost:
        x, labels = self.features[k], self.labels[k]
        return GroundCost(x, x, labels_x=labels, labels_y=labels, table=self.self_tables[k])

    def dense(self) -> np.ndarray:
        """The cost in float32, as fast as we can build it, for solvers that want a matrix."""
        return self.cost().rows(0, self.n).float().numpy()

    def dense_double(self) -> np.ndarray:
        """The cost as POT's users build it. Rows and columns are sorted by class, as `dense`."""
        import ot

        cost = self.cost()
        clouds = zip(self.features, (cost.x, cost.y), strict=True)
        x, y = (features[cloud.order].numpy() for features, cloud in clouds)
        labels_x, labels_y = cost.x.labels.numpy(), cost.y.labels.numpy()
        return ot.dist(x.astype(np.float64), y) + self.table.numpy()[labels_x][:, labels_y]
