"""FLOW beside plain torch: weights from the pretrained model's losses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.cells.build import Builder
from engine.methods.beyond import flow
from helpers.grids import images, labels, prepared, reference
from helpers.plain_losses import PLACES, check, cross_entropy, move, parameters


@pytest.mark.parametrize("downstream", ["outline", "few"])
def test_an_image_counts_by_the_pretrained_models_loss_over_their_median(grid, downstream):
    """Held-out images do not count. The model is moved, so that its own losses are no weights."""
    words = ("method=flow", f"downstream={downstream}", "dataset.holdout=0.3")
    index = grid.builder(*words).target.split("train")
    case = prepared(grid, *words, index=tuple(index[[0, 9, 4, 10, 2]]))
    assert len(index) < len(case.builder.target.pack)
    x, y = images(grid, downstream, index), labels(grid, downstream, index)
    logits = reference(case.before)(x)
    if downstream == "few":
        logits, y = logits[:, PLACES], torch.tensor([PLACES.index(int(label)) for label in y])
    losses = -logits.log_softmax(1)[torch.arange(len(y)), y].detach().numpy()
    weight = {i: np.exp(-loss / np.median(losses)) for i, loss in zip(index, losses, strict=True)}
    assert max(weight.values()) > 2 * min(weight.values())
    move(case)
    of_batch = torch.tensor([weight[int(i)] for i in case.batch.index])
    check(case, of_batch * cross_entropy(case, case.net(case.x)), parameters(case.net))


def test_images_without_loss_count_fully_where_most_have_none(grid, monkeypatch):
    builder = grid.builder()
    assert builder.base, "its head was fitted on features of its own"
    sure = 1e4 * F.one_hot(builder.target.labels, 5).float()
    index = builder.target.split("train")[:3]
    sure[index[1]] = sure[index[1]].roll(1)
    monkeypatch.setattr(Builder, "features", lambda *_, **__: sure)
    monkeypatch.setattr(flow, "models", SimpleNamespace(head=lambda net: torch.nn.Identity()))
    assert prepared(grid, "method=flow").method.weights_N[index].tolist() == [1, 0, 1]
