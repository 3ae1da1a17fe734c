"""The sections on single images and on groups of images, and groups in the other files."""

import base64
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from engine.campaigns import record
from engine.campaigns.plan_folder import PlanFolder
from engine.data import thumbnails
from engine.data.sets import LabelledSet
from engine.measures import predictions
from engine.report import number_files, results_file, sections, terminal
from engine.report.merged import merged
from engine.report.results import of_campaign
from engine.report.sections import images
from helpers import campaigns, made_results, reports, stores


def test_thumbnails_are_the_images_of_the_table(tmp_path):
    run = reports.finished(tmp_path, thumbnails=reports.pictures())
    section = images.gained_and_lost(of_campaign(run))
    data = section.tables[0].data
    for number, name in enumerate(reports.SETS):
        for change in ("gained", "lost"):
            pictures = section.pictures[f"{name}: {change}"]
            rows = data[(data["evaluated_on"] == name) & (data["change"] == change)]
            assert len(rows) == len(pictures) > 0
            for row, thumbnail in zip(rows.to_dict("records"), pictures, strict=True):
                webp = base64.b64decode(thumbnail.url.partition(",")[2])
                image = np.asarray(Image.open(io.BytesIO(webp)).convert("RGB"))
                assert max(image.shape[:2]) == thumbnails.PX
                colour = (6 * row["image"], 80 * number, 9)
                np.testing.assert_allclose(image.mean((0, 1)), colour, atol=6)
                assert thumbnail.alt.startswith(f"{row['class']}: ")
                assert f"{change} by {row['models']} of {row['of']} models" in thumbnail.alt
    assert {caption.partition(":")[0] for caption in section.pictures} == set(reports.SETS)


def test_rows_name_classes_answers_and_methods(report):
    section = images.gained_and_lost(report[1])
    assert not section.pictures
    for row in section.tables[0].data.to_dict("records"):
        right = row["after"] if row["change"] == "gained" else row["before"]
        assert row["class"] == right != (set(row[k] for k in ("before", "after")) - {right}).pop()
        counts = [int(part.rpartition(" ")[2]) for part in row["by_method"].split(", ")]
        assert sum(counts) == row["models"] and counts == sorted(counts, reverse=True)


def test_two_campaigns_show_the_images_of_both(two):
    shown = [reports.pictures(sets) for sets in (["flat"], ["flat", "mono"])]
    runs = [reports.changed(run, thumbnails=of) for run, of in zip(two, shown, strict=True)]
    section = images.gained_and_lost(merged(runs))
    assert {"flat: gained of a", "flat: lost of b", "mono: gained of a"} <= set(section.pictures)


@pytest.fixture
def results(tmp_path):
    """Results of random answers, in which the set `b` has a column."""
    rows = stores.grid(tmp_path, stores.random_hits(), methods=("fine_tune", "lwf"))
    for row in rows:
        if row.evaluated_on == "b":
            table = pq.read_table(row.path)
            place = pa.array(["<b>", "2, two", "3"] * (len(table) // 3))
            pq.write_table(table.append_column("column:place", place), row.path)
    return made_results.of_evaluations(rows)


def test_groups_are_in_the_table_the_files_the_page_and_results_json(results):
    table = number_files.tables(results)["groups.csv"]
    assert set(table["evaluated_on"]) == {"b"}
    (section,) = [each for each in sections.of(results) if each.key == "groups"]
    worst, every = (table.data for table in section.tables)
    assert len(worst) == 3 and len(every) == 9, "the pretrained model and two methods"
    best = every.loc[every.groupby("method", sort=False)["value_pct"].idxmin()]
    assert worst["value_pct"].tolist() == best["value_pct"].tolist()
    assert worst["group"].tolist() == best["group"].tolist()
    text = terminal.table(results)
    for row in worst.itertuples():
        line = next(line for line in text.partition("on b: ")[2].splitlines() if row.method in line)
        shown = [row.accuracy_pct, row.macro_f1_pct, row.value_pct]
        assert all(f"{number:.1f}" in line for number in shown) and row.group in line
    content = results_file.of(results, number_files.all_numbers(results.grid, results.probe_sets))
    read = results_file.read(results_file.encode(content))
    assert read == content and len(read.groups) == len(table)
    assert sum(row.is_worst for row in read.groups) == len(table) / 4


@pytest.mark.slow
def test_a_campaign_stores_the_columns_of_a_set_with_its_predictions(
    folder, finished, grid, monkeypatch
):
    def columns(self: LabelledSet) -> dict[str, np.ndarray]:
        copies = [key.rpartition("/")[2] for key in self.pack.keys.tolist()]
        return {"copy": np.array(copies)} if self.name == "tinted" else {}

    monkeypatch.setattr(LabelledSet, "columns", property(columns))
    report = campaigns.run(folder, "methods=[linear_probe]", "downstreams=[outline]")
    (place,) = (report.parent / "plans").iterdir()
    rows = record.read(PlanFolder(place)).evaluations
    stored = {row.evaluated_on: predictions.columns_of(row.path) for row in rows}
    assert stored == {"upstream": [], "outline": [], "tinted": ["copy"], "few": []}
    of_groups = campaigns.rows(report / "groups.csv")
    (tinted,) = [row.path for row in rows if (row.method, row.evaluated_on) == ("pre", "tinted")]
    frame = pq.read_table(tinted).to_pandas()
    assert {*frame["column:copy"]} < {f"{k}.png" for k in range(7)}
    expected = (100.0 * (frame["top1"] == frame["label"])).groupby(frame["column:copy"]).mean()
    found = {
        row["group"]: float(row["value_pct"])
        for row in of_groups
        if row["method"] == "pre" and row["column"] == "copy"
    }
    assert found == pytest.approx(expected.to_dict())
