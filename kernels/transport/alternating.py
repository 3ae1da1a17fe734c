"""Sinkhorn's iterations on the stored cost: on two levels, accelerated, safeguarded, annealed.

What makes Sinkhorn's iterations slow is mass that has to move between clusters, a little each time.
Samples are sorted by class, and a sweep tells how much mass goes from each block of rows to each
column: so after the usual update the plan is summed over blocks, Sinkhorn's iterations on that
small matrix find what scales whole blocks so that their marginals are right, and the potentials
follow (`blocks`; iterative aggregation and disaggregation). It is an ascent of the dual as the
plain update is, up to rounding. Each of those iterations reads the small matrix twice, 0.1 MB for
100 classes and 8 MB for 1000, where a sweep of 10,000 samples reads 200 MB. For 2500 samples of
100 classes at eps of 0.05 of the mean cost the marginals are right to 1e-5 after 5 iterations, not
51; where clusters are not classes it changes nothing.

A whole iteration is a map g -> T(g) of the column potential, whose fixed point is the solution.
Anderson's method combines the last steps T(g) - g so that their linear part cancels, which removes
the slow modes that are left. The dual value, which a sweep yields for nothing, guards it: a
combination that lowers it is dropped for the plain iteration, which cannot. Where eps is small and
few entries of the plan matter, Newton's method takes over (`newton`).

All that the host decides on is computed first and read at once: on a GPU an iteration is a fixed
number of launches and one wait (`tests/kernels/transport/test_launches.py`).

Source: Feydy et al. 2019 (one averaged potential).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kernels.transport.anderson import Anderson
from kernels.transport.blocks import block_step
from kernels.transport.certificate import Certificate
from kernels.transport.newton import ascend, newton_point, newton_step
from kernels.transport.progress import progress
from kernels.transport.store import CERTIFIED_STRIP, StoredCost
from kernels.transport.sweep import row_sums, sinkhorn_sweep, within
from kernels.transport.triangle import symmetric_row_sums

_FIRST_EPS = 0.05  # of the mean cost: reached from a cold start in about ten iterations
_EPS_RATIO = 2.5  # between stages; each starts from the last one's potentials
_STAGE_TARGET = 0.02
_NEWTON_BELOW = 0.005  # eps, of the mean cost
_NEAR = 0.5  # marginal error from which a start is worth more than stages
_LOG_LIMIT = 60.0  # a row sum beyond e^60 either way: the potential that stabilises it is stale
_STALLED = 20  # iterations without progress, once the error may be float32's
_ROUNDING = 1e-7  # of the exponents' largest term, which float32 sums up
_SLACK = 1e-6  # of the dual value: rounding of float32 sums


class Potentials:
    """The potentials of one problem, float64 in sorted order, and the iterations that improve them.

    symmetric: the cost is between a set and itself, and f = g is one potential. start: a column
    potential [m] in sorted order. Small eps is approached from large ones, unless the start is
    near: one that is not has taken up to twice as long as none.
    """

    def __init__(
        self, stored: StoredCost, *, symmetric: bool, start: Tensor | None, max_iterations: int
    ) -> None:
        self.stored = stored
        self.symmetric = symmetric
        self.max_iterations = max_iterations
        self.iterations = 0
        # One potential takes no step between blocks, whose sums would only be added up.
        ends = torch.tensor([0, len(stored.cost.x.x)])
        self._bounds = ends if symmetric else stored.cost.x.bounds
        device = stored.offset.device
        self._of_rows, self._of_columns = self._bounds.to(device), stored.cost.y.bounds.to(device)
        sizes = stored.cost.y.bounds.diff()
        self._block = torch.arange(len(sizes)).repeat_interleave(sizes).to(device)
        self._ratio: Tensor | None = None  # of column sums to b, for g as it is
        self._scaled_for = math.nan  # eps
        self._eps = math.inf
        self._start = start is not None
        self.g = torch.zeros_like(stored.cost.y.squares) if start is None else start
        # Only stabilises the sums over rows, whose exact potential every sweep finds.
        self.f = stored.row_minimum if start is None else self._row_transform()

    @property
    def exhausted(self) -> bool:
        return self.iterations >= self.max_iterations

    def solve(self, eps: float, target: float) -> None:
        """Iterate at eps until the marginals are off by at most `target` (L1), or exhausted."""
        self._ratio = None
        if self.symmetric:
            self._average(eps, target)
            return
        stage = min(_FIRST_EPS * self.stored.cost.mean, self._eps / _EPS_RATIO)
        if self._start:
            self._start = False
            if self._over_b(self._sweep(self.f, eps)[1]).sub_(1).abs().mean() < _NEAR:
                stage = eps
            else:
                self.g, self.f = torch.zeros_like(self.g), self.stored.row_minimum
        while stage > 1.5 * eps:
            self._improve(stage, _STAGE_TARGET)
            stage /= _EPS_RATIO
        self._improve(eps, target)
        self._eps = eps

    def shares(self, eps: float) -> Tensor:
        """min(1, b / c) for the column sums c of the plan with exact rows; in (0, 1]."""
        ratio = self._ratio
        if ratio is None:
            ratio = self._over_b(self._sweep(self.g if self.symmetric else self.f, eps)[1])
        return ratio.reciprocal().nan_to_num_(nan=1.0).clamp_(1e-30, 1.0)

    def update(self, certificate: Certificate, anderson: Anderson) -> None:
        """Go on from the exact iteration that a certificate made."""
        step = (certificate.f if self.symmetric else certificate.next_g) - self.g
        gram = anderson.add(self.g, step / 2 if self.symmetric else step)
        self.g = anderson.combined(gram.flatten().tolist())
        self.f = certificate.f
        self._ratio = None

    def _improve(self, eps: float, target: float) -> None:
        small = eps < _NEWTON_BELOW * self.stored.cost.mean
        if not (small and self._newton(eps, target)):
            self._alternate(eps, target)

    def _newton(self, eps: float, target: float) -> bool:
        """Newton's method as far as it goes; whether the marginals are right then."""
        costs = self.stored.cost if self.stored.q is None else self.stored
        point = newton_point(costs, self.g, eps)
        self.iterations += 1
        while point.plan is not None and point.error > target and not self.exhausted:
            step, left = newton_step(point, eps), self.max_iterations - self.iterations
            following, passes = ascend(costs, point, step, eps, left)
            self.iterations += passes
            if following is None:
                break
            point = following
        self.g, self.f, self._ratio = point.g, point.f, point.columns * len(point.g)
        return point.error <= target

    def _alternate(self, eps: float, target: float) -> None:
        self._ratio = None
        history, anderson = _History(), Anderson()
        best, plain = -math.inf, None
        while not self.exhausted:
            log_s, columns = self._sweep(self.f, eps)
            f = torch.sub(self.f, log_s, alpha=eps)
            ratio, step = block_step(columns, self._of_rows, self._of_columns, self._block)
            gram = anderson.add(self.g, eps * step)
            facts = torch.cat([progress(f, self.g, log_s, ratio), gram.flatten()])
            largest, dual, error, *products = facts.tolist()  # the one wait
            if not largest < _LOG_LIMIT:
                anderson.drop()
                self.f = self._row_transform()
                continue
            if plain is not None and dual < best - _SLACK * abs(best):
                self.g, plain, anderson = plain, None, Anderson()
                continue
            best, self.f = max(best, dual), f
            if history.done(error, target, lambda: self._rounding(self.f, eps)):
                self._ratio = ratio
                return
            plain = anderson.images[-1]
            self.g = anderson.combined(products)

    def _average(self, eps: float, target: float) -> None:
        """One potential, f <- (f + T(f)) / 2, from 0: no exponent is positive then.

        Row sums tell the marginals' error too, since the plan is nearly symmetric.
        """
        history = _History()
        while not self.exhausted:
            log_s = self._row_sums(self.g, eps)
            norm = partial(torch.linalg.vector_norm, dtype=torch.float64)
            largest, error = torch.stack([norm(log_s, math.inf), norm(log_s.expm1(), 1)]).tolist()
            if not largest < _LOG_LIMIT:
                self.g = torch.zeros_like(self.g)
                continue
            if history.done(error / len(self.g), target, lambda: self._rounding(self.g, eps)):
                return
            self.g = torch.sub(self.g, log_s, alpha=eps / 2)

    def _rounding(self, potential: Tensor, eps: float) -> float:
        return _ROUNDING * float(potential.abs().amax()) / eps

    def _over_b(self, columns: Tensor) -> Tensor:
        """Ratios of column sums to b, float64 [m], given sums [blocks of rows, m]."""
        n, m = self.stored.shape
        return columns.sum(0, dtype=torch.float64) * (m / n)

    def _scaled(self, f: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """What sweeps take for f, g and the costs' steps, in units of eps: float32 [n], [m], [n].

        On a GPU it is three launches. log b is added to all rows.
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
        """Logarithms of row sums, [n], and column sums, [blocks of rows, m], float32."""
        self.iterations += 1
        rows_f, columns_g, kappa = self._scaled(f, eps)
        if self.stored.q is not None:
            log_s, columns = sinkhorn_sweep(self.stored.q, rows_f, columns_g, kappa, self._of_rows)
            return log_s, columns
        columns = columns_g.new_zeros(len(self._bounds) - 1, len(columns_g))
        log_s = torch.empty_like(rows_f)
        for rows, q in self.stored.parts():
            blocks, inside = within(self._bounds, rows)
            log_s[rows], part = sinkhorn_sweep(q, rows_f[rows], columns_g, kappa[rows], inside)
            columns[blocks] += part
        return log_s, columns

    def _row_sums(self, f: Tensor, eps: float) -> Tensor:
        """Logarithms of row sums, float32 [n], of a set against itself."""
        self.iterations += 1
        rows_f, columns_g, kappa = self._scaled(f, eps)
        if self.stored.q is not None:
            return symmetric_row_sums(self.stored.q, rows_f, columns_g, kappa)
        parts = self.stored.parts()
        return torch.cat([row_sums(q, rows_f[rows], columns_g, kappa[rows]) for rows, q in parts])

    def _row_transform(self) -> Tensor:
        """f = min_j (C - g): with it no exponent is positive, and a row's largest is 0."""
        self.iterations += 1
        f = torch.empty_like(self.stored.offset)
        # On the CPU a strip stays in cache; on a GPU each takes five launches.
        height = max(32, CERTIFIED_STRIP["cuda"] // len(self.g)) if f.is_cuda else 32
        for rows, q in self.stored.parts():
            for start in range(0, len(q), height):
                part = q[start : start + height]
                strip = slice(rows.start + start, rows.start + start + len(part))
                reduced = self.stored.step[strip, None] * part - self.g
                f[strip] = self.stored.offset[strip] + reduced.amin(1)
        return f


class _History:
    """Tells when a marginal error is small enough, or only rounding is left of it."""

    def __init__(self) -> None:
        self.best = math.inf
        self.stalled = 0

    def done(self, error: float, target: float, rounding: Callable[[], float]) -> bool:
        """rounding: is asked for only once there is no progress, since a GPU is waited for."""
        self.stalled = 0 if error < 0.98 * self.best else self.stalled + 1
        self.best = min(self.best, error)
        return error <= target or (self.stalled >= _STALLED and self.best < rounding())
