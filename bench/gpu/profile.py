"""Where a training step's time goes: torch's profiler, and Nsight Compute where it is installed.

OUT/profile-DEVICE.json: the operators and kernels of a step of plain fine-tuning, LwF and EWC
(ViT-S, batches of 256) that took most of the device's time. With `ncu`, OUT/ewc.ncu-rep has the
sections of EWC's kernel and of distillation's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import vit
from bench.gpu.headline import Steps
from bench.gpu.stages import parser
from bench.report import Results

STEPS, SHOWN, NSIGHT_S = 5, 15, 240
KERNELS = ("_step_kernel", "_distill_kernel")  # by the names that a launch has


def main(arguments: Sequence[str] | None = None) -> int:
    known = parser("profile", __doc__)
    known.add_argument("--steps-only", action="store_true", help="what Nsight Compute looks at")
    options = known.parse_args(arguments)
    device = torch.device(options.device)
    steps = Steps(vit.build(device, options.small))
    if options.steps_only:
        steps.ewc()
        steps.lwf()
        return 0
    results = Results(options.out, "profile", device)
    for step, run in (("FT", steps.fine_tuning), ("LwF", steps.lwf), ("EWC", steps.ewc)):
        for row in profiled(run, device):
            results.add({"step": step, **row})
    ncu = shutil.which("ncu")
    if device.type != "cuda" or ncu is None:
        print("Nsight Compute: skipped, " + ("no ncu here" if ncu is None else "no GPU"))
        return 0
    return nsight(ncu, options.out)


def profiled(step: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """The most costly operators or kernels of a step, after all of them together: calls and
    microseconds a step."""
    for _ in range(3):
        step()
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=kinds) as recorded:
        for _ in range(STEPS):
            step()
        if on_gpu:
            torch.cuda.synchronize(device)
    rows: list[dict[str, Any]] = []
    for event in recorded.key_averages():
        us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        rows.append({"name": event.key[:70], "calls": event.count // STEPS, "us": us / STEPS})
    rows.sort(key=lambda row: -row["us"])
    total = {name: sum(row[name] for row in rows) for name in ("calls", "us")}
    return [{"name": "all", **total}, *rows[:SHOWN]]


def nsight(ncu: str, out: Path) -> int:
    """Nsight Compute's basic sections of this package's kernels; its exit status.

    At the size that is profiled above: a toy's buffers would fit in the L2 cache.
    """
    command = [ncu, "--set", "basic", "--launch-count", "20", "-f", "-o", str(out / "ewc")]
    command += ["-k", f"regex:{'|'.join(KERNELS)}", sys.executable, "-m", "bench.gpu.profile"]
    command += ["--device", "cuda", "--out", str(out), "--steps-only"]
    try:
        return subprocess.run(command, timeout=NSIGHT_S).returncode
    except subprocess.TimeoutExpired:
        print(f"Nsight Compute: stopped after {NSIGHT_S} s")
        return 1


if __name__ == "__main__":
    sys.exit(main())
