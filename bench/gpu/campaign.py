"""A real campaign, every method on two sets of drawn pictures, with the engine's own defaults.

The jobs run in this process, one after the other, as the workflow would start them; it ends before
the report. OUT/engine-DEVICE.json has the seconds of each part as soon as it is done: a row's are
all that its cell took, from loading to storing, torch.compile for the first of its kind included.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from bench import photos
from bench.gpu.stages import parser
from bench.report import Results
from engine.grid import campaign, jobs
from engine.grid.campaign import Plan
from engine.machine import quiet, ranks

SETS = ("upstream", "first", "second")
# All but ensembles, and FLYP, which trains CLIP's text tower.
METHODS = (
    "fine_tune", "linear_probe", "visual_prompt", "lora", "ewc", "lwf", "lp_ft", "wise_ft", "soup",
    "greedy_soup", "l2sp", "spd", "lines", "model_stock", "ties", "task_arithmetic",
    "mono_soup", "strong_fine_tune",
)  # fmt: skip
CAMPAIGN = """\
model: {{extends: file, arch: {arch}, image_size: {size}, weights: {{source: random}}, head: {{fit: true}}}}
dataset: {{extends: folder, root: {folder}/images, sets: [first, second], upstream: upstream, holdout: 0.5}}
downstream: first
runs: {folder}/runs
device: {device}
optimizer: {{name: sgd, lr: 1.0e-3}}
train: {{epochs: 1, batch_size: {batch}}}
evaluate: {{split: holdout}}
methods: {{{methods}}}
"""  # noqa: E501


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser("campaign", __doc__).parse_args(arguments)
    quiet.libraries()
    device = ranks.start(options.device)
    results = Results(options.out, "engine", device)

    def timed(part: str, run: Callable[[], object]) -> None:
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        results.add({"part": part, "seconds": time.perf_counter() - begin})

    with tempfile.TemporaryDirectory() as name:
        plan = planned(Path(name), device, options.small)
        timed("prepare", partial(jobs.prepare, plan, device))
        for column in plan.columns:
            for method, row in zip(plan.methods, jobs.builders(plan, device, column), strict=True):
                timed(f"{method} on {column.name}", row.entries)
            timed(f"evaluation of {column.name}", partial(jobs.column, plan, column, device))
    ranks.stop()
    return 0


def planned(folder: Path, device: torch.device, small: bool) -> Plan:
    """The campaign over pictures drawn now: ViT-B/16 at 224 px, 100 classes; small: a toy."""
    arch, size, batch = ("test_vit", 32, 12) if small else ("vit_base_patch16_224", 224, 64)
    classes, images = (3, 8) if small else (100, 40)
    for seed, name in enumerate(SETS):
        photos.draw(folder / "images" / name, seed, classes, images, side=256)
    fields = {"folder": folder, "device": device.type, "arch": arch, "size": size, "batch": batch}
    methods = ", ".join(f"{method}: {{}}" for method in METHODS)
    (folder / "campaign.yaml").write_text(CAMPAIGN.format(methods=methods, **fields))
    return campaign.plan(str(folder / "campaign.yaml"), [], os.cpu_count() or 1)


if __name__ == "__main__":
    sys.exit(main())
