"""Bures-Wasserstein tables against the d x d way in float64, and laws; nuclear norms by products
against singular values, for spectra of every kind."""

import pytest
import torch
from torch import Tensor

from helpers.children import DEVICE
from helpers.twins import assert_near
from kernels.transport import bures
from kernels.transport.bures import ERROR, bures_squared, class_gaussians, nuclear_norms


def labelled(counts: list[int], d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Shuffled features with slowly decaying spectra, and labels with these class sizes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    spectrum = torch.arange(1, d + 1).float() ** -0.5
    noise = torch.randn(len(labels), d, generator=generator) * spectrum
    centres = torch.randn(len(counts), d, generator=generator)
    stretch = 0.5 + torch.rand(len(counts), d, generator=generator)
    return centres[labels] + noise * stretch[labels] + 3.0, labels


def moments(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    groups = [features[labels == c].double() for c in labels.unique()]
    means = [group.mean(0) for group in groups]
    offsets = [group - mean for group, mean in zip(groups, means, strict=True)]
    covariances = [o.T @ o / max(len(o) - 1, 1) for o in offsets]
    return torch.stack(means), torch.stack(covariances)


def by_square_roots(
    means_a: Tensor, covariances_a: Tensor, means_b: Tensor, covariances_b: Tensor
) -> Tensor:
    """The twin, from moments and d x d square roots in float64."""
    out = torch.empty(len(means_a), len(means_b), dtype=torch.float64)
    for i, (mean_a, a) in enumerate(zip(means_a.double(), covariances_a.double(), strict=True)):
        values, vectors = torch.linalg.eigh(a)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        for j, (mean_b, b) in enumerate(zip(means_b.double(), covariances_b.double(), strict=True)):
            cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
            out[i, j] = (mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * cross
    return out


RAGGED = [[1, 2, 9, 30, 3], [40, 1, 5]]  # d = 12 lies between: both sides are used


@pytest.mark.gpu
@pytest.mark.parametrize("d", [1, 12, 33])
def test_ragged_classes_equal_the_square_root_way(d):
    sets = [labelled(counts, d, seed) for seed, counts in enumerate(RAGGED)]
    gaussians = [
        class_gaussians(x.to(DEVICE), labels.to(DEVICE), len(counts))
        for (x, labels), counts in zip(sets, RAGGED, strict=True)
    ]
    actual = bures_squared(*gaussians).cpu()
    expected = by_square_roots(*moments(*sets[0]), *moments(*sets[1]))
    traces = (gaussians[0].traces[:, None] + gaussians[1].traces).cpu()
    assert actual.dtype == torch.float64
    assert ((actual - expected).abs() <= 1e-6 * (traces + expected)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_of_one_image_have_no_spread_at_all(dtype):
    """Their mean, summed and divided, need not be any of them."""
    images = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=dtype) / 3
    gaussians = class_gaussians(
        images.repeat_interleave(7, 0), torch.arange(4).repeat_interleave(7), 4
    )
    assert not gaussians.traces.any() and torch.equal(gaussians.means, images.double())


def test_a_table_within_a_set_is_symmetric_and_the_same_in_blocks_of_any_size(monkeypatch):
    counts = [7, 3, 20, 11, 1, 6]
    gaussians = class_gaussians(*labelled(counts, 15, 6), 6)
    within, across = bures_squared(gaussians), bures_squared(gaussians, gaussians)
    assert torch.equal(within, within.T) and not within.diagonal().any()
    off = {"rtol": 1e-5, "atol": 1e-6 * gaussians.traces.max().item()}
    torch.testing.assert_close(within, across, **off)
    monkeypatch.setitem(bures._BATCH, "cpu", 1)
    torch.testing.assert_close(bures_squared(gaussians), within, **off)
    torch.testing.assert_close(bures_squared(gaussians, gaussians), across, **off)


def test_one_image_and_no_image_follow_the_rule_and_are_named():
    features = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    gaussians = class_gaussians(features, torch.tensor([4, 1, 1]), 6)
    assert gaussians.labels.tolist() == [1, 4] and gaussians.single == (4,)
    assert gaussians.traces.tolist() == pytest.approx([2.0, 0.0])
    table = bures_squared(gaussians)
    assert table[0, 1].item() == pytest.approx(2.0 + 2.0)  # |mean difference|^2 + trace
    only = class_gaussians(features, torch.arange(3), 3)
    torch.testing.assert_close(bures_squared(only)[0], torch.tensor([0.0, 1.0, 5.0]).double())


def test_laws():
    features, labels = labelled([9, 14, 6], 10, 8)
    base = bures_squared(class_gaussians(features, labels, 3))
    shifted = bures_squared(class_gaussians(features + 50.0, labels, 3))
    assert_near(shifted, base, rtol=1e-4, atol=1e-5)
    for scale in (3.0, 1e9, 1e-9):
        scaled = bures_squared(class_gaussians(features * scale, labels, 3))
        assert_near(scaled / scale**2, base, rtol=1e-5, atol=1e-5)
    root = base.sqrt()
    assert (root[0, 1] <= root[0, 2] + root[2, 1]).all()


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "at least one sample"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), r"\[n, d\] matrix"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), "floating"),
        (torch.tensor([[0.0], [torch.nan]]), torch.tensor([0, 1]), "sample 1 holds NaN"),
        (torch.zeros(2, 3), torch.tensor([0, 2]), r"sample 1 has label 2, outside \[0, 2\)"),
        (1e12 * torch.eye(4), torch.arange(4) % 2, "largest variance of a class"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), r"must be int64 \[2\]"),
    ],
)
def test_bad_input_is_refused_by_name(features, labels, message):
    with pytest.raises(ValueError, match=message):
        class_gaussians(features, labels, 2)


