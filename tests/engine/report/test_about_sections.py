"""What the page says of columns that a campaign lacks, failed attempts and hours."""

from engine.campaigns.job_states import Attempt
from engine.report.merged import merged
from engine.report.results import Results
from engine.report.sections import about
from helpers import made_results, reports

HOUR = 3600.0
ATTEMPTS = [
    Attempt("prepare", "prepare", 0.0, 0.5 * HOUR, "A100"),
    Attempt("column-a", "column", HOUR, 2 * HOUR, "A100", 1, "no room"),
    Attempt("column-a", "column", 3 * HOUR, 5 * HOUR, "A100"),
    Attempt("column-b", "column", HOUR, 4 * HOUR, "A100"),
    Attempt("column-c", "column", HOUR, None, "A100"),
]


def table(results: Results, name: str) -> list[dict]:
    section = about.what_was_run(results)
    (data,) = [each.data for each in section.tables if each.name == name]
    return data.to_dict("records")


def test_models_are_counted_once():
    """One per model, method, dataset fine-tuned on and seed, however many alphas and datasets
    evaluated on it has."""
    arms = {("fine_tune", None, ""): (60, 55)}
    arms |= {("wise_ft", alpha, ""): (60, 55) for alpha in (0.0, 0.5, 1.0)}
    models = f"{2 * len(made_results.SETS)} models"
    section = about.what_was_run(made_results.of_arms(arms, attempts=ATTEMPTS))
    assert section.heading == f"{models}, 6.5 h of jobs"
    section = about.what_was_run(made_results.of_arms(arms))  # an earlier campaign's cells
    assert section.heading == f"{models}, found in the store"


def test_hours_are_summed_and_failed_attempts_are_listed_with_their_reason():
    results = made_results.of_arms({("fine_tune", None, ""): (60, 55)}, attempts=ATTEMPTS)
    rows = table(results, "hours")
    assert [(row["stage"], row["jobs"], row["attempts"], row["job_hours"]) for row in rows] == [
        ("prepare", 1, 1, 0.5),
        ("column", 2, 3, 6.0),
    ]
    section = about.what_was_run(results)
    assert section.heading.endswith(" models, 6.5 h of jobs")
    rows = table(results, "failed-attempts")
    assert [(row["job"], row["hours"]) for row in rows] == [("column-a", 1.0), ("column-c", 0.0)]
    assert rows[0]["why"] == "no room" and "killed" in rows[1]["why"]


def test_columns_that_not_all_campaigns_have_are_left_out_and_named(tmp_path):
    first = reports.finished(tmp_path, "a", model="a")
    second = reports.finished(tmp_path, "b", model="b", downstreams=["flat", "mono"])
    results = merged([first, second])
    assert results.record.downstreams == ["flat", "mono"]
    assert set(results.grid.cells["downstream"]) == {"", "flat", "mono"}
    missing = {"column": "sketch", "reason": "not a column of all campaigns", "campaign": "a"}
    assert table(results, "missing-columns") == [missing]
