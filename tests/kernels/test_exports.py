"""What the packages export does what its example says."""

import doctest

import pytest

import kernels
import kernels.transport


@pytest.mark.parametrize("package", [kernels, kernels.transport], ids=lambda p: p.__name__)
def test_examples(package):
    outcome = doctest.testmod(package)
    assert outcome.attempted > 5 and not outcome.failed
