"""The order of a network's layers, from timm's layer-wise learning rates."""

from __future__ import annotations

from typing import Any

from torch import nn


def numbers(net: nn.Module) -> dict[str, int]:
    """The layer of each parameter, from the input: 0 before the first block; the head's is last.

    Raises ValueError for a network whose order timm does not know.
    """
    if not hasattr(net, "group_matcher"):
        raise ValueError(
            f"timm does not define the order of {type(net).__name__}'s layers: choose one of "
            "timm's models"
        )
    from timm.models import group_parameters  # seconds, which planning does without

    matcher = net.group_matcher(coarse=False)  # type: ignore[operator]
    layers: Any = group_parameters(net, matcher, reverse=True)
    return layers
