"""Banks that do not fit and batches that do not fit: what is read, loaded and kept in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
from tqdm import tqdm

from engine.evaluation import bank, batches, features
from engine.grid import jobs
from engine.grid.columns import Column
from engine.models.form import Form

__all__ = ["expected", "fresh", "grid", "mixes", "small_slices"]


def test_a_bank_that_does_not_fit_reads_the_set_once_a_group(
    grid, fresh, mixes, expected, small_slices, monkeypatch, caplog
):
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    counted = Counted(monkeypatch)
    caplog.set_level(logging.INFO)
    assert same(tables(fresh.builder(), mixes), expected)
    assert (counted.images, counted.models) == (3 * IMAGES, 6)  # the other two are heads
    assert "6 models do not fit together: the set is read once for each of 3 groups" in caplog.text


def test_a_bank_that_fits_reads_once_and_loads_once(
    fresh, mixes, expected, small_slices, monkeypatch, caplog
):
    counted = Counted(monkeypatch)
    caplog.set_level(logging.INFO)
    assert same(tables(fresh.builder(), mixes), expected)
    assert (counted.images, counted.models) == (IMAGES, 6)
    assert "do not fit" not in caplog.text and "run in parts" not in caplog.text


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


def test_activations_are_those_of_the_largest_module():
    net = nn.Sequential(nn.Linear(4, 100), nn.GELU(), nn.Linear(100, 2))
    assert bank.activation_bytes(net, torch.zeros(1, 4)) == 2 * 4 * (100 + 100)
    before = len(nn.modules.module._global_forward_hooks)
    with pytest.raises(RuntimeError):
        bank.activation_bytes(net, torch.zeros(1, 5))
    assert len(nn.modules.module._global_forward_hooks) == before


def test_groups_are_whole_and_keep_the_same_parents_together():
    mixes = [{"a": 0.5, "b": 0.5}, {"c": 1.0}, {"a": 0.1, "b": 0.9}, {"a": 0.5, "c": 0.5}]
    groups = bank.groups(mixes, 2)
    assert [len(group) for group in groups] == [2, 2]
    together = [mix for group in groups for mix in group]
    assert sorted(map(str, together)) == sorted(map(str, mixes))
    places = [together.index(mix) for mix in (mixes[0], mixes[2])]
    assert abs(places[0] - places[1]) == 1
    assert bank.groups(mixes, 1) == [[mix] for mix in together]
    assert bank.groups(mixes, 9) == [together]


def test_shares_of_memory_are_taken_after_the_set_has_its_own(fresh, mixes, monkeypatch):
    builder, opened = fresh.builder(), []
    monkeypatch.setattr(
        bank, "free_memory", lambda device: opened.append(SET in builder.sets._sources) or 1e12
    )
    tables(builder, mixes[:2])
    assert len(opened) == 2 and all(opened)  # for weights and for images


def test_a_column_holds_one_set_at_a_time(grid, monkeypatch):
    builder, held = grid.builder(), []

    def evaluate_on(run, mixes, name, split, sample) -> None:
        run.sets.source(name)
        held.append(set(run.sets._sources))

    monkeypatch.setattr(jobs, "builders", lambda *_: [builder])
    monkeypatch.setattr(jobs.sample, "evaluate_on", evaluate_on)
    monkeypatch.setattr(jobs.progress, "advance", lambda *_: None)
    column = Column("outline", "outline")
    monkeypatch.setattr(builder, "build", lambda: None)
    monkeypatch.setattr(builder, "entries", list)
    monkeypatch.setattr(builder, "remove_snapshots", lambda: None)
    jobs.column(SimpleNamespace(path=None, columns=[column]), column, grid.device)
    assert held == [{"upstream"}, {"outline"}, {"tinted"}, {"few"}]
    assert not builder.sets._sources


class Bar(tqdm):
    """A bar that notes for each batch whether it was still open."""

    made: list[Bar] = []  # noqa: RUF012  # emptied by the tests

    def __init__(self, *words, **options) -> None:
        super().__init__(*words, **options)
        self.made.append(self)
        self.open, self.drawn = True, []

    def __iter__(self) -> Iterator:
        for batch in super().__iter__():
            self.drawn.append(self.open)
            yield batch

    def close(self) -> None:
        self.open = False
        super().close()


@pytest.mark.parametrize("kind", ["features", "predictions"])
def test_progress_is_shown_while_batches_are_used(fresh, mixes, monkeypatch, kind):
    monkeypatch.setattr(batches, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    builder = fresh.builder()
    if kind == "features":
        slices = fresh.runs / "slices"
        features.sliced(builder.run, builder.base, builder.sets[SET], Form("fp32", "never"), slices)
    else:
        tables(builder, mixes[:2])
    (bar,) = Bar.made
    assert bar.drawn == [True] * 5 and not bar.open


def test_predictions_name_their_model_and_data(grid, mixes, expected):
    builder = grid.builder()
    metadata = expected[0].schema.metadata
    assert metadata[b"pack"].decode() == builder.sets[SET].pack.fingerprint
    assert all(name in metadata[b"mix"].decode() for name in mixes[0])
