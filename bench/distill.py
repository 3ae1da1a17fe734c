"""Cross-entropy plus distillation, forward and backward, against torch's own losses composed.

Accesses to a logit, counted operator by operator. Composed: cross-entropy's softmax 2, both
divisions by T 4, both softmaxes 4, kl_div and its sum 9; backward 19. The Triton kernel: 3, and 2
to scale the gradient. The CPU runs the reference, which is composed like its peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers
from bench.contest import Contest, Entrant, Scale
from bench.roofline import Work
from bench.timing import Run
from kernels import reference
from kernels.distill import distill_loss

KERNELS = ("distill",)
T = 2.0
_COMPOSED, _KERNEL = 38, 5
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def gate(device: torch.device) -> None:
    """Losses and gradients against the twin in float64, also with a mask and with more classes than
    the kernel reads at once; in fp32, and in the timed dtype to its own precision."""
    for dtype, tolerance in ((torch.float32, 1e-5), (_dtype(device), 1e-2)):
        for classes, unmasked in ((1000, 1000), (1000, 200), (21843, 21843)):
            student, teacher, labels = _case(8, classes, unmasked, dtype, device)
            mask = torch.arange(classes, device=device) < unmasked
            losses = distill_loss(student, teacher, labels, mask=mask)
            (gradient,) = torch.autograd.grad(losses.sum(), student)
            student = student.detach().double().requires_grad_()
            truth = reference.distill_loss(student, teacher.double(), labels, mask=mask)
            (expected_gradient,) = torch.autograd.grad(truth.sum(), student)
            torch.testing.assert_close(losses.double(), truth, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(
                gradient.double(), expected_gradient, rtol=tolerance, atol=1e-5
            )


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    dtype = _dtype(device)
    shapes = ((8, 100),) if scale.quick else ((256, 1000), (64, 21843))
    for batch, classes in shapes:
        student, teacher, labels = _case(batch, classes, classes, dtype, device)

        def run(
            loss: Loss,
            inputs: tuple[Tensor, ...] = (student, teacher, labels),
        ) -> Run:
            return lambda: torch.autograd.grad(loss(*inputs), inputs[0])

        reads_writes = _COMPOSED if device.type == "cpu" else _KERNEL
        size = batch * classes * student.element_size()
        entrants = [Entrant("CE + KL, eager", run(_composed), Work(_COMPOSED * size))]
        if not scale.quick:
            compiled = torch.compile(_composed)
            entrants.append(Entrant("CE + KL, torch.compile", run(compiled), Work(10 * size)))
        if device.type == "cuda":
            entrants += peers.tried("liger-kernel", partial(_by_liger, run, size))
        yield Contest(
            f"distill {batch} x {classes}",
            Entrant("distill_loss", run(_ours), Work(reads_writes * size)),
            tuple(entrants),
        )


def _case(
    batch: int, classes: int, unmasked: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, batch, classes, generator=generator)
    student, teacher = logits.to(device, dtype)
    labels = torch.randint(unmasked, (batch,), generator=generator).to(device)
    return student.requires_grad_(), teacher, labels


def _ours(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return distill_loss(student, teacher, labels, temperature=T).mean()


def _composed(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_p, log_q = (student / T).log_softmax(1), (teacher / T).log_softmax(1)
    kl = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return F.cross_entropy(student, labels) + T**2 * kl


def _by_liger(run: Callable[[Loss], Run], size: int) -> Entrant:
    from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
        LigerCrossEntropyLoss,
        LigerKLDIVLoss,
    )

    task, kl = LigerCrossEntropyLoss(), LigerKLDIVLoss(reduction="batchmean", log_target=True)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        # Liger's losses write their gradient over their input: it must not be the caller's.
        pull = kl((student / T).log_softmax(1), (teacher / T).log_softmax(1))
        return task(student.clone(), labels) + T**2 * pull

    entrant = Entrant("liger-kernel CE + KL", run(loss), Work(14 * size))
    entrant.run()  # fails here where its kernels do not compile
    return entrant
