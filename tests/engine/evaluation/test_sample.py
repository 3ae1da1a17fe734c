"""Samples on a small benchmark: the same images for all models, evaluated once, weighted right."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import campaigns
import numpy as np
import pyarrow.parquet as pq
import pytest
from grids import SETS, Grid, grid

from engine.errors import RecipeError
from engine.evaluation import budget, passes, sample
from engine.grid import half_widths
from engine.grid.build import Builder
from engine.measures import predictions
from engine.measures.rows import PRE, Evaluation
from engine.store import pending
from engine.store.cells import Mix

__all__ = ["grid"]
folder = campaigns.folder
ALL = dict.fromkeys(SETS, "all")


@pytest.fixture
def fresh(grid: Grid, tmp_path: Path) -> Grid:
    """Finished cells and packs, without any predictions."""
    grid.build("method=fine_tune")
    shutil.copytree(grid.runs / "packs", tmp_path / "runs" / "packs")
    for kind in ("weights", "cells"):
        shutil.copytree(grid.runs / "store" / kind, tmp_path / "runs" / "store" / kind)
    return Grid(grid.folder, tmp_path / "runs", grid.device)


def bank(builder: Builder) -> list[Mix]:
    base, tuned = builder.base.name, builder.cell("fine_tune").name
    return [{tuned: 1.0}, {base: 0.5, tuned: 0.5}]


def sampled(grid: Grid, share: float, name: str = "tinted") -> tuple[Builder, sample.Sample]:
    builder = grid.builder(f"evaluate.budget={share}")
    subset = sample.draw(builder.run, ALL)[name]
    sample.evaluate_on(builder.run, bank(builder), name, "all", subset)
    return builder, subset


def table(builder: Builder, mix: Mix, subset: sample.Sample | None, name: str = "tinted"):
    return predictions.read(sample.predicted(builder.run, mix, name, "all", subset))


def test_a_sample_says_what_the_whole_says_of_its_images(fresh, grid):
    builder, subset = sampled(fresh, 0.4)
    assert 0 < subset.images < len(subset.index)
    for mix in bank(builder):
        predicted = table(builder, mix, subset)
        full = grid.builder()
        passes.evaluate(full.run, [mix], ["tinted"], "all")
        whole = table(full, mix, None)
        index = np.sort(subset.index[subset.frame.order[: subset.images]])
        np.testing.assert_array_equal(predicted["index"].to_numpy(), index)
        assert predicted["top1"].equals(whole.take(index)["top1"])
        np.testing.assert_allclose(
            predicted["p_true"].to_numpy(), whole.take(index)["p_true"].to_numpy(), rtol=1e-5
        )
        assert predicted["weight"].to_numpy().sum() == pytest.approx(len(whole))


def test_the_pre_trained_model_has_its_full_accuracy_on_a_sample(fresh):
    builder, subset = sampled(fresh, 0.4)
    mix = {builder.base.name: 1.0}
    sample.evaluate_on(builder.run, [mix], "tinted", "all", subset)
    part, whole = (
        predictions.SetPredictions().add(
            sample.predicted(builder.run, mix, "tinted", "all", images)
        )
        for images in (subset, None)
    )
    assert len(part.top1) < len(whole.top1)
    assert part.accuracy == pytest.approx(whole.accuracy)


def test_a_larger_budget_evaluates_only_what_is_new(fresh, monkeypatch):
    counts: list[int] = []
    evaluate = passes._pass

    def watched(run, mixes, labelled, split, *share):
        if not isinstance(split, str):
            counts.append(len(split.places))
        evaluate(run, mixes, labelled, split, *share)

    monkeypatch.setattr(passes, "_pass", watched)
    _, small = sampled(fresh, 0.3)
    builder, large = sampled(fresh, 0.7)
    assert counts == [small.images, large.images - small.images]
    assert set(table(builder, bank(builder)[0], large)["index"].to_pylist()) > set(
        table(builder, bank(builder)[0], small)["index"].to_pylist()
    )
    np.testing.assert_array_equal(large.frame.order, small.frame.order)
    sampled(fresh, 0.3)
    sampled(fresh, 0.7)
    assert len(counts) == 2


def test_what_was_evaluated_in_full_is_only_read(fresh, monkeypatch):
    builder = fresh.builder()
    passes.evaluate(builder.run, bank(builder), ["tinted"], "all")
    sample.draw(fresh.builder("evaluate.budget=0.5").run, ALL)  # evaluates the pre-trained model
    monkeypatch.setattr(passes, "_pass", lambda *_: pytest.fail("evaluated twice"))
    sampled(fresh, 0.5)


def test_growing_to_all_images_gives_the_full_result(fresh):
    sampled(fresh, 0.5)
    builder = fresh.builder("evaluate.half_width=0.1")
    subset = sample.draw(builder.run, ALL)["tinted"]
    assert subset.whole
    sample.evaluate_on(builder.run, bank(builder), "tinted", "all", subset)
    for mix in bank(builder):
        grown = table(builder, mix, subset)
        assert passes.find(builder.run, mix, "tinted", "all") is None, "half of it was there"
        passes.evaluate(builder.run, [mix], ["tinted"], "all")
        full = table(builder, mix, None)
        assert grown.column_names == full.column_names
        assert grown.select(predictions.IMAGE[:3]).equals(full.select(predictions.IMAGE[:3]))
        assert grown["top1"].equals(full["top1"])


def test_without_a_budget_nothing_is_sampled_and_no_name_changes(grid):
    builder = grid.builder()
    assert sample.draw(builder.run, ALL) == {}
    labelled, mix = builder.sets["tinted"], {builder.base.name: 1.0}
    names = [passes.key_of(grid.builder(f"evaluate.{word}").run, mix, labelled, "all")
             for word in ("budget=1", "budget=0.5", "half_width=1")]  # fmt: skip
    assert all(name == passes.key_of(builder.run, mix, labelled, "all") for name in names)
    usual = ("mix", "pack", "split", "precision", "batch_size", "classes", "machine")
    assert set(names[0][1]) == set(usual)


def test_samples_of_sets_are_drawn_apart_and_seeded(grid, monkeypatch):
    """Each set and split has a seed of its own, which the recipe's moves."""
    seeds: list[tuple[int, ...]] = []
    frame = budget.stratify

    def watched(*arrays, seed):
        seeds.append(tuple(seed))
        return frame(*arrays, seed=seed)

    monkeypatch.setattr(budget, "stratify", watched)
    drawn, again = (sample.draw(grid.builder("evaluate.budget=0.5").run, ALL) for _ in "xx")
    assert all(drawn[name].prefix == again[name].prefix for name in ALL)
    assert seeds[: len(ALL)] == seeds[len(ALL) :]
    sample.draw(grid.builder("evaluate.budget=0.5").run, dict.fromkeys(SETS, "holdout"))
    assert len(set(seeds)) == 2 * len(ALL) and {seed for seed, _ in seeds} == {0}
    run = grid.builder("evaluate.budget=0.5").run  # whose base model the seed leaves as it is
    moved = replace(run.recipe, dataset=replace(run.recipe.dataset, seed=7))
    reseeded = sample.draw(replace(run, recipe=moved), ALL)
    assert [seed for seed, _ in seeds[-len(ALL) :]] == [7] * len(ALL)
    assert all(reseeded[name].prefix != drawn[name].prefix for name in ALL)


