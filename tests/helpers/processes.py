"""Processes that tests start and wait for."""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from helpers.grids import environment

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_TORCH = {  # variables of a Python that lacks torch and what needs it
    "WITHOUT_PACKAGES": "torch,timm,deepspeed,triton,open_clip,ffcv",
    "PYTHONPATH": f"{ROOT / 'tests' / 'without_packages'}:{ROOT}",
}


def run(
    command: Sequence[str], cwd: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A command after its end."""
    return subprocess.run(
        command, cwd=cwd, env=environment() | variables, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip


def heed_signals() -> None:
    """As a terminal starts a command: background jobs ignore SIGINT, and those of nohup SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def programs(folder: Path, **scripts: str) -> None:
    """Programs in a folder, each a line for a shell; `_` stands for `-` in their names."""
    folder.mkdir(exist_ok=True)
    for name, script in scripts.items():
        program = folder / name.replace("_", "-")
        program.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        program.chmod(0o755)


def lives(number: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(
    condition: Callable[[], Any],
    what: str,
    seconds: float = 300,
    at_work: subprocess.Popen | None = None,
) -> Any:
    """The first true value of a condition; fails after so long, or where what is at work ends."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert at_work is None or at_work.poll() is None, f"it ended before: {what}"
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return value
