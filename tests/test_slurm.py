"""The engine on a real Slurm, which these tests start on this machine: see `slurm_cluster`.

Campaigns that must end well are copies of a finished one that lack a column and the report.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
from safetensors.torch import load_file

from engine.campaigns.make_plan import make_plan
from engine.campaigns.prepare_job import prepare
from engine.recipe.finder import allow_users_files
from engine.recipe.overrides import parsed
from helpers import campaigns, grids, slurm_cluster
from helpers.processes import ROOT, run, until
from helpers.slurm_cluster import Cluster

RIB = [sys.executable, "-m", "engine.cli", "campaign"]
SLURM = ["--executor", "slurm", "--cores", "1", "--mem", "2"]
lacking = slurm_cluster.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(lacking), reason=f"no Slurm here: {', '.join(lacking)} missing"),
]
folder, finished, grid = campaigns.folder, campaigns.finished, grids.grid


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


FAULTY = """
import time
from engine.methods.fine_tune import Method as FineTune
from engine.recipe.schema import MethodRecipe as Recipe

class Method(FineTune):
    def prepare(self, net, context):
        if context.recipe.downstream == "tinted":
            self.block = b"x" * (3 << 30)  # bytes, of 2 GB
        time.sleep(600)
        super().prepare(net, context)
"""
FAULTY_WORDS = ("methods=[fine_tune]", "dataset.sets=[few,tinted]")


@pytest.fixture(scope="module")
def faulty(folder, tmp_path_factory) -> Path:
    """A campaign of a user's method: a column sleeps for ten minutes, another takes 3 GB."""
    place = tmp_path_factory.mktemp("faulty")
    (place / "users.py").write_text(FAULTY)
    method = "fine_tune: {method: {name: users, title: Users, module: users.py}}"
    text = (folder / "shapes.yaml").read_text().replace("fine_tune: {}", method)
    (place / "shapes.yaml").write_text(text)
    return place


def rib(
    cluster: Cluster, folder: Path, runs: Path, *words: str
) -> AbstractContextManager[subprocess.Popen]:
    """`rib campaign` through the executor."""
    words = (f"runs={runs}", *words, *SLURM)
    return campaigns.started(folder, *words, cwd=ROOT, **cluster.environment)


