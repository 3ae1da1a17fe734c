"""Squared Bures-Wasserstein distances between all pairs of classes, without d x d square roots.

OTDD's ground cost includes W2^2 between the Gaussians of each pair of classes. The usual way takes
two matrix square roots of size d per pair. With factors F (rows: centred samples over sqrt(n - 1),
so that F^T F is the covariance) the cross term is a nuclear norm,

    W2^2 = ||m1 - m2||^2 + tr S1 + tr S2 - 2 ||F1 F2^T||_*,

which needs only the singular values of an n1 x n2 matrix: several hundred times less work for
classes of 50 images and d = 768. Classes with more than d images keep the d x d triangle of a QR
decomposition, which has the same Gram matrix. Padding a factor with rows of zeros only adds
singular values of zero, so batches of different heights are exact. On a GPU the norms come from
matrix products only (`nuclear_norms`), without synchronising the host.

Sources: Bhatia, Jain & Lim 2019 (the distance); Alvarez-Melis & Fusi 2020, section 4 (its use).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Numbers in one batch of float64 products F1 F2^T. CPU: 8 MiB, of which most stays in cache.
_BATCH = {"cpu": 1 << 20, "cuda": 1 << 23}
ERROR = 2e-6  # of nuclear norms, relative: half for values below l_0, half for l_k < 1
# Squared distances and variances: float32 cannot represent products outside this range.
RANGE = 1e-20, 1e20


@dataclass(frozen=True)
class ClassGaussians:
    """Means and covariances of the classes that have samples, in ascending order of label.

    labels: int64 [K]. means: float64 [K, d]. traces: of the covariances, float64 [K]. factors: K
    float32 matrices F [min(n - 1, d), d] such that F^T F is the (unbiased) covariance. single:
    labels of classes with one sample, whose covariance is defined as zero.
    """

    labels: Tensor
    means: Tensor
    traces: Tensor
    factors: tuple[Tensor, ...]
    single: tuple[int, ...]

    @property
    def dimension(self) -> int:
        return self.means.shape[1]


def class_gaussians(features: Tensor, labels: Tensor, classes: int) -> ClassGaussians:
    """Returns the Gaussian of each class of a labelled dataset, with moments computed in float64.

    features: [n, d], finite, any floating dtype; they receive no gradients. labels: int64 [n] in
    [0, classes).

    Raises ValueError for an empty dataset, shapes that do not fit, features that are not finite and
    labels out of range, naming the first wrong sample; and if the largest variance of a class (the
    trace) is neither 0 nor within `RANGE`.
    """
    check_features("features", features, labels, classes)
    counts = torch.bincount(labels, minlength=classes)
    present = counts.nonzero().squeeze(1)
    order = labels.argsort(stable=True)
    groups = features.detach().double()[order].split(counts[present].tolist())
    means, factors, traces = [], [], []
    for group in groups:
        # Offsets from the first sample: copies of one image differ by exactly 0, not by rounding.
        offsets = group - group[0]
        centre = offsets.mean(0)
        means.append(group[0] + centre)
        factor = _factor(offsets - centre)
        traces.append(factor.square().sum())
        factors.append(factor.float())
    every_trace = torch.stack(traces)
    largest = float(every_trace.amax())
    if largest != 0 and not RANGE[0] <= largest <= RANGE[1]:
        raise ValueError(
            f"features: the largest variance of a class is {largest:.3g}, outside "
            f"[{RANGE[0]:g}, {RANGE[1]:g}]; scale the features of all datasets alike"
        )
    return ClassGaussians(
        labels=present,
        means=torch.stack(means),
        traces=every_trace,
        factors=tuple(factors),
        single=tuple((counts == 1).nonzero().squeeze(1).tolist()),
    )


def bures_squared(a: ClassGaussians, b: ClassGaussians | None = None) -> Tensor:
    """Returns W2^2 between each class of `a` and each class of `b`, float64 [Ka, Kb], never
    negative.

    b: None for distances within `a`, at half the work; the table is then symmetric with a diagonal
    of exact zeros.

    Rounding is relative to the two traces, not to W2^2, which may approach zero: up to 3.3e-7 of
    their sum with float32 factors (the maximum observed). Raises ValueError if the dimensions
    differ.
    """
    second = a if b is None else b
    if a.dimension != second.dimension:
        raise ValueError(
            f"classes of dimension {a.dimension} and {second.dimension} cannot be compared; "
            "take the features of both datasets from the same model"
        )
    squared = torch.cdist(
        a.means, second.means, compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    cross = _nuclear_norms(a.factors, second.factors, symmetric=b is None)
    squared = (squared + a.traces[:, None] + second.traces - 2 * cross).clamp_(min=0.0)
    if b is None:
        upper = squared.triu(1)
        return upper + upper.T
    return squared


def _factor(centred: Tensor) -> Tensor:
    """F [min(n - 1, d), d] such that F^T F is the covariance of n centred samples."""
    n, d = centred.shape
    if n == 1:
        return centred[:0]
    # Centred samples are orthogonal to the vector of ones. A reflection that maps it to the first
    # axis makes the first row zero, so we drop that row.
    rows = centred[1:] + centred[0] / (math.sqrt(n) - 1)
    if n - 1 > d:
        rows = torch.linalg.qr(rows, mode="r").R
    return rows / math.sqrt(n - 1)


def check_features(name: str, features: Tensor, labels: Tensor | None, classes: int | None) -> None:
    """Raises ValueError, naming the first wrong sample, unless features and labels are usable."""
    if features.ndim != 2 or not features.is_floating_point() or not features.numel():
        raise ValueError(
            f"{name} must be a floating [n, d] matrix with at least one sample, not "
            f"{features.dtype} {list(features.shape)}"
        )
    finite = features.isfinite().all(1)
    if not finite.all():
        sample = int((~finite).nonzero()[0])
        raise ValueError(f"{name}: sample {sample} holds NaN or infinity; was its image decoded?")
    if labels is None:
        return
    if labels.shape != features.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels of {name} must be int64 [{len(features)}], not {labels.dtype} "
            f"{list(labels.shape)}"
        )
    outside = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    if outside.any():
        sample = int(outside.nonzero()[0])
        raise ValueError(
            f"{name}: sample {sample} has label {int(labels[sample])}, outside [0, {classes})"
        )


def _nuclear_norms(left: Sequence[Tensor], right: Sequence[Tensor], *, symmetric: bool) -> Tensor:
    # Write in order of height, so that a block is a slice. Copying a list of indices to the GPU for
    # each block would synchronise the host.
    out = torch.zeros(len(left), len(right), dtype=torch.float64, device=left[0].device)
    (order, rows), (across, columns) = _blocks(left), _blocks(right)
    padded = [_padded(right, across, block) for block in columns]
    for number, block in enumerate(rows):
        a = _padded(left, order, block)
        first = number if symmetric else 0
        for other, b in zip(columns[first:], padded[first:], strict=True):
            norms = _block_norms(a, b)
            out[block, other] = norms
            if symmetric:
                out[other, block] = norms.T
    places = (torch.tensor(places).argsort().to(out.device) for places in (order, across))
    return out[next(places)][:, next(places)]


def _blocks(factors: Sequence[Tensor]) -> tuple[list[int], list[slice]]:
    """The factors' order by height, tallest first, and slices of it.

    A slice has factors of similar height, and few enough for a batch. Factors without rows are in
    no slice: their nuclear norms are zero.
    """
    heights = [len(factor) for factor in factors]
    order = sorted(range(len(heights)), key=lambda i: -heights[i])
    blocks, side = [], math.isqrt(_BATCH[factors[0].device.type])
    start, end = 0, sum(height > 0 for height in heights)
    while start < end:
        tallest = heights[order[start]]
        similar = sum(2 * heights[i] > tallest for i in order[start:end])
        blocks.append(slice(start, start + min(similar, max(1, side // tallest))))
        start = blocks[-1].stop
    return order, blocks


def _padded(factors: Sequence[Tensor], order: Sequence[int], block: slice) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([factors[i] for i in order[block]], batch_first=True)


def _block_norms(a_IRD: Tensor, b_JSD: Tensor) -> Tensor:
    """Nuclear norms [I, J] of all products, in float64.

    A CPU solves an eigenproblem on their shorter side, which is faster there.
    """
    products = a_IRD.flatten(0, 1) @ b_JSD.flatten(0, 1).T
    products = products.unflatten(0, a_IRD.shape[:2]).unflatten(2, b_JSD.shape[:2])
    # Without contiguous(), the products below take three times as long.
    products_IJRS = products.transpose(1, 2).contiguous().double()
    if products_IJRS.is_cuda:
        return nuclear_norms(products_IJRS)
    if products_IJRS.shape[2] > products_IJRS.shape[3]:
        products_IJRS = products_IJRS.mT
    eigenvalues = torch.linalg.eigvalsh(products_IJRS @ products_IJRS.mT)
    return eigenvalues.clamp_(min=0.0).sqrt_().sum(-1)


def nuclear_norms(matrices: Tensor) -> Tensor:
    """Returns sums of singular values [...], float64, of matrices [..., r, s], to a relative
    `ERROR`, by matrix products only, about 45 of r x r by r x s for each matrix.

    On a GPU, a batched eigen-solver takes matrices larger than 32 x 32 one by one, about 1.4 ms
    each. Instead, ||M||_* = tr(U^T M), where U is the orthogonal polar factor, the limit of
    Newton-Schulz iterations (Higham 2008, Functions of Matrices, chapter 8)

        X <- (3 / 2) c X - (1 / 2) c^3 (X X^T) X,     X_0 = M / ||M||_F.

    Each takes two batched products, the second of which adds the first term. The result never
    exceeds the true value, up to rounding, and is below it by at most

        (1 - l_k) ||M||_*  +  r l_0 ||M||_F,     r = min(rows, columns).

    Singular values of at least l_0 ||M||_F count with a factor of l_k or more (`scales`), and at
    most r are smaller. `ERROR` bounds both terms together, for any spectrum.
    """
    m = matrices.double().flatten(0, -3) if matrices.ndim > 2 else matrices.double()[None]
    if m.shape[1] > m.shape[2]:
        m = m.mT
    length = torch.linalg.matrix_norm(m)[:, None, None]
    x = m / length.clamp(min=torch.finfo(torch.float64).tiny)
    for c in scales(m.shape[1]):
        x = torch.baddbmm(x, x @ x.mT, x, beta=1.5 * c, alpha=-0.5 * c**3)
    return (x * m).sum((1, 2)).reshape(matrices.shape[:-2])


def scales(rank: int) -> list[float]:
    """Returns c of each iteration for matrices of at most this rank (Chen & Chow 2014).

    An iteration maps each singular value s to p(s) = 3/2 cs - 1/2 (cs)^3. If all s of X are in
    [l, 1], then c^2 = 3 / (1 + l + l^2) makes p(l) = p(1), so that they are in [p(l), 1] next.
    While l is small, it grows by a factor of 2.6 per step; near 1, its distance to 1 is squared.
    """
    least, out = ERROR / (2 * max(rank, 1)), []
    while 1 - least > ERROR / 2:
        c = math.sqrt(3 / (1 + least + least**2))
        out.append(c)
        least = 1.5 * c * least - 0.5 * (c * least) ** 3
    return out
