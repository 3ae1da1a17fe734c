"""torch, its GPUs and DeepSpeed, as processes that import them say."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path
from threading import Lock
from typing import Any

from engine.machine.doctor.diagnosis import MISSING, OK, WRONG, Diagnosis
from engine.machine.doctor.programs import NoAnswer, answer

IMPORT_S = 120
PROBE = Path(__file__).with_name("probe.py")
PCI = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"  # a PCI device's vendor, and the beginning of its class
NO_GPU = Diagnosis(MISSING, "torch sees none; all runs on CPUs", needed=False)
WITHOUT_GPU = Diagnosis(MISSING, "no GPU", needed=False)
TORCH = "pip install --force-reinstall torch torchvision"
TORCH_FOR_CUDA_12 = (
    "pip install --force-reinstall 'torch>=2.9' torchvision "
    "--index-url https://download.pytorch.org/whl/cu126"
)
_one_at_a_time = Lock()


def torch_facts() -> dict[str, Any]:
    """What torch says of itself and of this machine, or `error`; it is imported once."""
    with _one_at_a_time:
        return _torch_facts()


@functools.cache
def _torch_facts() -> dict[str, Any]:
    return _facts("torch")


def _facts(library: str) -> dict[str, Any]:
    try:
        return json.loads(answer(sys.executable, "-P", str(PROBE), library, seconds=IMPORT_S))
    except (NoAnswer, ValueError) as error:
        return {"error": f"its import failed: {error}"}


def torch() -> Diagnosis:
    facts = torch_facts()
    if "error" in facts:
        return Diagnosis(WRONG, facts["error"], TORCH)
    return Diagnosis(OK, facts["version"])


def deepspeed() -> Diagnosis:
    facts = _facts("deepspeed")
    if "error" in facts:
        return Diagnosis(WRONG, facts["error"], "pip install --force-reinstall 'deepspeed>=0.18'")
    return Diagnosis(OK, facts["version"])


def driver() -> Diagnosis:
    """NVIDIA's driver, where there is a GPU of NVIDIA's."""
    if shutil.which("nvidia-smi") is None:
        if not _nvidia_devices():
            return Diagnosis(MISSING, "no GPU of NVIDIA's", needed=False)
        return Diagnosis(
            MISSING,
            "there is a GPU of NVIDIA's, and no nvidia-smi",
            "apt-get install nvidia-driver",
        )
    try:
        versions = answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    except NoAnswer as error:
        return Diagnosis(WRONG, str(error), "reboot; then reinstall the driver")
    return Diagnosis(OK, f"{versions.split()[0]}, {len(versions.split())} GPUs")


def gpu() -> Diagnosis:
    """The GPUs that torch sees, and why it sees none where there is a driver."""
    facts = torch_facts()
    if facts.get("available"):
        return Diagnosis(OK, "; ".join(facts["gpus"]))
    if shutil.which("nvidia-smi") is None:
        return NO_GPU
    if "error" in facts:
        return Diagnosis(WRONG, "torch cannot be imported", TORCH)
    if facts["cuda"] is None:
        detail = f"torch {facts['version']} is a build for CPUs"
        return Diagnosis(WRONG, detail, _torch_for_driver())
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        hidden = f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} hides them"
        return Diagnosis(WRONG, hidden, "unset CUDA_VISIBLE_DEVICES")
    detail = "; ".join(facts["warnings"]) or f"torch for CUDA {facts['cuda']} sees none"
    return Diagnosis(WRONG, detail, _torch_for_driver())


def _torch_for_driver() -> str:
    """The command that installs a torch whose CUDA the driver runs.

    PyPI's torch is for CUDA 13, which needs driver 580; CUDA 12 needs 525 (NVIDIA's CUDA
    Compatibility, table 1). torch 2.9 and later are for no older CUDA.
    """
    try:
        versions = answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        release = int(versions.partition(".")[0])
    except (NoAnswer, ValueError):
        return "see what nvidia-smi says"
    if release >= 580:
        return TORCH
    if release >= 525:
        return TORCH_FOR_CUDA_12
    return "a driver from 525 on, which CUDA 12 needs"


def bf16() -> Diagnosis:
    facts = torch_facts()
    if not facts.get("available"):
        return WITHOUT_GPU
    if not facts["bf16"]:
        cure = "train.precision=fp32 evaluate.precision=fp32"
        return Diagnosis(MISSING, "the GPU has none", cure, needed=False)
    return Diagnosis(OK, "in hardware")


def nccl() -> Diagnosis:
    """NCCL, which two GPUs or more need to share a cell."""
    facts = torch_facts()
    if not facts.get("available"):
        return WITHOUT_GPU
    if facts["nccl"] is None:
        return Diagnosis(MISSING, "torch lacks it", TORCH, needed=len(facts["gpus"]) > 1)
    return Diagnosis(OK, facts["nccl"])


def triton() -> Diagnosis:
    try:
        return Diagnosis(OK, importlib.metadata.version("triton"))
    except importlib.metadata.PackageNotFoundError:
        has_gpu = bool(torch_facts().get("available"))
        return Diagnosis(MISSING, "not installed", "pip install triton", needed=has_gpu)


def _nvidia_devices() -> list[Path]:
    return [
        device
        for device in PCI.glob("*")
        if (device / "vendor").read_text().strip() == NVIDIA
        and (device / "class").read_text().startswith(DISPLAY)
    ]
