"""Banks that do not fit and batches that do not fit: what is read, loaded and kept in memory."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
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


def test_a_share_of_memory_is_taken_after_the_set_has_its_own(fresh, mixes, monkeypatch):
    builder, opened = fresh.builder(), []
    monkeypatch.setattr(
        bank, "free_memory", lambda device: opened.append(SET in builder.sets._sources) or 1e12
    )
    tables(builder, mixes[:2])
    assert opened == [True]


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
