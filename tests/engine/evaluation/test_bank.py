"""Banks: what is read, loaded and kept in memory; ensembles, which cost no pass of their own."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.campaigns import column_job
from engine.campaigns.plan import Column
from engine.evaluation import bank, features, passes
from engine.measures import predictions
from engine.measures.predictions import TEMPERATURES
from engine.models.execution import Form
from engine.store import cells
from engine.store.cells import Ensemble, Entry
from helpers.evaluations import (
    IMAGES,
    SET,
    Counted,
    by_timm,
    check_predictions,
    room_for_models,
    same,
    tables,
)
from helpers.grids import Grid


@pytest.mark.parametrize(("room", "reads"), [(2, 3), (8, 1)])
def test_a_set_is_read_once_for_as_many_models_as_fit(
    grid, fresh, mixes, expected, small_slices, monkeypatch, caplog, room, reads
):
    builder, counted = fresh.builder(), Counted(monkeypatch)

    def free_memory(device: torch.device) -> float:
        assert SET in builder.sets._sources, "the set takes its memory first"
        return room_for_models(grid, mixes, room)

    monkeypatch.setattr(bank, "free_memory", free_memory)
    caplog.set_level(logging.INFO)
    assert same(tables(builder, mixes), expected)
    assert (counted.images, counted.models) == (reads * IMAGES, 6)  # the other two are heads
    message = f"6 models do not fit together: reading the dataset once for each of {reads} groups"
    assert (message in caplog.text) == (reads > 1)


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


@pytest.mark.parametrize(("room", "loads"), [(2, 3 * 6 + 2), (8, 6)])
def test_models_that_fit_together_are_loaded_once_for_all_sets(
    grid, fresh, mixes, monkeypatch, room, loads
):
    """Also for calls of some of them, on splits of their own."""
    names = ["outline", "tinted", "few"]
    expected = [tables(grid.builder(), mixes, [name]) for name in names]
    builder, counted, made = fresh.builder(), Counted(monkeypatch), []
    for name in names:
        features.stored(builder, builder.base, builder.sets[name])
    backbone = Form.backbone
    monkeypatch.setattr(Form, "backbone", lambda *of: made.append(of) or backbone(*of))
    monkeypatch.setattr(bank, "free_memory", lambda _: room_for_models(grid, mixes, room))
    held = bank.Bank(builder)
    for name in names:
        passes.evaluate(builder, mixes, [name], "all", held)
    passes.evaluate(builder, mixes[2:4], ["few"], "train", held)  # groups leave none behind
    assert (counted.models, len(made)) == (loads, 1)
    for name, of_set in zip(names, expected, strict=True):
        assert same(tables(builder, mixes, [name]), of_set)


def test_a_column_holds_one_set_at_a_time(grid, monkeypatch):
    """And its models throughout."""
    builder, held, banks = grid.builder(), [], set()

    def evaluate(run, mixes, names, split, of_column) -> None:
        run.sets.source(*names)
        held.append(set(run.sets._sources))
        banks.add(of_column)

    column = Column("outline")
    cells = [("fine_tune", None)]
    plan = SimpleNamespace(place=None, columns=[column], named_cells=lambda _: cells)
    plan.cells_of = lambda _: [0]
    monkeypatch.setattr(column_job, "builders", lambda *_, **__: [builder])
    monkeypatch.setattr(column_job.passes, "evaluate", evaluate)
    monkeypatch.setattr(column_job.job_states, "advance", lambda *_: None)
    monkeypatch.setattr(column_job, "part_of_column", lambda *_: None)
    monkeypatch.setattr(column_job, "write_part", lambda *_: None)
    for name, result in (("build", None), ("entries", ()), ("remove_snapshots", None)):
        monkeypatch.setattr(builder, name, lambda result=result: result)
    column_job.make_column(plan, column, grid.device)
    assert held == [{"upstream"}, {"outline"}, {"tinted"}, {"few"}] and len(banks) == 1
    assert not builder.sets._sources


@pytest.fixture
def members(mixes) -> list[str]:
    """A fine-tuned model, one with a prompt, the pretrained one and a probe."""
    return [name for mix in mixes[4:] for name in mix]


def ensembled(grid: Grid, method: str, name: str) -> tuple:
    """The builder, entry and predictions of an ensemble of three, its members' names, and by timm
    their logits, and labels."""
    builder, cell = grid.build(
        f"method={method}", "method.members=[pretrained,fine_tune,visual_prompt]"
    )
    (entry,) = cell.entries
    members = [builder.base, builder.cell("fine_tune"), builder.cell("visual_prompt")]
    of_members = [by_timm(grid, name, each.state(), each.prompt()) for each in members]
    logits, truth = zip(*of_members, strict=True)
    (table,) = tables(builder, [entry.mix], [name])
    return builder, entry, table, tuple(member.name for member in members), logits, truth[0]


@pytest.mark.parametrize("name", ["tinted", "few"])  # few: among three of the head's classes
def test_an_ensemble_is_the_mean_of_its_members_logits(grid, name):
    builder, entry, table, names, logits, truth = ensembled(grid, "ensemble", name)
    assert entry == Entry(Ensemble(names))
    path = passes.predicted(builder, entry.mix, name, "all")
    assert predictions.mix_of(path) == cells.canonical_mix(entry.mix)
    assert {len(set(single.argmax(1).tolist())) for single in logits} != {1}
    check_predictions(table, torch.stack(logits).mean(0), truth)


@pytest.mark.parametrize("name", ["tinted", "few"])
def test_dawin_averages_probabilities_by_each_images_entropies(grid, name):
    builder, _, table, names, logits, truth = ensembled(grid, "dawin", name)
    mixed = []
    for row in zip(*(each.softmax(1).tolist() for each in logits), strict=True):  # an image each
        sure = [math.prod(p**p for p in of_member) for of_member in row]  # exp(-entropy)
        shares = [each / sum(sure) for each in sure]
        assert len({round(share, 3) for share in shares}) > 1
        mixed.append((np.array(shares)[:, None] * np.array(row)).sum(0).tolist())
    check_predictions(table, torch.tensor(mixed, dtype=torch.float64).log(), truth)
    assert not tables(builder, [Ensemble(names)], [name])[0]["p_true"].equals(table["p_true"])


def test_an_ensemble_costs_no_forward_pass(
    grid, fresh, mixes, members, expected, small_slices, monkeypatch
):
    """Of models that see the images anyway, which a head on stored features does not."""
    forward, seen = bank.forward, []
    monkeypatch.setattr(
        bank, "forward", lambda model, x: (seen.append(len(x)), forward(model, x))[1]
    )
    counted = Counted(monkeypatch)
    ensemble = Ensemble(tuple(members[:2]))
    *alone, of_ensemble = tables(fresh.builder(), [*mixes, ensemble])
    assert same(alone, expected)  # to the bit
    assert (counted.images, counted.models) == (IMAGES, 6)
    models = sum(seen) / IMAGES
    # Without its members beside it, it is the same to the bit; they run for it.
    assert same(tables(grid.builder(), [ensemble]), [of_ensemble])
    assert (models, sum(seen) / IMAGES) == (6 + 2, 6 + 2 + 2)  # two are heads on features


def test_a_bank_that_does_not_fit_holds_an_ensembles_members_together(
    grid, fresh, mixes, members, monkeypatch
):
    models = [*mixes, Ensemble(tuple(members[:3])), Ensemble(tuple(members[1:]))]
    together = tables(grid.builder(), models)
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 3))
    counted = Counted(monkeypatch)
    assert same(tables(fresh.builder(), models), together)
    assert counted.images == 4 * IMAGES, "of each ensemble, and of six models by threes"
    monkeypatch.setattr(bank, "free_memory", lambda device: room_for_models(grid, mixes, 2))
    with pytest.raises(ValueError, match=r"the ensemble of .*fine_tune.* needs 3 models .* 2 fit"):
        tables(fresh.builder("evaluate.batch_size=7"), models)


def test_a_mix_and_an_ensemble_of_the_same_cells_have_predictions_of_their_own(grid):
    builder, cell = grid.build("method=ensemble", "method.members=[pretrained,fine_tune]")
    (entry,) = cell.entries
    mix, turned = dict.fromkeys(entry.mix, 0.5), Ensemble(tuple(reversed(entry.mix.members)))
    of_ensemble, of_mix = tables(builder, [entry.mix, mix])
    assert not of_ensemble["p_true"].equals(of_mix["p_true"])
    places = [passes.predicted(builder, each, SET, "all") for each in (entry.mix, turned)]
    assert places[0] == places[1]
