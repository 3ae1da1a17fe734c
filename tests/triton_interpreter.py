"""Runs tests of kernels under Triton's interpreter, in a process of their own.

TRITON_INTERPRET must be set before kernels are imported, so test modules mark such tests with
`interpreted`, and `tests/kernels/test_interpreter.py` runs all of them through `run_interpreted`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETING, reason="runs in the interpreter's process")


def run_interpreted(folder: str) -> None:
    """Fails with the child's output unless its `interpreted_` tests ran and passed."""
    pytest.importorskip("triton")
    if INTERPRETING:
        pytest.skip("already inside the interpreter's process")
    command = [sys.executable, "-m", "pytest", "-v", "-x", folder, "-k", "interpreted_"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent.parent
    child = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=600
    )
    summary = child.stdout[-4000:] + child.stderr[-2000:]
    assert child.returncode == 0, summary
    assert " passed" in summary and " skipped" not in summary, summary
