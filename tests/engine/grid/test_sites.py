"""Where jobs run: this machine's GPUs, a profile, a Slurm that says what it has."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import campaigns
import pytest
import torch

from engine import cli
from engine.errors import CampaignError
from engine.grid import campaign, job_commands, job_graph, sites, slurm
from engine.grid.campaign import Plan
from engine.grid.resources import Resources

folder = campaigns.folder


@pytest.fixture
def plan(folder: Path, tmp_path: Path) -> Plan:
    return plan_of(folder, tmp_path)


def plan_of(folder: Path, runs: Path, device: str = "cpu") -> Plan:
    return campaign.plan(str(folder / "shapes.yaml"), [f"runs={runs}", f"device={device}"], 8)


def local(plan: Plan, gpus: int = 1) -> sites.Site:
    return sites.local(plan, job_graph.columns(plan), 2, gpus)


def see_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_gpu_runs_a_column_and_the_report_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, 8)
    plan = plan_of(folder, tmp_path, "auto")
    site = sites.local(plan, job_graph.columns(plan), 8)
    assert site.device == "cuda" and site.words == ("--cores", "8", "--resources", "gpu=8")
    column = Resources(plan.threads, 1)
    columns = {f"column-{name}": column for name in plan.sets}
    assert site.resources == {"prepare": Resources(8, 1), **columns, "report": Resources(8)}
    beside = sites.local(plan, job_graph.columns(plan), 8, plans=2)
    assert beside.resources["prepare"].threads == 4, "two plans prepare side by side"
    shared = sites.local(plan, job_graph.columns(plan), 8, gpus_per_job=4)
    assert shared.ranks == 4 and shared.resources["column-few"].gpu == 4
    assert shared.resources["prepare"].gpu == 1


def test_the_device_of_a_recipe_is_obeyed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    see_gpus(monkeypatch, 2)
    site = local(plan_of(folder, tmp_path, "cpu"))
    assert site.device == "cpu" and not any(job.gpu for job in site.resources.values())
    see_gpus(monkeypatch, 0)
    assert local(plan_of(folder, tmp_path, "auto")).device == "cpu"
    with pytest.raises(ValueError, match="torch sees no GPU"):
        local(plan_of(folder, tmp_path, "cuda"))


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("auto", 3, "--gpus-per-job 3: there are 2 GPUs"),
        ("cpu", 2, "--gpus-per-job 2: the jobs run on CPUs"),
        ("auto", 0, "--gpus-per-job 0: at least one"),
    ],
)
def test_gpus_that_are_not_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    device: str, gpus: int, message: str,
) -> None:  # fmt: skip
    see_gpus(monkeypatch, 2)
    with pytest.raises(ValueError, match=message):
        local(plan_of(folder, tmp_path, device), gpus)


def test_commands_name_device_and_ranks(plan: Plan) -> None:
    site = sites.Site("cuda", {}, (), ranks=4)
    graph = job_graph.columns(plan)
    commands = job_commands.commands(plan, graph, site)
    assert list(commands) == [job.name for job in graph]
    assert all("--device cuda" in command and " -P " in command for command in commands.values())
    with_ranks = [name for name, command in commands.items() if "--ranks 4" in command]
    assert with_ranks == [f"column-{name}" for name in plan.sets]


CLUSTER = slurm.Cluster(has_gpus=True, accounting=True, remembers_s=300)
NEEDS = {"prepare": Resources(1), "report": Resources(1)}


def words(options: slurm.Options, cluster: slurm.Cluster) -> str:
    return " ".join(slurm.site(options, cluster, "cuda", NEEDS, Path("/p")).words)


def test_states_come_from_sacct_where_there_is_accounting() -> None:
    assert "--slurm-status-command sacct" in words(slurm.Options(), CLUSTER)
    without = slurm.Cluster(has_gpus=True, accounting=False, remembers_s=300)
    assert "--slurm-status-command squeue" in words(slurm.Options(), without)


def test_a_queue_that_forgets_before_the_plugin_asks_again_is_refused() -> None:
    """The plugin asks every 180 s in the end, and waits for ever for a job that is not listed."""
    forgetful = slurm.Cluster(has_gpus=True, accounting=False, remembers_s=209)
    with pytest.raises(CampaignError, match=r"forgets a finished job after 209 s \(MinJobAge\)"):
        words(slurm.Options(), forgetful)
    forgetful = slurm.Cluster(has_gpus=True, accounting=True, remembers_s=2)
    assert "--slurm-status-command sacct" in words(slurm.Options(), forgetful)


def test_partition_account_and_requeue() -> None:
    options = slurm.Options("long", "lab", 2, requeue=True, retries=5)
    text = words(options, CLUSTER)
    assert "--default-resources slurm_partition='long' slurm_account='lab' --slurm-requeue" in text
    assert "--retries 5" in text
    without = slurm.Cluster(has_gpus=True, accounting=False, remembers_s=300)
    site = slurm.site(options, without, "cuda", NEEDS, Path("/p"))
    assert site.environment == {"SBATCH_ACCOUNT": "lab"} and "lab" not in " ".join(site.words)
    assert site.ranks == 2 and site.on_slurm


@pytest.mark.parametrize(
    ("setting", "has_gpus", "device"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_device_follows_the_partition(setting: str, has_gpus: bool, device: str) -> None:
    assert slurm.device(setting, slurm.Cluster(has_gpus, True, 300)) == device


def test_cuda_on_a_partition_without_gpus() -> None:
    with pytest.raises(ValueError, match="device=cuda, but no node of the partition has GPUs"):
        slurm.device("cuda", slurm.Cluster(False, True, 300))


def fake(folder: Path, **programs: str) -> None:
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)


def test_a_cluster_is_read_from_slurms_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (
        "echo 'AccountingStorageType   = accounting_storage/slurmdbd'; echo 'MinJobAge = 300 sec'"
    )
    fake(tmp_path, sbatch="", sinfo="echo 'gpu:a100:4'", scontrol=config)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: object())
    assert slurm.cluster("") == CLUSTER
    fake(tmp_path, sinfo="echo '(null)'", scontrol="echo 'AccountingStorageType = (null)'")
    assert slurm.cluster("") == slurm.Cluster(False, False, 0)
    fake(tmp_path, sinfo="true")
    with pytest.raises(CampaignError, match="--partition fast: Slurm has none of that name"):
        slurm.cluster("fast")
    fake(tmp_path, sinfo="echo 'Unable to contact' >&2; exit 1")
    with pytest.raises(CampaignError, match=r"Slurm does not answer: sinfo .*: Unable to contact"):
        slurm.cluster("")
    (tmp_path / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CampaignError, match="there is no sbatch"):
        slurm.cluster("")
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CampaignError, match="pip install snakemake-executor-plugin-slurm"):
        slurm.cluster("")


def test_the_queue_is_emptied_of_this_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, scancel=f'echo "$@" >> {tmp_path}/cancelled')
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    slurm.cancel("noise\nSLURM run ID: 4f-aa\nJob 3 has been submitted\n")
    assert (tmp_path / "cancelled").read_text() == "--name 4f-aa\n"
    slurm.cancel("nothing was submitted")
    assert (tmp_path / "cancelled").read_text() == "--name 4f-aa\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--partition", "x"], "--partition is an option of --executor slurm"),
        (["--requeue"], "--requeue is an option of --executor slurm"),
        (["--executor", "slurm", "--time", "0"], "--time 0: it must be above 0"),
        (["--executor", "slurm", "--profile", "x"], "leave --executor out"),
    ],
)
def test_options_without_effect_are_refused(
    option: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert cli.main(["campaign", "emoji", *option]) == 2
    assert message in capsys.readouterr().err


def test_a_child_ends_with_its_parent_however_it_ends(tmp_path: Path) -> None:
    """A parent that is killed outright cannot stop its children; the kernel does."""
    code = (
        "import subprocess, time\nfrom engine.machine import parent\n"
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=parent.follow)\n"
        "print(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        child = Path("/proc") / process.stdout.readline().strip()
        assert child.exists()
        process.kill()
        process.wait()
        command = ["timeout", "10", "tail", "--pid", child.name, "-f", "/dev/null"]
        assert subprocess.run(command).returncode == 0
