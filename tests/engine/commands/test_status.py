"""`rib status`: what files beside a plan and in a store say, of made campaigns."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import cli
from engine.campaigns import holdings, job_states
from engine.campaigns.events import Begun, Ended, Progress, append_event
from engine.campaigns.job_states import FINISHED, RUNNING
from engine.campaigns.plan import Column, Plan
from engine.campaigns.status import Status
from engine.commands.status import lines
from engine.measures.rows import Setting
from helpers.runs_folders import artifact, begun, finish


def status(runs: Path, capsys) -> str:
    assert cli.main(["status", str(runs)]) == 0
    return capsys.readouterr().out


def job(plan: Plan, name: str, done: int, minutes: float, error: str = "") -> None:
    """A job that began some minutes ago; with an error one that failed half a minute later."""
    began, total = time.time() - 60 * minutes, 5
    append_event(plan.place, name, Begun(node="here", process=1, at=began))
    doing = f"training on {name}"
    append_event(plan.place, name, Progress(done=done, total=total, doing=doing, at=began + 1))
    if error:
        append_event(plan.place, name, Ended(error=error, code=1, at=began + 30))


@pytest.fixture
def at_work(tmp_path) -> Iterator[Plan]:
    plan = begun(tmp_path)
    job(plan, "prepare", 4, 30)
    append_event(plan.place, "prepare", Ended(at=time.time()))
    job_states.set_done(plan.place, "prepare")
    job(plan, "column-twemoji", 2, 20)
    job(plan, "column-openmoji", 0, 10, error="no room\nbelow")
    code = "import sys, time; from pathlib import Path; from loaders.files import locks\n"
    code += "with locks.held(Path(sys.argv[1]), print): print('held', flush=True); time.sleep(99)"
    words = [sys.executable, "-c", code, str(plan.place.lock)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        yield plan
        process.kill()


def test_a_campaign_at_work_shows_jobs_cells_time_left_and_the_last_error(at_work, capsys):
    shown = status(at_work.place.runs, capsys)
    name = at_work.place.campaign.name
    assert f"{name}  running, last job started 10 min ago, 2 of 4 cells" in shown
    assert "jobs: 1 running, 2 waiting, 1 done, 1 failed; training on column-" in shown
    # Six steps took 30 minutes, and the campaign has 2 + 2 + 3 * 2 + 1 + 1.
    assert steps(at_work) == 12 and "about 30 min left, at the speed so far" in shown
    assert "last error: column-openmoji: failed (exit code 1): no room\n" in shown
    # It was finished once, and lacks something.
    finish(at_work, [])
    job_states.forget(at_work.place)
    assert f"{name}  running, last job started 10 min ago" in status(at_work.place.runs, capsys)
    # What is queued again starts at 0.
    job_states.begin(at_work)
    shown = status(at_work.place.runs, capsys)
    assert "jobs: 5 waiting\n" in shown
    assert job_states.steps_done(job_states.read_jobs(at_work).values()) == 0


def test_a_campaign_of_many_jobs_is_watched_without_opening_their_files_again(
    tmp_path, monkeypatch
):
    """What a read opens depends on what happened, not on the number of jobs."""
    plan = begun(tmp_path)
    columns = [Column("twemoji", Setting({"seed": seed})) for seed in range(100)]
    plan = dataclasses.replace(plan, columns=columns)
    reader, opened, os_open = job_states.JobReader(plan), [], os.open

    def counted(path, *arguments, **options):
        opened.append(str(path))
        return os_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", counted)

    def read() -> int:
        opened.clear()
        states = reader.read()
        count = len(opened)
        assert states == job_states.read_jobs(plan)
        return count

    for column in columns:
        job(plan, column.job, 1, 20)
    assert read() > 100, "the first time, each"
    unchanged = read()
    assert unchanged < 30 and not any(".jsonl" in name for name in opened[:unchanged])
    append_event(plan.place, columns[7].job, Progress(done=2, total=5))
    assert unchanged < read() < unchanged + 30
    job_states.set_done(plan.place, columns[8].job)
    assert read() < unchanged + 30 and reader.read()[columns[8].job].state == FINISHED
    job_states.forget(plan.place)
    read()
    assert reader.read()[columns[8].job].state == RUNNING


def steps(plan: Plan) -> int:
    return job_states.steps(plan, job_states.read_jobs(plan))


def test_time_left_counts_no_job_whose_results_another_campaign_had(tmp_path):
    plan = begun(tmp_path)
    job_states.set_done(plan.place, plan.columns[0].job)
    assert steps(plan) == 12 - 3
    job(plan, plan.columns[0].job, 3, 1)  # it ran after all
    assert steps(plan) == 12


def test_a_folder_of_the_future_has_no_negative_age():
    late = Status("emoji", "plan", "finished", 1e9, Counter(), (90, 90))
    assert lines(late, 60.0) == ["emoji  finished in the future, by this machine's clock, 90 cells"]


def test_cells_of_seed_replicates_are_named():
    for state, shown in (("finished", "90 cells"), ("stopped", "31 of 90 cells")):
        status = Status("emoji", "plan", state, 0.0, Counter(), (31, 90), replicates=10)
        assert lines(status, 60.0)[0].endswith(f", {shown} (10 of seed replicates)")


def test_a_campaign_whose_process_died_is_stopped(at_work, tmp_path, capsys):
    at_work.place.lock.unlink()
    at_work.place.lock.write_text("process 1 on nowhere")  # left by a kill
    shown = status(tmp_path, capsys)
    assert "stopped, last job started" in shown and "left, at" not in shown
    assert "jobs: 2 waiting, 1 done, 2 failed\n" in shown


def test_what_a_link_leads_to_is_left_out_and_no_pipe_is_waited_for(tmp_path, capsys):
    other, ours = begun(tmp_path / "other"), begun(tmp_path / "runs")
    (tmp_path / "runs" / "linked").symlink_to(other.place.campaign)
    os.mkfifo(ours.place.lock)
    shown = status(tmp_path / "runs", capsys)
    assert shown.count("stopped") == 1 and "linked  " not in shown
    assert f"note: {tmp_path / 'runs' / 'linked'} is a link, which is not followed" in shown


def test_the_store_is_shown_by_the_campaigns_that_need_it(tmp_path, capsys):
    needed, alone = (artifact(tmp_path, "cells", name, 3000) for name in ("a", "b"))
    features = artifact(tmp_path, "features", "c", 500)
    plan = begun(tmp_path)
    begun(tmp_path, "other")
    finish(plan, [needed])
    shown = status(tmp_path, capsys)
    assert "emoji  finished" in shown and "other  stopped" in shown
    sizes = {
        name: holdings.size_of(tmp_path / "store" / name) for name in (needed, alone, features)
    }
    assert f"{sizes[needed] / 1000:.3g} kB  for {plan.place.campaign.name}\n" in shown
    nobodys = (sizes[alone] + sizes[features]) / 1000
    assert f"{nobodys:.3g} kB  needed by no finished campaign" in shown


def test_files_may_vanish_while_their_sizes_are_added(tmp_path, capsys, monkeypatch):
    """As when a campaign finishes an artefact, or `rib gc` runs, meanwhile."""
    artifact(tmp_path, "cells", "a", 3000)

    def vanish(path: str) -> os.stat_result:
        Path(path).unlink()
        return lstat(path)

    lstat = os.lstat
    monkeypatch.setattr(os, "lstat", vanish)
    assert "store  0 B" in status(tmp_path, capsys)


def test_a_damaged_plan_is_named(tmp_path, capsys):
    plan = begun(tmp_path)
    plan.place.plan.write_text(json.dumps({"name": "x"}))
    assert f"{plan.place.campaign.name}  damaged: {plan.place.plan}" in status(tmp_path, capsys)
