"""Banks that do not fit and batches that do not fit: what is read, loaded and kept in memory."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluations import (
    IMAGES,
    SET,
    Counted,
    expected,
    fresh,
    mixes,
    room_for_models,
    same,
    small_slices,
    tables,
)
from grids import grid
from torch import nn

from engine.evaluation import bank
from engine.grid import jobs
from engine.grid.columns import Column

__all__ = ["expected", "fresh", "grid", "mixes", "small_slices"]


@pytest.mark.parametrize(("room", "reads"), [(2, 3), (8, 1)])
def test_a_set_is_read_once_for_as_many_models_as_fit(
    grid, fresh, mixes, expected, small_slices, monkeypatch, caplog, room, reads
):
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, room))
    counted = Counted(monkeypatch)
    caplog.set_level(logging.INFO)
    assert same(tables(fresh.builder(), mixes), expected)
    assert (counted.images, counted.models) == (reads * IMAGES, 6)  # the other two are heads
    message = f"6 models do not fit together: the set is read once for each of {reads} groups"
    assert (message in caplog.text) == (reads > 1)


def test_batches_are_cut_where_activations_do_not_fit(
    grid, fresh, mixes, expected, monkeypatch, caplog
):
    builder = grid.builder()
    net = builder.network(builder.base)
    each = bank.activation_bytes(net, torch.zeros(1, 3, 32, 32))
    monkeypatch.setattr(bank, "free_memory", lambda device: 3.5 * each / bank.ACTIVATIONS_SHARE)
    batch_sizes = []
    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: (
            batch_sizes.append(len(inputs[0])) if type(module) is type(net) else None
        )
    )
    caplog.set_level(logging.INFO)
    try:
        in_parts = tables(fresh.builder(), mixes[:2])
    finally:
        hook.remove()
    # Three would fit, but parts are halves of halves, so that machines agree where they can.
    assert "batches of 8 run in parts of at most 2" in caplog.text
    assert max(batch_sizes) == 2 and batch_sizes.count(2) > 2 * batch_sizes.count(1)
    for cut, whole in zip(in_parts, expected[:2], strict=True):
        assert cut["top1"].equals(whole["top1"])
        for name in ("p_true", "margin"):
            np.testing.assert_allclose(cut[name], whole[name], rtol=1e-4, atol=1e-5)


def test_shares_of_memory_are_taken_after_the_set_has_its_own(fresh, mixes, monkeypatch):
    builder, opened = fresh.builder(), []
    monkeypatch.setattr(
        bank, "free_memory", lambda device: opened.append(SET in builder.sets._sources) or 1e12
    )
    tables(builder, mixes[:2])
    assert len(opened) == 2 and all(opened)  # for weights and for images


def test_a_column_holds_one_set_at_a_time(grid, monkeypatch):
    builder, held = grid.builder(), []

    def evaluate(run, mixes, names, split) -> None:
        (name,) = names
        run.sets.source(name)
        held.append(set(run.sets._sources))

    monkeypatch.setattr(jobs, "builders", lambda *_: [builder])
    monkeypatch.setattr(jobs.passes, "evaluate", evaluate)
    monkeypatch.setattr(jobs.progress, "advance", lambda *_: None)
    column = Column("outline", "outline")
    monkeypatch.setattr(builder, "build", lambda: None)
    monkeypatch.setattr(builder, "entries", list)
    monkeypatch.setattr(builder, "remove_snapshots", lambda: None)
    jobs.column(SimpleNamespace(path=None, columns=[column]), column, grid.device)
    assert held == [{"upstream"}, {"outline"}, {"tinted"}, {"few"}]
    assert not builder.sets._sources
