"""Which part of which parameter each tensor of the optimizer holds.

DeepSpeed hands an optimizer one flat fp32 partition per parameter group (ZeRO stage 1) or
the parameters themselves (stage 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer


class Piece(NamedTuple):
    """All of a parameter, or a range of it in a flat partition."""

    name: str  # of the parameter
    place: slice | None = None  # in the partition; None: the optimizer holds the parameter itself
    source: slice | None = None  # in the flattened parameter

    def inside(self, held: Tensor) -> Tensor:
        """The piece's view of a tensor of the optimizer, or of a tensor shaped like that."""
        return held if self.place is None else held[self.place]

    def cut(self, whole: Tensor) -> Tensor:
        """The piece of a tensor that is shaped like the parameter."""
        return whole if self.source is None else whole.reshape(-1)[self.source]


Pieces = Mapping[Tensor, Sequence[Piece]]  # by the optimizer's tensors; the rest is padding


def inner(engine: Any) -> Any:
    """The optimizer that steps inside a DeepSpeed engine, or what stands in its place."""
    outer = engine.optimizer
    return outer if isinstance(outer, Optimizer) else getattr(outer, "optimizer", None)


def trained(engine: Any) -> dict[str, Tensor]:
    """The engine's trained parameters by name."""
    return {n: p for n, p in engine.module.named_parameters() if p.requires_grad}


def whole(named: Mapping[str, Tensor]) -> dict[Tensor, list[Piece]]:
    """The pieces of an optimizer that holds the parameters themselves."""
    return {parameter: [Piece(name)] for name, parameter in named.items()}


def pieces(engine: Any) -> Pieces:
    """The pieces that this rank's optimizer holds inside a DeepSpeed engine.

    Raises ValueError for `round_robin_gradients`, and for optimizer wrappers other than ZeRO
    stage 0 in fp32 or 1.
    """
    named = trained(engine)
    zero = engine.optimizer
    if isinstance(zero, Optimizer):
        return whole(named)
    if not hasattr(zero, "single_partition_of_fp32_groups"):
        raise ValueError(
            f"nothing can be added to a step inside {type(zero).__name__} over "
            f"{type(inner(engine)).__name__}: use ZeRO stage 1, or stage 0 in fp32"
        )
    if zero.round_robin_gradients:
        raise ValueError("a step cannot follow round_robin_gradients: leave it out of the config")
    names = {parameter: name for name, parameter in named.items()}
    held = {}
    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        held[flat] = [
            Piece(names[parameter], _range(fragment.hp_fragment_address), _range(address))
            for parameter in group
            if (fragment := parameter._hp_mapping) is not None  # None: wholly on other ranks
            for address in [fragment.lp_fragment_address]
        ]
    return held


def in_memory_order(tensors: Sequence[Tensor], thetas: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous views of the tensors, whose elements are in the order of theta's memory; copies
    of tensors that lie in another order.

    An elementwise step takes any order, but kernels read contiguous tensors.
    """
    views = []
    for tensor, theta in zip(tensors, thetas, strict=True):
        order = sorted(range(theta.dim()), key=theta.stride, reverse=True)
        view = tensor.permute(order)
        # A parameter must not be copied: the step would be lost, so kernels refuse it.
        views.append(view if tensor is theta else view.contiguous())
    return views


def check(named: Mapping[str, Tensor], tensors: Mapping[str, Tensor], label: str) -> None:
    """Raise ValueError for a parameter that `tensors` lack or have in another shape."""
    for name, parameter in named.items():
        if name not in tensors:
            raise ValueError(f"the {label} has no parameter {name!r}, which is trained")
        if tensors[name].shape != parameter.shape:
            raise ValueError(
                f"the {label} of {name!r} is {list(tensors[name].shape)}, but the parameter is "
                f"{list(parameter.shape)}"
            )


def _range(address: Any) -> slice:
    return slice(address.start, address.start + address.numel)
