"""Distillation loss: values and gradients against float64, and the kernel in the interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from triton_interpreter import interpreted, run_interpreted

from kernels import distill, reference
from kernels.distill import distill_loss


def case(batch: int, classes: int, keep: int | None, seed: int = 0) -> tuple[Tensor, ...]:
    """Student and teacher logits, labels and mask; `keep` classes stay unmasked."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=generator)
    classes_left = torch.randperm(classes, generator=generator)[: keep or classes]
    mask = torch.zeros(classes, dtype=torch.bool).index_fill(0, classes_left, True)
    labels = classes_left[torch.randint(len(classes_left), (batch,), generator=generator)]
    return student, teacher, labels, mask


def by_hand(s, t, labels, mask, temperature, weight, scale_by_t2, smoothing) -> Tensor:
    """The loss on the kept columns alone, through torch's own losses, in float64."""
    columns = mask.nonzero().squeeze(1)
    position = torch.cumsum(mask, 0)[labels] - 1
    s, t = s.double()[:, columns], t.double()[:, columns]
    task = F.cross_entropy(s, position, label_smoothing=smoothing, reduction="none")
    log_q, log_p = (t / temperature).log_softmax(1), (s / temperature).log_softmax(1)
    kl = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(1)
    return task + weight * (temperature**2 if scale_by_t2 else 1.0) * kl


SHAPES = [(1, 10, None), (7, 105, 33), (4, 1000, 105), (3, 1000, None), (5, 4096, 200)]
WIDE = [(2, 4097, None), (3, 21843, 1000)]
OPTIONS = [(1.0, 1.0, True, 0.0), (2.0, 0.7, False, 0.1), (4.0, 1.0, True, 0.1)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES + WIDE)
def test_loss_and_gradient_equal_float64(shape, options):
    student, teacher, labels, mask = case(*shape)
    temperature, weight, scale_by_t2, smoothing = options
    truth_in = student.double().requires_grad_()
    truth = by_hand(truth_in, teacher, labels, mask, *options)
    per_sample = torch.linspace(0.5, 2, len(labels))
    (truth * per_sample.double()).sum().backward()
    student.requires_grad_()
    loss = distill_loss(
        student,
        teacher,
        labels,
        mask=mask,
        temperature=temperature,
        weight=weight,
        scale_by_t2=scale_by_t2,
        label_smoothing=smoothing,
    )
    (loss * per_sample).sum().backward()
    assert loss.shape == labels.shape and loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), truth, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(student.grad.double(), truth_in.grad, rtol=2e-5, atol=1e-6)
    assert not student.grad[:, ~mask].any()


def test_without_teacher_or_weight_it_is_cross_entropy():
    student, teacher, labels, _ = case(6, 11, None)
    expected = F.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(distill_loss(student, None, labels), expected)
    torch.testing.assert_close(distill_loss(student, teacher, labels, weight=0.0), expected)


def test_equal_logits_add_nothing_and_masked_logits_may_hold_anything():
    student, _, labels, mask = case(6, 50, 9)
    expected = distill_loss(student, None, labels, mask=mask)
    torch.testing.assert_close(distill_loss(student, student, labels, mask=mask), expected)
    spoilt = student.masked_fill(~mask, float("nan")).requires_grad_()
    loss = distill_loss(spoilt, spoilt.detach(), labels, mask=mask)
    loss.sum().backward()
    torch.testing.assert_close(loss, expected)
    assert spoilt.grad.isfinite().all()


def test_classes_that_the_teacher_rules_out_add_nothing():
    student, teacher, labels, _ = case(6, 30, None)
    student.requires_grad_()
    teacher[:, 25:] = float("-inf")
    loss = distill_loss(student, teacher, labels, scale_by_t2=False)
    p, q = (student / 2).log_softmax(1), (teacher / 2).softmax(1)
    expected = F.cross_entropy(student, labels, reduction="none")
    expected = expected + F.kl_div(p, q, reduction="none").sum(1)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(gradient, expected_gradient)
    ruled_out = torch.cat([student[:, :25], teacher[:, 25:]], 1)
    allowed = torch.arange(30) < 25
    labels = labels.clamp(max=24)
    torch.testing.assert_close(
        distill_loss(ruled_out, teacher, labels),
        distill_loss(ruled_out, teacher, labels, mask=allowed),
    )


