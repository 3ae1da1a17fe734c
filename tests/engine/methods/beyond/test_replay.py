"""Replay beside plain torch, and what its draws depend on."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.grids import images, labels, prepared, trained
from helpers.plain_losses import ON_FEW, check, cross_entropy, parameters


@pytest.mark.parametrize("extra", [(), (ON_FEW, "method.images=3", "method.weight=0.3")])
def test_the_loss_adds_the_mean_over_drawn_upstream_images(grid, extra):
    case = prepared(grid, "method=replay", *extra)
    drawn = case.method.drawn(case.batch.index)
    assert drawn.shape == (5, 3 if extra else 1)
    means = []
    for index in drawn:
        logits = case.net(images(grid, "upstream", index))
        means.append(F.cross_entropy(logits, labels(grid, "upstream", index)))
    expected_B = cross_entropy(case, case.net(case.x)) + (0.3 if extra else 1) * torch.stack(means)
    check(case, expected_B, parameters(case.net))


def test_draws_are_of_the_upstream_training_split_and_change_with_epoch_and_seed(grid):
    """25 images in three steps an epoch."""
    every, seen = np.arange(35), []
    for seed in (0, 1):
        case = prepared(grid, "method=replay", f"seed={seed}", "method.images=40")
        method = case.method
        method.before_step = lambda m=method: seen.append(m.drawn(every))
        trained(case)
    epochs = [seen[start : start + 3] for start in range(0, 12, 3)]
    for first, *rest in epochs:
        assert all(np.array_equal(first, each) for each in rest)
    for first, second in itertools.combinations(epochs, 2):
        assert not np.array_equal(first[0], second[0])
    train = case.builder.upstream.split("train")
    assert set(seen[0].flatten()) == set(train) and len(train) < 35
