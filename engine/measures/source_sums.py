"""Sums over each source image of what agreement and calibration need, so that both can be
resampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.measures.behaviour import BINS, bins_of
from engine.measures.predictions import ImagePredictions, SetPredictions


@dataclass(frozen=True)
class SourceSums:
    """Of one cell and seed, in the rows of a set's sources.

    agreed: float32 [sources, 3], the weight of images with the same top-1 class before and after,
    lost and gained; None where before and after are of different images. `places` (int32 [n]) and
    `gaps` (float32 [n]): confidence less accuracy, weighted and summed by source and bin of
    confidence (place: source x BINS + bin), where a bin holds an image of the source.
    """

    agreed: np.ndarray | None
    places: np.ndarray
    gaps: np.ndarray

    @classmethod
    def of(
        cls,
        of_set: SetPredictions[Any],
        before: ImagePredictions | None,
        after: ImagePredictions,
    ) -> SourceSums:
        """Sums of a model's predictions on a set, and of the pre-trained model's."""
        sources = len(of_set.sources)
        agreed = None
        if before is not None:
            cases = (before.top1 == after.top1, before.hit & ~after.hit, ~before.hit & after.hit)
            sums = [np.bincount(of_set.codes, after.weights * case, sources) for case in cases]
            agreed = np.stack(sums, axis=1).astype(np.float32)
        gaps = after.weights * (after.p_top1.astype(np.float64) - after.hit)
        gaps = np.bincount(of_set.codes * BINS + bins_of(after), gaps)
        places = np.flatnonzero(gaps)
        return cls(agreed, places.astype(np.int32), gaps[places].astype(np.float32))

    def by_bin(self, sources: int) -> np.ndarray:
        """float32 [sources, BINS]: the gaps as a table."""
        table = np.zeros(sources * BINS, np.float32)
        table[self.places] = self.gaps
        return table.reshape(sources, BINS)
