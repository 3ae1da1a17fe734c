"""Optimizers, and a quadratic penalty (EWC's) as part of their step.

The penalty's gradient needs only the parameters, the anchor and the Fisher, so the optimizer
applies it in its pass over the parameters (`kernels.ewc`), and the loss leaves it out. It is added
after gradients are averaged and clipped: clipping tames the task's gradient, not the pull.
`attach` cuts anchor and Fisher as DeepSpeed cuts the parameters.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from engine.methods.objectives import Penalty
from engine.recipe.schema import OptimizerRecipe
from engine.training import shards
from engine.training.shards import Pieces, in_memory_order
from kernels.ewc import foreach_adamw_ewc_, foreach_sgd_ewc_

SHARE = "lr_scale"  # key of a group


def learning_rate(step: int, total: int, warmup: int, base: float) -> float:
    """The rate of optimizer step `step` (from 0) of `total`: linear warm-up, then half a cosine.

    Warm-up step s has base (s + 1) / warmup; the cosine starts at base and would reach 0 at step
    `total`. A warm-up that is longer than the run is cut short.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    if step >= total:
        return 0.0
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def build(
    parameters: Mapping[str, Tensor],
    options: OptimizerRecipe,
    penalty: Penalty | None = None,
    rates: Mapping[str, float] = MappingProxyType({}),
) -> Optimizer:
    """The optimizer over named parameters; an EWC optimizer for a weight above 0.

    rates: by name, the share of the learning rate that a parameter has; 1 where none is given. The
    parameters of a share are a group with this `lr_scale`, as timm calls it.

    EWC optimizers step only after `attach` (or `penalise`) has given them anchor and Fisher. A
    weight of 0 gives the plain optimizer, so that it equals fine-tuning bit for bit.

    Raises ValueError for an unknown name, for no parameters, for apex with a penalty, and for apex
    where NVIDIA's is not installed.
    """
    tensors = list(parameters.values())
    if not tensors:
        raise ValueError("there is nothing to optimise: no parameter requires a gradient")
    fused = all(t.is_floating_point() and t.device.type in ("cpu", "cuda") for t in tensors)
    groups = _groups(parameters, rates, options.lr)
    name = options.name.removeprefix("apex_")
    settings: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay}
    if name == "adamw":
        settings |= {"betas": tuple(options.betas), "eps": options.eps}
        plain, penalised, apex = torch.optim.AdamW, EWCAdamW, "FusedAdam"
    elif name == "sgd":
        settings["momentum"] = options.momentum
        plain, penalised, apex = torch.optim.SGD, EWCSGD, "FusedSGD"
    else:
        raise ValueError(
            f"unknown optimizer {options.name!r}: choose adamw, sgd, apex_adamw or apex_sgd"
        )
    if penalty is not None and penalty.lam > 0:
        if name != options.name:
            raise ValueError(
                f"a penalty has its own fused step: use name={name}, not {options.name}"
            )
        return penalised(groups, **settings)
    if name != options.name:
        settings |= {"adam_w_mode": True} if name == "adamw" else {}
        return _apex(apex)(groups, **settings)
    return plain(groups, fused=fused, **settings)


def _groups(
    parameters: Mapping[str, Tensor], rates: Mapping[str, float], lr: float
) -> list[dict[str, Any]]:
    """The parameters of each share of the rate, in the order of the first of each."""
    of_share: dict[float, list[Tensor]] = {}
    for name, parameter in parameters.items():
        of_share.setdefault(rates.get(name, 1.0), []).append(parameter)
    return [
        {"params": tensors, SHARE: share, "lr": share * lr} for share, tensors in of_share.items()
    ]


def set_rate(optimizer: Any, lr: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(SHARE, 1.0)


def _apex(name: str) -> Callable[..., Optimizer]:
    try:
        return getattr(importlib.import_module("apex.optimizers"), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"apex.optimizers.{name} cannot be imported ({error}): it is part of NVIDIA's apex, "
            "built from its sources (the package called apex on PyPI is another project); "
            "use adamw or sgd instead"
        ) from error


class _EWC(Optimizer):
    """The common part of the EWC optimizers: a penalty, and a step over all tensors.

    Anchor and Fisher stand beside the optimizer's state: a checkpoint needs no copy of them.
    """

    _lam = 0.0
    _anchors: Mapping[Tensor, Tensor] = MappingProxyType({})
    _fishers: Mapping[Tensor, Tensor] | None = None  # the identity
    _moments: tuple[str, ...]  # state that starts at zero

    def penalise(self, penalty: Penalty, pieces: Pieces) -> None:
        """Sets the penalty of the tensors that this optimizer steps, which hold these pieces."""
        fisher = penalty.fisher
        self._lam, self._anchors = penalty.lam, _cut(penalty.anchor, pieces)
        self._fishers = None if fisher is None else _cut(fisher, pieces)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. A tensor without a gradient still feels the penalty's.

        Raises RuntimeError where `attach` was not called.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            thetas: list[Tensor] = group["params"]
            if not all(theta in self._anchors for theta in thetas):
                raise RuntimeError(
                    "call engine.training.optim.attach before the first step with EWC"
                )
            grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in thetas]
            moments = [self._state(thetas, name) for name in self._moments]
            anchors = [self._anchors[theta] for theta in thetas]
            fishers = None
            if self._fishers is not None:
                fishers = in_memory_order([self._fishers[theta] for theta in thetas], thetas)
            tensors = [in_memory_order(row, thetas) for row in (thetas, grads, *moments, anchors)]
            options = {name: value for name, value in group.items() if name in self.defaults}
            options |= {"lam": self._lam, "fishers": fishers}
            self._update(thetas, tensors, options)
        return loss

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """lam / 2 sum F (theta - anchor)^2 of what this rank holds, a float64 scalar."""
        total = 0.0
        for theta, anchor in self._anchors.items():
            squares = (theta - anchor).square_()
            if self._fishers is not None:
                squares *= self._fishers[theta]
            total = total + squares.sum(dtype=torch.float64)
        return self._lam / 2 * torch.as_tensor(total)

    def _state(self, thetas: list[Tensor], name: str) -> list[Tensor]:
        """State laid out as its tensors are; that of a checkpoint may be laid out otherwise."""
        for theta in thetas:
            state = self.state[theta]
            if name not in state:
                state[name] = _zeros_like(theta)
            if state[name].stride() != theta.stride():
                state[name] = _zeros_like(theta).copy_(state[name])
        return [self.state[theta][name] for theta in thetas]

    def _update(self, thetas: list[Tensor], tensors: list[list[Tensor]], options: dict) -> None:
        """tensors: thetas, gradients, moments and anchors, as the kernel takes them."""
        raise NotImplementedError


