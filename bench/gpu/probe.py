"""The first stage: what this GPU costs the host, what it can do at best, and a step of each method.

Each item is written to OUT/probe.json as soon as it is known, beside what was predicted for an H100
before any GPU had run this; one that fails says why, and the next one follows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from bench import report, roofline
from bench.gpu import program
from bench.gpu.stages import ENGINE

# The methods that train by steps, with the campaign that has them.
STEPPED: dict[str, str] = {
    **dict.fromkeys(("fine_tune", "ewc", "lwf", "visual_prompt", "lora"), "imagenet_rib"),
    **dict.fromkeys(("l2sp", "spd"), "imagenet_rib_plus"),
}
# For an H100, by reading and by others' measurements.
PREDICTED = {
    "launch of an operator": "5 to 10 us of the host",
    "launch of a kernel": "20 to 34 us of the host",
    "eigvalsh": "1.4 ms a matrix of 48 x 48 in float64",
    "roofline": "copy 3.0 TB/s, matmul 0.6 to 0.8 of 989 TFLOP/s",
    "bf16": "the model computes in bfloat16, through DeepSpeed too",
    "compilations": "no kernel and no model is compiled for a second size",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = program.parser("probe", __doc__).parse_args(arguments)
    device = torch.device(options.device)
    items: dict[str, Callable[[], Any]] = {
        "launch of an operator": lambda: operator_us(device),
        "launch of a kernel": lambda: kernel_us(device),
        "eigvalsh": lambda: eigvalsh_us(device, 10 if options.small else 1000),
        "roofline": lambda: asdict(roofline.measure(device, options.small)),
        "compilations": lambda: compilations(device),
        "bf16": lambda: model_dtype(device),
    }
    items |= {f"step of {name}": lambda name=name: step_ms(name, device, options.small)
              for name in STEPPED}  # fmt: skip
    results: dict[str, Any] = {"machine": report.machine(device), "items": {}}
    failed = False
    for name, measure in items.items():
        begin = time.perf_counter()
        try:
            entry = measure()
            entry = entry if isinstance(entry, dict) else {"value": entry}
        except Missing as error:
            entry = {"skipped": str(error)}
        except Exception as error:
            entry, failed = {"error": f"{type(error).__name__}: {error}"}, True
        entry |= {"took_s": time.perf_counter() - begin}
        if name in PREDICTED:
            entry["predicted"] = PREDICTED[name]
        results["items"][name] = entry
        report.write(options.out / "probe.json", results)
        print(
            f"{name}: {', '.join(f'{k} {program.short(v)}' for k, v in entry.items())}", flush=True
        )
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
    times = _times_s(lambda: torch.linalg.eigvalsh(symmetric), device, 3)
    return {"us": 1e6 * min(times) / matrices, "matrices": float(matrices)}


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


def model_dtype(device: torch.device) -> str:
    """The dtype in which a model's first product computes while the engine trains it."""
    seen: set[str] = set()

    def watch(module: nn.Module, _: object, output: Any) -> None:
        if isinstance(module, nn.Linear):
            seen.add(str(output.dtype).removeprefix("torch."))

    with _engine(device, small=True) as bench:
        words = ("train.compile=never",)  # a hook would break the graph
        with bench.engine(bench.builder("fine_tune", *words)) as (method, epoch):
            for module in method.net.blocks.modules():
                module.register_forward_hook(watch)
            epoch()
    (dtype,) = seen
    if device.type == "cuda" and dtype != "bfloat16":
        raise AssertionError(f"the model computes in {dtype}, not in bfloat16")
    return dtype


def step_ms(name: str, device: torch.device, small: bool) -> dict[str, float]:
    """Milliseconds of a step through DeepSpeed, as a campaign trains: the median of epochs."""
    with _engine(device, small) as bench:
        steps = bench.images // bench.files.batch
        with bench.engine(bench.builder(name, campaign=STEPPED[name])) as (_, epoch):
            epoch()  # compiles, and makes what the method needs
            times = _times_s(epoch, device, 2 if small else 5)
    ms = 1e3 * statistics.median(times) / steps
    return {"ms": ms, "images_s": 1e3 * bench.files.batch / ms}


@contextlib.contextmanager
def _engine(device: torch.device, small: bool) -> Iterator[Any]:
    """`bench.train`'s photos and model: ViT-B/16 at 224 px with batches of 64; small: a toy."""
    missing = [name for name in ENGINE if importlib.util.find_spec(name) is None]
    if missing:
        raise Missing(f"this Python lacks {', '.join(missing)}")
    from bench import train

    sizes = ("test_vit", 32, 8, 4) if small else ("vit_base_patch16_224", 224, 16 * 64, 64)
    with train.opened(device, *sizes, drawn=True) as bench:
        yield bench


def _times_s(run: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    run()
    times = []
    for _ in range(rounds):
        _wait(device)
        begin = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
