"""What a machine can do at best: copies and matrix products, measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from bench.timing import interleave
from engine.machine.flops import peak_tflops


@dataclass(frozen=True)
class Roofline:
    """Bytes read plus written by a pass, FLOPs of a matrix product, and the data sheet's of a known
    GPU, which is 0 otherwise."""

    copy_gb_s: float
    matmul_gflop_s: float
    sheet_gflop_s: float = 0.0

    def mfu(self, flops: float, milliseconds: float) -> float:
        """Of the data sheet's rate, or else of the measured one."""
        return flops / milliseconds / 1e6 / (self.sheet_gflop_s or self.matmul_gflop_s)


def measure(device: torch.device, quick: bool = False) -> Roofline:
    """The best rates seen: of a copy of 256 MiB and of a pass in place, which writes no fresh line;
    of fp32 (CUDA: bf16) matrix products of two sizes. quick: far less of each."""
    cuda = device.type == "cuda"
    numel = 1 << (20 if quick else 26)
    sides = (256,) if quick else (4096, 8192) if cuda else (2048, 4096)
    dtype = torch.bfloat16 if cuda else torch.float32
    source, target = torch.ones(2, numel, device=device)
    passes = [lambda: target.copy_(source), lambda: target.mul_(0.5)]
    pairs = [torch.randn(2, side, side, device=device, dtype=dtype) for side in sides]
    products = [partial(torch.mm, a, b) for a, b in pairs]
    best = [min(times) for times in interleave([*passes, *products], device, seconds=1.0)]
    flops = (2 * side**3 / ms for side, ms in zip(sides, best[2:], strict=True))
    name = torch.cuda.get_device_name(device) if cuda else ""
    sheet = 1e3 * peak_tflops(name, "bf16")
    return Roofline(8 * numel / min(best[:2]) / 1e6, max(flops) / 1e6, sheet)
