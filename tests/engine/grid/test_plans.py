"""A campaign is what was planned: other settings, files and commands do not change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import campaigns
import grids
import pytest

import engine
from engine import cli
from engine.grid import campaign, workflow
from engine.machine import ranks

folder, grid = campaigns.folder, grids.grid
pytestmark = pytest.mark.slow


@pytest.fixture
def ran() -> Iterator[list[str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "stop", lambda: None)  # of the session's only process group
        yield campaigns.in_this_process(patch)


def mine(folder: Path, rate: float) -> Path:
    """A campaign's file with a learning rate, and two rows on one set."""
    file = folder / "mine.yaml"
    text = (folder / "shapes.yaml").read_text().replace("lr: 0.02", f"lr: {rate}")
    text = text.replace("  linear_probe: {}\n", "")
    file.write_text(f"{text}downstreams: [few]\n")
    return file


def test_a_file_that_changes_while_jobs_wait_changes_no_campaign(
    folder: Path, grid: grids.Grid, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """And the campaign of before shows its own table again, once the file is put back."""

    def run(name: str, *words: str) -> str:
        assert cli.main(["campaign", str(folder / "mine.yaml"), f"runs={tmp_path / name}"]) == 0
        return capsys.readouterr().out

    def rates(name: str) -> set[str]:
        cells = (tmp_path / name / "store" / "cells").glob("fine_tune-few-*/recipe.yaml")
        return {line for c in cells for line in c.read_text().splitlines() if "  lr:" in line}

    report = tmp_path / "b" / "mine" / "report"
    with pytest.MonkeyPatch.context() as patch:
        mine(folder, 0.02)
        campaigns.in_this_process(patch)
        run("a")
        expected = (tmp_path / "a/mine/report/accuracy.csv").read_bytes()
        watch = workflow._watch

        def edited(*words: object) -> None:
            mine(folder, 0.5)
            watch(*words)  # type: ignore[arg-type]

        patch.setattr(workflow, "_watch", edited)
        mine(folder, 0.02)
        run("b")
        assert rates("b") == rates("a") and (report / "accuracy.csv").read_bytes() == expected
        patch.setattr(workflow, "_watch", watch)
        assert "nothing to do" not in run("b")  # the file says 0.5 now
        assert (report / "accuracy.csv").read_bytes() != expected and len(rates("b")) == 2
        mine(folder, 0.02)
        shown = run("b")
        assert (report / "accuracy.csv").read_bytes() == expected
        assert (tmp_path / "a/mine/report/table.txt").read_text() in shown
        assert "nothing to do" in run("b")


def test_other_commands_leave_a_campaign_finished(
    folder: Path, grid: grids.Grid, tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture
) -> None:
    """And what a user keeps beside the report is the user's."""
    words = [str(mine(folder, 0.02)), f"runs={tmp_path}"]
    assert cli.main(["campaign", *words, "trackers=[tensorboard]"]) == 0
    jobs, report = len(ran), tmp_path / "mine" / "report"
    (report / "notes.txt").write_text("mine")
    few = f"again={folder / 'images' / 'few'}"
    for command in (
        ["metrics", *words],
        ["evaluate", "--campaign", *words, "--sets", few],
        ["evaluate", "--campaign", *words, "--sets", few, "--force"],
        ["report", *words, "--figures"],
        ["metrics", *words],
    ):
        assert cli.main(command) == 0, command
    (report / "notes.txt").unlink()
    (report / "accuracy-on-again.csv").unlink()
    capsys.readouterr()
    assert cli.main(["campaign", *words]) == 0 and len(ran) == jobs
    assert "mine.yaml is finished; nothing to do" in capsys.readouterr().out


def test_files_of_another_plan_leave_a_report_and_a_users_stay(
    folder: Path, grid: grids.Grid, tmp_path: Path, ran: list[str]
) -> None:
    words, report = [f"runs={tmp_path}"], tmp_path / "mine" / "report"
    text = mine(folder, 0.02).read_text()
    (folder / "mine.yaml").write_text(text + "seeds: 2\n")
    assert cli.main(["campaign", str(folder / "mine.yaml"), *words]) == 0
    assert (report / "seeds.csv").is_file() or list(report.rglob("*seed*"))
    of_seeds = {path.relative_to(report) for path in report.rglob("*") if path.is_file()}
    (report / "seed-notes.txt").write_text("mine")
    (folder / "mine.yaml").write_text(text)
    assert cli.main(["campaign", str(folder / "mine.yaml"), *words]) == 0
    now = {path.relative_to(report) for path in report.rglob("*") if path.is_file()}
    assert Path("seed-notes.txt") in now
    alone = tmp_path / "alone"
    assert cli.main(["campaign", str(folder / "mine.yaml"), f"runs={alone}"]) == 0
    expected = {
        path.relative_to(alone / "mine" / "report")
        for path in (alone / "mine" / "report").rglob("*")
        if path.is_file()
    }
    assert now - {Path("seed-notes.txt")} == expected != of_seeds


def test_campaigns_of_models_show_a_page_of_those_models(
    folder: Path, grid: grids.Grid, tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture
) -> None:
    """From the command line and from Python, whatever was finished before."""
    file, names = str(mine(folder, 0.02)), {}
    for name in ("a", "b", "c"):
        names[name] = tmp_path / f"{name}.yaml"
        text = (folder / "model.yaml").read_text().replace("name: tiny", f"name: {name}")
        names[name].write_text(text)

    def models(*of: str) -> str:
        return f"model=[{','.join(str(names[name]) for name in of)}]"

    def columns(page: Path) -> set[str]:
        lines = page.with_name("accuracy.csv").read_text().splitlines()[1:]
        return {line.split(",")[0] for line in lines}

    runs = f"runs={tmp_path / 'runs'}"
    assert cli.main(["campaign", file, runs, f"model={names['c']}"]) == 0
    first = engine.campaign(file, runs, models("a", "b"))
    second = engine.campaign(file, runs, models("a", "c"))
    assert (columns(first), columns(second)) == ({"a", "b"}, {"a", "c"})
    jobs = len(ran)
    capsys.readouterr()
    assert cli.main(["campaign", file, runs, models("a", "b")]) == 0 and len(ran) == jobs
    assert f"all models  {first}" in capsys.readouterr().out


def test_a_users_file_runs_once_a_process(folder: Path, grid: grids.Grid, tmp_path: Path) -> None:
    module = tmp_path / "counted.py"
    module.write_text(
        "from pathlib import Path\nfrom engine.methods.fine_tune import Method, Recipe\n"
        "Path(__file__).with_suffix('.log').open('a').write('x')\n"
    )
    section = f"{{method: {{name: counted, title: Counted, module: {module}}}}}"
    text = mine(folder, 0.02).read_text().replace("fine_tune: {}", f"fine_tune: {section}")
    file = folder / "counted.yaml"
    file.write_text(text)
    plan = campaign.plan(str(file), [f"runs={tmp_path}", "methods=[fine_tune]"], run_users=True)
    for job in plan.jobs[:2]:
        campaigns.do(plan, job)
    assert module.with_suffix(".log").read_text() == "x"
