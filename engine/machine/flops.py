"""Operations and memory traffic of a pass, counted where torch dispatches them."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from engine.machine import threads
from engine.machine.rates import CHIPS

MEASURED, MEASURED_S = 4e9, 0.5  # operations of a pass that is timed, and seconds of all
SLOWER = {"PCIE", "PCI", "NVL", "MIG"}  # other forms and parts of a chip


def flops(run: Callable[[], object]) -> float:
    """Operations of matrix products and convolutions in `run`, backward passes included.

    A multiplication and an addition count two. Tensors may be on the meta device.
    """
    formulas = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return float(counter.get_total_flops())


def of_image(net: nn.Module, size: int, *, backward: bool = False) -> float:
    """Operations of an image's pass forward, and back where asked, of a network on `meta`."""
    images = torch.empty(2, 3, size, size, device="meta")  # batch norms need two in training
    return flops(lambda: net(images).sum().backward() if backward else net(images)) / 2


class _Products(TorchDispatchMode):
    """Adds up the elements that products and convolutions read and write, weights aside. Those
    within attention are left out: a fused kernel keeps them on the chip."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (name := func.overloadpacket.__name__) in ("addmm", "mm", "convolution"):
            self.elements += args[name == "addmm"].numel() + result.numel()
        return result


def elements_of_image(net: nn.Module, size: int) -> float:
    """Elements that the products of an image's pass forward read and write, of a network on
    `meta`."""
    with torch.no_grad(), _Products() as counted:
        net(torch.empty(2, 3, size, size, device="meta"))
    return counted.elements / 2


def forward_tflops(net: nn.Module, size: int, layout: torch.memory_format) -> float:
    """TFLOP/s that a core of this machine reaches in a forward pass of a network on `meta`, in
    processor time, so that other load matters little: the best of several, in half a second.

    The network is moved to the CPU, with weights of no meaning.
    """
    operations = of_image(net, size)
    net.to_empty(device="cpu").to(memory_format=layout)  # type: ignore[call-overload]
    for tensor in itertools.chain(net.parameters(), net.buffers()):
        tensor.data.fill_(0.01 if tensor.is_floating_point() else 0)  # no denormal, which is slow
    images, times = max(2, min(64, int(MEASURED / operations))), []
    x = torch.full((images, 3, size, size), 0.5).to(memory_format=layout)
    with threads.threads(1), torch.inference_mode():
        while len(times) < 2 or sum(times) < MEASURED_S:
            begin = time.process_time()
            net(x)
            times.append(time.process_time() - begin)
    return images * operations / min(times) / 1e12


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """The forward pass's operations for each gradient that is computed: input's and weight's.

    torch's formula takes a grouped convolution's weight gradient for a dense one.
    """
    needs_x, needs_weight = rest[7][:2]
    forward = 2 * gradient[0] * math.prod(gradient[2:]) * math.prod(weight)
    return forward * (needs_x + needs_weight)


def peak_tflops(name: str, precision: str) -> float:
    """The data sheet's dense peak of a GPU by the name that torch tells; 0 where it is not known.

    precision: bf16 | fp32.
    """
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    known = [getattr(chip, precision) for label, chip in CHIPS.items() if label in words]
    return known[0] if known and not words & SLOWER else 0.0


@cache
def peak(device: torch.device, precision: str) -> float:
    """Operations a second: the data sheet's of a known GPU, else of the best product seen here."""
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
