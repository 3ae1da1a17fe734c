"""How jobs end, which of them are tried again, and what is said of those that failed."""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import re
import sys
import time
from collections import Counter

import pandas
import pytest

from engine.campaigns import job_states, seal, workflow
from engine.campaigns.events import (
    LONGEST,
    Begun,
    Ended,
    Placed,
    Progress,
    Queued,
    Sealed,
    append_event,
    read_events,
    recorded,
)
from engine.campaigns.job_states import FAILED, FINISHED, RUNNING, WAITING, JobState, read_job
from engine.campaigns.plan import REPORT, Column, Plan
from engine.campaigns.plan_folder import PlanFolder
from engine.campaigns.schedulers import slurm
from engine.campaigns.sites import Site
from engine.commands import job
from engine.errors import CampaignError, DivergedError, OtherRankError
from engine.machine.files import write_atomic
from engine.report import exports, finish
from engine.report.section import Section, Table
from helpers import campaigns
from helpers.processes import run
from loaders.files.durable import file_hash
from loaders.files.typed_json import DamagedFile

FORK = multiprocessing.get_context("fork")
ENDS = {"user-error": "exit 2", "bug": "exit 1", "preempted": "exit 75", "killed": "kill -KILL $$"}
ENDS |= {"left": "echo goodbye; exit 0"}
HOUR = 60
STAGES = ("prepare", "train", "evaluate", "column", "distances", "report")


JOB = "column-few"
BEGUN = Begun(node="here", process=1, at=100)


def state(place: PlanFolder, *events: object) -> JobState:
    """How a job stands after these events."""
    for event in events:
        append_event(place, JOB, event)
    return read_job(place, JOB)


def test_an_attempt_ends_with_its_error_or_without(tmp_path):
    place = PlanFolder(tmp_path)
    with recorded(place, JOB):
        append_event(place, JOB, Placed(device="A100", processes=2))
        (begun,) = read_job(place, JOB).attempts
        assert begun.ended is None and begun.failure == job_states.KILLED and begun.hours == 0
        assert (begun.device, begun.processes) == ("A100", 2)
    with pytest.raises(ValueError, match="no room"), recorded(place, JOB):
        raise ValueError("no room" + "x" * 1000)
    first, second = read_job(place, JOB).attempts
    assert first.failure == "" and first.ended is not None
    assert first.hours == pytest.approx((first.ended - first.started) / 3600)
    assert second.error == ("no room" + "x" * 1000)[:LONGEST]


def test_of_several_ranks_the_one_with_an_error_is_kept_too(tmp_path, monkeypatch):
    place = PlanFolder(tmp_path)
    monkeypatch.setenv("RANK", "1")
    with recorded(place, JOB):
        pass
    with pytest.raises(OtherRankError), recorded(place, JOB):
        raise OtherRankError("another rank failed")
    assert not [*read_events(place, JOB)]
    append_event(place, JOB, BEGUN)
    with pytest.raises(ValueError, match="no GPU"), recorded(place, JOB):
        raise ValueError("no GPU")
    (attempt,) = state(place, Ended()).attempts
    assert attempt.error == "no GPU"


def test_more_events_than_a_job_has_are_not_read(tmp_path):
    """250 MB of blank lines took `rib status` more than half a minute."""
    place = PlanFolder(tmp_path)
    append_event(place, JOB, BEGUN)
    (file,) = tmp_path.glob("events/*")
    file.write_bytes(b"\n" * (65 << 20))
    with pytest.raises(DamagedFile, match=r"has more than 67,108,864 bytes"):
        next(read_events(place, JOB))


