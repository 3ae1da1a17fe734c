"""Campaigns at work: one a folder, and no job that outlives its campaign."""

import argparse
import os
import subprocess
import time

import campaigns
import pytest

from engine.commands import job as engine_job
from engine.errors import CampaignError
from engine.grid import progress, workflow
from engine.report import finish as last_job
from engine.store.artifacts import Store


def test_second_campaign_on_a_folder_is_refused_by_name(tmp_path):
    with workflow.locked(tmp_path):
        named = rf"\(process {os.getpid()} on .*\) is at work in {tmp_path}"
        with pytest.raises(CampaignError, match=named), workflow.locked(tmp_path):
            pass
        with workflow.locked(tmp_path / "other"):
            pass
        child = subprocess.Popen(["sleep", "5"])
    with workflow.locked(tmp_path):  # free again: a child that lives on does not hold the folder
        child.kill()
        child.wait()


def test_a_report_that_lacks_something_lets_the_next_run_look_for_it(folder, tmp_path, monkeypatch):
    """The columns' markers say that all is there; `run again` would end in the same error."""
    plan = campaigns.planned(folder, f"runs={tmp_path}")
    for name in ("prepare", "column-few"):
        (plan.place / "done" / name).mkdir(parents=True)

    def finish(*_: object) -> None:
        raise FileNotFoundError("few was not evaluated; run the campaign again")

    monkeypatch.setattr(last_job, "finish", finish)
    with pytest.raises(FileNotFoundError, match="run the campaign again"):
        engine_job.run(argparse.Namespace(job="report", plan=plan.path, ranks=1))
    assert not (plan.place / "done").exists()


def test_only_old_left_overs_of_the_engine_go(tmp_path):
    """Other campaigns may be at work in the same store, and users keep folders of theirs there."""
    store, elsewhere = tmp_path / "runs" / "store", tmp_path / "home"
    name = ".ewc-few-0123456789abcdef.01234567"
    old, young = store / "cells" / name, store / "cells" / name.replace("few", "tinted")
    others = [store / "mine" / ".git", store / "cells" / ".cache", elsewhere / name]
    for path in (old, young, *others):
        path.mkdir(parents=True)
    (store / "features").symlink_to(elsewhere)
    others.append(store / "cells" / name.replace("few", "link"))
    others[-1].symlink_to(elsewhere / name)
    long_ago = time.time() - 61
    for path in (old, *others):
        os.utime(path, (long_ago, long_ago))
    Store(store).remove_left_overs(60)
    assert not old.exists() and all(path.exists() for path in (young, *others))


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
    states = progress.counts(tmp_path, ["prepare", "column-s", "column-t", "report"])
    assert progress.text(states, "x") == "1 running, 1 waiting, 1 done, 1 failed; x"
