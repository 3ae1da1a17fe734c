"""Jobs that do shares of a column's work: which there are, and that the tables stay the same."""

import contextlib
import dataclasses
import itertools
import os
import signal
import sys

import psutil
import pytest

from engine import cli
from engine.campaigns import job_states, status
from engine.campaigns.holdings import StartedCampaign
from engine.campaigns.plan import (
    DISTANCES,
    EVALUATE,
    PREPARE,
    REPORT,
    TRAIN,
    Plan,
    plan_to_json,
    read_plan,
    stage_of,
)
from engine.commands import job
from helpers import campaigns
from helpers.campaigns import plan_of, started
from helpers.processes import run, until

USERS = """
import os, sys
from engine.methods.fine_tune import Method, Recipe

with open(os.environ["RAN"], "a") as file:
    print(*sys.argv[1:2], file=file)
"""


def shared(plan: Plan, jobs: int) -> Plan:
    return dataclasses.replace(plan, jobs_per_column=jobs)


def trained(plan: Plan) -> list[list[str]]:
    """The rows of each job that trains cells of the first column."""
    names, first = plan.methods * plan.seeds, plan.columns[0]
    shares = [share for share in plan.shares.values() if share.column == first and share.cells]
    return [[names[number] for number in share.cells] for share in shares]


def test_a_plan_of_one_job_per_column_is_as_ever(folder):
    plan = plan_of(folder / "shapes.yaml")
    columns = [column.job for column in plan.columns]
    assert plan.jobs == [PREPARE, *columns, DISTANCES, REPORT] and not plan.shares
    assert [*plan.cells_of(columns[0])] == [0, 1, 2]


def test_jobs_need_what_they_read(folder):
    plan = shared(plan_of(folder / "shapes.yaml", "downstreams=[few]"), 2)
    (fine_tune,) = (job for job in plan.jobs if stage_of(job) == TRAIN)
    evaluations = ["evaluate-1of2-few", "evaluate-2of2-few"]
    assert plan.needs == {
        PREPARE: [],
        fine_tune: [PREPARE],
        **{job: [PREPARE, fine_tune] for job in evaluations},
        "column-few": [PREPARE, fine_tune, *evaluations],
        DISTANCES: [PREPARE],
        REPORT: [DISTANCES, "column-few"],
    }
    assert [*plan.cells_of(fine_tune)] == [0, 1], "a head takes seconds"
    assert [*plan.cells_of("column-few")] == [2], "WiSE-FT trains nothing"
    assert not plan.cells_of(evaluations[0])


def test_groups_have_about_equal_work_and_share_no_training():
    plan = plan_of("imagenet_rib")
    every = ["fine_tune", "linear_probe", "visual_prompt", "lora", "ewc", "lwf", "lp_ft"]
    one = trained(shared(plan, 64))
    assert sorted(itertools.chain(*one)) == sorted(every) and len(one) == 6
    assert sum("linear_probe" in group for group in one) == 1
    work = {name: 2 if name in ("visual_prompt", "lora") else 3 for name in every}
    work["linear_probe"] = 0
    loads = [sum(work[name] for name in group) for group in trained(shared(plan, 4))]
    assert sum(loads) == 16 and max(loads) <= 5 and len(loads) == 4
    # The released LP trains by steps, and LP-FT starts from it.
    released = trained(shared(plan_of("imagenet_rib_released"), 64))
    assert [group for group in released if "lp_ft" in group] == [["linear_probe", "lp_ft"]]
    # The second seed of Model Stock's member is trained by no other row.
    stock = shared(plan_of("imagenet_rib_plus", "methods=[fine_tune,model_stock]"), 64)
    assert sorted(trained(stock)) == [["fine_tune"], ["model_stock"]]
    # A row's soup needs trainings of others: theirs make it wait.
    alone = trained(shared(plan_of("imagenet_rib", "methods=[wise_ft,soup]"), 64))
    assert len(alone) == 1 or all(alone)


def test_what_a_campaign_tries_its_columns_job_evaluates(folder):
    plan = shared(plan_of(folder / "shapes.yaml", "param_grid={optimizer.lr: [0.1, 0.2]}"), 4)
    assert {stage_of(job) for job in plan.shares} == {TRAIN}


def test_jobs_have_other_names_in_groups_of_other_sizes(folder):
    plan = plan_of("imagenet_rib", f"runs={folder / 'none'}")
    jobs = [job for count in (2, 3, 4, 8) for job in shared(plan, count).shares]
    assert len(jobs) == len(set(jobs))
    assert max(map(len, jobs)) < 100


@pytest.mark.parametrize("jobs", [2, 8])
def test_tables_are_those_of_one_job_per_column(jobs, folder, finished, tmp_path, monkeypatch):
    """Byte for byte, and a column's own job trains and evaluates no model again."""
    ran = campaigns.in_this_process(monkeypatch)
    do, store, work = campaigns.do, tmp_path / "runs" / "store", set()

    def made() -> set[tuple[str, str, int]]:
        files = [*store.glob("cells/*/weights.safetensors"), *store.glob("predictions/*/done.json")]
        return {(*path.parts[-3:-1], path.stat().st_mtime_ns) for path in files}

    def watched(plan: Plan, name: str) -> None:
        before = made()
        do(plan, name)
        work.update((stage_of(name), folder) for folder, *_ in made() - before)

    monkeypatch.setattr(campaigns, "do", watched)
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={tmp_path / 'runs'}"]
    assert cli.main([*words, "--jobs-per-column", str(jobs)]) == 0
    counts = {stage: sum(stage_of(job) == stage for job in ran) for stage in (TRAIN, EVALUATE)}
    assert counts == {TRAIN: 3, EVALUATE: 3 * jobs}
    assert work == {
        (PREPARE, "cells"), (PREPARE, "predictions"),
        (TRAIN, "cells"), (EVALUATE, "predictions"),
    }  # fmt: skip
    for name in ("accuracy.csv", "mri.csv"):
        file = f"runs/shapes/report/{name}"
        expected = (finished / "shapes" / "report" / name).read_bytes()
        assert (tmp_path / file).read_bytes() == expected


