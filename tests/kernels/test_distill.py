"""Distillation loss: values and gradients against float64, and the kernel in the interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from triton_interpreter import interpreted
from twins import assert_twins, misaligned, value_and_gradient

from kernels import distill, reference
from kernels.distill import distill_loss

SHAPES = [(1, 10, None), (7, 105, 33), (4, 1000, 105), (5, 4096, 200), (3, 21843, 1000)]
# temperature, weight, scale_by_t2, label_smoothing
OPTIONS = [(1.0, 1.0, True, 0.0), (2.0, 0.7, False, 0.1), (4.0, 1.0, True, 0.1)]


def case(batch: int, classes: int, keep: int | None = None) -> tuple[Tensor, ...]:
    """Student and teacher logits, labels and mask; `keep` classes stay unmasked."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=generator)
    classes_left = torch.randperm(classes, generator=generator)[: keep or classes]
    mask = torch.zeros(classes, dtype=torch.bool).index_fill(0, classes_left, True)
    labels = classes_left[torch.randint(len(classes_left), (batch,), generator=generator)]
    return student, teacher, labels, mask


def by_hand(s, t, labels, mask, temperature, weight, scale_by_t2, smoothing) -> Tensor:
    """The loss on the unmasked columns alone, through torch's own losses, in float64."""
    columns = mask.nonzero().squeeze(1)
    position = torch.cumsum(mask, 0)[labels] - 1
    s, t = s.double()[:, columns], t.double()[:, columns]
    task = F.cross_entropy(s, position, label_smoothing=smoothing, reduction="none")
    log_q, log_p = (t / temperature).log_softmax(1), (s / temperature).log_softmax(1)
    kl = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(1)
    return task + weight * (temperature**2 if scale_by_t2 else 1.0) * kl


