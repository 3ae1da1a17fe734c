"""EWC steps against torch's optimizers in float64 whose loss contains the penalty."""

from __future__ import annotations

import pytest
import torch
from fake_cuda import CUDA, fake_gpu
from launches import counted
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from triton_interpreter import INTERPRETING, interpreted, run_interpreted

from kernels import ewc, step_numbers, tables
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


def truth(name: str, given: dict) -> tuple[list[Tensor], float]:
    """theta and states after the steps, and the sum of the penalty's values, all in float64."""
    theta = given["theta"].double().requires_grad_()
    if name == "adamw":
        optimizer = torch.optim.AdamW([theta], lr=LR, weight_decay=DECAY, betas=(0.8, 0.95))
    else:
        optimizer = torch.optim.SGD([theta], lr=LR, weight_decay=DECAY, momentum=0.8)
    total = 0.0
    for grad in given["grads"]:
        optimizer.zero_grad()
        penalty = torch.zeros((), dtype=torch.float64)
        if given["anchor"] is not None:
            fisher = 1.0 if given["fisher"] is None else given["fisher"].double()
            penalty = LAM / 2 * (fisher * (theta - given["anchor"].double()).square()).sum()
        ((grad.double() * theta).sum() + penalty).backward()
        total += penalty.item()
        optimizer.step()
    names = ("exp_avg", "exp_avg_sq") if name == "adamw" else ("momentum_buffer",)
    return [theta.detach(), *(optimizer.state[theta][key] for key in names)], total


def misaligned(tensor: Tensor | None) -> Tensor | None:
    """The same numbers, one element past an aligned address."""
    if tensor is None:
        return None
    buffer = torch.full((tensor.numel() + 2,), float("nan"))
    return buffer[1:-1].copy_(tensor)


def as_numbers(lr: float, step: int) -> tuple[float, int]:
    return lr, step


def as_tensors(lr: float, step: int) -> tuple[Tensor, Tensor]:
    """As a CUDA graph takes them; steps as torch's optimizers store them."""
    return torch.tensor(lr, dtype=torch.float64), torch.tensor(float(step))


def run(name: str, given: dict, given_as=as_numbers, **options) -> tuple[list[Tensor], Tensor]:
    """The same steps by the functions under test, on misaligned views of NaN-filled buffers."""
    theta, anchor, fisher = (misaligned(given[key]) for key in ("theta", "anchor", "fisher"))
    penalty = torch.zeros((), dtype=torch.float64)
    moments = [misaligned(torch.zeros_like(theta)) for _ in range(2)]
    momentum_buffer = torch.full_like(theta, float("nan"))
    for step, grad in enumerate(given["grads"], start=1):
        lr, count = given_as(LR, step)
        shared = {"lr": lr, "weight_decay": DECAY, "lam": LAM, "penalty": penalty, **options}
        if name == "adamw":
            adamw_ewc_(
                theta, grad, *moments, anchor, fisher, step=count, betas=(0.8, 0.95), **shared
            )
        else:
            first = step == 1
            sgd_ewc_(
                theta, grad, momentum_buffer, anchor, fisher, momentum=0.8, first=first, **shared
            )
    return [theta, *(moments if name == "adamw" else [momentum_buffer])], penalty


