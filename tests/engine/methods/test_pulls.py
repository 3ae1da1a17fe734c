"""EWC, L2-SP, SPD, DiGraP: whole runs against a bare loop in float64, a tensor at a time."""

import json
import math
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.store.cells import Cell
from helpers.grids import CONV, VIT, Grid, distance, images, labels, prepared, same, weights
from helpers.plain_losses import loop_fisher

STEPS = 4
LR = {"adamw": 2e-3, "sgd": 0.05}
EWC = ("ewc original", "ewc released", "ewc reversed")
State = dict[str, Tensor]
Pull = Callable[[nn.Module, State], Tensor]


def words(method: str, optimizer: str, arch: str = VIT) -> list[str]:
    """Full-batch steps, so that a bare loop need not follow the order of images."""
    return [
        f"method={method}",
        f"model.arch={arch}",
        f"optimizer.name={optimizer}",
        f"optimizer.lr={LR[optimizer]}",
        "optimizer.weight_decay=0.1",
        "optimizer.eps=1e-3",  # without it the sign of a gradient that is 0 would decide a step
        "train.warmup_steps=0",
        f"train.epochs={STEPS}",
        "train.batch_size=25",
    ]


def bare_loop(
    grid: Grid,
    optimizer: str,
    arch: str,
    loss_of: Pull = lambda *_: torch.zeros(()),
    after: Callable[[dict[str, nn.Parameter], State, State], None] = lambda *_: None,
    before: Callable[[dict[str, nn.Parameter], State], None] = lambda *_: None,
    steps: int = STEPS,
) -> tuple[State, State, float]:
    """Weights before and after, and the pull at the end.

    loss_of: beside the cross-entropy; after, before: each step."""
    case = prepared(grid, *words("fine_tune", optimizer, arch))
    index = case.builder.target.split("train")
    x, y = images(grid, "outline", index, arch), labels(grid, "outline", index)
    net = case.net
    named = dict(net.named_parameters())
    start = {name: p.detach().clone() for name, p in named.items()}
    if optimizer == "adamw":
        descent = torch.optim.AdamW(named.values(), eps=1e-3, weight_decay=0.1)
    else:
        descent = torch.optim.SGD(named.values(), lr=1.0, momentum=0.9, weight_decay=0.1)
    for step in range(steps):
        rate = 0.5 * LR[optimizer] * (1 + math.cos(math.pi * step / steps))
        descent.param_groups[0]["lr"] = rate
        descent.zero_grad()
        (F.cross_entropy(net(x), y) + loss_of(net, start)).backward()
        before(named, start)
        last = {name: p.detach().clone() for name, p in named.items()}
        descent.step()
        after(named, last, start)
    end = {name: p.detach() for name, p in named.items()}
    return start, end, loss_of(net, start).item()


def check_moves(
    grid: Grid, cell: Cell, start: State, end: State, plain: list[str], close: float, apart: float
) -> None:
    """The cell moved as the loop did, and by less than `apart` of it fine-tuning does not."""

    def moves(state: State) -> State:
        return {name: state[name].double() - tensor for name, tensor in start.items()}

    assert distance(moves(weights(cell)), moves(end)) < close
    _, tuned = grid.build(*plain)
    assert distance(moves(weights(tuned)), moves(end)) > apart, "too weak for this test to see"


def of_l2sp(head: str, alpha: float = 12.0, beta: float = 3.0) -> tuple[list[str], Pull]:
    def pull(net: nn.Module, start: State) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name, p in net.named_parameters():
            if head == "new" and name.startswith("head."):
                total = total + beta / 2 * p.square().sum()
            else:
                total = total + alpha / 2 * (p - start[name]).square().sum()
        return total

    return [f"method.alpha={alpha}", f"method.beta={beta}", f"method.head={head}"], pull


