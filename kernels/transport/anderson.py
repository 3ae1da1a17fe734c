"""Anderson acceleration of a fixed-point iteration g <- T(g), whose host reads products alone.

Of the last points g_k and steps s_k = T(g_k) - g_k the next point is sum_k w_k T(g_k), where the
weights sum to 1 and make |sum_k w_k s_k| least. With the differences d_k = s_{k+1} - s_k that is a
least squares problem of at most eight unknowns, whose normal equations follow from the products
<s_j, s_k>: they are computed where the steps are, and only they reach the host, together with
whatever else it has to know. Equations whose unknowns are as good as dependent are left out.

Source: Walker & Ni 2011.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MEMORY = 8  # differences
_DEPENDENT = 1e-12  # singular values of the scaled equations, of the largest


class Anderson:
    """The last steps, and the images T(g) of the points they started from."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        self.images: list[Tensor] = []

    def add(self, point: Tensor, step: Tensor) -> Tensor:
        """The products of the last steps, float64 [k, k], of which this is the last."""
        self.steps = [*self.steps, step][-_MEMORY - 1 :]
        self.images = [*self.images, point + step][-_MEMORY - 1 :]
        steps = torch.stack(self.steps)
        return steps @ steps.T

    def drop(self) -> None:
        """Forgets the last step."""
        self.steps.pop()
        self.images.pop()

    def combined(self, products: Sequence[float]) -> Tensor:
        """The next point; products: what `add` returned, row after row."""
        k = len(self.images)
        if k == 1:
            return self.images[0]
        weights = _weights(np.array(products).reshape(k, k))
        images = torch.stack(self.images)
        return torch.from_numpy(weights).to(images.device, non_blocking=True) @ images


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
