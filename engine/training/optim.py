"""Optimizers, their learning rate, and a quadratic penalty (EWC's) as part of their step.

The penalty's gradient needs only the parameters, the anchor and the Fisher, so the optimizer
applies it in its pass over the parameters (`kernels.ewc`), and the loss excludes it. It is added
after gradients are averaged and clipped, so clipping affects only the task's gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import Optimizer

from engine.machine import compat, ranks
from engine.machine.compat import LISTS
from engine.methods.base import Penalty
from engine.recipe.schema import OptimizerRecipe
from kernels.ewc import MOMENTS, EwcParameters

log = logging.getLogger(__name__)
SHARE = "lr_scale"  # of the learning rate, by a group of an optimizer
KINDS = {"adamw": (torch.optim.AdamW, "FusedAdam"), "sgd": (torch.optim.SGD, "FusedSGD")}


def build(
    parameters: Mapping[str, Tensor],
    options: OptimizerRecipe,
    penalty: Penalty | None = None,
    rates: Mapping[str, float] = MappingProxyType({}),
    zero: int = 0,
) -> Optimizer:
    """The optimizer over named parameters; a `Penalised` one for a penalty's weight above 0.

    rates: factors of the learning rate by parameter name; default 1. Parameters with the same
    factor form a group with this `lr_scale`, as in timm. A penalty of weight 0 is skipped, so
    training equals fine-tuning bit for bit; with a penalty, the step is ours and not apex's.
    zero: 1 gives each of several ranks whole parameters to step, with their moments, anchors and
    Fisher; the rank then sends the stepped parameters to the others. Weights keep their bits.

    Raises ValueError for no parameters (torch's), if NVIDIA's apex is missing, and if anchor or
    Fisher lack a parameter or have another shape.
    """
    of_share: dict[float, list[Tensor]] = {}
    for parameter_name, parameter in parameters.items():
        of_share.setdefault(rates.get(parameter_name, 1.0), []).append(parameter)
    groups = [{"params": tensors, SHARE: share} for share, tensors in of_share.items()]
    name = options.name.removeprefix("apex_")
    kind, apex = KINDS[name]
    settings: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    if name == "adamw":
        settings |= {"betas": tuple(options.betas), "eps": options.eps}
    else:
        settings["momentum"] = options.momentum
    make: Callable[..., Optimizer] = kind
    if penalty is not None and penalty.lam > 0:
        _check(penalty.anchor, parameters, "anchor")
        if penalty.fisher is not None:
            _check(penalty.fisher, parameters, "Fisher")
        if name == "sgd":
            penalty = _softened(penalty, parameters, options.lr, options.momentum)
        make = functools.partial(Penalised, name, parameters, penalty)
    elif name != options.name:
        make = _apex(apex)
    else:
        settings["fused"] = True
    if zero and ranks.world() > 1:
        parted = ZeroRedundancyOptimizer(groups, make, **settings)  # pyright: ignore[reportArgumentType]
        compat.forget_constructor(parted, kind)
        return parted
    return make(groups, **settings)


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


def own_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer of the parameters that this rank steps: all of them without `train.zero`."""
    return optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer


def penalty_of(optimizer: Optimizer) -> float | None:
    """The current penalty of a `Penalised` optimizer, over all ranks' parameters; otherwise None.

    Every rank must call it. It waits for the device.
    """
    part = own_optimizer(optimizer)
    if not isinstance(part, Penalised):
        return None
    return part.penalty() if part is optimizer else ranks.total(part.penalty())


@torch.no_grad()
def clip_(parameters: Iterable[Tensor], most: float) -> None:
    """Scale averaged gradients in place so that their global L2 norm is at most `most`.

    The result is DeepSpeed's, bit for bit on a CPU; DeepSpeed's own clipping waits for the GPU
    twice per step, because it copies numbers to it. Every rank has the same gradients, so no
    communication is needed.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = LISTS._foreach_norm(gradients)
    norm = torch.stack(norms).square().sum().sqrt()
    scale = (torch.full_like(norm, most) / (norm + 1e-6)).clamp_(max=1.0)
    LISTS._foreach_mul_(gradients, scale)


def _apex(name: str) -> Callable[..., Optimizer]:
    try:
        return getattr(importlib.import_module("apex.optimizers"), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"apex.optimizers.{name} cannot be imported ({error}): it is part of NVIDIA's apex, "
            "built from its sources (the package called apex on PyPI is another project); "
            "use adamw or sgd instead"
        ) from error


def count_above(tensors: Sequence[Tensor], bound: float) -> int:
    """The number of elements of tensors above a bound. Waits for a GPU once."""
    counts = [(tensor > bound).sum().to(tensors[0].device) for tensor in tensors]
    return int(torch.stack(counts).sum())


class Penalised(Optimizer):
    """AdamW, or SGD with momentum, whose step adds a penalty's gradient.

    Its state has the names of torch's optimizers. Anchor and Fisher are not part of it, so
    checkpoints contain no copy of them.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, Tensor],
        penalty: Penalty,
        groups: list[dict[str, Any]],
        **settings: Any,
    ) -> None:
        """name: `adamw` or `sgd`. parameters: by name, at least those of the groups. settings: as
        in torch's optimizer."""
        super().__init__(groups, settings)
        self._name, self._lam = name, penalty.lam
        self._groups: dict[int, tuple[list[Any], EwcParameters]] = {}
        stepped = {theta for group in groups for theta in group["params"]}
        names = {theta: name for name, theta in parameters.items() if theta in stepped}
        self._anchors = _copies(penalty.anchor, names)
        # None: the identity
        self._fishers = None if penalty.fisher is None else _copies(penalty.fisher, names)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step. Tensors without a gradient still get the penalty's."""
        assert closure is None, "DeepSpeed gives none"
        for number, group in enumerate(self.param_groups):
            thetas: list[Tensor] = group["params"]
            states = [self._state_of(theta) for theta in thetas]
            parameters = self._checked(number, thetas, states)
            grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in thetas]
            grads = _in_memory_order(grads, thetas)
            options: dict[str, Any] = {k: v for k, v in group.items() if k in self.defaults}
            options["lam"] = self._lam
            if self._name == "sgd":
                parameters.sgd_(grads, **options)
            else:
                steps = [int(state["step"].add_(1)) for state in states]
                parameters.adamw_(grads, steps=steps, **options)

    def _checked(
        self, number: int, thetas: Sequence[Tensor], states: Sequence[Mapping[str, Tensor]]
    ) -> EwcParameters:
        """The kernels' arguments for a group, checked again if a tensor was replaced or moved."""
        names = MOMENTS[self._name]
        tensors = [*thetas, *(state[name] for state in states for name in names)]
        places = [(id(tensor), tensor.data_ptr(), tensor.stride()) for tensor in tensors]
        if (known := self._groups.get(number)) and known[0] == places:
            return known[1]
        moments = {
            name: _in_memory_order([state[name] for state in states], thetas) for name in names
        }
        pull = [
            None if pulls is None else _in_memory_order([pulls[theta] for theta in thetas], thetas)
            for pulls in (self._anchors, self._fishers)
        ]
        checked = EwcParameters(_in_memory_order(thetas, thetas), moments, *pull)
        self._groups[number] = places, checked
        return checked

    def _state_of(self, theta: Tensor) -> dict[str, Tensor]:
        state = self.state[theta]
        if not state:
            state.update({moment: _zeros_like(theta) for moment in MOMENTS[self._name]})
            state["step"] = torch.tensor(0.0)  # on the host, where reading it does not wait
        return state

    @torch.no_grad()
    def penalty(self) -> float:
        """The current lam / 2 sum F (theta - anchor)^2. Waits for the device."""
        total = torch.zeros((), dtype=torch.float64)
        for theta, anchor in self._anchors.items():
            squares = (theta - anchor).square_()
            if self._fishers is not None:
                squares *= self._fishers[theta]
            total = total + squares.sum(dtype=torch.float64)
        return (self._lam / 2 * total).item()


