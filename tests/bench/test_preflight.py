"""What a bare image lacks is named with its cure, before a GPU's time is spent."""

import importlib.util
import shutil
import sysconfig
from collections import namedtuple

import torch

from bench import preflight
from bench.preflight import findings

Usage = namedtuple("Usage", ["total", "used", "free"])


def lacking(device: str = "cpu") -> dict[str, str]:
    return {finding.name: finding.cure for finding in findings(device) if finding.cure}


def test_a_bare_image_is_told_all_that_it_lacks(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "cc").write_text("#!/bin/sh\n")
    (tmp_path / "cc").chmod(0o755)  # Triton does not look for it
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(64e6, 0, 64e6))
    real = importlib.util.find_spec
    absent = ("deepspeed", "PIL")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else real(name)
    )
    cures = lacking()
    assert cures["C compiler"] == "apt-get install gcc"
    assert cures["Python.h"].startswith("apt-get install python3.")
    assert cures["shared memory"].startswith("start the container with --shm-size=8g")
    assert cures["packages"] == "pip install deepspeed pillow" and "TMPDIR" in cures["disk"]
    assert preflight.main(["--device", "cpu"]) == 1
    assert "MISSING: apt-get install gcc" in capsys.readouterr().out


def test_a_gpu_that_others_use_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    for free, cure in ((60e9, ""), (3e9, "end what else runs on it (nvidia-smi)")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 80e9))
        *_, of_gpu = findings("cuda")
        assert of_gpu.cure == cure and f"{free / 1e9:.0f} of 80 GB" in of_gpu.detail
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert lacking("cuda")["GPU"] == "see rib doctor"
