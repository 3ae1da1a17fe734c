"""`rib plan`: what a campaign would cost, before anything runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine import recipe
from engine.commands.status import size
from engine.grid import campaign
from engine.machine import first_line

if TYPE_CHECKING:
    from engine.grid.estimate import Device, Estimate

GPUS = (1, 8, 64)


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("plan", help="images, GPU-hours and disk of a campaign")
    parser.add_argument("name", help="a campaign of recipes/campaigns, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    parser.add_argument("--tflops", type=float, help="bf16 peak of your GPU, beside the known ones")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    grids = recipe.each_model(arguments.name, arguments.overrides)
    plans = [campaign.plan(arguments.name, grid) for grid in grids]
    first_line.show(f"counting the operations of {arguments.name}")
    from engine.grid import estimate

    if arguments.tflops is not None and arguments.tflops <= 0:
        raise ValueError("--tflops must be above 0")
    devices = [estimate.gpu(name) for name in ("A100", "H100")]
    if arguments.tflops is not None:
        devices.append(estimate.users_gpu(arguments.tflops))
    estimates = [estimate.of(plan) for plan in plans]
    for each in estimates:
        print(text(each, devices))
    if len(estimates) > 1:
        print(f"\nall {len(estimates)} models together, one after the other")
        print("\n".join(_times(estimates, devices)))


def text(estimate: Estimate, devices: Sequence[Device]) -> str:
    """The estimate of one model's grid: its work by part, and what it comes to."""
    from engine.grid.estimate import this_core
    from engine.report import console

    plan, model, columns = estimate.plan, estimate.plan.recipe.model, estimate.plan.columns
    probes = sum(column.is_probe for column in columns)
    grid = f"{len(columns) - probes} columns" + f" and a seed probe of {probes}" * bool(probes)
    core, cores = this_core(plan.recipe), len(os.sched_getaffinity(0))
    shown = [*devices, core]
    rows = []
    for name, parts in estimate.by_name().items():
        images = sum(part.images for part in parts)
        operations = sum(part.operations for part in parts)
        on_cores = parts[0] in estimate.report
        times = [
            _time(estimate.report_hours(device) if on_cores else device.hours(parts))
            for device in shown
        ]
        rows.append([name, f"{images:,}", f"{operations / 1e15:,.3g}", *times])
    title = (
        f"{plan.name}: {model.name}, {len(plan.rows)} methods x {grid}, variant "
        f"{plan.recipe.method.variant}\n{estimate.parameters / 1e6:.1f}M parameters, "
        f"{estimate.forward / 1e9:.1f} GFLOP to see an image of {model.image_size} px"
    )
    heads = ["", "images", "PFLOP", *(device.name for device in shown)]
    disk = ", ".join(f"{name} {size(count)}" for name, count in estimate.disk.items())
    return "\n".join(
        [
            console.text(title, heads, rows),
            "",
            *_times([estimate], devices),
            f"{f'CPU, {cores}':<12}{_time(estimate.hours_on_cores(core, cores))} on this machine",
            "            predicted, of GPUs from data sheets, of the CPU from timing the model;",
            "            without packs, reading, CKA, greedy choices and other seeds of a stock",
            f"jobs        {len(plan.jobs)}: what all share, {grid}, the report",
            *_jobs(estimate, devices),
            f"memory      about {estimate.memory_gb:.0f} GB a job: of the host, and of a GPU",
            f"disk        {size(sum(estimate.disk.values()))}: {disk}",
        ]
    )


def _times(estimates: Sequence[Estimate], devices: Sequence[Device]) -> list[str]:
    """The time of campaigns on some numbers of GPUs, a line a kind of GPU."""
    gpus = ", ".join(map(str, GPUS))
    lines = []
    for device in devices:
        each = [sum(estimate.hours(device, number) for estimate in estimates) for number in GPUS]
        lines.append(f"{device.name:<12}{', '.join(map(_time, each))} on {gpus} GPUs")
    return lines


def _jobs(estimate: Estimate, devices: Sequence[Device]) -> list[str]:
    """How long a column's job takes, and what several GPUs for one gain."""
    lines = []
    for device in devices:
        column = estimate.column_hours(device)
        gains = [column / estimate.column_hours(device, number) for number in (2, 8)]
        lines.append(
            f"  a column  {_time(column)} on one {device.name}; --gpus-per-job 2, 8: "
            f"{gains[0]:.2g}, {gains[1]:.2g} times as fast"
        )
    if idle := [f"{estimate.idle(n)} of {n}" for n in GPUS if estimate.idle(n)]:
        lines.append(f"  idle      {', '.join(idle)} GPUs have no column")
    return lines


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.3g} h"
    return f"{60 * hours:.3g} min" if 60 * hours >= 1 else f"{3600 * hours:.2g} s"
