"""Samples on a small benchmark: the same images for all models, evaluated once, weighted right."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from grids import SETS, Grid, grid

from engine import evaluate, half_widths, predictions, sample
from engine.context import Context
from engine.merge import Mix
from engine.rows import PRE, Evaluation

__all__ = ["grid"]
ALL = dict.fromkeys(SETS, "all")


@pytest.fixture
def fresh(grid: Grid, tmp_path: Path) -> Grid:
    """Finished cells and packs, without any predictions."""
    grid.build("method=fine_tune")
    shutil.copytree(grid.runs / "packs", tmp_path / "runs" / "packs")
    for kind in ("weights", "cells"):
        shutil.copytree(grid.runs / "store" / kind, tmp_path / "runs" / "store" / kind)
    return Grid(grid.folder, tmp_path / "runs", grid.device)


def bank(context: Context) -> list[Mix]:
    base, tuned = context.base.name, context.cell("fine_tune").name
    return [{tuned: 1.0}, {base: 0.5, tuned: 0.5}]


def sampled(grid: Grid, share: float, name: str = "tinted") -> tuple[Context, sample.Sample]:
    context = grid.context(f"evaluate.budget={share}")
    one = sample.draw(context, ALL)[name]
    sample.evaluate_on(context, bank(context), name, "all", one)
    return context, one


def table(context: Context, mix: Mix, one: sample.Sample | None, name: str = "tinted"):
    return predictions.read(sample.predicted(context, mix, name, "all", one))


def test_a_sample_says_what_the_whole_says_of_its_images(fresh, grid):
    context, one = sampled(fresh, 0.4)
    assert 0 < one.images < len(one.index)
    for mix in bank(context):
        found = table(context, mix, one)
        full = grid.context()
        evaluate.evaluate(full, [mix], ["tinted"], "all")
        whole = table(full, mix, None)
        index = np.sort(one.index[one.frame.order[: one.images]])
        np.testing.assert_array_equal(found["index"].to_numpy(), index)
        assert found["top1"].equals(whole.take(index)["top1"])
        np.testing.assert_allclose(
            found["p_true"].to_numpy(), whole.take(index)["p_true"].to_numpy(), rtol=1e-5
        )
        assert found["weight"].to_numpy().sum() == pytest.approx(len(whole))


def test_the_pre_trained_model_has_its_full_accuracy_on_a_sample(fresh):
    context, one = sampled(fresh, 0.4)
    mix = {context.base.name: 1.0}
    sample.evaluate_on(context, [mix], "tinted", "all", one)
    part, whole = (
        predictions.Bank().add("base", sample.predicted(context, mix, "tinted", "all", some))
        for some in (one, None)
    )
    assert len(part.top1) < len(whole.top1)
    assert part.accuracy == pytest.approx(whole.accuracy)


def test_a_larger_budget_evaluates_only_what_is_new(fresh, monkeypatch):
    seen: list[int] = []
    run = evaluate._pass

    def watched(context, mixes, labelled, split):
        if not isinstance(split, str):
            seen.append(len(split.places))
        run(context, mixes, labelled, split)

    monkeypatch.setattr(evaluate, "_pass", watched)
    _, small = sampled(fresh, 0.3)
    context, large = sampled(fresh, 0.7)
    assert seen == [small.images, large.images - small.images]
    assert set(table(context, bank(context)[0], large)["index"].to_pylist()) > set(
        table(context, bank(context)[0], small)["index"].to_pylist()
    )
    np.testing.assert_array_equal(large.frame.order, small.frame.order)
    sampled(fresh, 0.3)
    sampled(fresh, 0.7)
    assert len(seen) == 2


def test_what_was_evaluated_in_full_is_only_read(fresh, monkeypatch):
    context = fresh.context()
    evaluate.evaluate(context, bank(context), ["tinted"], "all")
    sample.draw(fresh.context("evaluate.budget=0.5"), ALL)  # evaluates the pre-trained model
    monkeypatch.setattr(evaluate, "_pass", lambda *_: pytest.fail("evaluated twice"))
    sampled(fresh, 0.5)


def test_growing_to_all_images_gives_the_full_result(fresh):
    sampled(fresh, 0.5)
    context = fresh.context("evaluate.half_width=0.1")
    one = sample.draw(context, ALL)["tinted"]
    assert one.whole
    sample.evaluate_on(context, bank(context), "tinted", "all", one)
    for mix in bank(context):
        grown = table(context, mix, one)
        assert evaluate.find(context, mix, "tinted", "all") is None, "half of it was there"
        evaluate.evaluate(context, [mix], ["tinted"], "all")
        full = table(context, mix, None)
        assert grown.column_names == full.column_names
        assert grown.select(predictions.IMAGE[:3]).equals(full.select(predictions.IMAGE[:3]))
        assert grown["top1"].equals(full["top1"])


def test_without_a_budget_nothing_is_sampled_and_no_name_changes(grid):
    context = grid.context()
    assert sample.draw(context, ALL) == {}
    labelled, mix = context.sets["tinted"], {context.base.name: 1.0}
    names = [evaluate.key_of(grid.context(f"evaluate.{word}"), mix, labelled, "all")
             for word in ("budget=1", "budget=0.5", "half_width=1")]  # fmt: skip
    assert all(name == evaluate.key_of(context, mix, labelled, "all") for name in names)
    assert set(names[0][1]) == {"mix", "pack", "split", "precision", "batch_size"}


def test_samples_of_sets_are_drawn_apart_and_seeded(grid):
    drawn = sample.draw(grid.context("evaluate.budget=0.5"), ALL)
    again = sample.draw(grid.context("evaluate.budget=0.5"), ALL)
    assert all(drawn[name].prefix == again[name].prefix for name in ALL)
    assert len({one.prefix for one in drawn.values()}) == len(ALL)


def test_half_widths_of_a_grid(fresh, tmp_path):
    """RI has the intervals of its sets, and none where all images were seen."""
    sets = ["outline", "tinted"]
    context = fresh.context("evaluate.budget=0.4")
    mix = bank(context)[0]
    for share, narrow in ((0.4, False), (1.0, True)):
        context = fresh.context(f"evaluate.budget={share}", "evaluate.half_width=1")
        samples = sample.draw(context, ALL)
        rows = []
        for name in sets:
            sample.evaluate_on(context, [mix], name, "all", samples[name])
            path = sample.predicted(context, mix, name, "all", samples[name])
            rows += [Evaluation("m", "ft", "", None, other, name, path) for other in sets]
            rows.append(Evaluation("m", PRE, "", None, "", name, path))
        found, late = (
            half_widths.half_widths(rows, samples, sets, sequential=sequential)
            for sequential in (False, True)
        )
        assert [row.downstream for row in found] == [*sets, ""]
        outline, tinted, mean = (row.half_width for row in found)
        if narrow:
            assert outline == tinted == mean == 0
            continue
        assert mean == pytest.approx(np.hypot(outline, tinted) / 2)
        assert late[0].half_width > outline > 0
        assert "within" in half_widths.note(found, samples)
        table = pq.read_table(sample.predicted(context, mix, "tinted", "all", samples["tinted"]))
        assert "weight" in table.column_names
