"""`rib status` and `rib gc`: what files beside a plan and in a store say, of made campaigns."""

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
from engine.campaigns import attempts, holdings, job_states, record
from engine.campaigns.plan import Plan, make_plan, plan_to_json
from engine.campaigns.status import Status
from engine.commands.status import lines
from engine.machine.files import write_atomic
from engine.recipe import overrides
from engine.store.artifacts import Store
from loaders.files import locks

SETS = "dataset.sets=[twemoji,openmoji]"


def begun(runs: Path, *words: str) -> Plan:
    words = (f"runs={runs}", SETS, "methods=[fine_tune,soup]", "probe=0", *words)
    plan = make_plan("emoji", overrides.parsed(words))
    write_atomic(plan.place.plan, plan_to_json(plan))
    return plan


def finished(plan: Plan, artifacts: list[str]) -> None:
    values = {"sets": list(plan.sets), "downstreams": [], "upstream": "upstream", "methods": {}}
    values |= {"settings": {}, "credits": [], "contact_sheet": "", "holdout": True}
    values |= {
        "rows": [],
        "benchmark": plan.recipe.dataset.name,
        "version": 1,
        "distances": None,
        "evaluations": [],
        "files": {},
        "artifacts": artifacts,
    }
    record.write(plan.place, record.Record(plan.name, **values))


def artifact(runs: Path, kind: str, label: str, size: int) -> str:
    def build(folder: Path) -> None:
        (folder / "x").write_bytes(bytes(size))

    made = Store(runs / "store").make(kind, label, {"label": label}, build)
    return f"{kind}/{made.name}"


def status(runs: Path, capsys) -> str:
    assert cli.main(["status", str(runs)]) == 0
    return capsys.readouterr().out


def job(plan: Plan, name: str, done: int, minutes: float, error: str = "") -> None:
    """A job that began some minutes ago; with an error one that failed half a minute later."""
    began, total = time.time() - 60 * minutes, 5
    log = plan.place.path / job_states.LOGS / f"{name}{job_states.LOG}"
    log.parent.mkdir(exist_ok=True)
    log.touch()
    job_states.advance(plan.place, name, done, total, f"training on {name}")
    ended = began + 30 if error else None
    attempt = attempts.Attempt(name, name.partition("-")[0], began, ended, "cpu", error=error)
    attempts._write(plan.place, f"{name}-{began:.0f}.json", attempt)
    if error:
        log.with_suffix(job_states.EXIT).write_text("1")


@pytest.fixture
def at_work(tmp_path) -> Iterator[Plan]:
    plan = begun(tmp_path)
    job(plan, "prepare", 4, 30)
    (plan.place.path / job_states.DONE).mkdir()
    (plan.place.path / job_states.DONE / "prepare").touch()
    job(plan, "column-twemoji", 2, 20)
    job(plan, "column-openmoji", 0, 10, error="no room\nbelow")
    code = "import sys, time; from pathlib import Path; from loaders import locks\n"
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
    assert "jobs: 1 running, 1 waiting, 1 done, 1 failed; training on column-" in shown
    # Six steps took 30 minutes, and the campaign has 2 + 2 + 3 * 2 + 1.
    assert job_states.steps(at_work) == 11 and "about 25 min left, at the speed so far" in shown
    assert "last error: column-openmoji: no room\n" in shown


def test_time_left_counts_no_job_whose_results_another_campaign_had(tmp_path):
    plan = begun(tmp_path)
    job_states.set_done(plan.place, plan.columns[0].job)
    assert job_states.steps(plan) == 11 - 3
    job(plan, plan.columns[0].job, 3, 1)  # it ran after all
    assert job_states.steps(plan) == 11


def test_cells_of_a_seed_probe_are_named():
    for state, shown in (("finished", "90 cells"), ("stopped", "31 of 90 cells")):
        status = Status("emoji", "plan", state, 0.0, Counter(), (31, 90), probe=10)
        assert lines(status, 60.0)[0].endswith(f", {shown} (10 of the seed probe)")


