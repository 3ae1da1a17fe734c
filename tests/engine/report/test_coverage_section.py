"""What the page says of missing columns, failed attempts, hours and samples."""

from __future__ import annotations

import made_results
import numpy as np
import pytest
import reports

from engine.evaluation import budget
from engine.evaluation.budget import Drawn
from engine.grid.attempts import Attempt
from engine.grid.record import FinishedCampaign, MissingColumn
from engine.report import finish, tables
from engine.report.section import Section
from engine.report.sections import coverage, what_was_run

HOUR = 3600.0
ATTEMPTS = [
    Attempt("prepare", "prepare", 0.0, 0.5 * HOUR, "A100"),
    Attempt("column-a", "column", HOUR, 2 * HOUR, "A100", 1, "no room"),
    Attempt("column-a", "column", 3 * HOUR, 5 * HOUR, "A100"),
    Attempt("column-b", "column", HOUR, 4 * HOUR, "A100"),
    Attempt("column-c", "column", HOUR, None, "A100"),
]


def table(section: Section | None, name: str) -> list[dict]:
    assert section is not None
    (data,) = [each.data for each in section.tables if each.name == name]
    return data.to_dict("records")


def test_hours_are_summed_by_stage(tmp_path):
    section = what_was_run.section(
        made_results.results(tmp_path, settings={"Seed": 0}, attempts=ATTEMPTS)
    )
    rows = table(section, "hours")
    assert [(row["stage"], row["jobs"], row["attempts"], row["job_hours"]) for row in rows] == [
        ("prepare", 1, 1, 0.5),
        ("column", 2, 3, 6.0),
    ]
    assert section is not None and section.statements[0].startswith(
        "5.00 hours from the start of the first job (1970-01-01 00:00 UTC) to the end of the last, "
        "6.50 job-hours in them."
    )


def test_nothing_is_said_of_hours_that_were_not_recorded(tmp_path):
    section = what_was_run.section(made_results.results(tmp_path, settings={"Seed": 0}))
    assert section is not None and not section.statements
    assert [each.name for each in section.tables] == ["settings"]


def test_failed_attempts_are_listed_with_their_reason(tmp_path):
    section = coverage.section(made_results.results(tmp_path, attempts=ATTEMPTS))
    rows = table(section, "failed-attempts")
    assert [(row["job"], row["hours"]) for row in rows] == [("column-a", 1.0), ("column-c", 0.0)]
    assert rows[0]["why"] == "no room" and "killed" in rows[1]["why"]
    assert section is not None
    assert any(text.startswith("2 of 5 attempts at jobs did not") for text in section.statements)


def test_missing_columns_are_named_with_their_reason_and_above_the_page(tmp_path):
    missing = [MissingColumn("sketch", "column-sketch failed (exit code 2): error: no room")]
    run = reports.finished(tmp_path, missing=missing)
    results = tables.results(run)
    section = coverage.section(results)
    rows = table(section, "missing-columns")
    assert rows == [{"column": "sketch", "reason": missing[0].reason}]
    page = finish.write(run, results).read_text()
    assert "Incomplete: models fine-tuned on sketch are not in this report." in page


def test_columns_that_not_all_campaigns_have_are_left_out_and_named(tmp_path):
    first = reports.finished(tmp_path, "a", model="a")
    second = reports.finished(tmp_path, "b", model="b", downstreams=["flat", "mono"])
    results = tables.merged([first, second])
    assert results.record.downstreams == ["flat", "mono"]
    assert {row.downstream for row in results.grid.accuracy} == {"", "flat", "mono"}
    rows = table(coverage.section(results), "missing-columns")
    assert rows == [{"column": "sketch", "reason": "not a column of b", "campaign": "a"}]


def test_campaigns_without_a_common_column_are_refused(tmp_path):
    runs = [
        reports.finished(tmp_path, name, downstreams=[downstream])
        for name, downstream in (("a", "flat"), ("b", "mono"))
    ]
    with pytest.raises(ValueError, match="no set in common that they fine-tune on"):
        tables.merged(runs)


def test_a_merged_report_tells_the_sample_of_each_campaign(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    frame = budget.stratify(
        np.arange(40) % 2 == 0, rng.random(40), np.arange(40) % 5, np.zeros(40, int), np.ones(40),
        seed=[0],
    )  # fmt: skip
    drawn = {name: Drawn(frame, 30, np.arange(40)) for name in (*reports.SETS, "up")}
    runs = [reports.finished(tmp_path, name, model=name, seed=k) for k, name in enumerate("ab")]
    monkeypatch.setattr(
        FinishedCampaign,
        "samples",
        property(lambda run: drawn if run.record.name == "b" else {}),
    )
    results = tables.merged(runs)
    section = coverage.section(results)
    rows = table(section, "sampled-sets")
    assert rows[0] == {"campaign": "b", "set": "flat", "images_evaluated": 30, "of": 40}
    widths = table(section, "half-widths")
    assert {row["campaign"] for row in widths} == {"b"} and min(
        row["half_width"] for row in widths
    ) > 0
    assert set(row["downstream"] for row in widths) == {*reports.SETS, ""}
    page = finish.write_into(tmp_path / "out", results).read_text()
    assert "Incomplete: b: a sample, 90 of 120 images (75.0%)" in page
