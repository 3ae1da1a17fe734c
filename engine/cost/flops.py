"""Counts the operations and memory traffic of a network's passes when torch dispatches them."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from engine.cost.rates import CHIPS, product_tflops
from engine.machine.devices import cpu_threads

if TYPE_CHECKING:
    from engine.recipe.schema import ModelRecipe

MEASURED, MEASURED_S = 4e9, 0.5  # operations per timed pass, and seconds of all passes
Pass = Callable[[torch.Tensor], torch.Tensor]  # of a network or its backbone, of images
SLOWER = {"PCIE", "PCI", "NVL", "MIG"}  # other variants or parts of a chip


def count_network(recipe: ModelRecipe) -> tuple[int, int, float, float, float]:
    """Returns the values of a `Network` without its head, for models that no table has."""
    from engine import models  # here: bench/headline.py imports this module with torch alone

    size = recipe.image_size
    with torch.device("meta"):
        net = models.create(recipe, 2).eval()
    head, features = models.head(net), partial(models.features, net)
    parameters = sum(p.numel() for p in net.parameters()) - 2 * (head.in_features + 1)
    operations, elements = of_image(features, size), elements_of_image(features, size)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    share = forward_tflops(net, size, layout) / product_tflops()
    return parameters, head.in_features, operations, elements, share


def flops(run: Callable[[], object]) -> float:
    """Returns the operations of matrix products and convolutions in `run`, with backward passes.

    A multiplication and an addition count as two. Tensors may be on the meta device.
    """
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return float(counter.get_total_flops())


def of_image(
    net: Callable[[torch.Tensor], torch.Tensor], size: int, *, backward: bool = False
) -> float:
    """Returns the operations of one image's forward (and backward) pass; `net` is on meta."""
    images = torch.empty(2, 3, size, size, device="meta")  # batch norms need two in training
    return flops(lambda: net(images).sum().backward() if backward else net(images)) / 2


class _Products(TorchDispatchMode):
    """Sums the elements that products and convolutions read and write, except weights.

    Excludes products within attention: a fused kernel keeps them on the chip.
    """

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (name := func.overloadpacket.__name__) in ("addmm", "mm", "convolution"):
            self.elements += args[name == "addmm"].numel() + result.numel()
        return result


def elements_of_image(net: Pass, size: int) -> float:
    """Returns the elements that products of one image's forward pass move; `net` is on meta."""
    with torch.no_grad(), _Products() as counted:
        net(torch.empty(2, 3, size, size, device="meta"))
    return counted.elements / 2


def forward_tflops(net: nn.Module, size: int, layout: torch.memory_format) -> float:
    """Returns the TFLOP/s of a forward pass on one core of this machine.

    Takes the best of several passes in half a second of processor time, so other load matters
    little. net: on the meta device; it is moved to the CPU with arbitrary weights.
    """
    operations = of_image(net, size)
    net.to_empty(device="cpu").to(memory_format=layout)  # type: ignore[call-overload]
    for tensor in itertools.chain(net.parameters(), net.buffers()):
        tensor.data.fill_(0.01 if tensor.is_floating_point() else 0)  # denormals would be slow
    images, times = max(2, min(64, int(MEASURED / operations))), []
    x = torch.full((images, 3, size, size), 0.5).to(memory_format=layout)
    with cpu_threads(1), torch.inference_mode():
        while len(times) < 2 or sum(times) < MEASURED_S:
            begin = time.process_time()
            net(x)
            times.append(time.process_time() - begin)
    return images * operations / min(times) / 1e12


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Counts the forward pass's operations for each computed gradient: of input and weight.

    torch's formula treats a grouped convolution's weight gradient as dense.
    """
    needs_x, needs_weight = rest[7][:2]
    forward = 2 * gradient[0] * math.prod(gradient[2:]) * math.prod(weight)
    return forward * (needs_x + needs_weight)


def peak_tflops(name: str, precision: str) -> float:
    """Returns the data sheet's dense peak, in bf16 or fp32, of a GPU by torch's name; else 0."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    known = [getattr(chip, precision) for label, chip in CHIPS.items() if label in words]
    return known[0] if known and not words & SLOWER else 0.0


@cache
def peak(device: torch.device, precision: str) -> float:
    """Returns operations per second: a known GPU's data sheet, otherwise measured by products."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if known := peak_tflops(name, precision):
        return 1e12 * known
    side = 4096 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the product
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / min(times)
