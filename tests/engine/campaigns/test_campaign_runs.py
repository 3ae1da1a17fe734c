"""Campaigns as a user runs them: by the program itself, ended in every way, and resumed."""

import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest

from engine import cli
from engine.campaigns import job_states
from engine.campaigns.plan import PREPARE
from engine.commands import job
from helpers import campaigns
from helpers.campaigns import SETS, rows, started
from helpers.processes import until

SELECTED = ("fine_tune", "soup")
ALPHAS = ("0.0", "0.5", "1.0")  # of WiSE-FT, as tables write them
pytestmark = pytest.mark.slow


def jobs_of(runs: Path) -> dict[int, list[str]]:
    """Processes that work for a campaign below `runs`, shells among them, and their words."""
    words = {each.pid: each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])}
    of_plans = re.compile(f"{re.escape(str(runs))}/.*plan\\.json")
    return {number: line for number, line in words.items() if any(map(of_plans.search, line))}


def test_the_program_runs_a_campaign_to_one_complete_table(folder, forked, tmp_path, monkeypatch):
    """Of a selection of its rows, a second campaign trains nothing. All methods: the stage `smoke`
    of `bench/test_gpu_stages.py`."""
    text = (folder / "shapes.yaml").read_text()
    (tmp_path / "shapes.yaml").write_text(
        f"{text}  soup: {{method: {{members: [pretrained, fine_tune]}}}}\n"
    )
    cwd = tmp_path / "else {where}:"
    cwd.mkdir()
    words = ("runs=runs", "train.epochs=1", "dataset.sets=[outline,few]", "downstreams=[few]")
    with started(tmp_path, *words, "--cores", "2", cwd=cwd, **forked) as process:
        shown = process.communicate(timeout=900)[0]
    assert process.returncode == 0, shown[-3000:]
    (report,) = (cwd / "runs").glob("shapes-*/report")
    assert "mRI" in shown and str(report / "index.html") in shown
    assert [path.name for path in cwd.iterdir()] == ["runs"]  # no .snakemake here
    arms = [(method, "") for method in ("fine_tune", "linear_probe", "soup")]
    arms += [("wise_ft", alpha) for alpha in ALPHAS]
    accuracies = {
        (row["method"], row["alpha"], row["downstream"], row["evaluated_on"]): row["accuracy_pct"]
        for row in rows(report / "accuracy.csv")
        if 0 <= float(row["accuracy_pct"]) <= 100
    }
    places = ("upstream", "outline", "few")
    of_arms = [(*arm, "few", name) for arm in arms for name in places]
    assert {*accuracies} == {*of_arms, *(("pretrained", "", "", name) for name in places)}
    for name in places:  # the ends of WiSE-FT's curve are the models themselves
        assert accuracies["wise_ft", "0.0", "few", name] == accuracies["pretrained", "", "", name]
        assert accuracies["wise_ft", "1.0", "few", name] == accuracies["fine_tune", "", "few", name]
    mri = rows(report / "mri.csv")
    assert sorted((row["method"], row["alpha"]) for row in mri) == sorted(arms)

    monkeypatch.chdir(cwd)
    campaigns.in_this_process(monkeypatch)
    again = ["campaign", str(tmp_path / "shapes.yaml"), *words]
    made = {*(cwd / "runs/store").glob("*/*")}
    assert cli.main([*again, f"methods=[{','.join(SELECTED)}]"]) == 0
    assert {*(cwd / "runs/store").glob("*/*")} == made
    (selected,) = {*(cwd / "runs").glob("shapes-*")} - {report.parent}
    kept = [
        row for row in rows(report / "accuracy.csv") if row["method"] in ("pretrained", *SELECTED)
    ]
    assert rows(selected / "report/accuracy.csv") == kept


