"""Several campaigns in one report."""

from __future__ import annotations

import pytest
import reports

from engine import cli
from engine.report import tables


def test_models_of_two_campaigns_stand_side_by_side(tmp_path):
    runs = [reports.finished(tmp_path, name, model=name, seed=k) for k, name in enumerate("ab")]
    results = tables.merged(runs)
    assert [model.model for model in results.models] == ["a", "b"]
    for run, model in zip(runs, results.models, strict=True):
        (alone,) = tables.results(run).models
        assert alone.before == model.before
        assert [line.ri for line in alone.lines] == [line.ri for line in model.lines]
    assert results.record.settings["Command, a"] == "rib campaign a"
    assert results.record.settings["Seed"] == 0 and results.record.name == "a and b"
    assert len(results.record.credits) == 1


def test_methods_of_one_model_come_together_where_their_base_is_the_same(tmp_path):
    arms = [("fine_tune", None)], [("ewc", None)]
    first = reports.finished(tmp_path, "a", arms=arms[0])
    second = reports.finished(tmp_path, "b", arms=arms[1])
    (model,) = tables.merged([first, second]).models
    assert {line.title for line in model.lines} == {"FT", "EWC & co"}


def test_a_model_that_differs_between_campaigns_is_named_after_them(tmp_path):
    runs = [reports.finished(tmp_path, name, seed=k) for k, name in enumerate("ab")]
    names = [model.model for model in tables.merged(runs).models]
    assert names == ["lite0 (a)", "lite0 (b)"]


def test_campaigns_over_different_sets_are_refused(tmp_path):
    runs = [
        reports.finished(tmp_path, "a"),
        reports.finished(tmp_path, "b", sets=("flat", "mono")),
    ]
    with pytest.raises(ValueError, match="campaign b has the sets flat, mono beside up"):
        tables.merged(runs)


def test_the_command_takes_folders(tmp_path, capsys):
    runs = [reports.finished(tmp_path, name, model=name, seed=k) for k, name in enumerate("ab")]
    folders = [str(run.report.parent) for run in runs]
    assert cli.main(["report", folders[0]]) == 0
    assert str(runs[0].report / "index.html") in capsys.readouterr().out
    assert cli.main(["report", *folders]) == 2
    assert "--out DIR" in capsys.readouterr().err
    out = tmp_path / "both"
    assert cli.main(["report", *folders, "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    assert "Methods and pre-trained models" in page and (out / "tables/models.tex").is_file()
    assert cli.main(["report", *folders, "--out", str(out)]) == 2
    assert f"--out {out} is not empty" in capsys.readouterr().err
    assert cli.main(["report", *folders, "--out", str(out), "--force"]) == 0
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "empty")]) == 2
    assert "holds no campaign" in capsys.readouterr().err
