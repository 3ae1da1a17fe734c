"""Numerical precision: fp32 weights everywhere, bf16 autocast where the device is made for it.

What is called fp32 is IEEE float32: `no_tf32` is called where a device is chosen.
"""

from __future__ import annotations

import torch


def resolve(precision: str, device: torch.device) -> str:
    """`auto` means bf16 on a GPU and fp32 elsewhere."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def name(precision: str) -> str:
    """How keys of artefacts name fp32 or bf16; bf16's name says that heads are in fp32."""
    return "bf16, head in fp32" if precision == "bf16" else precision


def no_tf32() -> None:
    """Products and convolutions of fp32 tensors keep their 24 bits; TF32 has 11.

    cuDNN's default is TF32. These flags, and not torch's newer `fp32_precision`, because inductor
    still reads them, which torch refuses once the newer are set.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Autocast to bf16, switched off for fp32."""
    enabled = resolve(precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
