"""Clipping by the global norm: the bits of DeepSpeed's. `test_train.py` asks it of two ranks."""

import pytest
import torch

from helpers.clipping import clipped, differences


def test_one_rank_clips_as_deepspeed_does(grid):
    assert differences() == [0.0, 0.0]
    norm = torch.stack([gradient.norm() for gradient in clipped(0.3, True)]).norm().item()
    assert norm == pytest.approx(0.3, rel=1e-5)
