"""Anderson acceleration of a fixed-point iteration g <- T(g), whose host reads products alone.

Of the last points g_k and steps s_k = T(g_k) - g_k the next point is sum_k w_k T(g_k), where the
weights sum to 1 and make |sum_k w_k s_k| least. With the differences d_k = s_{k+1} - s_k that is a
least squares problem of at most eight unknowns, whose normal equations follow from the products
<s_j, s_k>: they are computed where the steps are, and only they reach the host, together with
whatever else it has to know. Equations whose unknowns are as good as dependent are left out.

Source: Walker & Ni 2011.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MEMORY = 8  # differences
_SLACK = 1e-6  # of the dual value: rounding of float32 sums
_DEPENDENT = 1e-12  # singular values of the scaled equations, of the largest


class Anderson:
    """The last steps, and the images T(g) of the points they started from, in two rings.

    Where T ascends a dual value, `guarded` takes no combination that lowers it.
    """

    def __init__(self) -> None:
        self._count = 0
        self._best = -math.inf
        self._products = np.zeros((_MEMORY + 1, _MEMORY + 1))

    def add(self, point: Tensor, step: Tensor) -> Tensor:
        """The products of the last steps with this one, float64 [9]."""
        if not self._count:
            self._steps, self._images = step.new_zeros(2, _MEMORY + 1, len(step))
        self._last = self._count % (_MEMORY + 1)
        self._count += 1
        self._steps[self._last] = step
        torch.add(point, step, out=self._images[self._last])
        return self._steps @ step

    def guarded(self, dual: float, products: Sequence[float]) -> tuple[Tensor, bool]:
        """The next point, and whether the last one was good: if not, the plain image of the one
        before it is next, and what was added is forgotten. dual: that of the last point."""
        if self._count > 1 and not dual >= self._best - _SLACK * abs(self._best):
            self._count = 0
            return self._images[self._last - 1], False
        self._best = max(self._best, dual)
        return self.combined(products), True

    def combined(self, products: Sequence[float]) -> Tensor:
        """The next point; products: what `add` returned."""
        self._products[self._last] = self._products[:, self._last] = products
        if self._count == 1:
            return self._images[self._last]
        ages = range(min(self._count, _MEMORY + 1))
        order = [(self._last - age) % (_MEMORY + 1) for age in reversed(ages)]
        weights = np.zeros(_MEMORY + 1)
        weights[order] = _weights(self._products[np.ix_(order, order)])
        return torch.from_numpy(weights).to(self._images.device, non_blocking=True) @ self._images


def _weights(products: np.ndarray) -> np.ndarray:
    """The weights [k] of sum 1 that make the length of the combined steps least."""
    if not np.isfinite(products).all():  # steps that overflowed: the last image, as it is
        return np.eye(len(products))[-1]
    toward = np.diff(products, axis=0)
    normal, right = np.diff(toward, axis=1), toward[:, -1]
    squares, limits = products.diagonal(), np.finfo(float)
    rounding = limits.eps * np.maximum(
        squares[1:], squares[:-1]
    )  # a repeated step leaves only that
    scale = 1 / np.sqrt(np.maximum(normal.diagonal(), np.maximum(rounding, limits.tiny)))
    scaled = normal * scale * scale[:, None]
    shares = scale * np.linalg.lstsq(scaled, scale * right, rcond=_DEPENDENT)[0]
    # last - sum_k shares_k (image_{k+1} - image_k)
    return np.append(0.0, -shares) + np.append(shares, 1.0)
