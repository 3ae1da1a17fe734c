"""RI without related sets: against means that are worked out from the files themselves."""

from dataclasses import replace
from statistics import fmean

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

from engine.measures import all_numbers
from engine.measures.photo_disjoint import related_datasets
from engine.measures.rows import PRE
from engine.report import headline, sections, terminal
from helpers import made_results
from helpers.stores import answered, gather, grid, random_hits, right

SETS = ("natural", "sketch", "cartoon", "blurred")
PHOTOS = {"natural": "n", "sketch": "s", "cartoon": "p", "blurred": "p", "up": "u"}
FAMILIES = {"one maker": ["natural", "sketch", "of another run"]}
PAIRS = [("natural", "sketch"), ("cartoon", "blurred")]
RELATED = {*PAIRS, *((j, i) for i, j in PAIRS)}


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """A grid whose sets `cartoon` and `blurred` show the same photos."""
    folder = tmp_path_factory.mktemp("grid")
    rows = grid(folder, random_hits(400), ("fine_tune", "lwf"), SETS)
    for row in rows:
        table = pq.read_table(row.path)
        sources = [f"{PHOTOS[row.evaluated_on]}{k // 2}" for k in range(len(table))]
        pq.write_table(table.set_column(1, "source", [sources]), row.path)
    return rows


def accuracies(evaluations):
    """By method, set fine-tuned on and set evaluated on, from the files."""
    return {
        (row.method, row.downstream, row.evaluated_on): 100 * right(row).mean()
        for row in evaluations
    }


def without_blurred(evaluations):
    """The evaluations and the sets of a grid without the set `blurred`."""
    rows = [row for row in evaluations if "blurred" not in (row.downstream, row.evaluated_on)]
    return rows, [name for name in SETS if name != "blurred"]


def test_disjoint_ri_leaves_out_sets_of_the_same_photos_or_maker(evaluations):
    accuracy = accuracies(evaluations)
    numbers = gather(evaluations, SETS, makers=FAMILIES)
    table = numbers.named(numbers.numbers).set_index(["method", "downstream", "evaluated_on"])
    column = table["disjoint_change_pts"]
    of_sets = {}
    for method in ("fine_tune", "lwf"):
        change = {
            (i, j): accuracy[method, i, j] - accuracy[PRE, "", j]
            for i in SETS for j in SETS if i != j and (i, j) not in RELATED
        }  # fmt: skip
        of_sets = {i: fmean(v for (a, _), v in change.items() if a == i) for i in SETS}
        for i in SETS:
            assert column[method, i, ""] == pytest.approx(of_sets[i])
            across = fmean(v for (_, b), v in change.items() if b == i)
            assert column[method, "", i] == pytest.approx(across)
            assert np.isnan(column[method, i, "up"])
        assert column[method, "", ""] == pytest.approx(fmean(of_sets.values()))
    named = all_numbers.all_numbers(numbers, pandas.DataFrame())
    rows = named[named["quantity"].str.startswith("disjoint")]
    assert set(rows["quantity"]) == {"disjoint_mRI", "disjoint_RI", "disjoint_change"}
    assert (rows["low"] < rows["value"]).all() and (rows["value"] < rows["high"]).all()


def test_related_sets_by_share_of_photos_and_maker():
    photos = {
        "a": frozenset("12345"),
        "b": frozenset("45678"),
        "c": frozenset("9"),
        "d": frozenset(),
    }
    table = related_datasets(photos, {"x": ["c", "d"], "y": ["a"]})
    rows = [tuple(row) for row in table.itertuples(index=False)]
    assert rows == [("a", "b", 40, ""), ("b", "a", 40, ""), ("c", "d", 0, "x"), ("d", "c", 0, "x")]


def test_a_union_is_related_to_what_any_of_its_sets_is():
    photos = {"a": frozenset("12"), "b": frozenset("23456"), "c": frozenset("789")}
    photos["d"] = frozenset("167")
    pairs = related_datasets(photos, {"x": ["a", "c"]})
    table = related_datasets(photos, {"x": ["a", "c"]}, ["a", "a+b", "c+d"])
    assert table[: len(pairs)].equals(pairs)
    rows = [tuple(row) for row in table[len(pairs) :].itertuples(index=False)]
    third, fifth = pytest.approx(100 / 3), pytest.approx(100 / 5)
    assert rows == [
        ("c", "a+b", 0, "x"), ("d", "a+b", third, ""),
        ("a", "c+d", 50, ""), ("b", "c+d", fifth, ""),
    ]  # fmt: skip


def test_a_class_that_is_one_source_is_no_photo(tmp_path):
    """All drawings of an emoji's concept are one source, which says nothing of who drew them."""
    rows = grid(tmp_path, random_hits(), source=[f"concept-{k % 5}" for k in range(60)])
    assert gather(rows).related.empty
    assert "disjoint_change_pts" not in gather(rows).numbers


