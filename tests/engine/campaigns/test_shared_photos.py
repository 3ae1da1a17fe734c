"""A campaign over sets of the same photos, which are held out of all sets or of none."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from engine.data import splits
from engine.measures.rows import of_role
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from helpers import campaigns

BY_SOURCE = "dataset.holdout_by=source"


def test_a_photo_is_held_out_of_all_sets_or_of_none_at_a_rate():
    names = np.array([f"photo {k}" for k in range(20_000)])
    held_out = splits.held_out(names, 0.2, 0)
    assert abs(held_out.mean() - 0.2) < 0.01
    some = np.random.default_rng(0).choice(20_000, 30_000)  # in another set, in another order
    assert np.array_equal(splits.held_out(names[some], 0.2, 0), held_out[some])
    assert (splits.held_out(names, 0.3, 0) >= held_out).all()
    other = splits.held_out(names, 0.2, 1)
    assert abs((other & held_out).mean() - 0.04) < 0.01
    assert splits.held_out(names[:0], 0.2, 0).size == 0


def test_shots_need_not_be_shared_where_seen_images_are_left_out():
    load_recipe("emoji/fine_tune", parsed([BY_SOURCE, "evaluate.seen=false", "dataset.shots=2"]))


@pytest.mark.slow
def test_models_are_judged_on_photos_that_they_did_not_see_and_the_leak_on_those_that_they_did(
    folder, grid
):
    report = campaigns.run(
        folder,
        BY_SOURCE,
        "dataset.sources=names",
        "methods=[fine_tune]",
        "downstreams=[outline,tinted]",
        "dataset.holdout=0.4",
    )
    run = campaigns.of_report(report)

    def photos(row) -> set[str]:
        return set(pq.read_table(row.path)["source"].to_pylist())

    tests, seen = (of_role(run.evaluations, role) for role in ("test", "seen"))
    every = {row.evaluated_on: photos(row) for row in tests if not row.downstream}
    assert every["outline"] == every["tinted"] == every["upstream"] > every["few"]
    for row in tests:
        assert photos(row) == every[row.evaluated_on]  # the same images before and after
    pairs = {(row.downstream, row.evaluated_on) for row in seen if row.downstream}
    assert pairs == {
        (i, j) for i in ("outline", "tinted") for j in (*campaigns.SETS, "upstream") if i != j
    }
    assert {row.evaluated_on for row in seen if not row.downstream} >= {"outline", "tinted"}
    for row in seen:
        assert photos(row) and photos(row).isdisjoint(every["outline"])
    rows = campaigns.rows(report / "leak.csv")
    of_sets = {(r["downstream"], r["evaluated_on"]) for r in rows if r["evaluated_on"]}
    assert of_sets == {(i, j) for i, j in pairs if j != "upstream"}
    for row in rows:
        leak = float(row["seen_pts"]) - float(row["unseen_pts"])
        assert float(row["leak_pts"]) == pytest.approx(leak, abs=1e-4)
    assert '<section id="leak"' in (report / "index.html").read_text("utf-8")
