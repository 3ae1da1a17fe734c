"""Masked cross-entropy plus distillation from stored teacher logits, with one read of the logits.

Learning without forgetting adds KL(teacher || student) to the task's loss. As eager operators, the
logits cross memory a dozen times. Here one program keeps one row in registers and writes the loss
and its gradient, so that the backward pass only scales the gradient.

For student logits s, teacher logits t, label y, unmasked classes V, temperature T:

    CE_b = lse_V(s) - s_y
    KL_b = sum_{c in V} q_c * (log q_c - log p_c),  q = softmax_V(t / T),  p = softmax_V(s / T)
    loss_b = CE_b + weight * (T^2 or 1) * KL_b

    d loss_b / d s_c = softmax_V(s)_c - [c = y] + weight * (T or 1 / T) * (p_c - q_c)

Bytes moved per logit of s bytes: 2s read, s written. With more than `ONE_READ_CLASSES` classes the
row is read a second time (from L2) to write the gradient. The backward pass reads and writes the
gradient once more.

Predicted worth on a GPU: below 1% of LwF's step; torch.compile would fuse the plain losses as well.
On a CPU this is a plain fallback of torch's operators, which torch.compile makes several times
faster.

Sources: Li & Hoiem 2016 (learning without forgetting); Hinton et al. 2015 (T and T^2).
"""

# pyright: reportGeneralTypeIssues=false
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from kernels import launch
from kernels.launch import jit, tl

ONE_READ_CLASSES = 4096
_LOWEST = torch.finfo(torch.float32).min
_LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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
    """Returns per-sample losses, float32 [B], differentiable once, and only with respect to
    `student`.

    student: logits [B, C], bf16, fp16 or fp32 (on the CPU also fp64, which gives fp64 losses).
    teacher: logits [B, C] of any of these dtypes, or None for cross-entropy only. labels: int64
    [B]. mask: bool [C], True for the classes in use; masked logits may have any value. temperature:
    positive and finite. weight: multiplies the KL term, which `scale_by_t2` also multiplies by T^2.
    A teacher logit of -inf is a probability of 0 and adds nothing.

    CUDA tensors use the Triton kernel. Others use the eager reference, which is not worth
    compiling: at 224 px, the loss takes at most 1% of a training step on a CPU.

    Raises ValueError for invalid shapes, dtypes or options, and on the CPU for a label that is out
    of range or masked. On CUDA and inside torch.compile, checking the labels would synchronise the
    device; there such a sample's loss is +inf (CUDA), or the operator raises its own error.
    """
    if student.ndim != 2:
        raise ValueError(f"student logits must be [B, C], not {list(student.shape)}")
    teacher = None if weight == 0.0 else teacher
    batch, classes = student.shape
    if teacher is not None and teacher.shape != student.shape:
        raise ValueError(
            f"teacher logits {list(teacher.shape)} do not match the student's {[batch, classes]}"
        )
    check_targets(labels, mask, batch, classes)
    for name, logits in (("student", student), ("teacher", teacher)):
        if logits is not None and logits.dtype not in _LOGIT_DTYPES and logits.is_cuda:
            raise ValueError(
                f"{name} logits are {logits.dtype}; cast them to one of fp32/bf16/fp16"
            )
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, not {temperature}")
    kl_weight = weight * (temperature**2 if scale_by_t2 else 1.0)
    if not student.is_cuda:
        if not torch.compiler.is_compiling():
            check_labels(labels, classes, mask)
        return _eager(student, teacher, labels, mask, temperature, kl_weight)
    with_gradient = student.requires_grad and torch.is_grad_enabled()
    return _distill(student, teacher, labels, mask, temperature, kl_weight, with_gradient)[0]


def _eager(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    mask: Tensor | None,
    temperature: float,
    kl_weight: float,
) -> Tensor:
    """The formula in plain PyTorch, which the CPU runs and tests compare the kernel with."""
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    if mask is not None:
        student = student.masked_fill(~mask, float("-inf"))
    loss = -student.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
    if teacher is None:
        return loss
    teacher = teacher.detach().to(student.dtype)
    if mask is not None:
        teacher = teacher.masked_fill(~mask, float("-inf"))
    log_q = (teacher / temperature).log_softmax(1)
    log_p = (student / temperature).log_softmax(1)
    q = log_q.exp()
    # q log q -> 0 as q -> 0: masked classes and teacher logits of -inf add nothing.
    return loss + kl_weight * (q * (log_q - log_p).masked_fill_(q == 0, 0.0)).sum(1)


