"""Nuclear norms by products against singular values in float64, for spectra of every kind."""

import pytest
import torch
from torch import Tensor

from helpers.launches import counted
from kernels.transport import bures
from kernels.transport.bures import bures_squared, class_gaussians
from kernels.transport.nuclear import ERROR, nuclear_norms


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
    with counted() as counts:
        actual = bures_squared(gaussians)
    assert not counts.waits, counts.waits
    traces = gaussians.traces[:, None] + gaussians.traces
    assert ((actual - expected).abs() <= 1e-5 * traces).all()
