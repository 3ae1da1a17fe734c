"""The ground cost of OTDD, never stored in full precision.

    C_ij = ||x_i - y_j||^2 + T[label x_i, label y_j]

Samples are sorted by class. Products are in float64, so costs are exact up to its rounding. An A100
and an H100 multiply in float64 as fast as in float32; a CPU is half as fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.transport.bures import RANGE, check_features


@dataclass(frozen=True)
class SortedSamples:
    """Samples sorted by class.

    x: float64 [n, d], centred. squares: squared lengths of the rows of x, float64 [n]. labels:
    int64 [n].
    """

    x: Tensor
    squares: Tensor
    labels: Tensor

    def sums_by_class(self, values: Tensor, classes: int) -> Tensor:
        """Sums of float64 values [n] or [n, d] over each class's samples: [classes] or
        [classes, d].
        """
        # index_add_ adds on a GPU in another order each time.
        counts = torch.bincount(self.labels, minlength=classes)
        return torch.segment_reduce(values, "sum", lengths=counts)

    def class_means(self, classes: int) -> tuple[Tensor, Tensor]:
        """Returns each class's mean and share of the samples, float64 [classes, d] and [classes].

        Both are 0 for a class without samples.
        """
        counts = torch.bincount(self.labels, minlength=classes).to(self.x)
        sums = self.sums_by_class(self.x, classes)
        return sums / counts.clamp(min=1)[:, None], counts / len(self.x)


class GroundCost:
    """The cost between all pairs of samples of two labelled datasets, in strips of rows.

    x [n, d] and y [m, d]: finite features of any floating dtype, n and m at least 2; they receive
    no gradients. labels_x, labels_y: int64 [n], [m], indices of rows and columns of `table` [Kx,
    Ky], the squared label distances (finite, not negative). Without labels, only the features
    count.

    Raises ValueError, naming the argument and the first wrong sample, for any other input; if all
    costs are zero, since then eps has no scale; and if their mean is outside `RANGE`.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        labels_x: Tensor | None = None,
        labels_y: Tensor | None = None,
        table: Tensor | None = None,
    ) -> None:
        if (table is None) != (labels_x is None) or (table is None) != (labels_y is None):
            raise ValueError("labels_x, labels_y and table go together: give all three, or none")
        if table is not None and table.ndim != 2:
            raise ValueError(f"table must be [classes of x, classes of y], not {list(table.shape)}")
        rows, columns = (None, None) if table is None else table.shape
        for name, features, labels, classes in (
            ("x", x, labels_x, rows),
            ("y", y, labels_y, columns),
        ):
            check_features(name, features, labels, classes)
            if len(features) < 2:
                raise ValueError(f"{name} has one sample; a distance needs at least two")
        if x.shape[1] != y.shape[1]:
            raise ValueError(
                f"x has {x.shape[1]} dimensions, but y has {y.shape[1]}; take the features of both "
                "datasets from the same model"
            )
        if table is not None and not (table.isfinite().all() and (table >= 0).all()):
            raise ValueError("table of label distances holds NaN, infinity or negative numbers")
        x, y = x.detach(), y.detach()
        # Centring keeps distances and reduces rounding.
        centre = x.mean(0, dtype=torch.float64)
        self.x = _sorted_samples(x, labels_x, centre)
        self.y = _sorted_samples(y, labels_y, centre)
        self.table = None if table is None else table.detach().double().contiguous()
        self.mean = float(self.times(torch.full_like(self.y.squares, 1 / len(y))).mean())
        if self.mean == 0:
            raise ValueError("all costs are zero: the features are one point")
        # One entry may hold all n m mean costs; what underflows is below float64's rounding.
        if not RANGE[0] <= self.mean <= RANGE[1]:
            raise ValueError(
                f"the mean cost is {self.mean:.3g}, outside [{RANGE[0]:g}, {RANGE[1]:g}], where "
                "float32 can hold all costs; scale the features and the table"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.x.x), len(self.y.x)

    @property
    def symmetric(self) -> bool:
        """Whether the cost is between a dataset and itself."""
        if not (torch.equal(self.x.x, self.y.x) and torch.equal(self.x.labels, self.y.labels)):
            return False
        table = self.table
        return table is None or (table.shape == table.T.shape and table.allclose(table.T))

    def rows(self, start: int, stop: int) -> Tensor:
        """Returns the costs of some rows, float64 [stop - start, m], not negative."""
        x, y, part = self.x, self.y, slice(start, stop)
        if self.table is None:
            cost = y.squares.repeat(len(x.x[part]), 1)
        else:
            by_class = self.table[x.labels[part]]
            cost = by_class.gather(1, y.labels.expand(len(by_class), -1)).add_(y.squares)
        cost.addmm_(x.x[part], y.x.T, alpha=-2).add_(x.squares[part, None])
        return cost.clamp_(min=0.0)

    def strips(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yields (slice, costs) of consecutive rows."""
        for start in range(0, self.shape[0], rows):
            stop = min(start + rows, self.shape[0])
            yield slice(start, stop), self.rows(start, stop)

    def times(self, columns: Tensor) -> Tensor:
        """Returns sum_j C_ij columns_j, float64 [n], in O((n + m) d)."""
        product = columns.sum() * self.x.squares + columns @ self.y.squares
        product -= 2 * (self.x.x @ (columns @ self.y.x))
        if self.table is not None:
            by_class = self.y.sums_by_class(columns, self.table.shape[1])
            product += (self.table @ by_class)[self.x.labels]
        return product


def _sorted_samples(x: Tensor, labels: Tensor | None, centre: Tensor) -> SortedSamples:
    if labels is None:
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    order = labels.argsort(stable=True)
    x = x[order].double().sub_(centre)
    return SortedSamples(x, torch.einsum("nd,nd->n", x, x), labels[order])
