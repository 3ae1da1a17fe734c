"""Optimizers, and a quadratic penalty (EWC's) as part of their step.

The penalty's gradient needs only the parameters, the anchor and the Fisher, so the optimizer
applies it in its pass over the parameters (`kernels.ewc`), and the loss leaves it out. It is added
after gradients are averaged and clipped: clipping tames the task's gradient, not the pull.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from engine.methods.base import Penalty
from engine.recipe.schema import OptimizerRecipe
from engine.training.schedule import SHARE
from kernels.ewc import Parameters

log = logging.getLogger(__name__)
KINDS = {"adamw": (torch.optim.AdamW, "FusedAdam"), "sgd": (torch.optim.SGD, "FusedSGD")}
MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}  # torch's names


def build(
    parameters: Mapping[str, Tensor],
    options: OptimizerRecipe,
    penalty: Penalty | None = None,
    rates: Mapping[str, float] = MappingProxyType({}),
) -> Optimizer:
    """The optimizer over named parameters; a `Penalised` one for a penalty's weight above 0.

    rates: by name, the share of the learning rate that a parameter has; 1 where none is given. The
    parameters of a share are a group with this `lr_scale`, as timm calls it. A penalty of weight 0
    is none, so that it equals fine-tuning bit for bit; with one, the step is ours and not apex's.

    Raises ValueError for no parameters (torch's), where NVIDIA's apex is not installed, and for a
    parameter that anchor or Fisher lack or have in another shape.
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
    if penalty is not None and penalty.lam > 0:
        return Penalised(name, groups, settings, parameters, penalty)
    if name != options.name:
        return _apex(apex)(groups, **settings)
    return kind(groups, fused=True, **settings)


@torch.no_grad()
def clip_(parameters: Iterable[Tensor], most: float) -> None:
    """Scale averaged gradients in place so that their global L2 norm is at most `most`.

    The result is DeepSpeed's, bit for bit on a CPU; DeepSpeed's own clipping waits for the GPU
    twice a step, because it copies numbers to it. Every rank has the same gradients, so none asks
    the others.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateImportUsage]
    norm = torch.stack(norms).square().sum().sqrt()
    scale = (torch.full_like(norm, most) / (norm + 1e-6)).clamp_(max=1.0)
    torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]


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
    """How many elements of tensors on one device lie above a bound; a GPU is waited for once."""
    return int(torch.stack([(tensor > bound).sum() for tensor in tensors]).sum())


class Penalised(Optimizer):
    """AdamW, or SGD with momentum, whose step adds a penalty's gradient.

    Its state has the names of torch's optimizers. Anchor and Fisher stand beside it: a checkpoint
    needs no copy of them.
    """

    def __init__(
        self,
        name: str,
        groups: list[dict[str, Any]],
        settings: dict[str, Any],
        parameters: Mapping[str, Tensor],
        penalty: Penalty,
    ) -> None:
        """name: `adamw` or `sgd`. settings: as of torch's optimizer."""
        super().__init__(groups, settings)
        self._name, self._lam = name, penalty.lam
        self._groups: dict[int, tuple[list[Any], Parameters]] = {}
        self._anchors = _of_parameters(penalty.anchor, parameters, "anchor")
        self._fishers = None  # the identity
        if penalty.fisher is not None:
            self._fishers = _of_parameters(penalty.fisher, parameters, "Fisher")
        if name == "sgd":
            self._soften(settings["lr"], settings["momentum"])

    def _soften(self, lr: float, momentum: float) -> None:
        """Hold no weight more firmly than SGD's steps can follow.

        Where lr * lam * F passes 2 (1 + momentum), steps overshoot the anchor further and further
        (heavy ball on a quadratic). A Fisher divided by its mean passes that: its largest element
        was 31,000 for a ViT-S. So F is at most (1 + momentum) / (lr * lam), half of what is stable,
        and how many elements that lowers is logged. Raises ValueError where it would lower all:
        any larger strength would train the same weights.
        """
        bound = (1 + momentum) / (self._lam * lr)
        fishers = [torch.ones(1)] if self._fishers is None else list(self._fishers.values())
        firmer = count_above(fishers, bound)
        elements = sum(fisher.numel() for fisher in fishers)
        if firmer == elements:
            raise ValueError(
                f"a pull of strength {self._lam:g} at optimizer.lr={lr:g} is firmer than SGD's "
                f"steps can follow: give method.lam (or alpha) {self._lam * bound:.3g} or less, or "
                "a lower optimizer.lr"
            )
        if firmer:
            log.warning(
                "the pull on %s of %s weights is weakened to the firmest that SGD can follow, %.3g "
                "at optimizer.lr=%g",
                f"{firmer:,}",
                f"{elements:,}",
                self._lam * bound,
                lr,
            )
        for fisher in fishers:
            fisher.clamp_(max=bound)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step. A tensor without a gradient still feels the penalty's."""
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
    ) -> Parameters:
        """What the kernels take of a group, checked anew where one of its tensors was replaced or
        lies elsewhere."""
        names = MOMENTS[self._name]
        tensors = [*thetas, *(state[name] for state in states for name in names)]
        places = [(id(tensor), tensor.data_ptr(), tensor.stride()) for tensor in tensors]
        if (known := self._groups.get(number)) and known[0] == places:
            return known[1]
        moments = {
            name: _in_memory_order([state[name] for state in states], thetas) for name in names
        }
        pull = [
            None if of is None else _in_memory_order([of[theta] for theta in thetas], thetas)
            for of in (self._anchors, self._fishers)
        ]
        checked = Parameters(_in_memory_order(thetas, thetas), moments, *pull)
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
        """lam / 2 sum F (theta - anchor)^2, as it is now; it waits for the device."""
        total = torch.zeros((), dtype=torch.float64)
        for theta, anchor in self._anchors.items():
            squares = (theta - anchor).square_()
            if self._fishers is not None:
                squares *= self._fishers[theta]
            total = total + squares.sum(dtype=torch.float64)
        return (self._lam / 2 * total).item()


def _of_parameters(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], label: str
) -> dict[Tensor, Tensor]:
    """fp32 copies by parameter; ValueError for one that is missing or has another shape."""
    copies: dict[Tensor, Tensor] = {}
    for name, parameter in parameters.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != parameter.shape:
            size = "missing" if tensor is None else list(tensor.shape)
            raise ValueError(
                f"the {label} of {name!r} is {size}, but the parameter is {list(parameter.shape)}"
            )
        copies[parameter] = _zeros_like(parameter).copy_(tensor.detach())
    return copies


def _zeros_like(theta: Tensor) -> Tensor:
    return torch.zeros_like(theta, dtype=torch.float32, requires_grad=False)


def _in_memory_order(tensors: Sequence[Tensor], thetas: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous views of the tensors, whose elements are in the order of theta's memory; copies
    of tensors that lie in another order.

    An elementwise step takes any order, but kernels read contiguous tensors.
    """
    views = []
    for tensor, theta in zip(tensors, thetas, strict=True):
        if theta.is_contiguous() and tensor.is_contiguous():
            views.append(tensor)
            continue
        order = sorted(range(theta.dim()), key=theta.stride, reverse=True)
        view = tensor.permute(order)
        # A parameter must not be copied: the step would be lost, so kernels refuse it.
        views.append(view if tensor is theta else view.contiguous())
    return views