def test_states_follow_the_events(tmp_path):
    place = PlanFolder(tmp_path)
    assert read_job(place, JOB).state == WAITING
    assert state(place, Queued()).state == WAITING
    assert state(place, BEGUN, Progress(done=2, total=5)).state == RUNNING
    assert state(place, Ended(code=9)).state == FAILED
    # Snakemake tries again; the job goes on from what is in the store.
    assert state(place, BEGUN).progress.done == 2
    queued = state(place, Queued())
    assert queued.state == WAITING and queued.progress is None and not queued.current
    ends = ["failed (exit code 9)", "was killed"]
    assert [attempt.failure for attempt in queued.attempts] == ends
    assert state(place, BEGUN, Ended()).state == RUNNING, "until its marker is there"
    job_states.set_done(place, JOB)
    assert read_job(place, JOB).state == FINISHED


def test_a_line_that_a_kill_cut_off_is_passed_over_and_ended(tmp_path):
    place, file = PlanFolder(tmp_path), tmp_path / "events" / f"{JOB}.jsonl"
    state(place, BEGUN, Progress(done=1, total=5), Progress(done=2, total=5))
    whole = file.read_bytes()
    cut = whole.rstrip(b"\n").rindex(b"\n") + 1
    for length in range(cut, len(whole) + 1):
        file.write_bytes(whole[:length])
        is_whole = length >= len(whole) - 1
        assert read_job(place, JOB).progress.done == 1 + is_whole
        assert state(place, Ended(code=2)).end.code == 2
        assert file.read_bytes().count(b"\n") == 3 + (length > cut)
    for damaged in (b'{"type":"begun"}', b"\xff\xfe", b'{"type":"x"}', b"[" * 9999, b"1"):
        file.write_bytes(damaged + b"\n" + whole)
        assert read_job(place, JOB).progress.done == 2


def test_events_of_writers_at_once_and_killed_at_any_moment_stay_whole(tmp_path):
    """Kills of two writers, twenty times; every line that was not the last one is an event."""
    place = PlanFolder(tmp_path)

    def write(name: str) -> None:
        for step in itertools.count():
            append_event(place, JOB, Progress(done=step, total=9, doing=name * 500))

    for number in range(20):
        writers = [FORK.Process(target=write, args=(name,)) for name in "ab"]
        for writer in writers:
            writer.start()
        time.sleep(0.02 + 0.001 * number)
        for writer in writers:
            writer.kill()
            writer.join()
    now, lines = state(place, Ended(code=0)), (tmp_path / "events" / f"{JOB}.jsonl").read_bytes()
    events = [*read_events(place, JOB)]
    cut = len([line for line in lines.split(b"\n") if line]) - len(events)
    assert now.end.code == 0 and len(events) > 100 and cut <= 40


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such value"), 2),
        (DivergedError("the loss is not finite"), 2),
        (TimeoutError("the file system does not answer"), 74),
        (OtherRankError("another rank failed"), 74),
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
    plan = campaigns.plan_of(folder / "shapes.yaml", f"runs={tmp_path}")
    plan = dataclasses.replace(plan, columns=tuple(Column(name) for name in ENDS))
    place = plan.place.path
    script = place / "job.sh"
    lines = [f"{name}) {end} ;;" for name, end in ENDS.items()]
    begin, finish = f"echo begun >> {place}/$1", f"prepare|distances) touch {place}/done/$1 ;;"
    text = "\n".join([begin, "case ${1#column-} in", finish, *lines, "esac"])
    write_atomic(script, text.encode())
    stage = {"threads": 1, "runtime": HOUR}
    settings = {
        "needs": plan.needs, "priorities": {},
        "folder": str(tmp_path), "program": ["sh", str(script)],
        "resources": dict.fromkeys(STAGES, stage),
    }  # fmt: skip
    file = place / workflow.FILE
    file.write_text(json.dumps({place.name: settings}))
    command = [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(workflow.WORKFLOW)]
    words = ["--directory", str(place.parent), "--cores", "1", "--retries", "2", "--keep-going"]
    done = run([*command, *words], **{workflow.JOBS: str(file)})
    assert done.returncode == 1, done.stderr
    begun = {name: len((place / f"column-{name}").read_text().split()) for name in ENDS}
    assert begun == {"user-error": 1} | dict.fromkeys([*ENDS][1:], 3), done.stderr
    job_and_minutes = r"wildcards: grid=\S+, job=column-(\S+)\n.*?runtime=(\d+)"
    asked = re.findall(job_and_minutes, done.stderr, re.S)
    minutes = {name: [int(runtime) for each, runtime in asked if each == name] for name in ENDS}
    assert minutes == {n: [HOUR, 2 * HOUR, 3 * HOUR] for n in ENDS} | {"user-error": [HOUR, 5, 5]}
    shown = dict(job_states.failures(plan))
    assert job_states.is_done(plan.place, "prepare") and "prepare" not in shown
    assert shown["column-user-error"].startswith("column-user-error failed (exit code 2)")
    assert "resumes from its last checkpoint" in shown["column-preempted"]
    assert "was killed (SIGKILL), as the kernel does when" in shown["column-killed"]
    left = "column-left ended without a result (exit code 0)\n  last message: goodbye\n"
    assert shown["column-left"].startswith(left)
    assert all(f"{place}/logs/{job}.log" in text for job, text in shown.items())
    (tmp_path / "store").mkdir()
    job_states.begin(plan)  # the next command tries all of them again
    counted = Counter(state.state for state in job_states.read_jobs(plan).values())
    assert counted == {WAITING: len(ENDS) + 1, FINISHED: 2}
    (tmp_path / "store").rmdir()
    job_states.begin(plan)
    assert not job_states.is_done(plan.place, "prepare"), "a marker without a store is nothing"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (0, "ended without a result (exit code 0)"),
        (75, "was ended by a signal during training"),
        (137, "was killed (SIGKILL), as the kernel does when memory runs out"),
        (143, "was killed (SIGTERM)"),
        (255, "failed (exit code 255)"),
        (128, "failed (exit code 128)"),
    ],
)
def test_an_exit_code_is_told(code, how, folder, tmp_path):
    """Codes above 128 need not be those of signals: `127 is not a valid Signals` was all."""
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    (plan.place.path / "logs").mkdir()
    (plan.place.path / "logs" / f"{JOB}.log").write_text("goodbye\n\n")
    state(plan.place, BEGUN, Ended(code=code))
    ((job, text),) = job_states.failures(plan)
    assert job == JOB and text.startswith(f"{JOB} {how}") and f"logs/{JOB}.log" in text
    assert read_job(plan.place, JOB).attempts[0].failure.startswith(how)


