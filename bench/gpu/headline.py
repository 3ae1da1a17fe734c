"""What training and evaluation of ViT-B/16 cost in the steady state, in bf16, with torch and timm.

OUT/headline-DEVICE.json has a row for FT, LwF, EWC and evaluation at each batch size, written as
soon as it is measured: images a second, milliseconds a step, MFU and, on a GPU, the most memory
that tensors held; there all rows are measured as the model is, and then compiled. Images wait on
the device; LwF's
teacher logits and EWC's Fisher are at hand, as they are in a campaign. MFU counts the model's
forward and backward pass, whatever else a method does, over the data sheet's bf16 rate; where the
card is unknown, over the best matrix product measured here.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import roofline, vit
from bench.gpu.stages import parser
from bench.report import Results
from kernels.distill import distill_loss
from kernels.ewc import adamw_ewc_

BATCHES, SMALL_BATCHES = (64, 256), (2, 4)
BLOCKS, STEPS, WARM = 5, 10, 5  # a block of steps is timed as a whole: nothing waits inside it
LAM, LR = 0.5, 1e-5


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser("headline", __doc__).parse_args(arguments)
    device = torch.device(options.device)
    ceiling = roofline.measure(device, options.small)
    results = Results(options.out, "headline", device)
    results.write(roofline=asdict(ceiling))
    batches = SMALL_BATCHES if options.small else BATCHES
    model = vit.build(device, options.small, "ViT-B", max(batches))
    failed = False
    for compiled in (False, True) if device.type == "cuda" else (False,):
        net = torch.compile(model.net) if compiled else model.net
        for batch in batches:
            steps = Steps(replace(model.at_most(batch), net=net))
            for what, (run, held) in steps.named().items():
                row: dict[str, Any] = {"what": what, "batch": batch, "compiled": compiled}
                flops = model.forward_flops if what == "evaluation" else model.flops
                try:
                    ms, peak = _measured(run, device, 1 if options.small else STEPS)
                    row |= {"ms": ms, "images_s": 1e3 * batch / ms}
                    row["mfu"] = ceiling.mfu(batch * flops, ms)
                    if peak:
                        row["peak_mb"] = (steps.bytes(held) + peak) / 1e6
                except Exception as error:  # out of memory, or no compiler: the next row is tried
                    failed, row["error"] = True, f"{type(error).__name__}: {error}"
                results.add(row)
    return int(failed)


def _measured(run: Callable[[], object], device: torch.device, steps: int) -> tuple[float, float]:
    """Milliseconds of a step, the median of blocks of them, and on a GPU the most bytes that
    tensors held beside what was there."""

    def block() -> None:
        for _ in range(steps):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(WARM if steps > 1 else 1):
        run()
    times, before = [], 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    for _ in range(BLOCKS):
        begin = time.perf_counter()
        block()
        times.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    return 1e3 * statistics.median(times) / steps, peak


@dataclass
class Steps:
    """Steps of one model: AdamW on flat fp32 buffers, the model itself in bf16."""

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
        with torch.no_grad(), vit.autocast(theta.device):
            self.teacher = self.model.net(self.model.images)
        parameter = torch.nn.Parameter(theta)  # the same memory
        parameter.grad = self.model.grad
        self.adamw = torch.optim.AdamW([parameter], lr=LR, fused=True)
        self.right = torch.zeros((), device=theta.device)

    def named(self) -> dict[str, tuple[Callable[[], object], int]]:
        """What is measured, and how many numbers it holds for a parameter between its steps: the
        weight; in training gradient and two moments; for EWC anchor and Fisher."""
        return {
            "FT": (self.fine_tuning, 4),
            "LwF": (self.lwf, 4),
            "EWC": (self.ewc, 6),
            "evaluation": (self.evaluation, 1),
        }

    def bytes(self, held: int) -> int:
        """Of fp32 numbers, `held` for a parameter, and of the images."""
        return held * self.model.theta.nbytes + self.model.images.nbytes

    def fine_tuning(self) -> None:
        self._backward(lambda logits: F.cross_entropy(logits, self.model.labels))
        self.adamw.step()

    def lwf(self) -> None:
        labels = self.model.labels
        self._backward(lambda logits: distill_loss(logits, self.teacher, labels).mean())
        self.adamw.step()

    def ewc(self) -> None:
        self._backward(lambda logits: F.cross_entropy(logits, self.model.labels))
        tensors = [self.model.theta, self.model.grad, *self.state, self.anchor, self.fisher]
        adamw_ewc_(*tensors, step=3, lr=LR, weight_decay=1e-2, lam=LAM)

    @torch.inference_mode()
    def evaluation(self) -> None:
        """Adds up the right answers, which stay on the device."""
        with vit.autocast(self.right.device):
            answers = self.model.net(self.model.images).argmax(1)
        self.right += (answers == self.model.labels).sum()

    def _backward(self, loss: Callable[[Tensor], Tensor]) -> None:
        self.model.grad.zero_()
        with vit.autocast(self.right.device):
            value = loss(self.model.net(self.model.images))
        value.backward()


if __name__ == "__main__":
    sys.exit(main())
