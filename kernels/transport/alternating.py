"""Sinkhorn's iterations on the stored cost: on two levels, accelerated, safeguarded, annealed.

What makes Sinkhorn's iterations slow is mass that has to move between clusters, a little each time.
Samples are sorted by class, and a sweep tells how much mass goes from each block of rows to each
column: so after the usual update the plan is summed over blocks, Sinkhorn's iterations on that
small matrix find what scales whole blocks so that their marginals are right, and the potentials
follow (iterative aggregation and disaggregation). It is an ascent of the dual as the plain update
is, up to rounding. Each of those iterations reads the small matrix twice, 0.1 MB for 100 classes
and 8 MB for 1000, where a sweep of 10,000 samples reads 200 MB. For 2500 samples of 100 classes at
eps of 0.05 of the mean cost the marginals are right to 1e-5 after 5 iterations, not 51; where
clusters are not classes it changes nothing.

A whole iteration is a map g -> T(g) of the column potential, whose fixed point is the solution.
Anderson's method combines the last steps T(g) - g so that their linear part cancels, which removes
the slow modes that are left. The dual value, which a sweep yields for nothing, guards it: a
combination that lowers it is dropped for the plain iteration, which cannot. Where eps is small and
few entries of the plan matter, Newton's method takes over (`newton`).

Sources: Koury, McAllister & Stewart 1984 (aggregation); Walker & Ni 2011 (Anderson acceleration);
Feydy et al. 2019 (one averaged potential).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.transport.certificate import Certificate
from kernels.transport.newton import ascend, newton_point, newton_step
from kernels.transport.store import StoredCost
from kernels.transport.sweep import sinkhorn_sweep, within

_FIRST_EPS = 0.05  # of the mean cost: reached from a cold start in about ten iterations
_EPS_RATIO = 2.5  # between stages; each starts from the last one's potentials
_STAGE_TARGET = 0.02
_NEWTON_BELOW = 0.005  # eps, of the mean cost
_NEAR = 0.5  # marginal error from which a start is worth more than stages
_LOG_LIMIT = 60.0  # a row sum beyond e^60 either way: the potential that stabilises it is stale
_MEMORY = 8  # steps combined
_BLOCK_ITERATIONS, _BLOCK_CHANGE = 50, 1e-3  # on the matrix of blocks, which need not be exact
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
        self._ratio: Tensor | None = None  # of column sums to b, for g as it is
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
        self.g = anderson.combine(self.g, step / 2 if self.symmetric else step)
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
        progress, anderson = _Progress(), Anderson()
        best, plain = -math.inf, None
        while not self.exhausted:
            log_s, blocks = self._sweep(self.f, eps)
            if not log_s.abs().amax() < _LOG_LIMIT:
                self.f = self._row_transform()
                continue
            f = self.f - eps * log_s
            dual = float(f.mean() + self.g.mean())
            if plain is not None and dual < best - _SLACK * abs(best):
                self.g, plain, anderson = plain, None, Anderson()
                continue
            best, self.f = max(best, dual), f
            ratio = self._over_b(blocks).clamp_(min=1e-30)
            rounding = _ROUNDING * float(self.f.abs().amax()) / eps
            if progress.done(float((ratio - 1).abs().mean()), target, rounding):
                self._ratio = ratio
                return
            step = eps * (self._between_blocks(blocks.div_(ratio.float())) - ratio.log())
            plain = self.g + step
            self.g = anderson.combine(self.g, step)

    def _average(self, eps: float, target: float) -> None:
        """One potential, f <- (f + T(f)) / 2, from 0: no exponent is positive then."""
        progress = _Progress()
        while not self.exhausted:
            log_s, blocks = self._sweep(self.g, eps)
            if not log_s.abs().amax() < _LOG_LIMIT:
                self.g = torch.zeros_like(self.g)
                continue
            rounding = _ROUNDING * float(self.g.abs().amax()) / eps
            if progress.done(float(log_s.expm1().abs().mean()), target, rounding):
                self._ratio = self._over_b(blocks)
                return
            self.g = self.g - eps / 2 * log_s

    def _over_b(self, blocks: Tensor) -> Tensor:
        """Ratios of column sums to b, float64 [m], given mass [blocks of rows, m]."""
        n, m = self.stored.shape
        return blocks.sum(0, dtype=torch.float64) * (m / n)

    def _between_blocks(self, plan: Tensor) -> Tensor:
        """Logarithms [m] of what to scale blocks of columns by, given mass [blocks of rows, m]."""
        cost = self.stored.cost
        rows, sizes = (cloud.bounds.diff().to(plan.device) for cloud in (cost.x, cost.y))
        lengths = sizes.expand(len(plan), -1).contiguous()
        mass = torch.segment_reduce(plan, "sum", lengths=lengths, axis=1)
        a, b = rows.to(mass), sizes.to(mass) * (len(cost.x.x) / len(cost.y.x))
        u, v = torch.ones_like(a), torch.ones_like(b)
        for k in range(1, _BLOCK_ITERATIONS + 1):
            before, u = u, a / (mass @ v).clamp_(1e-25, 1e25)
            v = b / (u @ mass).clamp_(1e-25, 1e25)
            # At powers of two: a GPU would have to be waited for every time.
            if k.bit_count() == 1 and (u / before - 1).abs().amax() < _BLOCK_CHANGE:
                break
        return v.double().log().repeat_interleave(sizes)

    def _sweep(self, f: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Logarithms of row sums, float64 [n], and column sums, float32 [blocks of rows, m]."""
        self.iterations += 1
        rows_f = ((f - self.stored.offset) / eps).float()
        columns_g = (self.g / eps - math.log(len(self.g))).float()
        kappa = (self.stored.step / eps).float()
        if self.stored.q is not None:
            log_s, columns = sinkhorn_sweep(self.stored.q, rows_f, columns_g, kappa, self._bounds)
            return log_s.double(), columns
        columns = columns_g.new_zeros(len(self._bounds) - 1, len(columns_g))
        log_s = torch.empty_like(f)
        for rows, q in self.stored.parts():
            blocks, inside = within(self._bounds, rows)
            log_s[rows], part = sinkhorn_sweep(q, rows_f[rows], columns_g, kappa[rows], inside)
            columns[blocks] += part
        return log_s, columns

    def _row_transform(self) -> Tensor:
        """f = min_j (C - g): with it no exponent is positive, and a row's largest is 0."""
        self.iterations += 1
        f = torch.empty_like(self.stored.offset)
        for rows, q in self.stored.parts():
            for start in range(0, len(q), 32):
                part = q[start : start + 32]
                strip = slice(rows.start + start, rows.start + start + len(part))
                reduced = self.stored.step[strip, None] * part - self.g
                f[strip] = self.stored.offset[strip] + reduced.amin(1)
        return f


