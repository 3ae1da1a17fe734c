"""Transport problems between pairs of sets: their costs, and who solves them, one pair at a time.

Every solver takes two names and returns (value, gap, marginal error), and may run beside others of
its kind in another thread.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.transport.bures import ClassGaussians, bures_squared, check_features, class_gaussians
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import (
    Transport,
    debiased,
    left_for_across,
    transport,
    unregularised,
)
from kernels.transport.store import most_bytes

if TYPE_CHECKING:
    from engine.distance import Labelled, Options

log = logging.getLogger(__name__)

EXACT_COSTS = 25_000_000  # 5000 x 5000: 1.2 GB and some seconds
EXACT_STEPS = 10**7  # of network simplex
_EXACT_BYTES = 48  # a cost: dense in float64, with a temporary, and as POT's arcs; 40 were measured

Pair = tuple[str, str]
Certified = tuple[float, float, float]  # value, gap, marginal error


class Cloud(NamedTuple):
    """What is compared of a set: features [n, d], rows of the label table, class Gaussians."""

    features: Tensor
    labels: Tensor
    gaussians: ClassGaussians | None

    @classmethod
    def of(cls, name: str, labelled: Labelled, classes: int, options: Options) -> Cloud:
        """Raises ValueError, naming the set, for features or labels that cannot be used."""
        features, labels = labelled.features, labelled.labels.to(labelled.features.device)
        try:
            # Before any are drawn: of the whole set, and by the places that they have there.
            check_features("features", features, labels, classes)
            if len(features) < 2:
                raise ValueError("one sample; a distance needs at least two")
            if options.samples is not None and len(features) > options.samples:
                own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
                mixed = np.random.default_rng([options.seed, own]).permutation(len(features))
                kept = torch.from_numpy(np.sort(mixed[: options.samples])).to(features.device)
                features, labels = features[kept], labels[kept]
            if options.label_distance == "none":
                return cls(features, labels, None)
            gaussians = class_gaussians(features, labels, classes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if gaussians.single and options.label_distance == "gaussian":
            log.info("%s: %d classes of one image have no spread", name, len(gaussians.single))
        return cls(features, torch.searchsorted(gaussians.labels, labels), gaussians)


class Problems:
    """The problems of all pairs. Tables of class distances are kept, costs made when needed.

    memory: bytes that one solution may take; None: as many as it takes.
    """

    def __init__(self, clouds: Mapping[str, Cloud], options: Options) -> None:
        self.clouds = clouds
        self.options = options
        self.memory: int | None = None
        self._tables: dict[Pair, Tensor] = {}

    def bytes_each(self) -> int:
        """What a problem takes at most, whichever two sets it is between."""
        n, m = sorted(len(cloud.features) for cloud in self.clouds.values())[-2:]
        if self.options.debias and not (self.options.exact or self.options.bracket):
            n = m  # the largest self term
        first = next(iter(self.clouds.values())).features
        most = most_bytes(n, m, first.shape[1], first.device)
        return max(most, _EXACT_BYTES * n * m) if self.options.exact else most

    def cost(self, a: str, b: str) -> GroundCost:
        one, other = self.clouds[a], self.clouds[b]
        factor = 0.5 if self.options.half else 1.0
        lam_x, lam_y = factor * self.options.lam_x, factor * self.options.lam_y
        if one.gaussians is None or other.gaussians is None:
            return GroundCost(one.features, other.features, lam_x=lam_x)
        if (a, b) not in self._tables:
            self._tables[a, b] = bures_squared(
                one.gaussians,
                None if a == b else other.gaussians,
                means_only=self.options.label_distance == "means",
            )
        return GroundCost(
            one.features,
            other.features,
            labels_x=one.labels,
            labels_y=other.labels,
            table=self._tables[a, b],
            lam_x=lam_x,
            lam_y=lam_y,
        )

    def exact(self, a: str, b: str) -> Certified:
        """Unregularised transport by network simplex, exact for its costs; NaN if cut short."""
        n, m = (len(self.clouds[name].features) for name in (a, b))
        if n * m > EXACT_COSTS:
            raise ValueError(
                f"{n} x {m} samples are too many for exact transport; sample fewer "
                f"(samples={math.isqrt(EXACT_COSTS)}), or bracket=1e-3 in place of exact"
            )
        try:
            import ot
        except ImportError as error:
            raise ValueError("exact transport needs POT: pip install POT") from error
        dense = self.cost(a, b).rows(0, n).cpu().numpy()
        weights = np.full(n, 1 / n), np.full(m, 1 / m)
        options = {"numItermax": EXACT_STEPS, "log": True}
        value, told = ot.emd2(*weights, dense, **options)  # pyright: ignore[reportAssignmentType]
        if told["warning"] is not None:
            return math.nan, math.nan, math.nan
        return float(value), 0.0, 0.0

    def bracketed(self, a: str, b: str) -> Certified:
        """Unregularised transport, the middle of its bounds, and their relative width."""
        assert self.options.bracket is not None
        cost, tolerance = self.cost(a, b), self.options.bracket
        found = unregularised(cost, tolerance=tolerance, memory=self.memory)
        return found.value, found.gap, found.marginal_error

    def biased(self, a: str, b: str, eps: float) -> Certified:
        """Entropic transport."""
        cost, tolerance = self.cost(a, b), self.options.tolerance
        found = transport(cost, eps=eps, tolerance=tolerance, memory=self.memory)
        return found.value, found.gap, found.marginal_error

    def self_term(self, a: str, eps: float) -> Transport:
        """Entropic transport between a set and itself."""
        third = self.options.tolerance / 3
        cost = self.cost(a, a)
        return transport(cost, eps=eps, tolerance=third, symmetric=True, memory=self.memory)

    def debiased(self, a: str, b: str, self_terms: Mapping[str, Transport]) -> Certified:
        """Entropic transport less the self terms."""
        tolerance, both = self.options.tolerance, (self_terms[a], self_terms[b])
        left = left_for_across(*both, tolerance)
        across = transport(self.cost(a, b), eps=both[0].eps, tolerance=left, memory=self.memory)
        result = debiased(across, *both, tolerance=tolerance)
        error = max(term.marginal_error for term in (across, *both))
        return result.value, result.gap, error
