"""What a machine can do at best, so that times can be predicted before they are measured."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial

import torch

from bench.timing import interleave

# Dense bf16 GFLOP/s of NVIDIA's data sheets, SXM; other forms and parts of a chip are slower.
SHEETS = {"A100": 312e3, "H100": 989e3, "H200": 989e3}
_SLOWER_FORMS = {"PCIE", "PCI", "NVL", "MIG"}


def sheet(name: str) -> float | None:
    """The data sheet's rate of a GPU by the name that torch tells; None where it is not known."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    rates = [rate for chip, rate in SHEETS.items() if chip in words]
    return rates[0] if rates and not words & _SLOWER_FORMS else None


@dataclass(frozen=True)
class Work:
    """What an entrant must move through memory (bytes) and compute (matrix-product FLOPs)."""

    bytes: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Roofline:
    """Measured rates: bytes read plus written by a pass, and FLOPs of a matrix product."""

    copy_gb_s: float
    matmul_gflop_s: float
    sheet_gflop_s: float | None = field(default=None, kw_only=True)  # of a known GPU

    @property
    def peak_gflop_s(self) -> float:
        """What utilisation is a fraction of: the data sheet's rate, or else the measured one."""
        return self.sheet_gflop_s or self.matmul_gflop_s

    def milliseconds(self, work: Work) -> float:
        """Both parts one after the other: elementwise passes do not overlap with products."""
        return work.bytes / self.copy_gb_s / 1e6 + work.flops / self.matmul_gflop_s / 1e6


def measure(device: torch.device, quick: bool = False) -> Roofline:
    """The best rates seen: of a copy of 256 MiB and of a pass in place, which writes no fresh line;
    of fp32 (CUDA: bf16) matrix products of two sizes. quick: far less of each."""
    numel = 1 << (20 if quick else 26)
    sides = (256,) if quick else (4096, 8192) if device.type == "cuda" else (2048, 4096)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = torch.ones(numel, device=device)
    target = torch.zeros_like(source)
    passes = [lambda: target.copy_(source), lambda: target.mul_(0.5)]
    pairs = [torch.randn(2, side, side, device=device, dtype=dtype) for side in sides]
    products = [partial(torch.mm, a, b) for a, b in pairs]
    best = [min(times) for times in interleave([*passes, *products], device, seconds=1.0)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    flops = (2 * side**3 / ms for side, ms in zip(sides, best[2:], strict=True))
    return Roofline(
        copy_gb_s=8 * numel / min(best[:2]) / 1e6,
        matmul_gflop_s=max(flops) / 1e6,
        sheet_gflop_s=sheet(name),
    )
