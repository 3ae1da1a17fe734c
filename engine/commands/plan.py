"""`rib plan`: what a campaign would cost, before anything runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine import recipe
from engine.errors import RecipeError
from engine.grid import campaign
from engine.machine import first_line, quiet
from engine.recipe import modules

if TYPE_CHECKING:
    from engine.cost.dry_run import Work
    from engine.cost.estimate import Device, Estimate

ORDER = ("features", "fisher", "training", "evaluation", "cka")
KINDS = {
    "features": "features of the pre-trained model",
    "fisher": "Fisher",
    "cka": "CKA, before and after",
}
GPUS = (1, 8, 64)
SHAPES = {
    "columns": "a job trains a column and evaluates it on all sets",
    "split": "training a column, or a row of it, and evaluation on a set are jobs",
}
UNITS = {"hours": 1, "minutes": 60, "seconds": 3600}  # of one hour


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("plan", help="images, GPU-hours, disk and jobs of a campaign")
    parser.add_argument("name", help="a campaign of recipes/campaigns, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    parser.add_argument("--mfu", type=float, help="share of the peak; default: 0.4")
    parser.add_argument("--tflops", type=float, help="peak of one GPU; default: an A100's in bf16")
    parser.add_argument("--fp32-tflops", type=float, help="the same in fp32; default: an A100's")
    parser.add_argument(
        "--trust", action="store_true", help="run users' methods, to count their operations"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    quiet.libraries()
    grids = recipe.each_model(arguments.name, arguments.overrides)
    recipe.methods_of(arguments.name, grids[0])  # a wrong name shows before imports
    first_line.show(f"counting the operations of {arguments.name}")
    from engine.cost import estimate

    given = {name: getattr(arguments, name) for name in ("tflops", "fp32_tflops", "mfu")}
    device = estimate.Device(**{name: value for name, value in given.items() if value is not None})
    if not 0 < device.mfu <= 1 or min(device.tflops, device.fp32_tflops) <= 0:
        raise ValueError("--mfu must be above 0 and at most 1, --tflops and --fp32-tflops above 0")
    estimates = []
    for words in grids:
        plan = campaign.plan(arguments.name, words, cores=1)
        if not arguments.trust:
            _refuse_users_methods(plan)
        estimates.append(estimate.of(plan))
        print(text(estimates[-1], device))
    if len(estimates) > 1:
        print(total(estimates, device))


def _refuse_users_methods(plan: campaign.Plan) -> None:
    """Raise RecipeError for a method in a user's file: to count its operations runs the file."""
    for method in plan.methods:
        module = recipe.load(plan.name, plan.overrides, method=method).method.module
        if modules.is_users(module):
            raise RecipeError(
                f"{method}: to estimate it runs {module}; read that file, then add --trust"
            )


