"""Accuracy by group, the worst group and macro F1, against pandas and plain loops."""

from dataclasses import replace
from statistics import fmean

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.measures import bootstrap, groups, predictions
from engine.measures.metrics import gather
from helpers import stores

SETS, N = ("a", "b", "c"), 120
PLACES = np.array(["north\0west", "south", "a, b/ç"])
COLUMNS = {
    "column:place": PLACES[np.random.default_rng(3).integers(0, 3, N)],
    "column:night": np.where(np.arange(N) % 4 == 0, "yes", "no"),
}


def made(folder, keep=None):
    """A grid of random answers of five classes, in which `a` and `up` have two further columns.

    keep: which images of `a` are stored; all by default.
    """
    rng = np.random.default_rng(0)
    rows = stores.grid(folder, lambda *_: np.zeros(N), methods=("fine_tune", "lwf"), sets=SETS)
    for row in rows:
        right, others = rng.random(N) < rng.uniform(0.3, 0.8), rng.integers(0, 6, N)
        top1 = np.where(right, np.arange(N) % 5, others)  # 5: no class of theirs
        table = stores.table(right, top1=top1)
        if row.evaluated_on in ("a", "up"):
            for name, values in COLUMNS.items():
                table = table.append_column(name, pa.array(values.tolist()))
        if row.evaluated_on == "a" and keep is not None:
            table = table.filter(pa.array(keep))
        pq.write_table(table, row.path)
    return rows


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    rows = made(tmp_path_factory.mktemp("made") / "rows")
    grid = gather(rows, SETS, "up")
    return rows, grid.named(groups.accuracy_by_group(grid, rows))


def f1_by_hand(top1, label):
    """Macro F1 in percent of lists, class by class."""
    scores = []
    for name in {*label}:
        hit = sum(a == b == name for a, b in zip(top1, label, strict=True))
        wrong = sum((a == name) != (b == name) for a, b in zip(top1, label, strict=True))
        scores.append(2 * hit / (2 * hit + wrong))
    return 100 * fmean(scores)


def test_accuracies_of_groups_are_those_of_pandas_and_the_worst_is_the_lowest(measured):
    rows, table = measured
    assert set(table["evaluated_on"]) == {"a", "up"}
    by_row = dict(list(table.groupby(["method", "downstream", "evaluated_on"])))
    for row in rows:
        if row.evaluated_on not in ("a", "up"):
            continue
        of_row = by_row[row.method, row.downstream, row.evaluated_on]
        frame = pq.read_table(row.path).to_pandas()
        frame["hit"] = 100.0 * (frame["top1"] == frame["label"])
        for column in ("place", "night"):
            here = of_row[of_row["column"] == column].set_index("group")
            expected = frame.groupby(f"column:{column}")["hit"].agg(["mean", "size"])
            assert here["value_pct"].to_dict() == pytest.approx(expected["mean"].to_dict())
            assert here["images"].to_dict() == expected["size"].to_dict()
            assert [*here.index[here["is_worst"]]] == [expected["mean"].idxmin()]
            assert (here["value_low"] < here["value_pct"]).all()
            assert (here["value_pct"] < here["value_high"]).all()
        (f1,) = of_row.loc[of_row["column"] == groups.MACRO_F1, "value_pct"]
        assert f1 == pytest.approx(f1_by_hand(frame["top1"].tolist(), frame["label"].tolist()))


def test_means_are_over_models_not_fine_tuned_on_the_set(measured):
    _, table = measured
    keys = ["method", "evaluated_on", "column", "group"]
    trained = table[(table["method"] != "pretrained") & (table["downstream"] != "")]
    own = trained["downstream"] == trained["evaluated_on"]
    expected = trained[~own].groupby(keys)[["value_pct", "change_pts"]].mean()
    means = table[(table["method"] != "pretrained") & (table["downstream"] == "")]
    means = means.set_index(keys)[["value_pct", "change_pts"]]
    pandas.testing.assert_frame_equal(means.sort_index(), expected.sort_index())


