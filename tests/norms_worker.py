"""One rank of `test_norms.py`: batch norms that share statistics, and the same on one process.

torchrun --nproc-per-node 2 norms_worker.py RESULTS. Rank 0 writes a JSON object: number of samples
-> largest error of an output, of a gradient and of a buffer, each relative to the largest number.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from engine.training.norms import BatchNorms
from engine.training.schedule import Share


def error(values: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    pairs = zip(values, expected, strict=True)
    return max(((a - b).abs().max() / (b.abs().max() + 1e-9)).item() for a, b in pairs)


def errors(samples: int) -> list[float]:
    """Of this rank: it has its half of the samples, or a filler that must count for nothing."""
    torch.manual_seed(samples)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Tanh(),  # without it the gradient of the norm's bias would be nothing but noise
        nn.Conv2d(8, 6, 3, bias=False),
        BatchNormAct2d(6),
        nn.Flatten(),
    )
    shared = copy.deepcopy(plain)
    x, scale = torch.randn(samples, 3, 9, 9), torch.randn(samples, 150)
    outputs = plain(x)
    (outputs.sin() * scale).sum().backward()

    rows = np.array_split(np.arange(samples), dist.get_world_size())[dist.get_rank()]
    weight = float(len(rows) > 0)
    index = rows if weight else np.array([0])
    norms = BatchNorms(shared)
    norms.expect(Share(index, weight, samples))
    part = shared(x[index])
    (weight * (part.sin() * scale[index]).sum()).backward()
    gradients = []
    for parameter in shared.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        gradients.append(parameter.grad)
    expected = [p.grad for p in plain.parameters() if p.grad is not None]
    floats = [[b.float() for b in net.buffers()] for net in (shared, plain)]
    output_error = error([part], [outputs[index]]) if weight else 0.0
    before = [buffer.clone() for buffer in shared.buffers()]
    norms.expect(Share(np.array([0]), 0.0, 0))
    shared(x[:1])
    same = all(map(torch.equal, before, shared.buffers()))
    assert same, "a micro-batch without a sample changed statistics"
    return [output_error, error(gradients, expected), error(*floats)]


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {}
    for samples in (1, 3, 8):
        worst = torch.tensor(errors(samples))
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        results[samples] = worst.tolist()
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