def text(estimate: Estimate, device: Device) -> str:
    """The estimate of one model's grid: its work by kind, and what it comes to."""
    from engine.cost import shapes
    from engine.report import console

    plan, resolved, columns = estimate.plan, estimate.recipe, estimate.plan.columns
    unit = _unit(shapes.hours([estimate], shapes.columns([estimate]), device, 1))
    kinds: dict[str, list[Work]] = {}
    for work in sorted(estimate.work, key=lambda work: ORDER.index(work.kind)):
        kind = f"training: {work.method}" if work.method else KINDS.get(work.kind, work.kind)
        kinds.setdefault(kind, []).append(work)
    title = (
        f"{plan.name}: {resolved.model.name}, {len(plan.methods)} methods x {len(columns)} "
        f"columns, variant {resolved.method.variant}\n"
        f"{estimate.parameters / 1e6:.1f}M parameters, {estimate.forward_flops / 1e9:.1f} GFLOP to "
        f"see an image of {resolved.model.image_size} px"
    )
    table = console.text(
        title,
        ["", "images", "steps", "PFLOP", f"GPU-{unit}"],
        *(
            [_row(kind, works, device, unit) for kind, works in group]
            for group in (kinds.items(), [("all", estimate.work)])
        ),
    )
    mixed = [len(cell.entries) for cell in estimate.cells if cell.entries and not cell.export]
    grid = len(plan.methods) * len(columns) * plan.seeds
    trained = grid - len(mixed)
    beside = sum(cell.export is not None for cell in estimate.cells) - trained
    through = sum(work.images for work in estimate.work if work.kind == "evaluation")
    used = sorted({work.precision for work in estimate.work})
    peaks = " and ".join(f"{device.peaks[name]:g} TFLOP/s ({name})" for name in used)
    disk = ", ".join(f"{name} {_size(size)}" for name, size in estimate.disk.items())
    lines = [
        table,
        "",
        *_shapes([estimate], device, unit),
        f"           predicted, at {device.mfu:.0%} of {peaks},",
        "           without reading images, starting kernels and the report's distances",
        f"jobs       {len(columns) + 2}: what all share, {len(columns)} columns, the report",
        f"cells      {grid}: {trained} trained, {len(mixed)} mixed in {sum(mixed)} points; and "
        f"{beside} models that they start from",
        f"evaluated  {estimate.rows:,} predictions, {through:,} of them through a whole model",
        f"disk       {_size(sum(estimate.disk.values()))}: {disk}",
    ]
    if estimate.checkpoints:
        minutes = f"{resolved.train.checkpoint_minutes:g} minutes"
        lines.append(
            f"           and, while a training of over {minutes} goes on, "
            f"{_size(estimate.checkpoints)} for its checkpoints"
        )
    if any(cell.chosen for cell in estimate.cells):
        lines.append("           greedy choices depend on results: counted at their most")
    if resolved.evaluate.half_width is not None:
        lines.append("           evaluate.half_width may end it earlier: counted to the budget")
    return "\n".join(lines)


def total(estimates: Sequence[Estimate], device: Device) -> str:
    """What the grids of several models take together; models of one transform share packs."""
    from engine import models
    from engine.cost import shapes

    packs = {models.transform(each.recipe.model): each.disk["packs"] for each in estimates}
    rest = sum(sum(each.disk.values()) - each.disk["packs"] for each in estimates)
    unit = _unit(shapes.hours(estimates, shapes.columns(estimates), device, 1))
    jobs = sum(map(len, shapes.columns(estimates)))
    lines = [
        f"\nall {len(estimates)} models together, as one workflow",
        *_shapes(estimates, device, unit),
        f"jobs       {jobs}, of columns",
        f"disk       {_size(rest + sum(packs.values()))}, "
        f"packs of {len(packs)} transforms among it",
    ]
    return "\n".join(lines)


def _shapes(estimates: Sequence[Estimate], device: Device, unit: str) -> list[str]:
    """The time that each shape of the jobs takes on some numbers of GPUs, and which is used."""
    from engine.cost import shapes

    by_columns = shapes.columns(estimates)
    ends: dict[str, list[float]] = {"columns": [], "split": []}
    used = []
    for gpus in GPUS:
        ends["columns"].append(shapes.hours(estimates, by_columns, device, gpus))
        apart = shapes.split(estimates, device, gpus)
        ends["split"].append(shapes.hours(estimates, apart, device, gpus))
        used.append(shapes.faster(ends["columns"][-1], ends["split"][-1]))
    gpus = ", ".join(map(str, GPUS))
    lines = [f"{unit:<11}on {gpus} GPUs"]
    for shape, hours in ends.items():
        times = ", ".join(f"{each * UNITS[unit]:,.3g}" for each in hours)
        lines.append(f"  {shape:<9}{times}: {SHAPES[shape]}")
    lines.append(f"  used     {', '.join(used)}: split where it is {shapes.FASTER:g} times as fast")
    return lines


def _row(kind: str, works: Sequence[Work], device: Device, unit: str) -> list[str]:
    images, steps = sum(work.images for work in works), sum(work.steps for work in works)
    flops, time = sum(work.flops for work in works), device.hours(works) * UNITS[unit]
    return [kind, f"{images:,}", f"{steps:,}", f"{flops / 1e15:,.3g}", f"{time:,.3g}"]


def _unit(hours: float) -> str:
    """The largest unit of which so many hours are at least one, or seconds."""
    return next((name for name, parts in UNITS.items() if hours * parts >= 1), "seconds")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
