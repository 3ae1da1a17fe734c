"""A grid whose training and evaluation are jobs of their own: the same files, byte for byte."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import campaigns
import grids
import pytest
import torch
from campaigns import METHODS, SETS

from engine.commands import job as program
from engine.grid import campaign, job_graph, jobs, markers
from engine.grid.campaign import Plan
from engine.grid.job_graph import Job
from engine.report import finish
from engine.store import pending
from engine.store.shares import Share, share_of

folder, grid = campaigns.folder, grids.grid
CPU = torch.device("cpu")
FOLLOWED = "train.snapshots=2"


def plan_of(folder: Path, runs: Path, *words: str) -> Plan:
    return campaign.plan(str(folder / "shapes.yaml"), [f"runs={runs}", *words], 1)


def do(plan: Plan, job: Job) -> None:
    """Run a job in this process as `engine.commands.job` does."""
    if job.stage == job_graph.TRAIN:
        jobs.train(plan, plan.column(job.column), CPU, job.rows if job.is_part else ())
    elif job.stage == job_graph.EVALUATE:
        jobs.evaluate(plan, job.set, CPU, job.share)
    elif job.stage == job_graph.COLUMN:
        jobs.column(plan, plan.column(job.column), CPU)
    elif job.stage == job_graph.PREPARE:
        jobs.prepare(plan, CPU)
    else:
        finish.finish(plan, CPU)
        jobs.remove_snapshots(plan, CPU)


@dataclass
class Ran:
    plan: Plan
    store: Path

    def files(self, kind: str) -> dict[str, bytes]:
        root = self.store / kind
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.*")}


@pytest.fixture(scope="module")
def two_runs(folder: Path, grid: grids.Grid, tmp_path_factory: pytest.TempPathFactory) -> list[Ran]:
    """The same campaign by columns and split as far as that goes, in slices of four images."""
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending, "SLICE", 4)
        for shape in job_graph.SHAPES:
            runs = tmp_path_factory.mktemp(shape)
            plan = plan_of(folder, runs, FOLLOWED, "evaluate.batch_size=4")
            graph = job_graph.columns(plan)
            if shape == "split":
                graph = job_graph.split(plan, by_row=["few"], shares={"outline": 2, "few": 2})
            for job in graph:
                do(plan, job)
            ran.append(Ran(plan, runs / "store"))
    return ran


@pytest.mark.slow
def test_predictions_and_cells_are_those_of_the_columns(two_runs: list[Ran]) -> None:
    columns, split = two_runs
    for kind in ("predictions", "features"):
        assert columns.files(kind) == split.files(kind) != {}
    weights = [
        {name: data for name, data in ran.files("cells").items() if name.endswith(".safetensors")}
        for ran in two_runs
    ]
    assert weights[0] == weights[1] != {}
    reports = [ran.plan.folder / campaign.REPORT for ran in two_runs]
    for name in ("accuracy.csv", "mri.csv"):
        assert (reports[0] / name).read_bytes() == (reports[1] / name).read_bytes()


@pytest.mark.slow
def test_markers_list_the_same_artefacts_each_at_the_job_that_makes_it(two_runs: list[Ran]) -> None:
    by_columns, by_split = (
        {
            path.name: set(path.read_text().splitlines())
            for path in (ran.plan.path.parent / markers.DONE).iterdir()
        }
        for ran in two_runs
    )
    assert set.union(*by_columns.values()) == set.union(*by_split.values())
    assert set(by_split) > {"train-few", "train-few.fine_tune", "evaluate-few", "evaluate-upstream"}
    assert by_split.pop("prepare") == by_columns["prepare"] != set()
    for job, listed in by_split.items():
        kinds = {name.partition("/")[0] for name in listed}
        assert ("cells" in kinds) == job.startswith("train-")
        assert ("predictions" in kinds) == (not job.startswith("train-"))
    assert by_split["train-few.fine_tune"] < by_split["train-few"]


@pytest.mark.slow
def test_snapshots_go_when_all_sets_are_evaluated_and_no_slice_is_left(two_runs: list[Ran]) -> None:
    for ran in two_runs:
        assert any("step" in name for name in ran.files("predictions"))
        assert not ran.files("snapshots") and not any((ran.store / "pending").iterdir())


@pytest.mark.slow
def test_a_share_leaves_its_slices_to_the_job_that_joins_them(
    folder: Path, grid: grids.Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending, "SLICE", 4)
    words = ("evaluate.batch_size=4", "methods=[fine_tune]", "downstreams=[few]")
    plan = plan_of(folder, tmp_path, *words)
    jobs.prepare(plan, CPU)
    jobs.train(plan, plan.columns[0], CPU, ["fine_tune"])
    before = set((tmp_path / "store" / "predictions").iterdir())
    jobs.evaluate(plan, "outline", CPU, Share(1, 3))
    slices = list((tmp_path / "store" / "pending").rglob("*.parquet"))
    assert len(slices) == 1, "three slices of 4, 4 and 2 images, a share each"
    assert set((tmp_path / "store" / "predictions").iterdir()) == before
    jobs.evaluate(plan, "outline", CPU)
    assert len(set((tmp_path / "store" / "predictions").iterdir()) - before) == 1
    assert not slices[0].exists()
    jobs.evaluate(plan, "outline", CPU, Share(0, 3))
    assert not list((tmp_path / "store" / "pending").rglob("*.parquet")), "nothing is left to do"
    sampled = plan_of(folder, tmp_path, *words, "evaluate.budget=0.9")
    with pytest.raises(ValueError, match=r"--share 1/2: evaluate\.budget is at work"):
        jobs.evaluate(sampled, "outline", CPU, Share(0, 2))


def test_the_graph_by_columns(folder: Path, tmp_path: Path) -> None:
    graph = job_graph.columns(plan_of(folder, tmp_path))
    names = [f"column-{name}" for name in SETS]
    assert [job.name for job in graph] == ["prepare", *names, "report"]
    assert {job.after for job in graph[1:-1]} == {("prepare",)}
    assert graph[-1].after == tuple(names)
    assert graph[1].words == ["column", "--column", SETS[0]]
    assert [job.steps for job in graph] == [5, 4, 4, 4, 1]


def test_the_graph_of_a_split_campaign(folder: Path, tmp_path: Path) -> None:
    graph = job_graph.split(plan_of(folder, tmp_path), ["few"], {"outline": 2, "tinted": 1})
    by_name = {job.name: job for job in graph}
    alone = ["train-few.fine_tune", "train-few.linear_probe"]
    training = ["train-outline", "train-tinted", *alone, "train-few"]
    shares = ["evaluate-outline.1of2", "evaluate-outline.2of2"]
    evaluation = ["evaluate-upstream", *shares, "evaluate-outline"]
    evaluation += ["evaluate-tinted", "evaluate-few"]
    assert list(by_name) == ["prepare", *training, *evaluation, "report"]
    assert by_name["train-few"].after == tuple(alone)
    assert by_name["train-few"].rows == ("wise_ft",)
    assert by_name["train-outline"].rows == METHODS
    trained = tuple(f"train-{name}" for name in SETS)
    assert by_name["evaluate-few"].after == by_name[shares[0]].after == trained
    assert by_name["evaluate-outline"].after == tuple(shares)
    assert [by_name[name].portion for name in (*shares, "evaluate-outline")] == [0.5, 0.5, 0]
    assert by_name["report"].after == tuple(evaluation)
    assert by_name[shares[1]].words == ["evaluate", "--set", "outline", "--share", "2/2"]
    assert by_name[alone[0]].words == ["train", "--column", "few", "--rows", "fine_tune"]


def test_a_row_waits_for_the_rows_that_it_needs(folder: Path, tmp_path: Path) -> None:
    file = folder / "needs.yaml"
    rows = "  lp_ft: {}\n  ewc_paper: {base: ewc, method: {variant: paper}}\n  soup: {}\n"
    file.write_text((folder / "shapes.yaml").read_text() + rows)
    plan = campaign.plan(str(file), [f"runs={tmp_path}"], 1)
    assert job_graph.rows_alone(plan) == {
        "fine_tune": [],
        "linear_probe": [],
        "lp_ft": ["linear_probe"],
        "ewc_paper": [],
    }


def test_shares_cut_a_set_without_gaps() -> None:
    for count, of in ((7, 3), (2, 5), (0, 2), (458, 15)):
        parts = [Share(k, of).slices(count) for k in range(of)]
        assert sorted(number for part in parts for number in part) == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert share_of("2/8") == Share(1, 8) and str(Share(1, 8)) == "2/8"
    for text in ("0/2", "3/2", "2", "a/b", "-1/2"):
        with pytest.raises(ValueError, match=re.escape(f"{text!r} is no share")):
            share_of(text)


def test_words_of_jobs_are_those_of_the_program(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder, tmp_path)
    for job in (*job_graph.columns(plan), *job_graph.split(plan, SETS, {"few": 2})):
        words = program.parser().parse_args([*job.words, "--plan", str(plan.path)])
        assert (words.stage, words.column or "", words.set or "") == (
            job.stage, job.column, job.set,
        )  # fmt: skip
        assert (tuple(words.rows), words.share) == (job.rows if job.is_part else (), job.share)
