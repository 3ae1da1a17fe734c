"""The arithmetic of RI and mRI: worked example, laws, intervals, and what must be refused."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.measures import predictions, scores
from engine.measures.metrics import KEY
from engine.measures.rows import robustness_improvement
from engine.measures.tables import write_csv
from helpers.made_results import of_evaluations
from helpers.stores import (
    SETS,
    gather,
    grid,
    mri,
    random_hits,
    setting,
    several_seeds,
    synthetic,
    table,
)

SLIDES = ("IN-V2", "IN-A", "IN-R", "IN-Sketch", "ObjectNet", "IN-Cartoon", "IN-Drawing", "IN-C")


def test_the_slides_worked_example():
    sets = [name for name in SLIDES if name != "IN-R"]
    before = dict(zip(sets, (66, 15, 28, 26, 66, 39, 56), strict=True)) | {"IN-R": 38}
    after = dict(zip(sets, (59, 21, 47, 32, 61, 51, 52), strict=True)) | {"IN-R": 99}
    assert robustness_improvement("IN-R", after, before, SLIDES) == pytest.approx(27 / 7)


def test_interval_is_deterministic_and_blind_to_the_order_of_rows(tmp_path):
    evaluations = grid(tmp_path, random_hits(), methods=("fine_tune", "lwf"))
    first = mri(evaluations)
    ends = ["mRI_low", "mRI_high"]
    turned = mri(evaluations[::-1]).set_index("method").loc[first["method"], ends]
    np.testing.assert_allclose(first[ends], turned, atol=1e-3)
    order = np.random.default_rng(0).permutation(60)
    for evaluation in evaluations:
        pq.write_table(pq.read_table(evaluation.path).take(order), evaluation.path)
    assert mri(evaluations).equals(first)


def test_the_mri_of_equal_models_is_exactly_0(tmp_path):
    sets = [*"abcdefg"]
    random = np.random.default_rng(0)
    hits = {name: random.random(60) < 0.4 for name in (*sets, "up")}
    evaluations = grid(tmp_path, lambda method, downstream, on: hits[on], sets=sets)
    assert (mri(evaluations, sets=sets)[["mRI_pts", "mRI_low", "mRI_high"]] == 0).all(axis=None)


def test_groups_are_averaged_over_severities_then_corruptions():
    group = ["noise/1"] * 4 + ["noise/2"] * 1 + ["fog/1"] * 5
    hits = np.array([1, 1, 1, 0, 0, 1, 1, 1, 1, 0], bool)
    weights = predictions.weights(table(hits, group=group))
    assert weights @ hits == pytest.approx(((0.75 + 0.0) / 2 + 0.8) / 2)


def test_parts_of_a_folder_are_one_table(tmp_path):
    whole = table(random_hits()("pretrained", "", "a"))
    for name, part in (("part-10", whole.slice(0, 25)), ("part-2", whole.slice(25))):
        pq.write_table(part, tmp_path / f"{name}.parquet")
    (tmp_path / "done.json").write_text("{}")
    assert predictions.read_predictions(tmp_path).equals(whole.cast(predictions.SCHEMA))


@pytest.mark.parametrize(
    ("drop", "missing"),
    [
        (("pretrained", 0, "", "up"), "lite0 pretrained, evaluated on up, seed 0"),
        (("fine_tune", 0, "b"), "(original) fine-tuned on b, evaluated on a, seed 0"),
        (("fine_tune", 1, "c", "up"), "(original) fine-tuned on c, evaluated on up, seed 1"),
    ],
)
def test_what_is_missing_is_refused_by_name(tmp_path, drop, missing):
    seeds = range(drop[1] + 1)
    evaluations = several_seeds(tmp_path, lambda seed: random_hits(seed=seed), seeds)
    keys = [(e.method, e.seed, e.downstream, e.evaluated_on)[: len(drop)] for e in evaluations]
    part = [e for e, key in zip(evaluations, keys, strict=True) if key != drop]
    with pytest.raises(ValueError, match=f"{re.escape(missing)}, is missing from the grid"):
        gather(part)


def test_duplicates_and_a_single_set_are_refused(tmp_path):
    evaluations = grid(tmp_path, random_hits())
    with pytest.raises(ValueError, match="fine-tuned on c, evaluated on up, seed 0, occurs 2"):
        gather([*evaluations, evaluations[-1]])
    with pytest.raises(ValueError, match="at least two distinct"):
        gather(evaluations, ["a", "a"])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("source", "other", "row 3 has source other and concept-1"),
        ("index", 99, "row 3 has index 4 and 3"),
    ],
)
def test_other_images_are_refused(tmp_path, column, value, message):
    evaluations = grid(tmp_path, random_hits())
    path = evaluations[-1].path
    columns = pq.read_table(path).to_pydict()
    columns[column][3] = value
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=message) as caught:
        gather(evaluations)
    assert str(path) in str(caught.value) and str(evaluations[3].path) in str(caught.value)
    pq.write_table(pq.read_table(evaluations[3].path).slice(0, 50), path)
    with pytest.raises(ValueError, match=r"50 images with .* and 60 images with"):
        gather(evaluations)


def test_other_pixels_of_one_model_are_refused(tmp_path):
    """The same images and labels in another pack: the set was encoded again from altered files."""
    evaluations = grid(tmp_path, random_hits())

    def name_pack(row, **metadata: str) -> None:
        pq.write_table(pq.read_table(row.path).replace_schema_metadata(metadata), row.path)

    other = grid(tmp_path / "at another size", random_hits())
    for row in evaluations:
        name_pack(row, pack="one")
    gather([*evaluations, *(replace(row, model="at another size") for row in other)])
    name_pack(evaluations[-1], pack="two")
    with pytest.raises(ValueError, match="used different packs of one dataset") as caught:
        gather(evaluations)
    assert str(evaluations[-1].path) in str(caught.value)
    assert str(evaluations[3].path) in str(caught.value)


def bad(**columns) -> pa.Table:
    return table(np.ones(4, bool), **columns)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bad(label=[1, None, 2, 3]), "1 of 4 values of 'label' are NaN or null"),
        (bad(margin=[None, np.nan, 0.2, 0.3]), "2 of 4 values of 'margin'"),
        (bad(index=[0, 1, 1, 2]), "index 1 occurs more than once"),
        (bad(top1=[0.5, 1, 2, 3]), "not a table of predictions"),
        (bad().drop_columns(["margin"]), "not a table of predictions .*margin"),
        (bad().slice(0, 0), "contains no predictions"),
        (b"PAR1", "is not a table of predictions"),
        (None, "contains no Parquet file"),
    ],
)
def test_damaged_predictions_are_refused(tmp_path, data, message):
    path = tmp_path / "bad.parquet"
    if data is None:
        path.mkdir()
    elif isinstance(data, bytes):
        path.write_bytes(data)
    else:
        pq.write_table(data, path)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        predictions.read_predictions(path)


def test_a_name_that_a_spreadsheet_takes_for_a_formula_is_text(tmp_path):
    read = synthetic([("=1+1", "pretrained", "", None, "", "", "-a", -50.0)], SETS)
    text = write_csv(tmp_path / "a.csv", read.cells[[*KEY, "images", "accuracy"]]).read_text()
    assert text.splitlines()[1] == "'=1+1,pretrained,,,,,'-a,100,-50.0"


def in_settings(cells, *settings):
    """The grid's cells in each of the settings, and the pretrained model once."""
    before = [cell for cell in cells if cell.method == "pretrained"]
    trained = [cell for cell in cells if cell.method != "pretrained"]
    return before + [replace(cell, setting=setting(name)) for name in settings for cell in trained]