def test_columns_draw_the_same_samples_where_nothing_is_held_out(grid):
    prefixes = []
    for downstream in ("outline", "tinted"):
        words = ("dataset.holdout=0", "evaluate.budget=0.5", f"downstream={downstream}")
        builder = grid.builder(*words)
        assert {sample.split_of(builder.recipe, name) for name in SETS} == {"all"}
        drawn = sample.draw(
            builder.run, {name: sample.split_of(builder.recipe, name) for name in SETS}
        )
        prefixes.append({name: subset.prefix for name, subset in drawn.items()})
    assert prefixes[0] == prefixes[1]
    held = grid.builder()
    assert [sample.split_of(held.recipe, n) for n in ("outline", "tinted")] == ["holdout", "all"]


def test_the_budget_is_for_the_sets_that_ri_counts(grid):
    for share in (0.3, 0.7):
        drawn = sample.draw(grid.builder(f"evaluate.budget={share}").run, ALL)
        assert list(drawn) == list(ALL)
        upstream = drawn.pop("upstream")
        images = [subset.images for subset in drawn.values()]
        assert sum(images) == math.ceil(share * sum(len(subset.index) for subset in drawn.values()))
        assert upstream.images == min(len(upstream.index), max(images))


def test_the_first_look_sees_what_a_sample_needs_and_a_budget_below_is_refused(grid):
    first = f"evaluate.budget={budget.FIRST}"
    drawn = sample.draw(grid.builder(first, "evaluate.half_width=1").run, ALL)
    assert all(
        subset.images == subset.frame.least for name, subset in drawn.items() if name != "upstream"
    )
    with pytest.raises(RecipeError, match=r"evaluate\.budget=0\.00390625 is too little"):
        sample.draw(grid.builder(first).run, ALL)


