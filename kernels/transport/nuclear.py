"""Nuclear norms of many matrices by products alone, for GPUs.

A batched eigen-solver on a GPU takes matrices above 32 x 32 one by one, about 1.4 ms each. Here
||M||_* = tr(U^T M) of the orthogonal polar factor U, to which Newton-Schulz iterations go,

    X <- (3 / 2) c X - (1 / 2) c^3 (X X^T) X,     X_0 = M / ||M||_F,

two batched products each, of which the second adds the first term. They act on singular values s
alone, by p(s) = 3/2 cs - 1/2 (cs)^3. If all s of X lie in [l, 1], then c^2 = 3 / (1 + l + l^2)
makes p(l) = p(1), so that they lie in [p(l), 1] next: l grows by 2.6 a step while it is small, and
its distance to 1 is squared at the end. c depends on l only, which is followed as one number, the
same for all matrices.

The value is never above the true one, up to rounding, and below it by at most

    (1 - l_k) ||M||_*  +  r l_0 ||M||_F,

r = min(rows, columns): what began at l_0 ||M||_F or more is counted with a factor of l_k or more,
and there are at most r values below that. `ERROR` bounds both terms together, for any spectrum.

Sources: Higham 2008, Functions of Matrices, chapter 8; Chen & Chow 2014 (the scaling).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ERROR = 2e-6  # of the value; half of it is what l_0 leaves out, half what l_k does


def nuclear_norms(matrices: Tensor) -> Tensor:
    """Sums of singular values [...], float64, of matrices [..., r, s], to `ERROR` of each.

    It takes about 45 products of r x r by r x s matrices for each, in float64.
    """
    m = matrices.double().flatten(0, -3) if matrices.ndim > 2 else matrices.double()[None]
    if m.shape[1] > m.shape[2]:
        m = m.mT
    length = torch.linalg.matrix_norm(m)[:, None, None]
    x = m / length.clamp(min=torch.finfo(torch.float64).tiny)
    for c in scales(m.shape[1]):
        x = torch.baddbmm(x, x @ x.mT, x, beta=1.5 * c, alpha=-0.5 * c**3)
    return (x * m).sum((1, 2)).reshape(matrices.shape[:-2])


def scales(rank: int) -> list[float]:
    """c of each iteration for matrices of at most this rank."""
    least, out = ERROR / (2 * max(rank, 1)), []
    while 1 - least > ERROR / 2:
        c = math.sqrt(3 / (1 + least + least**2))
        out.append(c)
        least = 1.5 * c * least - 0.5 * (c * least) ** 3
    return out
