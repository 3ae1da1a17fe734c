"""Paired differences between tables that other programs wrote."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from engine.measures import bootstrap, comparisons, paired, table_comparisons
from engine.measures.rows import Evaluation
from engine.measures.score_tables import read_scores
from helpers import stores

RNG = np.random.default_rng


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2))
def test_of_independent_right_and_wrong_answers_it_is_mcnemars_statistic_rescaled(answers):
    first, second = np.array(answers).T
    gained, lost, n = int((second & ~first).sum()), int((first & ~second).sum()), len(first)
    found = paired.difference(
        100.0 * first[None], 100.0 * second[None], np.zeros(n, int), np.arange(n)
    )
    assert found.value == pytest.approx(100 * (gained - lost) / n)
    if gained == lost:
        assert found.p == 1
    elif gained + lost < n or gained * lost:  # otherwise all answers change alike
        chi2 = (gained - lost) ** 2 / (gained + lost)
        t = np.sqrt((n - 1) * chi2 / (n - chi2))
        assert found.p == pytest.approx(2 * stats.t.sf(t, n - 1), rel=1e-6, abs=1e-15)


def test_the_variance_is_that_of_the_bootstrap_over_sources_of_all_datasets():
    rng = RNG(0)
    sets, sources = np.repeat([0, 1], [900, 600]), rng.integers(0, 150, 1500)
    effect = rng.normal(0, 20, 150)[sources]  # the same in both datasets
    first, second = rng.normal(50, 10, (2, 1, 1500))
    second = second + effect
    found = paired.difference(first, second, sets, sources)
    counts, change = bootstrap.counts(range(150)), (second - first)[0]
    draws = [
        bootstrap.means(
            counts,
            np.bincount(sources[sets == k], minlength=150).astype(float),
            np.bincount(sources[sets == k], change[sets == k], minlength=150)[:, None],
        )
        for k in (0, 1)
    ]
    mean = np.mean(draws, axis=0)
    assert found.value == pytest.approx(np.mean([change[sets == k].mean() for k in (0, 1)]))
    assert found.errors[0].variance == pytest.approx(mean.var(), rel=0.06)


def test_each_tables_seeds_add_their_variance_and_p_agrees_with_the_interval():
    rng = RNG(1)
    scores = rng.normal(50, 10, (5, 40)) + np.array([0, 3, 0, 1, 2])[:, None]
    found = paired.difference(scores[:2], scores[2:], np.zeros(40, int), np.arange(40))
    of_seeds = scores.mean(axis=1)
    expected = [of_seeds[:2].var(ddof=1) / 2, of_seeds[2:].var(ddof=1) / 3]
    change = scores[2:].mean(axis=0) - scores[:2].mean(axis=0)
    variances, freedoms = np.concatenate(found.errors, axis=1)
    assert variances == pytest.approx([change.var(ddof=1) / 40, *expected])
    assert freedoms == pytest.approx([39, 1, 2])
    for distance in (0.5, 0.99, 1.01, 2):
        moved = found._replace(value=distance * found.half_width())
        assert (moved.p < 0.05) == (distance > 1)
    alone = paired.difference(scores[:1], scores[1:2], np.zeros(40, int), np.arange(40))
    assert alone.p == pytest.approx(stats.ttest_rel(scores[1], scores[0]).pvalue)


def as_table(path: Path, cells: Sequence[Evaluation], downstreams: Sequence[str]) -> Path:
    """A campaign's predictions on the datasets of RI, as another program would write them."""
    parts = []
    for cell in cells:
        if cell.downstream in downstreams and cell.evaluated_on in stores.SETS:
            rows = pq.read_table(cell.path).to_pandas()
            on = f"{cell.evaluated_on} {cell.downstream * (len(downstreams) > 1)}".strip()
            columns = {"index": "image", "top1": "prediction"}
            parts.append(rows.rename(columns=columns).assign(set=on, seed=cell.seed))
            parts[-1] = parts[-1] if cell.evaluated_on != cell.downstream else parts[-1][:0]
    table = pandas.concat(parts)[["image", "set", "source", "seed", "label", "prediction"]]
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_campaigns_reports_and_tables_of_the_same_predictions_give_the_same_numbers(
    tmp_path, seeds
):
    source = [f"s{of:02}" for of in RNG(5).integers(0, 25, 60)]  # in all datasets
    cells = stores.several_seeds(
        tmp_path / "grid",
        lambda seed: stores.random_hits(seed=seed),
        seeds,
        methods=("fine_tune", "lwf"),
        source=source,
    )
    grid = stores.gather(cells)
    first, second = (k for k, arm in enumerate(grid.arms) if arm.method != "pretrained")
    numbers = ["difference", "low", "high", "p", "minimum_detectable_difference", "sources"]
    for downstreams in (stores.SETS, ("a",)):
        of_campaign = comparisons.compare_pairs(
            grid, [(first, second)], [first, second], "" if len(downstreams) > 1 else "a"
        ).set_index("set")[numbers]
        files = [
            as_table(tmp_path / f"{name}.csv", [c for c in cells if c.method == name], downstreams)
            for name in ("fine_tune", "lwf")
        ]
        of_tables = table_comparisons.compare_scores([read_scores(file) for file in files])
        of_tables = of_tables.set_index("set")[numbers]
        names = ["", "b", "c"] if len(downstreams) == 1 else [""]
        np.testing.assert_allclose(of_campaign.loc[names], of_tables.loc[names], 1e-5, 1e-9)
        if len(downstreams) > 1:
            report = comparisons.compare(grid, [second, first]).iloc[0]
            ends = ["difference_pts", "difference_low", "difference_high", "p"]
            assert report[ends].tolist() == pytest.approx(of_tables.loc[""][:4].tolist(), rel=1e-5)


