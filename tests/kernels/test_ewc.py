"""EWC steps against torch's optimizers in float64 whose loss contains the penalty."""

import pytest
import torch
from torch import Tensor

from helpers.children import DEVICE, INTERPRETING, KERNELS, ON_GPU, everywhere
from helpers.twins import assert_twins, misaligned
from kernels.ewc import EwcParameters

VARIANTS = ["plain", "identity", "fisher"]
LAM, LR, DECAY, STEPS = 0.7, 0.03, 0.1, 3
SHARED = {"lr": LR, "weight_decay": DECAY, "lam": LAM}
NAMES = ("theta", "grad", "exp_avg", "exp_avg_sq", "anchor", "fisher")
OPTIMIZERS = pytest.mark.parametrize("name", ["adamw", "sgd"])
ALL_VARIANTS = pytest.mark.parametrize("variant", VARIANTS)


class AsOnAGpu(torch.Tensor):
    """A tensor of the CPU that says it lies on a GPU: it takes the kernel, in the interpreter."""

    is_cuda = True


def case(size: int, variant: str) -> dict[str, Tensor | None]:
    """theta, anchor, fisher and one gradient per step; some of each are zero."""
    generator = torch.Generator().manual_seed(size)
    theta, anchor, fisher, *grads = torch.randn(3 + STEPS, size, generator=generator)
    fisher = fisher.square().masked_fill(fisher < -1, 0.0)
    return {
        "theta": theta,
        "anchor": None if variant == "plain" else anchor.masked_fill(anchor > 1, 0.0),
        "fisher": fisher if variant == "fisher" else None,
        "grads": torch.stack(grads).masked_fill(theta < -1.5, 0.0),
    }


def truth(name: str, given: dict) -> list[Tensor]:
    """theta and states after the steps, all in float64."""
    theta = given["theta"].double().requires_grad_()
    if name == "adamw":
        optimizer = torch.optim.AdamW([theta], lr=LR, weight_decay=DECAY, betas=(0.8, 0.95))
    else:
        optimizer = torch.optim.SGD([theta], lr=LR, weight_decay=DECAY, momentum=0.8)
    for grad in given["grads"]:
        optimizer.zero_grad()
        penalty = torch.zeros((), dtype=torch.float64)
        if given["anchor"] is not None:
            fisher = 1.0 if given["fisher"] is None else given["fisher"].double()
            penalty = LAM / 2 * (fisher * (theta - given["anchor"].double()).square()).sum()
        ((grad.double() * theta).sum() + penalty).backward()
        optimizer.step()
    names = ("exp_avg", "exp_avg_sq") if name == "adamw" else ("momentum_buffer",)
    return [theta.detach(), *(optimizer.state[theta][key] for key in names)]


def run(name: str, given: dict, **options) -> list[Tensor]:
    """The same steps by the functions under test, on misaligned tensors."""
    theta, anchor, fisher = (
        None if given[key] is None else misaligned(given[key].to(DEVICE))
        for key in ("theta", "anchor", "fisher")
    )
    moments = [misaligned(torch.zeros_like(theta)) for _ in range(1 + (name == "adamw"))]
    theta = theta.as_subclass(AsOnAGpu if INTERPRETING else Tensor)
    for step, grad in enumerate(given["grads"].clone().to(DEVICE), start=1):
        tensors = (theta, grad, *moments, anchor, fisher)
        columns = [None if tensor is None else [tensor] for tensor in tensors]
        foreach(name, columns, [step], betas=(0.8, 0.95), momentum=0.8, **options)
    return [theta.as_subclass(Tensor), *moments]


def foreach(name: str, columns, steps: list[int], *, betas=(0.9, 0.999), momentum=0.9, **options):
    """A step of tensors, of which `columns` has the roles of AdamW's or SGD's."""
    thetas, grads, *others = columns
    names = ("exp_avg", "exp_avg_sq") if name == "adamw" else ("momentum_buffer",)
    moments, pull = dict(zip(names, others, strict=False)), others[len(names) :]
    parameters = EwcParameters(thetas, moments, *pull)
    if name == "adamw":
        parameters.adamw_(grads, steps=steps, betas=betas, **SHARED | options)
    else:
        parameters.sgd_(grads, momentum=momentum, **SHARED | options)