def assert_equal_to_truth(name: str, given: dict, **options) -> None:
    expected, expected_penalty = truth(name, given)
    computed, penalty = run(name, given, **options)
    for actual, exact in zip(computed, expected, strict=True):
        torch.testing.assert_close(actual.double(), exact, rtol=1e-6, atol=1e-6)
    assert penalty.item() == pytest.approx(expected_penalty, rel=2e-6)


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
    penalties = torch.zeros(2, dtype=torch.float64)
    shared = {"lr": LR, "weight_decay": DECAY, "lam": LAM}
    adamw, sgd = (ewc.foreach_adamw_ewc_, adamw_ewc_), (ewc.foreach_sgd_ewc_, sgd_ewc_)
    many, single = adamw if name == "adamw" else sgd
    steps = list(range(1, len(sizes) + 1))
    given = {"steps": steps} if name == "adamw" else {}
    many(*zip(*columns, strict=True), **given, **shared, penalty=penalties[0])
    for column, step in zip(alone, steps, strict=True):
        given = {"step": step} if name == "adamw" else {}
        single(*column, **given, **shared, penalty=penalties[1])
    for actual, exact in zip(columns, alone, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(*penalties)
    many(*[[] for _ in range(roles)], **({"steps": []} if name == "adamw" else {}), **shared)


def test_a_step_hides_no_nan():
    given = case(40, "fisher")
    given["grads"][:, 3] = float("nan")
    for name in ("adamw", "sgd"):
        (theta, *_), penalty = run(name, given)
        assert theta.isnan().nonzero().tolist() == [[3]] and penalty.isnan()


def test_a_weight_of_zero_is_the_plain_step():
    given = case(1000, "fisher")
    for name in ("adamw", "sgd"):
        with_penalty, penalty = run(name, given, lam=0.0)
        plain, _ = run(name, given | {"anchor": None, "fisher": None})
        assert penalty == 0
        for actual, exact in zip(with_penalty, plain, strict=True):
            torch.testing.assert_close(actual, exact, rtol=0, atol=0)


def test_parameters_that_require_gradients_are_stepped_in_their_own_shape():
    theta = torch.nn.Parameter(torch.ones(3, 4))
    zeros = [torch.zeros(3, 4) for _ in range(3)]
    penalty = torch.ones(())
    sgd_ewc_(theta, zeros[0], zeros[1], zeros[2], lr=0.5, lam=1.0, penalty=penalty)
    torch.testing.assert_close(theta.detach(), torch.full((3, 4), 0.5))
    assert penalty == 1 + 6


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
        ({"penalty": torch.zeros(1)}, r"penalty must be a float32 or float64 scalar"),
        ({"penalty": torch.zeros((), device="meta")}, "penalty is on meta"),
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


def test_a_step_does_not_break_a_compiled_graph():
    given = case(50, "fisher")

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(theta, grad, momentum_buffer, anchor, fisher, penalty):
        sgd_ewc_(theta, grad, momentum_buffer, anchor, fisher, lr=LR, lam=LAM, penalty=penalty)
        return theta * 2

    inputs = [given["theta"], given["grads"][0], torch.zeros(50), given["anchor"], given["fisher"]]
    eager, traced = ([tensor.clone() for tensor in inputs] for _ in range(2))
    penalties = torch.zeros(()), torch.zeros(())
    sgd_ewc_(*eager, lr=LR, lam=LAM, penalty=penalties[0])
    torch.testing.assert_close(step(*traced, penalties[1]), eager[0] * 2)
    for actual, exact in zip(traced, eager, strict=True):
        torch.testing.assert_close(actual, exact)
    torch.testing.assert_close(*penalties)


def counting(graphs: list):
    """A backend that keeps the graphs it is given, and runs them as they are."""

    def compiler(module, _):
        graphs.append(module)
        return make_boxed_func(module.forward)

    return aot_autograd(fw_compiler=compiler)


@pytest.mark.parametrize(("given_as", "compiled"), [(as_tensors, 1), (as_numbers, 2)])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_compiled_step_is_traced_once_for_all_steps_and_rates(name, given_as, compiled):
    """Numbers are taken for constants until a second call shows that they change."""
    torch._dynamo.reset()
    graphs, generator = [], torch.Generator().manual_seed(0)
    columns = torch.rand(6 if name == "adamw" else 5, 2, 40, generator=generator)
    traced = [[t.clone() for t in column] for column in columns]
    eager = [[t.clone() for t in column] for column in columns]

    def step(columns, lr, count):
        if name == "adamw":
            foreach_adamw_ewc_(*columns, steps=[count, count], lr=lr, lam=LAM)
        else:
            foreach_sgd_ewc_(*columns, lr=lr, lam=LAM)

    fast = torch.compile(step, fullgraph=True, backend=counting(graphs))
    for count in range(1, 6):
        fast(traced, *given_as(0.1 * count, count))
        step(eager, *as_numbers(0.1 * count, count))
    assert len(graphs) == compiled
    assert str(graphs[-1].graph).count("rib.ewc_step_") == 1
    for actual, exact in zip(traced, eager, strict=True):
        assert all(map(torch.equal, actual, exact))


def test_the_operator_declares_what_it_writes():
    columns = [list(torch.rand(2, 30)) for _ in range(6)]
    rest = (torch.zeros(()), torch.tensor(0.1), torch.tensor([1.0, 2.0]))
    torch.library.opcheck(ewc._operator, (*columns, *rest, [0.9, 0.99, 1e-8, 0.0, 1.0]))
    columns[3] = []
    torch.library.opcheck(ewc._operator, (*columns, *rest[:2], None, [0.9, 0.0, 1.0]))


@pytest.fixture
def on_device(monkeypatch):
    """Tensors of the CPU are taken for those of a GPU, which the host must not read."""
    monkeypatch.setattr(step_numbers, "_read", lambda name, given, device: given)


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.9999])
def test_numbers_of_the_device_are_those_of_the_host(beta, on_device):
    counts = [1, 2, 3, 10, 1000, 10**6]
    options, cpu = [beta, beta, 1e-8, 0.05, 0.7], torch.device("cpu")
    lr, _ = as_tensors(0.003, 1)
    expected = step_numbers.step_numbers(0.003, counts, options, cpu)
    for steps in ([as_tensors(0.0, count)[1] for count in counts], torch.tensor(counts), counts):
        actual = step_numbers.step_numbers(lr, steps, options, cpu)
        torch.testing.assert_close(actual, expected, rtol=1e-7, atol=0)
    assert expected[0, 6].item() == pytest.approx((1 - beta) ** -0.5, rel=1e-7)
    expected = step_numbers.step_numbers(0.003, None, [0.9, 0.05, 0.7], cpu)
    assert torch.equal(step_numbers.step_numbers(lr, None, [0.9, 0.05, 0.7], cpu), expected)


