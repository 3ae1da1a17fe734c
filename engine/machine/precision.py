"""Numerical precision: fp32 weights, and bf16 autocast on a GPU.

Under autocast a Transformer's products are in bf16, but its residual stream is in fp32, because the
position embedding is. In training, `bf16_residual` keeps the stream in bf16 too, which halves the
memory traffic between products. Weights, gradients and optimizer moments stay fp32.

fp32 means IEEE float32, never TF32: the functions that choose a device call `no_tf32`.
"""

from __future__ import annotations

import torch

RESIDUAL = "bf16_residual"


def resolve(precision: str, device: torch.device) -> str:
    """Resolves `auto` to bf16 on a GPU and fp32 on a CPU."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def of_products(precision: str) -> str:
    """Returns the precision of matrix products and convolutions, fp32 or bf16."""
    return "bf16" if precision == RESIDUAL else precision


def name(precision: str) -> str:
    """Returns a resolved precision's name in the keys of artefacts; heads compute in fp32."""
    return "bf16, head in fp32" if precision == "bf16" else precision


def no_tf32() -> None:
    """Makes fp32 products and convolutions use all 24 bits of the significand; TF32 uses 11.

    cuDNN's default is TF32. We cannot set torch's newer `fp32_precision`: Inductor reads the flags
    below, and torch forbids reading them once the newer ones are set.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Returns autocast to bf16, disabled for fp32."""
    enabled = of_products(resolve(precision, device)) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
