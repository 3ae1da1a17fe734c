"""The ground cost of OTDD, never held in full precision.

    C_ij = lam_x ||x_i - y_j||^2 + lam_y T[label x_i, label y_j]

Samples are sorted by class, so that a strip of rows needs few rows of T, and sums over blocks tell
the mass that goes from class to class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kernels.transport.bures import RANGE, check_features
from kernels.transport.cost_rows import INNER, by_dimension, cost_rows, sums_blocks

STRIP_ROWS = 512
# Of a set, at most. Fewer make a step between blocks cheaper, but unlike classes in one block cost
# most of what it gains: 7 iterations became 32 for 3000 samples of 1000 classes that lie apart.
_BLOCKS = 1024
_LONGEST = 512  # samples of a block, where that makes no more of them than half of the most


@dataclass(frozen=True)
class Cloud:
    """Samples sorted by class: order int64 [n] (into the caller's), x float64 [n, d] (centred,
    times sqrt(lam_x)), squares of their lengths, labels."""

    order: Tensor
    x: Tensor
    squares: Tensor
    labels: Tensor

    @cached_property
    def bounds(self) -> Tensor:
        """Where blocks begin and end, int64 on the CPU: classes, or parts of large ones, or several
        where there are too many.

        Blocks of at least 2 n / k samples, cut into parts of at most so many, are at most k.
        """
        n = len(self.labels)
        ends = self.labels.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
        longest, least = max(_LONGEST, -(-2 * n // _BLOCKS)), 1
        while len(bounds := _cut(ends, least, longest)) > _BLOCKS + 1:
            least = min(2 * least, longest)
        return torch.tensor(bounds)

    def unsorted(self, values: Tensor) -> Tensor:
        """Values per sample in the caller's order."""
        return torch.empty_like(values).index_copy_(0, self.order, values)