def test_tensors_of_the_cpu_are_numbers():
    for name in ("adamw", "sgd"):
        for actual, exact in zip(
            run(name, case(50, "fisher"))[0],
            run(name, case(50, "fisher"), as_tensors)[0],
            strict=True,
        ):
            assert torch.equal(actual, exact)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"lr": torch.empty((), device="meta")}, "lr is on meta, but theta is on cpu"),
        ({"step": torch.empty((), device="meta")}, "steps is on meta, but theta is on cpu"),
        ({"lr": torch.zeros(1)}, "lr must be scalars, not tensors of 1 dimensions"),
        ({"step": torch.zeros(())}, "step counts from 1, not 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_by_name(numbers, message):
    tensors = [torch.zeros(3) for _ in range(4)]
    with pytest.raises(ValueError, match=message):
        adamw_ewc_(*tensors, **({"lr": 0.1, "step": 1} | numbers))


def test_steps_of_two_kinds_are_refused():
    tensors = [[torch.zeros(3), torch.zeros(3)] for _ in range(4)]
    with pytest.raises(ValueError, match="steps are tensors and Python's numbers"):
        foreach_adamw_ewc_(*tensors, steps=[torch.tensor(3.0), 5], lr=0.1)


def test_parameters_of_two_devices_are_refused():
    thetas = [torch.zeros(3), torch.zeros(3, device="meta")]
    with pytest.raises(ValueError, match="theta is on meta, but the first theta is on cpu"):
        foreach_sgd_ewc_(thetas, thetas, thetas, lr=0.1)


@pytest.mark.skipif(INTERPRETING, reason="counts what is not run")
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_on_a_gpu_waits_for_nothing(name, on_gpu):
    """The host's numbers are one copy. The GPU's are a few operators, and nothing is copied, so
    that a CUDA graph holds them all; a step before has left the table of addresses."""
    with fake_gpu():
        columns = [[torch.empty(s, device=CUDA) for s in (0, 5, 2000)] for _ in range(6)]
        lr, *steps = torch.empty(4, device=CUDA, dtype=torch.float64).unbind()
        options = {"lr": lr if on_gpu else 0.1, "lam": LAM, "penalty": lr.clone()}
        for _ in range(2):
            with counted(run=False) as counts:
                if name == "adamw":
                    options["steps"] = steps if on_gpu else [1, 2, 2]
                    foreach_adamw_ewc_(*columns, **options)
                else:
                    foreach_sgd_ewc_(*columns[:5], **options)
    tables._layout.cache_clear()  # of tensors without content
    tables._pointers.cache_clear()
    assert not counts.waits and counts.launches.pop("_step_kernel") == 1
    if not on_gpu:
        assert counts.launches == {"_to_copy": 1}
    else:
        assert counts.launches.pop("_to_copy") == 1  # to float32, on the device
        assert counts.total == {"adamw": 15, "sgd": 4}[name], counts.launches


def test_a_graph_does_not_hold_memory_of_the_host(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="give lr and steps as tensors on the device"):
        tables.to_device(torch.zeros(3), CUDA)


def test_tables_of_a_graph_are_held_when_the_cache_forgets_them(monkeypatch):
    monkeypatch.setattr(tables, "_is_capturing", lambda device: True)
    monkeypatch.setattr(tables, "_CAPTURED", captured := [])
    pointers, *_ = tables.Table.of([[torch.zeros(3)]]).arguments
    tables._pointers.cache_clear()
    assert captured[0][0] is pointers and len(captured[0]) == 5


@pytest.mark.slow
def test_kernel_in_the_interpreter():
    run_interpreted(__file__)


@pytest.fixture
def by_kernel(monkeypatch):
    """CPU tensors take the kernel, in the interpreter."""
    monkeypatch.setattr(ewc, "_on_cpu", ewc._launch)


@interpreted
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_interpreted_kernel_equals_float64(name, size, variant, by_kernel):
    assert_equal_to_truth(name, case(size, variant))


@interpreted
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_interpreted_kernel_reads_its_numbers_from_the_device(name, by_kernel, on_device):
    assert_equal_to_truth(name, case(1025, "fisher"), given_as=as_tensors)


def table_steps(name, numbers, absent, penalty, together, aligned=True):
    """Two steps of parameters whose tensors are `numbers`, by one launch or by a launch each."""
    rows = []
    for given in numbers:
        row = [t.clone() if aligned else misaligned(t) for t in given]
        rows.append([None if k in absent else t for k, t in enumerate(row)])
    options = {"lr": LR, "weight_decay": DECAY, "lam": LAM, "penalty": penalty}
    for step in range(1, 3):  # what a launch leaves behind must not show in the next
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
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_interpreted_table_steps_all_tensors_at_once(name, aligned, variant, by_kernel):
    """Bit for bit as a launch each; the penalty's value is added in another order."""
    generator = torch.Generator().manual_seed(1)
    roles = 6 if name == "adamw" else 5
    absent = {"plain": (roles - 2, roles - 1), "identity": (roles - 1,), "fisher": ()}[variant]
    sizes = [0, 64, 1, 700, 1024, 0, 3000, 3]
    numbers = [torch.rand(roles, size, generator=generator) for size in sizes]
    penalties = torch.zeros(2, dtype=torch.float64)
    ends = [
        table_steps(name, numbers, absent, penalty, together, aligned)
        for together, penalty in zip((True, False), penalties, strict=True)
    ]
    for mine, right in zip(*ends, strict=True):
        assert torch.equal(mine, right)
    torch.testing.assert_close(*penalties, rtol=1e-6, atol=0)
    assert penalties.all() == (variant != "plain")


@interpreted
def test_interpreted_table_hides_no_nan_and_takes_nothing(by_kernel):
    numbers = [torch.rand(6, size) for size in (7, 5)]
    numbers[1][1, 3] = float("nan")  # a gradient, which is in theta before the second step
    penalty = torch.zeros(())
    ends = table_steps("adamw", numbers, (), penalty, together=True)
    assert not any(t.isnan().any() for t in ends[:6]) and penalty.isnan()
    assert ends[6].isnan().nonzero().tolist() == [[3]]
    table_steps("sgd", [torch.rand(5, 0)] * 2, (), torch.zeros(()), together=True)
