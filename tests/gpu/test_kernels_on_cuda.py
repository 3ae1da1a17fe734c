"""What only a GPU can show of the kernels: launches, no waiting of the host, offsets past 2^31.

Their values are checked by the tests of `tests/kernels` that are marked `gpu` or `everywhere`.
"""

import pytest
import torch

from bench import contest
from helpers.children import NEEDS_GPU, in_new_process
from kernels.distill import distill_loss
from kernels.ewc import EwcParameters
from kernels.interpolation import interpolate

pytestmark = NEEDS_GPU
CUDA = torch.device("cuda")


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(CUDA)


@pytest.mark.parametrize("name", ["headline", "kernels", "transport", "train"])
def test_entrants_of_the_bench_give_the_same(name):
    try:
        contest.cases(name)
    except ImportError as error:
        pytest.skip(str(error))
    in_new_process(check_and_run, name)


def check_and_run(name: str) -> None:
    for current in contest.cases(name)(CUDA, contest.Scale(quick=True)):
        current.check()
        current.ours.run()


def test_nothing_waits_for_the_gpu():
    numbers = randn(6, 5000).square_()
    logits = randn(4, 1000).requires_grad_()
    labels, weights = torch.zeros(4, dtype=torch.int64, device=CUDA), randn(3, 6)

    def run() -> None:
        thetas, grads, first, second, *pull = (list(row.split(2500)) for row in numbers)
        moments = {"exp_avg": first, "exp_avg_sq": second}
        EwcParameters(thetas, moments, *pull).adamw_(grads, steps=[1, 1], lr=0.1, lam=1.0)
        EwcParameters(thetas, {"momentum_buffer": first}, *pull).sgd_(grads, lr=0.1, lam=1.0)
        distill_loss(logits, logits.detach(), labels).sum().backward()
        interpolate(numbers, weights)

    run()  # kernels are compiled and loaded, which does wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_offsets_beyond_two_to_the_31():
    numel = (1 << 31) + 1000
    if torch.cuda.mem_get_info()[0] < 9 * numel:
        pytest.skip("needs 20 GB of free GPU memory")
    parents = torch.zeros(1, numel, device=CUDA)
    parents[0, -3:] = torch.tensor([1.0, 2.0, 3.0], device=CUDA)
    out = interpolate(parents, torch.tensor([[2.0]], device=CUDA))
    assert out[0, -4:].tolist() == [0.0, 2.0, 4.0, 6.0]


def test_compiled_steps_use_the_same_kernels():
    student, teacher = randn(2, 8, 1000)
    labels = torch.arange(8, device=CUDA)
    compiled = torch.compile(distill_loss, fullgraph=True)
    torch.testing.assert_close(
        compiled(student, teacher, labels), distill_loss(student, teacher, labels)
    )
