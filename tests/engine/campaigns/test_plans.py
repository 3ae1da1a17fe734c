"""A campaign is what was planned: other settings, files and commands do not change it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import cli
from engine.campaigns import workflow
from helpers import campaigns

pytestmark = pytest.mark.slow


@pytest.fixture
def ran(grid, monkeypatch) -> list[str]:
    return campaigns.in_this_process(monkeypatch)


@pytest.fixture
def runs(finished, tmp_path) -> Path:
    """Where the cells of `mine` are, with the rate 0.02."""
    return shutil.copytree(finished, tmp_path / "runs")


def mine(folder: Path, rate: float) -> Path:
    """A campaign's file with a learning rate, and two rows on one set."""
    file = folder / "mine.yaml"
    text = (folder / "shapes.yaml").read_text().replace("lr: 0.02", f"lr: {rate}")
    text = text.replace("  linear_probe: {}\n", "")
    file.write_text(f"{text}downstreams: [few]\n")
    return file


def test_a_file_that_changes_while_jobs_wait_changes_no_campaign(
    folder, runs, ran, monkeypatch, capsys
):
    """And the campaign of before shows its own table again, once the file is put back."""

    def run(rate: float) -> tuple[str, bytes]:
        words = ["campaign", str(mine(folder, rate)), f"runs={runs}"]
        assert cli.main(words) == 0
        return capsys.readouterr().out, (runs / "mine/report/accuracy.csv").read_bytes()

    def rates() -> set[str]:
        cells = (runs / "store" / "cells").glob("fine_tune-few-*/recipe.yaml")
        return {line for c in cells for line in c.read_text().splitlines() if "  lr:" in line}

    run_jobs, before = workflow.run_snakemake, rates()

    def edited(*given: Any) -> None:
        mine(folder, 0.5)
        run_jobs(*given)

    with monkeypatch.context() as patch:
        patch.setattr(workflow, "run_snakemake", edited)
        _, first = run(0.02)
    table = (runs / "mine/report/table.txt").read_text()
    assert rates() == before and len(before) == 1
    shown, other = run(0.5)
    assert "nothing to do" not in shown and other != first and len(rates()) == 2
    shown, again = run(0.02)
    assert again == first and table in shown
    assert "nothing to do" in run(0.02)[0]


def test_jobs_that_end_without_the_result_are_an_error(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workflow, "run", lambda plans, options: None)
    assert cli.main(["campaign", str(mine(folder, 0.02)), f"runs={tmp_path}"]) == 2
    assert "mine.yaml: all jobs ended, but results are missing" in capsys.readouterr().err


MIX = """\
from dataclasses import dataclass
from engine.methods.base import Derived
from engine.recipe.schema import MethodRecipe
from engine.store.cells import Entry

@dataclass(frozen=True)
class Recipe(MethodRecipe):
    needs = ("fine_tune",)

class Method(Derived):
    def make(self, context):
        return [Entry({context.base.name: 0.5, context.cell("fine_tune").name: 0.5})]
"""


def test_what_a_users_method_needs_is_a_part_of_a_finished_campaign(folder, runs, ran, tmp_path):
    """Though only the method's file can say it, and its row is all that the table has."""
    (tmp_path / "mix.py").write_text(MIX)
    (tmp_path / "mix.yaml").write_text("name: mix\ntitle: Mix\nmodule: mix.py\n")
    file = mine(folder, 0.02)
    text = file.read_text() + f"methods: {{fine_tune: {{}}, mix: {{base: {tmp_path}/mix.yaml}}}}\n"
    text = text.replace(text[text.index("methods:") : text.index("downstreams")], "")
    words, jobs = ["campaign", str(file), f"runs={runs}", "methods=[mix]"], []
    for rate in (0.02, 0.02, 0.5, 0.5):
        file.write_text(text.replace("fine_tune: {}", f"fine_tune: {{optimizer: {{lr: {rate}}}}}"))
        assert cli.main(words) == 0
        jobs.append(len(ran))
    assert jobs == [4, 4, 8, 8]


def test_other_commands_leave_a_campaign_finished(folder, runs, ran, capsys):
    """And what a user keeps beside the report is the user's."""
    words = [str(mine(folder, 0.02)), f"runs={runs}"]
    assert cli.main(["campaign", *words, "trackers=[tensorboard]"]) == 0
    jobs, report = len(ran), runs / "mine" / "report"
    (report / "notes.txt").write_text("mine")
    few = f"again={folder / 'images' / 'few'}"
    for command in (
        ["evaluate", "--campaign", *words, "--sets", few],
        ["evaluate", "--campaign", *words, "--sets", few, "--force"],
        ["report", *words, "--figures"],
        ["report", *words],
    ):
        assert cli.main(command) == 0, command
    (report / "notes.txt").unlink()
    (report / "accuracy-on-again.csv").unlink()
    capsys.readouterr()
    for options in ([], ["--dry-run"]):
        assert cli.main(["campaign", *words, *options]) == 0 and len(ran) == jobs
        shown = capsys.readouterr().out
        assert "mine.yaml is finished; nothing to do" in shown and "would run" not in shown


def test_campaigns_of_models_show_a_page_of_those_models(folder, grid, tmp_path, ran, capsys):
    """From the command line and from Python, whatever was finished before."""
    file, text = str(mine(folder, 0.02)), (folder / "model.yaml").read_text()
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.yaml").write_text(text.replace("name: tiny", f"name: {name}"))

    def models(*names: str) -> str:
        return f"model=[{','.join(f'{tmp_path}/{name}.yaml' for name in names)}]"

    def columns(page: Path) -> set[str]:
        return {row["model"] for row in campaigns.rows(page.with_name("accuracy.csv"))}

    runs = f"runs={tmp_path / 'runs'}"
    assert cli.main(["campaign", file, runs, f"model={tmp_path}/c.yaml"]) == 0
    first = engine.campaign(file, runs, models("a", "b"))
    second = engine.campaign(file, runs, models("a", "c"))
    assert (columns(first), columns(second)) == ({"a", "b"}, {"a", "c"})
    jobs = len(ran)
    capsys.readouterr()
    assert cli.main(["campaign", file, runs, models("a", "b")]) == 0 and len(ran) == jobs
    assert f"all models  {first}" in capsys.readouterr().out
