"""Where jobs run: this machine's GPUs, a profile, a Slurm that says what it has."""

import dataclasses
import itertools
import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch

from engine import cli
from engine.errors import CampaignError
from engine.grid import campaign, estimate, sites, slurm, workflow
from engine.grid.campaign import Plan
from engine.grid.sites import Options, Site

CLUSTER = slurm.Cluster(has_gpus=True, accounting=True)


def plan_of(folder: Path, runs: Path, device: str = "cpu") -> Plan:
    return campaign.plan(str(folder / "shapes.yaml"), [f"runs={runs}", f"device={device}"], 8)


def see_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_gpu_runs_a_column_and_the_report_none(folder, tmp_path, monkeypatch):
    see_gpus(monkeypatch, 8)
    plan, options = plan_of(folder, tmp_path, "auto"), Options(cores=8)
    where = sites.of(options, [plan])
    assert where.device == "cuda" and where.words == ("--cores", "8", "--resources", "gpu=8")
    asked = sites.resources(options, where, plan)
    assert asked == {
        "prepare": {"threads": 8, "gpu": 1},
        "column": {"threads": plan.threads, "gpu": 1},
        "report": {"threads": 8},
    }
    beside = sites.resources(options, where, plan, plans=2)
    assert beside["prepare"]["threads"] == 4, "two plans prepare side by side"
    options = dataclasses.replace(options, gpus_per_job=4)
    where = sites.of(options, [plan])
    asked = sites.resources(options, where, plan)
    assert where.ranks == 4 and asked["column"]["gpu"] == 4 and asked["prepare"]["gpu"] == 1
    command = workflow.command(plan, where)
    assert command.endswith("--ranks 4") and " -P " in command


