"""`rib bench`: measure images/s, memory and MFU of training and evaluation on this machine."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from engine.cost.throughput import Bench, cell_of
from engine.machine import ranks
from engine.machine.devices import device_name
from engine.recipe.overrides import parsed
from engine.report import console
from loaders.pack import Pack

INSTEAD = {  # keys without effect here, and what to use instead
    "model": "the model as the first argument",
    "train.batch_size": "--batch",
    "evaluate.batch_size": "--batch",
    "train.epochs": "--steps",
}


def run(arguments: argparse.Namespace) -> None:
    for override in arguments.overrides:
        if (option := INSTEAD.get(override.key)) is not None:
            raise ValueError(f"{override.text}: rib bench sets this key; use {option}")
    os.environ["RIB_PROGRESS"] = "off"  # a progress bar takes time
    methods = arguments.methods.split(",")
    given = [*parsed([{"model": arguments.model}]), *arguments.overrides]
    device = ranks.start(cell_of(methods[0], given).recipe.device)
    machine = f"{device_name(device)}, torch {torch.__version__}"
    pack = Pack.open(arguments.pack) if arguments.pack else None
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            Path(folder), arguments.model, arguments.overrides, device, arguments.steps, pack
        )
        for row in bench.measure(methods, arguments.batch):
            rows.append(row)
            if arguments.json:  # as soon as it is known
                content = {"machine": machine, "rows": [asdict(row) for row in rows]}
                arguments.json.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    ranks.stop()
    title = (
        f"{arguments.model} on {machine}. Plain loops are PyTorch loops over images already on the "
        "device.\n"
        "MFU is relative to the GPU's data sheet, or to the fastest matrix product measured here."
    )
    heads = ("", "batch", "images/s", "ms/step", "MFU", "peak MB")
    cells = [
        (
            row.what,
            str(row.batch),
            f"{row.images_s:.1f}",
            f"{row.ms:.1f}",
            f"{row.mfu:.2f}",
            "-" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        )
        for row in rows
    ]
    print(console.text(title, heads, cells))
