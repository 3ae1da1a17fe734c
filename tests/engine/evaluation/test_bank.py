"""Banks that do not fit and batches that do not fit: what is read, loaded and kept in memory."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
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
from tqdm import tqdm

from engine.evaluation import bank, features
from engine.grid import jobs
from engine.grid.columns import Column
from engine.machine import bars
from engine.measures.calibration import BINS, TEMPERATURES

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
    assert "do not fit" not in caplog.text


def test_calibration_costs_no_pass_and_leaves_the_other_columns(
    fresh, mixes, expected, small_slices, monkeypatch
):
    counted = Counted(monkeypatch)
    calibrated = tables(fresh.builder("evaluate.calibration=true"), mixes)
    assert (counted.images, counted.models) == (IMAGES, 6)
    for plain, more in zip(expected, calibrated, strict=True):
        assert more.select(plain.column_names).equals(plain)
        confidences = np.array(more["p_top1_scaled"].to_pylist())
        at_1 = confidences[:, TEMPERATURES.tolist().index(1.0)]
        np.testing.assert_array_equal(at_1, plain["p_top1"].to_numpy())
        assert (np.diff(confidences, axis=1) <= 1e-6).all()
        # A slice has sums of its own, by five classes and the bins.
        lengths = [len(sums) for sums in more["class_gaps"].to_pylist()]
        assert [k for k, length in enumerate(lengths) if length] == [0, 16, 32]
        assert set(lengths) == {0, 5 * BINS}


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
    monkeypatch.setattr(bars, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    builder = fresh.builder()
    if kind == "features":
        shutil.rmtree(fresh.runs / "store" / "features")
        features.stored(builder.run, builder.base, builder.sets[SET])
    else:
        tables(builder, mixes[:2])
    (bar,) = Bar.made
    assert bar.drawn == [True] * 5 and not bar.open


def test_predictions_name_their_model_and_data(grid, mixes, expected):
    builder = grid.builder()
    metadata = expected[0].schema.metadata
    assert metadata[b"pack"].decode() == builder.sets[SET].pack.fingerprint
    assert all(name in metadata[b"mix"].decode() for name in mixes[0])
