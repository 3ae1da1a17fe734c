"""Each fault that the doctor knows is made, and must be named with what cures it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.machine.doctor import libraries, packages, places, programs, slurm
from engine.machine.doctor.diagnosis import MISSING, OK, WRONG, Check, Diagnosis, examine
from engine.machine.entry import ROOT

Programs = Callable[..., None]
GPU = {
    "version": "2.9.0",
    "cuda": "12.8",
    "available": True,
    "warnings": [],
    "gpus": ["A100, 80 GiB", "A100, 80 GiB"],
    "bf16": True,
    "nccl": "2.27",
}
NO_GPU = GPU | {"available": False, "gpus": [], "bf16": False, "nccl": None}


@pytest.fixture
def programs_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Programs:
    """Leaves these programs alone in PATH, each a line for a shell."""

    def place(**scripts: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, script in scripts.items():
            file = folder / name.replace("_", "-")
            file.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
            file.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.delenv("CXX", raising=False)

    return place


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs must answer within a moment."""
    answer = functools.partial(programs.answer, seconds=0.3)
    for module in (slurm, libraries):
        monkeypatch.setattr(module, "answer", answer)


def install(folder: Path, name: str, *files: str, code: str = "", owner: str = "") -> None:
    """A fake package, and the record that pip leaves of it, in a folder of packages."""
    for file in ("__init__.py", *files):
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    if owner:
        record = folder / f"{owner}-1.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {owner}\nVersion: 1.0\n")
        (record / "RECORD").write_text(f"{name}/__init__.py,sha256=x,9\n")


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(programs.NoAnswer, match=r"^sh does not answer within 0.2 s$"):
        programs.answer("sh", "-c", "sleep 60 & echo $!; wait", seconds=0.2)
    assert time.monotonic() - start < 30


def test_neither_an_error_nor_a_check_without_end_stops_the_doctor() -> None:
    def broken() -> Diagnosis:
        raise SystemError("of a broken package")

    def endless() -> Diagnosis:
        time.sleep(60)
        return Diagnosis(OK, "")

    checks = [
        Check("broken", "", broken, 5),
        Check("endless", "", endless, 0.2),
        Check("fine", "", lambda: Diagnosis(OK, "1.0"), 5),
    ]
    assert [(check.name, each.state, each.detail) for check, each in examine(checks)] == [
        ("broken", WRONG, "the check failed: SystemError: of a broken package"),
        ("endless", WRONG, "no answer within 0.2 s"),
        ("fine", OK, "1.0"),
    ]


@pytest.mark.parametrize("name", ["engine", "kernels", "loaders"])
def test_a_package_that_hides_ours(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert packages.ours(name) == Diagnosis(OK, str(ROOT / name))
    install(tmp_path, name, code="raise SystemExit('it ran')", owner="hub-of-others")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(tmp_path)])
        later = packages.ours(name)
    assert later.state == WRONG and not later.harmful
    assert later.detail == "hub-of-others is installed too, and hidden by ours"
    monkeypatch.syspath_prepend(tmp_path)
    first = packages.ours(name)
    assert first.harmful and first.detail.startswith(f"{tmp_path / name} hides ours")
    assert first.cure == later.cure == "pip uninstall hub-of-others"