@everywhere
@ALL_VARIANTS
@pytest.mark.parametrize("size", [0, 1, 1023, 1025, 5000])
@OPTIMIZERS
def test_steps_equal_float64(name, size, variant):
    given = case(size, variant)
    off = 1e-5 if ON_GPU else 1e-6
    assert_twins(run(name, given), truth(name, given), rtol=off, atol=1e-6)


@everywhere
@ALL_VARIANTS
@pytest.mark.parametrize("place", [torch.clone, misaligned])
@OPTIMIZERS
def test_many_tensors_at_once_are_those_tensors_one_by_one(name, place, variant):
    """By one launch bit for bit as by a launch each."""
    generator = torch.Generator().manual_seed(1)
    roles = (4 if name == "adamw" else 3) + VARIANTS.index(variant)
    tensors = [torch.rand(roles, size, generator=generator) for size in (0, 64, 1, 700, 1025, 3000)]
    ends = []
    for together in (True, False):
        rows = [[place(tensor.to(DEVICE)) for tensor in row] for row in tensors]
        if INTERPRETING:
            for row in rows:
                row[0] = row[0].as_subclass(AsOnAGpu)
        for step in (1, 2):
            for part in [rows] if together else [[row] for row in rows]:
                foreach(name, zip(*part, strict=True), [step] * len(part))
        ends.append([tensor.as_subclass(Tensor) for row in rows for tensor in row])
    assert_twins(*ends, rtol=0 if KERNELS else 1e-6, atol=0)
    foreach(name, [[] for _ in range(roles)], [])


@OPTIMIZERS
def test_a_step_hides_no_nan_and_a_weight_of_zero_is_the_plain_step(name):
    given = case(1000, "fisher")
    plain = run(name, given | {"anchor": None, "fisher": None})
    assert all(map(torch.equal, run(name, given, lam=0.0), plain))
    given["grads"][:, 3] = float("nan")
    assert run(name, given)[0].isnan().nonzero().tolist() == [[3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": torch.zeros(4, 2).t()}, "grad is not contiguous"),
        ({"theta": torch.zeros(2, 4, dtype=torch.bfloat16)}, "theta must be float32, not"),
        ({"exp_avg": torch.zeros(8)}, r"exp_avg is \[8\] on cpu, but theta is \[2, 4\]"),
        ({"exp_avg_sq": torch.zeros(2, 4, device="meta")}, r"exp_avg_sq is \[2, 4\] on meta"),
        ({"anchor": None}, "fisher is given without anchor"),
        ({"step": 0}, "step must be at least 1, not 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    given = {name: torch.zeros(2, 4) for name in NAMES} | {"step": 1} | change
    columns = [None if given[name] is None else [given[name]] for name in NAMES]
    with pytest.raises(ValueError, match=message):
        foreach("adamw", columns, [given["step"]])


def test_moments_count_by_their_names():
    moved = []
    for names in (("exp_avg", "exp_avg_sq"), ("exp_avg_sq", "exp_avg")):
        theta, moments = torch.ones(3), {name: [torch.full((3,), len(name) / 9)] for name in names}
        parameters = EwcParameters([theta], moments)
        parameters.adamw_([torch.ones(3)], steps=[1], lr=0.1)
        moved.append(theta)
    assert torch.equal(*moved)
    with pytest.raises(ValueError, match="a step of sgd needs other moments than those of adamw"):
        parameters.sgd_([torch.ones(3)], lr=0.1)
    with pytest.raises(ValueError, match="moments are exp_avg, but must be one of"):
        EwcParameters([theta], {"exp_avg": [theta]})


def test_lists_of_another_length_or_of_two_devices_are_refused_by_name():
    lists = [[torch.zeros(3) for _ in range(2)] for _ in NAMES[:-1]]
    with pytest.raises(ValueError, match="fisher: got 0 tensors for 2 parameters"):
        foreach("adamw", [*lists, []], [1, 1])
    thetas = [torch.zeros(3), torch.zeros(3, device="meta")]
    with pytest.raises(ValueError, match="theta is on meta, but the first theta is on cpu"):
        foreach("sgd", [thetas] * 3, [])
