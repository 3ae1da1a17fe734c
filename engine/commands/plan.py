"""`rib plan`: predict a campaign's cost before anything runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.campaigns.make_plan import make_plan
from engine.commands.status import size
from engine.cost.rates import SPREAD
from engine.machine.terminal import announce
from engine.recipe.campaigns import each_model
from engine.report import console

if TYPE_CHECKING:
    from engine.campaigns.simulation import Planned
    from engine.cost.estimate import Device

GPUS = (1, 8, 64)


def run(arguments: argparse.Namespace) -> None:
    grids = each_model(arguments.name, arguments.overrides)
    plans = [make_plan(arguments.name, grid) for grid in grids]
    announce(f"counting the operations of {arguments.name}")
    from engine.campaigns import simulation
    from engine.cost import estimate  # here, because it imports numpy

    devices = [estimate.gpu(name) for name in ("A100", "H100")]
    if arguments.tflops:
        devices.append(estimate.users_gpu(arguments.tflops))
    grids = [simulation.planned(plan) for plan in plans]
    for grid in grids:
        print(text(grid, devices, estimate.this_core(grid.costs.network)))
    if len(grids) > 1:
        print(f"\nall {len(grids)} models in one workflow")
        print("\n".join(_times(grids, devices)))


def text(grid: Planned, devices: Sequence[Device], core: Device) -> str:
    """The estimate for one model's grid: work by part, and totals. core: of this machine."""
    plan, estimate = grid.plan, grid.costs
    model, net, columns = plan.recipe.model, estimate.network, plan.columns
    again = sum(column.is_replicate for column in columns)
    counts = f"{len(columns) - again} columns" + (
        f", {again} of them on a second seed" if again else ""
    )
    cores = len(os.sched_getaffinity(0))
    shown, here = [*devices, core], _time(grid.hours_on_cores(core, cores))
    rows = []
    for name, parts in estimate.by_name().items():
        images = sum(part.images for part in parts)
        operations = sum(part.operations for part in parts)
        times = [_time(device.hours(parts)) for device in shown]
        rows.append([name, f"{images:,}", f"{operations / 1e15:,.2g}", *times])
    title = (
        f"{plan.name}: {model.name}, {len(plan.rows)} methods x {counts}, variant "
        f"{plan.recipe.method.variant}\n{net.parameters / 1e6:.1f}M parameters, "
        f"{net.forward / 1e9:.1f} GFLOP per forward pass of an image of {model.image_size} px"
    )
    heads = ["", "images", "PFLOP", *(device.name for device in shown)]
    disk = ", ".join(f"{name} {size(count)}" for name, count in estimate.disk.items())
    return "\n".join(
        [
            console.text(title, heads, rows),
            "",
            *_times([grid], devices),
            f"{f'CPU, {cores}':<12}{here} on this machine",
            "            predicted: GPUs from data sheets and others' measurements, shown",
            "            as a factor of 1.25 either way; the CPU from timing a matrix product;",
            "            excludes encoding, reading, CKA, probe sets, greedy soups, other seeds",
            f"jobs        {len(plan.jobs)}: preparation, {counts}, distances, report",
            *(
                f"  a column  {_time(estimate.column_hours(device))} on one {device.name}"
                for device in devices
            ),
            f"memory      about {estimate.memory_gb():.0f} GB per job, on the host and on a GPU",
            f"disk        {size(sum(estimate.disk.values()))}: {disk}",
        ]
    )


def _times(grids: Sequence[Planned], devices: Sequence[Device]) -> list[str]:
    """The time of campaigns on 1, 8 and 64 GPUs, which share a workflow, one line per kind of GPU,
    and the best options with the first."""
    from engine.campaigns import simulation

    lines, details = [], []
    for device in devices:
        shapes = [simulation.best_shape(grids, device, number) for number in GPUS]
        schedules = [
            simulation.simulated(grids, device, number, shape)
            for number, shape in zip(GPUS, shapes, strict=True)
        ]
        hours = ", ".join(_range(schedule.hours) for schedule in schedules)
        lines.append(f"{device.name:<12}{hours} on {', '.join(map(str, GPUS))} GPUs")
        ranks, jobs = (", ".join(map(str, of_all)) for of_all in zip(*shapes, strict=True))
        details.append(f"{'':<12}{device.name}: --gpus-per-job {ranks}; --jobs-per-column {jobs}")
    return [*lines, details[0]]


def _time(hours: float) -> str:
    number, unit = _in_unit(hours)
    return f"{number} {unit}"


def _range(hours: float) -> str:
    """A predicted time on a GPU, as a range of `rates.SPREAD` either way."""
    (low, unit), (high, last) = _in_unit(hours / SPREAD), _in_unit(hours * SPREAD)
    return f"{low} {unit} to {high} {last}" if unit != last else f"{low} to {high} {unit}"


def _in_unit(hours: float) -> tuple[str, str]:
    """A time with two digits, and its unit."""
    for unit, seconds in (("h", 3600), ("min", 60), ("s", 1)):
        if 3600 * hours >= seconds or unit == "s":
            number = float(f"{3600 * hours / seconds:.2g}")
            return f"{number:,.0f}" if number >= 10 else f"{number:g}", unit
    raise AssertionError
