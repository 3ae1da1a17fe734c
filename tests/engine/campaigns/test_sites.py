"""Where jobs run: this machine's GPUs, a profile, a Slurm that says what it has."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from engine.campaigns import simulation, sites, workflow
from engine.campaigns.plan import Column, Plan
from engine.campaigns.schedulers import RunOptions, slurm
from engine.campaigns.sites import Site
from engine.cost import estimate, flops
from engine.errors import CampaignError
from engine.measures.rows import Setting
from helpers import campaigns
from helpers.processes import programs

CLUSTER = slurm.Cluster(has_gpus=True, accounting=True)


def plan_of(folder: Path, runs: Path, device: str = "cpu") -> Plan:
    words = (f"runs={runs}", f"device={device}")
    return campaigns.plan_of(folder / "shapes.yaml", *words, cores=8)


def see_gpus(patch: pytest.MonkeyPatch, count: int) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: count > 0)
    patch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_gpu_runs_a_column_and_the_report_none(folder, tmp_path, monkeypatch):
    see_gpus(monkeypatch, 8)
    plan, options = plan_of(folder, tmp_path, "auto"), RunOptions(cores=8)
    where = sites.choose_site(options, [plan])
    assert where.device == "cuda" and where.words == ("--cores", "8", "--resources", "gpu=8")
    assert sites.resources(options, where, plan) == {
        "prepare": {"threads": 8, "gpu": 1},
        "column": {"threads": plan.threads, "gpu": 1},
        "train": {"threads": plan.threads, "gpu": 1},
        "evaluate": {"threads": plan.threads, "gpu": 1},
        "distances": {"threads": plan.threads, "gpu": 1},
        "report": {"threads": 8},
    }
    beside = sites.resources(options, where, plan, plans=2)
    assert beside["prepare"]["threads"] == 4, "two plans prepare side by side"
    options = dataclasses.replace(options, gpus_per_job=4)
    where = sites.choose_site(options, [plan])
    asked = sites.resources(options, where, plan)
    assert where.ranks == 4 and asked["column"]["gpu"] == asked["prepare"]["gpu"] == 4
    assert asked["distances"]["gpu"] == 1
    command = workflow.command(plan, where)
    assert command.endswith("--ranks 4") and " -P " in command


def test_the_shape_is_the_one_that_the_plan_predicts_and_options_override(
    folder, tmp_path, monkeypatch, capsys
):
    see_gpus(monkeypatch, 8)
    plan = plan_of(folder, tmp_path, "auto")
    slow = estimate.Device("slow", 1e-9, 1e-9)
    monkeypatch.setattr(estimate, "gpu", lambda _: slow)
    where = sites.choose_site(RunOptions(cores=8), [plan])
    assert (where.ranks, where.jobs_per_column, where.gpus) == (4, 2, 8)
    line = "note: GPUs per job: 4 of 8, jobs per column: 2, 3 times as fast as with 1 and 1 (pre"
    assert capsys.readouterr().err.startswith(line)
    where = sites.choose_site(RunOptions(cores=8, gpus_per_job=2), [plan])
    assert where.ranks == 2 and where.jobs_per_column > 1
    assert capsys.readouterr().err
    where = sites.choose_site(RunOptions(cores=8, gpus_per_job=2, jobs_per_column=3), [plan])
    assert (where.ranks, where.jobs_per_column) == (2, 3) and not capsys.readouterr().err
    shares = dataclasses.replace(plan, jobs_per_column=3)
    asked = sites.resources(RunOptions(cores=64), where, shares)
    assert asked["train"] == asked["evaluate"] == {"threads": plan.threads, "gpu": 2}
    few = dataclasses.replace(shares, columns=plan.columns[:1], threads=64)
    assert sites.resources(RunOptions(cores=64), where, few)["train"]["threads"] == 64 // 3
    priorities = sites.priorities(where, shares)
    assert max(priorities, key=priorities.__getitem__) == "prepare"
    assert sites.priorities(Site("cpu", ()), plan) == {"distances": 1}
    with pytest.raises(ValueError, match="--jobs-per-column 65: at most 64"):
        sites.checked(RunOptions(jobs_per_column=65))


def test_jobs_of_cores_are_whole_columns_unless_an_option_says_otherwise(
    folder, tmp_path, monkeypatch
):
    see_gpus(monkeypatch, 0)
    plan = plan_of(folder, tmp_path)
    unused = mock.Mock(side_effect=AssertionError("no estimate"))
    monkeypatch.setattr(estimate, "campaign_cost", unused)
    assert sites.choose_site(RunOptions(cores=2), [plan]).jobs_per_column == 1
    where = sites.choose_site(RunOptions(cores=2, jobs_per_column=4), [plan])
    shares = dataclasses.replace(plan, jobs_per_column=where.jobs_per_column)
    asked = sites.resources(RunOptions(cores=2), where, shares)
    assert where.jobs_per_column == 4 and asked["train"] == {"threads": 1, "gpu": 0}


def test_queued_columns_of_a_large_campaign_are_one_job_each(folder, tmp_path, monkeypatch):
    """Without an estimate, which takes seconds for thousands of columns."""
    plan = plan_of(folder, tmp_path)
    seeds = range(simulation.MOST_QUEUED + 1)
    large = dataclasses.replace(plan, columns=[Column("few", Setting({"seed": k})) for k in seeds])
    unused = mock.Mock(side_effect=AssertionError("no estimate"))
    monkeypatch.setattr(estimate, "campaign_cost", unused)
    (tmp_path / "config.yaml").touch()
    assert sites.choose_site(RunOptions(cores=2, profile=tmp_path), [large]).jobs_per_column == 1


def test_the_device_of_a_recipe_is_obeyed_or_named(folder, tmp_path, monkeypatch):
    for device, gpus, gpus_per_job, message in (
        ("cpu", 2, 1, None),
        ("auto", 0, 1, None),
        ("cuda", 0, 1, "torch sees no GPU"),
        ("auto", 2, 3, "--gpus-per-job 3: this machine has 2 GPUs"),
        ("cpu", 2, 2, "--gpus-per-job 2: the jobs run on CPUs"),
    ):
        see_gpus(monkeypatch, gpus)
        plan, works = plan_of(folder, tmp_path, device), contextlib.nullcontext()
        with pytest.raises(ValueError, match=message) if message else works:
            options = sites.checked(RunOptions(gpus_per_job=gpus_per_job))
            where = sites.choose_site(options, [plan])
            asked = sites.resources(options, where, plan)
            assert where.device == "cpu" and not any(stage.get("gpu") for stage in asked.values())


def submitted(asked: sites.Resources) -> str:
    """How Snakemake's plugin calls sbatch for a job."""
    resources = AttributeDict(k for k in asked.items() if k[0] != "threads")
    job = SimpleNamespace(resources=resources, threads=asked["threads"])
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    gpus = set_gres_string(job)
    return get_submit_command(job, dict.fromkeys(names, "")) + gpus + " "


