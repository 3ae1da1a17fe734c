"""What a machine must have before GPU time is spent, in seconds: the first stage of `make gpu`.

Triton compiles with a C compiler and Python's headers, readers of images share memory, and stages
need packages and room. A line for each; exit status 1 where something is missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

COMPILERS = ("gcc", "clang")  # those that Triton looks for, unless CC names another
SHM, DISK, GPU = 1e9, 5e9, 20e9  # bytes that are free
SHM_FOLDER = Path("/dev/shm")
PACKAGES = (
    *("torch", "triton", "numpy", "timm", "deepspeed", "msgspec", "pyarrow", "safetensors", "PIL"),
    *("tqdm", "psutil", "filelock>=4.3", "pytest"),
)


@dataclass(frozen=True)
class Finding:
    """cure: empty where all is well."""

    name: str
    detail: str
    cure: str = ""


def findings(device: str) -> Iterator[Finding]:
    """What this machine has, and what it lacks with the cure."""
    names = [os.environ["CC"]] if os.environ.get("CC") else COMPILERS
    compiler = next(filter(None, map(shutil.which, names)), "")
    yield Finding("C compiler", compiler or "none", "" if compiler else "apt-get install gcc")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    is_there = header.is_file()
    yield Finding(
        "Python.h", str(header), "" if is_there else f"apt-get install python{version}-dev"
    )
    yield _room("shared memory", SHM_FOLDER, SHM, "start the container with --shm-size=8g")
    yield _room("disk", Path(tempfile.gettempdir()), DISK, "set TMPDIR to a folder with room")
    missing = [need for need in PACKAGES if not is_installed(need)]
    cure = f"pip install {' '.join(missing).replace('PIL', 'pillow')}" if missing else ""
    yield Finding("packages", f"{len(PACKAGES) - len(missing)} of {len(PACKAGES)}", cure)
    if device == "cuda" and "torch" not in missing:
        yield from _of_gpu()


def _of_gpu() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("GPU", "torch sees none", "see rib doctor")
        return
    free, total = torch.cuda.mem_get_info()
    cure = "" if free > GPU else "end what else runs on it (nvidia-smi)"
    name = torch.cuda.get_device_name()
    yield Finding("GPU", f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free", cure)


def _room(name: str, folder: Path, least: float, cure: str) -> Finding:
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    enough = free >= least
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    return Finding(name, detail, "" if enough else f"{cure}; {least / 1e9:.0f} GB are needed")


def is_installed(need: str) -> bool:
    """Whether this Python has a package, `name` or `name>=1.2`."""
    name, _, least = need.partition(">=")
    if importlib.util.find_spec(name) is None:
        return False
    parts = importlib.metadata.version(name).split(".") if least else []
    return [int(part) for part in parts[:2]] >= [int(part) for part in least.split(".") if part]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.preflight", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    found = list(findings(parser.parse_args(arguments).device))
    for finding in found:
        state = f"MISSING: {finding.cure}" if finding.cure else "ok"
        print(f"{finding.name:<15}{finding.detail:<50} {state}")
    return int(any(finding.cure for finding in found))


if __name__ == "__main__":
    sys.exit(main())
