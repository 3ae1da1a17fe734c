"""Gradients clipped by the global norm, by `engine.training.optim` and by DeepSpeed."""

import torch
from deepspeed.runtime.utils import clip_grad_norm_
from torch import nn

from engine.training import optim


def clipped(most: float, ours: bool) -> list[torch.Tensor]:
    """Gradients after clipping; one parameter has none."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(n, 7)) for n in (1, 40, 900)]
    for parameter in parameters[:2]:
        parameter.grad = torch.randn_like(parameter)
    if ours:
        optim.clip_(iter(parameters), most)
    else:
        clip_grad_norm_(parameters, most)
    return [p.grad for p in parameters if p.grad is not None]


def differences() -> list[float]:
    """The largest difference from DeepSpeed's gradients: where it scales, and where it does not."""
    ends = [zip(clipped(most, True), clipped(most, False), strict=True) for most in (0.3, 1e4)]
    return [max((a - b).abs().max().item() for a, b in pairs) for pairs in ends]
