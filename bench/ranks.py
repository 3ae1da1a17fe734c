"""Several GPUs of a machine: their exchange, a cell on 1, 2 and all of them, and jobs side by side.

    exchange    GB/s of an all-reduce of a ViT-B's gradients: 2 (n - 1) / n of their bytes
    cell        `rib train` by the engine's launcher: how far the weights are from those of one
                rank, as a share of the way that training moved these (`apart`); seconds, and
                seconds from its last file to its end. A ViT as the engine trains it, and in fp32;
                a small ResNet whose batch norms ranks share (SyncBatchNorm). The last two run
                uncompiled: they show the exchange, and a graph of each costs minutes
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
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from bench import photos
from bench.contest import interleave
from bench.report import ROOT, Results
from engine.machine import ranks

Weights = Mapping[str, torch.Tensor]
BYTES = 346_000_000  # the fp32 gradients of a ViT-B
# Most that several ranks' weights may be apart from one rank's, in parts of what training moved
# these. On a CPU 1e-5 in fp32; there is room for other sums, since a step moves most weights by
# less than a hundred of their ulps.
APART = {"auto": 0.05, "fp32": 1e-3}


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
    rate = exchanged(number, options.device, 1_000_000 if options.small else BYTES)
    results.add({"what": "exchange", "ranks": number, "gb_s": rate})
    archs = ("test_vit", "test_resnet") if options.small else ("vit_base_patch16_224", "resnet18")
    # A ViT first: its row says whether ranks exchange at all.
    cases = [(archs[0], "auto"), (archs[0], "fp32"), (archs[1], "auto")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classes, images, side = (3, 8, 40) if options.small else (20, 40, 256)
        for seed, of_set in enumerate(("upstream", "first")):
            photos.draw(folder / "images" / of_set, seed, classes, images, side)
        for arch, precision in cases:
            for count in (1, number):
                row = _cell(folder, arch, precision, count, options)
                results.add({"what": f"cell, {arch}, {precision}", "ranks": count, **row})
        begin = time.perf_counter()
        jobs = [
            _train(folder / f"job-{gpu}", archs[0], "auto", 1, options, gpu)
            for gpu in range(number)
        ]
        if codes := [code for job in jobs if (code := job.wait())]:
            raise subprocess.CalledProcessError(codes[0], "a job beside others")
        seconds = time.perf_counter() - begin
        results.add({"what": "jobs side by side", "ranks": number, "seconds": seconds})
    return 0


def exchanged(number: int, device: str, size: int, seconds: float | None = None) -> float:
    """GB/s of an all-reduce of `size` bytes between this many ranks. Raises TimeoutExpired after
    `seconds`; the ranks end with their launcher."""
    words = ("bench.ranks", "--device", device, "--exchange", str(size))
    process = subprocess.run(
        _launched(number, *words), env=_environment(), stdout=subprocess.PIPE, check=True,
        timeout=seconds,
    )  # fmt: skip
    return json.loads(process.stdout.splitlines()[-1])


def exchange(kind: str, size: int) -> None:
    """On each rank; the first prints the rate."""
    device = ranks.start(kind)
    tensor, share = torch.ones(size // 4, device=device), 2 * (ranks.world() - 1) / ranks.world()
    (times,) = interleave([lambda: dist.all_reduce(tensor)], device, seconds=0, least=9, most=9)
    if ranks.rank() == 0:
        print(json.dumps(share * size / min(times) / 1e6), flush=True)
    ranks.stop()


def _cell(
    folder: Path, arch: str, precision: str, number: int, options: argparse.Namespace
) -> dict[str, float]:
    """Train it. Raises CalledProcessError if that fails, and ValueError for other weights."""
    runs, alone = (folder / f"{arch}-{precision}-{count}" for count in (number, 1))
    begin = time.perf_counter()
    job = _train(runs, arch, precision, number, options)
    if code := job.wait():
        raise subprocess.CalledProcessError(code, f"{arch} on {number} ranks")
    end, seconds = time.time(), time.perf_counter() - begin
    last = max(file.stat().st_mtime for file in runs.rglob("*") if file.is_file())
    start, one, several = (
        load_file(next(place.glob(f"store/cells/{method}-*/weights.safetensors")))
        for place, method in ((alone, "linear_probe"), (alone, "fine_tune"), (runs, "fine_tune"))
    )
    if (share := apart(start, one, several)) > APART[precision]:
        raise ValueError(
            f"{arch} in {precision} on {number} ranks is {share:.2g} apart from one rank's "
            f"weights, in parts of what training moved these; {APART[precision]:g} allowed"
        )
    return {"seconds": seconds, "teardown_s": end - last, "apart": share}


def apart(start: Weights, one: Weights, several: Weights) -> float:
    """The distance of several ranks' weights from one rank's, in parts of the distance that
    training moved these from the start."""
    names = [name for name, tensor in one.items() if tensor.is_floating_point()]
    begin, alone, ours = (
        torch.cat([weights[n].double().flatten() for n in names])
        for weights in (start, one, several)
    )
    return ((ours - alone).norm() / (alone - begin).norm()).item()


def _train(
    runs: Path,
    arch: str,
    precision: str,
    number: int,
    options: argparse.Namespace,
    gpu: int | None = None,
) -> subprocess.Popen:
    """`rib train` on drawn pictures, on this many ranks; gpu: the only one that it sees."""
    if (packs := runs.parent / f"{arch}-auto-1" / "packs").is_dir():
        shutil.copytree(packs, runs / "packs")
    small, on_gpu = options.small, options.device == "cuda"
    compiles = "auto" if precision == "auto" and "vit" in arch else "never"
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
            "epochs": 2, "batch_size": 12 if small else 64, "freeze_batchnorm": not on_gpu,
            "precision": precision, "compile": compiles,
        },
        "evaluate": {"compile": compiles},
    }  # fmt: skip
    file = runs.with_suffix(".yaml")
    file.write_text(json.dumps(recipe), "utf-8")  # JSON is YAML
    command = _launched(number, "engine.launch", f"recipe={file}")
    seen = {} if gpu is None or not on_gpu else {"CUDA_VISIBLE_DEVICES": _visible()[gpu]}
    return subprocess.Popen(command, env=_environment() | seen, stdout=subprocess.DEVNULL)


def _visible() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(k) for k in range(torch.cuda.device_count())]


def _launched(number: int, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "engine.machine.launcher", str(number), *words]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "RIB_PROGRESS": "off"}


if __name__ == "__main__":
    sys.exit(main())
