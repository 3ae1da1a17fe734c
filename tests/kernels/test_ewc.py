"""EWC steps against torch's optimizers in float64 whose loss contains the penalty."""

from __future__ import annotations

import pytest
import torch
from fake_cuda import CUDA, fake_gpu
from launches import counted
from torch import Tensor
from triton_interpreter import INTERPRETING, interpreted, run_interpreted

from kernels import ewc, reference, tables
from kernels.ewc import adamw_ewc_, foreach_adamw_ewc_, foreach_sgd_ewc_, sgd_ewc_

SIZES = [0, 1, 7, 1023, 1024, 1025, 5000]
VARIANTS = ["plain", "identity", "fisher"]
LAM, LR, DECAY, STEPS = 0.7, 0.03, 0.1, 3


def case(size: int, variant: str) -> dict[str, Tensor | None]:
    """theta, anchor, fisher and one gradient per step; some of each are zero."""
    generator = torch.Generator().manual_seed(size)
    numbers = torch.randn(3 + STEPS, size, generator=generator)
    theta, anchor, fisher, *grads = numbers
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


def misaligned(tensor: Tensor | None) -> Tensor | None:
    """The same numbers, one element past an aligned address."""
    if tensor is None:
        return None
    buffer = torch.full((tensor.numel() + 2,), float("nan"))
    return buffer[1:-1].copy_(tensor)


def run(name: str, given: dict, **options) -> list[Tensor]:
    """The same steps by the functions under test, on misaligned views of NaN-filled buffers."""
    theta, anchor, fisher = (misaligned(given[key]) for key in ("theta", "anchor", "fisher"))
    moments = [misaligned(torch.zeros_like(theta)) for _ in range(2)]
    momentum_buffer = torch.full_like(theta, float("nan"))
    for step, grad in enumerate(given["grads"].clone(), start=1):
        shared = {"lr": LR, "weight_decay": DECAY, "lam": LAM, **options}
        if name == "adamw":
            adamw_ewc_(
                theta, grad, *moments, anchor, fisher, step=step, betas=(0.8, 0.95), **shared
            )
        else:
            first = step == 1
            sgd_ewc_(
                theta, grad, momentum_buffer, anchor, fisher, momentum=0.8, first=first, **shared
            )
    return [theta, *(moments if name == "adamw" else [momentum_buffer])]


def assert_equal_to_truth(name: str, given: dict) -> None:
    for actual, exact in zip(run(name, given), truth(name, given), strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [*SIZES, ewc._CHUNK + 1])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_equal_float64(name, size, variant):
    assert_equal_to_truth(name, case(size, variant))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_many_tensors_at_once_are_those_tensors_one_by_one(name):
    generator = torch.Generator().manual_seed(1)
    sizes, roles = [0, 64, 1, 700, 129, 0, 1025, 3], 6 if name == "adamw" else 5
    columns = [torch.rand(roles, size, generator=generator) for size in sizes]
    alone = [column.clone() for column in columns]
    shared = {"lr": LR, "weight_decay": DECAY, "lam": LAM}
    adamw, sgd = (ewc.foreach_adamw_ewc_, adamw_ewc_), (ewc.foreach_sgd_ewc_, sgd_ewc_)
    many, single = adamw if name == "adamw" else sgd
    steps = list(range(1, len(sizes) + 1))
    given = {"steps": steps} if name == "adamw" else {}
    many(*zip(*columns, strict=True), **given, **shared)
    for column, step in zip(alone, steps, strict=True):
        given = {"step": step} if name == "adamw" else {}
        single(*column, **given, **shared)
    for actual, exact in zip(columns, alone, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-6, atol=0)
    many(*[[] for _ in range(roles)], **({"steps": []} if name == "adamw" else {}), **shared)


def test_a_step_hides_no_nan():
    given = case(40, "fisher")
    given["grads"][:, 3] = float("nan")
    for name in ("adamw", "sgd"):
        theta, *_ = run(name, given)
        assert theta.isnan().nonzero().tolist() == [[3]]


def test_a_weight_of_zero_is_the_plain_step():
    given = case(1000, "fisher")
    for name in ("adamw", "sgd"):
        plain = run(name, given | {"anchor": None, "fisher": None})
        assert all(map(torch.equal, run(name, given, lam=0.0), plain))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_twins_are_the_same_steps(name):
    given = case(50, "fisher")
    theta, *moments = (t.double() for t in (given["theta"], *torch.zeros(2, 50)))
    pull = given["anchor"].double(), given["fisher"].double()
    for t, grad in enumerate(given["grads"].double(), start=1):
        if name == "adamw":
            scalars = [LAM, 1 - LR * DECAY, LR / (1 - 0.8**t), 0.2, 0.95, 0.05]
            scalars += [(1 - 0.95**t) ** -0.5, 1e-8]
            reference.adamw_ewc_(theta, grad, *moments, *pull, torch.tensor(scalars).double())
        else:
            scalars = torch.tensor([LAM, DECAY, 0.8, LR]).double()
            reference.sgd_ewc_(theta, grad, moments[0], *pull, scalars)
    torch.testing.assert_close(theta, truth(name, given)[0], rtol=1e-6, atol=1e-6)


