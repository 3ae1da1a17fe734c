"""What the page says of missing columns, failed attempts, hours and samples."""

from __future__ import annotations

import made_results
import pytest
import reports

from engine.grid.attempts import Attempt
from engine.grid.record import MissingColumn
from engine.report import finish
from engine.report.merged import merged
from engine.report.results import of_campaign
from engine.report.section import Section
from engine.report.sections import about

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
    section = about.what_was_run(
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


def test_failed_attempts_are_listed_with_their_reason(tmp_path):
    section = about.coverage(made_results.results(tmp_path, attempts=ATTEMPTS))
    rows = table(section, "failed-attempts")
    assert [(row["job"], row["hours"]) for row in rows] == [("column-a", 1.0), ("column-c", 0.0)]
    assert rows[0]["why"] == "no room" and "killed" in rows[1]["why"]
    assert section is not None
    assert any(text.startswith("2 of 5 attempts at jobs did not") for text in section.statements)


def test_missing_columns_are_named_with_their_reason_and_above_the_page(tmp_path):
    missing = [MissingColumn("sketch", "column-sketch failed (exit code 2): error: no room")]
    run = reports.finished(tmp_path, missing=missing)
    results = of_campaign(run)
    section = about.coverage(results)
    rows = table(section, "missing-columns")
    assert rows == [{"column": "sketch", "reason": missing[0].reason}]
    page = finish.write(run, results).read_text()
    assert "Incomplete: models fine-tuned on sketch are not in this report." in page


def test_columns_that_not_all_campaigns_have_are_left_out_and_named(tmp_path):
    first = reports.finished(tmp_path, "a", model="a")
    second = reports.finished(tmp_path, "b", model="b", downstreams=["flat", "mono"])
    results = merged([first, second])
    assert results.record.downstreams == ["flat", "mono"]
    assert set(results.grid.cells["downstream"]) == {"", "flat", "mono"}
    rows = table(about.coverage(results), "missing-columns")
    assert rows == [
        {"column": "sketch", "reason": "not a column of all campaigns", "campaign": "a"}
    ]


def test_campaigns_without_a_common_column_are_refused(tmp_path):
    runs = [
        reports.finished(tmp_path, name, downstreams=[downstream])
        for name, downstream in (("a", "flat"), ("b", "mono"))
    ]
    with pytest.raises(ValueError, match="no set in common that they fine-tune on"):
        merged(runs)