class EWCAdamW(_EWC):
    """AdamW with EWC's penalty; state exp_avg, exp_avg_sq and step, as in torch.optim.AdamW."""

    _moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    def _update(self, thetas: list[Tensor], tensors: list[list[Tensor]], options: dict) -> None:
        for theta in thetas:
            state = self.state[theta]
            # On the host, also where a checkpoint put it elsewhere: reading it must not wait.
            state["step"] = state.get("step", torch.tensor(0.0)).cpu() + 1
        steps = [int(self.state[theta]["step"]) for theta in thetas]
        foreach_adamw_ewc_(*tensors, steps=steps, **options)


class EWCSGD(_EWC):
    """SGD with momentum and EWC's penalty; state momentum_buffer, as in torch.optim.SGD.

    Where lr * lam * F passes 2 (1 + momentum), steps overshoot the anchor further and further
    (heavy ball on a quadratic). A Fisher divided by its mean passes that: its largest element was
    31,000 for a ViT-S. So F is at most (1 + momentum) / (lr * lam), half of what is stable.
    """

    _moments = ("momentum_buffer",)

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def penalise(self, penalty: Penalty, pieces: Pieces) -> None:
        super().penalise(penalty, pieces)
        stiffness = self._lam * self.defaults["lr"]
        if stiffness == 0:
            return
        bound = (1 + self.defaults["momentum"]) / stiffness
        if self._fishers is None:
            self._lam *= min(1.0, bound)
            return
        for fisher in self._fishers.values():
            fisher.clamp_(max=bound)

    def _update(self, thetas: list[Tensor], tensors: list[list[Tensor]], options: dict) -> None:
        foreach_sgd_ewc_(*tensors, **options)


def _zeros_like(tensor: Tensor) -> Tensor:
    """fp32 zeros in the tensor's memory layout, without a gradient."""
    return torch.zeros_like(tensor, dtype=torch.float32, requires_grad=False)


def _cut(tensors: Mapping[str, Tensor], pieces: Pieces) -> dict[Tensor, Tensor]:
    """Whole tensors by name as fp32 parts, one shaped like each tensor of the optimizer; 0 for
    padding, which is not pulled."""
    parts = {}
    for holder, of_holder in pieces.items():
        parts[holder] = _zeros_like(holder)
        for piece in of_holder:
            piece.inside(parts[holder]).copy_(piece.cut(tensors[piece.name].detach()))
    return parts


def attach(engine: Any, penalty: Penalty) -> None:
    """Gives the penalised optimizer inside a DeepSpeed engine its part of anchor and Fisher.

    Call it once after deepspeed.initialize; every rank stores only what its partition needs. Does
    nothing for a weight of 0, whose optimizer is plain.

    Raises ValueError for a trained parameter that anchor or Fisher lack or have in another shape,
    for an optimizer that is not from `build`, and as `shards.pieces`.
    """
    if penalty.lam == 0:
        return
    check(shards.trained(engine), penalty)
    pieces, optimizer = shards.pieces(engine), shards.inner(engine)
    if not isinstance(optimizer, _EWC):
        raise ValueError(
            f"{type(optimizer).__name__} has no penalty: use engine.training.optim.build"
        )
    optimizer.penalise(penalty, pieces)


def track(engine: Any) -> Callable[[], float] | None:
    """The function that reads the penalty as it is now, the same on every rank, which all call;
    None where the optimizer has no penalty."""
    optimizer = shards.inner(engine)
    if not isinstance(optimizer, _EWC):
        return None

    def read() -> float:
        total = optimizer.penalty()
        if optimizer is not engine.optimizer:  # each rank has its partition's
            dist.all_reduce(total)
        return total.item()

    return read


def check(named: Mapping[str, Tensor], penalty: Penalty) -> None:
    """Raise ValueError for a trained parameter that anchor or Fisher lack or have otherwise."""
    shards.check(named, penalty.anchor, "anchor")
    if penalty.fisher is not None:
        shards.check(named, penalty.fisher, "Fisher")