def stopped(plan: Plan, log: str = "", scheduler: slurm.Scheduler | None = None) -> str:
    """What a campaign says whose workflow fails once its jobs have ended. log: Snakemake's."""
    words, where = ["/bin/sh", "-c", 'echo "$0"; exit 1', log], Site("cpu", (), 1, scheduler)
    with pytest.raises(CampaignError) as error:
        workflow.run_snakemake(words, [plan], where, {"PATH": "/usr/bin:/bin"})
    return str(error.value)


def of_slurm(patch: pytest.MonkeyPatch) -> slurm.Scheduler:
    """The scheduler of a Slurm that is not there, so that no job is cancelled."""
    patch.setattr(slurm.Scheduler, "cancel", lambda *_: None)
    return object.__new__(slurm.Scheduler)


def test_slurms_state_of_a_killed_job_is_told(folder, tmp_path, monkeypatch):
    """Its own words, and where it has no accounting what the job's output says of memory."""
    plan, output = campaigns.planned(folder, f"runs={tmp_path}"), tmp_path / "4.log"
    begun = Begun(node="here", process=1, scheduler="slurm", queued_as="17")
    for status, text, end, reason in (
        ("TIMEOUT", "", Ended(code=137), "was ended by Slurm: TIMEOUT (give more hours by --time)"),
        ("TIMEOUT", "", Ended(code=75, error="stopped"), "was ended by Slurm: TIMEOUT (give more"),
        ("FAILED", "Exceeded job memory limit", Ended(), "was ended by Slurm: OUT_OF_MEMORY (give"),
        ("FAILED", "error: x", Ended(code=137), "was killed (SIGKILL), as the kernel does when"),
        ("FAILED", "error: x", Ended(), "was ended by Slurm: it gives no reason"),
        ("FAILED", "error: x", Ended(error="no GPU"), "failed"),
    ):
        output.write_text(f"slurmstepd: error: {text}\n")
        job = f"JobId=17 JobName=x\n   JobState={status} Reason=x\n   StdOut={output}\n"
        monkeypatch.setattr(slurm, "answer", lambda *_, job=job: job)
        state(plan.place, Queued(), begun, end)
        stopped(plan, scheduler=of_slurm(monkeypatch))
        assert read_job(plan.place, JOB).failure.how.startswith(reason)