def test_a_campaign_goes_on_with_another_number_of_jobs(
    folder, finished, tmp_path, monkeypatch, capsys
):
    """Columns that are done stay so; what is lost of others' work, a column's job makes."""
    runs = campaigns.unfinished(finished, tmp_path / "runs")
    ran = campaigns.in_this_process(monkeypatch)
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={runs}", "--jobs-per-column", "2"]
    (place,) = runs.glob("shapes/plans/*")
    (place / "done" / "train-1of2-fine_tune+linear_probe-few").touch()
    missing = ["evaluate-1of2-few", "evaluate-2of2-few", "column-few", REPORT]
    assert cli.main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "4 jobs would run" in shown and all(f"\n  {job} " in shown for job in missing)
    assert cli.main(words) == 0
    assert ran == missing
    accuracy = "shapes/report/accuracy.csv"
    assert (runs / accuracy).read_bytes() == (finished / accuracy).read_bytes()


def test_status_counts_the_cells_of_every_job(folder, tmp_path):
    plan = shared(plan_of(folder / "shapes.yaml", f"runs={tmp_path}", "downstreams=[few]"), 2)
    plan.place.path.mkdir(parents=True)
    plan.place.plan.write_bytes(plan_to_json(plan))
    assert read_plan(plan.place).jobs == plan.jobs
    job_states.begin(plan)

    def cells() -> tuple[int, int]:
        return status.read_status(StartedCampaign(plan.place, None), 0.0).cells

    (training,) = (job for job in plan.jobs if stage_of(job) == TRAIN)
    assert cells() == (0, 3)
    job_states.advance(plan.place, training, 1, 2)
    assert cells() == (1, 3)
    job_states.set_done(plan.place, training)
    job_states.advance(plan.place, "column-few", 1, 2)
    assert cells() == (3, 3)
    states = job_states.read_jobs(plan)
    sets = len(plan.recipe.dataset.evaluated_sets)
    assert job_states.steps(plan, states) == (sets + 1) + 2 + 2 * 1 + 2 + 1 + 1


@pytest.mark.slow
def test_a_killed_training_is_tried_again_alone(folder, grid, forked, tmp_path, monkeypatch):
    runs, killed = tmp_path / "runs", "train-2of4-l2sp-few"
    text = (folder / "shapes.yaml").read_text()
    (tmp_path / "shapes.yaml").write_text(f"{text}  l2sp: {{}}\n")
    words = (f"runs={runs}", "downstreams=[few]", "methods=[fine_tune,l2sp]")
    options = ("--jobs-per-column", "4", "--cores", "1")

    def done() -> set[str]:
        return {path.name for path in runs.glob("*/plans/*/done/*")}

    def at_work() -> list[int]:
        processes = psutil.process_iter(["cmdline"])
        words = {each.pid: each.info["cmdline"] or [""] for each in processes}
        of_runs = (number for number, line in words.items() if str(runs) in " ".join(line))
        programs = (number for number in of_runs if words[number][3:4] == [job.__name__])
        return [number for number in programs if words[number][-1] == killed]

    with started(tmp_path, *words, *options, cwd=tmp_path, **forked) as process:
        until(at_work, "the job is at work", at_work=process)
        for number in at_work():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        shown = process.communicate(timeout=900)[0]
    assert process.returncode == 2 and f"{killed} was killed (SIGKILL)" in shown, shown[-3000:]
    before = done()
    assert PREPARE in before and killed not in before
    ran = campaigns.in_this_process(monkeypatch)
    assert cli.main(["campaign", str(tmp_path / "shapes.yaml"), *words, *options]) == 0
    assert killed in ran and not before & {*ran} and ran[-1] == REPORT


@pytest.mark.slow
def test_a_users_file_runs_in_the_job_of_its_cell_alone(folder, forked, tmp_path):
    """And in a process of the column's, which makes its cell if it is lost."""
    (tmp_path / "mine.py").write_text(USERS)
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: Mine\nmodule: mine.py\n")
    log, words = tmp_path / "ran", (f"runs={tmp_path / 'runs'}", "downstreams=[few]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAN", os.devnull)
        methods = f"methods=[{tmp_path}/mine.yaml,fine_tune,wise_ft]"
        plan = shared(campaigns.planned(folder, *words, methods), 4)
        plan.place.plan.write_bytes(plan_to_json(plan))
        campaigns.do(plan, PREPARE)
    made = []
    for name in (*plan.shares, "column-few"):
        command = [sys.executable, "-m", "engine.commands.job", name]
        done = run([*command, "--plan", str(plan.place.plan)], **forked, RAN=str(log))
        assert done.returncode == 0, done.stderr[-3000:]
        assert job_states.is_done(plan.place, name)
        made.append({path.name[:5] for path in plan.place.store.glob("cells/*-few-*")})
    mine = "train-2of4-mine-few"
    assert [*plan.shares][:2] == ["train-1of4-fine_tune-few", mine]
    assert {*log.read_text().split()} == {mine, "column-few"}
    assert made[:2] == [{"fine_"}, {"fine_", "mine-"}]
