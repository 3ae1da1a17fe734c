"""Banks that do not fit, batches that do not fit, and evaluations that stop half-way."""

from __future__ import annotations

import json
import logging
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from grids import Grid, environment, grid
from torch import nn
from tqdm import tqdm

from engine import bank, evaluate, merge, pending
from engine import grid as jobs
from engine.context import Context
from engine.machine import ranks
from loaders.resident import Resident

__all__ = ["grid"]
SET, IMAGES = "outline", 35
BATCH = 8  # as tests/grids.py evaluates: four whole batches and one of three


@pytest.fixture(scope="module")
def mixes(grid: Grid) -> list[merge.Mix]:
    """Five models with weights of their own, the frozen backbone's two, and a prompt."""
    context = grid.context()
    base, tuned = context.base.name, context.cell("fine_tune").name
    prompt, probe = context.cell("visual_prompt").name, context.cell("linear_probe").name
    wise = [{base: 1 - a, tuned: a} for a in (0.2, 0.4, 0.6, 0.8)]
    return [*wise, {tuned: 1.0}, {prompt: 1.0}, {base: 1.0}, {probe: 1.0}]


@pytest.fixture(scope="module")
def wanted(grid: Grid, mixes: list[merge.Mix]) -> list:
    """What each says in one undisturbed evaluation."""
    return tables(grid.context(), mixes)


@pytest.fixture
def fresh(grid: Grid, mixes: list[merge.Mix], tmp_path: Path) -> Grid:
    """The same cells and packs; nothing is evaluated."""
    shutil.copytree(grid.runs / "packs", tmp_path / "runs" / "packs")
    for kind in ("weights", "cells", "features"):
        shutil.copytree(grid.runs / "store" / kind, tmp_path / "runs" / "store" / kind)
    return Grid(grid.folder, tmp_path / "runs", grid.device)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> int:
    """Slices of two batches: three of them."""
    monkeypatch.setattr(pending, "SLICE", 2 * BATCH)
    return 3


def tables(context: Context, mixes: list[merge.Mix]) -> list:
    evaluate.evaluate(context, mixes, [SET], "all")
    return [pq.read_table(evaluate.predicted(context, mix, SET, "all")) for mix in mixes]


def same(found: list, expected: list) -> bool:
    return all(a.equals(b) for a, b in zip(found, expected, strict=True))


def room_for_models(grid: Grid, mixes: list[merge.Mix], count: int) -> float:
    """Free bytes with which a bank holds `count` models of one or two parents."""
    name = next(iter(mixes[4]))
    size = (grid.runs / "store" / "cells" / name / "weights.safetensors").stat().st_size
    return (count + 5 + 0.5) * size / bank.WEIGHTS_SHARE


