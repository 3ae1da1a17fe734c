"""Anderson acceleration of a fixed-point iteration g <- T(g) that sends only products to the host.

From the last points g_k and steps s_k = T(g_k) - g_k, the next point is sum_k w_k T(g_k), where the
weights sum to 1 and minimise |sum_k w_k s_k|. In the differences d_k = s_{k+1} - s_k this is a
least squares problem with at most eight unknowns, and the products <s_j, s_k> give its normal
equations. The products are computed on the device of the steps and reach the host with the other
numbers it needs. Nearly dependent equations are dropped.

Source: Walker & Ni 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MEMORY = 8  # differences
_SLACK = 1e-6  # relative to the dual value: rounding of float32 sums
_DEPENDENT = 1e-12  # cutoff for singular values of the scaled equations, relative to the largest


class Anderson:
    """The last steps and the images T(g) of their starting points, in two ring buffers.

    If T increases a dual value, `guarded` rejects combinations that lower it.
    """

    def __init__(self) -> None:
        self._count = 0
        self._best = -math.inf
        self._products = np.zeros((_MEMORY + 1, _MEMORY + 1))

    def add(self, point: Tensor, step: Tensor) -> Tensor:
        """Adds a step and returns its products with the last steps, float64 [9]."""
        if not self._count:
            self._steps, self._images = step.new_zeros(2, _MEMORY + 1, len(step))
        self._last = self._count % (_MEMORY + 1)
        self._count += 1
        self._steps[self._last] = step
        torch.add(point, step, out=self._images[self._last])
        return self._steps @ step

    def guarded(self, dual: float, products: Sequence[float]) -> tuple[Tensor, bool]:
        """Returns the next point, and whether the last point was accepted.

        dual: the dual value of the last point. If it fell, the next point is the plain image of the
        point before, and the history is cleared.
        """
        if self._count > 1 and not dual >= self._best - _SLACK * abs(self._best):
            self._count = 0
            return self._images[self._last - 1], False
        self._best = max(self._best, dual)
        return self.combined(products), True

    def combined(self, products: Sequence[float]) -> Tensor:
        """Returns the next point; products: the result of `add`."""
        self._products[self._last] = self._products[:, self._last] = products
        if self._count == 1:
            return self._images[self._last]
        ages = range(min(self._count, _MEMORY + 1))
        order = [(self._last - age) % (_MEMORY + 1) for age in reversed(ages)]
        weights = np.zeros(_MEMORY + 1)
        weights[order] = _weights(self._products[np.ix_(order, order)])
        return torch.from_numpy(weights).to(self._images.device, non_blocking=True) @ self._images


def _weights(products: np.ndarray) -> np.ndarray:
    """Weights [k] with sum 1 that minimise the length of the combined steps."""
    if not np.isfinite(products).all():  # steps overflowed: use the last image unchanged
        return np.eye(len(products))[-1]
    toward = np.diff(products, axis=0)
    normal, right = np.diff(toward, axis=1), toward[:, -1]
    squares, limits = products.diagonal(), np.finfo(float)
    # A repeated step leaves only rounding.
    rounding = limits.eps * np.maximum(squares[1:], squares[:-1])
    scale = 1 / np.sqrt(np.maximum(normal.diagonal(), np.maximum(rounding, limits.tiny)))
    scaled = normal * scale * scale[:, None]
    shares = scale * np.linalg.lstsq(scaled, scale * right, rcond=_DEPENDENT)[0]
    # last - sum_k shares_k (image_{k+1} - image_k)
    return np.append(0.0, -shares) + np.append(shares, 1.0)