class GroundCost:
    """The cost between every sample of two labelled sets, in strips of rows.

    x [n, d] and y [m, d]: finite features of any floating dtype, n and m at least 2; gradients do
    not reach them. labels_x,
    labels_y: int64 [n], [m], numbering the rows and columns of `table` [Kx, Ky] (finite, not
    negative), whose entries are squared label distances; without labels the cost is between
    features alone. lam_x, lam_y: not negative, not both zero.

    Raises ValueError, naming the argument and the first wrong sample, for everything else, when all
    costs are zero, since no scale for eps exists then, and when their mean is not within `RANGE`.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        labels_x: Tensor | None = None,
        labels_y: Tensor | None = None,
        table: Tensor | None = None,
        lam_x: float = 1.0,
        lam_y: float = 1.0,
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
                "sets from the same model"
            )
        if table is not None and not (table.isfinite().all() and (table >= 0).all()):
            raise ValueError("table of label distances holds NaN, infinity or negative numbers")
        if not (0 <= lam_x < float("inf") and 0 <= lam_y < float("inf")):
            raise ValueError(f"lam_x and lam_y must be finite, not negative: {lam_x}, {lam_y}")
        x, y = x.detach(), y.detach()
        # Distances do not change, and rounding shrinks.
        centre = x.mean(0, dtype=torch.float64)
        self.x = _cloud(x, labels_x, centre, math.sqrt(lam_x))
        self.y = _cloud(y, labels_y, centre, math.sqrt(lam_x))
        self.table = None if table is None else (lam_y * table.detach().double()).contiguous()
        self.mean = float(self.times(torch.full_like(self.y.squares, 1 / len(y))).mean())
        if self.mean == 0:
            raise ValueError("all costs are zero: the features are one point, or lam_x = lam_y = 0")
        # n m mean costs may add up to one entry; what underflows is below float64's rounding.
        if not RANGE[0] <= self.mean <= RANGE[1]:
            raise ValueError(
                f"the mean cost is {self.mean:.3g}, outside [{RANGE[0]:g}, {RANGE[1]:g}], where "
                "float32 can hold all costs; scale the features, the table or their weights"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.x.x), len(self.y.x)

    @property
    def symmetric(self) -> bool:
        """Whether it is between a set and itself."""
        if not (torch.equal(self.x.x, self.y.x) and torch.equal(self.x.labels, self.y.labels)):
            return False
        table = self.table
        return table is None or (table.shape == table.T.shape and table.allclose(table.T))

    @property
    def by_kernel(self) -> bool:
        """Whether costs in float32 are `cost_rows`'s: on a GPU."""
        return self.x.x.is_cuda

    def rows(self, start: int, stop: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
        """Costs [stop - start, m] of some rows, computed in `dtype`; not negative. In float32 on a
        GPU its rows lie apart."""
        if self.by_kernel and dtype == torch.float32:
            x, y, rows = self.x, self.y, slice(start, stop)
            features = by_dimension(x.x[rows]), self._y_by_dimension
            squares, labels = (x.squares[rows], y.squares), (x.labels[rows], y.labels)
            return cost_rows(*features, *squares, *labels, self.table)
        cost = self.products(start, stop, dtype=dtype)
        terms, which = self.columns(start, stop, dtype=dtype)
        cost += terms if len(terms) == 1 else terms[which]
        cost += self.x.squares[start:stop].to(dtype)[:, None]
        return cost.clamp_(min=0.0)

    def products(
        self, start: int, stop: int, *, dtype: torch.dtype, out: Tensor | None = None
    ) -> Tensor:
        """-2 x_i y_j of some rows, [stop - start, m]; `out` may have more rows."""
        single = dtype == torch.float32
        x, y = self.x.x[start:stop].to(dtype), self._y_single if single else self.y.x.to(dtype)
        inner = INNER if single else x.shape[1]
        product = x.new_empty(len(x), len(y)) if out is None else out[: len(x)]
        for k, (a, b) in enumerate(zip(x.split(inner, 1), y.split(inner, 1), strict=True)):
            product.addmm_(a, b.T, alpha=-2, beta=min(k, 1))
        return product

    def columns(self, start: int, stop: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """||y_j||^2 plus label terms, [k, m] for the k classes of some rows, and which of
        them a row has."""
        classes, which = self.x.labels[start:stop].unique_consecutive(return_inverse=True)
        terms = self.y.squares.to(dtype).expand(len(classes), -1)
        if self.table is not None:
            terms = self.table[classes].to(dtype)[:, self.y.labels].add_(terms)
        return terms, which

    def strips(self, rows: int, *, dtype: torch.dtype = torch.float64) -> Iterator[tuple]:
        """(slice, costs) of consecutive rows."""
        for start in range(0, self.shape[0], rows):
            stop = min(start + rows, self.shape[0])
            yield slice(start, stop), self.rows(start, stop, dtype=dtype)

    def times(self, columns: Tensor) -> Tensor:
        """sum_j C_ij columns_j, float64 [n], in O((n + m) d)."""
        product = columns.sum() * self.x.squares + columns @ self.y.squares
        product -= 2 * (self.x.x @ (columns @ self.y.x))
        if self.table is not None:
            by_class = columns.new_zeros(self.table.shape[1]).index_add_(0, self.y.labels, columns)
            product += (self.table @ by_class)[self.x.labels]
        return product

    def rounding(self) -> float:
        """How far any plan's cost is off, at most, when `rows` computes in float32; or infinity.

        A sum of k products in any order is off by at most k u sum |x_k y_k| (u = 2^-24), and
        2 |x| |y| <= ||x||^2 + ||y||^2, whose sum over a plan is that of its marginals. Counted are
        the products of a block, two roundings of each for the input and the scale, two for every
        block that is added to what may be twice as large, and 12 for the other terms. That the
        product of a block is float32's and is summed before it is added is for the library to
        decide, on a GPU for the compiler of `cost_rows`: it is tried out, a library's on the shapes
        of a whole strip and of the last one, and nothing is promised where it fails (reduced
        precision allowed).
        """
        if not self._sums_blocks:
            return math.inf
        unit = torch.finfo(torch.float32).eps / 2
        count = INNER + 2 + 2 + 2 * -(-self.x.x.shape[1] // INNER) + 12
        bound = count * (self.x.squares.mean() + self.y.squares.mean())
        if self.table is not None:
            bound += 4 * self.table.amax()
        return 1.01 * unit * float(bound)

    @cached_property
    def _sums_blocks(self) -> bool:
        device = self.x.x.device
        if self.by_kernel:
            return sums_blocks(device)
        (n, m), d = self.shape, self.x.x.shape[1]
        strips = {min(STRIP_ROWS, n), n % STRIP_ROWS} - {0}
        blocks = {min(INNER, d), d % INNER} - {0}
        return all(_sums_block(rows, m, inner, d, device) for rows in strips for inner in blocks)

    @cached_property
    def _y_single(self) -> Tensor:
        return self.y.x.float()

    @cached_property
    def _y_by_dimension(self) -> Tensor:
        return by_dimension(self.y.x)


def most_blocks(n: int) -> int:
    """Of n samples, at most."""
    return min(n, _BLOCKS)


def _cut(ends: list[int], least: int, longest: int) -> list[int]:
    """Bounds of blocks of whole classes, at least `least` samples, in parts of up to `longest`."""
    bounds = [0]
    for end in ends:
        start = bounds[-1]
        if end - start >= least or end == ends[-1]:
            parts = -(-(end - start) // longest)
            bounds += [start + (end - start) * k // parts for k in range(1, parts + 1)]
    return bounds


def _sums_block(rows: int, columns: int, inner: int, d: int, device: torch.device) -> bool:
    # 18 bits, and sums of 24: a product of fewer bits, or one that rounds them, would show.
    number = 1 + 2.0**-17
    # Columns of a wider matrix, as `rows` has them.
    a = torch.full((rows, d), number, device=device)[:, :inner]
    b = torch.ones(columns, d, device=device)[:, :inner]
    # To 2^24 each product, added alone, would be rounded up to 2.
    large = torch.tensor([0.0, 2.0**24], device=device)[:, None, None].repeat(1, rows, columns)
    for start in large:
        start.addmm_(a, b.T)
    right = (large[0] == inner * number) & (large[1] == 2.0**24 + 2 * -(-inner // 2))
    return bool(right.all())


def _cloud(x: Tensor, labels: Tensor | None, centre: Tensor, scale: float) -> Cloud:
    if labels is None:
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    order = labels.argsort(stable=True)
    scaled = x[order].double().sub_(centre).mul_(scale)
    return Cloud(order, scaled, torch.einsum("nd,nd->n", scaled, scaled), labels[order])
