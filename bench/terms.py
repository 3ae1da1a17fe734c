"""What a method adds to the cross-entropy, as its paper writes it, for the loop of a tutorial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.grid.build import Builder

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a model on images and their labels


def fine_tune(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


def ewc(builder: Builder) -> Loss:
    """lam / 2 sum F (theta - theta_pre)^2, F with mean 1: Kirkpatrick et al. 2017, equation 3."""
    options: Any = builder.recipe.method
    assert options.fisher_scale == "mean"
    fisher = builder.fisher(options.fisher_images, options.fisher_labels)
    mean = torch.cat([values.flatten() for values in fisher.values()]).mean()
    anchor = builder.network(builder.base).state_dict()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        pulls = [
            ((fisher[name] / mean).to(x.device) * (parameter - anchor[name]) ** 2).sum()
            for name, parameter in net.named_parameters()
        ]
        return fine_tune(net, x, y) + options.lam / 2 * torch.stack(pulls).sum()

    return loss


def lwf(builder: Builder) -> Loss:
    """weight T^2 KL(teacher / T || student / T): Li & Hoiem 2016, Hinton et al. 2015."""
    options: Any = builder.recipe.method
    teacher = builder.network(builder.base)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_log_p = (teacher(x) / options.temperature).log_softmax(1)
        logits = net(x)
        student_log_p = (logits / options.temperature).log_softmax(1)
        divergence = F.kl_div(student_log_p, teacher_log_p, reduction="batchmean", log_target=True)
        return F.cross_entropy(logits, y) + options.weight * options.temperature**2 * divergence

    return loss


TERMS: dict[str, Callable[[Builder], Loss]] = {
    "fine_tune": lambda builder: fine_tune,
    "ewc": ewc,
    "lwf": lwf,
}
