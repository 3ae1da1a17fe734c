"""How jobs end, which of them are tried again, and what is said of those that failed."""

import argparse
import dataclasses
import json
import re
import sys
from contextlib import AbstractContextManager

import pandas
import pytest

from engine.campaigns import attempts, job_states, progress, seal, workflow
from engine.campaigns.columns import Column
from engine.campaigns.plan import make_plan
from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.schedulers import slurm
from engine.commands import job
from engine.errors import DivergedError, FirstRankError
from engine.machine.files import write_atomic
from engine.recipe import parsed
from engine.report import exports, finish
from engine.report.section import Section, Table
from helpers import campaigns
from helpers.processes import run
from loaders.files.durable import file_hash
from loaders.files.typed_json import DamagedFile

ENDS = {"user-error": "exit 2", "bug": "exit 1", "preempted": "exit 75", "killed": "kill -KILL $$"}
ENDS |= {"left": "echo goodbye; exit 0"}
HOUR = 60


def recorded(place: PlanFolder, started: float = 100.0) -> AbstractContextManager:
    return attempts.recorded(place, "column-few", "column", started)


def test_an_attempt_ends_with_its_error_or_without(tmp_path):
    with recorded(PlanFolder(tmp_path)) as note:
        note("A100", 2)
        (begun,) = attempts.read(PlanFolder(tmp_path))
        assert begun.ended is None and begun.failure == attempts.KILLED and begun.hours == 0
        assert (begun.device, begun.processes) == ("A100", 2)
    with pytest.raises(ValueError, match="no room"), recorded(PlanFolder(tmp_path), 200.0):
        raise ValueError("no room" + "x" * 1000)
    first, second = attempts.read(PlanFolder(tmp_path))
    assert first.failure == "" and first.ended is not None
    assert first.hours == pytest.approx((first.ended - 100) / 3600)
    assert second.error == ("no room" + "x" * 1000)[: attempts.LONGEST]


