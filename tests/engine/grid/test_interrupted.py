"""Evaluations that stop half-way, killed or without room, go on from their finished slices."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from damage import flip, full_disk
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
from grids import environment, grid

from engine.evaluation import bank, passes
from engine.store import pending
from loaders.schema import DamagedFile

__all__ = ["expected", "fresh", "grid", "mixes", "small_slices"]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    fresh, mixes, expected, small_slices, monkeypatch
):
    first_mixes, first_tables = mixes[:5], expected[:5]
    with monkeypatch.context() as patch:
        stop_after(patch, 5 * 3)  # of 25: five models, one slice and a half
        with pytest.raises(Stopped):
            tables(fresh.builder(), first_mixes)
    store = fresh.runs / "store"
    assert len(list((store / "pending").glob("*/*.parquet"))) == 5
    assert not (store / "predictions").exists()
    counted = Counted(monkeypatch)
    assert same(tables(fresh.builder(), first_mixes), first_tables)
    assert counted.images == IMAGES - 2 * BATCH
    assert not list((store / "pending").iterdir())


def test_features_that_were_interrupted_are_made_again(grid, fresh, small_slices, monkeypatch):
    builder = grid.builder()
    whole = builder.features(builder.base, builder.sets[SET])
    store = fresh.runs / "store"
    shutil.rmtree(store / "features")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            builder = fresh.builder()
            builder.features(builder.base, builder.sets[SET])
    assert not (store / "features").exists()
    counted, builder = Counted(monkeypatch), fresh.builder()
    assert torch.equal(builder.features(builder.base, builder.sets[SET]), whole)
    assert counted.images == IMAGES and not list((store / "pending").iterdir())
    stop_after(monkeypatch, 0)
    builder = fresh.builder()
    assert torch.equal(builder.features(builder.base, builder.sets[SET]), whole)


def test_features_without_room_name_their_file(grid, fresh, small_slices):
    shutil.rmtree(fresh.runs / "store" / "features")
    builder = fresh.builder()
    assert builder.base and builder.sets[SET]
    failure = pytest.raises(OSError, match=r"npy cannot be written .*make room and run the")
    with full_disk(), failure:
        builder.features(builder.base, builder.sets[SET])
    whole = grid.builder()
    assert torch.equal(
        fresh.builder().features(builder.base, builder.sets[SET]),
        whole.features(whole.base, whole.sets[SET]),
    )


KILLED = """
import json, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from grids import Grid
from engine.evaluation import bank, passes
from engine.machine import quiet, ranks
from engine.store import pending

folder, runs, mixes, batches = Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5], int(sys.argv[6])
pending.SLICE = 16
forward, left = bank.Forward.__call__, [batches]

def stopping(self, model, x):
    if not left[0]:
        print("here", flush=True)
        time.sleep(600)
    left[0] -= 1
    return forward(self, model, x)

bank.Forward.__call__ = stopping
quiet.libraries()
builder = Grid(folder, runs, ranks.start("cpu")).builder()
passes.evaluate(builder.run, json.loads(mixes), ["outline"], "all")
"""


def test_a_flipped_bit_in_a_slice_of_predictions_is_named_and_the_remedy_works(
    fresh, mixes, expected, small_slices, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            tables(fresh.builder(), mixes[:1])
    (file,) = (fresh.runs / "store" / "pending").rglob("*.parquet")
    column = pq.read_metadata(file).row_group(0).column(4)  # p_top1, whose values any bits can be
    flip(file, column.dictionary_page_offset + column.total_compressed_size // 2)
    remedy = f"delete {re.escape(str(file.parent))} and run"
    with pytest.raises(DamagedFile, match=remedy):
        tables(fresh.builder(), mixes[:1])
    shutil.rmtree(file.parent)
    assert same(tables(fresh.builder(), mixes[:1]), expected[:1])


@pytest.mark.slow
@pytest.mark.parametrize("batches", [2, 5 * 2 + 3, 5 * 4 + 2])
def test_a_killed_process_leaves_whole_slices_that_are_taken_up(
    fresh, mixes, expected, small_slices, monkeypatch, batches
):
    """Killed outright between two batches: in the first, second and last slice of five models."""
    tests = Path(__file__).resolve().parents[2]
    words = [tests, tests.parent, fresh.folder, fresh.runs, json.dumps(mixes[:5]), batches]
    command = [sys.executable, "-c", KILLED, *map(str, words)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and "here\n" in iter(child.stdout.readline, "")
        child.kill()
    assert child.returncode == -signal.SIGKILL
    finished = batches // 10
    assert len(list((fresh.runs / "store").rglob("*.parquet"))) == 5 * finished
    counted = Counted(monkeypatch)
    assert same(tables(fresh.builder(), mixes[:5]), expected[:5])
    assert counted.images == IMAGES - 2 * BATCH * finished


def test_models_of_a_small_set_are_kept_as_their_group_ends(
    grid, fresh, mixes, expected, monkeypatch
):
    """A set of one slice: the first group's models are not evaluated again."""
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    with monkeypatch.context() as patch:
        stop_after(patch, 2 * 5 + 1)
        with pytest.raises(Stopped):
            tables(fresh.builder(), mixes[:5])
    assert len(list((fresh.runs / "store" / "predictions").iterdir())) == 2
    counted = Counted(monkeypatch)
    assert same(tables(fresh.builder(), mixes[:5]), expected[:5])
    assert counted.models == 3


