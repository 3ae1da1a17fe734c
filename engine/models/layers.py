"""The order of a network's layers, as timm has it for layer-wise learning rates."""

from __future__ import annotations

from typing import Any

from torch import nn


def numbers(net: nn.Module) -> dict[str, int]:
    """By parameter name, the layer from the input: 0 up to the first block, the head's is the last.

    Raises ValueError for a network whose order timm does not know.
    """
    if not hasattr(net, "group_matcher"):
        raise ValueError(
            f"timm does not know the order of the layers of {type(net).__name__}; take one of "
            "timm's models"
        )
    from timm.models import group_parameters  # seconds, which planning does without

    matcher = net.group_matcher(coarse=False)  # type: ignore[operator]
    layers: Any = group_parameters(net, matcher, reverse=True)
    return layers
