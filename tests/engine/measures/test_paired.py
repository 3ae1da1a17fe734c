"""Two campaigns beside each other: only what both have counts, image by image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.measures import paired, predictions
from engine.measures.rows import PRE, Evaluation

RIGHT = {  # by campaign: which images (sources) each model gets right, by set
    "a": {PRE: {"x": "pq", "y": "p"}, "ft": {"x": "pqr", "y": "qr"}},
    "b": {PRE: {"x": "q", "y": ""}, "ft": {"x": "rs", "y": "s"}},
}
IMAGES = {"a": {"x": "pqrs", "y": "pqrt"}, "b": {"x": "sqr", "y": "pqrs"}}  # in their orders


def stored(path: Path, images: Sequence[str], right: str) -> Path:
    count = len(images)
    top1 = np.array([0 if image[0] in right else 1 for image in images])
    columns = {"index": np.arange(count), "source": list(images), "label": np.zeros(count, int)}
    columns |= {"top1": top1, **{k: np.ones(count) for k in predictions.PROBABILITIES}}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).cast(predictions.SCHEMA), path)
    return path


def campaign(
    folder: Path, name: str, settings: Sequence[str] = ("",), seeds: int = 1
) -> list[Evaluation]:
    rows = []
    for method, of_sets in RIGHT[name].items():
        for on, right in of_sets.items():
            for setting in settings if method != PRE else [""]:
                for seed in range(seeds if method != PRE else 1):
                    kept = right[seed:]
                    path = folder / name / f"{method}-{setting}-{seed}-{on}.parquet"
                    downstream = "x" if method != PRE else ""
                    rows.append(
                        Evaluation(
                            "net", method, "", None, setting, downstream, on,
                            stored(path, IMAGES[name][on], kept), seed,
                        )
                    )  # fmt: skip
    return rows


def test_only_shared_images_count(tmp_path):
    table = paired.cells(campaign(tmp_path, "a"), campaign(tmp_path, "b"))
    shown = {
        (row["method"], row["evaluated_on"]): (row["images"], row["accuracy_a"], row["accuracy_b"])
        for row in table.to_dict("records")
    }
    third = pytest.approx(100 / 3)
    assert shown == {  # x: q, r, s are shared; y: p, q, r
        (PRE, "x"): (3, third, third),
        (PRE, "y"): (3, third, 0),
        ("ft", "x"): (3, pytest.approx(200 / 3), pytest.approx(200 / 3)),
        ("ft", "y"): (3, pytest.approx(200 / 3), 0),
    }
    (row,) = paired.mean_improvements(table, ["x", "y"]).to_dict("records")
    assert (row["columns"], row["mri_a"], row["mri_b"]) == (1, third, 0)
    assert row["change"] == pytest.approx(-100 / 3)


def test_seeds_are_means_and_a_single_setting_stands_beside_each_of_several(tmp_path):
    one = campaign(tmp_path, "a", seeds=2)
    several = campaign(tmp_path / "s", "a", settings=("lr=1", "lr=2"))
    table = paired.cells(one, several)
    tuned = table[(table["method"] == "ft") & (table["evaluated_on"] == "y")]
    assert tuned[["setting_a", "setting_b"]].values.tolist() == [["", "lr=1"], ["", "lr=2"]]
    # Of seed 0 q and r are right, of seed 1 r.
    assert tuned["accuracy_a"].tolist() == [37.5, 37.5] and tuned["accuracy_b"].tolist() == [50, 50]
    both = paired.cells(several, campaign(tmp_path / "t", "a", settings=("lr=2", "lr=3", "lr=4")))
    assert set(both["setting_a"]) == {"", "lr=2"}, "what both varied"


def test_copies_of_a_source_are_paired_in_their_order(tmp_path):
    a = stored(tmp_path / "a.parquet", ["p", "q", "p"], "p")
    b = stored(tmp_path / "b.parquet", ["p", "p", "p"], "")
    of = [
        [Evaluation("net", PRE, "", None, "", "", "x", path)] for path in (a, b)
    ]  # fmt: skip
    (row,) = paired.cells(*of).to_dict("records")
    assert (row["images"], row["accuracy_a"], row["accuracy_b"]) == (2, 100, 0)


def test_images_of_one_pack_are_paired_by_their_place_in_it(tmp_path):
    """Two hold-outs of one pack may have other copies of a source: they are other images."""
    paths = []
    for name, places, right in (("a", [0, 3], "p"), ("b", [1, 3], "")):
        path = stored(tmp_path / f"{name}.parquet", ["p", "p"], right)
        table = pq.read_table(path)
        pq.write_table(table.set_column(0, "index", pa.array(places, pa.int64())), path)
        paths.append([Evaluation("net", PRE, "", None, "", "", "x", path)])
    (row,) = paired.cells(*paths, {"x"}).to_dict("records")
    assert (row["images"], row["accuracy_a"], row["accuracy_b"]) == (1, 100, 0)
    (row,) = paired.cells(*paths).to_dict("records")
    assert row["images"] == 2, "of other packs nothing tells the copies apart"