def test_empty_batch_and_low_precision():
    empty = torch.empty(0, 10, requires_grad=True)
    loss = distill_loss(empty, empty.detach(), torch.empty(0, dtype=torch.int64))
    assert loss.shape == (0,)
    student, teacher, labels, mask = case(4, 40, 20)
    for dtype in (torch.bfloat16, torch.float16):
        low = student.to(dtype).requires_grad_()
        loss = distill_loss(low, teacher.to(dtype), labels, mask=mask)
        loss.sum().backward()
        truth = by_hand(low.detach(), teacher.to(dtype), labels, mask, 2.0, 1.0, True, 0.0)
        torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
        assert low.grad.dtype == dtype and loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 10])}, "sample 1: label 10"),
        ({"labels": torch.tensor([-1, 0])}, "sample 0: label -1"),
        ({"mask": torch.arange(10) > 0}, "sample 0: label 0 is not among the 9 unmasked"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels must be int64"),
        ({"teacher": torch.zeros(2, 9)}, "teacher logits"),
        ({"mask": torch.ones(9, dtype=torch.bool)}, "mask must be bool"),
        ({"student": torch.zeros(10)}, "student logits"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature must be positive and finite"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    arguments = {
        "student": torch.zeros(2, 10),
        "teacher": torch.zeros(2, 10),
        "labels": torch.tensor([0, 1]),
    }
    with pytest.raises(ValueError, match=message):
        distill_loss(**(arguments | change))


def test_torch_compile_does_not_break_the_graph():
    student, teacher, labels, mask = case(4, 30, 12)
    student.requires_grad_()

    def step(s, t):
        return distill_loss(s, t, labels, mask=mask).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    compiled(student, teacher).backward()
    compiled_gradient = student.grad.clone()
    student.grad = None
    step(student, teacher).backward()
    torch.testing.assert_close(compiled_gradient, student.grad)


def test_torch_compile_sees_through_the_operator():
    """The compiled graph holds the kernel itself, not an opaque call; nothing is run."""
    pytest.importorskip("triton")
    graphs = []

    def record(module, _):
        graphs.append(module.graph)
        outputs = module.graph.find_nodes(op="output")[0].args[0]
        return make_boxed_func(
            lambda *_: [node and zeros_like(node.meta["val"]) for node in outputs]
        )

    def zeros_like(fake):
        return torch.zeros(fake.shape, dtype=fake.dtype)

    def step(s, t, labels):
        return distill._distill(s, t, labels, None, 2.0, 1.0, 0.0, True)[0].sum()

    student, teacher, labels, _ = case(4, 30, None)
    compiled = torch.compile(
        step, fullgraph=True, backend=aot_autograd(fw_compiler=record, bw_compiler=record)
    )
    compiled(student.requires_grad_(), teacher, labels).backward()
    targets = [{str(node.target) for node in graph.nodes} for graph in graphs]
    assert len(graphs) == 2 and "triton_kernel_wrapper_functional" in targets[0]
    assert not any("rib" in target for target in targets[0] | targets[1])


@pytest.mark.slow
def test_kernel_in_the_interpreter():
    run_interpreted(__file__)


@pytest.fixture
def nan_filled():
    """torch.empty and its kin give NaN, so that an element left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.ones(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES + WIDE)
def test_interpreted_kernel_equals_float64(shape, options, dtype, nan_filled, monkeypatch):
    student, teacher, labels, mask = case(*shape)
    # A misaligned view, and the transposed layout: both hold the same numbers.
    buffer = torch.empty(student.numel() + 1, dtype=dtype)
    student = buffer[1:].view(student.shape).copy_(student)
    teacher = teacher.to(dtype).t().contiguous().t()
    student = student.masked_fill(~mask, float("nan")).requires_grad_()
    temperature, weight, scale_by_t2, smoothing = options
    kl_weight = weight * (temperature**2 if scale_by_t2 else 1.0)
    arguments = (labels, mask if shape[2] else None, temperature, kl_weight, smoothing, True)
    beyond = torch.empty(student.numel() + 1, dtype=dtype)  # an element more than the gradient has
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda like: beyond[:-1].view(like.shape))
        loss, _ = distill._distill(student, teacher, *arguments)
    assert beyond[-1].isnan()
    per_sample = torch.linspace(0.5, 2, len(labels))
    (loss * per_sample).sum().backward()
    truth_in = student.detach().double().requires_grad_()
    truth = by_hand(truth_in, teacher, labels, mask, *options)
    (truth * per_sample.double()).sum().backward()
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
    rounding = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(
        student.grad.double(),
        truth_in.grad,
        rtol=rounding,
        atol=2e-6 if dtype.itemsize == 4 else 1e-5,
    )


@interpreted
def test_interpreted_kernel_without_teacher_mask_or_gradient():
    student, _, labels, _ = case(3, 21, None)
    loss, gradient = distill._distill(student, None, labels, None, 2.0, 0.0, 0.0, False)
    torch.testing.assert_close(loss, F.cross_entropy(student, labels, reduction="none"))
    assert gradient.shape == (0,)
    loss, gradient = distill._distill(student[:0], None, labels[:0], None, 2.0, 0.0, 0.0, True)
    assert loss.shape == (0,) and gradient.shape == (0, 21)
    single, _ = distill._distill(student[:1, :1], None, labels[:1] * 0, None, 2.0, 0.0, 0.0, True)
    assert single.item() == 0.0


@interpreted
def test_interpreted_kernel_survives_values_that_overflow_fp16():
    student, teacher, labels, _ = case(3, 40, None)
    student, teacher = (student * 15000).clamp(-65000, 65000).half(), (teacher * 5000).half()
    loss, gradient = distill._distill(student, teacher, labels, None, 2.0, 4.0, 0.0, True)
    truth = reference.distill_loss(student.double(), teacher.double(), labels)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0.0)
    assert truth.max() > 65504 and gradient.isfinite().all()


@interpreted
@pytest.mark.parametrize("lowest", [float("-inf"), torch.finfo(torch.float32).min])
def test_interpreted_kernel_takes_classes_that_cannot_be(lowest):
    student, teacher, labels, _ = case(3, 12, None)
    student[:, 9:], labels = lowest, labels.clamp(max=8)
    for given_teacher in (None, teacher.index_fill(1, torch.arange(9, 12), lowest)):
        loss, gradient = distill._distill(student, given_teacher, labels, None, 2.0, 4.0, 0.0, True)
        expected_in = student.clone().requires_grad_()
        expected = reference.distill_loss(expected_in, given_teacher, labels, weight=1.0)
        expected.sum().backward()
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(gradient, expected_in.grad)


@interpreted
@pytest.mark.parametrize("classes", [12, 4100])
def test_interpreted_kernel_takes_rows_of_low_logits_alone(classes):
    student, teacher, labels, _ = case(3, classes, None)
    student, teacher = student - 2e30, teacher - 2e31
    student[:, 0] = teacher[:, 0] = torch.finfo(torch.float32).min
    loss, gradient = distill._distill(student, teacher, labels, None, 2.0, 4.0, 0.0, True)
    expected = reference.distill_loss(student.requires_grad_(), teacher, labels)
    expected.sum().backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, student.grad)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_interpreted_kernel_takes_a_teacher_of_another_dtype(dtype):
    student, teacher, labels, mask = case(4, 70, 30)
    student = student.to(dtype)
    loss, gradient = distill._distill(student, teacher, labels, mask, 2.0, 4.0, 0.1, True)
    student_double = student.double().requires_grad_()
    expected = reference.distill_loss(
        student_double, teacher, labels, mask=mask, label_smoothing=0.1
    )
    expected.sum().backward()
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), student_double.grad, rtol=1e-2, atol=1e-2)


@interpreted
def test_interpreted_kernel_marks_labels_outside_with_infinity():
    student, teacher, _, _ = case(3, 21, None)
    mask = torch.arange(21) != 4
    labels = torch.tensor([4, 21, 0])
    loss, _ = distill._distill(student, teacher, labels, mask, 2.0, 4.0, 0.0, True)
    assert loss.isinf().tolist() == [True, True, False]