def exact(student: Tensor, teacher: Tensor, labels: Tensor, mask: Tensor, options: tuple):
    return value_and_gradient(
        lambda s: by_hand(s, teacher, labels, mask, *options), student.double()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_equal_float64(shape, options, dtype):
    student, teacher, labels, mask = case(*shape)
    student, teacher = student.to(dtype), teacher.to(dtype)
    names = ("temperature", "weight", "scale_by_t2", "label_smoothing")
    words = dict(zip(names, options, strict=True))
    loss, gradient = value_and_gradient(
        lambda s: distill_loss(s, teacher, labels, mask=mask, **words), student
    )
    assert loss.shape == labels.shape and (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    truth, true_gradient = exact(student, teacher, labels, mask, options)
    assert_twins([loss], [truth], rtol=1e-5, atol=1e-5)
    rounding = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert_twins([gradient], [true_gradient], rtol=rounding, atol=1e-5)
    assert not gradient[:, ~mask].any()


def test_without_teacher_or_weight_it_is_cross_entropy():
    student, teacher, labels, _ = case(6, 11)
    expected = F.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(distill_loss(student, None, labels), expected)
    torch.testing.assert_close(distill_loss(student, teacher, labels, weight=0.0), expected)
    assert distill_loss(student[:0], teacher[:0], labels[:0]).shape == (0,)


def test_equal_logits_add_nothing_and_masked_logits_may_hold_anything():
    student, _, labels, mask = case(6, 50, 9)
    expected = distill_loss(student, None, labels, mask=mask)
    spoilt = student.masked_fill(~mask, float("nan"))
    for logits in (student, spoilt):
        loss, gradient = value_and_gradient(
            lambda s, teacher=logits: distill_loss(s, teacher, labels, mask=mask), logits
        )
        torch.testing.assert_close(loss, expected)
        assert gradient.isfinite().all()


def test_classes_that_the_teacher_rules_out_add_nothing():
    student, teacher, labels, _ = case(6, 30)
    teacher[:, 25:] = float("-inf")

    def plain(s: Tensor) -> Tensor:
        kl = F.kl_div((s / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="none").sum(1)
        return F.cross_entropy(s, labels, reduction="none") + kl

    actual = value_and_gradient(
        lambda s: distill_loss(s, teacher, labels, scale_by_t2=False), student
    )
    assert_twins(actual, value_and_gradient(plain, student), rtol=1e-5, atol=1e-6)


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
        ({"temperature": float("inf")}, "temperature must be positive and finite"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    logits = torch.zeros(2, 10)
    arguments = {"student": logits, "teacher": logits, "labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        distill_loss(**(arguments | change))


@pytest.mark.slow
def test_torch_compile_does_not_break_the_graph():
    student, teacher, labels, mask = case(4, 30, 12)

    def step(s: Tensor) -> Tensor:
        return distill_loss(s, teacher, labels, mask=mask)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_twins(
        value_and_gradient(compiled, student), value_and_gradient(step, student), rtol=0, atol=1e-6
    )


@pytest.mark.slow
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

    student, teacher, labels, _ = case(4, 30)
    compiled = torch.compile(
        step, fullgraph=True, backend=aot_autograd(fw_compiler=record, bw_compiler=record)
    )
    compiled(student.requires_grad_(), teacher, labels).backward()
    targets = [{str(node.target) for node in graph.nodes} for graph in graphs]
    assert len(graphs) == 2 and "triton_kernel_wrapper_functional" in targets[0]
    assert not any("rib" in target for target in targets[0] | targets[1])


FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


@interpreted
@pytest.mark.parametrize(
    ("shape", "options", "dtype"),
    [
        *((shape, options, FP32) for shape in [*SHAPES, (2, 4097, None)] for options in OPTIONS),
        *((shape, OPTIONS[2], dtype) for shape in SHAPES[1::2] for dtype in (FP16, BF16)),
    ],
)
def test_interpreted_kernel_equals_float64(shape, options, dtype, monkeypatch):
    student, teacher, labels, mask = case(*shape)
    student = student.to(dtype).masked_fill_(~mask, float("nan"))
    teacher = teacher.to(dtype).t().contiguous().t()  # the transposed layout
    temperature, weight, scale_by_t2, smoothing = options
    kl_weight = weight * (temperature**2 if scale_by_t2 else 1.0)
    rest = (labels, mask if shape[2] else None, temperature, kl_weight, smoothing, True)

    def run(logits: Tensor) -> Tensor:
        beyond = torch.empty(logits.numel() + 1, dtype=dtype)  # one more than the gradient has
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty_like", lambda like: beyond[:-1].view(like.shape))
            losses, _ = distill._distill(misaligned(logits), teacher, *rest)
        assert beyond[-1].isnan()
        return losses

    loss, gradient = value_and_gradient(run, student)
    truth, true_gradient = exact(student, teacher, labels, mask, options)
    assert_twins([loss], [truth], rtol=1e-5, atol=1e-5)
    rounding = {FP32: 1e-5, FP16: 2e-3, BF16: 1.6e-2}[dtype]
    assert_twins([gradient], [true_gradient], rtol=rounding, atol=2e-6 if dtype == FP32 else 1e-5)


def odd_cases() -> dict[str, tuple[Tensor, Tensor | None, Tensor, Tensor | None]]:
    lowest = torch.finfo(FP32).min
    student, teacher, labels, mask = case(3, 40, 30)
    wide, wide_teacher, wide_labels, _ = case(3, 4100)
    cases = {
        "no teacher": (student, None, labels, None),
        "one class": (student[:, :1], None, labels * 0, None),
        "teacher in bf16": (student, teacher.to(BF16), labels, mask),
        "student in fp16": (student.half(), teacher, labels, mask),
        "no fp16 holds the loss": (
            (student * 15000).clamp(-65000, 65000).half(), (teacher * 5000).half(), labels, None,
        ),
    }  # fmt: skip
    for low in (float("-inf"), lowest):
        ruled_out = torch.arange(40) >= 35
        students, teachers = (s.masked_fill(ruled_out, low) for s in (student, teacher))
        cases[f"classes at {low}"] = students, teachers, labels.clamp(max=34), None
        cases[f"classes at {low}, no teacher"] = students, None, labels.clamp(max=34), None
    for name, s, t, y in (
        ("", student, teacher, labels),
        ("wide ", wide, wide_teacher, wide_labels),
    ):
        s, t = s - 2e30, t - 2e31
        s[:, 0] = t[:, 0] = lowest
        cases[f"{name}rows of low logits alone"] = s, t, y, None
    return cases


@interpreted
@pytest.mark.parametrize("name", odd_cases())
def test_interpreted_kernel_takes_odd_rows(name):
    student, teacher, labels, mask = odd_cases()[name]
    loss, gradient = distill._distill(student, teacher, labels, mask, 2.0, 4.0, 0.0, True)
    twin = student.double() if student.dtype == FP16 else student.clone()
    truth = reference.distill_loss(twin.requires_grad_(), teacher, labels, mask=mask)
    (true_gradient,) = torch.autograd.grad(truth.sum(), twin)
    assert gradient.dtype == student.dtype and gradient.isfinite().all()
    assert_twins([loss], [truth.detach()], rtol=1e-5, atol=1e-5)
    assert_twins([gradient], [true_gradient], rtol=2e-3 if twin is not student else 1e-5, atol=1e-5)


@interpreted
def test_interpreted_kernel_without_gradient_or_samples_and_with_labels_outside():
    student, teacher, labels, _ = case(3, 21)
    loss, gradient = distill._distill(student, None, labels, None, 2.0, 0.0, 0.0, False)
    torch.testing.assert_close(loss, F.cross_entropy(student, labels, reduction="none"))
    assert gradient.shape == (0,)
    loss, gradient = distill._distill(student[:0], None, labels[:0], None, 2.0, 0.0, 0.0, True)
    assert loss.shape == (0,) and gradient.shape == (0, 21)
    mask, outside = torch.arange(21) != 4, torch.tensor([4, 21, 0])
    loss, _ = distill._distill(student, teacher, outside, mask, 2.0, 4.0, 0.0, True)
    assert loss.isinf().tolist() == [True, True, False]
