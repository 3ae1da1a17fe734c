"""Clipping by the global norm: the bits of DeepSpeed's, on one rank and on two."""

import json
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.utils import clip_grad_norm_
from torch import nn

from engine.training import optim
from helpers import processes
from helpers.grids import torchrun

TWO_RANKS = """
import json, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from engine.machine import ranks
from training.test_clipping import differences
ranks.start("cpu")
Path(sys.argv[1], str(ranks.rank())).write_text(json.dumps(differences()))
ranks.stop()
"""


def clipped(most: float, ours: bool) -> list[torch.Tensor]:
    """Gradients after clipping; one parameter has none."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(n, 7)) for n in (1, 40, 900)]
    for parameter in parameters[:2]:
        parameter.grad = torch.randn_like(parameter)
    if ours:
        optim.clip_(iter(parameters), most)
    else:
        clip_grad_norm_(parameters, most)
    return [p.grad for p in parameters if p.grad is not None]


def differences() -> list[float]:
    """The largest difference from DeepSpeed's gradients: where it scales, and where it does not."""
    ends = [zip(clipped(most, True), clipped(most, False), strict=True) for most in (0.3, 1e4)]
    return [max((a - b).abs().max().item() for a, b in pairs) for pairs in ends]


def test_one_rank_clips_as_deepspeed_does(grid):
    assert differences() == [0.0, 0.0]
    norm = torch.stack([gradient.norm() for gradient in clipped(0.3, True)]).norm().item()
    assert norm == pytest.approx(0.3, rel=1e-5)


@pytest.mark.slow
def test_two_ranks_clip_as_deepspeed_does(tmp_path):
    tests = Path(__file__).resolve().parents[2]
    script = tmp_path / "two.py"
    paths = [str(tests.parent), str(tests), str(tests / "engine")]
    script.write_text(TWO_RANKS.format(paths=paths))
    process = processes.run(torchrun(2, str(script), str(tmp_path)))
    assert process.returncode == 0, process.stderr[-3000:]
    for rank in "01":
        assert json.loads((tmp_path / rank).read_text()) == [0.0, 0.0]
