"""Batch norms that learn: on several ranks they are torch's, or refused by the key to set."""

import copy

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import nn

from engine.machine import ranks
from engine.run import Run
from engine.training import norms
from helpers.grids import CONV, Grid, prepared

LEARN = (f"model.arch={CONV}", "train.freeze_batchnorm=false")


GPU = torch.device("cuda")  # nothing computes on it


def on(device: torch.device, run: Run) -> Run:
    moved = copy.copy(run)
    moved.device = device
    return moved


def test_several_gpus_train_torchs_synchronised_batch_norms(grid: Grid, monkeypatch):
    made = prepared(grid, *LEARN, "train.batch_size=5")
    before = dict(made.method.named_parameters())
    kinds = [type(norm) for norm in norms.learning(made.method)]
    assert BatchNormAct2d in kinds
    monkeypatch.setattr(ranks, "world", lambda: 2)
    norms.synchronise(made.method, on(GPU, made.builder))
    after = norms.learning(made.method)
    assert len(after) == len(kinds) and all(isinstance(norm, nn.SyncBatchNorm) for norm in after)
    assert sum(isinstance(norm, SyncBatchNormAct) for norm in after) == kinds.count(BatchNormAct2d)
    parameters = dict(made.method.named_parameters())
    assert parameters.keys() == before.keys()
    assert all(parameters[name] is before[name] for name in before)


def test_what_ranks_cannot_share_is_refused_by_the_key_to_set(grid: Grid, monkeypatch):
    made = prepared(grid, *LEARN)
    few = prepared(grid, *LEARN, "train.batch_size=24")  # and then one image
    frozen = prepared(grid, f"model.arch={CONV}")
    monkeypatch.setattr(ranks, "world", lambda: 2)
    norms.synchronise(frozen.method, frozen.builder)
    with pytest.raises(ValueError, match=r"requires GPUs: set train\.freeze_batchnorm=true"):
        norms.synchronise(made.method, made.builder)
    with pytest.raises(
        ValueError, match=r"has 1 images, but training batch norms needs.*change train\.batch_size"
    ):
        norms.synchronise(few.method, on(GPU, few.builder))
