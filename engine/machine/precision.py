"""Numerical precision: fp32 weights everywhere, bf16 autocast where the device is made for it."""

from __future__ import annotations

import torch


def resolve(precision: str, device: torch.device) -> str:
    """`auto` means bf16 on a GPU and fp32 elsewhere."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Autocast to bf16, switched off for fp32."""
    enabled = resolve(precision, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
