"""`rib doctor`: check this machine, and print a command for each problem.

Packages that may be broken, hidden or slow are imported in a separate process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from engine.machine.entry import PACKAGES, ROOT, hiding
from engine.machine.programs import NoAnswer, answer

OK, MISSING, WRONG = "ok", "missing", "wrong"
IMPORT_S = 120
PIP = "pip install --force-reinstall"
TORCH = f"{PIP} torch torchvision"
CUDA_12 = f"{PIP} 'torch>=2.9' torchvision --index-url https://download.pytorch.org/whl/cu126"
COMPAT = "apt-get install cuda-compat-13-0 (forward compatibility of driver 535 or newer)"
FFCV = "apt-get install pkg-config libopencv-dev libturbojpeg0-dev && pip install ffcv==1.0.2"
APEX = "pip uninstall apex; build https://github.com/NVIDIA/apex"  # PyPI's is another project
DEEPSPEED, TRITON = f"{PIP} 'deepspeed>=0.18'", f"{PIP} triton"
TORCH_PROBE = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    numbers = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    gpus = [torch.cuda.get_device_properties(number) for number in numbers]
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda or torch.version.hip,
    "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
    "bf16": bool(gpus) and torch.cuda.is_bf16_supported(including_emulation=False),
    "nccl": torch.distributed.is_available() and torch.distributed.is_nccl_available(),
    "warnings": [str(each.message).splitlines()[0] for each in caught],
}))
"""


class Diagnosis(NamedTuple):
    """The result of a check. detail: a version or the problem. cure: a command that fixes it.

    needed: whether the engine cannot work on this machine until the check is ok.
    """

    state: str
    detail: str
    cure: str = ""
    needed: bool = True

    @property
    def is_harmful(self) -> bool:
        return self.needed and self.state != OK


class Check(NamedTuple):
    name: str
    purpose: str
    look: Callable[[], Diagnosis]


def run(arguments: argparse.Namespace) -> int:
    print(f"Python {sys.version.split()[0]}, {sys.prefix}\n", flush=True)
    found = shown(checks(arguments.runs, torch_facts()))
    harmful = [check.name for check, diagnosis in found if diagnosis.is_harmful]
    bad = f"required here and not ok: {', '.join(harmful)}"
    print(f"\n{bad if harmful else 'everything that is required here is ok'}")
    return int(bool(harmful))


def shown(checks: Iterable[Check]) -> Iterator[tuple[Check, Diagnosis]]:
    """Run checks, one after the other, and print a line for each."""
    for check in checks:
        try:
            diagnosis = check.look()
        except Exception as error:  # a broken package can raise anything
            reason = f"the check failed: {type(error).__name__}: {error}"
            diagnosis = Diagnosis(WRONG, reason, "report this line")
        state, detail, cure, needed = diagnosis
        purpose = check.purpose + (", optional" if not needed and state != OK else "")
        cure = f"; fix: {cure}" if cure else ""
        print(f"{state:<9}{check.name:<11}{detail} ({purpose}){cure}", flush=True)
        yield check, diagnosis


def checks(runs: Path, facts: Mapping[str, Any]) -> list[Check]:
    """All checks, the most basic first. facts: see `torch_facts`."""
    has_gpu = bool(facts["gpus"])
    deepspeed = partial(package, "deepspeed", "import deepspeed", DEEPSPEED, needed=True)
    triton = partial(package, "triton", "import triton", TRITON, needed=has_gpu)
    return [
        *(Check(name, "part of this engine", partial(ours, name)) for name in PACKAGES),
        Check("torch", "training, evaluation", partial(torch, facts)),
        Check("DeepSpeed", "training, several GPUs per cell", deepspeed),
        Check("GPU", "speed: hours instead of days", partial(gpu, facts)),
        Check("Triton", "kernels on a GPU", triton),
        Check("compiler", "Triton, torch.compile", partial(compiler, facts)),
        # In GB; `rib plan emoji` says 1.05.
        Check("runs", "packs and results; rib plan predicts their size", partial(place, runs, 2)),
        Check("cache", "downloaded datasets", cache),
        Check("hub cache", "downloaded weights", hub),
        Check("FFCV", "faster JPEG packs", partial(package, "ffcv", "import ffcv", FFCV)),
        Check("apex", "optimizer.name=apex_adamw", partial(package, "apex", "import amp_C", APEX)),
    ]


def imported(code: str) -> str:
    """What `code` prints in a process of this Python. Raises NoAnswer, as `answer` does."""
    return answer(sys.executable, "-P", "-c", code, seconds=IMPORT_S)


def ours(name: str) -> Diagnosis:
    """Whether `import NAME` imports our package."""
    if not (place := hiding(name)):
        return Diagnosis(OK, str(ROOT / name))
    owners = importlib.metadata.packages_distributions().get(name, [])
    others = " ".join(sorted(set(owners) - {"rib-engine"}))
    cure = f"pip uninstall {others}" if others else "use a fresh virtual environment"
    return Diagnosis(WRONG, f"{place} hides ours, {ROOT / name}", cure)


