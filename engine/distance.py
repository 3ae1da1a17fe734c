"""How far the sets are apart, before anything is trained: OTDD from the features that are kept.

Optimal transport between two labelled sets, where moving a sample costs the squared distance of its
features plus the squared distance of its class to the other's (Alvarez-Melis & Fusi 2020). Features
come from one model and are computed once per set, self terms are solved once per set, and every
number is certified: what did not converge is missing from the matrix, never a number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.errors import nearest
from engine.measures.distances import Matrix
from kernels.bures import ClassGaussians, bures_squared, check_features, class_gaussians
from kernels.ground_cost import GroundCost
from kernels.sinkhorn import Transport, debiased, transport, unregularised

if TYPE_CHECKING:
    from engine.context import Context

log = logging.getLogger(__name__)

MATRIX = "matrix.json"
DRAWS = "by name"  # how samples are drawn and what a matrix holds: change it when that changes
LABEL_DISTANCES = ("gaussian", "means", "none")
EXACT_COSTS = 25_000_000  # 5000 x 5000: 200 MB and some seconds
EXACT_STEPS = 10**7  # of network simplex


class Labelled(NamedTuple):
    """Features [n, d] of a set and its labels, int64 [n]."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Options:
    """What is computed, and by whose conventions.

    eps: of the mean cost over all pairs, or with `relative=False` in the cost's own units. lam_x,
    lam_y: weights of the feature and the label term. label_distance: between classes as Gaussians
    (`gaussian`), their means alone (`means`), or nothing (`none`). half: all costs are halved, as
    in the reference library. debias: subtract the self terms. samples: at most so many of a set,
    drawn with `seed` and the set's name: sets may be copies of the same photographs in the same
    order, and one draw for all would take the same photographs of those, but not of others, so
    that their distances would be too small beside the rest. tolerance: of the certified relative
    duality gap. exact: unregularised transport by POT, never debiased, for small sets.
    bracket: relative width (such as 1e-3) to which unregularised transport is bracketed, never
    debiased, for sets of any size.
    """

    eps: float = 0.05
    relative: bool = True
    lam_x: float = 1.0
    lam_y: float = 1.0
    label_distance: str = "gaussian"
    half: bool = False
    debias: bool = True
    samples: int | None = None
    seed: int = 0
    tolerance: float = 1e-4
    exact: bool = False
    bracket: float | None = None

    def __post_init__(self) -> None:
        if self.exact and self.bracket is not None:
            raise ValueError("exact needs no bracket: give one of them")
        for name, value in (("tolerance", self.tolerance), ("bracket", self.bracket)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {value}")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps must be positive and finite, not {self.eps}")
        if self.label_distance not in LABEL_DISTANCES:
            known = nearest(self.label_distance, LABEL_DISTANCES)
            raise ValueError(f"label_distance={self.label_distance!r} is not known{known}")
        if self.samples is not None and self.samples < 2:
            raise ValueError(f"samples={self.samples}: a distance needs two samples of each set")


def distances(context: Context, names: Sequence[str], options: Options | None = None) -> Matrix:
    """Distances between sets of a recipe, by features of its pre-trained model; kept in the store.

    Raises ValueError for fewer than two sets or one named twice, and as `matrix`.
    """
    options = options or Options()
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"distances need two or more distinct sets, got {list(names)}")
    key = {
        "features": [context.features_key(context.base, context.sets[name]) for name in names],
        "sets": list(names),
        "options": dataclasses.asdict(options),
        "draws": DRAWS,
    }

    def write(folder: Path) -> None:
        sets = {}
        for name in names:
            labelled = context.sets[name]
            sets[name] = Labelled(context.features(context.base, labelled), labelled.labels)
            context.sets.release(name)
        found = matrix(sets, len(context.sets.classes), options)
        (folder / MATRIX).write_text(json.dumps(found.plain()))

    label = context.recipe.model.name
    made = context.store.make("distances", label, key, write)
    plain = json.loads(made.checked(MATRIX).read_text())
    return Matrix.of(plain | {"samples": options.samples})