def _softened(
    penalty: Penalty, parameters: Mapping[str, Tensor], lr: float, momentum: float
) -> Penalty:
    """Limit a penalty on parameters to what is stable under SGD.

    If lr * lam * F exceeds 2 (1 + momentum), steps overshoot the anchor more and more (heavy ball
    on a quadratic). A Fisher divided by its mean exceeds that: its largest element was 31,000 for a
    ViT-S. So F is limited to (1 + momentum) / (lr * lam), half of what is stable, and the number of
    limited elements is logged. Raises ValueError if that limits all elements, because any larger
    strength would train the same weights.
    """
    bound = (1 + momentum) / (penalty.lam * lr)
    fishers = {"": torch.ones(1)}  # the identity
    if penalty.fisher is not None:
        fishers = {name: fisher for name, fisher in penalty.fisher.items() if name in parameters}
    firmer = count_above(list(fishers.values()), bound)
    elements = sum(fisher.numel() for fisher in fishers.values())
    if firmer == elements:
        raise ValueError(
            f"a penalty of strength {penalty.lam:g} is unstable under SGD at optimizer.lr={lr:g}: "
            f"set method.lam (or alpha) to at most {penalty.lam * bound:.3g}, or lower optimizer.lr"
        )
    if not firmer:
        return penalty
    log.warning(
        "the penalty on %s of %s weights is limited to the largest that is stable under SGD, %.3g "
        "at optimizer.lr=%g",
        f"{firmer:,}",
        f"{elements:,}",
        penalty.lam * bound,
        lr,
    )
    limited = {name: fisher.clamp(max=bound) for name, fisher in fishers.items()}
    return dataclasses.replace(penalty, fisher=limited)


def _check(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], label: str) -> None:
    """Raises ValueError if a parameter's tensor is missing or has another shape."""
    for name, parameter in parameters.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != parameter.shape:
            size = "missing" if tensor is None else list(tensor.shape)
            raise ValueError(
                f"the {label} of {name!r} is {size}, but the parameter is {list(parameter.shape)}"
            )


def _copies(tensors: Mapping[str, Tensor], names: Mapping[Tensor, str]) -> dict[Tensor, Tensor]:
    """fp32 copies of tensors, by parameter."""
    return {
        theta: _zeros_like(theta).copy_(tensors[name].detach()) for theta, name in names.items()
    }


def _zeros_like(theta: Tensor) -> Tensor:
    return torch.zeros_like(theta, dtype=torch.float32, requires_grad=False)


def _in_memory_order(tensors: Sequence[Tensor], thetas: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous views of the tensors in the order of theta's memory; copies if their memory order
    differs.

    The kernels read contiguous tensors; an elementwise step works in any order.
    """
    views = []
    for tensor, theta in zip(tensors, thetas, strict=True):
        if theta.is_contiguous() and tensor.is_contiguous():
            views.append(tensor)
            continue
        order = sorted(range(theta.dim()), key=theta.stride, reverse=True)
        view = tensor.permute(order)
        # A copy of a parameter would lose the step, so the kernels raise an error.
        views.append(view if tensor is theta else view.contiguous())
    return views