def test_of_several_ranks_the_one_with_an_error_is_kept_too(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with recorded(PlanFolder(tmp_path)):
        pass
    with pytest.raises(FirstRankError), recorded(PlanFolder(tmp_path)):
        raise FirstRankError("the first rank failed")
    assert not attempts.read(PlanFolder(tmp_path))
    with pytest.raises(ValueError, match="no GPU"), recorded(PlanFolder(tmp_path)):
        raise ValueError("no GPU")
    (file,) = (tmp_path / attempts.FOLDER).iterdir()
    values = json.loads(file.read_text())
    assert values["error"] == "no GPU"
    file.write_text(json.dumps(values | {"processes": 7}))
    with pytest.raises(DamagedFile, match=f"{file.name} .*; delete it"):
        attempts.read(PlanFolder(tmp_path))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such value"), 2),
        (DivergedError("the loss is not finite"), 2),
        (TimeoutError("the file system does not answer"), 74),
        (FirstRankError("the first rank failed"), 74),
    ],
)
def test_a_job_tells_by_its_code_whether_another_attempt_can_help(error, code, monkeypatch, capfd):
    def fail(arguments: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr(job, "run", fail)
    monkeypatch.setattr(sys, "argv", ["job", "report", "--plan", "plan.json"])
    assert job.main() == code
    assert capfd.readouterr().err == f"error: {error}\n"


@pytest.mark.slow
def test_users_errors_end_their_next_attempts_at_once(folder, tmp_path):
    """They do not run the job and ask for little time; of the others the last words are told."""
    plan = make_plan(str(folder / "shapes.yaml"), parsed([f"runs={tmp_path}"]), 1)
    plan = dataclasses.replace(plan, columns=tuple(Column(name) for name in ENDS))
    place = plan.place.path
    script = place / "job.sh"
    lines = [f"{name}) {end} ;;" for name, end in ENDS.items()]
    begin, finish = f"echo begun >> {place}/$1", f"prepare|distances) touch {place}/done/$1 ;;"
    text = "\n".join([begin, "case ${1#column-} in", finish, *lines, "esac"])
    write_atomic(script, text.encode())
    stage = {"threads": 1, "runtime": HOUR}
    settings = {
        "columns": list(ENDS), "folder": str(tmp_path), "program": ["sh", str(script)],
        "resources": {name: stage for name in ("prepare", "column", "distances", "report")},
    }  # fmt: skip
    file = place / workflow.FILE
    file.write_text(json.dumps({place.name: settings}))
    command = [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(workflow.WORKFLOW)]
    words = ["--directory", str(place.parent), "--cores", "1", "--retries", "2", "--keep-going"]
    done = run([*command, *words], **{workflow.JOBS: str(file)})
    assert done.returncode == 1, done.stderr
    begun = {name: len((place / f"column-{name}").read_text().split()) for name in ENDS}
    assert begun == {"user-error": 1} | dict.fromkeys([*ENDS][1:], 3), done.stderr
    asked = re.findall(r"wildcards: grid=\S+, column=(\S+)\n.*?runtime=(\d+)", done.stderr, re.S)
    minutes = {name: [int(runtime) for each, runtime in asked if each == name] for name in ENDS}
    assert minutes == {n: [HOUR, 2 * HOUR, 3 * HOUR] for n in ENDS} | {"user-error": [HOUR, 5, 5]}
    shown = dict(job_states.failures(plan))
    assert job_states.is_done(plan.place, "prepare") and "prepare" not in shown
    assert shown["column-user-error"].startswith("column-user-error failed (exit code 2)")
    assert "resumes from its last checkpoint" in shown["column-preempted"]
    assert "was killed (SIGKILL), as the kernel does when" in shown["column-killed"]
    assert shown["column-left"].startswith(
        "column-left ended without a result (exit code 0)\n  last message: goodbye\n"
    )
    assert all(f"{place}/logs/{job}.log" in text for job, text in shown.items())
    (tmp_path / "store").mkdir()
    job_states.begin(plan)  # the next command tries all of them again
    left = {path.name for path in (place / "logs").iterdir()}
    assert left == {"prepare.log", "distances.log"}
    (tmp_path / "store").rmdir()
    job_states.begin(plan)
    assert not job_states.is_done(plan.place, "prepare"), (
        "a marker without a store counts for nothing"
    )


def test_what_is_no_log_of_a_job_stays_among_the_logs(folder, tmp_path):
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    for name in ("mine", "prepare.log"):
        (plan.place.path / "logs" / name).mkdir(parents=True)
    for name in ("mine.exit", "column-few.exit", "column-few.log"):
        (plan.place.path / "logs" / name).touch()
    job_states.begin(plan)
    left = sorted(path.name for path in (plan.place.path / "logs").iterdir())
    assert left == ["mine", "mine.exit", "prepare.log"]


def test_a_jobs_own_words_are_told(tmp_path):
    """Of its last attempt."""
    for started, words in ((1, "no room"), (2, "no GPU")):
        with pytest.raises(ValueError), recorded(PlanFolder(tmp_path), started):
            raise ValueError(words)
    assert job_states.failure(PlanFolder(tmp_path), "column-few") == ("failed", "no GPU")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "column-few.exit").write_text("2\n")
    assert job_states.failure(PlanFolder(tmp_path), "column-few") == (
        "failed (exit code 2)",
        "no GPU",
    )


def test_slurms_state_of_a_killed_job_is_told(tmp_path, monkeypatch):
    """Its own words, and where it has no accounting what the job's output says of memory."""
    output, exit_code = tmp_path / "4.log", tmp_path / "logs" / "column-few.exit"
    exit_code.parent.mkdir()
    exit_code.write_text("137\n")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    killed = recorded(PlanFolder(tmp_path))
    killed.__enter__()
    for state, text, reason in (
        ("TIMEOUT", "", "was ended by Slurm: TIMEOUT (give more hours by --time)"),
        ("FAILED", "Exceeded job memory limit", "OUT_OF_MEMORY (give more by --mem)"),
        ("FAILED", "error: x", "was killed (SIGKILL), as the kernel does when memory runs out"),
    ):
        output.write_text(f"slurmstepd: error: {text}\n")
        job = f"JobId=17 JobName=x\n   JobState={state} Reason=x\n   StdOut={output}\n"
        monkeypatch.setattr(slurm, "_answer", lambda *_, job=job: job)
        assert job_states.failure(PlanFolder(tmp_path), "column-few").how.endswith(reason)
    exit_code.unlink()
    assert job_states.failure(PlanFolder(tmp_path), "column-few").how.startswith("was ")