class Counted:
    """Images read and models loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, self.models = 0, 0
        batches, load = Resident.batches, bank._load

        def counted_batches(source: Resident, asked) -> Iterator:
            for batch in batches(source, asked):
                self.images += len(batch)
                yield batch

        def counted_load(net, context, some, parents) -> list:
            self.models += len(some)
            return load(net, context, some, parents)

        monkeypatch.setattr(Resident, "batches", counted_batches)
        monkeypatch.setattr(bank, "_load", counted_load)


@pytest.mark.parametrize(("read_s", "reads", "loads"), [(0.0, 3, 1), (1e9, 1, 3)])
def test_a_bank_that_does_not_fit_reads_or_loads_again_by_cost(
    grid, fresh, mixes, wanted, small_slices, monkeypatch, caplog, read_s, reads, loads
):
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    monkeypatch.setattr(evaluate, "_seconds_to_read", lambda *_: read_s)
    counted = Counted(monkeypatch)
    caplog.set_level(logging.INFO)
    assert same(tables(fresh.context(), mixes), wanted)
    full = 6  # the other two are heads
    assert counted.images == reads * IMAGES
    # Every slice takes the groups in order, so the first one, loaded to see its cost, is not twice.
    assert counted.models == full * loads
    choice = "the set is read once a group" if loads == 1 else "every slice is shown to all groups"
    assert "6 models do not fit together, so there are 3 groups" in caplog.text
    assert choice in caplog.text


def test_a_bank_that_fits_reads_once_and_loads_once(
    fresh, mixes, wanted, small_slices, monkeypatch, caplog
):
    counted = Counted(monkeypatch)
    caplog.set_level(logging.INFO)
    assert same(tables(fresh.context(), mixes), wanted)
    assert (counted.images, counted.models) == (IMAGES, 6)
    assert "do not fit" not in caplog.text and "run in parts" not in caplog.text


@pytest.mark.parametrize("rank", [0, 1])
def test_the_cost_of_reading_is_that_of_the_images_to_read_on_every_rank(grid, monkeypatch, rank):
    """A clock that a batch moves by a second; the group of ranks is one of one in truth."""
    context, clock, batches = grid.context(), [0.0], Resident.batches

    def slow_batches(source: Resident, asked) -> Iterator:
        for batch in batches(source, asked):
            clock[0] += 1
            yield batch

    monkeypatch.setattr(Resident, "batches", slow_batches)
    monkeypatch.setattr(evaluate, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    labelled = context.sets[SET]

    def seconds(count: int) -> float:
        return evaluate._seconds_to_read(context, labelled, np.arange(IMAGES)[-count:])

    assert (seconds(IMAGES), seconds(2 * BATCH), seconds(1)) == (5, 2, 1)
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    monkeypatch.setattr(ranks, "world", lambda: 2)
    assert (seconds(IMAGES), seconds(2 * BATCH)) == (3, 1)
    monkeypatch.setattr(ranks, "least", lambda value: min(value, -1.0))  # the other's: one second
    assert seconds(BATCH) == 1


def test_the_cost_is_asked_of_the_images_that_are_left(
    grid, fresh, mixes, small_slices, monkeypatch
):
    asked: list[np.ndarray] = []
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    monkeypatch.setattr(evaluate, "_seconds_to_read", lambda *given: asked.append(given[2]) or 1e9)
    with monkeypatch.context() as patch:
        stop_after(patch, 2 * 6)  # the first slice: two batches, six models
        with pytest.raises(Stopped):
            tables(fresh.context(), mixes[:6])
    tables(fresh.context(), mixes[:6])
    first, second = asked
    np.testing.assert_array_equal(first, np.arange(IMAGES))
    np.testing.assert_array_equal(second, np.arange(2 * BATCH, IMAGES))


def test_batches_are_cut_where_activations_do_not_fit(
    grid, fresh, mixes, wanted, monkeypatch, caplog
):
    context = grid.context()
    net = context.network(context.base)
    each = bank.activation_bytes(net, torch.zeros(1, 3, 32, 32))
    monkeypatch.setattr(bank, "free_memory", lambda device: 3.5 * each / bank.ACTIVATIONS_SHARE)
    seen = []
    hook = nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: seen.append(len(inputs[0])) if type(module) is type(net) else None
    )
    caplog.set_level(logging.INFO)
    try:
        found = tables(fresh.context(), mixes[:2])
    finally:
        hook.remove()
    # Three would fit, but parts are halves of halves, so that machines agree where they can.
    assert "batches of 8 run in parts of at most 2" in caplog.text
    assert max(seen) == 2 and seen.count(2) > 2 * seen.count(1)
    for mine, theirs in zip(found, wanted[:2], strict=True):
        assert mine["top1"].equals(theirs["top1"])
        for name in ("p_true", "margin"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_activations_are_those_of_the_largest_module():
    net = nn.Sequential(nn.Linear(4, 100), nn.GELU(), nn.Linear(100, 2))
    assert bank.activation_bytes(net, torch.zeros(1, 4)) == 2 * 4 * (100 + 100)
    before = len(nn.modules.module._global_forward_hooks)
    with pytest.raises(RuntimeError):
        bank.activation_bytes(net, torch.zeros(1, 5))
    assert len(nn.modules.module._global_forward_hooks) == before


def test_groups_are_whole_and_keep_the_same_parents_together():
    mixes = [{"a": 0.5, "b": 0.5}, {"c": 1.0}, {"a": 0.1, "b": 0.9}, {"a": 0.5, "c": 0.5}]
    found = bank.groups(mixes, 2)
    assert [len(group) for group in found] == [2, 2]
    together = [mix for group in found for mix in group]
    assert sorted(map(str, together)) == sorted(map(str, mixes))
    places = [together.index(mix) for mix in (mixes[0], mixes[2])]
    assert abs(places[0] - places[1]) == 1
    assert bank.groups(mixes, 1) == [[mix] for mix in together]
    assert bank.groups(mixes, 9) == [together]


def test_images_that_stay_for_several_groups_take_the_place_of_models(grid, mixes, monkeypatch):
    context = grid.context()
    parents = {name: evaluate._cell(context, name) for mix in mixes for name in mix}
    one = (room_for_models(grid, mixes, 3) - room_for_models(grid, mixes, 1)) / 2

    def sizes(room: int, slice_bytes: float) -> list[int]:
        free = room_for_models(grid, mixes, room)
        monkeypatch.setattr(bank, "free_memory", lambda device: free)
        found = bank.Bank(context, mixes[:5], parents, slice_bytes)
        return [len(group) for group in found.groups]

    assert sizes(3, 0) == [3, 2] and sizes(3, one) == [2, 2, 1] and sizes(3, 99 * one) == [1] * 5
    assert sizes(5, one) == [5], "one group needs no image twice"


def test_shares_of_memory_are_taken_after_the_set_has_its_own(fresh, mixes, monkeypatch):
    context, opened = fresh.context(), []
    monkeypatch.setattr(
        bank, "free_memory", lambda device: opened.append(SET in context.sets._sources) or 1e12
    )
    tables(context, mixes[:2])
    assert len(opened) == 2 and all(opened)


def test_a_column_holds_one_set_at_a_time(grid, monkeypatch):
    context, held = grid.context(), []

    def evaluate_on(context, mixes, name, split, sample) -> None:
        context.sets.source(name)
        held.append(set(context.sets._sources))

    monkeypatch.setattr(jobs, "_context", lambda *_: context)
    monkeypatch.setattr(jobs.sample, "evaluate_on", evaluate_on)
    monkeypatch.setattr(jobs.workflow, "advance", lambda *_: None)
    jobs.column(SimpleNamespace(path=None, methods=()), "outline", grid.device)
    assert held == [{"upstream"}, {"outline"}, {"tinted"}, {"few"}]
    assert not context.sets._sources


class Bar(tqdm):
    """Notes whether it was still open when each batch was drawn."""

    made: list[Bar] = []  # noqa: RUF012  # emptied by the tests

    def __init__(self, *words, **options) -> None:
        super().__init__(*words, **options)
        self.made.append(self)
        self.open, self.drawn = True, []

    def __iter__(self) -> Iterator:
        for one in super().__iter__():
            self.drawn.append(self.open)
            yield one

    def close(self) -> None:
        self.open = False
        super().close()


@pytest.mark.parametrize("kind", ["features", "predictions", "estimate"])
def test_progress_is_shown_while_batches_are_used(fresh, mixes, monkeypatch, kind):
    monkeypatch.setattr(evaluate, "tqdm", Bar)
    monkeypatch.setattr(Bar, "made", [])
    context = fresh.context()
    if kind == "features":
        slices = fresh.runs / "slices"
        evaluate.features(context, context.base, context.sets[SET], "fp32", slices)
    elif kind == "predictions":
        tables(context, mixes[:2])
    else:
        evaluate._seconds_to_read(context, context.sets[SET], np.arange(IMAGES))
    (bar,) = Bar.made
    assert bar.drawn == [True] * (1 if kind == "estimate" else 5) and not bar.open


class Stopped(Exception):
    """Ends an evaluation as a signal would."""


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    forward, left = bank.Forward.__call__, [batches]

    def counting(self, model, x):
        if not left[0]:
            raise Stopped
        left[0] -= 1
        return forward(self, model, x)

    monkeypatch.setattr(bank.Forward, "__call__", counting)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    fresh, mixes, wanted, small_slices, monkeypatch
):
    some, expected = mixes[:5], wanted[:5]
    with monkeypatch.context() as patch:
        stop_after(patch, 5 * 3)  # of 25: five models, one slice and a half
        with pytest.raises(Stopped):
            tables(fresh.context(), some)
    store = fresh.runs / "store"
    assert len(list((store / "pending").glob("*/*.parquet"))) == 5
    assert not (store / "predictions").exists()
    counted = Counted(monkeypatch)
    assert same(tables(fresh.context(), some), expected)
    assert counted.images == IMAGES - 2 * BATCH
    assert not list((store / "pending").iterdir())


@pytest.mark.parametrize("batches", [1, 3, 4])
def test_features_that_were_interrupted_go_on_where_they_stopped(
    grid, fresh, small_slices, monkeypatch, batches
):
    """In the first slice, in the second, and in the last, which is one batch of three images."""
    context = grid.context()
    whole = context.features(context.base, context.sets[SET])
    store = fresh.runs / "store"
    shutil.rmtree(store / "features")
    with monkeypatch.context() as patch:
        stop_after(patch, batches)
        with pytest.raises(Stopped):
            context = fresh.context()
            context.features(context.base, context.sets[SET])
    assert not (store / "features").exists()
    finished = batches // 2
    assert len(list((store / "pending").glob("*/*.npy"))) == finished
    counted, context = Counted(monkeypatch), fresh.context()
    found = context.features(context.base, context.sets[SET])
    assert torch.equal(found, whole)
    assert counted.images == IMAGES - 2 * BATCH * finished
    assert not list((store / "pending").iterdir())
    stop_after(monkeypatch, 0)
    context = fresh.context()
    assert torch.equal(context.features(context.base, context.sets[SET]), whole)


def test_features_without_room_name_their_file(grid, fresh, small_slices):
    shutil.rmtree(fresh.runs / "store" / "features")
    context = fresh.context()
    assert context.base and context.sets[SET]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(OSError, match=r"npy cannot be written .*make room and run the"):
            context.features(context.base, context.sets[SET])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    whole = grid.context()
    assert torch.equal(
        fresh.context().features(context.base, context.sets[SET]),
        whole.features(whole.base, whole.sets[SET]),
    )


KILLED = """
import json, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from grids import Grid
from engine import bank, evaluate, pending
from engine.machine import quiet, ranks

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
context = Grid(folder, runs, ranks.start("cpu")).context()
evaluate.evaluate(context, json.loads(mixes), ["outline"], "all")
"""


@pytest.mark.slow
@pytest.mark.parametrize("batches", [2, 5 * 2 + 3, 5 * 4 + 2])
def test_a_killed_process_leaves_whole_slices_that_are_taken_up(
    fresh, mixes, wanted, small_slices, monkeypatch, batches
):
    """Killed outright between two batches: in the first, second and last slice of five models."""
    tests = Path(__file__).resolve().parent
    words = [tests, tests.parent, fresh.folder, fresh.runs, json.dumps(mixes[:5]), batches]
    command = [sys.executable, "-c", KILLED, *map(str, words)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and "here\n" in iter(child.stdout.readline, "")
        child.kill()
    assert child.returncode == -signal.SIGKILL
    finished = batches // 10
    assert len(list((fresh.runs / "store").rglob("*.parquet"))) == 5 * finished
    counted = Counted(monkeypatch)
    assert same(tables(fresh.context(), mixes[:5]), wanted[:5])
    assert counted.images == IMAGES - 2 * BATCH * finished


def test_models_of_a_small_set_are_kept_as_their_group_ends(
    grid, fresh, mixes, wanted, monkeypatch
):
    """A set of one slice: what the first group said is not said again."""
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    with monkeypatch.context() as patch:
        stop_after(patch, 2 * 5 + 1)
        with pytest.raises(Stopped):
            tables(fresh.context(), mixes[:5])
    assert len(list((fresh.runs / "store" / "predictions").iterdir())) == 2
    counted = Counted(monkeypatch)
    assert same(tables(fresh.context(), mixes[:5]), wanted[:5])
    assert counted.models == 3


def test_what_a_slice_does_not_need_is_neither_loaded_nor_computed(
    grid, fresh, mixes, wanted, small_slices, monkeypatch
):
    """Three groups of two see every slice; of the first slice, only the last group is left."""
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    monkeypatch.setattr(evaluate, "_seconds_to_read", lambda *_: 1e9)
    with monkeypatch.context() as patch:
        stop_after(patch, 2 * 2 * 2)  # two groups of two models, two batches
        with pytest.raises(Stopped):
            tables(fresh.context(), mixes[:6])
    counted = Counted(monkeypatch)
    assert same(tables(fresh.context(), mixes[:6]), wanted[:6])
    first_to_know_the_cost, of_slices = 2, 2 + 6 + 6
    assert counted.models == first_to_know_the_cost + of_slices


def test_slices_that_no_probe_needs_are_not_computed(
    fresh, mixes, wanted, small_slices, monkeypatch
):
    put, left = pending.Pending.put, [1]

    def stopping(self, number, table):
        if not left[0]:
            raise Stopped
        left[0] -= 1
        put(self, number, table)

    with monkeypatch.context() as patch:
        patch.setattr(pending.Pending, "put", stopping)
        with pytest.raises(Stopped):
            tables(fresh.context(), mixes[7:])
    seen, verdict = [], evaluate.Verdict.__call__
    monkeypatch.setattr(
        evaluate.Verdict, "__call__", lambda *words: seen.append(words[1]) or verdict(*words)
    )
    context = fresh.context()
    monkeypatch.setattr(evaluate.models, "create", lambda *_: pytest.fail("built for two names"))
    assert same(tables(context, mixes[7:]), wanted[7:])
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(2 * BATCH, IMAGES))


def test_slices_that_were_all_there_become_an_artefact_without_a_model(
    fresh, mixes, wanted, small_slices, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(pending.Pending, "finish", lambda self: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            tables(fresh.context(), mixes[:1])
    counted = Counted(monkeypatch)
    assert same(tables(fresh.context(), mixes[:1]), wanted[:1])
    assert counted.images == counted.models == 0


def test_one_more_model_after_an_interruption_starts_at_the_beginning_alone(
    fresh, mixes, wanted, small_slices, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            tables(fresh.context(), mixes[:1])
    assert same(tables(fresh.context(), mixes[:5]), wanted[:5])


def test_slices_of_other_data_are_never_mixed_in(
    fresh, mixes, wanted, small_slices, tmp_path, monkeypatch
):
    """The same model, set name and slices; one image differs."""
    other = tmp_path / "shapes"
    shutil.copytree(fresh.folder, other)
    file = sorted((other / SET / "disc").iterdir())[0]
    shutil.copy(sorted((other / SET / "bar").iterdir())[0], file)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            tables(fresh.context(f"dataset.root={other}", "downstream=tinted"), mixes[4:5])
    left = list((fresh.runs / "store" / "pending").rglob("*.parquet"))
    assert len(left) == 1
    assert same(tables(fresh.context(), mixes[4:5]), wanted[4:5])
    assert list((fresh.runs / "store" / "pending").rglob("*.parquet")) == left


def test_a_slice_that_holds_other_images_is_refused_by_name(
    fresh, mixes, small_slices, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            tables(fresh.context(), mixes[:1])
    (file,) = (fresh.runs / "store" / "pending").rglob("*.parquet")
    pq.write_table(pq.read_table(file).slice(0, BATCH), file)
    folder = re.escape(str(file.parent))
    with pytest.raises(ValueError, match=f"{folder} holds predictions of other images"):
        tables(fresh.context(), mixes[:1])
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{folder} is no prediction table"):
        tables(fresh.context(), mixes[:1])


@pytest.mark.parametrize("several", [False, True])
def test_a_full_disk_is_named_and_nothing_half_written_stays(
    fresh, mixes, wanted, monkeypatch, several
):
    """The kernel refuses bytes beyond a limit, in the middle of a file, as a full disk does."""
    if several:
        monkeypatch.setattr(pending, "SLICE", 2 * BATCH)
    context = fresh.context()
    evaluate.evaluate(context, mixes[:1], ["few"], "all")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(OSError, match=r"parquet cannot be written .*make room and run the"):
            tables(context, mixes[:3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store = fresh.runs / "store"
    files = [path.name for path in store.rglob("*") if path.is_file()]
    assert not [name for name in files if ".parquet." in name]
    assert len(list((store / "predictions").iterdir())) == 1, "what was there before stays"
    assert same(tables(fresh.context(), mixes[:3]), wanted[:3])


def test_predictions_name_their_model_and_data(grid, mixes, wanted):
    context = grid.context()
    named = wanted[0].schema.metadata
    assert named[b"pack"].decode() == context.sets[SET].pack.fingerprint
    assert all(name in named[b"mix"].decode() for name in mixes[0])
