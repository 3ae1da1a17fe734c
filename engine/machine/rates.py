"""Rates that machines reach, from which all times are predicted.

A pass over images takes the time of its products, at a share of the data sheet's rate, and that of
what flows between them through the device's memory. `Fit` was fitted to 72 throughputs that timm's
maintainers published for nine architectures on four other GPUs; `python -m bench throughput` shows
each beside the prediction, and what is predicted of those that a fit leaves out. Nothing here was
measured on an A100 or an H100.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP_S = 9e-3  # of the host: an optimizer step through DeepSpeed, uncompiled parts and launches
BATCH_S = 3e-3  # of the host: a batch through one of the models that are evaluated
START_S = 10.0  # of a core: a job's imports and its first look at packs and weights
GRAPH_S = 45.0  # of the host: torch.compile of a graph with Inductor, once for all jobs
CORE_TFLOPS = 0.026  # that the demo reached on a core of an Intel Xeon at 2.1 GHz
# Share of the rate of a forward pass alone that the demo's passes reached on a core: 5 min 58 s on
# two cores of an Intel Xeon at 2.8 GHz, whose forward pass was timed under other load.
CORE_SHARE = 0.8
CLASS_PAIR_S, SAMPLE_PAIR_S = 1.16e-4, 1.1e-7  # of a core: of a distance between two sets
REPORT_CORES = 4


@dataclass(frozen=True)
class Fit:
    """full_rate, half_rate: share of the rate of bf16 products with sums in fp32 that a model's
    products reach; GeForce chips have half of the rate that their tensor cores could do, so neither
    memory nor power holds it up. eager, compiled: bytes through memory for each element that a
    product reads or writes, by 2 bytes an element, in each pass. training: times as many there."""

    full_rate: float = 0.53
    half_rate: float = 1.0
    eager: float = 4.1
    compiled: float = 1.9
    training: float = 1.4


FIT = Fit()


@dataclass(frozen=True)
class Chip:
    """Of the data sheet: dense TFLOP/s (bf16 with sums in fp32, fp32 without TF32), GB/s of memory,
    GB/s to another GPU in one direction. is_half: whether it has half of its tensor cores' rate."""

    bf16: float
    fp32: float
    memory: float
    link: float = 32.0
    is_half: bool = False

    def reached(self, fit: Fit = FIT) -> float:
        """The share of the products' rate that a model reaches."""
        return fit.half_rate if self.is_half else fit.full_rate


# NVIDIA's data sheets; A100, H100 and H200 as SXM, the A100 with 80 GB.
CHIPS = {
    "A100": Chip(312.0, 19.5, 2039.0, link=300.0),
    "H100": Chip(989.0, 67.0, 3350.0, link=450.0),
    "H200": Chip(989.0, 67.0, 4800.0, link=450.0),
}
CONSUMER = {
    "RTX 3090": Chip(71.0, 35.6, 936.0, is_half=True),
    "RTX 4090": Chip(165.2, 82.6, 1008.0, is_half=True),
    "RTX 5090": Chip(209.5, 104.8, 1792.0, is_half=True),
    "RTX PRO 6000 Max-Q": Chip(438.9, 110.0, 1792.0),
}


def traffic(elements: float, *, compiled: bool, training: bool, fit: Fit = FIT) -> float:
    """Bytes through memory of a pass forward, or of a training step, in bf16; elements: that the
    products of a forward pass read and write (`flops.elements_of_image`)."""
    forward = 2 * elements * (fit.compiled if compiled else fit.eager)
    return 3 * fit.training * forward if training else forward


def seconds(chip: Chip, operations: float, traffic: float, fit: Fit = FIT) -> float:
    """Of work in bf16 on a GPU."""
    return operations / (1e12 * chip.bf16 * chip.reached(fit)) + traffic / (1e9 * chip.memory)
