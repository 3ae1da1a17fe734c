"""How fast a training is: images a second, and the share of the GPU's peak (MFU)."""

from __future__ import annotations

import copy
import logging
import time

import torch
from torch import nn

from engine.machine import precision
from engine.machine.flops import of_image, peak_tflops
from engine.run import Run

log = logging.getLogger(__name__)


class Throughput:
    """Measures from one `read` to the next; a read must follow a wait for the device."""

    def __init__(self, net: nn.Module, run: Run) -> None:
        """net: not compiled yet. Where its operations cannot be counted, there is no `mfu`."""
        recipe, device = run.recipe, run.device
        kind = precision.resolve(recipe.train.precision, device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = peak_tflops(name, kind) * 1e12
        self._per_image = _flops(net, recipe.model.image_size) if self._peak else 0.0
        self._since, self._images = time.perf_counter(), 0

    def add(self, images: int) -> None:
        """images: of this rank."""
        self._images += images

    def read(self) -> dict[str, float]:
        """`images/s` and, on a GPU whose peak is known, `mfu` of this rank since the last read."""
        now = time.perf_counter()
        rate = self._images / max(now - self._since, 1e-9)
        self._since, self._images = now, 0
        values = {"images/s": rate}
        if self._per_image:
            values["mfu"] = rate * self._per_image / self._peak
        return values


def _flops(net: nn.Module, size: int) -> float:
    """Operations of an image's forward and backward pass; 0 where they cannot be counted."""
    try:
        return of_image(copy.deepcopy(net).to("meta"), size, backward=True)
    except Exception as error:  # whatever a network raises without data, the training goes on
        log.warning("trackers get no mfu: the operations cannot be counted (%s)", error)
        return 0.0