@pytest.mark.parametrize(
    ("files", "has_amp", "detail"),
    [
        ((), False, "lacks apex.optimizers and amp_C: not NVIDIA's"),
        (("optimizers/__init__.py",), False, "lacks amp_C: not NVIDIA's, or built without CUDA"),
        (("optimizers/__init__.py",), True, ""),
    ],
)
def test_apex_is_not_what_it_seems(
    files: tuple[str, ...],
    has_amp: bool,
    detail: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    install(tmp_path, "apex", *files, code="raise SystemExit('it ran')")
    if has_amp:
        install(tmp_path, "amp_C")
    monkeypatch.syspath_prepend(tmp_path)
    seen = packages.apex()
    assert (seen.state, seen.harmful) == (WRONG if detail else OK, False)
    assert detail in seen.detail and ("pip uninstall apex; build it" in seen.cure) == bool(detail)


def test_ffcv_that_crashes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path, "ffcv", code="import os; os.abort()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = packages.ffcv()
    assert (seen.state, seen.harmful) == (WRONG, False)
    assert "exit code -6" in seen.detail and "libopencv-dev" in seen.cure


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("raise ImportError('libcudart.so.13: no such file\\nmore')", "libcudart.so.13: no such"),
        ("import os; os.abort()", "exit code -6"),
        ("import time; time.sleep(60)", "does not answer within 0.5 s"),
    ],
)
@pytest.mark.parametrize("look", [libraries.torch, libraries.deepspeed])
def test_a_library_that_cannot_be_imported(
    look: Callable[[], Diagnosis],
    code: str,
    detail: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    install(tmp_path, look.__name__, code=code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(libraries, "IMPORT_S", 0.5 if "sleep" in code else 30)
    libraries._torch_facts.cache_clear()
    seen = look()
    libraries._torch_facts.cache_clear()
    assert seen.harmful and detail in seen.detail and "more" not in seen.detail
    assert seen.cure.startswith("pip install --force-reinstall")


def test_no_compiler_and_one_that_cannot_compile(programs_are: Programs) -> None:
    assert programs.compiler().state == OK, "that of this machine"
    programs_are()
    assert programs.compiler().state == MISSING and programs.compiler().harmful
    programs_are(**{"g++": "echo 'fatal error: cmath: No such file' >&2; exit 1"})
    seen = programs.compiler()
    assert seen.state == WRONG and seen.harmful and seen.detail.endswith("cmath: No such file")
    assert seen.cure == "apt-get install g++"


def test_no_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert programs.headers().state == OK
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    seen = programs.headers()
    assert seen.harmful and seen.cure == "apt-get install python3-dev"


def test_no_browser(programs_are: Programs) -> None:
    programs_are(chromium="echo Chromium 1.2 built on Debian")
    seen = programs.chromium()
    assert seen.detail == "chromedriver not in PATH" and not seen.harmful
    programs_are(chromedriver="exit 0")
    assert programs.chromium() == Diagnosis(OK, "Chromium 1.2")


def test_a_machine_without_slurm(programs_are: Programs) -> None:
    programs_are()
    assert slurm.queue() == slurm.accounting() == slurm.NONE and not slurm.NONE.harmful
    programs_are(
        sinfo="echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1"
    )
    assert slurm.queue() == slurm.NONE, "its programs alone"


@pytest.mark.parametrize(
    ("sinfo", "state", "detail"),
    [
        ("echo main; echo gpu; echo gpu", OK, "partitions main, gpu"),
        ("sleep 60", WRONG, "sinfo does not answer within 0.3 s"),
        ("echo 'Unable to contact controller' >&2; exit 1", WRONG, "Unable to contact controller"),
        ("exit 0", WRONG, "sinfo names no partition"),
    ],
)
def test_slurms_queue(
    sinfo: str, state: str, detail: str, quick: None, programs_are: Programs
) -> None:
    programs_are(sinfo=sinfo)
    seen = slurm.queue()
    assert seen.state == state and detail in seen.detail and seen.harmful == (state == WRONG)


LEAST_S = 210  # below which `rib campaign --executor slurm` refuses, too: grid/test_sites.py
DATABASE = "echo 'AccountingStorageType = accounting_storage/slurmdbd'"
NO_DATABASE = "echo 'AccountingStorageType = (null)'; echo 'MinJobAge = {age} sec'"


@pytest.mark.parametrize(
    ("scontrol", "sacct", "state", "detail"),
    [
        (DATABASE, "exit 0", OK, "slurmdbd answers"),
        (DATABASE, "sleep 60", WRONG, "sacct does not answer within 0.3 s"),
        (DATABASE, "echo 'Connection refused' >&2; exit 1", WRONG, "Connection refused"),
        (NO_DATABASE.format(age=300), "exit 1", OK, "remembers a job for 300 sec"),
        (NO_DATABASE.format(age=LEAST_S), "exit 1", OK, f"remembers a job for {LEAST_S} sec"),
        (NO_DATABASE.format(age=LEAST_S - 1), "exit 1", WRONG, f"after {LEAST_S - 1} sec"),
        (NO_DATABASE.format(age=0), "exit 1", WRONG, "jobs are forgotten after 0 sec"),
    ],
)
def test_slurms_accounting(
    scontrol: str, sacct: str, state: str, detail: str, quick: None, programs_are: Programs
) -> None:
    programs_are(sinfo="echo main", scontrol=scontrol, sacct=sacct)
    seen = slurm.accounting()
    assert seen.state == state and detail in seen.detail


def test_the_plugin_is_needed_on_a_cluster_alone(
    programs_are: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "PLUGIN", "no_such_plugin")
    programs_are()
    assert slurm.plugin().state == MISSING and not slurm.plugin().harmful
    programs_are(sinfo="echo main")
    assert slurm.plugin().harmful and "snakemake-executor-plugin-slurm" in slurm.plugin().cure


def test_the_driver(
    programs_are: Programs, quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs_are()
    device = tmp_path / "pci" / "0000:01:00.0"
    device.mkdir(parents=True)
    monkeypatch.setattr(libraries, "PCI", device.parent)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x040300\n")  # sound
    assert libraries.driver().detail == "no GPU of NVIDIA's" and not libraries.driver().harmful
    (device / "class").write_text("0x030200\n")
    assert libraries.driver().harmful and "nvidia-driver" in libraries.driver().cure
    programs_are(nvidia_smi="sleep 60")
    assert libraries.driver().detail == "nvidia-smi does not answer within 0.3 s"
    programs_are(nvidia_smi="echo 'Driver/library version mismatch'; exit 18")
    assert libraries.driver().harmful and "version mismatch" in libraries.driver().detail
    programs_are(nvidia_smi="echo 570.86; echo 570.86")
    assert libraries.driver() == Diagnosis(OK, "570.86, 2 GPUs")


CUDA_12 = (
    "pip install --force-reinstall 'torch>=2.9' torchvision "
    "--index-url https://download.pytorch.org/whl/cu126"
)


@pytest.mark.parametrize(
    ("version", "cure"),
    [
        ("580.65.06", libraries.TORCH),
        ("579.99", CUDA_12),
        ("525.60.13", CUDA_12),
        ("470.256.02", "a driver from 525 on, which CUDA 12 needs"),
    ],
)
def test_a_torch_is_named_that_fits_the_driver(
    version: str, cure: str, programs_are: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By NVIDIA's table: CUDA 13 runs from driver 580 on, CUDA 12 from 525 on."""
    facts = NO_GPU | {"cuda": "13.2", "warnings": ["The NVIDIA driver is too old"]}
    monkeypatch.setattr(libraries, "torch_facts", lambda: facts)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    programs_are(nvidia_smi=f"echo {version}; echo {version}")
    assert libraries.gpu() == Diagnosis(WRONG, "The NVIDIA driver is too old", cure)


@pytest.mark.parametrize(
    ("facts", "visible", "detail", "cure"),
    [
        (NO_GPU | {"cuda": None}, None, "torch 2.9.0 is a build for CPUs", CUDA_12),
        (NO_GPU, "", "CUDA_VISIBLE_DEVICES= hides them", "unset CUDA_VISIBLE_DEVICES"),
        (NO_GPU | {"warnings": ["The driver is too old"]}, None, "too old", CUDA_12),
        (NO_GPU | {"cuda": "13.2"}, None, "torch for CUDA 13.2 sees none", CUDA_12),
        ({"error": "no"}, None, "torch cannot be imported", libraries.TORCH),
    ],
)
def test_a_driver_whose_gpus_torch_does_not_see(
    facts: dict[str, Any],
    visible: str | None,
    detail: str,
    cure: str,
    programs_are: Programs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "torch_facts", lambda: facts)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    programs_are()
    assert libraries.gpu() == libraries.NO_GPU and not libraries.NO_GPU.harmful
    programs_are(nvidia_smi="echo 570.86")
    seen = libraries.gpu()
    assert seen.harmful and detail in seen.detail and cure in seen.cure


def test_what_a_gpu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_facts(**facts: Any) -> None:
        monkeypatch.setattr(libraries, "torch_facts", lambda: GPU | facts)

    with_facts()
    looks = (libraries.torch, libraries.gpu, libraries.bf16, libraries.nccl)
    details = ["2.9.0", "A100, 80 GiB; A100, 80 GiB", "in hardware", "2.27"]
    assert [look() for look in looks] == [Diagnosis(OK, detail) for detail in details]
    with_facts(bf16=False, nccl=None)
    assert not libraries.bf16().harmful and "train.precision=fp32" in libraries.bf16().cure
    assert libraries.nccl().harmful
    with_facts(gpus=GPU["gpus"][:1], nccl=None)
    assert not libraries.nccl().harmful, "a single GPU talks to nobody"

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert libraries.triton().harmful and libraries.triton().cure == "pip install triton"
    with_facts(available=False)
    assert not libraries.triton().harmful


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert places.runs(tmp_path / "not" / "yet", 0).state == OK
    seen = places.runs(tmp_path / "runs", 1e9)
    assert seen.harmful and "needed" in seen.detail
    assert seen.cure == "make room, or runs=ANOTHER_FOLDER"
    (file := tmp_path / "file").touch()
    assert places.runs(file / "runs", 0).detail == f"{file} cannot be written to"
    monkeypatch.setenv("RIB_CACHE", str(file / "cache"))
    assert places.cache().harmful and places.cache().cure == "export RIB_CACHE=ANOTHER_FOLDER"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(file / "hub"))
    assert places.hub().harmful and "HF_HUB_CACHE" in places.hub().cure
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert places.runs(tmp_path / "locked" / "runs", 0).harmful
