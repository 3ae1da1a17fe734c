"""What a machine lacks is named with its cure before a GPU's time is spent, and what it does."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from functools import partial

import pytest
import torch

from bench import preflight
from bench.report import ROOT
from engine.commands import doctor
from engine.commands.doctor import OK, WRONG, Check, Diagnosis

CPU = torch.device("cpu")
Usage = namedtuple("Usage", ["total", "used", "free"])


def test_a_bare_image_is_told_what_it_lacks(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(64e6, 0, 64e6))
    real, absent = importlib.util.find_spec, ("deepspeed", "PIL")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else real(name)
    )
    looked = {check.name: check.look for check in preflight.checks(CPU)}
    cures = {name: looked[name]().cure for name in ("shm", "TMPDIR", "packages")}
    assert cures["shm"].endswith("start the container with --shm-size=8g")
    assert cures["packages"] == "pip install deepspeed pillow"
    assert cures["TMPDIR"].endswith("export TMPDIR=ANOTHER_FOLDER")


def test_a_temporary_folder_whose_programs_may_not_run(monkeypatch):
    there = os.statvfs("/tmp")
    flags = there.f_flag | os.ST_NOEXEC
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result([*there[:8], flags, there[9]]))
    seen = preflight.temporary()
    assert seen.state == WRONG and seen.detail.endswith("is mounted noexec")


def test_a_gpu_that_others_use_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for free, cure in ((60e9, ""), (3e9, "end what else runs on it (nvidia-smi)")):
        of_gpus = [(70e9, 80e9), (free, 80e9)]
        monkeypatch.setattr(torch.cuda, "mem_get_info", of_gpus.__getitem__)
        seen = preflight.free_gpu()
        assert seen.cure == cure and f"{free / 1e9:.0f} of 80 GB free on GPU 1" in seen.detail


def test_a_kernel_that_is_wrong_is_red(monkeypatch):
    from kernels import interpolation

    assert preflight.kernel(CPU).state == OK
    right = interpolation.interpolate
    monkeypatch.setattr(interpolation, "interpolate", lambda *a: 1.001 * right(*a))
    assert preflight.kernel(CPU).state == WRONG


def test_lines_and_rows_and_the_exit_status(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor, "torch_facts", lambda: {"gpus": []})
    wrong = Check("GPU", "all", lambda: Diagnosis(WRONG, "none", "buy one"))
    for added, status in (([], 0), ([wrong], 1)):
        every = [Check("copy", "rate", lambda: preflight.copy(CPU)), *added]
        monkeypatch.setattr(preflight, "checks", lambda _, every=every: every)
        assert preflight.main(["--device", "cpu", "--out", str(tmp_path)]) == status
    assert "wrong    GPU        none (all); fix: buy one" in capsys.readouterr().out
    rows = json.loads((tmp_path / "preflight-cpu.json").read_text())["rows"]
    assert [row["state"] for row in rows] == [OK, WRONG] and rows[0]["detail"].endswith(" GB/s")


def test_a_check_that_hangs_is_the_last_and_keeps_the_rows_before_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(preflight, "LIMIT_S", 3.0)
    looks = {"copy": partial(Diagnosis, OK, "1 GB/s"), "driver": partial(time.sleep, 30)}
    looks["after"] = partial(Diagnosis, OK, "")
    every = [Check(name, "rate", look) for name, look in looks.items()]
    monkeypatch.setattr(preflight, "checks", lambda _: every)
    assert preflight.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "preflight-cpu.json").read_text())["rows"]
    assert [(row["check"], row["state"]) for row in rows] == [("copy", OK), ("driver", WRONG)]
    assert "no answer within 3 s" in capsys.readouterr().out


def test_killed_at_a_check_it_keeps_the_rows_before_it(tmp_path):
    program = (
        "import os, torch\n"
        "from bench import preflight\n"
        "from engine.commands.doctor import OK, Check, Diagnosis\n"
        "rows = [Check('first', '', lambda: Diagnosis(OK, '')),\n"
        "        Check('second', '', lambda: os.kill(os.getpid(), 9))]\n"
        "preflight.checks = lambda _: rows\n"
        f"preflight.main(['--device', 'cpu', '--out', {str(tmp_path)!r}])\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -9
    rows = json.loads((tmp_path / "preflight-cpu.json").read_text())["rows"]
    assert [row["check"] for row in rows] == ["first"]


def test_two_gpus_that_do_not_exchange_are_told_of_peer_access(monkeypatch):
    def hangs(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    seen = preflight.exchange(CPU)
    assert seen.state == WRONG and "within 36 s" in seen.detail
    assert "NCCL_P2P_DISABLE=1" in seen.cure and "ACS" in seen.cure


@pytest.mark.slow
def test_everything_that_it_launches_runs_on_a_cpu():
    for check in preflight.checks(CPU):
        if check.name in ("kernel", "compile", "DeepSpeed", "copy", "product"):
            assert check.look().state == OK, check.name
