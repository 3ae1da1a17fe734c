"""Optimal transport problems between pairs of datasets: costs and solvers for one pair at a time.

Each solver takes two names and returns (value, gap, marginal error). Threads may call a solver for
several pairs at once.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_type_hints

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from engine.recipe import typed
from engine.recipe.schema import NotNegative, Positive, Seed
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

log = logging.getLogger(__name__)

EXACT_COSTS = 100_000_000  # 10,000 x 10,000: 4.8 GB and half a minute
EXACT_STEPS = 10**7  # maximum iterations of network simplex
_EXACT_BYTES = 48  # per cost: dense float64, a temporary, and POT's arcs; 40 were measured

Pair = tuple[str, str]
Certified = tuple[float, float, float]  # value, gap, marginal error


class Labelled(NamedTuple):
    """Features [n, d] of a dataset and its labels, int64 [n]."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class DistanceOptions:
    """The conventions of a distance.

    eps: a fraction of the mean cost over all pairs, or with `relative=False` in units of the cost.
    lam_x, lam_y: weights of the feature and the label term. label_distance: between classes as
    Gaussians (`gaussian`), between their means only (`means`), or not used (`none`). half: halve
    all costs, as the reference library does. debias: subtract the self terms. tolerance: maximum
    certified relative duality gap. exact: unregularised transport by POT, never debiased, for small
    datasets. bracket: relative width (such as 1e-3) to which unregularised transport is bracketed,
    never debiased, for any size.

    samples: maximum samples per dataset, drawn with `seed` and the dataset's name. With the same
    draw for all, two datasets with the same photos in the same order would be compared on the same
    photos, and their distance would be too small compared with others.

    Raises ValueError for values out of range and for options that contradict each other.
    """

    eps: Positive = 0.05
    relative: bool = True
    lam_x: NotNegative = 1.0
    lam_y: NotNegative = 1.0
    label_distance: Literal["gaussian", "means", "none"] = "gaussian"
    half: bool = False
    debias: bool = True
    samples: Annotated[int, Meta(ge=2)] | None = None
    seed: Seed = 0
    tolerance: Positive = 1e-4
    exact: bool = False
    bracket: Positive | None = None

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(DistanceOptions, include_extras=True).items():
            typed.converted(kind, getattr(self, name), name)
        if self.exact and self.bracket is not None:
            raise ValueError("exact and bracket exclude each other: give only one")
        of_entropic = ("eps", "relative", "tolerance") if self.exact or self.bracket else ()
        for name in of_entropic:
            if getattr(self, name) != getattr(DistanceOptions, name):
                raise ValueError(
                    f"{name} is for regularized transport and has no effect with exact or "
                    "bracket: remove it"
                )
        if self.seed and self.samples is None:
            raise ValueError("seed has no effect without samples: give samples too")
        if self.lam_x == 0 and (self.lam_y == 0 or self.label_distance == "none"):
            raise ValueError("lam_x and lam_y make all costs zero: set one of them above 0")


