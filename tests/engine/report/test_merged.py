"""Several campaigns in one report."""

from dataclasses import replace

import pytest

from engine import cli
from engine.report.merged import merged
from engine.report.results import of_campaign
from helpers import reports


def test_models_of_two_campaigns_stand_side_by_side(two):
    results = merged(two)
    assert results.models == ["a", "b"]
    for run, model in zip(two, results.models, strict=True):
        alone = of_campaign(run)
        assert alone.before(model) == results.before(model)
        ri = results.ri[results.ri["model"] == model]
        numbers = ["method", "downstream", "RI_pts", "RI_low", "RI_high"]
        assert alone.ri[numbers].equals(ri[numbers].reset_index(drop=True))
    assert results.record.settings["Command, a"] == "rib campaign a"
    assert results.record.settings["Seed"] == 0 and results.record.name == "a and b"
    assert len(results.record.credits) == 1


def test_a_model_of_two_campaigns_is_one_where_they_agree_and_named_after_them_else(tmp_path):
    arms = {"a": [("fine_tune", None)], "b": [("ewc", None)]}
    results = merged([reports.finished(tmp_path, name, arms=of) for name, of in arms.items()])
    assert len(results.models) == 1 and set(results.shown["method"]) == {"FT", "EWC & co"}
    runs = [reports.finished(tmp_path, name, seed=k) for k, name in enumerate("cd")]
    assert merged(runs).models == ["lite0 (c)", "lite0 (d)"]


@pytest.mark.parametrize(("column", "counts"), [("flat", True), ("mono", False)])
def test_a_seed_replicate_counts_where_each_campaign_has_one_of_a_shared_column(
    two, column, counts
):
    """Rows without a second training would pass for rows that no seed changes."""
    runs = []
    for run, columns, on in zip(two, (["flat", "mono"], ["flat"]), (column, "flat"), strict=True):
        rows = [row for row in run.record.evaluations if row.downstream in ("", *columns)]
        rows += [replace(row, role="replicate") for row in rows if row.downstream == on]
        runs.append(reports.changed(run, downstreams=columns, evaluations=rows))
    assert merged(runs).covers_training == counts


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sets": ["flat", "mono"]}, "campaign b has the datasets flat, mono and upstream up"),
        ({"downstreams": ["up"]}, "no downstream dataset in common"),
        ({"sweep": [{"optimizer.lr": 0.1}]}, "b is a sweep"),
        ({"version": 2}, "b has version 2 of drawings, and a version 1"),
    ],
)
def test_campaigns_that_are_not_of_one_grid_are_refused(two, values, words):
    with pytest.raises(ValueError, match=words):
        merged([two[0], reports.changed(two[1], **values)])


def test_the_command_takes_folders(two, tmp_path, capsys):
    folders = [str(run.place.campaign) for run in two]
    assert cli.main(["report", folders[0]]) == 0
    assert str(two[0].place.report / "index.html") in capsys.readouterr().out
    assert cli.main(["report", folders[0], "seeds=5"]) == 2
    assert "seeds=5: a folder is reported as it ran" in capsys.readouterr().err
    assert cli.main(["report", *folders]) == 2
    assert "--out DIR" in capsys.readouterr().err
    out = tmp_path / "both"
    assert cli.main(["report", *folders, "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert (
        " has the highest mRI (one training)</h2>" in page and (out / "tables/models.tex").is_file()
    )
    assert cli.main(["report", *folders, "--out", str(out)]) == 2
    assert f"{out} exists already: replace it" in capsys.readouterr().err
    assert cli.main(["report", *folders, "--out", str(out), "--force"]) == 0
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "empty")]) == 2
    assert "contains no campaign" in capsys.readouterr().err
