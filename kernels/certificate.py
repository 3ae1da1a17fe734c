"""Bounds on optimal transport that hold whatever the solver did, from one exact pass over the cost.

Given any column potential g, float64 strips of the cost yield, for uniform marginals a and b:

- the exact row potential f (a soft-min of C - g), so that mean(f) + mean(g) is the dual value and a
  lower bound of the entropic problem  min <P, C> + eps KL(P || a b^T);
- an upper bound of it: the plan P = a b exp((f + g - C) / eps) has exact rows and nearly exact
  columns c. What exceeds b is taken off, P s with s = min(1, b / c), and the mass delta that is
  missing is put back as the product of the rows and the columns that lack it. Its cost is at most
  that of 2 lam_x (||x||^2 + ||y||^2) and the largest label distance, its entropy is bounded by
  convexity; both need column sums only, and therefore no second pass;
- a lower bound of the unregularised problem: f^c = min_j (C - g), then g^c = min_i (C - f^c);
- an upper bound of it: the cost of the same feasible plan;
- the column update of g, so that the pass is itself an iteration, free of storage's rounding.

Sources: Altschuler, Weed & Rigollet 2017, algorithm 2 (rounding); Peyré & Cuturi 2019, section 3.1
(c-transforms).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.ground_cost import GroundCost

# Numbers in a float64 strip: 4 MiB, so that the dozen passes over it find it in cache.
_STRIP = 1 << 19


@dataclass(frozen=True)
class Certificate:
    """Bounds of the entropic and of the unregularised problem; potentials in sorted order.

    marginal_error: sum |c - b| of the plan with exact rows. f float64 [n]: the exact row potential;
    next_g float64 [m]: g after an exact column update.
    """

    lower: float
    upper: float
    unregularised: tuple[float, float]
    marginal_error: float
    f: Tensor
    next_g: Tensor

    @property
    def gap(self) -> float:
        """Relative duality gap of the entropic problem."""
        return relative_gap(self.lower, self.upper)

    @property
    def bracket(self) -> float:
        """Relative width of the bounds of the unregularised problem."""
        return relative_gap(*self.unregularised)


def relative_gap(lower: float, upper: float) -> float:
    """(upper - lower) / upper for bounds of a value that is not negative; 0 when both are 0."""
    return (upper - max(lower, 0.0)) / upper if upper > 0 else 0.0


def certify(cost: GroundCost, g: Tensor, eps: float) -> Certificate:
    """Bounds from a column potential g (float64 [m], sorted order) by one pass in float64."""
    n, m = cost.shape
    f = torch.empty(n, dtype=torch.float64, device=g.device)
    hard_f = torch.empty_like(f)
    hard_g = torch.full_like(g, torch.inf)
    # Per column: sums of P / b, of P f / b, of P ||x||^2 / b; and of P C / b.
    sums = torch.zeros(3, m, dtype=torch.float64, device=g.device)
    costs = torch.zeros_like(g)
    for rows, part in cost.strips(max(1, _STRIP // m)):
        reduced = part - g
        hard_f[rows] = reduced.amin(1)
        torch.minimum(hard_g, (part - hard_f[rows, None]).amin(0), out=hard_g)
        plan = reduced.sub_(hard_f[rows, None]).div_(-eps).exp_()
        total = plan.mean(1)
        f[rows] = hard_f[rows] - eps * total.log()
        weights = 1 / (n * total)
        sums += torch.stack([weights, weights * f[rows], weights * cost.x.squares[rows]]) @ plan
        costs += weights @ plan.mul_(part)
    return _bounds(cost, g, eps, f, sums / m, costs / m, float(hard_f.mean() + hard_g.mean()))


def _bounds(
    cost: GroundCost,
    g: Tensor,
    eps: float,
    f: Tensor,
    sums: Tensor,
    costs: Tensor,
    hard_lower: float,
) -> Certificate:
    m = len(g)
    columns, weighted_f, weighted_squares = sums
    kept = (1 / (m * columns)).clamp(max=1.0)
    removed = (1 - kept) * columns
    missing = (1 / m - columns * kept).clamp(min=0.0)
    delta = float(removed.sum())
    entropy = (weighted_f + g * columns - costs) / eps  # per column: sum of P log(P / (a b))
    used = columns > 0  # a column out of reach of every row holds no mass

    def over_used(values: Tensor) -> float:
        return float(values[used].sum())

    kept_cost = float((kept * costs).sum())
    kept_entropy = over_used(kept * (entropy + columns * kept.log()))
    refill_cost = refill_entropy = 0.0
    if delta > 0:
        squares = ((1 - kept) * weighted_squares).sum() + (missing * cost.y.squares).sum()
        refill_cost = float(2 * cost.lam_x * squares)
        if cost.table is not None:
            farthest = cost.table[cost.x.labels.unique()].amax(0)
            refill_cost += float((missing * farthest[cost.y.labels]).sum())
        rows_from_a = over_used((1 - kept) * (entropy - columns * (m * columns).log()))
        shares = missing[missing > 0]
        columns_from_b = float((shares * (m * shares / delta).log()).sum())
        mass = max(1 - delta, torch.finfo(torch.float64).tiny)
        refill_entropy = rows_from_a + columns_from_b - mass * torch.tensor(mass).log().item()
    feasible = kept_cost + refill_cost
    # Rounding must not turn the bounds round: they meet to 1e-16 once an iteration has converged.
    lower = float(f.mean() + g.mean())
    return Certificate(
        lower=lower,
        upper=max(feasible + eps * (kept_entropy + refill_entropy), lower),
        unregularised=(hard_lower, max(feasible, hard_lower)),
        marginal_error=float((columns - 1 / m).abs().sum()),
        f=f,
        next_g=torch.where(used, g - eps * (m * columns).log(), g),
    )
