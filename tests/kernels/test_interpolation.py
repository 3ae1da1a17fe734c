"""Interpolated models against float64, their end points bit for bit, and flat state dicts."""

import pytest
import torch
from torch import Tensor

from helpers.children import DEVICE, INTERPRETING, everywhere, interpreted
from helpers.twins import misaligned
from kernels import interpolation as module
from kernels.interpolation import flatten, interpolate, views

# outputs, parents, parameters
SHAPES = [(1, 1, 1), (1, 4, 7), (11, 2, 1000), (3, 5, 2049), (33, 2, 513), (2, 3, 0), (0, 2, 5)]


def case(outputs: int, count: int, numel: int) -> tuple[Tensor, Tensor]:
    """Parents [M, P] and weights [K, M]; some weights are zero."""
    generator = torch.Generator().manual_seed(outputs + numel)
    weights = torch.randn(outputs, count, generator=generator)
    return torch.randn(count, numel, generator=generator), weights.masked_fill(weights < -1, 0.0)


def run(parents: Tensor, weights: Tensor) -> Tensor:
    if not INTERPRETING:
        return interpolate(parents.to(DEVICE), weights.to(DEVICE)).cpu()
    out = torch.empty(len(weights), parents.shape[1])
    module._interpolate(misaligned(parents), weights, out)
    return out


def assert_float64(actual: Tensor, parents: Tensor, weights: Tensor) -> None:
    truth = weights.double() @ parents.double()
    scale = weights.double().abs() @ parents.double().abs()
    assert actual.shape == truth.shape
    error = (actual.double() - truth).abs()
    assert (error <= 2.0**-22 * weights.shape[1] * scale).all()


def awkward() -> Tensor:
    """Two parents with signed zeros, denormals, infinities and NaN, in both orders."""
    values = torch.tensor([0.0, -0.0, 1e-40, -1e-45, 3.4e38, float("inf"), -float("inf"), 1.5])
    values = torch.cat([values, torch.tensor([float("nan")])])
    first, second = torch.cartesian_prod(values, values).t()
    return torch.stack([first, second])


@everywhere
@pytest.mark.parametrize("shape", [*SHAPES, (3, 2, module._CHUNK + 3)])
def test_weighted_sums_equal_float64(shape):
    parents, weights = case(*shape)
    before = parents.clone()
    assert_float64(run(parents, weights), parents, weights)
    assert torch.equal(parents, before)


@everywhere
def test_weights_of_zero_and_one_reproduce_a_parent_bit_for_bit():
    parents = awkward()
    *mixes, none = run(parents, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -0.0], [0.0, 0.0]]))
    assert torch.equal(none, torch.zeros(81))
    for row, parent in zip(mixes, parents[[0, 1, 0]], strict=True):
        nan = parent.isnan()
        assert torch.equal(row.isnan(), nan)
        assert torch.equal(row[~nan].view(torch.int32), parent[~nan].view(torch.int32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parents": torch.zeros(4, 2).t()}, "parents must be contiguous float32"),
        ({"parents": torch.zeros(4)}, r"parents must be .* \[M, P\]"),
        ({"weights": torch.ones(1, 3)}, r"weights must be floating \[K, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        interpolate(**({"parents": torch.zeros(2, 4), "weights": torch.ones(1, 2)} | change))


def model(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(3, 5, generator=generator).t(),
        "count": torch.tensor(seed),
        "norm.weight": torch.randn(17, generator=generator).bfloat16(),
        "scale": torch.randn((), generator=generator),
        "empty": torch.zeros(0, 3),
    }


def test_state_dicts_go_flat_and_come_back_as_views_of_the_row():
    models = [model(1), model(2)]
    parents, layout = flatten(models)
    assert parents.shape == (2, layout.numel) and layout.numel % 16 == 0
    assert all(offset % 16 == 0 for offset, _ in layout.places.values())
    for row, state in zip(parents, models, strict=True):
        back = views(row, layout)
        assert list(back) == list(state)
        for name, tensor in state.items():
            expected = models[0][name] if name == "count" else tensor.float()
            assert torch.equal(back[name], expected) and back[name].shape == tensor.shape
    half = views(interpolate(parents, torch.tensor([[0.5, 0.5]]))[0], layout)
    middle = (models[0]["conv.weight"] + models[1]["conv.weight"]) / 2
    torch.testing.assert_close(half["conv.weight"], middle)
    state = views(parents[0], layout)
    state["scale"].fill_(7.0)
    state["count"].fill_(9)
    assert (views(parents[0], layout)["scale"], views(parents[0], layout)["count"]) == (7, 1)
    assert all(torch.equal(tensor, model(1)[name]) for name, tensor in models[0].items())
    with pytest.raises(ValueError, match=rf"flat \[{layout.numel}\], not \[3\]"):
        views(torch.zeros(3), layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.zeros(1)}, r"'scale' is torch.float32 \[1\] in state dict 1"),
        ({"extra": torch.zeros(1)}, "'extra' is missing from the first state dict"),
        ({"scale": None}, "'scale' is missing from state dict 1"),
    ],
)
def test_models_of_other_architectures_are_refused_by_key(change, message):
    changed = {k: v for k, v in (model(2) | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        flatten([model(1), changed])


@interpreted
def test_interpreted_kernel_declares_what_it_writes():
    arguments = (*case(3, 2, 50), torch.zeros(3, 50))
    torch.library.opcheck(module._interpolate, arguments, test_utils="test_schema")
