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
    own = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        run()
    return float(counter.get_total_flops())


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """As much as forward for the input, if asked for, and again for the weight.

    torch's own formula takes a grouped convolution's weight gradient for a dense one.
    """
    wants_x, wants_weight = rest[7][:2]
    forward = 2 * gradient[0] * math.prod(gradient[2:]) * math.prod(weight)
    return forward * (wants_x + wants_weight)