def of_ewc(grid: Grid, variant: str, optimizer: str, lam: float = 10.0) -> tuple[list[str], Pull]:
    """variant: `original`, `released`, or `reversed` of EWC-DR."""
    scale: dict[str, Tensor | float] = defaultdict(lambda: 1.0)
    if variant != "released":
        sign = -1.0 if variant == "reversed" else 1.0
        fisher = loop_fisher(grid, prepared(grid), VIT, sign)
        mean = torch.cat([f.flatten() for f in fisher.values()]).mean()
        scale = {name: f / (2 * mean) for name, f in fisher.items()}
        if optimizer == "sgd":  # whose steps can follow no firmer pull
            most = 1.9 / (2 * lam * LR[optimizer])
            scale = {name: f.clamp(max=most) for name, f in scale.items()}

    def pull(net: nn.Module, start: State) -> Tensor:
        pulls = [(scale[n] * (p - start[n]) ** 2).sum() for n, p in net.named_parameters()]
        return lam * torch.stack(pulls).sum()

    options = [f"method.lam={lam}", "method.fisher_scale=mean", "method.fisher_labels=data"]
    key = "fisher_labels" if variant == "reversed" else "variant"
    return [*options, f"method.{key}={variant}"], pull


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("pulled", ["l2sp shared", "l2sp new", *EWC])
def test_a_pulled_training_steps_down_its_loss_with_the_penalty_in_it(grid, pulled, optimizer):
    method, kind = pulled.split()
    options, pull = of_l2sp(kind) if method == "l2sp" else of_ewc(grid, kind, optimizer)
    _, cell = grid.build(*words(method, optimizer), *options)
    start, end, penalty = bare_loop(grid, optimizer, VIT, pull)
    last = json.loads(cell.artifact.file("history.json").read_text())[-1]
    assert last["penalty"] == pytest.approx(penalty, rel=1e-3)
    check_moves(grid, cell, start, end, words("fine_tune", optimizer), 1e-4, 1e-2)


@pytest.mark.parametrize(("optimizer", "arch"), [("adamw", VIT), ("adamw", CONV), ("sgd", VIT)])
def test_spd_draws_back_tensor_by_tensor(grid, optimizer, arch):
    drawn = []

    def project(named: dict[str, nn.Parameter], before: State, start: State) -> None:
        for name, parameter in named.items():
            old, new = before[name] - start[name], parameter.detach() - start[name]
            if (parameter.grad * old).sum() > 0 and new.norm() > old.norm():
                drawn.append(name)
                parameter.data -= 0.8 * (1 - old.norm() / new.norm()) * new

    _, cell = grid.build(*words("spd", optimizer, arch), "method.lam=0.8")
    start, end, _ = bare_loop(grid, optimizer, arch, after=project)
    assert len(drawn) > 2, "nothing was drawn back: this test sees no projection"
    check_moves(grid, cell, start, end, words("fine_tune", optimizer, arch), 1e-3, 3e-3)


@pytest.mark.parametrize(("optimizer", "arch"), [("adamw", VIT), ("adamw", CONV), ("sgd", VIT)])
def test_digrap_removes_a_learned_share_of_what_leads_away(grid, optimizer, arch):
    """As its docstring says, in float64, a tensor at a time."""
    steps, acted, t = 12, [], 0
    shares: dict[str, float] = defaultdict(float)
    moments: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    last: State = {}

    def unit(rows: Tensor) -> Tensor:
        lengths = rows.norm(dim=1, keepdim=True)
        return rows / lengths.where(lengths > 0, 1)

    def remove(named: dict[str, nn.Parameter], start: State) -> None:
        nonlocal t
        t += 1
        for name, parameter in named.items():
            assert parameter.grad is not None
            count = len(parameter) if parameter.dim() > 1 else 1
            gradient = parameter.grad.reshape(count, -1)
            offset = (parameter.detach() - start[name]).reshape(count, -1)
            before = last.get(name, torch.zeros_like(offset))
            slope = (unit(gradient) * unit(before)).sum().item()
            m, v = moments[name]
            m, v = moments[name] = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
            move = 0.5 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
            shares[name] = min(max(shares[name] - move, 0.0), 1.0)
            dot = (gradient * offset).sum().item()
            last[name] = dot / (offset.square().sum().item() or 1.0) * offset
            if dot < 0 and shares[name] > 0:
                acted.append(name)
                parameter.grad -= (shares[name] * last[name]).reshape(parameter.shape)

    rate = f"train.epochs={steps}"
    _, cell = grid.build(*words("digrap", optimizer, arch), rate)
    start, end, _ = bare_loop(grid, optimizer, arch, before=remove, steps=steps)
    assert len(acted) > 2, "nothing was removed: this test sees no projection"
    check_moves(grid, cell, start, end, [*words("fine_tune", optimizer, arch), rate], 1e-3, 3e-3)


@pytest.mark.parametrize("strength", ["l2sp.alpha", "spd.lam", "ewc.lam", "digrap.rate"])
def test_a_strength_of_zero_is_fine_tuning_bit_for_bit(grid, strength):
    method, option = strength.split(".")
    _, cell = grid.build(*words(method, "adamw"), f"method.{option}=0")
    assert same(weights(cell), weights(grid.build(*words("fine_tune", "adamw"))[1]))
