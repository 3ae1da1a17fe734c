"""What all tests of kernels start from."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def nan_filled_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an output that a kernel does not write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # a GPU has not all of them
    assert torch.empty(3).isnan().all() and torch.ones(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
