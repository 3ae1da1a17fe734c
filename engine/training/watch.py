"""What is watched during training: the loss and the weights, which must stay finite."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from engine.errors import DivergedError
from engine.machine import ranks
from engine.methods.base import Trained
from engine.run import Run
from engine.store import tensors


class Watch:
    """Sums losses on the device, reads their mean at times, and copies the last good weights."""

    def __init__(self, run: Run, method: Trained, label: str) -> None:
        self.run = run
        self.label = label
        self.trained = {n: p for n, p in method.named_parameters() if p.requires_grad}
        self.sum = torch.zeros((), device=run.device)
        self.count = 0
        self.good: dict[str, torch.Tensor] = {}
        self.good_step = 0

    def add(self, loss: torch.Tensor) -> None:
        self.sum += loss
        self.count += 1

    def look(self, step: int, lr: float) -> float:
        """Mean loss over all ranks since the last look; DivergedError if it is not finite."""
        mean = self.sum / self.count
        if ranks.world() > 1:
            dist.all_reduce(mean)
            mean /= ranks.world()
        self.sum.zero_()
        self.count = 0
        if not torch.isfinite(mean):
            raise DivergedError(self._report("the loss is", step, lr))
        return mean.item()

    def keep(self, step: int, lr: float) -> None:
        """Copy the trained parameters of this step; DivergedError if a weight is not finite.

        The loss was computed before the last step, so it does not show the effect of that step.
        """
        trained = {name: parameter.detach() for name, parameter in self.trained.items()}
        sums = torch.stack([p.sum() for p in trained.values()])  # finite only where all numbers are
        if not torch.isfinite(sums).all():
            raise DivergedError(self._report("a weight is", step, lr))
        if not self.good:
            self.good = {n: torch.empty_like(p, device="cpu") for n, p in trained.items()}
        for name, parameter in trained.items():  # into the same pages every time
            self.good[name].copy_(parameter)
        self.good_step = step

    def _report(self, what: str, step: int, lr: float) -> str:
        recipe = self.run.recipe
        where = f"{self.label}: {what} not finite"
        advice = "lower optimizer.lr or set train.clip=1"
        if not self.good:
            return (
                f"{where} by step {step} (lr {lr:.2e}), in the first epoch; the last good weights "
                f"are the base model's, in {self.run.base.artifact.folder}; {advice}"
            )
        name = f"{recipe.method.name}-{recipe.downstream}-step{self.good_step}.safetensors"
        path = Path(recipe.runs) / "diverged" / name
        if ranks.rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors.save(self.good, path)
        return (
            f"{where} by step {step} (lr {lr:.2e}); the last good trained parameters are those "
            f"of step {self.good_step}, in {path}; {advice}"
        )