@pytest.fixture(scope="module")
def ended_by_slurm(
    cluster, faulty, grid, tmp_path_factory
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A campaign at work that Slurm ends: a column for its memory, and then the other for its time.

    It is prepared here.
    """
    runs = tmp_path_factory.mktemp("ended by Slurm")
    words = [f"runs={runs}", *FAULTY_WORDS]
    with allow_users_files():
        plan = make_plan(str(faulty / "shapes.yaml"), parsed(words), 1)
    prepare(plan, grid.device)
    options = ("--time", "1", "--retries", "0")
    with rib(cluster, faulty, runs, *words[1:], *options) as process, ThreadPool(1) as pool:
        pool.apply_async(end_time_of_few, (cluster, process, runs), error_callback=print)
        yield process, runs


def end_time_of_few(cluster: Cluster, process: subprocess.Popen, runs: Path) -> None:
    """Once Slurm has ended the column `tinted`, `few` has had its time."""

    def number(column: str) -> str:
        texts = (path.read_text() for path in runs.glob(f"shapes*/plans/*/events/{column}.jsonl"))
        (found,) = re.findall(r'"queued_as":"(\d+)"', "".join(texts)) or [""]
        return found

    few, tinted = (
        until(lambda name=name: number(name), f"{name} is at work", 600, at_work=process)
        for name in ("column-few", "column-tinted")
    )
    state = ("scontrol", "show", "job", tinted)
    until(lambda: "JobState=RUNNING" not in cluster.ask(*state), "its memory ends", 600)
    cluster.ask("scontrol", "update", f"JobId={few}", "TimeLimit=1")


@pytest.fixture(scope="module")
def preempted(
    cluster, folder, finished, ended_by_slurm, tmp_path_factory
) -> Iterator[tuple[subprocess.Popen, Path]]:
    """A campaign at work, one of whose columns Slurm preempted; it waits for its next start."""
    runs = campaigns.unfinished(finished, tmp_path_factory.mktemp("patient") / "runs")
    with rib(cluster, folder, runs, "--partition", "patient", "--requeue") as process:
        name = name_in_queue(cluster, process, runs)
        logs = "shapes*/plans/*/logs/column-*.log"
        at_work = lambda: any(path.stat().st_size for path in runs.glob(logs))  # noqa: E731
        until(at_work, "a column is at work", at_work=process)
        urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wait"]
        cluster.ask("sbatch", *urgent, "--wrap", "sleep 1", timeout_s=120)
        history = of_campaign(cluster, name)
        assert any("Restarts=1" in job for job in history), history
        yield process, runs


def same_results(runs: Path, expected: Path) -> None:
    """All tables and all weights have the same bytes."""
    for pattern in ("shapes/report/*.csv", "store/cells/*/weights.safetensors"):
        files = sorted(path.relative_to(expected) for path in expected.glob(pattern))
        assert len(files) > 5 and files == sorted(p.relative_to(runs) for p in runs.glob(pattern))
        for file in files:
            assert (runs / file).read_bytes() == (expected / file).read_bytes(), file


def name_in_queue(cluster: Cluster, process: subprocess.Popen, runs: Path) -> str:
    """The name of a campaign's jobs, as soon as the first of them is in the queue."""

    def name() -> str:
        logs = [path.read_text() for path in runs.glob("shapes*/plans/*/campaign.log")]
        (name,) = re.findall(r"SLURM run ID: (\S+)", "".join(logs)) or [""]
        return name if name and any(name in line for line in cluster.queue()) else ""

    return until(name, "a job is in the queue", at_work=process)


def of_campaign(cluster: Cluster, name: str) -> list[str]:
    """What Slurm still knows of each job of a campaign, as a text."""
    history = cluster.ask("scontrol", "show", "job")
    return [job for job in history.split("\n\n") if f"JobName={name}" in job]


def test_batch_script_on_two_tasks_is_one_campaign(cluster, folder, finished, preempted, tmp_path):
    """Its jobs are no ranks of one run, though the allocation has two tasks."""
    runs, log = campaigns.unfinished(finished, tmp_path / "runs"), tmp_path / "log"
    command = subprocess.list2cmdline([*RIB, str(folder / "shapes.yaml"), f"runs={runs}"])
    wrapped = [f"--chdir={ROOT}", f"--output={log}", "--ntasks=2", "--wait"]
    script = ["--nodes=1", "--wrap", f"{command} --cores 2"]
    with contextlib.suppress(AssertionError):  # the log says more
        cluster.ask("sbatch", *wrapped, *script, timeout_s=900)
    assert (runs / "shapes" / "report").is_dir(), log.read_text()
    same_results(runs, finished)


def test_tasks_on_two_nodes_train_one_cell(cluster, grid):
    _, alone = grid.build(f"runs={grid.runs / 'alone'}")
    launch = [sys.executable, "engine/launch.py", f"recipe={grid.recipe}"]
    words = grid.overrides(f"runs={grid.runs / 'srun'}", "device=cpu")
    process = run(["srun", "-N2", "-n2", *launch, *words], **cluster.environment)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("percent top-1") == 1
    (srun,) = (grid.runs / "srun" / "store" / "cells").glob("fine_tune-outline-*")
    cells = {"1": alone.artifact.folder, "2": srun}
    for ranks, cell in cells.items():
        assert f'"ranks": "{ranks}"' in (cell / "versions.json").read_text()
    weights = [load_file(cell / "weights.safetensors") for cell in cells.values()]
    assert 0 < grids.distance(*weights) < 1e-5


def test_ended_commands_leave_an_empty_queue(cluster, faulty, preempted, tmp_path):
    ends = {tmp_path / number.name: number for number in (signal.SIGINT, signal.SIGKILL)}
    with contextlib.ExitStack() as stack:
        started = {
            runs: stack.enter_context(rib(cluster, faulty, runs, *FAULTY_WORDS)) for runs in ends
        }
        names = [name_in_queue(cluster, process, runs) for runs, process in started.items()]
        for runs, number in ends.items():
            os.kill(started[runs].pid, number)
        left = lambda: any(name in line for line in cluster.queue() for name in names)  # noqa: E731
        until(lambda: not left(), "the queue is empty of these campaigns", 60)


def test_each_job_has_a_gpu_of_its_own(cluster, folder, tmp_path):
    """Slurm gives them; that torch sees none on this machine ends the campaign."""
    with rib(cluster, folder, tmp_path, "device=cuda", "--time", "1", "--retries", "0") as process:
        name = name_in_queue(cluster, process, tmp_path)
        details = ("scontrol", "show", "job", "--details")
        given = lambda: re.search(r"GRES=gpu:1\(IDX:\d\)", cluster.ask(*details))  # noqa: E731
        until(given, "a job has a GPU", 60)
        shown = process.communicate(timeout=900)[0]
    assert "device=cuda" in shown and process.returncode == 2
    (job,) = of_campaign(cluster, name)
    assert "TimeLimit=01:00:00" in job
    step = ["srun", "-n2", "--gpus-per-task=1", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    assert sorted(cluster.ask(*step).split()) in (["0", "1"], ["0", "0"])  # one node, or two


def test_jobs_that_reach_their_time_or_memory_are_named(ended_by_slurm):
    process, runs = ended_by_slurm
    shown = process.communicate(timeout=900)[0]
    assert process.returncode == 2
    for name, state, remedy in (("few", "TIMEOUT", "--time"), ("tinted", "OUT_OF_MEMORY", "--mem")):
        reason = rf"^column-{name} was ended by Slurm: {state} .*{remedy}"
        assert re.search(reason, shown, re.M), shown[-3000:]
    assert re.search(rf"{re.escape(str(runs))}/shapes-\w+/plans", shown)
    assert re.search(r"engine.commands.job --plan .* column-few$", shown, re.M)


def test_a_preempted_campaign_ends_with_the_results_of_a_local_one(finished, preempted):
    process, runs = preempted
    shown = process.communicate(timeout=900)[0]
    assert process.returncode == 0, shown[-3000:]
    same_results(runs, finished)
