"""Distillation loss: values and gradients against float64, on the CPU and of the kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.children import DEVICE, INTERPRETING, everywhere, interpreted
from helpers.twins import assert_twins, misaligned, value_and_gradient
from kernels import distill
from kernels.distill import distill_loss

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
SHAPES = [(1, 10, None), (7, 105, 33), (4, 1000, 105), (5, 4096, 200), (2, 4097, None)]
SHAPES += [(3, 21843, 1000)]  # samples, classes, unmasked ones
# temperature, weight, scale_by_t2
OPTIONS = [(1.0, 1.0, True), (2.0, 0.7, False), (4.0, 1.0, True)]


def case(batch: int, classes: int, unmasked: int | None = None) -> tuple[Tensor, ...]:
    """Student and teacher logits, labels and mask."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, batch, classes, generator=generator)
    classes_left = torch.randperm(classes, generator=generator)[: unmasked or classes]
    mask = torch.zeros(classes, dtype=torch.bool).index_fill(0, classes_left, True)
    labels = classes_left[torch.randint(len(classes_left), (batch,), generator=generator)]
    return student, teacher, labels, mask


def loss_of(s, teacher, labels, mask=None, temperature=2.0, weight=1.0, scale_by_t2=True) -> Tensor:
    """Of the kernel where it is interpreted, which must write nothing beyond its gradient."""
    s, teacher, labels, mask = (
        t if t is None else t.to(DEVICE) for t in (s, teacher, labels, mask)
    )
    if not INTERPRETING:
        words = {"temperature": temperature, "weight": weight}
        return distill_loss(s, teacher, labels, mask=mask, scale_by_t2=scale_by_t2, **words).cpu()
    kl_weight = weight * (temperature**2 if scale_by_t2 else 1.0)
    beyond = torch.empty(s.numel() + 1, dtype=s.dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda like: beyond[:-1].view(like.shape))
        rest = labels, mask, temperature, kl_weight, True
        losses, _ = distill._distill(misaligned(s), teacher, *rest)
    assert beyond[-1].isnan()
    return losses


def by_hand(s, t, labels, mask, temperature, weight, scale_by_t2) -> Tensor:
    """The loss on the unmasked columns alone, through torch's own losses, in float64."""
    columns = mask.nonzero().squeeze(1)
    position = torch.cumsum(mask, 0)[labels] - 1
    s, t = s.double()[:, columns], t.double()[:, columns]
    task = F.cross_entropy(s, position, reduction="none")
    log_q, log_p = (t / temperature).log_softmax(1), (s / temperature).log_softmax(1)
    kl = F.kl_div(log_p, log_q, log_target=True, reduction="none").sum(1)
    return task + weight * (temperature**2 if scale_by_t2 else 1.0) * kl


@everywhere
@pytest.mark.parametrize(
    ("shape", "options", "dtype"),
    [
        *((shape, OPTIONS[number % 3], FP32) for number, shape in enumerate(SHAPES)),
        *((shape, OPTIONS[2], dtype) for shape in SHAPES[1:4:2] for dtype in (FP16, BF16)),
    ],
)
def test_loss_and_gradient_equal_float64(shape, options, dtype):
    student, teacher, labels, mask = case(*shape)
    student = student.to(dtype).masked_fill_(~mask, float("nan"))  # which may hold anything
    teacher = teacher.to(dtype).t().contiguous().t()  # the transposed layout
    rest = (labels, mask if shape[2] else None, *options)
    loss, gradient = value_and_gradient(lambda s: loss_of(s, teacher, *rest), student)
    assert loss.shape == labels.shape and (loss.dtype, gradient.dtype) == (FP32, dtype)
    truth, true_gradient = value_and_gradient(
        lambda s: by_hand(s, teacher, labels, mask, *options), student.double()
    )
    assert_twins([loss], [truth], rtol=1e-5, atol=1e-5)
    rounding = {FP32: 2e-5, FP16: 2e-3, BF16: 1.6e-2}[dtype]
    assert_twins([gradient], [true_gradient], rtol=rounding, atol=1e-5)
    assert not gradient[:, ~mask].any()


