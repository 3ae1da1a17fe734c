"""The schedule of the learning rate."""

from __future__ import annotations

import math
from typing import Any

SHARE = "lr_scale"  # of the learning rate, by a group of an optimizer


def learning_rate(step: int, total: int, warmup: int, base: float) -> float:
    """The rate of optimizer step `step` (from 0) of `total`: linear warm-up, then half a cosine.

    Warm-up step s has base (s + 1) / warmup; the cosine starts at base and would reach 0 at step
    `total`.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def set_rate(optimizer: Any, lr: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[SHARE]
