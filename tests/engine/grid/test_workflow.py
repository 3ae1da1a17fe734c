"""Campaigns at work: one a folder, and no job that outlives its campaign."""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import campaigns
import pytest
import torch
from campaigns import SETS

from engine import recipe
from engine.commands import job as engine_job
from engine.errors import CampaignError
from engine.evaluation import features, passes
from engine.grid import campaign, jobs, outcomes, progress, workflow
from engine.report import finish as last_job
from engine.store.artifacts import Store

folder = campaigns.folder


def test_second_campaign_on_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with workflow.locked(tmp_path):
        named = rf"\(process {os.getpid()} on .*\) is at work in {tmp_path}"
        with pytest.raises(CampaignError, match=named), workflow.locked(tmp_path):
            pass
        with workflow.locked(tmp_path / "other"):
            pass
    with workflow.locked(tmp_path):  # free again
        pass


def test_a_report_that_lacks_something_lets_the_next_run_look_for_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The columns' markers say that all is there; `run again` would end in the same error."""
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 1)
    for name in ("prepare", "column-few"):
        (plan.path.parent / "done" / name).mkdir(parents=True)
    plan.path.write_bytes(campaign.text(plan))
    arguments = argparse.Namespace(job="report", plan=plan.path, ranks=1)

    def finish(*_: object) -> None:
        raise FileNotFoundError("few was not evaluated; run the campaign again")

    monkeypatch.setattr(last_job, "finish", finish)
    with pytest.raises(FileNotFoundError, match="run the campaign again"):
        engine_job.run(arguments)
    assert not (plan.path.parent / "done").exists()


def test_only_old_left_overs_of_the_engine_go(tmp_path: Path) -> None:
    """Other campaigns may be at work in the same store, and users keep folders of theirs there."""
    store, elsewhere = tmp_path / "runs" / "store", tmp_path / "home"
    name = ".ewc-few-0123456789abcdef.01234567"
    old, young = store / "cells" / name, store / "cells" / name.replace("few", "tinted")
    users = [store / "mine" / ".git", store / "cells" / ".cache", elsewhere / ".ssh"]
    for path in (old, young, *users, elsewhere / name, elsewhere / "target"):
        path.mkdir(parents=True)
    (store / "features").symlink_to(elsewhere)
    link = store / "cells" / name.replace("few", "link")
    link.symlink_to(elsewhere / "target")
    long_ago = time.time() - 61
    for path in (old, *users, elsewhere / name, elsewhere / "target"):
        os.utime(path, (long_ago, long_ago))
    Store(store).remove_left_overs(60)
    assert not old.exists() and young.exists()
    assert all(path.exists() for path in (*users, elsewhere / name, elsewhere / "target", link))


def test_markers_without_a_store_are_dropped(folder: Path, tmp_path: Path) -> None:
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 2)
    marker = plan.path.parent / "done" / "column-few"
    marker.parent.mkdir(parents=True)
    marker.touch()
    (tmp_path / "store").mkdir()
    outcomes.begin(plan)
    assert marker.exists()
    (tmp_path / "store").rmdir()
    outcomes.begin(plan)
    assert not marker.exists()


def test_a_run_begins_without_the_logs_of_jobs_that_an_earlier_run_did_not_finish(
    folder: Path, tmp_path: Path
) -> None:
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 2)
    place = plan.path.parent
    (tmp_path / "store").mkdir()
    left = ("done/prepare", "logs/prepare.log", "logs/column-few.log", "logs/column-few.exit")
    for name in left:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    outcomes.begin(plan)
    assert [path.name for path in (place / "logs").iterdir()] == ["prepare.log"]


@pytest.mark.slow
def test_progress_in_a_log_file_is_a_few_lines(folder: Path, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\nfrom pathlib import Path\n"
        "from engine.grid import campaign, progress\n"
        "plan = campaign.read(Path(sys.argv[1]))\n"
        "progress.POLL_S = 0.1\n"
        "process = subprocess.Popen(['sleep', '1'])\n"
        "progress.show(process, [plan])"
    )
    plan = campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 2)
    progress.advance(plan.path, "column-few", 2, 4)
    progress.advance(plan.path, "prepare", 1, 5, "preparing few")
    progress.advance(plan.path, "train-few", 3, 4)  # of another version: no job of this plan
    plan.path.write_bytes(campaign.text(plan))
    command = [sys.executable, "-c", code, str(plan.path)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    states = [line for line in process.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert "5 waiting" in states[0]
    total = 5 + 3 * 4 + 1
    assert 1 <= len(states) <= 3 and f"{total}/{total}" in states[-1] and "5 waiting" in states[-1]
    assert sum(state.done for state in progress._states(plan)) == 3


def test_progress_counts_jobs_by_their_markers_and_logs(tmp_path: Path) -> None:
    for name, content in (
        ("done/prepare", ""),
        ("logs/prepare.log", "all is there\n"),
        ("logs/column-s.log", "error: x\n"),
        ("logs/column-s.exit", "2\n"),
        ("logs/column-t.log", ""),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    jobs = ["prepare", "column-s", "column-t", "report"]
    states = progress.counts(tmp_path, jobs)
    assert states == {"done": 1, "failed": 1, "running": 1, "waiting": 1}
    assert progress.text(states, "x") == "1 running, 1 waiting, 1 done, 1 failed; x"
    assert progress.text(progress.counts(tmp_path / "new", jobs), "") == "4 waiting"


def test_prepare_tells_what_it_is_at(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[tuple] = []
    monkeypatch.setattr(progress, "advance", lambda path, *state: states.append(state))
    monkeypatch.setattr(passes, "evaluate", lambda *_: None)
    monkeypatch.setattr(features, "stored", lambda *_: None)
    cell = recipe.load(str(folder / "shapes.yaml"), method="fine_tune")
    builder = MagicMock(recipe=cell, run=MagicMock(recipe=cell))
    monkeypatch.setattr(jobs, "builders", lambda *_: [builder])
    jobs.prepare(
        campaign.plan(str(folder / "shapes.yaml"), [f"runs={tmp_path}"], 2), torch.device("cpu")
    )
    steps = ["tiny", "upstream", *SETS]
    assert states == [
        *(("prepare", step, 5, f"preparing {what}") for step, what in enumerate(steps)),
        ("prepare", 5, 5, ""),
    ]


def test_lock_file_is_not_inherited(tmp_path: Path) -> None:
    """A child that lives on must not hold the folder."""
    with workflow.locked(tmp_path):
        child = subprocess.Popen(["sleep", "5"])
        lock = (tmp_path / ".lock").open("a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    child.kill()
    child.wait()
