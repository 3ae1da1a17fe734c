"""The engine on a real Slurm, which these tests start on this machine: see `slurm_cluster`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import campaigns
import grids
import pytest
import slurm_cluster
from safetensors.torch import load_file
from slurm_cluster import Cluster

ROOT = Path(__file__).resolve().parents[1]
RIB = [sys.executable, "-m", "engine.cli", "campaign"]
lacking = slurm_cluster.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(lacking), reason=f"no Slurm here: {', '.join(lacking)} missing"),
]
folder, grid = campaigns.folder, grids.grid


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = time.monotonic()
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        assert time.monotonic() - started < 10
        yield cluster


SLEEPER = """
import os, time
from engine.methods.fine_tune import Method as FineTune
from engine.recipe.schema import MethodRecipe as Recipe

class Method(FineTune):
    def prepare(self, net, context):
        if "SLURM_STEP_ID" in os.environ:  # the estimate of a campaign calls it too
            time.sleep(600)
        super().prepare(net, context)
"""


GREEDY = """
from engine.methods.fine_tune import Method as FineTune
from engine.recipe.schema import MethodRecipe as Recipe

class Method(FineTune):
    def prepare(self, net, context):
        import os, time
        if "SLURM_STEP_ID" in os.environ:
            self.block = b"x" * (3 << 30)  # bytes, of 2 GB
            time.sleep(60)
        super().prepare(net, context)
"""


def with_method(folder: Path, place: Path, source: str) -> Path:
    """The campaign with a user's method in place of fine-tuning."""
    (place / "users.py").write_text(source)
    method = "fine_tune: {method: {name: users, title: Users, module: users.py}}"
    text = (folder / "shapes.yaml").read_text().replace("fine_tune: {}", method)
    (place / "shapes.yaml").write_text(text)
    return place