def test_snapshots_stand_beside_the_table_and_change_none_of_its_numbers(tmp_path):
    cells = grid(tmp_path, random_hits(), methods=("fine_tune", "lwf"))
    with_snapshots = in_settings(cells, "", "step=16")
    shown = []
    for evaluations in (cells, with_snapshots):
        results = of_evaluations(evaluations)
        shown.append(results.shown.drop(columns="arm").reset_index(drop=True))
        assert len(results.comparisons) == 1 + len(SETS)
    assert shown[0].equals(shown[1])
    assert set(results.grid.cells["setting"]) == {"", "step=16"}


def test_a_campaign_of_settings_alone_has_a_line_for_each(tmp_path):
    cells = grid(tmp_path, random_hits(), methods=("fine_tune", "lwf"))
    results = of_evaluations(in_settings(cells, "lr=0.1", "lr=0.01"), methods={"lwf": "LwF"})
    titles = ["LwF, lr 0.1", "LwF, lr 0.01", "fine_tune, lr 0.1", "fine_tune, lr 0.01"]
    assert list(results.shown["method"]) == titles
    assert (results.comparisons["evaluated_on"] == "").sum() == 2


def test_what_was_seen_of_fewer_images_is_not_compared_with_the_pre_trained_model(tmp_path):
    cells = grid(tmp_path, random_hits())
    on_downstream = next(cell for cell in cells if cell.on_downstream)
    pq.write_table(pq.read_table(on_downstream.path).slice(0, 20), on_downstream.path)
    read = gather(cells[::-1]).cells
    unknown = read[scores.names(scores.BEFORE_AFTER)].isna()
    assert (unknown.all(axis=1) == unknown.any(axis=1)).all()
    is_held_out = (read[KEY[-2:]] == on_downstream.downstream).all(axis=1)
    assert (unknown.all(axis=1) == (is_held_out | (read["method"] == "pretrained"))).all()
