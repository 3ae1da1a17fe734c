"""The kernels in Triton's interpreter: all tests that are called `interpreted_`, in one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton_interpreter import run_interpreted


@pytest.mark.slow
def test_all_kernels_in_the_interpreter():
    run_interpreted(str(Path(__file__).parent))
