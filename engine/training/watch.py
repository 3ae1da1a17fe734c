"""What is watched during training: the loss and the weights, which must stay finite."""

from __future__ import annotations

import torch
import torch.distributed as dist

from engine.errors import DivergedError
from engine.machine import ranks
from engine.methods.base import Trained


class Watch:
    """Sums losses on the device and reads their mean at times. Raises DivergedError, naming
    `label`, where a loss or a weight is not finite."""

    def __init__(self, method: Trained, device: torch.device, label: str) -> None:
        self.label = label
        self.trained = [p for p in method.parameters() if p.requires_grad]
        self.sum = torch.zeros((), device=device)
        self.count = 0

    def add(self, loss: torch.Tensor) -> None:
        self.sum += loss
        self.count += 1

    def look(self, step: int, lr: float) -> float:
        """Mean loss over all ranks since the last look."""
        mean = self.sum / self.count
        if ranks.world() > 1:
            dist.all_reduce(mean)
            mean /= ranks.world()
        self.sum.zero_()
        self.count = 0
        self._check(mean, "the loss", step, lr)
        return mean.item()

    def check_weights(self, step: int, lr: float) -> None:
        """The loss was computed before the last step, so it does not show that step's effect."""
        sums = [p.detach().sum() for p in self.trained]  # finite only where all numbers are
        self._check(torch.stack(sums), "a weight", step, lr)

    def _check(self, values: torch.Tensor, what: str, step: int, lr: float) -> None:
        if not torch.isfinite(values).all():
            raise DivergedError(
                f"{self.label}: {what} is not finite by step {step} (lr {lr:.2e}); lower "
                "optimizer.lr or set train.clip=1"
            )
