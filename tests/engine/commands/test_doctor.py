"""Each fault that `rib doctor` knows is made, and must be named with what cures it."""

import sys
from pathlib import Path
from unittest import mock

import pytest

from engine import cli
from engine.commands import doctor
from engine.commands.doctor import (
    APEX,
    COMPAT,
    CUDA_12,
    FFCV,
    MISSING,
    OK,
    TORCH,
    WRONG,
    Check,
    Diagnosis,
)
from engine.errors import ShadowedError
from engine.machine import entry
from helpers.processes import ROOT, programs, run

GPU = {"error": "", "version": "2.9.0", "cuda": "12.8", "gpus": ["A100, 80 GiB", "A100, 80 GiB"]}
GPU |= {"bf16": True, "nccl": True, "warnings": []}
NO_GPU = GPU | {"gpus": [], "bf16": False}
OLD = {"cuda": "13.2", "warnings": ["too old"]}
FINE = Check("GPU", "speed", lambda: Diagnosis(MISSING, "none", needed=False))
BROKEN = Check("compiler", "Triton", lambda: Diagnosis(WRONG, "fails", "install g++"))
FAILING = Check("Slurm", "jobs", lambda: [].index(3))


@pytest.fixture
def programs_are(monkeypatch, tmp_path):
    """Leaves these programs alone in PATH, each a line for a shell."""

    def place(**scripts: str) -> None:
        programs(tmp_path / "bin", **scripts)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.delenv("CXX", raising=False)

    return place


def install(folder: Path, name: str, code: str = "", owner: str = "") -> None:
    """A fake package, and the record that pip leaves of it, in a folder of packages."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    if owner:
        record = folder / f"{owner}-1.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {owner}\nVersion: 1.0\n")
        (record / "RECORD").write_text(f"{name}/__init__.py,sha256=x,9\n")


def test_a_package_that_hides_ours(monkeypatch, tmp_path):
    name = "loaders"
    assert doctor.ours(name) == Diagnosis(OK, str(ROOT / name))
    install(tmp_path, name, "raise SystemExit('it ran')", owner="hub-of-others")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)  # which this process may have imported
    first = doctor.ours(name)
    assert first.needed and first.detail.startswith(f"{tmp_path / name} hides ours")
    assert first.cure == "pip uninstall hub-of-others"


def test_no_compiler_and_one_that_cannot_compile(programs_are):
    assert doctor.compiler(GPU).state == OK, "that of this machine"
    programs_are()
    assert doctor.compiler(GPU).needed and not doctor.compiler(NO_GPU).needed
    programs_are(**{"g++": "echo 'fatal error: Python.h: No such file' >&2; exit 1"})
    seen = doctor.compiler(GPU)
    assert seen.state == WRONG and seen.detail.endswith("Python.h: No such file")
    assert seen.cure == "apt-get install g++ python3-dev"


ALSO = f"; on a data-centre GPU also: {COMPAT}"


@pytest.mark.parametrize(
    ("driver", "facts", "visible", "detail", "cure"),
    [
        ("580.65.06", OLD, None, "none with driver 580.65.06; too old", TORCH),
        ("525.60.13", OLD, None, "none with driver 525.60.13; too old", CUDA_12),
        ("470.256", OLD, None, "too old", "install driver 525 or newer, which CUDA 12 requires"),
        ("570.86", {"cuda": None}, "0", "torch 2.9.0 is a build for CPUs", f"{CUDA_12}{ALSO}"),
        ("570.86", {}, "", "CUDA_VISIBLE_DEVICES= hides them", "unset CUDA_VISIBLE_DEVICES"),
        ("570.86", {"error": "no torch"}, None, "torch cannot be imported", f"{CUDA_12}{ALSO}"),
    ],
)
def test_a_driver_whose_gpus_torch_does_not_see(
    driver, facts, visible, detail, cure, programs_are, monkeypatch
):
    """By NVIDIA's table: CUDA 13 runs from driver 580 on, CUDA 12 from 525 on."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    programs_are()
    seen = doctor.gpu(NO_GPU | facts)
    assert (seen.state, seen.needed) == (MISSING, False)
    programs_are(nvidia_smi=f"echo {driver}; echo {driver}")
    seen = doctor.gpu(NO_GPU | facts)
    assert (seen.state, seen.cure) == (WRONG, cure) and seen.detail.endswith(detail)