def test_only_the_end_of_a_jobs_output_is_read(tmp_path, monkeypatch):
    output = tmp_path / "4.log"
    with output.open("wb") as file:
        file.seek(2**40)  # bytes that no disk holds
        file.write(b"slurmstepd: error: Detected 1 oom_kill event\n")
    job = f"JobId=17\n   JobState=FAILED Reason=x\n   StdOut={output}\n"
    monkeypatch.setattr(slurm, "answer", lambda *_: job)
    assert slurm.Scheduler.end_of("17").startswith("OUT_OF_MEMORY")


def test_a_job_that_slurm_cancelled_before_it_began_is_told(folder, tmp_path, monkeypatch):
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    monkeypatch.setattr(slurm, "answer", lambda *_: "")
    log = (
        "Error in rule column:\n    message: SLURM-job '17' failed, SLURM status is: 'CANCELLED'. "
        "Detailed failure reason unavailable (status command is not 'sacct').\n    jobid: 2\n"
        f"    input: x/done/prepare\n    output: {plan.place.name}/done/{JOB}\n    log: x\n"
    )
    (plan.place.path / "logs").mkdir()
    (plan.place.path / "logs" / f"{JOB}.log").write_text("of an earlier run")
    job_states.begin(plan)
    shown = stopped(plan, log, scheduler=of_slurm(monkeypatch))
    how = "was ended by Slurm: CANCELLED (somebody, or the cluster, cancelled it)"
    assert f"{JOB} {how}\n" in shown


def test_jobs_that_were_killed_are_failed_once_nothing_is_at_work(folder, tmp_path):
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    state(plan.place, BEGUN)
    assert f"{JOB} was killed\n  alone: " in stopped(plan)
    assert [*job_states.failures(plan)] == [(JOB, f"{JOB} was killed")]
    assert read_job(plan.place, "prepare").state == WAITING


def test_a_report_that_lacks_something_lets_the_next_run_look_for_it(folder, tmp_path, monkeypatch):
    """The columns' markers say that all is there; `run again` would end in the same error."""
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    for name in ("prepare", "column-few"):
        (plan.place.path / "done" / name).mkdir(parents=True)

    def lacking(*_: object) -> None:
        raise FileNotFoundError("few was not evaluated; run the campaign again")

    monkeypatch.setattr(finish, "finish", lacking)
    with pytest.raises(FileNotFoundError, match="run the campaign again"):
        words = ["report", "--plan", str(plan.place.plan)]
        job.run(job.parser().parse_args(words))
    assert not (plan.place.path / "done").exists()


def test_progress_counts_jobs_by_their_events_and_markers(tmp_path):
    place = PlanFolder(tmp_path)
    job_states.set_done(place, "prepare")
    for name, events in (("s", [BEGUN, Ended(code=2)]), ("t", [BEGUN]), ("u", [Queued()])):
        for event in events:
            append_event(place, name, event)
    numbers = Counter(read_job(place, name).state for name in ("prepare", *"stu", REPORT))
    assert job_states.text(numbers, "x") == "1 running, 2 waiting, 1 done, 1 failed; x"


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
    append_event(PlanFolder(place), REPORT, Sealed(files={name: file_hash(outside)}))
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
