"""What the packages export is imported late, and does what its example says."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import kernels
import kernels.transport

ROOT = Path(kernels.__file__).parents[1]


@pytest.mark.parametrize("package", [kernels, kernels.transport], ids=lambda p: p.__name__)
def test_examples(package):
    outcome = doctest.testmod(package)
    assert outcome.attempted > 5 and not outcome.failed


@pytest.mark.slow
def test_triton_and_numba_are_not_imported_before_a_name_is_used():
    program = (
        "import sys, kernels\n"
        "assert not {'triton', 'numba', 'torch'} & set(sys.modules)\n"
        "from kernels import interpolate\n"
        "assert 'torch' in sys.modules and 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