def table(seed: int, *, seeds: int = 1) -> pandas.DataFrame:
    rng, names = RNG(seed), [f"{k:02}" for k in range(60)]
    parts = [
        pandas.DataFrame({"image": names, "correct": rng.integers(0, 2, 60), "set": on, "seed": of})
        for on in "xy"
        for of in range(seeds)
    ]
    return pandas.concat(parts, ignore_index=True)


WRITERS: dict[str, Callable[[pandas.DataFrame, Path], object]] = {
    "csv": lambda rows, path: rows.to_csv(path, index=False),
    "parquet": lambda rows, path: pq.write_table(pa.Table.from_pandas(rows), path),
    "jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
}


def written(folder: Path, name: str, rows: pandas.DataFrame, kind: str = "csv") -> Path:
    path = folder / f"{name}.{kind}"
    path.parent.mkdir(exist_ok=True)
    WRITERS[kind](rows, path)
    return path


def test_all_formats_and_a_folder_of_datasets_give_the_same_rows(tmp_path):
    rows = table(0)
    found = [read_scores(written(tmp_path, "a", rows, kind)).rows for kind in WRITERS]
    for name, of_set in rows.groupby("set"):
        written(tmp_path / "sets", str(name), of_set.drop(columns="set"))
    found.append(read_scores(tmp_path / "sets").rows)
    for other in found[1:]:
        pandas.testing.assert_frame_equal(found[0], other, check_dtype=False)
    assert found[0]["image"].iloc[3] == "03", "a name, not a number"


