"""Evaluations that stop half-way, killed or without room, go on from their finished slices."""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from engine.evaluation import bank, passes
from engine.store import made_by, pending
from helpers.damage import cut, flip, full_disk
from helpers.evaluations import BATCH, IMAGES, SET, Counted, room_for_models, same, tables
from helpers.interruptions import Stopped
from loaders.files.typed_json import DamagedFile


def stop(grid, batches, mixes):
    """Evaluate until models were shown so many batches, counted once a model."""
    forward, left = bank.forward, iter(range(batches))

    def counting(model, x):
        if next(left, None) is None:
            raise Stopped
        return forward(model, x)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(bank, "forward", counting)
        tables(grid.builder(), mixes)


def features(grid):
    builder = grid.builder()
    return builder.features(builder.base, builder.sets[SET])


def pending_files(grid, pattern):
    return sorted((grid.runs / "store" / "pending").rglob(pattern))


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    fresh, mixes, expected, small_slices, monkeypatch
):
    """Also beside a model that was not among those that were interrupted."""
    stop(fresh, 4 * 3, mixes[:4])  # of 20: four models, one slice and a half
    assert len(pending_files(fresh, "*.parquet")) == 4
    assert not (fresh.runs / "store" / "predictions").exists()
    counted = Counted(monkeypatch)
    assert same(tables(fresh.builder(), mixes[:4]), expected[:4])
    assert counted.images == IMAGES - 2 * BATCH
    stop(fresh, 3, mixes[4:5])
    assert same(tables(fresh.builder(), mixes[4:6]), expected[4:6])
    assert not pending_files(fresh, "*")
    assert all(table["index"].to_pylist() == [*range(IMAGES)] for table in expected)


def other_bits(file: Path) -> None:
    column = pq.read_metadata(file).row_group(0).column(4)  # p_top1, whose values any bits can be
    flip(file, column.dictionary_page_offset + column.total_compressed_size // 2)


def other_images(file: Path) -> None:
    pq.write_table(pq.read_table(file).slice(0, BATCH), file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_bits, "run"),
        (other_images, "does not have predictions of exactly"),
        (cut, "is not a table of pred"),
    ],
)
def test_a_damaged_slice_of_predictions_is_named_and_the_remedy_works(
    fresh, mixes, expected, small_slices, damage, message
):
    stop(fresh, 3, mixes[:1])
    (file,) = pending_files(fresh, "*.parquet")
    damage(file)
    folder = re.escape(str(file.parent))
    with pytest.raises(DamagedFile, match=message) as caught:
        tables(fresh.builder(), mixes[:1])
    assert re.search(f"{folder}.* delete (it|{folder}) and run", str(caught.value))
    shutil.rmtree(file.parent)
    assert same(tables(fresh.builder(), mixes[:1]), expected[:1])


def test_slices_of_other_code_are_made_again(
    fresh, mixes, expected, small_slices, monkeypatch, caplog
):
    stop(fresh, 3, mixes[:1])
    assert len(pending_files(fresh, "*.parquet")) == 1
    monkeypatch.setattr(made_by, "installed", lambda: {"torch": "1.0"})
    counted = Counted(monkeypatch)
    assert same(tables(fresh.builder(), mixes[:1]), expected[:1])
    assert counted.images == IMAGES and not pending_files(fresh, "*")
    assert "its slices of other code or versions are made again" in caplog.text


def test_models_of_a_set_of_one_slice_are_kept_as_their_group_ends(
    grid, fresh, mixes, expected, monkeypatch
):
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    stop(fresh, 2 * 5 + 1, mixes[:5])
    assert len(list((fresh.runs / "store" / "predictions").iterdir())) == 2
    counted = Counted(monkeypatch)
    assert same(tables(fresh.builder(), mixes[:5]), expected[:5])
    assert counted.models == 3


def test_heads_on_shared_features_go_on_too(fresh, mixes, expected, small_slices, monkeypatch):
    """The first run ends in the second slice of three, the next as it joins those of a head."""
    put, reduced, computed = pending.PartialPredictions.put, passes.reduced, []
    monkeypatch.setattr(passes, "reduced", lambda *words: computed.append(1) or reduced(*words))

    def stopping(self, *words):
        if not words or len(pending_files(fresh, "*.parquet")) == 2:
            raise Stopped
        put(self, *words)

    for method in ("put", "finish"):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(pending.PartialPredictions, method, stopping)
            tables(fresh.builder(), mixes[6:8])
    assert same(tables(fresh.builder(), mixes[6:8]), expected[6:8])
    assert len(computed) == 3 + 2  # while a slice is written, the next is computed


@pytest.mark.parametrize("slice_of", [pending.SLICE, 2 * BATCH])
def test_a_full_disk_is_named_and_nothing_half_written_stays(
    grid, fresh, mixes, expected, monkeypatch, slice_of
):
    """The disk is full in the middle of a file."""
    monkeypatch.setattr(pending, "SLICE", slice_of)
    builder = fresh.builder()
    passes.evaluate(builder, mixes[:1], ["few"], "all")
    shutil.rmtree(fresh.runs / "store" / "features")
    assert builder.base and builder.sets[SET]
    for work in (lambda: tables(builder, mixes[:3]), lambda: features(fresh)):
        failure = pytest.raises(
            OSError, match=r"cannot be written .*make room, or make its folder writable"
        )
        with full_disk(), failure:
            work()
    store = fresh.runs / "store"
    assert not [path for path in store.rglob("*") if ".parquet." in path.name]
    assert len(list((store / "predictions").iterdir())) == 1, "what was there before stays"
    assert same(tables(fresh.builder(), mixes[:3]), expected[:3])
    assert torch.equal(features(fresh), features(grid))
