"""The table of label distances: nuclear norms of small products against d x d square roots.

The usual way takes a square root of a d x d matrix for each class of one set, and for each pair of
classes the eigenvalues of another. Ours takes for a pair the product of two n x d factors and the
singular values of an n x n matrix, many pairs at once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from bench.contest import Contest, Entrant, Scale
from bench.peers import skipped
from bench.roofline import Work
from kernels.transport.bures import ClassGaussians, bures_squared, class_gaussians

KERNELS = ("transport.bures",)


def gate(device: torch.device) -> None:
    """Against square roots in float64, relative to the traces."""
    a, b = (_gaussians(3, 20, 48, device, seed) for seed in (0, 1))
    right = _by_roots(a, b, _eigh_root, _eigh_trace)
    scale = a.traces[:, None] + b.traces
    off = float(((bures_squared(a, b) - right).abs() / scale).max())
    assert off <= 1e-5, f"off by {off:.2g} of the traces"


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    classes, each, d = (2, 10, 24) if scale.quick else (4, 50, 768)
    yield from _against_roots(classes, each, d, device)
    if scale.quick:
        yield _pair_by_pair(classes, 1, each, d, device)
    else:
        yield _pair_by_pair(100, 100, each, d, device)
    if scale.full:
        yield _pair_by_pair(1000, 10, each, d, device)


def _against_roots(classes: int, each: int, d: int, device: torch.device) -> Iterator[Contest]:
    a, b = (_gaussians(classes, each, d, device, seed) for seed in (0, 1))
    pairs = classes**2
    subject = Entrant("bures_squared", lambda: bures_squared(a, b), _work(pairs, each, d))
    # A root of a class is an eigen-solve with vectors, 9 d^3, and a product, in float64; a pair's
    # trace takes two products and an eigen-solve without.
    roots = Work(flops=2 * (classes * 11 + pairs * (4 + 4 / 3)) * d**3)
    name = f"table {classes} x {classes}, {each} each"
    peers = [Entrant("roots by eigh", lambda: _by_roots(a, b, _eigh_root, _eigh_trace), roots)]
    if device.type == "cpu":
        if importlib.util.find_spec("scipy") is None:
            skipped("scipy.linalg.sqrtm", "scipy is not installed")
        else:
            # Schur's form takes about 25 d^3.
            schur = Work(flops=2 * (classes * 25 + pairs * (25 + 4)) * d**3)
            by_schur = partial(_by_roots, a, b, _scipy_root, lambda c: _scipy_root(c).trace())
            peers.append(Entrant("scipy sqrtm", by_schur, schur))
    yield Contest(name, subject, (peers[0],), rounds=3, processor_time=True)
    for peer in peers[1:]:
        yield Contest(name, subject, (peer,), rounds=2, processor_time=True)


def _pair_by_pair(classes: int, rows: int, each: int, d: int, device: torch.device) -> Contest:
    """All pairs at once against the same singular values one by one, of some rows of the table."""
    a, b = (_gaussians(classes, each, d, device, seed) for seed in (0, 1))
    first = dataclasses.replace(
        a, means=a.means[:rows], traces=a.traces[:rows], factors=a.factors[:rows]
    )
    work = _work(classes**2, each, d)
    name = "svdvals, pair by pair"
    if rows < classes:
        name += f", {rows} of {classes} rows, scaled"
    share = rows / classes
    peer = Entrant(name, lambda: _by_singular_values(first, b), work, share=share)
    return Contest(
        f"table {classes} x {classes}, {each} each",
        Entrant("bures_squared", lambda: bures_squared(a, b), work),
        (peer,),
        rounds=2,
        processor_time=True,
    )


def _work(pairs: int, each: int, d: int) -> Work:
    """The product, its Gram matrix in float64, an eigen-solve of about 4/3 n^3 without vectors."""
    return Work(flops=pairs * (2 * each**2 * d + 2 * (2 + 4 / 3) * each**3))


def _gaussians(classes: int, each: int, d: int, device: torch.device, seed: int) -> ClassGaussians:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, d + 1) ** -0.5
    features = torch.randn(classes * each, d, generator=generator) * scale
    labels = torch.arange(classes).repeat_interleave(each)
    return class_gaussians(features.to(device), labels.to(device), classes)


def _by_roots(
    a: ClassGaussians,
    b: ClassGaussians,
    root: Callable[[Tensor], Tensor],
    trace: Callable[[Tensor], Tensor],
) -> Tensor:
    """`trace`: of the root of a matrix."""
    left, right = ([f.double().T @ f.double() for f in gaussians.factors] for gaussians in (a, b))
    halves = [root(covariance) for covariance in left]
    return _table(
        a, b, [[trace(half @ covariance @ half) for covariance in right] for half in halves]
    )


def _by_singular_values(a: ClassGaussians, b: ClassGaussians) -> Tensor:
    def norm(left: Tensor, right: Tensor) -> Tensor:
        return torch.linalg.svdvals(left.double() @ right.double().T).sum()

    return _table(a, b, [[norm(left, right) for right in b.factors] for left in a.factors])


def _table(a: ClassGaussians, b: ClassGaussians, cross: list[list[Tensor]]) -> Tensor:
    crossed = torch.stack([torch.stack(row) for row in cross])
    means = torch.cdist(a.means, b.means).square()
    return means + a.traces[:, None] + b.traces - 2 * crossed


def _eigh_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def _eigh_trace(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).clamp(min=0.0).sqrt().sum()


def _scipy_root(matrix: Tensor) -> Tensor:
    from scipy.linalg import sqrtm

    return torch.as_tensor(sqrtm(matrix.numpy())).real
