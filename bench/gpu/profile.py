"""Where a training step's time goes: torch's profiler, and Nsight Compute where it is installed.

OUT/profile.json: the operators and kernels of a step of plain fine-tuning, LwF and EWC (ViT-S,
batches of 256) that took most of the device's time. With `ncu`, OUT/ewc.ncu-rep has the sections of
EWC's kernel and of distillation's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import report, vit
from bench.contest import Scale
from bench.gpu import program
from bench.gpu.headline import Steps

STEPS, SHOWN, NSIGHT_S = 5, 15, 240
KERNELS = ("_step_kernel", "_distill_kernel")  # by the names that a launch has


def main(arguments: Sequence[str] | None = None) -> int:
    parser = program.parser("profile", __doc__)
    parser.add_argument("--steps-only", action="store_true", help="what Nsight Compute looks at")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    steps = Steps(vit.build(device, Scale(quick=options.small)))
    if options.steps_only:
        steps.ewc()
        steps.lwf()
        return 0
    results: dict[str, Any] = {"machine": report.machine(device), "steps": {}}
    for name, step in (("FT", steps.fine_tuning), ("LwF", steps.lwf), ("EWC", steps.ewc)):
        results["steps"][name] = profiled(step, device)
        report.write(options.out / "profile.json", results)
        print(name)
        for row in results["steps"][name]["most"]:
            print(f"  {row['us']:9.0f} us  {row['calls']:4d} calls  {row['name'][:70]}", flush=True)
    ncu = shutil.which("ncu")
    if device.type != "cuda" or ncu is None:
        print("Nsight Compute: skipped, " + ("no ncu here" if ncu is None else "no GPU"))
        return 0
    return nsight(ncu, options.out)


def profiled(step: Any, device: torch.device) -> dict[str, Any]:
    """Calls of a step by operator or kernel, and the most costly, with microseconds a step."""
    for _ in range(3):
        step()
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=kinds) as recorded:
        for _ in range(STEPS):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    on_gpu = device.type == "cuda"
    rows = [
        {
            "name": event.key,
            "calls": event.count // STEPS,
            "us": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / STEPS,
        }
        for event in recorded.key_averages()
    ]
    rows.sort(key=lambda row: -row["us"])
    return {
        "us": sum(row["us"] for row in rows),
        "calls": sum(row["calls"] for row in rows),
        "most": rows[:SHOWN],
    }


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