def test_what_a_slice_does_not_need_is_neither_loaded_nor_computed(
    grid, fresh, mixes, expected, small_slices, monkeypatch
):
    """Three groups of two see every slice; of the first slice, only the last group is left."""
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    with monkeypatch.context() as patch:
        stop_after(patch, 2 * 2 * 2)  # two groups of two models, two batches
        with pytest.raises(Stopped):
            tables(fresh.builder(), mixes[:6])
    counted = Counted(monkeypatch)
    assert same(tables(fresh.builder(), mixes[:6]), expected[:6])
    assert counted.models == 6  # a group sees its slices one after another
    assert counted.images == 3 * len(expected[0]) - 2 * 2 * BATCH


def test_slices_that_no_probe_needs_are_not_computed(
    fresh, mixes, expected, small_slices, monkeypatch
):
    put, remaining = pending.Pending.put, [1]

    def stopping(self, number, table):
        if not remaining[0]:
            raise Stopped
        remaining[0] -= 1
        put(self, number, table)

    with monkeypatch.context() as patch:
        patch.setattr(pending.Pending, "put", stopping)
        with pytest.raises(Stopped):
            tables(fresh.builder(), mixes[7:])
    positions, reduce = [], passes.Reduction.__call__
    monkeypatch.setattr(
        passes.Reduction, "__call__", lambda *words: positions.append(words[1]) or reduce(*words)
    )
    builder = fresh.builder()
    monkeypatch.setattr(passes.models, "create", lambda *_: pytest.fail("built for two names"))
    assert same(tables(builder, mixes[7:]), expected[7:])
    np.testing.assert_array_equal(np.concatenate(positions), np.arange(2 * BATCH, IMAGES))


def test_slices_that_were_all_there_become_an_artefact_without_a_model(
    fresh, mixes, expected, small_slices, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(pending.Pending, "finish", lambda self: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            tables(fresh.builder(), mixes[:1])
    counted = Counted(monkeypatch)
    assert same(tables(fresh.builder(), mixes[:1]), expected[:1])
    assert counted.images == counted.models == 0


def test_one_more_model_after_an_interruption_starts_at_the_beginning_alone(
    fresh, mixes, expected, small_slices, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            tables(fresh.builder(), mixes[:1])
    assert same(tables(fresh.builder(), mixes[:5]), expected[:5])


def test_slices_of_other_data_are_never_mixed_in(
    fresh, mixes, expected, small_slices, tmp_path, monkeypatch
):
    """The same model, set name and slices; one image differs."""
    changed = tmp_path / "shapes"
    shutil.copytree(fresh.folder, changed)
    file = sorted((changed / SET / "disc").iterdir())[0]
    shutil.copy(sorted((changed / SET / "bar").iterdir())[0], file)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            tables(fresh.builder(f"dataset.root={changed}", "downstream=tinted"), mixes[4:5])
    slices = list((fresh.runs / "store" / "pending").rglob("*.parquet"))
    assert len(slices) == 1
    assert same(tables(fresh.builder(), mixes[4:5]), expected[4:5])
    assert list((fresh.runs / "store" / "pending").rglob("*.parquet")) == slices


def test_a_slice_that_holds_other_images_is_refused_by_name(
    fresh, mixes, small_slices, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            tables(fresh.builder(), mixes[:1])
    (file,) = (fresh.runs / "store" / "pending").rglob("*.parquet")
    pq.write_table(pq.read_table(file).slice(0, BATCH), file)
    folder = re.escape(str(file.parent))
    with pytest.raises(ValueError, match=f"{folder} holds predictions of other images"):
        tables(fresh.builder(), mixes[:1])
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{folder} is no prediction table"):
        tables(fresh.builder(), mixes[:1])


@pytest.mark.parametrize("several", [False, True])
def test_a_full_disk_is_named_and_nothing_half_written_stays(
    fresh, mixes, expected, monkeypatch, several
):
    """The disk is full in the middle of a file."""
    if several:
        monkeypatch.setattr(pending, "SLICE", 2 * BATCH)
    builder = fresh.builder()
    passes.evaluate(builder.run, mixes[:1], ["few"], "all")
    failure = pytest.raises(OSError, match=r"parquet cannot be written .*make room and run the")
    with full_disk(), failure:
        tables(builder, mixes[:3])
    store = fresh.runs / "store"
    files = [path.name for path in store.rglob("*") if path.is_file()]
    assert not [name for name in files if ".parquet." in name]
    assert len(list((store / "predictions").iterdir())) == 1, "what was there before stays"
    assert same(tables(fresh.builder(), mixes[:3]), expected[:3])
