"""Banks that do not fit and batches that do not fit: what is read, loaded and kept in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluations import (
    BATCH,
    IMAGES,
    SET,
    Counted,
    Stopped,
    expected,
    fresh,
    mixes,
    room_for_models,
    same,
    small_slices,
    stop_after,
    tables,
)
from grids import grid
from torch import nn
from tqdm import tqdm

from engine.evaluation import bank, batches, features, passes
from engine.grid import jobs
from engine.grid.columns import Column
from engine.machine import ranks
from engine.models.form import Form
from loaders.resident import Resident

__all__ = ["expected", "fresh", "grid", "mixes", "small_slices"]


@pytest.mark.parametrize(("read_s", "reads", "loads"), [(0.0, 3, 1), (1e9, 1, 3)])
def test_a_bank_that_does_not_fit_reads_or_loads_again_by_cost(
    grid, fresh, mixes, expected, small_slices, monkeypatch, caplog, read_s, reads, loads
):
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    monkeypatch.setattr(passes, "seconds_to_read", lambda *_: read_s)
    counted = Counted(monkeypatch)
    caplog.set_level(logging.INFO)
    assert same(tables(fresh.builder(), mixes), expected)
    full = 6  # the other two are heads
    assert counted.images == reads * IMAGES
    # Every slice takes the groups in order, so the first one, loaded to see its cost, is not twice.
    assert counted.models == full * loads
    choice = "the set is read once a group" if loads == 1 else "every slice is shown to all groups"
    assert "6 models do not fit together, so there are 3 groups" in caplog.text
    assert choice in caplog.text


def test_a_bank_that_fits_reads_once_and_loads_once(
    fresh, mixes, expected, small_slices, monkeypatch, caplog
):
    counted = Counted(monkeypatch)
    caplog.set_level(logging.INFO)
    assert same(tables(fresh.builder(), mixes), expected)
    assert (counted.images, counted.models) == (IMAGES, 6)
    assert "do not fit" not in caplog.text and "run in parts" not in caplog.text


def test_models_stay_loaded_from_set_to_set(fresh, mixes, expected, monkeypatch):
    run, counted, loaded = fresh.builder().run, Counted(monkeypatch), bank.Loaded()
    passes.evaluate(run, mixes, ["tinted", SET], "all", loaded=loaded)
    assert counted.models == 6 and same(tables(fresh.builder(), mixes), expected)
    # Fewer of them are found too; others take their place.
    passes.evaluate(run, mixes[1:3], ["few"], "all", loaded=loaded)
    assert counted.models == 6
    passes.evaluate(run, [dict.fromkeys(mixes[0], 0.5)], [SET], "all", loaded=loaded)
    assert counted.models == 7 and len(loaded.models) == 1


def test_models_that_take_much_of_the_memory_make_room_for_the_next_set(fresh, mixes, monkeypatch):
    run, counted, loaded = fresh.builder().run, Counted(monkeypatch), bank.Loaded()
    free = room_for_models(fresh, mixes, 6)
    monkeypatch.setattr(bank, "free_memory", lambda device: free - loaded.bytes)
    passes.evaluate(run, mixes, ["tinted"], "all", loaded=loaded)
    assert not loaded.models and not loaded.bytes
    passes.evaluate(run, mixes, [SET], "all", loaded=loaded)
    assert counted.models == 12


def test_loaded_models_do_not_count_as_memory_in_use(grid, mixes, monkeypatch):
    run, loaded = grid.builder().run, bank.Loaded()
    parents = {name: passes.stored_cell(run.store, name) for mix in mixes for name in mix}
    free = room_for_models(grid, mixes, 3)
    monkeypatch.setattr(bank, "free_memory", lambda device: free - loaded.bytes)
    for _ in range(2):
        models = bank.ModelBank(run, mixes[:5], parents, 0, loaded)
        assert [len(group) for group in models.groups] == [3, 2]
        models.models(models.groups[0])


@pytest.mark.parametrize("rank", [0, 1])
def test_the_cost_of_reading_is_that_of_the_images_to_read_on_every_rank(grid, monkeypatch, rank):
    """Each batch moves the clock by a second; two ranks are simulated in a group of one."""
    builder, clock, read = grid.builder(), [0.0], Resident.batches

    def slow_batches(source: Resident, positions) -> Iterator:
        for batch in read(source, positions):
            clock[0] += 1
            yield batch

    monkeypatch.setattr(Resident, "batches", slow_batches)
    monkeypatch.setattr(batches, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    labelled = builder.sets[SET]

    def seconds(count: int) -> float:
        return batches.seconds_to_read(builder.run, labelled, np.arange(IMAGES)[-count:])

    assert (seconds(IMAGES), seconds(2 * BATCH), seconds(1)) == (5, 2, 1)
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    monkeypatch.setattr(ranks, "world", lambda: 2)
    assert (seconds(IMAGES), seconds(2 * BATCH)) == (3, 1)
    monkeypatch.setattr(
        ranks, "least", lambda value: min(value, -1.0)
    )  # the other rank takes one second
    assert seconds(BATCH) == 1


def test_the_cost_is_that_of_the_images_that_are_left(
    grid, fresh, mixes, small_slices, monkeypatch
):
    positions: list[np.ndarray] = []
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    monkeypatch.setattr(
        passes, "seconds_to_read", lambda *arguments: positions.append(arguments[2]) or 1e9
    )
    with monkeypatch.context() as patch:
        stop_after(patch, 2 * 6)  # the first slice: two batches, six models
        with pytest.raises(Stopped):
            tables(fresh.builder(), mixes[:6])
    tables(fresh.builder(), mixes[:6])
    first, second = positions
    np.testing.assert_array_equal(first, np.arange(IMAGES))
    np.testing.assert_array_equal(second, np.arange(2 * BATCH, IMAGES))


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


def test_images_that_stay_for_several_groups_take_the_place_of_models(grid, mixes, monkeypatch):
    builder = grid.builder()
    parents = {name: passes.stored_cell(builder.store, name) for mix in mixes for name in mix}
    model_bytes = (room_for_models(grid, mixes, 3) - room_for_models(grid, mixes, 1)) / 2

    def sizes(room: int, slice_bytes: float) -> list[int]:
        free = room_for_models(grid, mixes, room)
        monkeypatch.setattr(bank, "free_memory", lambda device: free)
        models = bank.ModelBank(builder.run, mixes[:5], parents, slice_bytes)
        return [len(group) for group in models.groups]

    assert (
        sizes(3, 0) == [3, 2]
        and sizes(3, model_bytes) == [2, 2, 1]
        and sizes(3, 99 * model_bytes) == [1] * 5
    )
    assert sizes(5, model_bytes) == [5], "one group needs no image twice"


def test_shares_of_memory_are_taken_after_the_set_has_its_own(fresh, mixes, monkeypatch):
    builder, opened = fresh.builder(), []
    monkeypatch.setattr(
        bank, "free_memory", lambda device: opened.append(SET in builder.sets._sources) or 1e12
    )
    tables(builder, mixes[:2])
    assert len(opened) == 3 and all(opened)  # for weights, for images, and to see what may stay


def test_a_column_holds_one_set_at_a_time(grid, monkeypatch):
    builder, held = grid.builder(), []

    def evaluate_on(run, mixes, name, split, sample, loaded) -> None:
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


@pytest.mark.parametrize("kind", ["features", "predictions", "estimate"])
def test_progress_is_shown_while_batches_are_used(fresh, mixes, monkeypatch, kind):
    monkeypatch.setattr(batches, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    builder = fresh.builder()
    if kind == "features":
        slices = fresh.runs / "slices"
        features.sliced(builder.run, builder.base, builder.sets[SET], Form("fp32", "never"), slices)
    elif kind == "predictions":
        tables(builder, mixes[:2])
    else:
        batches.seconds_to_read(builder.run, builder.sets[SET], np.arange(IMAGES))
    (bar,) = Bar.made
    assert bar.drawn == [True] * (1 if kind == "estimate" else 5) and not bar.open


def test_predictions_name_their_model_and_data(grid, mixes, expected):
    builder = grid.builder()
    metadata = expected[0].schema.metadata
    assert metadata[b"pack"].decode() == builder.sets[SET].pack.fingerprint
    assert all(name in metadata[b"mix"].decode() for name in mixes[0])
