"""A matrix of distances between sets, as reports show it and files store it."""

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
    """Distances between sets: values, gaps and marginal errors, float64 [k, k].

    A distance is a (debiased) transport cost, in squared units of the features, NaN where a pair
    did not converge. A gap is the sum of the absolute duality gaps of a pair's terms over OT(a, b),
    or the relative width of its bracket; a marginal error is the mass (of 1) that the columns of a
    plan with exact rows hold too much or too little, of the worst of a pair's terms. eps is
    absolute, 0 if exact or bracketed. samples: the most of a set that were looked at, where not
    all.
    """

    names: tuple[str, ...]
    values: np.ndarray
    gaps: np.ndarray
    marginal_errors: np.ndarray
    eps: float
    samples: int | None = None

    def row(self, name: str) -> dict[str, float]:
        """The known distances from a set, by the second set."""
        values = dict(zip(self.names, self.values[self.names.index(name)].tolist(), strict=True))
        return {to: value for to, value in values.items() if to != name and math.isfinite(value)}

    def certainty(self) -> str:
        """eps, the worst gap and the worst marginal error, in a line."""
        kind = f"ε {self.eps:.3g}" if self.eps else "unregularised"
        missing = int(np.isnan(self.values).sum()) // 2
        return (
            f"{kind}, worst gap {_worst(self.gaps)}, worst marginal error "
            f"{_worst(self.marginal_errors)}"
            + (f"; {missing} pair{'s' * (missing > 1)} missing" if missing else "")
        )

    def plain(self) -> dict[str, Any]:
        """Values for JSON: null for a pair that did not converge, and for an unknown gap."""

        def lists(array: np.ndarray) -> list[list[float | None]]:
            return [[x if math.isfinite(x) else None for x in row] for row in array.tolist()]

        return dataclasses.asdict(self) | {name: lists(getattr(self, name)) for name in _ARRAYS}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Matrix:
        """The matrix that `plain` was made of."""
        arrays = {name: np.array(plain[name], float) for name in _ARRAYS}
        return cls(tuple(plain["names"]), **arrays, eps=plain["eps"], samples=plain["samples"])


def pairs(matrix: Matrix) -> pandas.DataFrame:
    """A row a pair of sets, each once: distance, gap and marginal error, NaN where the pair did not
    converge, and eps."""
    names, (i, j) = np.array(matrix.names, object), np.triu_indices(len(matrix.names), 1)
    data = {"set": names[i], "other": names[j], "distance": matrix.values[i, j]}
    data |= {"gap": matrix.gaps[i, j], "marginal_error": matrix.marginal_errors[i, j]}
    return pandas.DataFrame(data).assign(eps=matrix.eps)


def write_csv(path: Path, matrix: Matrix) -> None:
    """Write the matrix, a set a row and a column, and `pairs` in a second file, whose name ends in
    `_pairs`."""
    square = pandas.DataFrame(matrix.values, columns=list(matrix.names))
    square.insert(0, "", list(matrix.names))
    tables.write_csv(path, square, digits=None)
    tables.write_csv(path.with_stem(f"{path.stem}_pairs"), pairs(matrix), digits=None)


def _worst(errors: np.ndarray) -> str:
    known = errors[np.isfinite(errors)]
    return f"{known.max():.1e}" if known.size else "unknown"