def test_the_interval_of_a_group_is_that_of_a_set_of_its_images(measured, tmp_path):
    _, table = measured
    keep = COLUMNS["column:place"] == "south"
    alone = gather(made(tmp_path / "south", keep), SETS, "up")
    expected = alone.named(alone.numbers).query("evaluated_on == 'a' and downstream == 'b'")
    found = table.query("evaluated_on == 'a' and downstream == 'b' and group == 'south'")
    for ours, theirs in (("value", "accuracy"), ("change", "change")):
        for end in ("low", "high"):
            value = expected[f"{theirs}_{end}"].tolist()
            assert found[f"{ours}_{end}"].tolist() == pytest.approx(value, abs=1e-4)


def test_draws_of_macro_f1_repeat_images_as_often_as_their_source_is_drawn(measured):
    rows, _ = measured
    bank = predictions.SetPredictions()
    of = bank.add(rows[0].path)
    counts = bootstrap.counts(bank.sources, 5)
    expected = []
    for count in counts.T:
        times = count[bank.codes]
        expected.append(f1_by_hand(*(np.repeat(x, times).tolist() for x in (of.top1, of.label))))
    assert groups.macro_f1(of, bank.codes, counts).tolist() == pytest.approx(expected)


def test_sets_without_columns_have_no_groups_and_holes_are_named(tmp_path):
    rows = stores.grid(tmp_path, stores.random_hits())
    assert groups.accuracy_by_group(gather(rows, SETS), rows).empty
    table = pq.read_table(rows[0].path)
    holes = pa.array(["x", None] * (len(table) // 2))
    pq.write_table(table.append_column("column:place", holes), rows[0].path)
    with pytest.raises(ValueError, match="'column:place' are NaN or null"):
        predictions.read_predictions(rows[0].path)
    other = replace(rows[0], path=tmp_path / "other.parquet")
    pq.write_table(table.append_column("column:place", pa.array(["x"] * len(table))), other.path)
    bank = predictions.SetPredictions()
    bank.add(other.path)
    with pytest.raises(ValueError, match="used different images of one dataset"):
        bank.add(rows[1].path)


def test_a_set_left_out_is_grouped_whole_and_a_set_trained_on_by_its_held_out_images(tmp_path):
    """Where each column has a pretrained model, as without an upstream dataset."""
    unions, rows, held_out = {"a": "b+c", "b": "a+c", "c": "a+b"}, [], np.arange(N) % 3 == 0
    for row in made(tmp_path / "made"):
        if row.evaluated_on in SETS:
            columns = unions.values() if row.method == "pretrained" else [unions[row.downstream]]
            for column in columns:
                place = tmp_path / f"{len(rows)}.parquet"
                rows.append(replace(row, downstream=column, path=place))
                table = pq.read_table(row.path)
                keep = held_out if rows[-1].on_downstream else np.ones(N, bool)
                pq.write_table(table.filter(pa.array(keep)), place)
    grid = gather(rows, SETS, None, [*unions.values()])
    table = grid.named(groups.accuracy_by_group(grid, rows))
    table = table[(table["column"] == "night") & (table["group"] == "yes")]
    n = table[table["downstream"] != ""].groupby("downstream")["images"].unique()
    whole, part = np.arange(N) % 4 == 0, (np.arange(N) % 4 == 0) & held_out
    assert {name: of.tolist() for name, of in n.items()} == {
        "a+b": [part.sum()], "a+c": [part.sum()], "b+c": [whole.sum()]
    }  # fmt: skip
    (tuned,) = table.query("method == 'fine_tune' and downstream == 'b+c'")["change_pts"]
    (pre,) = table.query("method == 'pretrained' and downstream == 'b+c'")["value_pct"]
    (after,) = table.query("method == 'fine_tune' and downstream == 'b+c'")["value_pct"]
    assert tuned == pytest.approx(after - pre)