def test_a_campaign_whose_process_died_is_stopped(at_work, tmp_path, capsys):
    at_work.place.lock.unlink()
    at_work.place.lock.write_text("process 1 on nowhere")  # left by a kill
    shown = status(tmp_path, capsys)
    assert "stopped, last job started" in shown and "left, at" not in shown
    assert "jobs: 1 waiting, 1 done, 2 failed\n" in shown


def test_what_a_link_leads_to_is_left_out_and_no_pipe_is_waited_for(tmp_path, capsys):
    other, ours = begun(tmp_path / "other"), begun(tmp_path / "runs")
    (tmp_path / "runs" / "linked").symlink_to(other.place.campaign)
    os.mkfifo(ours.place.lock)
    shown = status(tmp_path / "runs", capsys)
    assert shown.count("stopped") == 1 and "linked" not in shown


def test_only_what_no_record_needs_goes(tmp_path, capsys):
    needed, alone = (artifact(tmp_path, "cells", name, 3000) for name in ("a", "b"))
    features = artifact(tmp_path, "features", "c", 500)
    plan, other = begun(tmp_path), begun(tmp_path, "seed=1")
    finished(plan, [needed])
    shown = status(tmp_path, capsys)
    names = plan.place.campaign.name, other.place.campaign.name
    assert f"{names[0]}  finished" in shown and f"{names[1]}  stopped" in shown
    sizes = {
        name: holdings.size_of(tmp_path / "store" / name) for name in (needed, alone, features)
    }
    assert f"{sizes[needed] / 1000:.3g} kB  for {plan.place.campaign.name}\n" in shown
    nobodys = (sizes[alone] + sizes[features]) / 1000
    assert f"{nobodys:.3g} kB  no finished campaign needs it" in shown

    def gc(*words: str) -> str:
        assert cli.main(["gc", str(tmp_path), *words]) == 0
        return capsys.readouterr().out

    def left() -> set[str]:
        paths = (tmp_path / "store").glob("*/*/done.json")
        return {str(path.parent.relative_to(tmp_path / "store")) for path in paths}

    assert "--yes deletes it" in gc() and left() == {needed, alone, features}
    assert f"are kept while {other.place.campaign.name} is unfinished" in gc("--yes")
    assert left() == {needed, alone}
    finished(other, [needed])
    assert alone.partition("/")[2] in gc() and left() == {needed, alone}
    assert "deleted 3." in gc("--yes") and left() == {needed}
    assert "nothing was deleted" in gc("--yes")


def test_what_a_record_without_its_plan_needs_stays(tmp_path, capsys):
    needed = artifact(tmp_path, "cells", "a", 3000)
    plan = begun(tmp_path)
    finished(plan, [needed])
    plan.place.plan.unlink()
    assert cli.main(["gc", str(tmp_path), "--yes"]) == 0
    assert "nothing was deleted" in capsys.readouterr().out
    assert (tmp_path / "store" / needed).is_dir()


def test_nothing_goes_while_a_training_is_at_work(at_work, tmp_path, capsys):
    features = artifact(tmp_path, "features", "c", 500)
    assert cli.main(["gc", str(tmp_path), "--yes"]) == 2
    assert "is using" in capsys.readouterr().err
    assert (tmp_path / "store" / features).is_dir()


def test_a_damaged_plan_is_named(tmp_path, capsys):
    plan = begun(tmp_path)
    plan.place.plan.write_text(json.dumps({"name": "x"}))
    assert f"{plan.place.campaign.name}  damaged: {plan.place.plan}" in status(tmp_path, capsys)


def test_a_lock_that_nobody_holds_is_seen(tmp_path):
    assert not locks.is_held(tmp_path / "lock")
    with locks.held(tmp_path / "lock", print):
        assert locks.is_held(tmp_path / "lock")
    assert not locks.is_held(tmp_path / "lock")
