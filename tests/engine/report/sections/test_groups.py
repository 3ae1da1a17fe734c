"""The section on groups of images, and groups in the other files."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.campaigns import record
from engine.campaigns.plan_folder import PlanFolder
from engine.data.sets import LabelledSet
from engine.measures import predictions
from engine.report import number_files, results_file, sections, terminal
from helpers import campaigns, made_results, stores


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
    content = results_file.campaign_results(
        results, number_files.all_numbers(results.grid, results.probe_sets)
    )
    read = results_file.read_results(results_file.encode(content))
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
    rows = record.read_record(PlanFolder(place)).evaluations
    stored = {row.evaluated_on: predictions.columns_of(row.path) for row in rows}
    assert stored == {"upstream": [], "outline": [], "tinted": ["copy"], "few": []}
    of_groups = campaigns.rows(report / "groups.csv")
    (tinted,) = [
        row.path for row in rows if (row.method, row.evaluated_on) == ("pretrained", "tinted")
    ]
    frame = pq.read_table(tinted).to_pandas()
    assert {*frame["column:copy"]} < {f"{k}.png" for k in range(7)}
    expected = (100.0 * (frame["top1"] == frame["label"])).groupby(frame["column:copy"]).mean()
    found = {
        row["group"]: float(row["value_pct"])
        for row in of_groups
        if row["method"] == "pretrained" and row["column"] == "copy"
    }
    assert found == pytest.approx(expected.to_dict())
