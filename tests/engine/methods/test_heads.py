"""Fitted heads against formulas in NumPy, and what a cell keeps of a fit."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from engine.errors import DivergedError
from engine.methods import heads
from helpers.grids import CLASSES, labels, same, weights
from helpers.plain_losses import PLACES
from helpers.twins import assert_near

L2 = 1e-3


def objective(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray, l2: float, anchor: np.ndarray
) -> tuple[float, np.ndarray]:
    """The objective and its gradient for weights with the bias as last column, flat float64."""
    x1 = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    change = theta - anchor
    logits = x1 @ theta.reshape(-1, x1.shape[1]).T
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(y))
    wrong = np.exp(log_p)
    wrong[rows, y] -= 1
    gradient = (wrong.T @ x1 / len(x)).ravel() + l2 * change
    return -log_p[rows, y].mean() + l2 / 2 * change @ change, gradient


def flat(weight: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
    """float64, with the bias as last column."""
    weight_and_bias = torch.cat([weight.detach(), bias.detach()[:, None]], dim=1)
    return weight_and_bias.double().numpy().ravel()


def head_of(classes: int, width: int, seed: int = 0) -> nn.Linear:
    """A head in float64, so that nothing of a fit is rounded away."""
    torch.manual_seed(seed)
    return nn.Linear(width, classes).double()


def problem_of(
    images: int, width: int, classes: int, l2: float = L2, scale: float = 1.0
) -> heads.Problem:
    generator = torch.Generator().manual_seed(images)
    x = scale * torch.randn(images, width, generator=generator)
    y = torch.randint(classes, (images,), generator=generator)
    return heads.Problem(x, y, torch.arange(images), l2)


@pytest.mark.parametrize(
    ("images", "width", "classes", "l2", "scale"),
    [(60, 5, 4, 1e-3, 1.0), (9, 40, 3, 1e-3, 5.0), (200, 3, 2, 1e-4, 1.0)],
)
def test_a_fit_ends_where_another_gradient_is_as_small_as_asked(images, width, classes, l2, scale):
    problem, head = problem_of(images, width, classes, l2, scale), head_of(classes, width)
    anchor = flat(head.weight, head.bias)
    result = heads.fit(head, problem, "LP")
    x, y = problem.features_ND.double().numpy(), problem.labels_N.numpy()
    value, gradient = objective(flat(head.weight, head.bias), x, y, l2, anchor)
    # Strong convexity: the objective is `heads.EXCESS` too high at most.
    assert np.linalg.norm(gradient) <= result["tolerance"] == math.sqrt(2 * l2 * heads.EXCESS)
    assert result["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-3)
    assert result["loss"] == pytest.approx(value, rel=1e-12)


def test_a_fit_gives_the_same_bits_again_and_chunks_change_its_rounding_alone(monkeypatch):
    """And images outside of the split change nothing."""
    every, third = problem_of(60, 5, 4), torch.arange(60)[::3]
    whole, again, pieces, part, alone = (head_of(4, 5) for _ in range(5))
    heads.fit(whole, every, "LP")
    heads.fit(again, every, "LP")
    assert same(whole.state_dict(), again.state_dict())
    x, y = every.features_ND, every.labels_N
    heads.fit(part, heads.Problem(x, y, third, L2), "LP")
    heads.fit(alone, heads.Problem(x[third], y[third], torch.arange(20), L2), "LP")
    assert same(part.state_dict(), alone.state_dict())
    monkeypatch.setattr(heads, "_CHUNK", 7)
    heads.fit(pieces, every, "LP")
    assert_near(pieces.weight, whole.weight, atol=1e-5)


def test_a_class_of_several_outputs_has_their_summed_probability():
    problem = problem_of(40, 5, 2)
    members = torch.tensor([[0, 2], [1, 1]])
    mask = torch.tensor([True, True, False])
    grouped = heads.Problem(
        problem.features_ND, problem.labels_N, problem.rows_n, 0.1, mask, members
    )
    head = head_of(3, 5)
    first = [tensor.detach().clone() for tensor in head.parameters()]
    result = heads.fit(head, grouped, "LP")
    pull = sum(((p - p0) ** 2).sum() for p, p0 in zip(head.parameters(), first, strict=True))
    p_NC = head(problem.features_ND.double()).softmax(dim=1)
    p_NG = torch.stack([p_NC[:, 0] + p_NC[:, 2], p_NC[:, 1]], dim=1)
    loss = nn.functional.nll_loss(p_NG.log(), problem.labels_N) + 0.05 * pull
    assert result["loss"] == pytest.approx(loss.item(), rel=1e-9)
    gradients = torch.autograd.grad(loss, list(head.parameters()))
    assert math.hypot(*(g.norm() for g in gradients)) <= result["tolerance"]


def test_a_fit_that_does_not_converge_warns_and_says_so_in_its_history(monkeypatch, caplog):
    monkeypatch.setattr(heads, "MOST_ITERATIONS", heads._STRIDE)
    result = heads.fit(head_of(4, 50), problem_of(60, 50, 4, l2=1e-6), "LP on few")
    assert result["gradient_norm"] > result["tolerance"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "LP on few: the head has not converged. After 20 iterations" in record.getMessage()


def test_features_that_are_not_finite_are_refused():
    problem = problem_of(9, 5, 4)
    problem.features_ND[3, 2] = torch.nan
    with pytest.raises(DivergedError, match=r"LP: the head's loss is nan"):
        heads.fit(head_of(4, 5), problem, "LP")


@pytest.mark.parametrize(
    ("downstream", "anchor"), [("outline", "base"), ("outline", "zero"), ("few", "base")]
)
def test_a_canonical_probe_is_at_its_optimum_and_leaves_other_outputs_alone(
    grid, downstream, anchor
):
    """An optimum whose weights are rounded to float32."""
    words = ("method=linear_probe", f"downstream={downstream}", f"method.anchor={anchor}")
    builder, cell = grid.build(*words)
    places = PLACES if downstream == "few" else [*range(len(CLASSES))]
    index = builder.target.split("train")
    x = builder.features(builder.base, builder.target, training=True)[index].double().numpy()
    y = np.searchsorted(places, labels(grid, downstream, index).numpy())
    both = [
        [each.state()[f"head.{k}"] for k in ("weight", "bias")] for each in (builder.base, cell)
    ]
    before, after = (flat(*(tensor[places] for tensor in tensors)) for tensors in both)
    pulled_to = before if anchor == "base" else 0 * before
    first, last = (
        np.linalg.norm(objective(theta, x, y, L2, pulled_to)[1]) for theta in (before, after)
    )
    assert last < 1e-5 and first > 1e-3
    (history,) = json.loads((cell.artifact.folder / "history.json").read_text())
    assert history["gradient_norm"] <= history["tolerance"] and history["iterations"] > 0
    absent = [i for i in range(len(CLASSES)) if i not in places]
    for start, end in zip(*both, strict=True):
        assert torch.equal(start[absent], end[absent])


def test_a_seed_and_settings_of_steps_change_nothing_about_a_fitted_head(grid):
    words = ("seed=7", "train.epochs=1", "optimizer.lr=0.5", "train.accumulation=5")
    cells = [grid.build("method=linear_probe", *more)[1] for more in ((), words)]
    assert same(weights(cells[0]), weights(cells[1]))


def test_features_stay_where_they_fit(monkeypatch):
    """Read once and not in every evaluation, with the same bits as where they do not fit."""
    reads, read, ends = [], heads.on_device, []
    monkeypatch.setattr(heads, "on_device", lambda *words: reads.append(1) or read(*words))
    monkeypatch.setattr(heads, "_CHUNK", 25)
    for room in (True, False):
        monkeypatch.setattr(heads, "has_room", lambda nbytes, device, room=room: room)
        head = head_of(4, 5)
        reads.clear()
        fitted = heads.fit(head, problem_of(60, 5, 4), "a head")
        assert (len(reads) == 3) == room and fitted["iterations"] > 3
        ends.append(flat(head.weight, head.bias))
    assert np.array_equal(*ends)