def torch_facts() -> dict[str, Any]:
    """torch's version and this machine's GPUs; `error` if torch cannot be imported."""
    try:
        return {"error": "", **json.loads(imported(TORCH_PROBE))}
    except (NoAnswer, ValueError) as error:
        return {"error": str(error), "gpus": []}


def torch(facts: Mapping[str, Any]) -> Diagnosis:
    if facts["error"]:
        return Diagnosis(WRONG, facts["error"], TORCH)
    return Diagnosis(OK, f"{facts['version']}, CUDA {facts['cuda'] or 'none'}")


def package(name: str, code: str, cure: str, *, needed: bool = False) -> Diagnosis:
    """Check a package by running the code that imports what we use of it."""
    if importlib.util.find_spec(name) is None:
        cure = cure.removeprefix(f"pip uninstall {name}; ")  # another project's package
        return Diagnosis(MISSING, "not installed", cure, needed)
    try:
        imported(code)
        return Diagnosis(OK, importlib.metadata.version(name))
    except (NoAnswer, importlib.metadata.PackageNotFoundError) as error:
        return Diagnosis(WRONG, str(error), cure, needed)


def gpu(facts: Mapping[str, Any]) -> Diagnosis:
    """The GPUs that torch sees, or why it sees none although there is a driver."""
    if facts["gpus"]:
        slow = "no native bf16: set train.precision=fp32 and evaluate.precision=fp32"
        lacks = [] if facts["bf16"] else [slow]
        lacks += [] if facts["nccl"] else ["no NCCL, so a cell cannot use several GPUs"]
        return Diagnosis(OK, "; ".join([*facts["gpus"], *lacks, *facts["warnings"]]))
    try:
        driver = answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    except NoAnswer as error:
        if shutil.which("nvidia-smi") is None:
            detail = "no nvidia-smi, so only the CPU is used"
            cure = "apt-get install nvidia-driver, if there is an NVIDIA GPU"
            return Diagnosis(MISSING, detail, cure, needed=False)
        return Diagnosis(WRONG, str(error), "reboot; then reinstall the driver")
    driver = driver.split()[0]
    if facts["error"]:
        return Diagnosis(WRONG, "torch cannot be imported", torch_for(driver))
    if facts["cuda"] is None:
        detail = f"driver {driver}, but torch {facts['version']} is a build for CPUs"
        return Diagnosis(WRONG, detail, torch_for(driver))
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        detail = f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} hides them"
        return Diagnosis(WRONG, detail, "unset CUDA_VISIBLE_DEVICES")
    why = "".join(f"; {warning}" for warning in facts["warnings"])
    detail = f"torch for CUDA {facts['cuda']} sees none with driver {driver}{why}"
    return Diagnosis(WRONG, detail, torch_for(driver))


def torch_for(driver: str) -> str:
    """The command that installs a torch for this version of NVIDIA's driver.

    PyPI's torch is built for CUDA 13, which requires driver 580; CUDA 12 requires 525 (NVIDIA's
    CUDA Compatibility, table 1). torch 2.9 and later support no older CUDA. On data-centre GPUs,
    NVIDIA's forward-compatibility package runs CUDA 13 with driver 535 and newer.
    """
    release = int(driver.partition(".")[0])
    compat = f"; on a data-centre GPU also: {COMPAT}" if release >= 535 else ""
    old = CUDA_12 if release >= 525 else "install driver 525 or newer, which CUDA 12 requires"
    return TORCH if release >= 580 else old + compat


def compiler(facts: Mapping[str, Any]) -> Diagnosis:
    """Check the C++ compiler and Python's headers with a short program."""
    program = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++") or "g++"
    headers = f"-I{sysconfig.get_path('include')}"
    try:
        code = "#include <cmath>\n#include <Python.h>\n"
        answer(program, headers, "-x", "c++", "-fsyntax-only", "-", given=code)
    except NoAnswer as error:
        cure = "apt-get install g++ python3-dev"
        return Diagnosis(WRONG, str(error), cure, needed=bool(facts["gpus"]))
    return Diagnosis(OK, program)


def place(folder: Path, least_gb: float, cure: str = "runs=ANOTHER_FOLDER") -> Diagnosis:
    """Check that a folder is writable and has enough free space."""
    parents = (folder.absolute(), *folder.absolute().parents)
    there = next(parent for parent in parents if os.path.lexists(parent))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Diagnosis(WRONG, f"{there} cannot be written to", cure)
    free = shutil.disk_usage(there).free / 1e9
    if free < least_gb:
        detail = f"{folder}: {free:.1f} GB free, {least_gb:g} GB required"
        return Diagnosis(WRONG, detail, f"free space, or {cure}")
    return Diagnosis(OK, f"{folder}: {free:.0f} GB free")


def cache() -> Diagnosis:
    from engine.machine.files import cache_folder  # here: another package may hide `loaders`

    return place(cache_folder(), 1, "export RIB_CACHE=ANOTHER_FOLDER")


def hub() -> Diagnosis:
    from huggingface_hub import constants

    there = place(Path(constants.HF_HUB_CACHE), 1, "export HF_HUB_CACHE=ANOTHER_FOLDER")
    offline = "; offline, so only cached weights work" if constants.HF_HUB_OFFLINE else ""
    return there._replace(detail=there.detail + offline)