def test_the_device_of_a_recipe_is_obeyed_or_named(folder, tmp_path, monkeypatch):
    see_gpus(monkeypatch, 2)
    plan = plan_of(folder, tmp_path, "cpu")
    where = sites.of(Options(cores=2), [plan])
    assert where.device == "cpu"
    asked = sites.resources(Options(cores=2), where, plan)
    assert not any(stage.get("gpu") for stage in asked.values())
    see_gpus(monkeypatch, 0)
    assert sites.of(Options(cores=2), [plan_of(folder, tmp_path, "auto")]).device == "cpu"
    with pytest.raises(ValueError, match="torch sees no GPU"):
        sites.of(Options(cores=2), [plan_of(folder, tmp_path, "cuda")])
    see_gpus(monkeypatch, 2)
    for device, gpus, message in (
        ("auto", 3, "--gpus-per-job 3: there are 2 GPUs"),
        ("cpu", 2, "--gpus-per-job 2: the jobs run on CPUs"),
        ("auto", 0, "--gpus-per-job 0: at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            sites.of(sites.checked(Options(gpus_per_job=gpus)), [plan_of(folder, tmp_path, device)])


def test_slurms_jobs_ask_for_a_factor_of_what_is_predicted(folder, tmp_path, monkeypatch):
    """Start-up counts, and the user's hours and GB come first; a job may have many GPUs."""
    monkeypatch.setattr(slurm, "cluster", lambda partition: CLUSTER)
    options = sites.checked(Options(executor="slurm", gpus_per_job=9))
    plan = plan_of(folder, tmp_path, "auto")
    where = sites.of(options, [plan])
    asked = sites.resources(options, where, plan)
    assert where.ranks == asked["column"]["gpu"] == 9 and where.on_slurm
    plan, where = plan_of(folder, tmp_path), Site("cpu", (), on_slurm=True)
    options = sites.checked(Options(executor="slurm"))
    asked = sites.resources(options, where, plan)
    costs = estimate.of(plan)
    hours = costs.column_hours(estimate.cpu(4))
    assert asked["column"]["runtime"] == -(-60 * 3 * (sites.START_H + hours) // 1) == 16
    assert asked["report"]["runtime"] == 120
    assert asked["column"]["mem_mb"] == -(-1000 * costs.memory_gb // 1)
    given = dataclasses.replace(options, time=1.5, mem=2)
    for stage in sites.resources(given, where, plan).values():
        assert stage == {"threads": 4, "mem_mb": 2000, "runtime": 90} | (
            {"gpu": 0} if "gpu" in stage else {}
        )
        assert sites.text(stage) == "4 cores, 2.0 GB, 90 min"


def words(cluster: slurm.Cluster, place: Path, **options: object) -> tuple[str, dict[str, str]]:
    given, environment = slurm.words(cluster, place, **options)  # type: ignore[arg-type]
    return " ".join(given), environment


def test_states_come_from_sacct_where_there_is_accounting(tmp_path, monkeypatch):
    given = {"partition": "long", "account": "lab", "retries": 5, "requeue": True}
    text, environment = words(CLUSTER, tmp_path, **given)
    assert "--slurm-status-command sacct" in text and not environment
    assert "--default-resources slurm_partition='long' slurm_account='lab' --slurm-requeue" in text
    assert "--retries 5" in text
    without = slurm.Cluster(has_gpus=True, accounting=False)
    text, environment = words(without, tmp_path, **given)
    assert "--slurm-status-command squeue" in text
    assert environment["SBATCH_ACCOUNT"] == "lab" and "lab" not in text
    assert environment["PATH"].startswith(f"{tmp_path / 'bin'}:")
    fake(tmp_path, squeue='echo "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{tmp_path}:/bin")
    said = subprocess.run(["sacct", "-X", "--name", "a-b"], capture_output=True, text=True)
    assert said.stdout.split() == ["--format=%i|%T", "--states=all", "--noheader", "--name", "a-b"]


def test_device_follows_the_partition():
    for setting, has_gpus, device in (
        ("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ):  # fmt: skip
        assert slurm.device(setting, slurm.Cluster(has_gpus, True)) == device
    with pytest.raises(ValueError, match="device=cuda, but no node of the partition has GPUs"):
        slurm.device("cuda", slurm.Cluster(False, True))


def fake(folder: Path, **programs: str) -> None:
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)


def test_a_cluster_is_read_from_slurms_own_words(tmp_path, monkeypatch):
    config = (
        "echo 'AccountingStorageType   = accounting_storage/slurmdbd'; echo 'MinJobAge = 300 sec'"
    )
    fake(tmp_path, sbatch="", sinfo="echo 'gpu:a100:4'", scontrol=config)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: object())
    assert slurm.cluster("") == CLUSTER
    without = "echo 'AccountingStorageType = (null)'; echo 'MinJobAge = {} sec'"
    fake(tmp_path, sinfo="echo '(null)'", scontrol=without.format(210))
    assert slurm.cluster("") == slurm.Cluster(False, False)
    # The plugin asks every 180 s in the end, and waits for ever for a job that is not listed.
    fake(tmp_path, scontrol=without.format(209))
    with pytest.raises(CampaignError, match=r"forgets a finished job after 209 s \(MinJobAge\)"):
        slurm.cluster("")
    fake(tmp_path, scontrol=config)
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


def test_the_queue_is_emptied_of_this_run(tmp_path, monkeypatch):
    """Of no other campaign's jobs, those of a copy with the same plan included."""
    place = tmp_path / "4faa"
    mine, other = f"rib-4faa-{os.getpid()}_1-2", f"rib-4faa-{os.getpid() + 1}_1-2"
    queue = f"echo '7 {mine}'; echo '8 {other}'; echo '9 x'"
    fake(tmp_path, scancel=f'echo "$@" >> {tmp_path}/cancelled', squeue=queue)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert f"--slurm-jobname-prefix rib-4faa-{os.getpid()} " in words(CLUSTER, place)[0]
    slurm.cancel(place)
    assert (tmp_path / "cancelled").read_text() == "7\n"
    fake(tmp_path, squeue="true")
    slurm.cancel(place)
    assert (tmp_path / "cancelled").read_text() == "7\n"


def test_a_controller_that_is_away_for_a_while_is_told(monkeypatch):
    clock = itertools.count(0, 40)
    monkeypatch.setattr(workflow.time, "monotonic", lambda: next(clock))
    told = []
    watch = workflow._slurm_away()
    for answers in (True, False, False, False, True):
        monkeypatch.setattr(slurm, "answers", lambda answers=answers: answers)
        told.append(watch())
    assert [bool(text) for text in told] == [False, False, True, True, False]
    assert told[2].startswith("Slurm does not answer: its jobs go on")


def test_options_without_effect_are_refused(capsys):
    for option, message in (
        ("--cores 0", "--cores 0: at least one is needed"),
        ("--partition x", "--partition is an option of --executor slurm"),
        ("--requeue", "--requeue is an option of --executor slurm"),
        ("--executor slurm --time 0", "--time 0: it must be above 0"),
        ("--executor slurm --profile x", "leave --executor out"),
    ):
        assert cli.main(["campaign", "emoji", *option.split()]) == 2
        assert message in capsys.readouterr().err
