"""A real campaign on drawn pictures, with the engine's own defaults: ImageNet-RIB's methods on one
set, or as a toy every method on two.

The jobs run in this process, one after the other, as the workflow would start them; it ends before
the report. OUT/engine-DEVICE.json (of a toy smoke-DEVICE.json) has the seconds of each part as soon
as it is done: a row's are all that its cell took, from loading to storing, torch.compile for the
first of its kind included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from bench import photos
from bench.report import Results
from engine.campaigns.column_job import builders, make_column
from engine.campaigns.make_plan import make_plan
from engine.campaigns.plan import Plan
from engine.campaigns.prepare_job import prepare
from engine.machine import ranks
from engine.machine.terminal import quiet_libraries

SETS = ("upstream", "first", "second")
OF_RIB = 9  # the first methods below
# All but FLYP, CaRot, TRACER and Lipsum-FT, which need CLIP's text tower.
METHODS = (
    "fine_tune", "linear_probe", "visual_prompt", "lora", "ewc", "lwf", "lp_ft", "wise_ft", "soup",
    "greedy_soup", "l2sp", "spd", "lines", "model_stock", "ties", "task_arithmetic",
    "mono_soup", "strong_fine_tune", "ensemble", "dora", "dawin",
    "self_distillation", "vrf", "ewc_dr", "flow", "ldifs", "replay", "iso_c", "digrap",
    "wise_ft_tuned",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.campaign", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    quiet_libraries()
    device = ranks.start(options.device)
    results = Results(options.out, "smoke" if options.small else "engine", device)

    def timed(part: str, run: Callable[[], object]) -> None:
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        results.add({"part": part, "seconds": time.perf_counter() - begin})

    with tempfile.TemporaryDirectory() as name:
        plan = planned(Path(name), device, options.small)
        timed("prepare", partial(prepare, plan, device))
        for column in plan.columns if options.small else plan.columns[:1]:
            for method, row in zip(plan.methods, builders(plan, device, column), strict=True):
                timed(f"{method} on {column.name}", row.entries)
            timed(f"evaluation of {column.name}", partial(make_column, plan, column, device))
    ranks.stop()
    return 0


def planned(folder: Path, device: torch.device, small: bool) -> Plan:
    """The campaign over pictures drawn now: ViT-B/16 at 224 px, 100 classes; small: a toy."""
    arch, size, batch = ("test_vit", 32, 12) if small else ("vit_base_patch16_224", 224, 64)
    classes, images = (3, 8) if small else (100, 20)
    for seed, name in enumerate(SETS):
        photos.draw(folder / "images" / name, seed, classes, images, side=256)
    upstream, *sets = SETS
    model = {"extends": "file", "arch": arch, "image_size": size, "head": {"fit": True}}
    root = {"extends": "folder", "root": str(folder / "images")}
    recipe = {
        "model": {**model, "weights": {"source": "random"}},
        "dataset": {**root, "sets": sets, "upstream": upstream, "holdout": 0.5},
        "downstream": sets[0],
        "runs": str(folder / "runs"),
        "device": device.type,
        "optimizer": {"name": "sgd", "lr": 1e-3},
        "train": {"epochs": 1, "batch_size": batch},
        "evaluate": {"split": "holdout"},
        "methods": {method: {} for method in (METHODS if small else METHODS[:OF_RIB])},
    }
    (folder / "campaign.yaml").write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
    return make_plan(str(folder / "campaign.yaml"), [], os.cpu_count() or 1)


if __name__ == "__main__":
    sys.exit(main())
