"""What is kept of one cell's answers, a source image a row, so that they can be resampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.measures.behaviour import BINS, bins_of
from engine.measures.predictions import Bank, Seen


@dataclass(frozen=True)
class Answers:
    """Of one cell and seed, in the rows of a bank's sources.

    agreed: float32 [sources, 3], the weight of images with the same top-1 class before and after,
    lost and gained; None where the two saw different images. `cells` (int32 [n]) and `gaps`
    (float32 [n]): confidence less accuracy, weighted and summed by source and bin of confidence, of
    those (source x BINS + bin) that hold an image.
    """

    agreed: np.ndarray | None
    cells: np.ndarray
    gaps: np.ndarray

    @classmethod
    def of(cls, bank: Bank[Any], before: Seen | None, after: Seen) -> Answers:
        """Reduce what was seen of a bank's images."""
        sources = len(bank.sources)
        agreed = None
        if before is not None:
            cases = (before.top1 == after.top1, before.hit & ~after.hit, ~before.hit & after.hit)
            sums = [np.bincount(bank.codes, after.weights * case, sources) for case in cases]
            agreed = np.stack(sums, axis=1).astype(np.float32)
        each = after.weights * (after.p_top1.astype(np.float64) - after.hit)
        gaps = np.bincount(bank.codes * BINS + bins_of(after), each)
        cells = np.flatnonzero(gaps != 0)
        return cls(agreed, cells.astype(np.int32), gaps[cells].astype(np.float32))

    def by_bin(self, sources: int) -> np.ndarray:
        """float32 [sources, BINS]: the gaps as a table."""
        table = np.zeros(sources * BINS, np.float32)
        table[self.cells] = self.gaps
        return table.reshape(sources, BINS)
