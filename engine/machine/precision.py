"""Numerical precision: fp32 weights everywhere, bf16 autocast on a GPU.

fp32 means IEEE float32, never TF32: `no_tf32` is called where a device is chosen.
"""

from __future__ import annotations

import torch


def resolve(precision: str, device: torch.device) -> str:
    """`auto` means bf16 on a GPU and fp32 elsewhere."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def name(precision: str) -> str:
    """The name of fp32 or bf16 in the keys of artefacts; under bf16 heads compute in fp32."""
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
    enabled = resolve(precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
