"""K interpolated models for one read of their parents, against torch.lerp tensor by tensor.

Bytes a parameter: 4 M + s K. torch.lerp reads both parents for every alpha and writes fp32, 12 K,
and a cast to bf16 costs 6 K more. A soup of M models by running sums costs 8 + 12 (M - 1). The copy
moves as many bytes as our function and computes nothing: no method is faster. Targets on CUDA: a
quarter of the time of torch.lerp and a cast to bf16, which move 6.6 times the bytes, and 85% of the
copy's rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench import vit
from bench.contest import Contest, Entrant, Scale
from bench.roofline import Work
from kernels.interpolation import interpolate

KERNELS = ("interpolation",)
ALPHAS = 11
OF_LERP_AND_CAST, OF_COPY = 1 / 4, 1 / 0.85


def gate(device: torch.device) -> None:
    """Against float64, and both end points bit for bit."""
    parents = torch.randn(2, (1 << 18) + 5, device=device)
    weights = _wise(device)
    truth = weights.double() @ parents.double()
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)):
        merged = interpolate(parents, weights, dtype=dtype)
        torch.testing.assert_close(merged.double(), truth, rtol=tolerance, atol=1e-5)
        assert torch.equal(merged[0], parents[0].to(dtype)), "alpha = 0 is not the first parent"
        assert torch.equal(merged[-1], parents[1].to(dtype)), "alpha = 1 is not the second parent"


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    sizes = vit.tensor_sizes(scale.quick)
    millions = f"{sum(sizes) / 1e6:.0f}M"
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        yield _wise_contest(sizes, dtype, f"WiSE 11 x {millions} {name}", device)
    yield _soup_contest(sizes, 4, f"soup of 4 x {millions} fp32", device)


def _wise_contest(sizes: list[int], dtype: torch.dtype, name: str, device: torch.device) -> Contest:
    numel, width = sum(sizes), dtype.itemsize
    parents = torch.randn(2, numel, device=device)
    weights = _wise(device)
    out, peer_out = (torch.empty(ALPHAS, numel, dtype=dtype, device=device) for _ in range(2))
    first, second = (parent.split(sizes) for parent in parents)
    rows = [row.split(sizes) for row in peer_out]

    def lerp() -> None:
        for k, row in enumerate(rows):
            for a, b, slot in zip(first, second, row, strict=True):
                if dtype == torch.float32:
                    torch.lerp(a, b, k / (ALPHAS - 1), out=slot)
                else:
                    slot.copy_(torch.lerp(a, b, k / (ALPHAS - 1)))

    def foreach() -> None:
        for k, row in enumerate(rows):
            mixed = torch._foreach_lerp(first, second, k / (ALPHAS - 1))  # pyright: ignore
            torch._foreach_copy_(row, mixed)  # pyright: ignore

    cast, peer, target = 0, "torch.lerp", None
    if width < 4:
        cast, peer = 4 + width, "torch.lerp + cast"
        target = OF_LERP_AND_CAST if device.type == "cuda" else None
    moved = (8 + width * ALPHAS) * numel
    return Contest(
        name,
        Entrant(
            "interpolate", lambda: interpolate(parents, weights, dtype=dtype, out=out), Work(moved)
        ),
        (
            Entrant(peer, lerp, Work((12 + cast) * ALPHAS * numel), target),
            Entrant("torch foreach lerp + copy", foreach, Work((16 + width) * ALPHAS * numel)),
            _copy(moved, device),
        ),
    )


def _soup_contest(sizes: list[int], count: int, name: str, device: torch.device) -> Contest:
    numel = sum(sizes)
    parents = torch.randn(count, numel, device=device)
    weights = torch.full((1, count), 1 / count, device=device)
    out, peer_out = torch.empty(2, 1, numel, device=device)
    split = [parent.split(sizes) for parent in parents]

    def running_sum() -> None:
        for slot, *tensors in zip(peer_out[0].split(sizes), *split, strict=True):
            torch.mul(tensors[0], 1 / count, out=slot)
            for tensor in tensors[1:]:
                slot.add_(tensor, alpha=1 / count)

    moved = 4 * (count + 1) * numel
    return Contest(
        name,
        Entrant("interpolate", lambda: interpolate(parents, weights, out=out), Work(moved)),
        (
            Entrant("running sum", running_sum, Work((8 + 12 * (count - 1)) * numel)),
            _copy(moved, device),
        ),
    )


def _copy(moved: float, device: torch.device) -> Entrant:
    source, copied = torch.ones(2, int(moved) // 8, device=device)
    run: Callable[[], object] = lambda: copied.copy_(source)  # noqa: E731
    target = OF_COPY if device.type == "cuda" else None
    return Entrant("copy of the same bytes", run, Work(moved), target)


def _wise(device: torch.device) -> Tensor:
    alphas = torch.linspace(0, 1, ALPHAS, device=device)
    return torch.stack([1 - alphas, alphas], dim=1)
