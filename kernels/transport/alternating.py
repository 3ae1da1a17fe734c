"""Sinkhorn's iterations on the stored cost: started between classes, accelerated, annealed.

Sinkhorn's iterations are slow if mass has to move between clusters, a little per iteration. If the
clusters are classes, a small problem finds most of it beforehand: transport between the classes'
means has one row per class, and its potentials are the start. For 5000 samples of 100 classes and
eps = 0.05 of the mean cost, 24 iterations follow instead of 54.

An iteration is a map g -> T(g) of the column potential, whose fixed point is the solution.
Anderson's method combines the last steps T(g) - g so that their linear part cancels, which removes
the remaining slow modes. From the last points g_k and steps s_k = T(g_k) - g_k, the next point is
sum_k w_k T(g_k), where the weights sum to 1 and minimise |sum_k w_k s_k|. In the differences
d_k = s_{k+1} - s_k this is a least squares problem with at most eight unknowns, and the products
<s_j, s_k> give its normal equations. Nearly dependent equations are dropped. The dual value, a
by-product of a sweep, guards it: if a combination lowers the dual value, the plain iteration, which
cannot, replaces it.

All numbers that the host needs are computed first and read at once: on a GPU, an iteration is a
fixed number of launches and one wait (`tests/kernels/transport/test_launches.py`).

Sources: Feydy et al. 2019 (one averaged potential); Walker & Ni 2011 (Anderson's method).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kernels.transport.certificate import Certificate
from kernels.transport.cost import GroundCost
from kernels.transport.store import STRIP, StoredCost
from kernels.transport.sweep import row_sums, sinkhorn_sweep

_FIRST_EPS = 0.05  # of the mean cost: a cold start converges in few iterations
_EPS_RATIO = 2.5  # between stages; each starts from the last one's potentials
_STAGE_TARGET = 0.02
_LOG_LIMIT = 60.0  # the stabilising potential is stale if a row sum leaves [e^-60, e^60]
_STALLED = 20  # iterations without progress, once float32 may limit the error
_ROUNDING = 1e-7  # relative to the largest term of the exponents, a float32 sum
_BETWEEN_CLASSES = 60  # maximum iterations; fewer if they would take longer than two sweeps
_MEMORY = 8  # differences that Anderson's method combines
_SLACK = 1e-6  # relative to the dual value: rounding of float32 sums
_DEPENDENT = 1e-12  # cutoff for singular values of the scaled equations, relative to the largest


class Potentials:
    """The potentials of one problem, float64 in sorted order, and the iterations that improve them.

    symmetric: the cost is between a dataset and itself, and f = g is one potential. A small eps is
    approached from larger ones.
    """

    def __init__(self, stored: StoredCost, *, symmetric: bool, max_iterations: int) -> None:
        self.stored = stored
        self.symmetric = symmetric
        self.max_iterations = max_iterations
        self.iterations = 0
        self._ratio: Tensor | None = None  # column sums / b for the current g
        self._scaled_for = math.nan  # eps
        self._eps = math.inf
        self.g = torch.zeros_like(stored.cost.y.squares)
        # f only stabilises the row sums: each sweep computes the exact one.
        self.f = stored.row_minimum

    @property
    def exhausted(self) -> bool:
        return self.iterations >= self.max_iterations

    def solve(self, eps: float, target: float) -> None:
        """Iterates at eps until the marginals' L1 error is at most `target`, or until exhausted."""
        self._ratio = None
        if self.symmetric:
            self._average(eps, target)
            return
        stage = min(_FIRST_EPS * self.stored.cost.mean, self._eps / _EPS_RATIO)
        if self._eps == math.inf:
            self.f, self.g = class_potentials(self.stored.cost, max(stage, eps))
        while stage > 1.5 * eps:
            self._alternate(stage, _STAGE_TARGET)
            stage /= _EPS_RATIO
        self._alternate(eps, target)
        self._eps = eps

    def shares(self, eps: float) -> Tensor:
        """Returns min(1, b / c), float64 [m], for the column sums c of the plan with exact rows."""
        ratio = self._ratio
        if ratio is None:
            n, m = self.stored.shape
            ratio = self._sweep(self.g if self.symmetric else self.f, eps)[1] * (m / n)
        return ratio.reciprocal().nan_to_num_(nan=1.0).clamp_(1e-30, 1.0)

    def update(self, certificate: Certificate, anderson: Anderson) -> None:
        """Continues from the exact iteration of a certificate."""
        step = (certificate.f if self.symmetric else certificate.next_g) - self.g
        products = anderson.add(self.g, step / 2 if self.symmetric else step)
        self.g = anderson.combined(products.tolist())
        self.f = certificate.f
        self._ratio = None

    def _alternate(self, eps: float, target: float) -> None:
        n, m = self.stored.shape
        self._ratio = None
        history, anderson = _History(), Anderson()
        share = self.g.new_tensor(n / m).expand(m)  # a column's share of the rows' mass, n
        vector = {"dim": 0, "keepdim": True}
        norm = partial(torch.linalg.vector_norm, **vector, dtype=torch.float64)
        while not self.exhausted:
            log_s, columns = self._sweep(self.f, eps)
            f = torch.sub(self.f, log_s, alpha=eps)
            step = torch.rsub(columns.clamp(min=1e-30).log_(), eps * math.log(n / m), alpha=eps)
            off = torch.dist(columns, share, 1)[None]
            products = anderson.add(self.g, step)
            means = f.mean(**vector), self.g.mean(**vector)
            facts = torch.cat([norm(log_s, math.inf), *means, off, products])
            largest, mean_f, mean_g, off, *products = facts.tolist()  # the one wait
            dual, error = mean_f + mean_g, off / n
            if not largest < _LOG_LIMIT:
                self.f, anderson = self._row_transform(), Anderson()
                continue
            following, rose = anderson.guarded(dual, products)
            if rose:
                self.f = f
                if history.done(error, target, lambda: self._rounding(self.f, eps)):
                    self._ratio = columns * (m / n)
                    return
            self.g = following

    def _average(self, eps: float, target: float) -> None:
        """One potential, f <- (f + T(f)) / 2, starting at 0 so that no exponent is positive.

        Row sums give the marginals' error too, since the plan is nearly symmetric.
        """
        history = _History()
        norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
        while not self.exhausted:
            log_s = self._row_sums(self.g, eps)
            largest, error = torch.stack([norm(log_s, math.inf), norm(log_s.expm1(), 1)]).tolist()
            if not largest < _LOG_LIMIT:
                self.g = torch.zeros_like(self.g)
                continue
            if history.done(error / len(self.g), target, lambda: self._rounding(self.g, eps)):
                return
            self.g = torch.sub(self.g, log_s, alpha=eps / 2)

    def _rounding(self, potential: Tensor, eps: float) -> float:
        return _ROUNDING * float(potential.abs().amax()) / eps

    def _scaled(self, f: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """The sweeps' f, g and kappa in units of eps: float32 [n], [m], [n].

        On a GPU this takes three launches. log b is included in f.
        """
        if eps != self._scaled_for:
            self._scaled_for = eps
            self._subtracted = self.stored.offset + eps * math.log(len(self.g))
            self._kappa = (self.stored.step / eps).float()
        rows, columns = torch.empty_like(self._kappa), torch.empty_like(self.g, dtype=torch.float32)
        torch.mul(f - self._subtracted, 1 / eps, out=rows)
        torch.mul(self.g, 1 / eps, out=columns)
        return rows, columns, self._kappa

    def _sweep(self, f: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Logarithms of row sums, float32 [n], and column sums, float64 [m]."""
        self.iterations += 1
        rows_f, columns_g, kappa = self._scaled(f, eps)
        if self.stored.q is not None:
            log_s, columns = sinkhorn_sweep(self.stored.q, rows_f, columns_g, kappa)
            return log_s, columns
        log_s, columns = torch.empty_like(rows_f), torch.zeros_like(self.g)
        for rows, q in self.stored.parts():
            log_s[rows], part = sinkhorn_sweep(q, rows_f[rows], columns_g, kappa[rows])
            columns += part
        return log_s, columns

    def _row_sums(self, f: Tensor, eps: float) -> Tensor:
        """Logarithms of row sums, float32 [n]."""
        self.iterations += 1
        rows_f, columns_g, kappa = self._scaled(f, eps)
        parts = self.stored.parts()
        return torch.cat([row_sums(q, rows_f[rows], columns_g, kappa[rows]) for rows, q in parts])

    def _row_transform(self) -> Tensor:
        """f = min_j (C - g), which makes the largest exponent of each row 0."""
        self.iterations += 1
        f = torch.empty_like(self.stored.offset)
        height = max(1, STRIP[f.device.type] // len(self.g))
        for rows, q in self.stored.parts():
            for start in range(0, len(q), height):
                part = q[start : start + height]
                strip = slice(rows.start + start, rows.start + start + len(part))
                reduced = self.stored.step[strip, None] * part - self.g
                f[strip] = self.stored.offset[strip] + reduced.amin(1)
        return f


def class_potentials(cost: GroundCost, eps: float) -> tuple[Tensor, Tensor]:
    """Returns potentials f [n] and g [m] of transport between classes, each concentrated at its
    mean.

    A constant is added to the classes' costs so that their mean equals that of the samples' costs.
    """
    n, m = cost.shape
    if cost.table is None:
        return cost.x.squares.new_full((n,), cost.mean), torch.zeros_like(cost.y.squares)
    (means_x, a), (means_y, b) = (
        cloud.class_means(classes)
        for cloud, classes in zip((cost.x, cost.y), cost.table.shape, strict=True)
    )
    costs = torch.cdist(means_x, means_y).square() + cost.table
    costs += cost.mean - a @ costs @ b
    low = costs.amin(1, keepdim=True)
    high = (costs - low).amin(0)
    kernel = ((low + high - costs) / eps).exp()  # 1 somewhere in each row and column
    log_v, anderson = torch.zeros_like(b), Anderson()
    for _ in range(min(_BETWEEN_CLASSES, 2 * n * m // costs.numel())):
        log_u = -(kernel @ (b * log_v.exp())).clamp(min=1e-100).log()
        image = -((a * log_u.exp()) @ kernel).clamp(min=1e-100).log()
        products = anderson.add(log_v, image - log_v).tolist()
        log_v, _ = anderson.guarded(float(a @ log_u + b @ log_v), products)
    log_u = -(kernel @ (b * log_v.exp())).clamp(min=1e-100).log()
    f, g = low[:, 0] + eps * log_u, high + eps * log_v
    return f[cost.x.labels], g[cost.y.labels]


class _History:
    """Decides when a marginal error is small enough, or only rounding is left."""

    def __init__(self) -> None:
        self.best = math.inf
        self.stalled = 0

    def done(self, error: float, target: float, rounding: Callable[[], float]) -> bool:
        """Whether to stop. Calls `rounding` only if there is no progress, since it waits for the
        GPU.
        """
        self.stalled = 0 if error < 0.98 * self.best else self.stalled + 1
        self.best = min(self.best, error)
        return error <= target or (self.stalled >= _STALLED and self.best < rounding())


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
