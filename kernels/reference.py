"""The truth: every kernel of this package in plain PyTorch, as close to its formula as it gets.

Tests and benchmark gates compare the kernels with these; they are written to be read, not to be
fast or small, except where a kernel's docstring says that the CPU runs them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def distill_loss(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 2.0,
    weight: float = 1.0,
    scale_by_t2: bool = True,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Truth of `kernels.distill.distill_loss`; see there. fp64 logits give fp64 losses."""
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    kept = student.new_ones(student.shape[1], dtype=torch.bool) if mask is None else mask
    student = student.masked_fill(~kept, float("-inf"))
    log_p = student.log_softmax(1)
    loss = -(1 - label_smoothing) * log_p.gather(1, labels[:, None]).squeeze(1)
    if label_smoothing:
        loss = loss - label_smoothing * log_p.masked_fill(~kept, 0.0).sum(1) / kept.sum()
    if teacher is None or weight == 0.0:
        return loss
    teacher = teacher.detach().to(student.dtype).masked_fill(~kept, float("-inf"))
    log_q = (teacher / temperature).log_softmax(1)
    log_p = (student / temperature).log_softmax(1)
    gap = (log_q - log_p).masked_fill(~kept, 0.0)
    factor = weight * (temperature**2 if scale_by_t2 else 1.0)
    return loss + factor * (log_q.exp() * gap).sum(1)


def outer_squares(output_gradients: Tensor, inputs: Tensor) -> Tensor:
    """Truth of `kernels.outer_squares.outer_squares`, in float64; it holds B x O x I numbers."""
    per_example = torch.einsum("bno,bni->boi", output_gradients.double(), inputs.double())
    return per_example.square().sum(0)


def fisher_diagonal(
    model: nn.Module, images: Tensor, labels: Tensor, *, mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Truth of `kernels.fisher.fisher_diagonal` for given labels: one backward pass an image."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        logits = model(image)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        loss = nn.functional.cross_entropy(logits, label)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient.square()
    return {name: value / len(images) for name, value in total.items()}


def adamw_ewc_(
    theta: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    anchor: Tensor | None,
    fisher: Tensor | None,
    scalars: Tensor,
    with_value: bool = True,
) -> Tensor | None:
    """Truth of `kernels.ewc.adamw_ewc_`, which the CPU runs; returns the penalty's value, fp64.

    scalars [8]: lam, 1 - lr weight_decay, lr / (1 - beta1^t), 1 - beta1, beta2, 1 - beta2,
    (1 - beta2^t)^-1/2, eps.
    """
    lam, decay, step_size, one_minus_beta1, beta2, one_minus_beta2, v_scale, eps = scalars.unbind()
    grad, penalty = _with_penalty(theta, grad, anchor, fisher, lam, with_value)
    exp_avg.add_(one_minus_beta1 * (grad - exp_avg))
    exp_avg_sq.mul_(beta2).add_(one_minus_beta2 * grad * grad)
    theta.mul_(decay).sub_(step_size * exp_avg / (exp_avg_sq.sqrt() * v_scale + eps))
    return penalty


def sgd_ewc_(
    theta: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    anchor: Tensor | None,
    fisher: Tensor | None,
    scalars: Tensor,
    with_value: bool = True,
) -> Tensor | None:
    """Truth of `kernels.ewc.sgd_ewc_`, which the CPU runs; returns the penalty's value, fp64.

    scalars [4]: lam, weight_decay, momentum, lr.
    """
    lam, weight_decay, momentum, lr = scalars.unbind()
    grad, penalty = _with_penalty(theta, grad, anchor, fisher, lam, with_value)
    momentum_buffer.mul_(momentum).add_(grad + weight_decay * theta)
    theta.sub_(lr * momentum_buffer)
    return penalty


def _with_penalty(
    theta: Tensor,
    grad: Tensor,
    anchor: Tensor | None,
    fisher: Tensor | None,
    lam: Tensor,
    with_value: bool,
) -> tuple[Tensor, Tensor | None]:
    if anchor is None:
        return grad, None
    distance = theta - anchor
    pull = lam * distance if fisher is None else lam * fisher * distance
    value = 0.5 * (pull * distance).sum(dtype=torch.float64) if with_value else None
    return grad + pull, value


def interpolate_(parents: Tensor, weights: Tensor, out: Tensor) -> None:
    """Truth of `kernels.interpolate.interpolate`, which the CPU runs chunk by chunk."""
    for row, row_weights in zip(out, weights.tolist(), strict=True):
        kept = [(p, w) for p, w in zip(parents, row_weights, strict=True) if w != 0.0]
        if not kept:
            row.zero_()
            continue
        (parent, weight), *rest = kept
        total = torch.mul(parent, weight, out=row if row.dtype == parent.dtype else None)
        for parent, weight in rest:
            total.add_(parent, alpha=weight)
        if total is not row:
            row.copy_(total)
