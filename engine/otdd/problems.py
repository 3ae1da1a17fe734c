"""Optimal transport problems between pairs of datasets: costs and solvers for one pair at a time.

Each solver takes two names and returns (value, gap, marginal error). Threads may call a solver for
several pairs at once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple, get_type_hints

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from engine.recipe import typed
from engine.recipe.schema import Positive
from kernels.transport.bures import ClassGaussians, bures_squared, check_features, class_gaussians
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import Transport, debiased, left_for_across, transport
from kernels.transport.store import most_bytes

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # maximum certified relative duality gap

Pair = tuple[str, str]
Certified = tuple[float, float, float]  # value, gap, marginal error


class LabelledFeatures(NamedTuple):
    """Features [n, d] of a dataset and its labels, int64 [n]."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class DistanceOptions:
    """The conventions of a distance.

    eps: a fraction of the mean cost over all pairs. debias: subtract the self terms.

    samples: maximum samples per dataset, drawn by the dataset's name. With the same draw for all,
    two datasets with the same photos in the same order would be compared on the same photos, and
    their distance would be too small compared with others.

    Raises ValueError for values out of range.
    """

    eps: Positive = 0.05
    debias: bool = True
    samples: Annotated[int, Meta(ge=2)] | None = None

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(DistanceOptions, include_extras=True).items():
            typed.converted(kind, getattr(self, name), name)


class Cloud(NamedTuple):
    """A dataset to compare: features [n, d], each sample's row in the label table, Gaussians."""

    features: Tensor
    labels: Tensor
    gaussians: ClassGaussians

    @classmethod
    def of(
        cls, name: str, labelled: LabelledFeatures, classes: int, options: DistanceOptions
    ) -> Cloud:
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
                rng = np.random.default_rng([0, set_seed])
                drawn = np.sort(rng.permutation(len(features))[: options.samples])
                rows = torch.from_numpy(drawn).to(features.device)
                features, labels = features[rows], labels[rows]
            gaussians = class_gaussians(features, labels, classes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if gaussians.single:
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
        if self.options.debias:
            n = m  # the largest self term
        width = next(iter(self.clouds.values())).features.shape[1]
        return most_bytes(n, m, width, self.device)

    def cost(self, a: str, b: str) -> GroundCost:
        x, y = self.clouds[a], self.clouds[b]
        if (a, b) not in self._tables:
            self._tables[a, b] = bures_squared(x.gaussians, None if a == b else y.gaussians)
        return GroundCost(
            x.features,
            y.features,
            labels_x=x.labels,
            labels_y=y.labels,
            table=self._tables[a, b],
        )

    def biased(self, a: str, b: str, eps: float) -> Certified:
        """Entropic transport."""
        solution = transport(self.cost(a, b), eps=eps, tolerance=TOLERANCE, memory=self.memory)
        return solution.value, solution.gap, solution.marginal_error

    def self_term(self, a: str, eps: float) -> Transport:
        """Entropic transport between a dataset and itself."""
        third, cost = TOLERANCE / 3, self.cost(a, a)
        return transport(cost, eps=eps, tolerance=third, symmetric=True, memory=self.memory)

    def debiased(self, a: str, b: str, self_terms: Mapping[str, Transport]) -> Certified:
        """Entropic transport minus the self terms."""
        terms = self_terms[a], self_terms[b]
        left = left_for_across(*terms, TOLERANCE)
        across = transport(self.cost(a, b), eps=terms[0].eps, tolerance=left, memory=self.memory)
        result = debiased(across, *terms, tolerance=TOLERANCE)
        error = max(term.marginal_error for term in (across, *terms))
        return result.value, result.gap, error