def test_sets_of_different_models_are_refused():
    narrow, wide = (class_gaussians(torch.randn(2, d), torch.arange(2), 2) for d in (3, 4))
    with pytest.raises(ValueError, match="dimension 3 and 4"):
        bures_squared(narrow, wide)


def with_values(values: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix with these singular values, and random singular vectors."""
    generator = torch.Generator().manual_seed(len(values))
    left, right = (
        torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q[:, : len(values)]
        for size in (rows, columns)
    )
    return (left * values) @ right.T


SPECTRA = {
    "flat": torch.ones(48),
    "decaying": torch.arange(1, 49) ** -2.0,
    "wide": torch.logspace(0, -12, 48),
    "at the bound": torch.cat([torch.ones(1), torch.full((47,), ERROR / 96)]),
    "rank 1": torch.ones(1),
    "large": 1e15 * torch.rand(48, generator=torch.Generator().manual_seed(0)),
    "small": 1e-30 * torch.logspace(0, -5, 48),
    "none": torch.zeros(48),
}


@pytest.mark.parametrize("shape", [(48, 48), (64, 48), (48, 130)])
@pytest.mark.parametrize("name", SPECTRA)
def test_it_is_below_the_sum_of_singular_values_by_the_bound_at_most(name, shape):
    values = SPECTRA[name].double()
    exact, actual = float(values.sum()), float(nuclear_norms(with_values(values, *shape)))
    assert -1e-13 * exact <= exact - actual <= ERROR * exact


def test_batches_of_float32_products():
    generator = torch.Generator().manual_seed(1)
    matrices = torch.randn(3, 2, 17, 30, generator=generator)
    expected = torch.linalg.svdvals(matrices.double()).sum(-1)
    actual = nuclear_norms(matrices)
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=ERROR, atol=0)
    torch.testing.assert_close(nuclear_norms(matrices.mT), actual, rtol=1e-12, atol=0)
    assert nuclear_norms(matrices[:0]).shape == (0, 2)
    assert float(nuclear_norms(torch.tensor([[3.0, 4.0]]))) == pytest.approx(5.0, rel=ERROR)


def test_tables_of_classes_by_products_wait_for_nothing(monkeypatch):
    """As on a GPU, in batches of a few classes."""
    monkeypatch.setitem(bures._BATCH, "cpu", 1 << 8)
    labels = torch.arange(12).repeat_interleave(4)
    features = torch.randn(len(labels), 6, generator=torch.Generator().manual_seed(0))
    gaussians = class_gaussians(features, labels, 12)
    expected = bures_squared(gaussians)
    products = lambda a, b: nuclear_norms(torch.einsum("ird,jsd->ijrs", a, b))  # noqa: E731
    monkeypatch.setattr(bures, "_block_norms", products)
    from helpers.launches import counted  # here, since it needs private parts of torch

    with counted() as counts:
        actual = bures_squared(gaussians)
    assert not counts.waits, counts.waits
    traces = gaussians.traces[:, None] + gaussians.traces
    assert ((actual - expected).abs() <= 1e-5 * traces).all()
