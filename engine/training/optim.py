"""Optimizers, and EWC's penalty as part of their step.

The penalty's gradient needs nothing that the optimizer's pass does not already hold except the
anchor and the Fisher, so it is applied there (`kernels.ewc`) and not in the loss. It is added after
gradients are averaged and clipped: clipping tames the task's gradient, not the pull. DeepSpeed
hands an optimizer one flat fp32 partition per parameter group (ZeRO stages 1 and 2) or the
parameters themselves (stage 0); `attach` cuts anchor and Fisher to whichever it is.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from engine.methods.objectives import Penalty
from engine.recipe.schema import OptimizerRecipe
from kernels.ewc import foreach_adamw_ewc_, foreach_sgd_ewc_


def learning_rate(step: int, total: int, warmup: int, base: float) -> float:
    """The rate of optimizer step `step` (from 0) of `total`: linear warm-up, then half a cosine.

    Warm-up step s has base (s + 1) / warmup; the cosine starts at base and would reach 0 at step
    `total`. A warm-up longer than the run is simply not finished.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    if step >= total:
        return 0.0
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def build(
    parameters: Mapping[str, Tensor], options: OptimizerRecipe, penalty: Penalty | None = None
) -> Optimizer:
    """The optimizer over named parameters, in one group; with a penalty of weight > 0, EWC's own.

    EWC's optimizers step only after `attach` (or `penalise`) has given them anchor and Fisher. A
    weight of 0 gives the plain optimizer, so that it equals fine-tuning bit for bit.

    Raises ValueError for an unknown name, for no parameters, for apex with a penalty, and for apex
    where NVIDIA's is not installed.
    """
    tensors = list(parameters.values())
    if not tensors:
        raise ValueError("there is nothing to optimise: no parameter requires a gradient")
    sgd = {"lr": options.lr, "momentum": options.momentum, "weight_decay": options.weight_decay}
    adamw = {
        "lr": options.lr,
        "betas": tuple(options.betas),
        "eps": options.eps,
        "weight_decay": options.weight_decay,
    }
    penalised = penalty is not None and penalty.lam > 0
    if options.name in ("apex_adamw", "apex_sgd"):
        if penalised:
            plain = options.name.removeprefix("apex_")
            raise ValueError(f"EWC has its own fused step: use name={plain}, not {options.name}")
        if options.name == "apex_adamw":
            return _apex("FusedAdam")(tensors, adam_w_mode=True, **adamw)
        return _apex("FusedSGD")(tensors, **sgd)
    if options.name == "adamw":
        return (
            EWCAdamW(tensors, **adamw) if penalised else _fused(torch.optim.AdamW, tensors, adamw)
        )
    if options.name == "sgd":
        return EWCSGD(tensors, **sgd) if penalised else _fused(torch.optim.SGD, tensors, sgd)
    raise ValueError(
        f"unknown optimizer {options.name!r}: choose adamw, sgd, apex_adamw or apex_sgd"
    )


def _fused(kind: Callable[..., Optimizer], tensors: list[Tensor], options: dict) -> Optimizer:
    fusable = all(t.is_floating_point() and t.device.type in ("cpu", "cuda") for t in tensors)
    return kind(tensors, fused=fusable, **options)


def _apex(name: str) -> Callable[..., Optimizer]:
    try:
        return getattr(importlib.import_module("apex.optimizers"), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"apex.optimizers.{name} cannot be imported ({error}): it is part of NVIDIA's apex, "
            "built from its sources (the package called apex on PyPI is another one); "
            "use adamw or sgd instead"
        ) from error


@dataclass(frozen=True)
class Shard:
    """The penalty's part for one tensor of the optimizer: fp32, of its shape, on its device."""

    anchor: Tensor
    fisher: Tensor | None


