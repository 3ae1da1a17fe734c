"""What this GPU costs the host, and what it compiles.

Rows go to OUT/probe-DEVICE.json as soon as they are known; docs/gpu.md has the predictions. An item
that fails says why, and the next one follows.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.gpu.stages import ENGINE, lacking, parser
from bench.report import Results
from bench.timing import interleave


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser("probe", __doc__).parse_args(arguments)
    device = torch.device(options.device)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "launch of an operator": lambda: operator_us(device),
        "launch of a kernel": lambda: kernel_us(device),
        "eigvalsh": lambda: eigvalsh_us(device, 10 if options.small else 1000),
        "compilations": lambda: compilations(device),
        "bf16": lambda: model_dtype(device),
    }
    results = Results(options.out, "probe", device)
    failed = False
    for item, measure in measures.items():
        row: dict[str, Any] = {"item": item}
        try:
            row |= measure()
        except Missing as error:
            row["skipped"] = str(error)
        except Exception as error:
            row["error"], failed = f"{type(error).__name__}: {error}", True
        results.add(row)
    return int(failed)


class Missing(Exception):
    """An item that this machine or this Python cannot have."""


def operator_us(device: torch.device, launches: int = 1000) -> dict[str, float]:
    """Microseconds of the host, and until the device is done, for an addition to one number."""
    number = torch.zeros(1, device=device)
    return _launches_us(lambda: number.add_(1), device, launches)


def kernel_us(device: torch.device, launches: int = 1000) -> dict[str, float]:
    """The same for a kernel of this package: a step of one number."""
    if device.type != "cuda":
        raise Missing("a kernel is launched on a GPU only")
    from kernels.ewc import sgd_ewc_

    tensors = list(torch.zeros(3, 1, device=device))
    return _launches_us(lambda: sgd_ewc_(*tensors, lr=0.1), device, launches)


def _launches_us(run: Callable[[], object], device: torch.device, count: int) -> dict[str, float]:
    for _ in range(10):
        run()
    _wait(device)
    begin = time.perf_counter()
    for _ in range(count):
        run()
    host = time.perf_counter() - begin
    _wait(device)
    return {"host_us": 1e6 * host / count, "all_us": 1e6 * (time.perf_counter() - begin) / count}


def eigvalsh_us(device: torch.device, matrices: int) -> dict[str, float]:
    """Microseconds a matrix of 48 x 48 in float64, of many at once."""
    x = torch.randn(matrices, 48, 48, device=device, dtype=torch.float64)
    symmetric = x + x.mT
    times = interleave([lambda: torch.linalg.eigvalsh(symmetric)], device, seconds=0, least=3)[0]
    return {"us": 1e3 * min(times) / matrices, "matrices": float(matrices)}


def compilations(device: torch.device) -> dict[str, int]:
    """What batches of several sizes compile: kernels of a loss, and graphs of a model."""
    from torch._dynamo.utils import counters

    results = {}
    if device.type == "cuda":
        from kernels import distill

        for batch in (16, 17, 33, 64):
            logits = torch.randn(batch, 1000, device=device)
            labels = torch.zeros(batch, dtype=torch.int64, device=device)
            distill.distill_loss(logits, None, labels)
        (cache, *_) = distill._distill_kernel.device_caches[device.index or 0]
        results["kernels"] = len(cache)
    torch._dynamo.reset()
    counters.clear()
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)).to(device)
    net = torch.compile(net, backend="eager")  # what matters is how often it is asked
    for batch in (16, 17, 33, 64):
        x = torch.zeros(batch, 8, device=device)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        with torch.no_grad():
            net(x)
    return results | {"graphs": counters["stats"]["unique_graphs"]}


def model_dtype(device: torch.device) -> dict[str, str]:
    """The dtype in which a model's products compute while the engine trains it."""
    if missing := lacking(ENGINE):
        raise Missing(f"this Python lacks {', '.join(missing)}")
    from engine.grid.speed import Bench
    from engine.machine import ranks

    seen: set[str] = set()

    def watch(module: nn.Module, _: object, output: Any) -> None:
        if isinstance(module, nn.Linear):
            seen.add(str(output.dtype).removeprefix("torch."))

    ranks.start(device.type)
    # Not compiled: a hook would break the graph.
    words = ("model.arch=test_vit", "model.image_size=32", "train.compile=never")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), "file", words, device, steps=2)
        with bench.training("fine_tune", 4) as training:
            for module in training.method.net.blocks.modules():  # type: ignore[union-attr]
                module.register_forward_hook(watch)
            training.run()
    (dtype,) = seen
    if device.type == "cuda" and dtype != "bfloat16":
        raise AssertionError(f"the model computes in {dtype}, not in bfloat16")
    return {"dtype": dtype}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