def test_parameters_that_require_gradients_are_stepped_in_their_own_shape():
    theta = torch.nn.Parameter(torch.ones(3, 4))
    zeros = [torch.zeros(3, 4) for _ in range(3)]
    sgd_ewc_(theta, *zeros, lr=0.5, lam=1.0)
    torch.testing.assert_close(theta.detach(), torch.full((3, 4), 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": torch.zeros(4, 2).t()}, "grad is not contiguous"),
        ({"anchor": torch.zeros(4, 3)[:, :2].t()}, "anchor is not contiguous"),
        ({"theta": torch.zeros(2, 4, dtype=torch.bfloat16)}, "theta must be float32, not"),
        ({"fisher": torch.zeros(2, 4, dtype=torch.float64)}, "fisher must be float32, not"),
        ({"exp_avg": torch.zeros(8)}, r"exp_avg is \[8\] on cpu, but theta is \[2, 4\]"),
        ({"exp_avg_sq": torch.zeros(2, 4, device="meta")}, r"exp_avg_sq is \[2, 4\] on meta"),
        ({"anchor": None}, "without an anchor"),
        ({"step": 0}, "step counts from 1, not 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, message):
    names = ("theta", "grad", "exp_avg", "exp_avg_sq", "anchor", "fisher")
    arguments = {name: torch.zeros(2, 4) for name in names} | {"step": 1} | change
    with pytest.raises(ValueError, match=message):
        adamw_ewc_(**arguments, lr=0.1)


@pytest.mark.parametrize("name", ["grad", "exp_avg", "anchor", "fisher", "step"])
def test_lists_of_another_length_are_refused_by_name(name):
    names = ("theta", "grad", "exp_avg", "exp_avg_sq", "anchor", "fisher")
    lists = {n: [torch.zeros(3) for _ in range(2)] for n in names} | {"step": [1, 1]}
    lists[name] = lists[name][:0]
    with pytest.raises(ValueError, match=f"{name}: 0 are given for 2 parameters"):
        foreach_adamw_ewc_(**{f"{n}s": given for n, given in lists.items()}, lr=0.1)


def test_parameters_of_two_devices_are_refused():
    thetas = [torch.zeros(3), torch.zeros(3, device="meta")]
    with pytest.raises(ValueError, match="theta is on meta, but the first theta is on cpu"):
        foreach_sgd_ewc_(thetas, thetas, thetas, lr=0.1)


@pytest.mark.skipif(INTERPRETING, reason="counts what is not run")
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_on_a_gpu_is_a_launch_and_a_copy_and_waits_for_nothing(name):
    """A step before has left the table of addresses."""
    with fake_gpu():
        columns = [[torch.empty(s, device=CUDA) for s in (0, 5, 2000)] for _ in range(6)]
        options = {"lr": 0.1, "lam": LAM}
        for _ in range(2):
            with counted(run=False) as counts:
                if name == "adamw":
                    foreach_adamw_ewc_(*columns, steps=[1, 2, 2], **options)
                else:
                    foreach_sgd_ewc_(*columns[:5], **options)
    tables._layout.cache_clear()  # of tensors without content
    tables._pointers.cache_clear()
    assert not counts.waits and counts.launches == {"_step_kernel": 1, "_to_copy": 1}


@pytest.mark.slow
def test_kernel_in_the_interpreter():
    run_interpreted(__file__)


class AsOnAGpu(torch.Tensor):
    """A tensor of the CPU that says it lies on a GPU: it takes the kernel, in the interpreter."""

    is_cuda = True


def table_steps(name, numbers, absent, together, aligned=True):
    """Two steps of parameters whose tensors are `numbers`, by one launch or by a launch each."""
    rows = []
    for given in numbers:
        row = [t.clone() if aligned else misaligned(t) for t in given]
        row[0] = row[0].as_subclass(AsOnAGpu)
        rows.append([None if k in absent else t for k, t in enumerate(row)])
    options = {"lr": LR, "weight_decay": DECAY, "lam": LAM}
    for step in range(1, 3):
        counts = [step + number for number in range(len(rows))]
        each = [slice(number, number + 1) for number in range(len(rows))]
        for part in [slice(None)] if together else each:
            columns = [None if c[0] is None else c for c in zip(*rows[part], strict=True)]
            if name == "adamw":
                foreach_adamw_ewc_(*columns, steps=counts[part], **options)
            else:
                foreach_sgd_ewc_(*columns, **options)
    return [t for row in rows for t in row if t is not None]


@interpreted
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_interpreted_kernel_equals_float64(name, size, variant):
    given = case(size, variant)
    given["theta"] = given["theta"].as_subclass(AsOnAGpu)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ewc, "_rows", lambda columns, lam: tables.rows(columns))
        actual = run(name, given)
    given["theta"] = given["theta"].as_subclass(Tensor)
    for computed, exact in zip(actual, truth(name, given), strict=True):
        torch.testing.assert_close(computed.double(), exact, rtol=1e-6, atol=1e-6)


@interpreted
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_interpreted_table_steps_all_tensors_at_once(name, aligned, variant):
    """Bit for bit as a launch each."""
    generator = torch.Generator().manual_seed(1)
    roles = 6 if name == "adamw" else 5
    absent = {"plain": (roles - 2, roles - 1), "identity": (roles - 1,), "fisher": ()}[variant]
    sizes = [0, 64, 1, 700, 1024, 0, 3000, 3]
    numbers = [torch.rand(roles, size, generator=generator) for size in sizes]
    ends = [table_steps(name, numbers, absent, together, aligned) for together in (True, False)]
    for mine, right in zip(*ends, strict=True):
        assert torch.equal(mine, right)


@interpreted
def test_interpreted_table_hides_no_nan_and_takes_nothing():
    numbers = [torch.rand(6, size) for size in (7, 5)]
    numbers[1][1, 3] = float("nan")  # a gradient, which is in theta before the second step
    ends = table_steps("adamw", numbers, (), together=True)
    assert not any(t.isnan().any() for t in ends[:6])
    assert ends[6].isnan().nonzero().tolist() == [[3]]
    table_steps("sgd", [torch.rand(5, 0)] * 2, (), together=True)
