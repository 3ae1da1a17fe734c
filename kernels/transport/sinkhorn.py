"""Entropic optimal transport between labelled sets, each value with the bounds it is known to.

Sinkhorn's iterations run on a 16-bit copy of the cost (`store`), one read an iteration
(`sweep`), accelerated under a safeguard (`alternating`); an exact float64 pass (`certificate`) then
bounds the value, or hands back an exact update to go on from. A result is accepted when the
certified relative duality gap is below the tolerance, and is NaN otherwise: an unconverged run
never passes for a distance.

The debiased value  OT(a, b) - (OT(a, a) + OT(b, b)) / 2  needs two self terms, each of one
potential; they are solved once a set and handed in.

Sources: Cuturi 2013; Feydy et al. 2019 (debiasing and one-potential self terms).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from kernels.transport.alternating import Potentials
from kernels.transport.anderson import Anderson
from kernels.transport.certificate import Certificate, certify, relative_gap
from kernels.transport.cost import GroundCost
from kernels.transport.store import StoredCost, store

_WORTH_A_PASS = 0.7  # of the gap before it
_CHEAP = 1 << 20  # costs: an exact pass over this number takes a few milliseconds
_PASSES = 20
_SLACK = 0.8  # of the gap allowed: a copy whose rounding takes more is not certified on
_TYPICAL = 0.05  # eps, of the mean cost, from which the value is about the mean
_ROUNDS = 4
_FINE_BELOW = 0.005  # eps, of the mean cost: 16 bits are off by up to 0.3% of it
_FIRST_BRACKET = 0.0125  # eps, of the mean cost
_MOST = 1e6  # of the mean cost: larger eps and potentials leave too few digits to the costs
_NEAR = 1e-3  # of the mean cost: brackets of what is less are measured against it


@dataclass(frozen=True)
class Transport:
    """Entropic transport: its value, and what is known about it.

    estimate: the dual value of  min <P, C> + eps KL(P || a b^T). lower, upper: bounds of the
    problem that hold in any case. unregularised: bounds of min <P, C>. gap: (upper - lower) /
    upper. converged: whether the gap is within the tolerance. marginal_error: sum |P^T 1 - b| with
    exact rows. iterations: reads of the stored cost by sweeps; each certificate, of which there are
    one to a few, is one more.
    """

    estimate: float
    lower: float
    upper: float
    unregularised: tuple[float, float]
    eps: float
    gap: float
    marginal_error: float
    iterations: int
    converged: bool

    @property
    def value(self) -> float:
        """The estimate, or NaN where it has not converged."""
        return self.estimate if self.converged else math.nan


@dataclass(frozen=True)
class Divergence:
    """Debiased transport. gap: the three absolute gaps over OT(a, b); value NaN if unconverged."""

    value: float
    gap: float
    converged: bool


def transport(
    cost: GroundCost,
    *,
    eps: float,
    tolerance: float = 1e-4,
    symmetric: bool = False,
    max_iterations: int = 2000,
    memory: int | None = None,
) -> Transport:
    """Entropic transport between uniform measures, certified.

    eps: in the units of the cost. tolerance: of the relative duality gap. symmetric: the cost is
    between a set and itself. max_iterations: reads after which no sweeps are begun; small problems
    still take a few exact passes. memory: bytes that may be taken (default: as many as it takes).

    Raises ValueError for eps or tolerance that is not positive, eps above a million mean costs, a
    symmetric cost that is not, and memory that cannot hold strips of the cost.
    """
    _positive(eps=eps, tolerance=tolerance)
    if eps > _MOST * cost.mean:
        raise ValueError(
            f"eps={eps:.3g} is more than a million times the mean cost, {cost.mean:.3g}: the value "
            "is the mean cost then; give eps in the units of the cost"
        )
    if symmetric and not cost.symmetric:
        raise ValueError(
            "symmetric is for a set against itself: the same samples and labels on both sides, and "
            "a table that is its own transpose"
        )
    stored = store(cost, _dtype(cost, eps, tolerance), memory=memory)
    potentials = Potentials(stored, symmetric=symmetric, max_iterations=max_iterations)
    certificate = _certified(potentials, eps, tolerance)
    return _result(
        certificate,
        potentials,
        eps=eps,
        bounds=(certificate.lower, certificate.upper),
        estimate=certificate.dual,
        tolerance=tolerance,
    )


def unregularised(
    cost: GroundCost,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 20000,
    memory: int | None = None,
) -> Transport:
    """Unregularised transport min <P, C>, bracketed by annealing eps until the bounds are tight.

    As `transport`, but `lower` and `upper` are the bracket's ends, `estimate` is its middle, and
    `eps` tells where it was reached. `gap`, which `tolerance` limits, is the bracket's width over
    `upper` or, where that is less, over a thousandth of the mean cost: between sets that are nearly
    the same a value is known to that, and no relative width can be small.
    """
    _positive(tolerance=tolerance)
    near = _NEAR * cost.mean
    stored = store(cost, torch.float32, memory=memory)
    potentials = Potentials(stored, symmetric=False, max_iterations=max_iterations)
    eps = _FIRST_BRACKET * cost.mean
    before, bounds, exact = math.inf, (0.0, math.inf), False  # costs are not negative
    while True:
        certificate = _certified(potentials, eps, tolerance / 2, exact=exact)
        # Those of every eps hold; rounding must not turn them round.
        low = max(certificate.unregularised[0], bounds[0])
        bounds = low, max(low, min(certificate.unregularised[1], bounds[1]))
        gap = relative_gap(*certificate.unregularised, near)
        done = relative_gap(*bounds, near) <= tolerance or gap >= before
        if done or potentials.exhausted:
            break
        before = gap
        # The entropic value, and so the slack that its gap allows, may be far above the bracket.
        exact = exact or 2 * stored.slack > _SLACK * tolerance * max(bounds[1], near)
        # The bracket's width is nearly proportional to eps.
        eps *= min(0.5, max(0.8 * tolerance / gap, 1 / 16))
    certificate = replace(certificate, unregularised=bounds)
    return _result(
        certificate,
        potentials,
        eps=eps,
        bounds=bounds,
        estimate=sum(bounds) / 2,
        tolerance=tolerance,
        least=near,
    )


def debiased(ab: Transport, aa: Transport, bb: Transport, *, tolerance: float = 1e-4) -> Divergence:
    """OT(a, b) - (OT(a, a) + OT(b, b)) / 2, of three solutions at the same eps.

    Converged when the absolute gaps of all three add up to at most `tolerance` of OT(a, b),
    whatever each of them was solved to: a term that is better known than needed leaves more to the
    others. Raises ValueError for different eps, whose biases would not cancel.
    """
    terms = (ab, aa, bb)
    if not all(math.isclose(ab.eps, term.eps) for term in terms):
        raise ValueError(f"the terms were solved at different eps: {[term.eps for term in terms]}")
    gap = sum(term.upper - term.lower for term in terms) / ab.upper
    value = ab.estimate - (aa.estimate + bb.estimate) / 2
    converged = gap <= tolerance and math.isfinite(value)
    return Divergence(value if converged else math.nan, gap, converged)


def left_for_across(aa: Transport, bb: Transport, tolerance: float) -> float:
    """The relative gap allowed for OT(a, b), given the self terms; at least a third of the total.

    OT(a, b) is taken to be as large as the self terms are: it is seldom less.
    """
    gaps = sum(term.upper - term.lower for term in (aa, bb))
    least = (aa.lower + bb.lower) / 2
    return max(tolerance / 3, tolerance - gaps / least if least > 0 else 0.0)


def _dtype(cost: GroundCost, eps: float, tolerance: float) -> torch.dtype:
    """Of the fastest copy that can be iterated and, most likely, certified on."""
    if math.prod(cost.shape) <= _CHEAP or eps < _FINE_BELOW * cost.mean:
        return torch.float32
    # The value is at most the mean, and goes down with eps; a gap holds twice the slack: half of a
    # 16-bit step, where the costs of a row spread over twice their mean.
    allowed = tolerance * min(1.0, eps / (_TYPICAL * cost.mean)) ** 0.5 / 4
    return torch.int16 if allowed >= 2.0**-16 else torch.float32


def _certified(
    potentials: Potentials, eps: float, tolerance: float, *, exact: bool = False
) -> Certificate:
    """Iterate on the stored cost until the certified gap is small enough, or nothing helps.

    Where the copy's slack is too much of the gap that is allowed, and where `exact` says that it is
    too much of another, exact costs are passed over. What iterations leave in the end is then their
    own rounding, which differs from sample to sample at random: exact iterations, which the
    certificates are, all but remove it.
    """
    stored = potentials.stored
    usable = not exact and stored.q is not None and math.isfinite(stored.slack)
    source: GroundCost | StoredCost = stored if usable else stored.cost
    small = math.prod(stored.shape) <= _CHEAP

    def certified() -> Certificate:
        g = potentials.g
        result = certify(source, g, eps, potentials.shares(eps))
        # By shares without the error of float32, or of a copy that is not what is passed over.
        if (small or source is stored.cost) and result.gap > tolerance:
            result = certify(source, g, eps, ((result.next_g - g) / eps).exp().clamp(1e-30, 1.0))
        return result

    # Half of the marginals' error is mass to be moved, at about the mean cost more than it had;
    # the optimal value is about half of that.
    target = max(tolerance / 5, (tolerance - 4 * stored.slack / stored.cost.mean) * 0.8)
    for _ in range(_ROUNDS):
        potentials.solve(eps, target)
        anderson, before = Anderson(), math.inf
        certificate = certified()
        slack = 2 * certificate.slack / max(certificate.upper, certificate.slack)
        if source is stored and certificate.gap > tolerance and slack > _SLACK * tolerance:
            source = stored.cost
            certificate = certified()
        slack = slack if source is stored else 0.0
        left = _PASSES if small else 0
        reached = source is stored and certificate.marginal_error <= 2 * target
        while certificate.gap > tolerance and (
            left or (not reached and certificate.gap < _WORTH_A_PASS * before)
        ):
            before, left = certificate.gap, max(0, left - 1)
            potentials.update(certificate, anderson)
            certificate = certified()
        if certificate.gap <= tolerance or potentials.exhausted:
            break
        share = (tolerance - slack) / (certificate.gap - slack)
        target = 0.7 * share * min(target, certificate.marginal_error)
    return certificate


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {value}")


def _result(
    certificate: Certificate,
    potentials: Potentials,
    *,
    eps: float,
    bounds: tuple[float, float],
    estimate: float,
    tolerance: float,
    least: float = 0.0,
) -> Transport:
    gap = relative_gap(*bounds, least)
    return Transport(
        estimate=estimate,
        lower=bounds[0],
        upper=bounds[1],
        unregularised=certificate.unregularised,
        eps=eps,
        gap=gap,
        marginal_error=certificate.marginal_error,
        iterations=potentials.iterations,
        converged=gap <= tolerance and math.isfinite(estimate),
    )
