"""The numbers of an optimizer's step that change: from Python's numbers or from tensors on a GPU.

A kernel reads them from the device, so that nothing is compiled anew for them, and so that a step
whose lr and steps lie on the GPU can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.tables import to_device

Steps = Sequence[int | Tensor] | Tensor | None  # None: of SGD, which counts none


def step_numbers(
    lr: float | Tensor, steps: Steps, options: Sequence[float], device: torch.device
) -> Tensor:
    """The scalars of the twin's steps, fp32 on the device: a row for each parameter, or [1, n] for
    all. options: as the formulas below take them.

    Raises ValueError for a step below 1 that the host knows, for tensors that do not fit, and for
    steps of which some are tensors.
    """
    formula = _sgd_numbers if steps is None else _adamw_numbers
    if isinstance(steps, Sequence) and (tensors := [s for s in steps if isinstance(s, Tensor)]):
        if len(tensors) < len(steps):
            raise ValueError("steps are tensors and Python's numbers: give all of one kind")
        steps = torch.stack(tensors)
    lr, steps = _read("lr", lr, device), _read("steps", steps, device)
    if isinstance(steps, Sequence) and min(steps) < 1:
        raise ValueError(f"step counts from 1, not {min(steps)}")
    if not isinstance(lr, Tensor) and not isinstance(steps, Tensor):
        unlike = [None] if steps is None else steps[:1] if len(set(steps)) == 1 else steps
        rows = [formula(lr, step, *options) for step in unlike]
        return to_device(torch.tensor(rows, dtype=torch.float32), device)
    if isinstance(steps, Sequence):
        steps = to_device(torch.tensor(steps, dtype=torch.float64), device)
    count = 1 if steps is None else len(steps)
    row = formula(_double(lr), _double(steps), *options)
    return torch.stack([_filled(number, count, device) for number in row], 1).float()


def _read(name: str, given: Any, device: torch.device) -> Any:
    """Numbers of the CPU as Python's; a tensor on the device as it is, so that nothing waits."""
    if not isinstance(given, Tensor):
        return given
    if given.ndim != (name == "steps"):
        raise ValueError(f"{name} must be scalars, not tensors of {given.ndim} dimensions")
    if given.device.type == "cpu":
        return given.tolist()
    if given.device != device:
        raise ValueError(f"{name} is on {given.device}, but theta is on {device}")
    return given


def _double(given: Any) -> Any:
    return given.double() if isinstance(given, Tensor) else given


def _filled(number: float | Tensor, count: int, device: torch.device) -> Tensor:
    if isinstance(number, Tensor):
        return number.expand(count)
    return torch.full((count,), number, dtype=torch.float64, device=device)


def _adamw_numbers(
    lr: Any, step: Any, beta1: float, beta2: float, eps: float, weight_decay: float, lam: float
) -> list[Any]:
    """The scalars of `reference.adamw_ewc_` from Python's numbers or from float64 tensors."""
    step_size, v_scale = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
    decay = 1 - lr * weight_decay
    return [lam, decay, step_size, 1 - beta1, beta2, 1 - beta2, v_scale, eps]


def _sgd_numbers(lr: Any, _: Any, momentum: float, weight_decay: float, lam: float) -> list[Any]:
    return [lam, weight_decay, momentum, lr]
