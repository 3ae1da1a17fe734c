"""Numerical precision: fp32 weights everywhere, bf16 autocast on a GPU.

Under autocast a Transformer's products are in bf16, but what flows from block to block is in fp32,
since the position embedding is. In training `bf16_residual` keeps that in bf16 too, so half as many
bytes pass through memory between products; weights, their gradients and the optimizer's moments
stay fp32.

fp32 means IEEE float32, never TF32: `no_tf32` is called where a device is chosen.
"""

from __future__ import annotations

import torch

RESIDUAL = "bf16_residual"


def resolve(precision: str, device: torch.device) -> str:
    """`auto` means bf16 on a GPU and fp32 on a CPU."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def of_products(precision: str) -> str:
    """The precision of matrix products and convolutions, fp32 or bf16."""
    return "bf16" if precision == RESIDUAL else precision


def name(precision: str) -> str:
    """The name of a resolved precision in the keys of artefacts; heads compute in fp32."""
    return "bf16, head in fp32" if precision == "bf16" else precision


def no_tf32() -> None:
    """Let products and convolutions of fp32 tensors use all 24 bits; TF32 uses 11.

    cuDNN's default is TF32. torch's newer `fp32_precision` cannot be set here: inductor reads the
    flags below, and torch forbids that once the newer ones are set.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Autocast to bf16, switched off for fp32."""
    enabled = of_products(resolve(precision, device)) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
