"""A matrix of distances between datasets, for reports and files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from engine.measures import tables

_ARRAYS = ("values", "gaps", "marginal_errors")


@dataclass(frozen=True)
class Matrix:
    """Distances between datasets: values, gaps and marginal errors, float64 [k, k].

    A distance is a (debiased) transport cost in squared units of the features; NaN if the pair did
    not converge. A gap is the sum of the absolute duality gaps of a pair's terms divided by
    OT(a, b). A marginal error is the mass (of 1) by which the columns of a plan with exact rows are
    wrong, for the worst of a pair's terms. eps is in units of the cost. samples: maximum samples
    per dataset, if limited.
    """

    names: tuple[str, ...]
    values: np.ndarray
    gaps: np.ndarray
    marginal_errors: np.ndarray
    eps: float
    samples: int | None = None

    def row(self, name: str) -> dict[str, float]:
        """The known distances from a dataset, by the other dataset."""
        values = dict(zip(self.names, self.values[self.names.index(name)].tolist(), strict=True))
        return {to: value for to, value in values.items() if to != name and math.isfinite(value)}

    def certainty(self) -> str:
        """eps, the worst gap and the worst marginal error, as text."""
        gap, error = (v[np.isfinite(v)].max() for v in (self.gaps, self.marginal_errors))
        missing = int(np.isnan(self.values).sum()) // 2
        text = f"ε {self.eps:.3g}, worst gap {gap:.1e}, worst marginal error {error:.1e}"
        return text + (f"; {missing} pair{'s' * (missing > 1)} missing" if missing else "")

    def plain(self) -> dict[str, Any]:
        """Values for JSON; null for pairs that did not converge and unknown gaps."""

        def lists(array: np.ndarray) -> list[list[float | None]]:
            return [[x if math.isfinite(x) else None for x in row] for row in array.tolist()]

        return dataclasses.asdict(self) | {name: lists(getattr(self, name)) for name in _ARRAYS}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Matrix:
        """The matrix of `plain` values."""
        arrays = {name: np.array(plain[name], float) for name in _ARRAYS}
        return cls(tuple(plain["names"]), **arrays, eps=plain["eps"], samples=plain["samples"])


def pairs(matrix: Matrix) -> pandas.DataFrame:
    """One row per pair of datasets: distance, gap and marginal error (NaN if the pair did not
    converge), and eps."""
    names, (i, j) = np.array(matrix.names, object), np.triu_indices(len(matrix.names), 1)
    data = {"set": names[i], "other": names[j], "distance": matrix.values[i, j]}
    data |= {"gap": matrix.gaps[i, j], "marginal_error": matrix.marginal_errors[i, j]}
    return pandas.DataFrame(data).assign(eps=matrix.eps)


def write_csv(path: Path, matrix: Matrix) -> None:
    """Write the matrix with one row and column per dataset, and `pairs` to a second file, whose
    name ends in `_pairs`."""
    square = pandas.DataFrame(matrix.values, columns=list(matrix.names))
    square.insert(0, "", list(matrix.names))
    tables.write_csv(path, square, digits=None)
    tables.write_csv(path.with_stem(f"{path.stem}_pairs"), pairs(matrix), digits=None)