def test_a_report_that_lacks_something_lets_the_next_run_look_for_it(folder, tmp_path, monkeypatch):
    """The columns' markers say that all is there; `run again` would end in the same error."""
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    for name in ("prepare", "column-few"):
        (plan.place.path / "done" / name).mkdir(parents=True)

    def lacking(*_: object) -> None:
        raise FileNotFoundError("few was not evaluated; run the campaign again")

    monkeypatch.setattr(finish, "finish", lacking)
    with pytest.raises(FileNotFoundError, match="run the campaign again"):
        job.run(argparse.Namespace(job="report", plan=plan.place.plan, ranks=1))
    assert not (plan.place.path / "done").exists()


def test_progress_counts_jobs_by_their_markers_and_logs(tmp_path):
    for name, content in (
        ("done/prepare", ""),
        ("logs/prepare.log", "all is there\n"),
        ("logs/column-s.log", "error: x\n"),
        ("logs/column-s.exit", "2\n"),
        ("logs/column-t.log", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    states = job_states.counts(PlanFolder(tmp_path), ["prepare", "column-s", "column-t", "report"])
    assert progress.text(states, "x") == "1 running, 1 waiting, 1 done, 1 failed; x"


def test_files_of_an_earlier_report_go_and_a_users_own_stay(tmp_path):
    report, places = tmp_path / "report", [tmp_path / "plans" / name for name in "ab"]
    for folder in (report, *places):
        folder.mkdir(parents=True)
    for place, names in ((places[0], "older edited"), (places[1], "other"), (places[0], "new")):
        with seal.sealed(PlanFolder(place)):
            for name in names.split():
                write_atomic(report / name, b"")
        (report / "mine").touch()
        if names != "new":
            (report / "edited").write_text("by hand")
    assert sorted(path.name for path in report.iterdir()) == ["edited", "mine", "new"]


@pytest.mark.parametrize("name", ["../outside", "{absolute}", "linked/outside"])
def test_a_seal_names_no_file_outside_the_report(name, tmp_path):
    report, place, outside = tmp_path / "report", tmp_path / "plans" / "a", tmp_path / "outside"
    report.mkdir()
    place.mkdir(parents=True)
    outside.write_text("mine")
    name = name.format(absolute=outside)
    (place / seal.SHOWN).write_text(f"{file_hash(outside)}  {name}\n")
    with seal.sealed(PlanFolder(place)):
        if name.startswith("linked"):
            (report / "linked").symlink_to(tmp_path)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("linked", ["report", "report/tables"])
def test_a_report_is_not_written_into_a_linked_folder(linked, tmp_path):
    place, paper = tmp_path / "plans" / "a", tmp_path / "paper"
    place.mkdir(parents=True)
    table = tmp_path / "report" / "tables" / "ri.csv"
    made = [Section("a", "A", tables=[Table("ri", "", pandas.DataFrame({"a": [1]}))])]
    with seal.sealed(PlanFolder(place)):
        exports.write(tmp_path / "report", made)
    (tmp_path / linked).rename(paper)
    (tmp_path / linked).symlink_to(paper)
    before = table.stat().st_ino
    with pytest.raises(DamagedFile, match="leads through a link"), seal.sealed(PlanFolder(place)):
        exports.write(tmp_path / "report", made)
    assert table.stat().st_ino == before, "neither deleted nor overwritten"
