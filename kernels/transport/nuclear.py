"""Nuclear norms of many matrices by matrix products only, for GPUs.

On a GPU, a batched eigen-solver takes matrices larger than 32 x 32 one by one, about 1.4 ms each.
Instead, ||M||_* = tr(U^T M), where U is the orthogonal polar factor, the limit of Newton-Schulz
iterations

    X <- (3 / 2) c X - (1 / 2) c^3 (X X^T) X,     X_0 = M / ||M||_F.

Each takes two batched products, the second of which adds the first term. An iteration maps each
singular value s to p(s) = 3/2 cs - 1/2 (cs)^3. If all s of X are in [l, 1], then c^2 = 3 / (1 + l +
l^2) makes p(l) = p(1), so that they are in [p(l), 1] next. While l is small, it grows by a factor
of 2.6 per step; near 1, its distance to 1 is squared. c depends only on l, one number for all
matrices.

The result never exceeds the true value, up to rounding, and is below it by at most

    (1 - l_k) ||M||_*  +  r l_0 ||M||_F,     r = min(rows, columns).

Singular values of at least l_0 ||M||_F count with a factor of l_k or more, and at most r are
smaller. `ERROR` bounds both terms together, for any spectrum.

Sources: Higham 2008, Functions of Matrices, chapter 8; Chen & Chow 2014 (the scaling).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ERROR = 2e-6  # relative: half for the values below l_0, half for l_k < 1


def nuclear_norms(matrices: Tensor) -> Tensor:
    """Returns sums of singular values [...], float64, of matrices [..., r, s], to a relative
    `ERROR`.

    Takes about 45 float64 products of r x r by r x s matrices for each matrix.
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
    """Returns c of each iteration for matrices of at most this rank."""
    least, out = ERROR / (2 * max(rank, 1)), []
    while 1 - least > ERROR / 2:
        c = math.sqrt(3 / (1 + least + least**2))
        out.append(c)
        least = 1.5 * c * least - 0.5 * (c * least) ** 3
    return out