class Cloud(NamedTuple):
    """A dataset to compare: features [n, d], each sample's row in the label table, Gaussians."""

    features: Tensor
    labels: Tensor
    gaussians: ClassGaussians | None

    @classmethod
    def of(cls, name: str, labelled: Labelled, classes: int, options: DistanceOptions) -> Cloud:
        """Draws samples and computes class Gaussians.

        Raises ValueError, naming the dataset, for features or labels that cannot be used.
        """
        features, labels = labelled.features, labelled.labels.to(labelled.features.device)
        try:
            # Before drawing samples, so that errors name positions in the whole dataset.
            check_features("features", features, labels, classes)
            if len(features) < 2:
                raise ValueError("one sample; a distance needs at least two")
            if options.samples is not None and len(features) > options.samples:
                set_seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
                rng = np.random.default_rng([options.seed, set_seed])
                drawn = np.sort(rng.permutation(len(features))[: options.samples])
                rows = torch.from_numpy(drawn).to(features.device)
                features, labels = features[rows], labels[rows]
            if options.label_distance == "none":
                return cls(features, labels, None)
            gaussians = class_gaussians(features, labels, classes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if gaussians.single and options.label_distance == "gaussian":
            log.info("%s: %d classes of one image have no variance", name, len(gaussians.single))
        return cls(features, torch.searchsorted(gaussians.labels, labels), gaussians)


class Problems:
    """The problems of all pairs. Tables of class distances are cached; costs are made when needed.

    memory: maximum bytes per solver, or None for no limit.
    """

    def __init__(self, clouds: Mapping[str, Cloud], options: DistanceOptions) -> None:
        self.clouds = clouds
        self.options = options
        self.device = next(iter(clouds.values())).features.device
        self.memory: int | None = None
        self._tables: dict[Pair, Tensor] = {}

    def bytes_each(self) -> int:
        """Returns the maximum memory in bytes of any pair's problem."""
        n, m = sorted(len(cloud.features) for cloud in self.clouds.values())[-2:]
        if self.options.debias and not (self.options.exact or self.options.bracket):
            n = m  # the largest self term
        width = next(iter(self.clouds.values())).features.shape[1]
        most = most_bytes(n, m, width, self.device)
        return max(most, _EXACT_BYTES * n * m) if self.options.exact else most

    def cost(self, a: str, b: str) -> GroundCost:
        x, y = self.clouds[a], self.clouds[b]
        factor = 0.5 if self.options.half else 1.0
        lam_x, lam_y = factor * self.options.lam_x, factor * self.options.lam_y
        if x.gaussians is None or y.gaussians is None:
            return GroundCost(x.features, y.features, lam_x=lam_x)
        if (a, b) not in self._tables:
            self._tables[a, b] = bures_squared(
                x.gaussians,
                None if a == b else y.gaussians,
                means_only=self.options.label_distance == "means",
            )
        return GroundCost(
            x.features,
            y.features,
            labels_x=x.labels,
            labels_y=y.labels,
            table=self._tables[a, b],
            lam_x=lam_x,
            lam_y=lam_y,
        )

    def exact(self, a: str, b: str) -> Certified:
        """Unregularised transport by network simplex, exact for its costs; NaN if it was cut short.

        Raises ValueError for too many samples, or if POT is missing.
        """
        n, m = (len(self.clouds[name].features) for name in (a, b))
        if n * m > EXACT_COSTS:
            raise ValueError(
                f"{n} x {m} samples are too many for exact transport; sample fewer "
                f"(samples={math.isqrt(EXACT_COSTS)}), or use bracket=1e-3 instead of exact"
            )
        try:
            import ot
        except ImportError as error:
            raise ValueError("exact transport needs POT: pip install POT") from error
        cost = self.cost(a, b)
        # In units of the mean cost, because POT's tolerance is absolute.
        dense = (cost.rows(0, n) / cost.mean).cpu().numpy()
        weights = np.full(n, 1 / n), np.full(m, 1 / m)
        options = {"numItermax": EXACT_STEPS, "log": True}
        value, report = ot.emd2(*weights, dense, **options)  # pyright: ignore[reportAssignmentType]
        if report["warning"] is not None:
            return math.nan, math.nan, math.nan
        return cost.mean * float(value), 0.0, 0.0

    def bracketed(self, a: str, b: str) -> Certified:
        """Unregularised transport: the midpoint of its bounds and their relative width."""
        assert self.options.bracket is not None
        cost, tolerance = self.cost(a, b), self.options.bracket
        return _certified(unregularised(cost, tolerance=tolerance, memory=self.memory))

    def biased(self, a: str, b: str, eps: float) -> Certified:
        """Entropic transport."""
        cost, tolerance = self.cost(a, b), self.options.tolerance
        return _certified(transport(cost, eps=eps, tolerance=tolerance, memory=self.memory))

    def self_term(self, a: str, eps: float) -> Transport:
        """Entropic transport between a dataset and itself."""
        third = self.options.tolerance / 3
        cost = self.cost(a, a)
        return transport(cost, eps=eps, tolerance=third, symmetric=True, memory=self.memory)

    def debiased(self, a: str, b: str, self_terms: Mapping[str, Transport]) -> Certified:
        """Entropic transport minus the self terms."""
        tolerance, terms = self.options.tolerance, (self_terms[a], self_terms[b])
        left = left_for_across(*terms, tolerance)
        across = transport(self.cost(a, b), eps=terms[0].eps, tolerance=left, memory=self.memory)
        result = debiased(across, *terms, tolerance=tolerance)
        error = max(term.marginal_error for term in (across, *terms))
        return result.value, result.gap, error


def _certified(solution: Transport) -> Certified:
    return solution.value, solution.gap, solution.marginal_error
