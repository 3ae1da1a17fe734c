"""Entropic optimal transport between labelled datasets, each value with certified bounds.

Sinkhorn's iterations run on a 16-bit copy of the cost (`store`), with one read per iteration
(`sweep`) and safeguarded acceleration (`alternating`). A float64 pass (`certificate`) then bounds
the value, or returns an exact update to continue from. A result is accepted if the certified
relative duality gap is below the tolerance, and is NaN otherwise, so an unconverged run is never
mistaken for a distance.

The debiased value OT(a, b) - (OT(a, a) + OT(b, b)) / 2 needs two self terms with one potential
each. Callers solve them once per dataset.

Sources: Cuturi 2013; Feydy et al. 2019 (debiasing and one-potential self terms).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from kernels.transport.alternating import Anderson, Potentials
from kernels.transport.certificate import Certificate, certify
from kernels.transport.cost import GroundCost
from kernels.transport.store import StoredCost, store

_WORTH_A_PASS = 0.7  # continue exact passes while each shrinks the gap to less than this share
_CHEAP = 1 << 20  # costs: an exact pass over fewer takes a few milliseconds
_PASSES = 20
_SLACK = 0.8  # share of the allowed gap that a copy's rounding may take
_TYPICAL = 0.05  # eps / mean cost from which the value is about the mean
_ROUNDS = 4
_FINE_BELOW = 0.005  # eps / mean cost: below, a 16-bit copy's error may exceed 0.3% of eps
_MOST = 1e6  # eps / mean cost: above, potentials leave too few digits to the costs


@dataclass(frozen=True)
class Transport:
    """The value of entropic transport and its certificate.

    estimate: the dual value of min <P, C> + eps KL(P || a b^T). lower, upper: bounds that hold in
    any case. unregularised: bounds of min <P, C>. gap: (upper - lower) / upper. converged: whether
    the gap is within the tolerance. marginal_error: sum |P^T 1 - b| with exact rows. iterations:
    reads of the stored cost by sweeps, without the one read of each certificate.
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
        """The estimate, or NaN if it has not converged."""
        return self.estimate if self.converged else math.nan


@dataclass(frozen=True)
class Divergence:
    """Debiased transport. value: NaN if not converged. gap: the sum of the three gaps over OT(a,
    b).
    """

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
    """Returns certified entropic transport between uniform measures.

    eps: in units of the cost. tolerance: maximum relative duality gap. symmetric: the cost is
    between a dataset and itself. max_iterations: number of reads after which no sweep starts; small
    problems still take a few exact passes. memory: maximum bytes (default: unlimited).

    Raises ValueError if eps or tolerance is not positive and finite, if eps is above a million mean
    costs, if `symmetric` is set and the cost is not, and if strips of the cost do not fit the
    memory.
    """
    for name, value in {"eps": eps, "tolerance": tolerance}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {value}")
    if eps > _MOST * cost.mean:
        raise ValueError(
            f"eps={eps:.3g} is more than a million times the mean cost, {cost.mean:.3g}, so the "
            "value would be the mean cost; give eps in units of the cost"
        )
    if symmetric and not cost.symmetric:
        raise ValueError(
            "symmetric=True needs the same samples and labels on both sides, and a table that is "
            "its own transpose"
        )
    stored = store(cost, _dtype(cost, eps, tolerance), memory=memory)
    potentials = Potentials(stored, symmetric=symmetric, max_iterations=max_iterations)
    certificate = _certified(potentials, eps, tolerance)
    return Transport(
        estimate=certificate.dual,
        lower=certificate.lower,
        upper=certificate.upper,
        unregularised=certificate.unregularised,
        eps=eps,
        gap=certificate.gap,
        marginal_error=certificate.marginal_error,
        iterations=potentials.iterations,
        converged=certificate.gap <= tolerance and math.isfinite(certificate.dual),
    )


def debiased(ab: Transport, aa: Transport, bb: Transport, *, tolerance: float = 1e-4) -> Divergence:
    """Returns OT(a, b) - (OT(a, a) + OT(b, b)) / 2 from three solutions at the same eps.

    Converged if the sum of the three absolute gaps is at most `tolerance` of OT(a, b), whatever the
    tolerance of each solution. Raises ValueError for different eps, whose biases would not cancel.
    """
    terms = (ab, aa, bb)
    if not all(math.isclose(ab.eps, term.eps) for term in terms):
        raise ValueError(f"the terms were solved at different eps: {[term.eps for term in terms]}")
    gap = sum(term.upper - term.lower for term in terms) / ab.upper
    value = ab.estimate - (aa.estimate + bb.estimate) / 2
    converged = gap <= tolerance and math.isfinite(value)
    return Divergence(value if converged else math.nan, gap, converged)


def left_for_across(aa: Transport, bb: Transport, tolerance: float) -> float:
    """Returns the relative gap left for OT(a, b) by the self terms, at least a third of the
    tolerance.

    Assumes that OT(a, b) is at least as large as the mean of the self terms, which it nearly always
    is.
    """
    gaps = sum(term.upper - term.lower for term in (aa, bb))
    least = (aa.lower + bb.lower) / 2
    return max(tolerance / 3, tolerance - gaps / least if least > 0 else 0.0)


def _dtype(cost: GroundCost, eps: float, tolerance: float) -> torch.dtype:
    """The fastest copy on which the problem can be solved and, most likely, certified."""
    if math.prod(cost.shape) <= _CHEAP or eps < _FINE_BELOW * cost.mean:
        return torch.float32
    # The value is at most the mean and falls with eps. A gap includes twice the slack, which is
    # half a 16-bit step if the costs of a row spread over twice their mean.
    allowed = tolerance * min(1.0, eps / (_TYPICAL * cost.mean)) ** 0.5 / 4
    return torch.int16 if allowed >= 2.0**-16 else torch.float32


def _certified(potentials: Potentials, eps: float, tolerance: float) -> Certificate:
    """Iterates on the stored cost until the certified gap is small enough or stops shrinking.

    Passes read exact costs if the copy's slack takes too much of the allowed gap. The rest of the
    gap is then the iterations' own rounding, random from sample to sample, which the exact
    iterations of the certificates nearly remove.
    """
    stored = potentials.stored
    usable = stored.q is not None and math.isfinite(stored.slack)
    source: GroundCost | StoredCost = stored if usable else stored.cost
    small = math.prod(stored.shape) <= _CHEAP

    def certified() -> Certificate:
        g = potentials.g
        result = certify(source, g, eps, potentials.shares(eps))
        # Repeat with shares that have no float32 error, and no error of a copy that was not read.
        if (small or source is stored.cost) and result.gap > tolerance:
            result = certify(source, g, eps, ((result.next_g - g) / eps).exp().clamp(1e-30, 1.0))
        return result

    # Half of the marginals' error is mass to move, at about the mean cost more than before; the
    # optimal value is about half of the mean cost.
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
