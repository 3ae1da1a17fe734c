"""Several GPUs of a machine: their exchange, a cell on 1, 2 and all of them, and jobs side by side.

    exchange    GB/s of an all-reduce of a ViT-B's gradients: 2 (n - 1) / n of their bytes
    cell        `rib train` by the engine's launcher: weights against those of one rank, seconds,
                and seconds from its last file to its end. A ViT, and a ResNet whose batch norms
                ranks share (SyncBatchNorm), compiled on a GPU
    jobs        as many cells as GPUs at a time, each on one

On a CPU two ranks stand in, and batch norms are frozen. With one GPU there is nothing to run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from bench import photos
from bench.contest import interleave
from bench.report import ROOT, Results
from engine.machine import ranks

BYTES = 346_000_000  # the fp32 gradients of a ViT-B
APART = 0.01  # of the weights of several ranks, relative to their norm: sums round differently


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ranks", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--exchange", type=int, help="as a rank: print the rate for these bytes")
    options = parser.parse_args(arguments)
    if options.exchange:
        exchange(options.device, options.exchange)
        return 0
    on_gpu = options.device == "cuda"
    number = torch.cuda.device_count() if on_gpu else 2
    results = Results(options.out, "ranks", torch.device(options.device))
    if number < 2:
        results.write(message="one GPU: no ranks")
        return 0
    several = sorted({2, number})
    for count in several:
        rate = exchanged(count, options.device, 1_000_000 if options.small else BYTES)
        results.add({"what": "exchange", "ranks": count, "gb_s": rate})
    archs = ("test_vit", "test_resnet") if options.small else ("vit_base_patch16_224", "resnet50")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classes, images, side = (3, 8, 40) if options.small else (20, 40, 256)
        for seed, of_set in enumerate(("upstream", "first")):
            photos.draw(folder / "images" / of_set, seed, classes, images, side)
        for arch in archs:
            for count in (1, *several):
                row = _cell(folder / f"{arch}-{count}", arch, count, options)
                results.add({"what": f"cell, {arch}", "ranks": count, **row})
        begin = time.perf_counter()
        jobs = [_train(folder / f"job-{gpu}", archs[0], 1, options, gpu) for gpu in range(number)]
        if codes := [code for job in jobs if (code := job.wait())]:
            raise subprocess.CalledProcessError(codes[0], "a job beside others")
        seconds = time.perf_counter() - begin
        results.add({"what": "jobs side by side", "ranks": number, "seconds": seconds})
    return 0


def exchanged(number: int, device: str, size: int) -> float:
    """GB/s of an all-reduce of `size` bytes between this many ranks."""
    words = ("bench.ranks", "--device", device, "--exchange", str(size))
    process = subprocess.run(
        _launched(number, *words), env=_environment(), stdout=subprocess.PIPE, check=True
    )
    return json.loads(process.stdout.splitlines()[-1])


def exchange(kind: str, size: int) -> None:
    """On each rank; the first prints the rate."""
    device = ranks.start(kind)
    tensor, share = torch.ones(size // 4, device=device), 2 * (ranks.world() - 1) / ranks.world()
    (times,) = interleave([lambda: dist.all_reduce(tensor)], device, seconds=0, least=9, most=9)
    if ranks.rank() == 0:
        print(json.dumps(share * size / min(times) / 1e6), flush=True)
    ranks.stop()


def _cell(runs: Path, arch: str, number: int, options: argparse.Namespace) -> dict[str, float]:
    """Train it. Raises CalledProcessError if that fails, and ValueError for other weights."""
    begin = time.perf_counter()
    job = _train(runs, arch, number, options)
    if code := job.wait():
        raise subprocess.CalledProcessError(code, f"{arch} on {number} ranks")
    end, seconds = time.time(), time.perf_counter() - begin
    last = max(file.stat().st_mtime for file in runs.rglob("*") if file.is_file())
    alone, weights = (
        load_file(next(folder.glob("store/cells/fine_tune-*/weights.safetensors")))
        for folder in (runs.with_name(f"{arch}-1"), runs)
    )
    names = [name for name, tensor in alone.items() if tensor.is_floating_point()]
    first, ours = (
        torch.cat([each[n].double().flatten() for n in names]) for each in (alone, weights)
    )
    apart = ((ours - first).norm() / first.norm()).item()
    if apart > APART:
        raise ValueError(f"{arch} on {number} ranks is {apart:.2g} apart from one rank's weights")
    return {"seconds": seconds, "teardown_s": end - last, "apart": apart}


def _train(
    runs: Path, arch: str, number: int, options: argparse.Namespace, gpu: int | None = None
) -> subprocess.Popen:
    """`rib train` on drawn pictures, on this many ranks; gpu: the only one that it sees."""
    if (packs := runs.parent / f"{arch}-1" / "packs").is_dir():
        shutil.copytree(packs, runs / "packs")
    small, on_gpu = options.small, options.device == "cuda"
    recipe = {
        "model": {
            "extends": "file", "arch": arch, "image_size": 32 if small else 224,
            "weights": {"source": "random"}, "head": {"fit": True},
        },
        "dataset": {
            "extends": "folder", "root": str(runs.parent / "images"), "sets": ["first"],
            "upstream": "upstream", "holdout": 0.5,
        },
        "method": "fine_tune",
        "downstream": "first",
        "runs": str(runs),
        "device": options.device,
        "optimizer": {"name": "sgd", "lr": 1e-3},
        "train": {
            "epochs": 2, "batch_size": 12 if small else 64, "freeze_batchnorm": not on_gpu
        },
    }  # fmt: skip
    file = runs.with_suffix(".yaml")
    file.write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
    command = _launched(number, "engine.launch", f"recipe={file}")
    seen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    return subprocess.Popen(command, env=_environment() | seen, stdout=subprocess.DEVNULL)


def _launched(number: int, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "engine.machine.launcher", str(number), *words]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "RIB_PROGRESS": "off"}


if __name__ == "__main__":
    sys.exit(main())
