"""What only a GPU can show of the kernels: launches, no waiting of the host, offsets past 2^31.

Their values are checked by the tests of `tests/kernels` that are marked `everywhere`.
"""

from __future__ import annotations

import pytest
import torch
from children import NEEDS_GPU
from torch import nn

from bench import contest
from kernels import reference
from kernels.distill import distill_loss
from kernels.ewc import adamw_ewc_, foreach_adamw_ewc_, sgd_ewc_
from kernels.fisher import fisher_diagonal
from kernels.fisher.outer_squares import outer_squares
from kernels.interpolation import interpolate
from kernels.transport.bures import ClassGaussians, bures_squared, class_gaussians
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import transport
from kernels.transport.store import beside_the_copy

pytestmark = NEEDS_GPU
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(CUDA)


@pytest.mark.parametrize("name", ["headline", "kernels", "transport", "train"])
def test_entrants_of_the_bench_give_the_same(name):
    try:
        contests = contest.cases(name)
    except ImportError as error:
        pytest.skip(str(error))
    for current in contests(CUDA, contest.Scale(quick=True)):
        current.check()
        current.ours.run()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_a_gpu_that_is_not_the_current_one():
    logits, labels = randn(4, 100).to("cuda:1"), torch.arange(4, device="cuda:1")
    losses = distill_loss(logits, logits, labels)
    truth = reference.distill_loss(logits, logits, labels)
    torch.testing.assert_close(losses, truth)


def test_the_fisher_of_a_convolutional_net_equals_a_loop():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.GELU(), nn.Conv2d(16, 16, 3, groups=16), nn.BatchNorm2d(16),
        nn.Conv2d(16, 24, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    ).to(CUDA).eval()  # fmt: skip
    images, labels = randn(7, 3, 20, 20), torch.arange(7, device=CUDA)
    with torch.backends.cudnn.flags(allow_tf32=False):
        truth = reference.fisher_diagonal(net, images, labels)
        fisher = fisher_diagonal(net, [(images, labels)], labels="data")
    for name, actual in fisher.items():
        scale = truth[name].max().item()
        torch.testing.assert_close(actual, truth[name], rtol=1e-3, atol=1e-4 * scale)


def sets(device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor, ClassGaussians]]:
    clouds = []
    for size, shift in ((1500, 0.0), (1200, 0.5)):
        labels = torch.arange(size) % 30
        x = randn(size, 40).to(device) + shift + labels.to(device)[:, None] / 10
        clouds.append((x, labels.to(device), class_gaussians(x, labels.to(device), 30)))
    return clouds


def test_label_distances_equal_those_of_the_cpu():
    pairs = ([gaussians for *_, gaussians in sets(device)] for device in (CUDA, CPU))
    actual, expected = (bures_squared(*pair) for pair in pairs)
    within = bures_squared(sets(CUDA)[0][2])
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5 * expected.max().item())
    assert torch.equal(within, within.T) and not within.diagonal().any()


@pytest.mark.parametrize("share", [0.5, 0.05, 0.002])
def test_transport_equals_that_of_the_cpu_and_brackets_overlap(share):
    solutions = []
    for device in (CUDA, CPU):
        (x, labels_x, a), (y, labels_y, b) = sets(device)
        table = bures_squared(a, b)
        cost = GroundCost(x, y, labels_x=labels_x, labels_y=labels_y, table=table)
        solved = transport(cost, eps=share * cost.mean)
        streamed = transport(
            cost, eps=share * cost.mean, memory=beside_the_copy(*cost.shape, device)
        )
        assert solved.converged and streamed.value == pytest.approx(solved.value, rel=1e-4)
        solutions.append(solved)
    actual, expected = solutions
    assert actual.value == pytest.approx(expected.value, rel=1e-4)
    assert actual.lower <= expected.upper and expected.lower <= actual.upper


def test_nothing_waits_for_the_gpu():
    numbers = randn(6, 5000).square_()
    logits = randn(4, 1000).requires_grad_()
    labels, weights = torch.zeros(4, dtype=torch.int64, device=CUDA), randn(3, 6)
    out = randn(3, 5000)

    def run() -> None:
        adamw_ewc_(*numbers, step=1, lr=0.1, lam=1.0)
        sgd_ewc_(*numbers[:5], lr=0.1, lam=1.0)
        halves = [list(row.split(2500)) for row in numbers]
        foreach_adamw_ewc_(*halves, steps=[1, 1], lr=0.1, lam=1.0)
        distill_loss(logits, logits.detach(), labels).sum().backward()
        interpolate(numbers, weights, out=out)
        outer_squares(logits.detach()[None], logits.detach()[None])

    run()  # kernels are compiled and loaded, which does wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_offsets_beyond_two_to_the_31():
    numel = (1 << 31) + 1000
    if torch.cuda.mem_get_info()[0] < 7 * numel:
        pytest.skip("needs 16 GB of free GPU memory")
    parents = torch.zeros(1, numel, device=CUDA)
    parents[0, -3:] = torch.tensor([1.0, 2.0, 3.0], device=CUDA)
    out = interpolate(parents, torch.tensor([[2.0]], device=CUDA), dtype=torch.bfloat16)
    assert out[0, -4:].tolist() == [0.0, 2.0, 4.0, 6.0]


def test_compiled_steps_use_the_same_kernels():
    student, teacher = randn(2, 8, 1000)
    labels = torch.arange(8, device=CUDA)
    compiled = torch.compile(distill_loss, fullgraph=True)
    torch.testing.assert_close(
        compiled(student, teacher, labels), distill_loss(student, teacher, labels)
    )
