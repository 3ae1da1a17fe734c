"""Where tests of kernels run, and tests that need a process of their own.

A test that is marked `everywhere` takes the kernels on a GPU, where there is one, and in Triton's
interpreter, and else the CPU's path. One that is marked `interpreted` or `traced` runs in the
process alone that `run_marked` starts for its mark, since a variable must be set there before
modules are imported.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
TRACING = os.environ.get("RIB_TRACING")  # the library by which a GPU's tensors need no memory
ON_GPU = torch.cuda.is_available() and not INTERPRETING
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
KERNELS = INTERPRETING or ON_GPU  # run here
NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
everywhere = pytest.mark.everywhere


def interpreted(test: Callable) -> Callable:
    return _only(INTERPRETING)(pytest.mark.interpreted(test))


def traced(test: Callable) -> Callable:
    return _only(bool(TRACING))(pytest.mark.traced(test))


def run_marked(marks: str, place: Path, folder: Path, **environment: str) -> None:
    """Fails with the child's output unless tests of these marks ran in it, and all passed."""
    command = [sys.executable, "-m", "pytest", "-v", "-x", str(place), "-m", marks]
    command += ["-p", "no:cacheprovider", f"--basetemp={folder / 'child'}"]
    child = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    summary = child.stdout[-6000:] + child.stderr[-2000:]
    assert child.returncode == 0, summary
    assert " passed" in summary and " skipped" not in summary, summary


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process of its own: DeepSpeed keeps the device of a
    process's first group."""
    with ProcessPoolExecutor(1, get_context("spawn"), _choose_device_anew) as pool:
        return pool.submit(function, *arguments).result()


def _choose_device_anew() -> None:
    os.environ.pop("DS_ACCELERATOR", None)


def _only(inside: bool) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not inside, reason="runs in a process of its own")
