"""A matrix of distances between sets, as reports show it and files keep it. No torch."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.artifacts import write_atomic


@dataclass(frozen=True)
class Matrix:
    """Distances between sets: values and gaps float64 [k, k], NaN where a pair did not converge.

    A distance is a (debiased) transport cost, in squared units of the features. A gap is the sum of
    the absolute duality gaps of a pair's terms over OT(a, b), or the relative width of its bracket;
    eps is absolute, 0 if exact or bracketed. samples:
    the most of a set that were looked at, where not all.
    """

    names: tuple[str, ...]
    values: np.ndarray
    gaps: np.ndarray
    eps: float
    samples: int | None = None

    def row(self, name: str) -> dict[str, float]:
        """Distances of one set to the others that are known."""
        values = self.values[self.names.index(name)]
        return {
            other: float(value)
            for other, value in zip(self.names, values, strict=True)
            if other != name and math.isfinite(value)
        }

    def plain(self) -> dict[str, Any]:
        """As JSON has it: null for a pair that did not converge, and for a gap not known."""

        def lists(array: np.ndarray) -> list[list[float | None]]:
            return [[float(x) if math.isfinite(x) else None for x in row] for row in array]

        return dataclasses.asdict(self) | {"values": lists(self.values), "gaps": lists(self.gaps)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Matrix:
        """The matrix that `plain` was made of."""
        values, gaps = (np.array(plain[name], float) for name in ("values", "gaps"))
        return cls(tuple(plain["names"]), values, gaps, plain["eps"], plain["samples"])


def write_csv(path: Path, found: Matrix) -> None:
    """The matrix, a set a row and a column; a pair that did not converge is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *found.names])
    for name, row in zip(found.names, found.values, strict=True):
        writer.writerow([name, *("" if math.isnan(value) else repr(float(value)) for value in row)])
    write_atomic(path, text.getvalue().encode())
