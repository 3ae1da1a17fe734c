"""The graphs that several stages of `make gpu` take, compiled into the folder that stages share.

    engine      ViT-B/16 as the engine trains and evaluates it: the network, a visual prompt, LoRA
    headline    the forms of `bench.headline`

Both at once, each in a process of its own; the engine's where its packages are installed. A graph
whose code is there is traced only. Rows: the engine's times of a step. On a CPU nothing is
compiled, and this shows that it runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import headline
from bench.contest import Scale
from bench.gpu import ENGINE
from bench.preflight import is_installed
from bench.report import ROOT, Results

METHODS = ("fine_tune", "visual_prompt", "lora")  # a graph each
PARTS = {"headline": (), "engine": ENGINE}  # with the packages that each requires


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compiled", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--part", choices=PARTS, help="this one, here")
    options = parser.parse_args(arguments)
    if options.part is None:
        words = sys.argv[1:] if arguments is None else list(arguments)
        command = [sys.executable, "-u", "-m", "bench.compiled", *words, "--part"]
        parts = [
            subprocess.Popen([*command, part], cwd=ROOT)
            for part, needs in PARTS.items()
            if all(map(is_installed, needs))
        ]
        return int(any([part.wait() for part in parts]))
    if options.part == "headline":
        compile_headline(torch.device(options.device), options.small)
    else:
        compile_engine(options.device, options.out, options.small)
    return 0


def compile_headline(device: torch.device, small: bool) -> None:
    for contest in headline.contests(device, Scale(quick=small)):
        for entrant in (contest.ours, *contest.peers):
            entrant.run()
        print(f"compiled: {contest.name}", flush=True)
        del contest  # before the next is built


def compile_engine(kind: str, out: Path | None, small: bool) -> None:
    from engine.cost.throughput import Bench
    from engine.machine import ranks
    from engine.machine.terminal import quiet_libraries
    from engine.recipe.overrides import parsed

    quiet_libraries()
    device = ranks.start(kind)
    arch, size, batch = ("test_vit", 32, 4) if small else ("vit_base_patch16_224", 224, 64)
    given = parsed([f"model.arch={arch}", f"model.image_size={size}"])
    results = Results(out, "compile", device)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), "file", given, device, steps=2)
        for speed in bench.measure(METHODS, [batch]):
            results.add({"what": speed.what, "batch": speed.batch, "ms": speed.ms})
    ranks.stop()


if __name__ == "__main__":
    sys.exit(main())
