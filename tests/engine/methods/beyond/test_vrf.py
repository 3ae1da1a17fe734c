"""VRF beside its release's formulas, on timm's features and logits in float64."""

import numpy as np
import pytest
import torch

from engine.evaluation import reduction
from engine.methods.beyond import vrf
from engine.store.cells import Ensemble
from helpers.evaluations import by_timm, check_predictions, tables
from helpers.grids import images, reference

WORDS = ("method=vrf", "train.epochs=12")


def features(grid, name: str, state: dict[str, torch.Tensor], index: np.ndarray) -> torch.Tensor:
    """Unit vectors [n, D] (float64) that timm's head reads."""
    net = reference(state)
    with torch.no_grad():
        x = net.forward_features(images(grid, name, index))
        return torch.nn.functional.normalize(net.forward_head(x, pre_logits=True), dim=1)


def temperature(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """By bisection: at which the mean confidence is the accuracy."""
    accuracy = (logits.argmax(1) == truth).double().mean()
    low, high = 0.1, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        is_too_sure = (logits / middle).softmax(1).amax(1).mean() > accuracy
        low, high = (middle, high) if is_too_sure else (low, middle)
    return low


# A set's images lie as near to those of `outline` as they look alike.
@pytest.mark.parametrize(("name", "middle", "width"), [("tinted", 0.4, 0.1), ("few", 0.004, 0.004)])
def test_images_near_failures_of_the_pre_trained_model_are_fts(grid, name, middle, width):
    builder, cell = grid.build(*WORDS, f"method.middle={middle}", f"method.width={width}")
    (entry,) = cell.entries
    members = [builder.base, builder.cell("fine_tune")]
    assert entry.mix == Ensemble(tuple(m.name for m in members), "failures", cell.name)
    states = [member.state() for member in members]
    (before, truth), (after, _) = (by_timm(grid, "outline", state) for state in states)
    train, held = builder.target.split("train"), builder.target.split("holdout")
    only_after = (after.argmax(1) == truth) & (before.argmax(1) != truth)
    failures = [i for i in train if only_after[i]]
    assert 0 < len(failures) < len(train)
    t = [temperature(logits[held], truth[held]) for logits in (before, after)]
    reference_VD = features(grid, "outline", states[1], np.array(failures))

    (table,) = tables(builder, [entry.mix], [name])
    (zero_shot, truth), (tuned, _) = (by_timm(grid, name, state) for state in states)
    mine_ND = features(grid, name, states[1], np.arange(len(truth)))
    distance_N = (mine_ND[:, None] - reference_VD).square().sum(2).amin(1)
    weight_N1 = (1 / (1 + torch.exp((distance_N - middle) / width)))[:, None]
    assert weight_N1.max() - weight_N1.min() > 0.1
    p_NC = (1 - weight_N1) * (zero_shot / t[0]).softmax(1) + weight_N1 * (tuned / t[1]).softmax(1)
    check_predictions(table, p_NC.log(), truth)


def test_the_distance_is_to_the_nth_nearest_failure():
    generator = torch.Generator().manual_seed(2)
    failures_MD = torch.nn.functional.normalize(torch.randn(30, 6, generator=generator), dim=1)
    features_BD = torch.randn(4, 6, generator=generator)
    unit_BD = features_BD / features_BD.norm(dim=1, keepdim=True)
    every_BM = torch.cdist(unit_BD, failures_MD).square()
    for neighbour in (1, 5, 30):
        expected = every_BM.sort(dim=1).values[:, neighbour - 1 : neighbour]
        actual = reduction.squared_distance(features_BD, failures_MD, neighbour)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_where_fine_tuning_corrects_nothing_the_pre_trained_model_answers(
    grid, monkeypatch, caplog
):
    monkeypatch.setattr(vrf, "_right", lambda context, cell, index: torch.ones(len(index)) > 0)
    builder, cell = grid.build(*WORDS)
    assert "so predictions are the pretrained model's" in caplog.text
    (entry,) = cell.entries
    of_vrf, alone = tables(builder, [entry.mix, {builder.base.name: 1.0}], ["tinted"])
    assert of_vrf["top1"].equals(alone["top1"])
    logits, truth = by_timm(grid, "outline", builder.base.state())
    held = builder.target.split("holdout")
    t = temperature(logits[held], truth[held])
    logits, truth = by_timm(grid, "tinted", builder.base.state())
    check_predictions(of_vrf, (logits / t).log_softmax(1), truth)
