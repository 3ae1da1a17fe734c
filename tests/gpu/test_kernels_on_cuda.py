"""Every kernel on a GPU against its twin in float64; skipped where torch sees no GPU.

The interpreter and the ahead-of-time gate check the same kernels without one, so what is left for
here is the hardware: its rounding, its launches, no waiting of the host, offsets past 2^31.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from twins import apart, assert_twins, misaligned, value_and_gradient

from bench import contest
from kernels import reference
from kernels.distill import distill_loss
from kernels.ewc import adamw_ewc_, foreach_adamw_ewc_, sgd_ewc_
from kernels.fisher import fisher_diagonal
from kernels.fisher.outer_squares import outer_squares
from kernels.interpolation import interpolate
from kernels.launch import padded
from kernels.transport.bures import ClassGaussians, bures_squared, class_gaussians
from kernels.transport.certificate import certify
from kernels.transport.cost import GroundCost
from kernels.transport.sinkhorn import transport
from kernels.transport.store import beside_the_copy, store
from kernels.transport.sweep import row_sums, sinkhorn_sweep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(CUDA, dtype)


@pytest.mark.parametrize("name", ["kernels", "transport", "train"])
def test_entrants_of_the_bench_give_the_same(name):
    try:
        contests = contest.cases(name)
    except ImportError as error:
        pytest.skip(str(error))
    for current in contests(CUDA, contest.Scale(quick=True)):
        current.check()
        current.ours.run()


OPTIONS = {"lr": 0.03, "weight_decay": 0.1, "lam": 0.7}
PLACES = pytest.mark.parametrize("place", [torch.clone, misaligned])


def ewc_tensors(size: int) -> list[torch.Tensor]:
    """theta, grad and AdamW's moments, then anchor and Fisher."""
    tensors = randn(6, size)
    tensors[3:].square_()
    return list(tensors)


@PLACES
@pytest.mark.parametrize("size", [1, 1023, 1025, 100_003])
def test_ewc_steps_equal_float64(size, place):
    tensors = ewc_tensors(size)
    sgd, adamw = [place(tensors[k]) for k in (0, 1, 2, 4, 5)], [place(t) for t in tensors]
    exact_sgd, exact_adamw = ([t.double() for t in rows] for rows in (sgd, adamw))
    sgd_ewc_(*sgd, **OPTIONS)
    adamw_ewc_(*adamw, step=1, **OPTIONS)
    scalars = [0.7, 1 - 0.003, 0.03 / 0.1, 0.1, 0.999, 0.001, 0.001**-0.5, 1e-8]
    reference.sgd_ewc_(*exact_sgd, torch.tensor([0.7, 0.1, 0.9, 0.03], device=CUDA).double())
    reference.adamw_ewc_(*exact_adamw, torch.tensor(scalars, device=CUDA).double())
    for rows in (sgd, adamw, exact_sgd, exact_adamw):
        del rows[1]  # the gradient, which a step may overwrite
    assert_twins(sgd + adamw, exact_sgd + exact_adamw, rtol=1e-5, atol=1e-6)


@PLACES
def test_one_ewc_step_of_many_tensors_equals_a_launch_each(place):
    alone = [[place(t) for t in ewc_tensors(size)] for size in (0, 3, 1024, 100_003, 7)]
    together = [[place(t) for t in row] for row in alone]
    for _ in range(3):
        foreach_adamw_ewc_(*map(list, zip(*together, strict=True)), steps=[1] * 5, **OPTIONS)
        for row in alone:
            adamw_ewc_(*row, step=1, **OPTIONS)
    for row, right in zip(together, alone, strict=True):
        assert all(map(torch.equal, row, right))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [10, 1000, 4096, 4097, 21843])