class _EWC(Optimizer):
    """What EWC's optimizers share: shards by tensor, and a step that walks over the tensors.

    value: None, or an fp32 or fp64 scalar on the parameters' device to which every step adds the
    penalty's value before it; the caller zeroes it, and sums it over ranks under ZeRO.
    """

    value: Tensor | None = None
    _shards: Mapping[Tensor, Shard] = MappingProxyType({})
    _lam = 0.0

    def penalise(self, shards: Mapping[Tensor, Shard], lam: float) -> None:
        """Sets the penalty of every tensor that this optimizer steps, and its weight."""
        self._shards, self._lam = dict(shards), lam

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
            if not all(theta in self._shards for theta in thetas):
                raise RuntimeError(
                    "call engine.training.optim.attach before the first step with EWC"
                )
            shards = [self._shards[theta] for theta in thetas]
            options = {name: value for name, value in group.items() if name in self.defaults}
            options |= {"lam": self._lam, "penalty": self.value}
            both = list(zip(thetas, shards, strict=True))
            options["anchors"] = [_like(theta, shard.anchor) for theta, shard in both]
            fishers = [_like(theta, s.fisher) for theta, s in both if s.fisher is not None]
            options["fishers"] = fishers or None
            self._update(thetas, [_gradient(theta) for theta in thetas], **options)
        return loss

    def _fill(self, thetas: list[Tensor], *names: str) -> None:
        """State of these names starts at zero, where there is none, and lies as its tensor does.

        A checkpoint's may lie otherwise, and the step goes through memory in order.
        """
        for theta in thetas:
            state = self.state[theta]
            for name in names:
                if name not in state:
                    state[name] = _zeros_like(theta)
                state[name] = state[name].contiguous(memory_format=_layout(theta))

    def _update(self, thetas: list[Tensor], grads: list[Tensor], **options: Any) -> None:
        raise NotImplementedError


class EWCAdamW(_EWC):
    """AdamW with EWC's penalty; state exp_avg, exp_avg_sq and step, as in torch.optim.AdamW."""

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

    def _update(self, thetas: list[Tensor], grads: list[Tensor], **options: Any) -> None:
        self._fill(thetas, "exp_avg", "exp_avg_sq")
        for theta in thetas:
            state = self.state[theta]
            state.setdefault("step", torch.zeros((), dtype=torch.float32))
            # On the host, also after a checkpoint put it elsewhere: reading it must not wait.
            state["step"] = state["step"].cpu() + 1
        steps = [int(self.state[theta]["step"]) for theta in thetas]
        moments = (
            [_dense(self.state[theta][name]) for theta in thetas]
            for name in ("exp_avg", "exp_avg_sq")
        )
        foreach_adamw_ewc_(list(map(_dense, thetas)), grads, *moments, steps=steps, **options)