@pytest.fixture(scope="module")
def sleeping(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign whose columns do nothing for ten minutes."""
    return with_method(folder, tmp_path_factory.mktemp("sleeping"), SLEEPER)


@contextlib.contextmanager
def rib(cluster: Cluster, folder: Path, runs: Path, *words: str) -> Iterator[subprocess.Popen]:
    """`rib campaign` through the executor, in a process group of its own."""
    command = [*RIB, str(folder / "shapes.yaml"), f"runs={runs}", *words]
    process = subprocess.Popen(
        [*command, "--executor", "slurm", "--cores", "1", "--mem", "2"],
        cwd=ROOT,
        env=grids.environment() | cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def at_once(
    cluster: Cluster, folder: Path, sleeping: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[subprocess.Popen, Path]]]:
    """Campaigns that take a minute or more each, side by side: a whole one, one out of time."""
    base = tmp_path_factory.mktemp("at once")
    minute = (
        "--time",
        "0.01",
        "--retries",
        "0",
        "methods=[fine_tune]",
        "dataset.sets=[few,tinted]",
    )
    whole, late = base / "whole", base / "late"
    to = ("--partition", "main")
    with rib(cluster, folder, whole, *to) as first, rib(cluster, sleeping, late, *minute) as second:
        yield {"whole": (first, whole), "late": (second, late)}


def same_results(runs: Path, expected: Path) -> None:
    """All tables and all weights have the same bytes."""
    for pattern in ("shapes/report/*.csv", "store/cells/*/weights.safetensors"):
        files = sorted(path.relative_to(expected) for path in expected.glob(pattern))
        assert len(files) > 5 and files == sorted(p.relative_to(runs) for p in runs.glob(pattern))
        for file in files:
            assert (runs / file).read_bytes() == (expected / file).read_bytes(), file


def name_in_queue(cluster: Cluster, process: subprocess.Popen, runs: Path) -> str:
    """The name of a campaign's jobs, as soon as the first of them is in the queue."""
    end = time.monotonic() + 120
    while True:
        logs = [path.read_text() for path in runs.glob("shapes/plans/*/campaign.log")]
        (name,) = re.findall(r"SLURM run ID: (\S+)", "".join(logs)) or [""]
        if name and any(name in line for line in cluster.queue()):
            return name
        assert process.poll() is None and time.monotonic() < end, "no job was submitted"
        time.sleep(0.2)


def test_dry_run_shows_what_jobs_ask_for(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    with rib(cluster, folder, tmp_path, "--dry-run", "--time", "1.5") as process:
        shown = process.communicate(timeout=120)[0]
    assert process.returncode == 0, shown
    jobs = {line.split()[0]: line for line in shown.splitlines() if line.startswith("  ")}
    assert set(jobs) == {"prepare", "report", *(f"column-{name}" for name in campaigns.SETS)}
    assert all(line.endswith("1 core, 2.0 GB, 90 min") for line in jobs.values()), shown


def test_unknown_partition_is_refused(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    with rib(cluster, folder, tmp_path, "--partition", "gpus") as process:
        shown = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and "--partition gpus: Slurm has none of that name" in shown


def test_batch_script_on_two_tasks_is_one_campaign(
    cluster: Cluster, folder: Path, grid: grids.Grid, at_once: dict, tmp_path: Path
) -> None:
    """Its jobs are no ranks of one run, though the allocation has two tasks."""
    local = campaigns.run(folder).parents[1]
    command = subprocess.list2cmdline([*RIB, str(folder / "shapes.yaml"), f"runs={tmp_path}"])
    wrapped = [f"--chdir={ROOT}", f"--output={tmp_path / 'log'}", "--ntasks=2", "--wait"]
    script = ["--nodes=1", "--wrap", f"{command} --cores 2"]
    with contextlib.suppress(AssertionError):  # the log says more
        cluster.ask("sbatch", *wrapped, *script, timeout_s=400)
    assert (tmp_path / "shapes" / "report").is_dir(), (tmp_path / "log").read_text()
    same_results(tmp_path, local)


def test_tasks_on_two_nodes_train_one_cell(cluster: Cluster, grid: grids.Grid) -> None:
    launch = [sys.executable, "engine/launch.py", f"recipe={grid.recipe}"]
    cells = {}
    for way, start in {"alone": [], "srun": ["srun", "-N2", "-n2"]}.items():
        words = grid.overrides(f"runs={grid.runs / way}", "device=cpu")
        environment = {k: v for k, v in grids.environment().items() if k != "GLOO_SOCKET_IFNAME"}
        process = subprocess.run(
            [*start, *launch, *words], cwd=ROOT, env=environment | cluster.environment,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-3000:]
        assert process.stdout.count("percent top-1") == 1
        (cells[way],) = (grid.runs / way / "store" / "cells").glob("fine_tune-outline-*")
    versions = {way: (cell / "versions.json").read_text() for way, cell in cells.items()}
    assert '"ranks": "2"' in versions["srun"] and '"ranks": "1"' in versions["alone"]
    alone, srun = (load_file(cells[way] / "weights.safetensors") for way in ("alone", "srun"))
    assert 0 < grids.distance(srun, alone) < 1e-5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ended_command_leaves_an_empty_queue(
    cluster: Cluster, sleeping: Path, tmp_path: Path, at_once: dict, number: signal.Signals
) -> None:
    with rib(cluster, sleeping, tmp_path, "methods=[fine_tune]") as process:
        name = name_in_queue(cluster, process, tmp_path)
        os.kill(process.pid, number)
        end = time.monotonic() + 60
        while any(name in line for line in cluster.queue()):
            assert time.monotonic() < end, cluster.queue()
            time.sleep(0.2)


def test_campaign_through_slurm_is_the_local_one(
    folder: Path, grid: grids.Grid, at_once: dict
) -> None:
    process, runs = at_once["whole"]
    shown = process.communicate(timeout=400)[0]
    assert process.returncode == 0, shown[-3000:]
    same_results(runs, campaigns.run(folder).parents[1])


def test_a_job_that_reaches_its_time_limit_is_named(at_once: dict) -> None:
    process, runs = at_once["late"]
    shown = process.communicate(timeout=400)[0]
    assert process.returncode == 2
    reason = re.search(r"^(prepare|column-\w+) was ended by Slurm: TIMEOUT .*--time", shown, re.M)
    assert reason, shown[-3000:]
    assert str(runs / "shapes" / "plans") in shown
    assert f"engine.commands.job {reason[1].partition('-')[0]} " in shown
    shutil.rmtree(runs)


def test_a_job_that_takes_too_much_memory_is_named(
    cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    place = with_method(folder, tmp_path, GREEDY)
    words = ("methods=[fine_tune]", "dataset.sets=[few,tinted]", "--retries", "0")
    with rib(cluster, place, tmp_path / "runs", *words) as process:
        shown = process.communicate(timeout=300)[0]
    assert process.returncode == 2
    assert re.search(r"^column-\w+ was ended by Slurm: OUT_OF_MEMORY .*--mem", shown, re.M), shown


def test_each_job_has_a_gpu_of_its_own(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """Slurm gives them; that torch sees none on this machine ends the campaign."""
    with rib(cluster, folder, tmp_path, "device=cuda", "--retries", "0") as process:
        name_in_queue(cluster, process, tmp_path)
        end, given = time.monotonic() + 60, r"GRES=gpu:1\(IDX:\d\)"
        while not re.search(given, cluster.ask("scontrol", "show", "job", "--details")):
            assert time.monotonic() < end, cluster.queue()
            time.sleep(0.1)
        shown = process.communicate(timeout=200)[0]
    assert "device=cuda" in shown and process.returncode == 2
    step = ["srun", "-n2", "--gpus-per-task=1", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    assert sorted(cluster.ask(*step).split()) in (["0", "1"], ["0", "0"])  # one node, or two


def test_a_preempted_campaign_ends_with_the_same_results(
    cluster: Cluster, folder: Path, grid: grids.Grid, tmp_path: Path
) -> None:
    with rib(cluster, folder, tmp_path, "--requeue") as process:
        name = name_in_queue(cluster, process, tmp_path)
        end = time.monotonic() + 120
        while not (tmp_path / "store" / "cells").is_dir():  # a column is at work
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        urgent = [
            "--partition=urgent",
            "--nodes=2",
            "--exclusive",
            f"--output={tmp_path / 'urgent'}",
        ]
        cluster.ask("sbatch", *urgent, "--wait", "--wrap", "sleep 1", timeout_s=120)
        shown = process.communicate(timeout=400)[0]
    assert process.returncode == 0, shown[-3000:]
    history = cluster.ask("scontrol", "show", "job")
    blocks = [block for block in history.split("\n\n") if f"JobName={name}" in block]
    assert any("Restarts=1" in block for block in blocks), history
    same_results(tmp_path, campaigns.run(folder).parents[1])