@pytest.mark.parametrize("masked", [False, True])
def test_distillation_and_its_gradient_equal_float64(dtype, classes, masked):
    student, teacher = 3 * randn(2, 9, classes, dtype=dtype)
    mask = torch.arange(classes, device=CUDA) % 3 != 1 if masked else None
    if mask is not None:
        student.masked_fill_(~mask, float("nan"))
    labels = 3 * torch.randint(classes // 3, (9,), device=CUDA)
    options = {"mask": mask, "temperature": 3.0, "weight": 0.7, "label_smoothing": 0.1}

    def ours(logits: torch.Tensor) -> torch.Tensor:
        return distill_loss(logits, teacher, labels, **options)

    actual = losses, gradient = value_and_gradient(ours, student)
    truth, true_gradient = value_and_gradient(
        lambda s: reference.distill_loss(s, teacher.double(), labels, **options), student.double()
    )
    assert_twins([losses], [truth], rtol=1e-5, atol=1e-5)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    assert_twins([gradient], [true_gradient], rtol=rounding, atol=1e-6)
    padded_head = value_and_gradient(ours, apart(student))
    assert all(map(torch.equal, padded_head, actual))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_a_gpu_that_is_not_the_current_one():
    logits, labels = randn(4, 100).to("cuda:1"), torch.arange(4, device="cuda:1")
    losses = distill_loss(logits, logits, labels)
    truth = reference.distill_loss(logits, logits, labels)
    torch.testing.assert_close(losses, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 4, 7), (11, 2, 100_003), (33, 2, 513), (4, 8, 4096)])
def test_weighted_sums_equal_float64(dtype, shape):
    outputs, count, numel = shape
    parents, weights = randn(count, numel), randn(outputs, count)
    out = torch.full((outputs, numel), float("nan"), dtype=dtype, device=CUDA)
    interpolate(parents, weights, dtype=dtype, out=out)
    truth = weights.double() @ parents.double()
    rounding = 1e-6 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(out.double(), truth, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 197, 100, 33), (9, 64, 384, 1536)])
def test_outer_squares_equal_float64(dtype, shape):
    batch, tokens, outputs, inputs = shape
    g, x = randn(batch, tokens, outputs, dtype=dtype), randn(batch, tokens, inputs, dtype=dtype)
    actual, truth = outer_squares(g, x), reference.outer_squares(g, x)
    torch.testing.assert_close(actual.double(), truth, rtol=2e-4, atol=1e-4 * truth.max().item())


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


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3), (37, 517), (3000, 9001)])
def test_sweeps_equal_float64(dtype, shape):
    n = shape[0]
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-32768, 32767, shape, generator=generator).to(dtype)
    f, g = (torch.randn(size, generator=generator) - 3 for size in shape)
    kappa = 30 / 65536 * (1 + torch.rand(n, generator=generator))
    truth = reference.sinkhorn_sweep(q, f.double(), g.double(), kappa.double())
    on_device = [tensor.to(CUDA) for tensor in (f, g, kappa)]
    for rows in (q.to(CUDA), padded(shape, on_device[0], dtype).copy_(q)):
        actual = [*sinkhorn_sweep(rows, *on_device), row_sums(rows, *on_device)]
        assert_twins([t.cpu() for t in actual], [*truth, truth[0]], rtol=2e-5, atol=2e-5)


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


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3), (37, 517), (1000, 9001)])
def test_certificates_equal_those_of_the_cpu(dtype, shape):
    n, m = shape
    x, y, g = randn(n, 40), randn(m, 40) + 0.3, 8 * randn(m).double()
    retained = randn(m).double().abs().clamp_(0.1, 1.0)
    certificates = []
    for device in (CUDA, CPU):
        stored = store(GroundCost(x.to(device), y.to(device)), dtype)
        certificates.append(certify(stored, g.to(device), 4.0, retained.to(device)))
    actual, expected = certificates
    assert actual.dual == pytest.approx(expected.dual, rel=1e-4, abs=1e-3)
    assert actual.lower <= expected.upper and expected.lower <= actual.upper
    assert actual.marginal_error == pytest.approx(expected.marginal_error, rel=1e-3)
    for name in ("f", "next_g"):
        torch.testing.assert_close(
            getattr(actual, name).cpu(), getattr(expected, name), rtol=1e-3, atol=1e-2
        )


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