class EWCSGD(_EWC):
    """SGD with momentum and EWC's penalty; state momentum_buffer, as in torch.optim.SGD."""

    def __init__(
        self, params: Any, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _update(self, thetas: list[Tensor], grads: list[Tensor], **options: Any) -> None:
        self._fill(thetas, "momentum_buffer")
        buffers = [_dense(self.state[theta]["momentum_buffer"]) for theta in thetas]
        foreach_sgd_ewc_(list(map(_dense, thetas)), grads, buffers, **options)


def _gradient(theta: Tensor) -> Tensor:
    return _like(theta, torch.zeros_like(theta) if theta.grad is None else theta.grad)


def _like(theta: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` in the order of theta's memory, dense: a copy only where it lies otherwise."""
    return _dense(tensor.contiguous(memory_format=_layout(theta)))


def _layout(tensor: Tensor) -> torch.memory_format:
    """channels_last where the tensor is stored so, and only so."""
    if tensor.is_contiguous() or tensor.dim() != 4:
        return torch.contiguous_format
    return torch.channels_last


def _dense(tensor: Tensor) -> Tensor:
    """A contiguous view of the same memory: the step is elementwise, any order will do."""
    return tensor.permute(0, 2, 3, 1) if _layout(tensor) == torch.channels_last else tensor


def attach(engine: Any, penalty: Penalty) -> None:
    """Gives EWC's optimizer inside a DeepSpeed engine its part of anchor and Fisher.

    Call it once after deepspeed.initialize; every rank keeps only what its partition needs. Does
    nothing for a weight of 0, whose optimizer is plain.

    Raises ValueError for a trained parameter that anchor or Fisher lack or have in another shape,
    for `round_robin_gradients`, and for optimizer wrappers other than ZeRO stage 0 in fp32, 1 or 2.
    """
    if penalty.lam == 0:
        return
    named = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
    if isinstance(engine.optimizer, _EWC):
        engine.optimizer.penalise(whole(named, penalty), penalty.lam)
        return
    zero = engine.optimizer
    inner = getattr(zero, "optimizer", None)
    if not hasattr(zero, "single_partition_of_fp32_groups") or not isinstance(inner, _EWC):
        raise ValueError(
            f"EWC cannot step inside {type(zero).__name__} over {type(inner).__name__}: use an "
            "optimizer from engine.training.optim.build with ZeRO stage 1 or 2, or stage 0 in fp32"
        )
    if zero.round_robin_gradients:
        raise ValueError("EWC cannot follow round_robin_gradients: leave it out of the config")
    inner.penalise(dict(_partitions(zero, named, penalty)), penalty.lam)


def track(engine: Any) -> Callable[[], float] | None:
    """Counts the penalty of every step from now on; None where the optimizer has none.

    What is returned reads it: the sum over the steps since the last time, the same on every rank.
    """
    outer = engine.optimizer
    inner = outer if isinstance(outer, _EWC) else getattr(outer, "optimizer", None)
    if not isinstance(inner, _EWC):
        return None
    value = inner.value = torch.zeros((), device=engine.device)

    def read() -> float:
        total = value.clone()
        value.zero_()
        if inner is not outer:  # each rank steps its partition
            dist.all_reduce(total)
        return total.item()

    return read


def whole(named: Mapping[str, Tensor], penalty: Penalty) -> dict[Tensor, Shard]:
    """Shards for an optimizer that holds the parameters themselves. Raises as `attach`."""
    anchors = _copies("anchor", penalty.anchor, named)
    fishers: Sequence[Tensor | None] = [None] * len(anchors)
    if penalty.fisher is not None:
        fishers = _copies("Fisher", penalty.fisher, named)
    return dict(zip(named.values(), map(Shard, anchors, fishers), strict=True))


def _copies(label: str, full: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> list[Tensor]:
    """For each parameter its tensor of `full`, stored as the parameter is."""
    return [
        _zeros_like(parameter).copy_(_of(label, full, name, parameter))
        for name, parameter in named.items()
    ]


def _zeros_like(tensor: Tensor) -> Tensor:
    """fp32 zeros that lie as the tensor does, and train nothing."""
    return torch.zeros_like(tensor, dtype=torch.float32, requires_grad=False)


def _partitions(
    zero: Any, named: Mapping[str, Tensor], penalty: Penalty
) -> Iterator[tuple[Tensor, Shard]]:
    """Each group's flat fp32 partition on this rank and its shard."""
    names = {parameter: name for name, parameter in named.items()}
    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        members = {names[parameter]: parameter for parameter in group}
        anchor, fisher = _cut("anchor", penalty.anchor, members, flat), None
        if penalty.fisher is not None:
            fisher = _cut("Fisher", penalty.fisher, members, flat)
        yield flat, Shard(anchor, fisher)


def _cut(
    label: str, full: Mapping[str, Tensor], members: Mapping[str, Any], flat: Tensor
) -> Tensor:
    """What `full` holds for a flat partition; 0 for padding, which is pulled nowhere."""
    cut = _zeros_like(flat)
    for name, parameter in members.items():
        tensor = _of(label, full, name, parameter)
        mapping = parameter._hp_mapping
        if mapping is None:  # wholly on other ranks
            continue
        source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
        piece = tensor.reshape(-1).narrow(0, source.start, source.numel)
        cut.narrow(0, target.start, target.numel).copy_(piece)
    return cut


def _of(label: str, full: Mapping[str, Tensor], name: str, parameter: Tensor) -> Tensor:
    """The whole anchor or Fisher of a parameter."""
    if name not in full:
        raise ValueError(f"EWC's {label} has no parameter {name!r}, which is trained")
    if full[name].shape != parameter.shape:
        raise ValueError(
            f"EWC's {label} of {name!r} is {list(full[name].shape)}, but the parameter is "
            f"{list(parameter.shape)}"
        )
    return full[name].detach()
