"""EWC steps against torch's optimizers in float64 whose loss contains the penalty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from triton_interpreter import interpreted, run_interpreted

from kernels import ewc
from kernels.ewc import adamw_ewc_, foreach_adamw_ewc_, sgd_ewc_

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


def run(name: str, given: dict, **options) -> tuple[list[Tensor], Tensor]:
    """The same steps by the functions under test, on misaligned views of NaN-filled buffers."""
    theta, anchor, fisher = (misaligned(given[key]) for key in ("theta", "anchor", "fisher"))
    penalty = torch.zeros((), dtype=torch.float64)
    moments = [misaligned(torch.zeros_like(theta)) for _ in range(2)]
    momentum_buffer = torch.full_like(theta, float("nan"))
    for step, grad in enumerate(given["grads"], start=1):
        shared = {"lr": LR, "weight_decay": DECAY, "lam": LAM, "penalty": penalty, **options}
        if name == "adamw":
            adamw_ewc_(
                theta, grad, *moments, anchor, fisher, step=step, betas=(0.8, 0.95), **shared
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


@pytest.mark.skipif(ewc.tl is None, reason="needs triton")
def test_the_triton_step_is_traced_into_a_compiled_graph():
    graphs = []

    def record(module, _):
        graphs.append(module.graph)
        outputs = module.graph.find_nodes(op="output")[0].args[0]
        return make_boxed_func(lambda *_: [torch.zeros(node.meta["val"].shape) for node in outputs])

    @torch.compile(fullgraph=True, backend=aot_autograd(fw_compiler=record))
    def step(theta, grad, exp_avg, exp_avg_sq, anchor, fisher, penalty):
        ewc._adamw(theta, grad, exp_avg, exp_avg_sq, anchor, fisher, penalty, [0.1] * 8)

    with torch.no_grad():
        step(*torch.zeros(6, 50).unbind(), torch.zeros(()))
    targets = [str(node.target) for node in graphs[0].nodes]
    assert any("triton_kernel_wrapper" in target for target in targets)
    assert not any("rib" in target for target in targets)


@pytest.mark.slow
def test_kernel_in_the_interpreter():
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_interpreted_kernel_equals_float64(name, size, variant, monkeypatch):
    def on_gpu(op, twin, rows, penalty):
        for flat, scalars in rows:
            op(*flat, penalty, scalars)

    monkeypatch.setattr(ewc, "_step", on_gpu)
    assert_equal_to_truth(name, case(size, variant))


@interpreted
def test_interpreted_kernel_declares_what_it_writes():
    given = case(50, "fisher")
    tensors = [given["theta"], given["grads"][0], torch.zeros(50), torch.zeros(50)]
    rest = [given["anchor"], given["fisher"], torch.zeros(())]
    torch.library.opcheck(ewc._adamw, (*tensors, *rest, [0.1] * 8), test_utils="test_schema")
    torch.library.opcheck(ewc._sgd, (*tensors[:3], *rest, [0.1] * 4), test_utils="test_schema")
