"""The kernels in Triton's interpreter: tests that are marked so, in one process."""

from pathlib import Path

import pytest

from helpers.children import run_marked


@pytest.mark.slow
def test_all_kernels_in_the_interpreter(tmp_path):
    pytest.importorskip("triton")
    run_marked("everywhere or interpreted", Path(__file__).parent, tmp_path, TRITON_INTERPRET="1")