def test_images_of_one_table_are_left_out_and_p_is_adjusted_over_pairs_and_datasets(tmp_path):
    more = pandas.DataFrame({"image": ["p", "q"], "correct": 1, "set": "x", "seed": 0})
    files = [
        written(tmp_path, "a", pandas.concat([table(0), more])),
        written(tmp_path, "b", table(1)),
        written(tmp_path, "c", table(2, seeds=3)),
    ]
    found = table_comparisons.compare_scores([read_scores(path) for path in files])
    assert found["set"].tolist() == ["", "x", "y"] * 2
    assert found["images"].tolist() == [120, 60, 60] * 2
    assert found["only_a"].tolist() == [2, 2, 0] * 2 and not found["only_b"].any()
    right = [of.loc[of["seed"] == 0, "correct"].iloc[:60] for of in (table(0), table(1))]
    row = found.iloc[1]
    assert (row["a_mean"], row["b_mean"]) == tuple(pytest.approx(100 * of.mean()) for of in right)
    assert row["p"] == pytest.approx(stats.ttest_rel(*right).pvalue)
    for rows in (found["set"] == "", found["set"] != ""):
        p = found.loc[rows, "p"].to_numpy()
        assert found.loc[rows, "adjusted_p"].min() == pytest.approx(min(1, p.min() * len(p)))
    for row in found.iloc[:3].itertuples():  # of two pairs, on both datasets or on one of the two
        t = stats.t(row.sources - 1)
        error, family = (row.high - row.low) / 2 / t.ppf(0.975), 4 if row.set else 2
        least = error * (t.ppf(1 - 0.05 / family / 2) + t.ppf(0.8))
        found_least = row.minimum_detectable_difference
        assert found_least == pytest.approx(least), "detected with 80% power at the adjusted level"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,right\np,1\n", "image, and one of correct, score, or label and prediction"),
        ("image,label\np,1\n", "image, and one of correct, score, or label and prediction"),
        ("image,label,prediction\np,1,x\nq,2,y\n", "is not readable .*int64, string"),
        ("image,label,prediction\np,1,\nq,2,2\n", "row 1: prediction nan is missing"),
        ("image,correct,score\np,1,1\n", "correct, score, or label"),
        ("image,correct\n", "contains no rows"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("image,correct\np,1\nq,2\n", "row 2: correct 2 is not 0 or 1"),
        ("image,correct\np,1\nq,yes\n", "row 2: correct yes is not a number"),
        ("image,score\np,inf\n", "row 1: score inf is not a number"),
        ("image,score\np,1\n,2\n", "row 2: image"),
        ("image,score,seed\np,1,0.5\n", "seed 0.5 is not a whole number"),
        ("image,score\np,1\nq,1\np,2\n", "row 3: image p repeats"),
    ],
)
def test_a_fault_is_named_with_its_file_and_row(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_scores(path)
    assert str(path) in str(error.value)


def test_tables_that_cannot_be_paired_are_refused(tmp_path):
    rows = table(0)
    other = rows.assign(image=rows["image"] + ".png")
    scores = rows.rename(columns={"correct": "score"})
    one, two = (rows.assign(source=rows["image"].str[k]) for k in (0, 1))
    nameless = rows[rows["set"] == "x"].drop(columns="set")
    for *pair, message in (
        (nameless, rows, "names datasets, such as 'x', and .* names none: give"),
        (rows, other, "share no image: the first image is '00' of dataset 'x' and '00.png'"),
        (rows, scores, "the other score"),
        (one, two, "an image has two sources"),
        (one.assign(source="s"), rows, "a single source"),
    ):
        tables = [read_scores(written(tmp_path, str(k), of)) for k, of in enumerate(pair)]
        with pytest.raises(ValueError, match=message):
            table_comparisons.compare_scores(tables)


def classes(seed: int, *, shift: int = 0) -> pandas.DataFrame:
    rng = RNG(seed)
    label = np.arange(60) % 7
    return pandas.DataFrame(
        {
            "image": [f"{k:02}" for k in range(60)],
            "label": (label + shift) % 7,
            "prediction": (np.where(rng.random(60) < 0.7, label, 6) + shift) % 7,
        }
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_tables_that_number_classes_differently_are_refused(tmp_path, kind):
    a, b = classes(0), classes(1)
    later = b.assign(label=b["label"].where(b["image"] != "31", 5))
    with_correct = later.assign(correct=1).drop(columns="prediction")
    as_floats = b.astype({"label": float, "prediction": float})
    for k, (other, message) in enumerate(
        (
            (classes(1, shift=1), "image '00' has the label 0 in one and 1 .*60 of 60 images"),
            (later, "image '31' has the label 3 in one and 5 in the other .1 of 60"),
            (with_correct, "image '31' has the label 3 in one and 5 in the other"),
            (as_floats, ""),
        )
    ):
        paths = [written(tmp_path, f"{k}{name}", of, kind) for name, of in (("a", a), ("b", other))]
        tables = [read_scores(path) for path in paths]
        if message:
            with pytest.raises(ValueError, match=f"number classes differently: {message}"):
                table_comparisons.compare_scores(tables)
        else:
            notes = table_comparisons.compare_scores(tables)["notes"].iloc[0]
            assert "No table has a column source" in notes and "labels" not in notes


def test_what_tables_leave_unknown_is_noted(tmp_path):
    a = classes(0).assign(source="s" + classes(0)["image"].str[0])
    correct = (a["label"] == a["prediction"]).astype(int)
    without = a[["image"]].assign(correct=correct)
    files = [written(tmp_path, name, of) for name, of in (("a", a), ("b", without))]
    (row,) = table_comparisons.compare_scores([read_scores(path) for path in files]).to_dict(
        "records"
    )
    assert row["notes"].startswith(f"Without labels of {files[1]}, equal true classes are not")
    assert row["sources"] == pytest.approx(6) and row["difference"] == 0


def test_a_text_that_a_small_file_repeats_and_deep_json_are_refused(tmp_path):
    text = pa.array(["a" * 1_000_000]).dictionary_encode().take(pa.array([0] * 3000))
    table = pa.table(
        {"image": [f"{k}" for k in range(3000)], "source": text, "correct": [1] * 3000}
    )
    pq.write_table(table, path := tmp_path / "x.parquet")
    assert path.stat().st_size < 1_000_000
    with pytest.raises(ValueError, match="a source of 1,000,000 characters in 3,000 rows"):
        read_scores(path)
    lists = pa.table({"image": ["a", "b"], "correct": [1, 0], "label": [[1] * 9, [2]]})
    pq.write_table(lists, path)
    with pytest.raises(ValueError, match=r"x\.parquet: label is list<.*: write texts or numbers"):
        read_scores(path)
    wide = tmp_path / "wide.jsonl"
    wide.write_text("".join(f'{{"image": "{k}", "correct": 1, "k{k}": 1}}\n' for k in range(2000)))
    with pytest.raises(ValueError, match=r"wide\.jsonl, row 999: more than 1,000 columns"):
        read_scores(wide)
    deep = tmp_path / "x.jsonl"
    deep.write_text('{"image": "a", "correct": 1, "x": ' + "[" * 200_000 + "]" * 200_000 + "}\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, row 1 is not a JSON object"):
        read_scores(deep)
