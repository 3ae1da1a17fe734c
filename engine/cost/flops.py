"""Operations of a forward or a backward pass, counted where torch dispatches them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flops(run: Callable[[], object]) -> float:
    """Operations of matrix products and convolutions in `run`, backward passes included.

    A multiplication and an addition count two. Tensors may be on the meta device.
    """
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return float(counter.get_total_flops())


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """The forward pass's operations for each gradient that is computed: input's and weight's.

    torch's formula takes a grouped convolution's weight gradient for a dense one.
    """
    needs_x, needs_weight = rest[7][:2]
    forward = 2 * gradient[0] * math.prod(gradient[2:]) * math.prod(weight)
    return forward * (needs_x + needs_weight)