def matrix(sets: Mapping[str, Labelled], classes: int, options: Options) -> Matrix:
    """Distances between all pairs of labelled sets, whose labels lie in [0, classes).

    k sets take k (k - 1) / 2 problems and, if debiased, k more. Raises ValueError, naming the set,
    for features or labels that cannot be used, and for sets too large for `exact`.
    """
    problems = _Problems(
        {name: _Cloud.of(name, labelled, classes, options) for name, labelled in sets.items()},
        options,
    )
    entropic = None if options.exact or options.bracket else _Entropic(problems)
    solve = entropic or (problems.exact if options.exact else problems.bracketed)
    certified = np.zeros((3, len(sets), len(sets)))
    for (i, a), (j, b) in combinations(enumerate(sets), 2):
        certified[:, i, j] = certified[:, j, i] = value, gap, _ = solve(a, b)
        if math.isnan(value):
            log.warning("%s to %s did not converge (gap %.1e): no distance", a, b, gap)
    values, gaps, errors = certified
    eps = entropic.eps if entropic else 0.0
    return Matrix(tuple(sets), values, gaps, errors, eps, options.samples)


Certified = tuple[float, float, float]  # value, gap, marginal error


class _Cloud(NamedTuple):
    features: Tensor
    labels: Tensor  # rows of the label table
    gaussians: ClassGaussians | None

    @classmethod
    def of(cls, name: str, labelled: Labelled, classes: int, options: Options) -> _Cloud:
        features, labels = labelled.features, labelled.labels.to(labelled.features.device)
        if options.samples is not None and len(features) > options.samples:
            own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
            mixed = np.random.default_rng([options.seed, own]).permutation(len(features))
            kept = torch.from_numpy(np.sort(mixed[: options.samples])).to(features.device)
            features, labels = features[kept], labels[kept]
        try:
            check_features("features", features, labels, classes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if len(features) < 2:
            raise ValueError(f"{name} has one sample; a distance needs at least two")
        if options.label_distance == "none":
            return cls(features, labels, None)
        gaussians = class_gaussians(features, labels, classes)
        if gaussians.single and options.label_distance == "gaussian":
            log.info("%s: %d classes of one image have no spread", name, len(gaussians.single))
        return cls(features, torch.searchsorted(gaussians.labels, labels), gaussians)


class _Problems:
    """The ground costs of all pairs. Tables of class distances are kept, costs made when needed."""

    def __init__(self, clouds: Mapping[str, _Cloud], options: Options) -> None:
        self.clouds = clouds
        self.options = options
        self._tables: dict[tuple[str, str], Tensor] = {}

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
        """Unregularised transport by network simplex, without error; NaN if it stopped early."""
        n, m = (len(self.clouds[name].features) for name in (a, b))
        if n * m > EXACT_COSTS:
            raise ValueError(
                f"{a} and {b} are {n} x {m}, too large for exact transport; sample fewer "
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
        found = unregularised(self.cost(a, b), tolerance=self.options.bracket)
        return found.value, found.gap, found.marginal_error


class _Entropic:
    """Solves pairs at one eps for all, so that self terms are shared; they also start the pairs."""

    def __init__(self, problems: _Problems) -> None:
        self.problems = problems
        self.options = problems.options
        self.eps = self.options.eps
        if self.options.relative:
            pairs = combinations(problems.clouds, 2)
            self.eps *= fmean(problems.cost(*pair).mean for pair in pairs)
        self._own: dict[str, Transport] = {}

    def __call__(self, a: str, b: str) -> Certified:
        eps, tolerance = self.eps, self.options.tolerance
        cost = self.problems.cost(a, b)
        if not self.options.debias:
            found = transport(cost, eps=eps, tolerance=tolerance)
            return found.value, found.gap, found.marginal_error
        third = tolerance / 3
        for name in (a, b):
            if name not in self._own:
                own = self.problems.cost(name, name)
                self._own[name] = transport(own, eps=eps, tolerance=third, symmetric=True)
        across = transport(cost, eps=eps, tolerance=third, start=self._own[b].g)
        terms = across, self._own[a], self._own[b]
        value = debiased(*terms, tolerance=tolerance)
        return value.value, value.gap, max(term.marginal_error for term in terms)
