"""A real campaign, every method on two sets of drawn pictures, with the engine's own defaults.

The jobs run in this process, one after the other, as the workflow would start them; it ends before
the report. OUT/engine.json has the seconds of each part as soon as it is done: a row's are all that
its cell took, from loading to storing, torch.compile for the first of its kind included. Images a
second and MFU are of that time; operations are counted by `engine.grid.estimate`.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench import report, roofline
from bench.gpu import program
from engine.grid import campaign, estimate, jobs
from engine.grid.campaign import Plan
from engine.grid.estimate import Part
from engine.machine import quiet, ranks

DOWNSTREAM, UPSTREAM = ("first", "second"), "upstream"
# All but FLYP, which trains CLIP's text tower.
METHODS = (
    "fine_tune", "linear_probe", "visual_prompt", "lora", "ewc", "lwf", "lp_ft", "wise_ft", "soup",
    "greedy_soup", "l2sp", "spd", "lines", "model_stock", "ties", "task_arithmetic",
    "mono_soup",
)  # fmt: skip
CAMPAIGN = """\
model: {folder}/model.yaml
dataset: {folder}/data.yaml
downstream: first
runs: {folder}/runs
device: {device}
optimizer: {{name: sgd, lr: 1.0e-3}}
train: {{epochs: 1, batch_size: {batch}}}
evaluate: {{split: holdout}}
methods: {{{methods}}}
"""
MODEL = """\
name: drawn_vit
arch: {arch}
image_size: {size}
weights: {{source: random}}
head: {{fit: true}}
"""
DATA = """\
name: drawn
kind: folder
root: {folder}/images
sets: [first, second]
upstream: upstream
holdout: 0.5
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = program.parser("campaign", __doc__).parse_args(arguments)
    quiet.libraries()
    device = ranks.start(options.device)
    peak = roofline.measure(device, options.small)
    results: dict[str, Any] = {"machine": report.machine(device), "parts": []}

    def timed(part: str, run: Callable[[], object], works: Iterable[Part] = ()) -> None:
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begin
        entry = {"part": part, "seconds": seconds} | _rates(works, seconds, peak)
        results["parts"].append(entry)
        report.write(options.out / "engine.json", results)
        print(", ".join(f"{k} {program.short(v)}" for k, v in entry.items()), flush=True)

    with tempfile.TemporaryDirectory() as name:
        plan = planned(Path(name), device, options.small)
        columns = estimate.of(plan).columns
        timed("prepare", lambda: jobs.prepare(plan, device))
        for column, of_column in zip(plan.columns, columns, strict=True):
            for method, row in zip(plan.methods, jobs.builders(plan, device, column), strict=True):
                name = f"training: {row.recipe.method.title}"
                training = [part for part in of_column if part.name == name]
                timed(f"{method} on {column.name}", row.entries, training)
            evaluation = [part for part in of_column if part.name == "evaluation"]
            evaluate = functools.partial(jobs.column, plan, column, device)
            timed(f"evaluation of {column.name}", evaluate, evaluation)
    ranks.stop()
    return 0


def planned(folder: Path, device: torch.device, small: bool) -> Plan:
    """The campaign over pictures drawn now: ViT-B/16 at 224 px, 100 classes; small: a toy."""
    arch, size, batch = ("test_vit", 32, 12) if small else ("vit_base_patch16_224", 224, 64)
    classes, images = (3, 8) if small else (100, 40)
    for number, name in enumerate((UPSTREAM, *DOWNSTREAM)):
        _draw(folder / "images" / name, number, classes, images)
    fields = {"folder": folder, "device": device.type, "arch": arch, "size": size, "batch": batch}
    fields["methods"] = ", ".join(f"{method}: {{}}" for method in METHODS)
    for file, text in (("model", MODEL), ("data", DATA), ("campaign", CAMPAIGN)):
        (folder / f"{file}.yaml").write_text(text.format(**fields))
    return campaign.plan(str(folder / "campaign.yaml"), [], os.cpu_count() or 1)


def _draw(folder: Path, style: int, classes: int, images: int) -> None:
    """JPEG files <class>/<n>.jpg: a coarse pattern of the class in the set's colours, and noise."""
    for label in range(classes):
        pattern = np.random.default_rng(label).integers(0, 200, (8, 8, 1))
        place = folder / f"class {label:03d}"
        place.mkdir(parents=True)
        for number in range(images):
            rng = np.random.default_rng([style, label, number])
            pixels = pattern * (0.5 + rng.random(3) / 2) + rng.integers(0, 56, (8, 8, 3))
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture.resize((256, 256), Image.Resampling.NEAREST).save(place / f"{number}.jpg")


def _rates(works: Iterable[Part], seconds: float, peak: roofline.Roofline) -> dict[str, float]:
    """Images a second and MFU of planned work; empty where nothing passes through a model."""
    images = flops = 0.0
    for work in works:
        images, flops = images + work.images, flops + work.operations
    if not images:
        return {}
    rate = flops / seconds / 1e9 / peak.peak_gflop_s
    return {"images": images, "images_s": images / seconds, "mfu": rate}


if __name__ == "__main__":
    sys.exit(main())