def check_targets(labels: Tensor | None, mask: Tensor | None, batch: int, classes: int) -> None:
    """Raises ValueError unless labels and mask fit logits [batch, classes]."""
    if labels is not None and (labels.shape != (batch,) or labels.dtype != torch.int64):
        raise ValueError(f"labels must be int64 [{batch}], not {labels.dtype} {list(labels.shape)}")
    if mask is not None and (mask.shape != (classes,) or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool [{classes}], not {mask.dtype} {list(mask.shape)}")


def check_labels(labels: Tensor, classes: int, mask: Tensor | None) -> None:
    """Raises ValueError for the first label that is out of range or masked. Reads the tensors'
    values.
    """
    outside = (labels < 0) | (labels >= classes)
    if mask is not None:
        outside = outside | ~mask[labels.clamp(0, classes - 1)]
    if outside.any():
        sample = int(outside.nonzero()[0])
        raise ValueError(
            f"sample {sample}: label {int(labels[sample])} is not among the "
            f"{classes if mask is None else int(mask.sum())} unmasked classes of {classes}"
        )


@jit
def _load_row(
    student,
    teacher,
    mask,
    columns,
    CLASSES: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """Columns of a row; -inf for masked classes."""
    valid = columns < CLASSES
    s = tl.load(student + columns, mask=valid, other=0.0).to(tl.float32)
    t = s
    if HAS_TEACHER:
        t = tl.load(teacher + columns, mask=valid, other=0.0).to(tl.float32)
    if HAS_MASK:
        valid = valid & (tl.load(mask + columns, mask=valid, other=0) != 0)
    return tl.where(valid, s, float("-inf")), tl.where(valid, t, float("-inf")), valid


@jit
def _add_block(state, s, t, inv_t, HAS_TEACHER: tl.constexpr):
    """One online step; sums are relative to the running maxima, so they cannot overflow."""
    s_max, s_sum, s_sum_t, t_max, t_sum, cross = state
    new_s = tl.maximum(s_max, tl.max(s, 0))
    s_sum = s_sum * tl.exp(s_max - new_s) + tl.sum(tl.exp(s - new_s), 0)
    if HAS_TEACHER:
        new_t = tl.maximum(t_max, tl.max(t, 0))
        s_sum_t = s_sum_t * tl.exp((s_max - new_s) * inv_t)
        s_sum_t += tl.sum(tl.exp((s - new_s) * inv_t), 0)
        shrink = tl.exp((t_max - new_t) * inv_t)
        q = tl.exp((t - new_t) * inv_t)
        gap = tl.where(t > float("-inf"), q * ((t - new_t) - (s - new_s)), 0.0)
        # Before the first unmasked class, the maxima may differ by more than float32 can hold.
        moved = tl.where(t_sum > 0, t_sum * ((t_max - new_t) - (s_max - new_s)), 0.0)
        cross = shrink * (cross + moved) + tl.sum(gap, 0)
        t_sum = t_sum * shrink + tl.sum(q, 0)
        t_max = new_t
    return new_s, s_sum, s_sum_t, t_max, t_sum, cross


@jit
def _gradient(state, s, t, valid, is_label, inv_t, kl_weight, HAS_TEACHER: tl.constexpr):
    s_max, s_sum, s_sum_t, t_max, t_sum, _ = state
    gradient = tl.exp(s - s_max) / s_sum - tl.where(is_label, 1.0, 0.0)
    if HAS_TEACHER:
        p = tl.exp((s - s_max) * inv_t) / s_sum_t
        q = tl.exp((t - t_max) * inv_t) / t_sum
        gradient += kl_weight * inv_t * (p - q)
    return tl.where(valid, gradient, 0.0)


@jit
def _distill_kernel(
    student,
    teacher,
    labels,
    mask,
    loss,
    gradient,
    inv_t,
    kl_weight,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_TEACHER: tl.constexpr,
    HAS_MASK: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    LOWEST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * CLASSES
    teacher += row * CLASSES
    gradient += row * CLASSES
    label = tl.load(labels + row)
    known = (label >= 0) & (label < CLASSES)
    label_logit = tl.load(student + label, mask=known, other=0.0).to(tl.float32)
    if HAS_MASK:
        known = known & (tl.load(mask + label, mask=known, other=0) != 0)
    columns = tl.arange(0, BLOCK)
    # The maxima start finite, so that a fully masked block does not give exp(-inf + inf).
    state = (LOWEST, 0.0, 0.0, LOWEST, 0.0, 0.0)
    if CLASSES <= BLOCK:
        s, t, valid = _load_row(student, teacher, mask, columns, CLASSES, HAS_TEACHER, HAS_MASK)
        state = _add_block(state, s, t, inv_t, HAS_TEACHER)
        if WITH_GRADIENT:
            is_label = columns == label
            g = _gradient(state, s, t, valid, is_label, inv_t, kl_weight, HAS_TEACHER).to(
                gradient.dtype.element_ty
            )
            tl.store(gradient + columns, g, mask=columns < CLASSES)
    else:
        for start in tl.range(0, CLASSES, BLOCK, num_stages=3):
            s, t, valid = _load_row(
                student, teacher, mask, start + columns, CLASSES, HAS_TEACHER, HAS_MASK
            )
            state = _add_block(state, s, t, inv_t, HAS_TEACHER)
        if WITH_GRADIENT:
            for start in tl.range(0, CLASSES, BLOCK, num_stages=3):
                at = start + columns
                s, t, valid = _load_row(student, teacher, mask, at, CLASSES, HAS_TEACHER, HAS_MASK)
                g = _gradient(state, s, t, valid, at == label, inv_t, kl_weight, HAS_TEACHER).to(
                    gradient.dtype.element_ty
                )
                tl.store(gradient + at, g, mask=at < CLASSES)
    s_max, s_sum, s_sum_t, _, t_sum, cross = state
    value = tl.log(s_sum) + (s_max - label_logit)
    if HAS_TEACHER:
        value += kl_weight * (cross / t_sum * inv_t - tl.log(t_sum) + tl.log(s_sum_t))
    tl.store(loss + row, tl.where(known, value, float("inf")))


def _launch_options(classes: int) -> dict[str, int]:
    """The whole row at once, or four logits per thread if it is read twice: more would spill."""
    block = 1 << max(classes - 1, 1).bit_length()
    block = block if block <= ONE_READ_CLASSES else 1024
    return {"BLOCK": block, "num_warps": 8 if classes > 1024 else 4}


@triton_op(
    "rib::distill",
    mutates_args=(),
    schema=(
        "(Tensor student, Tensor? teacher, Tensor labels, Tensor? mask, float temperature, "
        "float kl_weight, bool with_gradient) -> (Tensor, Tensor)"
    ),
)
def _distill(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    mask: Tensor | None,
    temperature: float,
    kl_weight: float,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Losses fp32 [B], and d loss_b / d student_b [B, C] in the student's dtype (or an empty
    tensor).
    """
    student = student.contiguous()
    given = student if teacher is None else teacher.contiguous()
    batch, classes = student.shape
    loss = student.new_empty(batch, dtype=torch.float32)
    gradient = torch.empty_like(student) if with_gradient else student.new_empty(0)
    if batch:
        launch.start(
            _distill_kernel,
            (batch,),
            student,
            given,
            labels.contiguous(),
            labels if mask is None else mask.contiguous(),
            loss,
            gradient,
            1.0 / temperature,
            kl_weight,
            CLASSES=classes,
            HAS_TEACHER=teacher is not None,
            HAS_MASK=mask is not None,
            WITH_GRADIENT=with_gradient,
            LOWEST=_LOWEST,
            **_launch_options(classes),
        )
    return loss, gradient


def _save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _scale_gradient(ctx: Any, grad_loss: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """Scales in one pass, in float32 for any dtype of the gradient, without host waits."""
    (gradient,) = ctx.saved_tensors
    return torch.mul(gradient, grad_loss[:, None], out=torch.empty_like(gradient)), *[None] * 6


_distill.register_autograd(_scale_gradient, setup_context=_save_gradient)