def test_a_column_without_disjoint_sets_has_no_disjoint_ri(evaluations):
    everything = {"one": ["sketch", "natural", "cartoon"]}
    read = gather(evaluations, SETS, makers=everything)
    ri = read.named(read.numbers).query("evaluated_on == '' and downstream != ''")
    known = ri.dropna(subset="disjoint_change_pts")["downstream"]
    assert set(known) == {"natural", "sketch", "blurred"}  # of cartoon all others are related
    assert set(read.disjoint_mri.keys["columns"]) == {3}
    all_related = gather(evaluations, SETS, makers={"one": list(SETS)})
    assert all_related.disjoint_mri.keys.empty


def test_the_report_has_disjoint_numbers_wherever_it_has_ri(evaluations):
    results = made_results.of_evaluations(
        evaluations, sets=list(SETS), downstreams=list(SETS), makers=FAMILIES
    )
    rows = results.disjoint.set_index("method")
    by_arm = results.grid.by_arm.merge(results.shown[["arm", "method"]], on="arm")
    expected = by_arm.set_index("method")["disjoint_change_pts"]
    for method in ("FT", "LwF"):
        row = rows.loc[method].to_dict()
        assert row["disjoint_mRI_pts"] == pytest.approx(expected[method])
        assert row["difference_pts"] == pytest.approx(row["disjoint_mRI_pts"] - row["mRI_pts"])
        assert row["difference_low"] < row["difference_pts"] < row["difference_high"]
    made = {section.key: section for section in sections.of(results)}
    section = made["related-sets"]
    assert [table.name for table in section.tables] == [
        "disjoint-mri", "disjoint-ri", "related-sets",
    ]  # fmt: skip
    assert len(section.tables[2].data) == 4
    assert made_results.drawn(section)
    numbers = made["all-numbers"].tables[0].data
    mean = numbers.query("downstream == 'all' and evaluated_on == 'others'")
    assert mean.dropna(subset="disjoint_change_pts")["method"].tolist() == ["FT", "LwF"]
    assert "disjoint" in terminal.table(results)


def test_a_set_that_is_related_to_the_upstream_set_alone_has_no_disjoint_numbers(evaluations):
    """No column is fine-tuned on the upstream set, so that RI would be the same."""
    alone = {"photos": ["up", "natural"]}
    rows, sets = without_blurred(evaluations)
    results = made_results.of_evaluations(rows, sets=sets, downstreams=sets, makers=alone)
    assert "disjoint" not in terminal.table(results) and results.disjoint.empty
    assert "disjoint_change_pts" not in results.grid.numbers
    assert "related-sets" not in {section.key for section in sections.of(results)}


def test_a_seed_replicate_says_nothing_of_what_disjoint_mri_is_more(evaluations, tmp_path):
    """Of a replicated column without related sets, RI and disjoint RI are one."""
    alone = {"one maker": ["natural", "sketch"]}
    rows, sets = without_blurred(evaluations)
    record = made_results.record(rows, sets=sets, downstreams=sets, makers=alone)
    plain = made_results.of_record(record, rows).disjoint
    for column in ("cartoon", "natural"):
        replicates = []
        for number, row in enumerate(row for row in rows if row.downstream == column):
            is_right = np.random.default_rng(number).random(400) < 0.3
            again = replace(answered(row, is_right, tmp_path), seed=1, role="replicate")
            replicates.append(again)
        table = made_results.of_record(record, [*rows, *replicates]).disjoint
        assert table["difference_low"].equals(plain["difference_low"])
        assert (table["disjoint_mRI_low"] < plain["disjoint_mRI_low"]).all()


@pytest.mark.parametrize(
    ("gain", "says"), [(0, ""), (40, "Without datasets that share photos or a maker")]
)
def test_the_first_screen_names_only_what_differs_by_more_than_its_interval(
    evaluations, gain, says, tmp_path
):
    """Images are right in the same share everywhere, and `gain` points more in related sets."""
    rows = []
    for number, row in enumerate(evaluations):
        is_more = row.method == "fine_tune" and (row.downstream, row.evaluated_on) in RELATED
        is_right = np.random.default_rng(number).random(400) < (30 + gain * is_more) / 100
        rows.append(answered(row, is_right, tmp_path))
    results = made_results.of_evaluations(
        rows, sets=list(SETS), downstreams=list(SETS), makers=FAMILIES
    )
    text = headline.without_related(results)
    assert text.startswith(says) and bool(text) == bool(says)
    assert not says or f"{text}." in headline.lead(results)
    assert not says or "in this one training" in text