def test_dry_run_shows_the_jobs_and_a_profile_steers_the_workflow(folder, tmp_path, capsys):
    profile, runs = tmp_path / "cluster", tmp_path / "runs"
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={runs}"]
    assert cli.main([*words, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "note: tinted: images have the same class and file name as images in upstream (" in err
    for word in ("prepare", "column", "report", *(f"column-{name}" for name in SETS)):
        assert word in out, word
    assert not list(tmp_path.iterdir()), "nothing was written"
    words += ["--profile", str(profile)]
    assert cli.main(words) == 2
    assert "cluster/config.yaml" in capsys.readouterr().err
    profile.mkdir()
    (profile / "config.yaml").write_text("until: [column]\ndry-run: true\n")
    assert cli.main(words) == 2
    (log,) = runs.glob("shapes/plans/*/campaign.log")
    assert "rule column" in log.read_text() and "rule report" not in log.read_text()


def test_a_campaign_that_ended_in_every_way_is_resumed_to_the_same_tables(
    folder, finished, tmp_path, monkeypatch, capsys
):
    """Its job is killed; its terminal closes; Ctrl-C, after a new cell.

    All of it is killed: kind `kill`, which `tests/test_faults.py` tries, and kind `tree`.
    """
    runs, words = tmp_path / "runs", f"runs={tmp_path / 'runs'}"
    again = ["campaign", str(folder / "shapes.yaml"), words]

    def cells() -> int:
        return len(list(runs.glob("store/cells/fine_tune-*/done.json")))

    def prepares() -> bool:
        return any(path.stat().st_size for path in runs.glob("shapes/plans/*/logs/prepare.log"))

    with started(folder, words, "--cores", "2", cwd=tmp_path) as process:
        until(prepares, "a job is at work", at_work=process)
        (program,) = (n for n, words in jobs_of(runs).items() if words[3:4] == [job.__name__])
        os.kill(program, signal.SIGKILL)
        shown = process.communicate(timeout=900)[0]
    assert process.returncode == 2 and "prepare was killed (SIGKILL)" in shown, shown[-3000:]
    assert "logs/prepare.log" in shown

    with started(folder, words, "--cores", "2", cwd=tmp_path) as process:
        until(lambda: jobs_of(runs), "a job is there", at_work=process)
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(120) == 130 and not jobs_of(runs)

    plan = campaigns.plan_of(folder / "shapes.yaml", words)
    campaigns.do(plan, PREPARE)
    job_states.set_done(plan.place, PREPARE)
    with started(folder, words, "--cores", "1", cwd=tmp_path) as process:
        until(cells, "a new cell", at_work=process)
        assert jobs_of(runs)
        assert cli.main(again) == 2
        refused = f"another campaign (process {process.pid} on "
        assert refused in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
        until(lambda: not jobs_of(runs), "its jobs end", 20)
    assert not (runs / "shapes" / "report" / "index.html").exists()

    made = {path: path.stat().st_mtime_ns for path in runs.glob("store/*/*/done.json")}
    campaigns.in_this_process(monkeypatch)
    assert cli.main(again) == 0
    assert all(path.stat().st_mtime_ns == at for path, at in made.items())  # nothing again
    for name in ("accuracy.csv", "mri.csv"):
        expected = (finished / "shapes" / "report" / name).read_bytes()
        assert (runs / "shapes" / "report" / name).read_bytes() == expected


def test_failing_job_is_one_clear_line(folder, finished, forked, tmp_path, monkeypatch, capfd):
    """With the command that runs the job alone. What columns share is there already."""
    for name, value in forked.items():
        monkeypatch.setenv(name, value)
    runs = shutil.copytree(finished, tmp_path / "runs")
    words = ["optimizer.lr=1e20", "train.warmup_steps=0", "dataset.sets=[outline,tinted]"]
    words = [str(folder / "shapes.yaml"), f"runs={runs}", *words]
    plan = campaigns.plan_of(*words)
    done = plan.place.path / job_states.DONE / PREPARE
    done.parent.mkdir(parents=True)
    done.touch()
    assert cli.main(["campaign", *words, "--cores", "1"]) == 2
    err = capfd.readouterr().err
    errors = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err[-3000:]
    explanation = err.partition(errors[0])[2]
    assert "the loss is not finite" in explanation and "lower optimizer.lr" in explanation
    assert "campaign.log" in explanation and "Traceback" not in err
    (alone,) = re.findall("^  alone: cd .* && (.*)$", explanation, re.MULTILINE)
    program = shlex.split(alone)
    assert program[:4] == [sys.executable, "-P", "-m", job.__name__]
    monkeypatch.setattr(sys, "argv", program[3:])
    assert job.main() == 2
    assert "the loss is not finite" in capfd.readouterr().err
