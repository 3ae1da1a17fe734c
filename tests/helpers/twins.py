"""A kernel beside its plain twin: outputs and gradients, of tensors that lie badly in memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def assert_near(
    actual: Tensor, exact: Tensor, *, rtol: float = 0.0, atol: float, name: str = ""
) -> None:
    """Compares in float64; `atol` grows with the largest number from 1 on, as rounding does."""
    actual, exact = (t.detach().double().cpu() for t in (actual, exact))
    finite = exact[exact.isfinite()].abs()
    largest = max(1.0, finite.max().item()) if len(finite) else 1.0
    torch.testing.assert_close(
        actual, exact, rtol=rtol, atol=atol * largest, msg=lambda text: f"{name}: {text}"
    )


def assert_twins(
    actual: Sequence[Tensor], exact: Sequence[Tensor], *, rtol: float, atol: float
) -> None:
    """Every output is the float64 twin's, its shape included."""
    for place, (output, truth) in enumerate(zip(actual, exact, strict=True)):
        assert_near(output, truth, rtol=rtol, atol=atol, name=f"output {place}")


def assert_close_to_max(actual: Tensor, exact: Tensor, name: str = "", share: float = 1e-5) -> None:
    """No number is off by more than a share of the largest."""
    assert actual.shape == exact.shape, name
    if exact.numel():
        assert (actual.double() - exact).abs().max() <= share * exact.abs().max(), name


def value_and_gradient(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """A value for each row of x, and the gradient where each of them has another weight."""
    x = x.detach().requires_grad_()
    values = run(x)
    weights = torch.linspace(0.5, 2, len(values), dtype=values.dtype, device=values.device)
    (gradient,) = torch.autograd.grad((values * weights).sum(), x)
    return values.detach(), gradient


def misaligned(tensor: Tensor) -> Tensor:
    """The same numbers, one past an aligned address, between NaN."""
    buffer = tensor.new_full((tensor.numel() + 2,), float("nan"))
    return buffer[1:-1].view(tensor.shape).copy_(tensor)


def apart(rows: Tensor, between: float = 99) -> Tensor:
    """The same rows, 64 numbers further apart, as a GPU has them."""
    n, m = rows.shape
    return rows.new_full((n, m + 64), between)[:, :m].copy_(rows)
