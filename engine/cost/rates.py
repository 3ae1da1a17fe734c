"""Rates of machines, from which all times are predicted.

A pass over images takes the time of its products, at a share of the data sheet's rate, plus the
time to move tensors between products through device memory. `Fit` was fitted to 72 throughputs of
nine architectures on four other GPUs, published by timm's maintainers. `python -m bench
published_throughput` compares each with its prediction and with predictions of fits that leave it
out. NVIDIA's published trainings on an H100 are slower than the fit, so Hopper has a share of its
own. Nothing here was measured on an A100 or an H100.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

STEP_S = 9e-3  # host time of an optimizer step: DeepSpeed, uncompiled parts and launches
BATCH_S = 3e-3  # host time of a batch through one evaluated model
START_S = 10.0  # core time of a job's imports and of opening packs and weights
GRAPH_S = 45.0  # host time of torch.compile for a graph with Inductor, once for all jobs
TRACE_S = 20.0  # host time of Dynamo's trace of a graph whose code is cached, once for each process
NOTICE_S = 40.0  # from the end of a Slurm job until Snakemake starts what needs it, on average
CORE_TFLOPS = 0.026  # measured in the demo on a core of an Intel Xeon at 2.1 GHz
# Rate of the demo's passes / rate of a forward pass alone, on a core: 5 min 58 s on two cores of an
# Intel Xeon at 2.8 GHz, whose forward pass was timed under other load.
CORE_SHARE = 0.8
CLASS_PAIR_S, SAMPLE_PAIR_S = 1.16e-4, 1.1e-7  # core time of a distance between two datasets
GPU_CLASS_PAIR_S, GPU_SAMPLE_PAIR_S = 1.7e-6, 1.2e-10  # the same on an A100 (predicted)
SPREAD = 1.25  # shown range, by choice: single published throughputs may be further off


@dataclass(frozen=True)
class Fit:
    """Fitted constants of the prediction.

    full_rate, half_rate: share of the rate of bf16 products with fp32 sums that a model's products
    reach. GeForce chips run at half of what their tensor cores could do (`half_rate`), so neither
    memory nor power limits them. eager, compiled: memory traffic of a pass, in units of 2 bytes per
    element that a product reads or writes. training: factor for the passes of a training step.
    """

    full_rate: float = 0.53
    half_rate: float = 1.0
    eager: float = 4.1
    compiled: float = 1.9
    training: float = 1.4


FIT = Fit()


@dataclass(frozen=True)
class Chip:
    """Data sheet values of a GPU.

    bf16 (with fp32 sums), fp32 (without TF32): dense TFLOP/s. memory: GB/s. link: GB/s to another
    GPU in one direction. is_half: whether the chip runs at half of its tensor cores' rate. share:
    of the rate that a model's products reach, if not the fit's.
    """

    bf16: float
    fp32: float
    memory: float
    link: float = 32.0
    is_half: bool = False
    share: float = 0.0

    def reached(self, fit: Fit = FIT) -> float:
        """Returns the share of the products' rate that a model reaches."""
        return self.share or (fit.half_rate if self.is_half else fit.full_rate)


# Between NeMo's ViT-g/14 (178.5 images/s in training) and BioNeMo's ViT-S/16 (7,716), which alone
# would give 0.36 and 0.46.
HOPPER = 0.40

# NVIDIA's data sheets; A100, H100 and H200 as SXM, the A100 with 80 GB.
CHIPS = {
    "A100": Chip(312.0, 19.5, 2039.0, link=300.0),
    "H100": Chip(989.0, 67.0, 3350.0, link=450.0, share=HOPPER),
    "H200": Chip(989.0, 67.0, 4800.0, link=450.0, share=HOPPER),
}
CONSUMER = {
    "RTX 3090": Chip(71.0, 35.6, 936.0, is_half=True),
    "RTX 4090": Chip(165.2, 82.6, 1008.0, is_half=True),
    "RTX 5090": Chip(209.5, 104.8, 1792.0, is_half=True),
    "RTX PRO 6000 Max-Q": Chip(438.9, 110.0, 1792.0),
}


def traffic(elements: float, *, compiled: bool, training: bool, fit: Fit = FIT) -> float:
    """Returns the bytes through memory of a forward pass, or of a training step, in bf16.

    elements: elements that the products of a forward pass read and write
    (`flops.elements_of_image`).
    """
    forward = 2 * elements * (fit.compiled if compiled else fit.eager)
    return 3 * fit.training * forward if training else forward


def seconds(chip: Chip, operations: float, traffic: float, fit: Fit = FIT) -> float:
    """Returns the time of bf16 work on a GPU. operations: FLOPs; traffic: bytes."""
    return operations / (1e12 * chip.bf16 * chip.reached(fit)) + traffic / (1e9 * chip.memory)


def product_tflops() -> float:
    """Returns the TFLOP/s of fp32 matrix products on one core of this machine, the best of a fifth
    of a second."""
    side, count = 64, 64  # BLAS libraries compute products of this size in one thread
    x, times = np.ones((count, side, side), np.float32), []
    while sum(times) < 0.2:
        begin = time.process_time()
        np.matmul(x, x)
        times.append(time.process_time() - begin)
    return 2 * count * side**3 / min(times) / 1e12