class AttributeDict(dict):
    __getattr__ = dict.__getitem__


def test_slurms_jobs_ask_for_a_factor_of_what_is_predicted(folder, tmp_path, monkeypatch):
    """Start-up counts, and the user's hours and GB come first; a job may have many GPUs."""
    monkeypatch.setattr(slurm, "cluster", lambda partition: CLUSTER)
    monkeypatch.setattr(flops, "forward_tflops", lambda *_: 1.0)  # takes a second
    options = sites.checked(RunOptions(executor="slurm", gpus_per_job=9))
    plan = plan_of(folder, tmp_path, "auto")
    where = sites.choose_site(options, [plan])
    assert where.words[where.words.index("--retries") + 1] == "2"
    asked = sites.resources(options, where, plan)
    assert where.ranks == asked["column"]["gpu"] == 9 and isinstance(
        where.scheduler, slurm.Scheduler
    )
    sbatch = submitted(asked["column"])
    assert "--gpus=9 " in sbatch and "--nodes=1 " in sbatch and "--cpus-per-task=36" in sbatch
    assert "per-gpu" not in sbatch
    assert asked["prepare"]["gpu"] == 9 and asked["prepare"]["mem_mb"] == asked["column"]["mem_mb"]
    more = asked["column"]["mem_mb"] - asked["distances"]["mem_mb"]
    assert more == 8 * 3000 and f"--mem {asked['column']['mem_mb']} " in sbatch
    options = sites.checked(RunOptions(executor="slurm"))
    plan, where = plan_of(folder, tmp_path), Site("cpu", (), 1, slurm.Scheduler(options))
    asked = sites.resources(options, where, plan)
    costs = estimate.campaign_cost(plan.recipes, len(plan.rows))
    hours = costs.column_hours(estimate.cpu(4))
    assert asked["column"]["runtime"] == -(-60 * 3 * (sites.START_H + hours) // 1) == 16
    assert (asked["distances"]["runtime"], asked["report"]["runtime"]) == (105, 45)
    assert asked["column"]["mem_mb"] == -(-1000 * costs.memory_gb() // 1)
    given = dataclasses.replace(options, time=1.5, mem=2)
    for stage in sites.resources(given, where, plan).values():
        assert stage.items() >= {"threads": 4, "mem_mb": 2000, "runtime": 90}.items()
        assert not stage.get("gpu") and sites.text(stage) == "4 cores, 2.0 GB, 90 min"


def of_cluster(cluster: slurm.Cluster, **options: Any) -> slurm.Scheduler:
    with mock.patch.object(slurm, "cluster", lambda partition: cluster):
        return slurm.Scheduler(RunOptions("slurm", **options))


def words(cluster: slurm.Cluster, place: Path, **options: Any) -> tuple[str, dict[str, str]]:
    given, environment = of_cluster(cluster, **options).submission(place)
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
    programs(tmp_path, squeue='echo "$@"')
    stand_ins = Path(environment["PATH"].partition(":")[0])
    assert stand_ins == Path(slurm.__file__).with_name("stand_ins"), "none of a plan's folder"
    monkeypatch.setenv("PATH", f"{stand_ins}:{tmp_path}:/bin:/usr/bin")
    (tmp_path / "campaign.log").write_text("")
    monkeypatch.setenv("RIB_WORKFLOW", str(tmp_path / "workflow.json"))
    for program in ("sacct", "squeue"):
        words_of_squeue = subprocess.check_output([program, "-X", "--name", "a-b"], text=True)
        assert words_of_squeue == "--format=%i|%T --states=all --noheader --name a-b\n"


def test_a_job_that_slurm_forgot_counts_as_completed(tmp_path, monkeypatch):
    """Snakemake then looks for its marker; before, it waited for ever."""
    submitted = "Job 3 has been submitted with SLURM jobid {} (log: x/{}.log).\n"
    log = "".join(submitted.format(number, number) for number in (5, 15, 16, 7))
    (tmp_path / "campaign.log").write_text(log)
    programs(tmp_path, squeue="echo '15|RUNNING'; echo '7|FAILED'")
    monkeypatch.setenv("PATH", f"{slurm.STAND_INS}:{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("RIB_WORKFLOW", str(tmp_path / "workflow.json"))
    states = subprocess.check_output(["squeue", "--name", "a-b"], text=True).split()
    assert sorted(states) == ["15|RUNNING", "16|COMPLETED", "5|COMPLETED", "7|FAILED"]
    accounts = subprocess.check_output(["sacct", "-nu", "me", "-o", "Account%256"], text=True)
    assert accounts == "", "no job is an account"
    programs(tmp_path, squeue="echo 'Unable to contact' >&2; exit 1")
    away = subprocess.run(["squeue", "--name", "a-b"], capture_output=True, text=True)
    assert away.returncode == 1 and not away.stdout, "a controller that is away forgets no job"


def test_a_full_queue_is_told(tmp_path):
    """sbatch tries again for minutes, and Snakemake keeps what it says."""
    sbatch = tmp_path / "sbatch"
    shutil.copy("/bin/sleep", sbatch)
    with subprocess.Popen([sbatch, "60"]) as process:
        assert of_cluster(CLUSTER).obstacle(os.getpid()) == ""
        with mock.patch.object(slurm, "REFUSED_S", 0):
            assert "see MaxJobCount" in of_cluster(CLUSTER).obstacle(os.getpid())
        process.kill()


def test_device_follows_the_partition():
    for setting, has_gpus, device in (
        ("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ):  # fmt: skip
        assert of_cluster(slurm.Cluster(has_gpus, True)).device(setting) == device
    with pytest.raises(ValueError, match="device=cuda, but no node of the partition has GPUs"):
        of_cluster(slurm.Cluster(False, True)).device("cuda")


def test_a_cluster_is_read_from_slurms_own_words(tmp_path, monkeypatch):
    def config(accounting: str, age_s: int) -> str:
        return f"echo 'AccountingStorageType = {accounting}'; echo 'MinJobAge = {age_s} sec'"

    def refused(message: str, partition: str = "") -> None:
        with pytest.raises(CampaignError, match=message):
            slurm.cluster(partition)

    with_database, without = "accounting_storage/slurmdbd", "(null)"
    programs(tmp_path, sbatch="", sinfo="echo 'gpu:a100:4'", scontrol=config(with_database, 10))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: object())
    assert slurm.cluster("") == CLUSTER
    programs(tmp_path, sinfo="echo '(null)'", scontrol=config(without, 210))
    assert slurm.cluster("") == slurm.Cluster(False, False)
    # The plugin asks every 180 s in the end, and waits for ever for a job that is not listed.
    programs(tmp_path, scontrol=config(without, 209))
    refused(r"forgets a finished job after 209 s \(MinJobAge\)")
    programs(tmp_path, scontrol=f"{config(without, 300)}; echo 'MaxArraySize = 2'")
    refused(r"arrays switched off \(MaxArraySize=2\), .*run the campaign inside an allocation")
    programs(tmp_path, sinfo="true")
    refused("--partition fast: Slurm has no such partition", "fast")
    programs(tmp_path, sinfo="echo 'Unable to contact' >&2; exit 1")
    refused(r"Slurm does not answer: sinfo .*: Unable to contact")
    monkeypatch.setenv("PATH", "")
    refused("this machine has no sbatch")
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: None)
    refused("pip install snakemake-executor-plugin-slurm")


def test_a_job_that_slurm_refuses_is_told_in_its_words():
    """Snakemake's own last words are only that a job did not complete."""
    refusal, many = of_cluster(CLUSTER).refusal, "CPU count per node can not be satisfied"
    log = (
        f"SLURM sbatch failed. The error message was 'sbatch: error: {many}\nsbatch: error: no'.\n"
    )
    assert f"refused a job: {many}; no (--cores, " in refusal(log + log)
    assert refusal("At least one job did not complete successfully.") == ""
    for words, hint in (
        ("Batch job submission failed: Resource temporarily unavailable", "see MaxJobCount: run"),
        ("AssocMaxSubmitJobLimit\nsbatch: error: (job submit limit, user's size)", "your account"),
        ("Requested node configuration is not available", "no node has so much: ask for less by"),
    ):
        assert hint in refusal(f"The error message was 'sbatch: error: {words}'.")


def prefix(place: Path) -> str:
    """What the names of a plan's jobs begin with in the queue."""
    given = words(CLUSTER, place)[0].split()
    return given[given.index("--slurm-jobname-prefix") + 1]


def test_the_queue_is_emptied_of_this_plan(tmp_path, monkeypatch):
    """Of no other campaign's jobs, those of a copy with the same plan included."""
    place = tmp_path / "4faa"
    mine, other = (f"{prefix(each)}_1-2" for each in (place, tmp_path / "copy" / "4faa"))
    queue = f"echo '7 {mine}'; echo '8 {other}'; echo '9 x'; echo '10 {mine.replace('_', '4_')}'"
    programs(tmp_path, scancel=f'echo "$@" >> {tmp_path}/cancelled', squeue=queue)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    of_cluster(CLUSTER).cancel(place)
    assert (tmp_path / "cancelled").read_text() == "7\n"


def test_nothing_of_a_stranger_becomes_a_word_of_slurms_or_of_a_shell(tmp_path, monkeypatch):
    for folder in ("$(touch X)", "a`b`", "it's", 'a"b'):
        with pytest.raises(ValueError, match="would pass to a shell; use another folder"):
            words(CLUSTER, tmp_path / folder)
    programs(tmp_path, scontrol=f"touch {tmp_path}/asked; echo JobState=TIMEOUT")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for job in ("--help", "1 2", "", "$(touch X)", "1;2"):
        assert slurm.Scheduler.end_of(job) == ""
    assert not (tmp_path / "asked").exists()
    assert slurm.Scheduler.end_of("12_3").startswith("TIMEOUT")


def test_a_controller_that_is_away_for_a_while_is_told(folder, tmp_path, monkeypatch, capfd):
    """Once for each time that it is away for more than one question."""
    plan, end = campaigns.planned(folder, f"runs={tmp_path}"), tmp_path / "end"
    answers = iter([{}, None, {}, None, None, None, {}, None, None])

    def states(_: object) -> dict[str, str] | None:
        try:
            return next(answers)
        except StopIteration:
            end.touch()
            return {}

    monkeypatch.setattr(slurm.Scheduler, "states", states)
    monkeypatch.setattr(slurm.Scheduler, "cancel", lambda *_: None)
    monkeypatch.setattr(workflow, "PING_S", 0)
    monkeypatch.setattr(workflow, "POLL_S", 0.01)
    where = Site("cpu", (), scheduler=of_cluster(CLUSTER))
    script = f"until test -e {end}; do sleep 0.1; done; exit 1"
    with pytest.raises(CampaignError, match="the campaign stopped"):
        workflow.run_snakemake(["/bin/sh", "-c", script], [plan], where, {"PATH": "/usr/bin:/bin"})
    assert capfd.readouterr().err.count("Slurm does not answer: its jobs continue") == 2
