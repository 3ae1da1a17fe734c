"""Bounds on optimal transport from one float64 pass, valid whatever the solver did.

For any column potential g and any shares `retained` of the columns, with uniform marginals a and b,
the pass gives

- a lower bound of the entropic problem min <P, C> + eps KL(P || a b^T): the dual value mean(f) +
  mean(g), where the row potential f is exact for g (a soft-min of C - g)
- an upper bound of it, from the plan P = a b exp((f + g - C) / eps), which has exact rows and
  nearly exact columns. The share retained_j of column j stays (less if the column would still
  exceed b). The missing mass is added back as the product of what rows and columns lack; its cost
  has a closed form, and convexity bounds its entropy.
- a lower bound of the unregularised problem: f^c = min_j (C - g), then g^c = min_i (C - f^c)
- an upper bound of it: the cost of the same feasible plan
- the column update of g, so the pass is itself an iteration.

Sums have a relative error of 2^-41 per exponential and 2^-53 per addition. The bounds are widened
by the resulting error of potentials and costs, which matters if eps is many times the costs.

The pass reads either exact costs or the stored copy. Entries of the copy have an error of at most
alpha_i + beta_j, and a plan has marginals a and b, so values on the copy have an error of at most
`slack` = mean(alpha) + mean(beta), which each bound includes. The pass can therefore skip the
product of the features, which takes most of the time.

Sources: Altschuler, Weed & Rigollet 2017, algorithm 2 (rounding); Peyré & Cuturi 2019, section 3.1
(c-transforms).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.threads import HAS_NUMBA, spread
from kernels.transport.cost import GroundCost
from kernels.transport.store import STRIP, StoredCost

_COMPILE_FROM = 1 << 19  # costs, as in `kernels.transport.sweep`
_EXPONENTIAL = 2.0**-41  # relative error of a float64 exponential


@dataclass(frozen=True)
class Certificate:
    """Bounds of the entropic and of the unregularised problem; potentials are in sorted order.

    dual: mean(f) + mean(g) on the costs that were read; `lower` is this minus their error. slack:
    how far rounding, of the costs and of sums, can move a bound. marginal_error: sum |c - b| of the
    plan with exact rows. f: the row potential that is exact for g, float64 [n]. next_g: g after a
    column update, float64 [m].
    """

    dual: float
    lower: float
    upper: float
    unregularised: tuple[float, float]
    slack: float
    marginal_error: float
    f: Tensor
    next_g: Tensor

    @property
    def gap(self) -> float:
        """Relative duality gap of the entropic problem."""
        return relative_gap(self.lower, self.upper)


@dataclass(frozen=True)
class _Sums:
    """The result of one pass, all float64: rows f, hard_f, lost [n]; columns, hard_g [m].

    P is the plan with exact rows, and s are the retained shares: hard_f_i = min_j (C_ij - g_j),
    lost_i = sum_j P_ij (1 - s_j), columns_j = sum_i P_ij, hard_g_j = min_i (C_ij - hard_f_i), moved
    = sum_ij P_ij s_j (C_ij - g_j - hard_f_i).
    """

    f: Tensor
    hard_f: Tensor
    lost: Tensor
    columns: Tensor
    hard_g: Tensor
    moved: float


def relative_gap(lower: float, upper: float) -> float:
    """Returns (upper - lower) / upper for bounds of a value that is not negative.

    Returns 0 if `upper` is 0, and infinity for invalid bounds: NaN, or `upper` below 0.
    """
    if upper == 0:
        return 0.0
    return (upper - max(lower, 0.0)) / upper if upper > 0 else math.inf


def certify(costs: GroundCost | StoredCost, g: Tensor, eps: float, retained: Tensor) -> Certificate:
    """Returns bounds from a column potential g and shares of columns to keep, by one float64 pass.

    g: float64 [m], sorted order. retained: float64 [m] in (0, 1]. The bounds hold for any shares
    and are tight for min(1, b / c), where c are the column sums of the plan with exact rows.
    """
    stored = isinstance(costs, StoredCost)
    n, m = costs.shape
    if stored and HAS_NUMBA and g.device.type == "cpu" and n * m >= _COMPILE_FROM:
        sums = _compiled_pass(costs, g, eps, retained)
    else:
        sums = _strips_pass(costs, g, eps, retained)
    cost, slack = (costs.cost, costs.slack) if stored else (costs, 0.0)
    f, low, lost = sums.f, sums.hard_f, sums.lost
    remaining = sums.columns * retained
    held = remaining.clamp(max=1 / m)
    ratio = torch.where(remaining > 0, held / remaining, 1.0)
    level, mass = float(g.mean()), 1 - float(lost.sum())
    paid = float(remaining @ (g - level)) + level * mass
    moved = sums.moved + float(low.mean() - lost @ low)
    potential = float(f.mean() - lost @ f) + eps * float(remaining @ retained.log())
    known = _EXPONENTIAL + max(n, m) * torch.finfo(f.dtype).eps / 2
    off = sums.moved + float(lost @ (f.abs() + low.abs() + abs(level)))
    rounding = known * (off + float(remaining @ (g - level).abs()) + eps)
    # p log p is at least -1 / e, so removing p (1 - ratio) adds at most (1 - ratio) / e.
    entropy, completed = float((1 - ratio).sum()) / (math.e * m), 0.0
    columns_lack = 1 / m - held
    lack = float(columns_lack.sum())
    if lack > 0:
        # Mass that columns lack beyond what `retained` takes off rows; its rows are not known.
        more = max(0.0, lack - float(lost.sum()))
        prices = cost.times(columns_lack) / lack
        completed = float(lost @ prices) + more * float(prices.amax())
        entropy += _entropy(lost) + _entropy(columns_lack)
        # Mass spread over n samples, at most 1 / n each, is nearly uniform.
        entropy += more * math.log(min(n, 1 / more)) if more > 0 else 0.0
        entropy -= (1 - lack) * math.log1p(-lack) if lack < 1 else 0.0
    dual = float(f.mean() + g.mean())
    hard_lower = float(low.mean() + sums.hard_g.mean()) - slack
    added = paid + completed + slack + rounding
    used = sums.columns > 0  # a column too far from all rows has no mass
    # Rounding must not swap the bounds: at convergence they agree to 1e-16.
    return Certificate(
        dual=dual,
        lower=dual - slack - known * eps,
        upper=max(potential + added + eps * entropy, dual),
        unregularised=(hard_lower, max(moved + added, hard_lower)),
        slack=slack + rounding,
        marginal_error=float((sums.columns - 1 / m).abs().sum()),
        f=f,
        next_g=torch.where(used, g - eps * (m * sums.columns).log(), g),
    )


def _entropy(lack: Tensor) -> float:
    """sum p log(p k / |p|) for part of a marginal over k samples: |p| KL(p / |p| || uniform)."""
    shares = lack[lack > 0]
    return float((shares * (len(lack) * shares / shares.sum()).log()).sum())


def _strips_pass(costs: GroundCost | StoredCost, g: Tensor, eps: float, retained: Tensor) -> _Sums:
    n, m = costs.shape
    f, hard_f, lost = torch.empty(3, n, dtype=torch.float64, device=g.device)
    columns, hard_g = torch.zeros_like(g), torch.full_like(g, torch.inf)
    moved = torch.zeros((), dtype=torch.float64, device=g.device)
    leaving = 1 - retained
    for rows, part in costs.strips(max(1, STRIP[g.device.type] // m)):
        reduced = part - g
        hard_f[rows] = low = reduced.amin(1)
        torch.minimum(hard_g, part.sub_(low[:, None]).amin(0), out=hard_g)
        over = reduced.sub_(low[:, None])
        plan = torch.div(over, -eps, out=part).exp_()
        total = plan.mean(1)
        f[rows] = low - eps * total.log()
        weights = 1 / (n * m * total)
        columns += weights @ plan
        lost[rows] = weights * (plan @ leaving)
        moved += weights @ (over.mul_(plan) @ retained)
    return _Sums(f, hard_f, lost, columns, hard_g, float(moved))


def _compiled_pass(stored: StoredCost, g: Tensor, eps: float, retained: Tensor) -> _Sums:
    from kernels.transport import loops

    q, (n, m) = stored.q, stored.shape
    assert q is not None, "the copy is not held"
    threads = min(torch.get_num_threads(), n)
    block = -(-n // threads)
    f, hard_f, lost, moved = torch.empty(4, n, dtype=torch.float64)
    columns, plan, part = torch.zeros(3, threads, m, dtype=torch.float64)
    hard_g = torch.full_like(columns, loops.INFINITE)

    def work(k: int) -> None:
        rows = slice(k * block, (k + 1) * block)
        tensors = [q[rows], stored.offset[rows], stored.step[rows], g, retained]
        tensors += [f[rows], hard_f[rows], lost[rows], moved[rows]]
        tensors += [columns[k], hard_g[k], plan[k], part[k]]
        loops.certify(*(tensor.numpy() for tensor in tensors), eps)

    spread(work, [(k,) for k in range(threads)], threads)
    share = 1 / (n * m)
    return _Sums(
        f=f,
        hard_f=hard_f,
        lost=lost * share,
        columns=columns.sum(0) * share,
        hard_g=hard_g.amin(0),
        moved=float(moved.sum()) * share,
    )