class Anderson:
    """The last points and their steps, and the point whose step their combination cancels."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []
        self.steps: list[Tensor] = []

    def combine(self, point: Tensor, step: Tensor) -> Tensor:
        """The next point; the plain point + step while there is no history."""
        self.points = [*self.points, point][-_MEMORY - 1 :]
        self.steps = [*self.steps, step][-_MEMORY - 1 :]
        if len(self.steps) == 1:
            return point + step
        points, steps = torch.stack(self.points).diff(dim=0), torch.stack(self.steps).diff(dim=0)
        # On the CPU, where a driver takes steps that repeat each other; they are few and short.
        fit = torch.linalg.lstsq(steps.T.cpu(), step[:, None].cpu(), rcond=1e-10, driver="gelsd")
        weights = fit.solution.squeeze(1).to(step.device)
        return point + step - weights @ (points + steps)


class _Progress:
    """Tells when a marginal error is small enough, or only rounding is left of it."""

    def __init__(self) -> None:
        self.best = math.inf
        self.stalled = 0

    def done(self, error: float, target: float, rounding: float) -> bool:
        self.stalled = 0 if error < 0.98 * self.best else self.stalled + 1
        self.best = min(self.best, error)
        return error <= target or (self.stalled >= _STALLED and self.best < rounding)
