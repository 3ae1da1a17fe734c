"""Whole training steps: LwF with stored teacher logits, and EWC, against plain fine-tuning.

All step the same weights: forward, backward, AdamW on flat fp32 buffers. LwF adds a few passes over
the logits, EWC 8 bytes a parameter; what users pay otherwise is a teacher's forward pass in every
step, or a penalty in the loss; on the CPU these are shown with eight images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers, vit
from bench.contest import Contest, Entrant, Scale
from bench.roofline import Work
from kernels.distill import distill_loss
from kernels.ewc import adamw_ewc_

KERNELS = ("distill", "ewc")
LAM, LR = 0.5, 1e-5
# Accesses to a logit by teacher and distillation: bench/distill.py's count less cross-entropy's.
_DISTILLATION = 33
_SLOW_BATCH = 8


@dataclass
class Steps:
    """The training steps of one model, its teacher's logits stored and its Fisher at hand."""

    model: vit.FlatViT
    anchor: Tensor = field(init=False)
    fisher: Tensor = field(init=False)
    teacher: Tensor = field(init=False)
    state: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        theta = self.model.theta
        self.anchor, self.fisher, *self.state = (torch.zeros_like(theta) for _ in range(4))
        self.anchor.copy_(theta)
        self.fisher.uniform_()
        self.teacher = self.teacher_logits()
        parameter = torch.nn.Parameter(theta)  # the same memory
        parameter.grad = self.model.grad
        self.adamw = torch.optim.AdamW([parameter], lr=LR, fused=True)

    def teacher_logits(self) -> Tensor:
        with torch.no_grad(), vit.autocast(self.model.images.device):
            return self.model.net(self.model.images)

    def backward(self, loss: Callable[[Tensor], Tensor]) -> None:
        self.model.grad.zero_()
        with vit.autocast(self.model.images.device):
            value = loss(self.model.net(self.model.images))
        value.backward()

    def task(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.model.labels)

    def fine_tuning(self) -> None:
        self.backward(self.task)
        self.adamw.step()

    def lwf(self) -> None:
        labels = self.model.labels
        self.backward(lambda logits: distill_loss(logits, self.teacher, labels).mean())
        self.adamw.step()

    def lwf_with_teacher(self) -> None:
        """The teacher runs in the step; a pass through the student's own weights costs the same."""
        labels = self.model.labels
        teacher = self.teacher_logits()
        self.backward(lambda logits: distill_loss(logits, teacher, labels).mean())
        self.adamw.step()

    def ewc(self, step: int = 3) -> None:
        self.backward(self.task)
        adamw_ewc_(
            self.model.theta,
            self.model.grad,
            exp_avg=self.state[0],
            exp_avg_sq=self.state[1],
            anchor=self.anchor,
            fisher=self.fisher,
            step=step,
            lr=LR,
            weight_decay=1e-2,
            lam=LAM,
        )

    def ewc_in_the_loss(self) -> None:
        """A sum over the parameters as users write it."""
        parameters = list(self.model.net.parameters())
        sizes = [p.numel() for p in parameters]
        flat = zip(parameters, self.anchor.split(sizes), self.fisher.split(sizes), strict=True)
        distances = [(f.view_as(p) * (p - a.view_as(p)) ** 2).sum() for p, a, f in flat]
        self.penalised(lambda: LAM / 2 * torch.stack(distances).sum())

    def penalised(self, penalty: Callable[[], Tensor]) -> None:
        self.backward(lambda logits: self.task(logits) + penalty())
        self.adamw.step()


def gate(device: torch.device) -> None:
    """On a toy: LwF's gradient is that of cross-entropy plus KL, EWC's step that of the penalty."""
    steps = Steps(vit.build(device, Scale(quick=True)))
    model = steps.model
    steps.teacher = steps.teacher + torch.randn_like(steps.teacher)

    def composed(logits: Tensor) -> Tensor:
        log_p, log_q = ((x / 2).log_softmax(1) for x in (logits, steps.teacher))
        return steps.task(logits) + 4 * F.kl_div(log_p, log_q, reduction="batchmean",
                                                 log_target=True)  # fmt: skip

    steps.backward(composed)
    expected = model.grad.clone()
    steps.backward(lambda x: distill_loss(x, steps.teacher, model.labels).mean())
    tolerance = 1e-5 if device.type == "cpu" else 2e-2
    scale = expected.abs().max().item()
    torch.testing.assert_close(model.grad, expected, rtol=tolerance, atol=tolerance * scale)

    start = model.theta.add_(torch.randn_like(model.theta), alpha=1e-3).clone()
    steps.ewc_in_the_loss()
    expected = model.theta - start
    model.theta.copy_(start)
    steps.ewc(step=1)
    # A first step is lr times the gradient's sign, so a gradient near zero may turn either way.
    wrong = ((model.theta - start - expected).abs() > 1e-2 * LR).double().mean()
    assert wrong < 1e-3, f"EWC's step differs from the penalty's in {wrong:.2%} of the parameters"


def contests(device: torch.device, scale: Scale) -> Iterator[Contest]:
    steps = Steps(vit.build(device, scale))
    gpu = device.type == "cuda"
    for name, subject, target in (("LwF", _lwf(steps), 1.03), ("EWC", _ewc(steps), 1.01)):
        target = target if gpu else 1.05
        peer = Entrant("plain fine-tuning", steps.fine_tuning, _passes(steps.model), target)
        yield Contest(f"{name} {steps.model.name}", subject, (peer,), rounds=3)
    if not gpu:
        steps = Steps(steps.model.at_most(_SLOW_BATCH))
    model = steps.model
    teaching = _distilling(steps) + Work(flops=model.batch * model.flops / 3)
    teacher = Entrant("LwF, teacher in the step", steps.lwf_with_teacher, teaching)
    yield Contest(f"LwF {model.name}", _lwf(steps), (teacher,), rounds=3)
    naive = _passes(model) + Work(80 * model.theta.numel())
    entrants = [Entrant("penalty in the loss", steps.ewc_in_the_loss, naive)]
    penalty = peers.avalanche_penalty(model.net, steps.anchor, steps.fisher, LAM)
    if penalty is not None:
        entrants.append(Entrant("Avalanche EWCPlugin", lambda: steps.penalised(penalty), naive))
    yield Contest(f"EWC {model.name}", _ewc(steps), tuple(entrants), rounds=3)


def _passes(model: vit.FlatViT) -> Work:
    return Work(28 * model.theta.numel(), model.batch * model.flops)


def _distilling(steps: Steps) -> Work:
    return _passes(steps.model) + Work(_DISTILLATION * 4 * steps.teacher.numel())


def _lwf(steps: Steps) -> Entrant:
    return Entrant("LwF, teacher stored", steps.lwf, _distilling(steps))


def _ewc(steps: Steps) -> Entrant:
    return Entrant("EWC", steps.ewc, _passes(steps.model) + Work(8 * steps.anchor.numel()))