def test_files_put_together_name_their_model_and_pack(fresh, tmp_path):
    builder, subset = sampled(fresh, 0.4)
    for mix in bank(builder):
        metadata = pq.read_schema(
            sample.predicted(builder.run, mix, "tinted", "all", subset)
        ).metadata
        assert json.loads(metadata[b"mix"]) == mix
        assert metadata[b"pack"].decode() == builder.sets["tinted"].pack.fingerprint
    key = {"mix": {"m": 1.0}, "pack": "p"}
    with pytest.raises(OSError, match=r"nowhere/part-00000\.parquet cannot be written"):
        pending.write(tmp_path / "nowhere", table(builder, bank(builder)[0], subset), key)


def test_groups_count_alike_in_a_sample(fresh):
    """Corruptions of unequal size: what is known of the pre-trained model stays so."""
    builder = fresh.builder("evaluate.budget=0.6")
    plain = builder.sets["tinted"]
    group = np.array(["noise/1"] * 9 + ["noise/2"] * 14 + ["blur/1"] * (len(plain.pack) - 23))
    builder.sets._open["tinted"] = replace(plain, group=group)
    subset = sample.draw(builder.run, ALL)["tinted"]
    assert subset.images < len(subset.index)
    stratum = subset.frame.stratum
    for number in range(len(subset.frame.size)):
        assert len(set(group[stratum == number])) == 1
    base = {builder.base.name: 1.0}
    sample.evaluate_on(builder.run, [base, *bank(builder)], "tinted", "all", subset)
    predicted = table(builder, base, subset)
    weights = predicted["weight"].to_numpy()
    for name, share in (("noise/1", 1 / 4), ("noise/2", 1 / 4), ("blur/1", 1 / 2)):
        members = predicted["group"].to_numpy() == name
        assert weights[members].sum() / weights.sum() == pytest.approx(share)
    part, whole = (
        predictions.SetPredictions().add(
            sample.predicted(builder.run, base, "tinted", "all", images)
        )
        for images in (subset, None)
    )
    assert part.accuracy == pytest.approx(whole.accuracy)
    assert whole.accuracy != pytest.approx(100 * whole.hit.mean())


@pytest.mark.slow
def test_a_sampled_campaign_without_a_holdout_ends_with_its_report(folder, grid, monkeypatch):
    drawn = []
    draw = sample.draw
    monkeypatch.setattr(sample, "draw", lambda *arguments: drawn.append(1) or draw(*arguments))
    words = ("dataset.holdout=0", "evaluate.split=all", "evaluate.budget=0.5")
    report = campaigns.run(folder, *words)
    assert len(drawn) == 2 * (1 + 3) + 1, "to evaluate and to list what a job left; the report"
    with (report / "half_widths.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 4 and all(0 < float(row["half_width"]) < 100 for row in rows)
    page = (report / "index.html").read_text()
    assert "a sample, 46 of 91 images" in page and "with their weights" in page
    assert "evaluate.budget=0.5" in page  # the user's own


def test_half_widths_of_a_grid(fresh, tmp_path):
    """RI has the intervals of its sets, and none where all images were seen."""
    sets = ["outline", "tinted"]
    builder = fresh.builder("evaluate.budget=0.4")
    mix = bank(builder)[0]
    for share, narrow in ((0.4, False), (1.0, True)):
        builder = fresh.builder(f"evaluate.budget={share}", "evaluate.half_width=1")
        samples = sample.draw(builder.run, ALL)
        rows = []
        for name in sets:
            sample.evaluate_on(builder.run, [mix], name, "all", samples[name])
            path = sample.predicted(builder.run, mix, name, "all", samples[name])
            rows += [
                Evaluation("m", "ft", "", None, "", downstream, name, path) for downstream in sets
            ]
            rows.append(Evaluation("m", PRE, "", None, "", "", name, path))
        widths, sequential_widths = (
            half_widths.half_widths(rows, samples, sets, sequential=sequential)
            for sequential in (False, True)
        )
        assert [row.downstream for row in widths] == [*sets, ""]
        outline, tinted, mean = (row.half_width for row in widths)
        if narrow:
            assert outline == tinted == mean == 0
            continue
        assert mean == pytest.approx(np.hypot(outline, tinted) / 2)
        assert sequential_widths[0].half_width > outline > 0
        note = half_widths.note(widths, samples)
        assert "within" in note and "resample the images drawn, with their weights" in note
        table = pq.read_table(
            sample.predicted(builder.run, mix, "tinted", "all", samples["tinted"])
        )
        assert "weight" in table.column_names