@everywhere
def test_without_a_teacher_or_samples_and_of_equal_logits():
    student, teacher, labels, _ = case(6, 50, 9)
    expected = F.cross_entropy(student, labels, reduction="none")
    for other, weight in ((None, 1.0), (teacher, 0.0), (student, 1.0)):
        actual = loss_of(student, other, labels, weight=weight)
        torch.testing.assert_close(actual, expected)
    none = value_and_gradient(lambda s: loss_of(s, teacher[:0], labels[:0]), student[:0])
    assert [t.shape for t in none] == [(0,), (0, 50)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 10])}, "sample 1: label 10"),
        ({"mask": torch.arange(10) > 0}, "sample 0: label 0 is not among the 9 unmasked"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels must be int64"),
        ({"teacher": torch.zeros(2, 9)}, "teacher logits"),
        ({"mask": torch.ones(9, dtype=torch.bool)}, "mask must be bool"),
        ({"student": torch.zeros(10)}, "student logits"),
        ({"temperature": float("inf")}, "temperature must be positive and finite"),
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


def odd_cases() -> dict[str, tuple[Tensor, Tensor | None, Tensor, Tensor | None]]:
    lowest = torch.finfo(FP32).min
    student, teacher, labels, mask = case(3, 40, 30)
    large = (15000 * student).clamp(-65000, 65000).half(), (5000 * teacher).half()
    cases = {
        "ruled out": (
            student,
            teacher.index_fill(1, torch.arange(35, 40), -torch.inf),
            labels,
            None,
        ),
        "one class": (student[:, :1], None, labels * 0, None),
        "teacher in bf16": (student, teacher.to(BF16), labels, mask),
        "student in fp16": (student.half(), teacher, labels, mask),
        "no fp16 holds the loss": (*large, labels, None),
    }
    for low in (float("-inf"), lowest):
        first, second = (s.index_fill(1, torch.arange(35, 40), low) for s in (student, teacher))
        cases[f"classes at {low}"] = first, second, labels.clamp(max=34), None
        cases[f"classes at {low}, no teacher"] = first, None, labels.clamp(max=34), None
    for classes in (40, 4100):
        s, t, y, _ = case(3, classes)
        s, t = s - 2e30, t - 2e31
        s[:, 0] = t[:, 0] = lowest
        cases[f"{classes} low logits"] = s, t, y, None
    return cases


@everywhere
@pytest.mark.parametrize("name", odd_cases())
def test_odd_rows(name):
    student, teacher, labels, mask = odd_cases()[name]
    actual = value_and_gradient(lambda s: loss_of(s, teacher, labels, mask), student)
    twin = student.double() if student.dtype == FP16 else student
    truth = value_and_gradient(lambda s: distill_loss(s, teacher, labels, mask=mask), twin)
    assert actual[1].dtype == student.dtype and actual[1].isfinite().all()
    assert_twins(actual[:1], truth[:1], rtol=1e-5, atol=1e-5)
    assert_twins(actual[1:], truth[1:], rtol=2e-3 if twin is not student else 1e-5, atol=1e-5)


@interpreted
def test_interpreted_kernel_without_gradient_and_with_labels_outside():
    student, teacher, labels, _ = case(3, 21)
    loss, gradient = distill._distill(student, None, labels, None, 2.0, 0.0, False)
    torch.testing.assert_close(loss, F.cross_entropy(student, labels, reduction="none"))
    assert gradient.shape == (0,)
    mask, outside = torch.arange(21) != 4, torch.tensor([4, 21, 0])
    loss, _ = distill._distill(student, teacher, outside, mask, 2.0, 4.0, True)
    assert loss.isinf().tolist() == [True, True, False]