def test_gpus_that_torch_sees_and_what_they_lack():
    assert doctor.gpu(GPU) == Diagnosis(OK, "A100, 80 GiB; A100, 80 GiB")
    assert doctor.gpu(GPU | {"bf16": False, "nccl": False, "warnings": ["an old GPU"]}).detail == (
        "A100, 80 GiB; A100, 80 GiB; no native bf16: set train.precision=fp32 and "
        "evaluate.precision=fp32; no NCCL, so a cell cannot use "
        "several GPUs; an old GPU"
    )


def test_folders(monkeypatch, tmp_path):
    assert doctor.place(tmp_path / "not" / "yet", 0).state == OK
    seen = doctor.place(tmp_path / "runs", 1e9)
    assert seen.state == WRONG and seen.cure == "free space, or runs=ANOTHER_FOLDER"
    (file := tmp_path / "file").touch()
    assert doctor.place(file / "runs", 0).detail == f"{file} cannot be written to"
    monkeypatch.setenv("RIB_CACHE", str(file / "cache"))
    assert doctor.cache().cure == "export RIB_CACHE=ANOTHER_FOLDER"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(file / "hub"))
    assert "HF_HUB_CACHE" in doctor.hub().cure


@pytest.mark.slow
def test_every_check_on_this_machine(tmp_path):
    """On the machine that runs the tests, and with `kernels` hidden, which it names."""
    (tmp_path / "kernels.py").write_text("raise SystemExit('the wrong package ran')\n")
    command = [sys.executable, "-m", "engine.cli", "doctor"]
    done = run(command, tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    states = {line[9:20].strip(): line.split()[0] for line in done.stdout.splitlines() if line}
    for name in ("engine", "loaders", "torch", "DeepSpeed", "compiler", "runs"):
        assert states[name] == OK, done.stdout
    assert states["kernels"] == WRONG and done.returncode == 1
    assert f"{tmp_path / 'kernels.py'} hides ours" in done.stdout and done.stderr == ""


def test_exit_code_says_whether_this_machine_can_work(monkeypatch, capsys):
    hidden = mock.Mock(side_effect=ShadowedError("`kernels` is hidden"))
    monkeypatch.setenv(entry.DEBUG, "")  # which --debug sets, for this test alone
    monkeypatch.setattr(doctor, "torch_facts", dict)
    monkeypatch.setattr(entry, "check_shadowing", hidden)
    assert cli.main(["recipes"]) == 2, "another command"
    for checks, code, last in (
        ([FINE], 0, "everything that is required here is ok"),
        ([FINE, BROKEN, FAILING], 1, "required here and not ok: compiler, Slurm"),
    ):
        monkeypatch.setattr(doctor, "checks", lambda *_, checks=checks: checks)
        assert cli.main(["--debug", "doctor"]) == code, "it runs where the others refuse to"
        assert capsys.readouterr().out.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("name", "code", "installed", "detail", "cure"),
    [
        ("ffcv", "import ffcv", "import os; os.abort()", "failed with exit code -6", FFCV),
        ("apex", "import amp_C", "", "No module named 'amp_C'", APEX),
    ],
)
def test_a_package_that_is_broken_or_another_project(
    name, code, installed, detail, cure, monkeypatch, tmp_path
):
    install(tmp_path, name, installed)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = doctor.package(name, code, cure)
    assert (seen.state, seen.cure, seen.needed) == (WRONG, cure, False) and detail in seen.detail
    assert doctor.package("no_such_package", "", cure).state == MISSING
