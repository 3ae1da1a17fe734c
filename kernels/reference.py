"""The kernels' computations in plain PyTorch, which the CPU runs and tests compare with.

They are as close to the formulas as possible. The reference for the EWC steps is torch's own
optimizer (`tests/kernels/test_ewc.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor


def distill_loss(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 2.0,
    weight: float = 1.0,
    scale_by_t2: bool = True,
) -> Tensor:
    """Reference for `kernels.distill.distill_loss`. fp64 logits give fp64 losses."""
    student = student.to(torch.promote_types(student.dtype, torch.float32))

    def without(logits: Tensor, value: float) -> Tensor:
        return logits if mask is None else logits.masked_fill(~mask, value)

    student = without(student, float("-inf"))
    log_p = student.log_softmax(1)
    loss = -log_p.gather(1, labels[:, None]).squeeze(1)
    if teacher is None or weight == 0.0:
        return loss
    teacher = without(teacher.detach().to(student.dtype), float("-inf"))
    log_q = (teacher / temperature).log_softmax(1)
    log_p = (student / temperature).log_softmax(1)
    factor = weight * (temperature**2 if scale_by_t2 else 1.0)
    q = log_q.exp()
    # q log q -> 0 as q -> 0: masked classes and teacher logits of -inf add nothing.
    return loss + factor * (q * (log_q - log_p).masked_fill_(q == 0, 0.0)).sum(1)


def interpolate_(parents: Tensor, weights: Tensor, out: Tensor) -> None:
    """Reference for `kernels.interpolation.interpolate`. The CPU runs it on chunks of columns."""
    for row, row_weights in zip(out, weights.tolist(), strict=True):
        terms = [(p, w) for p, w in zip(parents, row_weights, strict=True) if w != 0.0]
        if not terms:
            row.zero_()
            continue
        (parent, weight), *rest = terms
        torch.mul(parent, weight, out=row)
        for parent, weight in rest:
            row.add_(parent, alpha=weight)


def sinkhorn_sweep(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> list[Tensor]:
    """Reference for `kernels.transport.sweep`, in float64 if f is. The CPU runs it on small
    problems.

    Strips of 32 rows stay in cache. Exponents are clamped at -87 because subnormal numbers are
    slow.
    """
    log_s, columns = torch.empty_like(f), torch.zeros_like(g, dtype=torch.float64)
    for start in range(0, len(q), 32):
        rows = slice(start, start + 32)
        p = torch.exp((f[rows, None] + g - kappa[rows, None] * q[rows]).clamp_(min=-87.0))
        s = p.sum(1)
        log_s[rows] = s.log()
        columns += p.T @ s.reciprocal()
    return [log_s, columns]


def row_sums(q: Tensor, f: Tensor, g: Tensor, kappa: Tensor) -> Tensor:
    """Reference for `kernels.transport.sweep.row_sums`; see `sinkhorn_sweep`."""
    log_s = torch.empty_like(f)
    for start in range(0, len(q), 32):
        rows = slice(start, start + 32)
        p = torch.exp((f[rows, None] + g - kappa[rows, None] * q[rows]).clamp_(min=-87.0))
        log_s[rows] = p.sum(1).log()
    return log_s
