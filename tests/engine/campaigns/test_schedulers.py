"""A second scheduler is one class: whatever asks Slurm asks it instead."""

import os
import re
from typing import ClassVar

import pytest

from engine import cli
from engine.campaigns import job_states, sites, workflow
from engine.campaigns.events import Begun, append_event
from engine.campaigns.job_states import FAILED, RUNNING, WAITING
from engine.campaigns.plan import Plan
from engine.campaigns.schedulers import SCHEDULERS, RunOptions, Scheduler
from engine.cost import flops
from engine.errors import CampaignError
from helpers.campaigns import plan_of

JOB, FAILS = "column-few", "exit 1"


class Toy(Scheduler):
    title, job_variable = "Toy", "TOY_JOB"
    cancelled: ClassVar[list[str]] = []

    def __init__(self, options):
        self.queue, self.queue_states = options.partition or "all", {}

    def device(self, chosen):
        return "cpu" if chosen == "auto" else chosen

    def submission(self, place):
        return ("--executor", "toy", "--queue", self.queue), {"TOY_QUEUE": self.queue}

    def cancel(self, place):
        self.cancelled.append(place.name)

    @classmethod
    def end_of(cls, job):
        return {"7": "EVICTED (ask for less)"}.get(job, "")

    def resources(self, cores):
        return {"slots": cores}

    def ends(self, log):
        return dict(re.findall(r"toy: (\S+) was (\w+)", log))

    def refusal(self, log):
        return "Toy took no job: closed" if "toy: closed" in log else ""

    def states(self):
        return self.queue_states


@pytest.fixture
def plan(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(SCHEDULERS, "toy", Toy)
    monkeypatch.setattr(Toy, "cancelled", [])
    monkeypatch.setattr(flops, "forward_tflops", lambda *_: 1.0)  # takes a second
    return plan_of(folder / "shapes.yaml", f"runs={tmp_path}")


def test_it_says_how_jobs_are_submitted_and_what_they_ask_for(plan, folder, tmp_path, capsys):
    options = sites.checked(RunOptions("toy", partition="fast", time=1))
    where = sites.choose_site(options, [plan])
    assert where.words == ("--executor", "toy", "--queue", "fast")
    assert (where.device, where.environment) == ("cpu", {"TOY_QUEUE": "fast"})
    asked = sites.resources(options, where, plan)["column"]
    assert asked.items() >= {"slots": 4, "runtime": 60}.items()
    words = ["campaign", str(folder / "shapes.yaml"), f"runs={tmp_path}", "--executor", "toy"]
    assert cli.main([*words, "--dry-run"]) == 0 and "4 cores" in capsys.readouterr().out
    assert cli.main(["campaign", "emoji", "--mem", "1"]) == 2
    assert "--mem is an option of --executor slurm|toy" in capsys.readouterr().err


def begun(number: str) -> Begun:
    return Begun(node="node1", process=1, scheduler="toy", queued_as=number)


def run(script: str, *plans: Plan) -> None:
    """Campaigns of the toy, whose workflow is a line for a shell in place of Snakemake."""
    plans[0].place.path.mkdir(parents=True, exist_ok=True)
    where = sites.choose_site(RunOptions("toy", cores=1), plans)
    workflow.run_snakemake(["/bin/sh", "-c", script], plans, where, {"PATH": "/usr/bin:/bin"})


def test_it_says_how_a_job_ended_that_left_no_word(plan):
    for number, how in (
        ("7", "was ended by Toy: EVICTED (ask for less)"),
        ("8", "was ended by Toy: it gives no reason"),
    ):
        append_event(plan.place, JOB, begun(number))
        with pytest.raises(CampaignError, match=re.escape(f"{JOB} {how}")):
            run(FAILS, plan)
        assert job_states.read_job(plan.place, JOB).failure == (how, "")


def test_a_job_that_it_forgot_or_put_back_is_not_at_work(plan, tmp_path, monkeypatch, capfd):
    """A forgotten job was waited for in silence, and counted as running."""
    end, states = tmp_path / "end", []
    queue = iter([{"8": "RUNNING"}, {"8": "PENDING"}, {"8": "RUNNING"}, {}, {}])

    def answer(_: Toy) -> dict[str, str]:
        states.append(job_states.read_job(plan.place, JOB).state)
        if states[-1] == WAITING:  # at first, and where the queue has it again
            append_event(plan.place, JOB, begun("8"))
        if states[-2:] == [FAILED, FAILED]:
            end.touch()
        return next(queue, {})

    monkeypatch.setattr(Toy, "states", answer)
    monkeypatch.setattr(workflow, "PING_S", 0)
    monkeypatch.setattr(workflow, "POLL_S", 0.01)
    with pytest.raises(CampaignError, match="was ended by Toy: it no longer knows its job 8"):
        run(f"until test -e {end}; do sleep 0.1; done; exit 1", plan)
    assert states[:6] == [WAITING, RUNNING, WAITING, RUNNING, FAILED, FAILED]
    lost = "column-few was ended by Toy: it no longer knows its job 8; it runs again"
    assert capfd.readouterr().err.count(lost) == 1


def test_its_words_in_the_log_are_read_for_each_of_several_models(plan, folder, tmp_path):
    other = plan_of(folder / "shapes.yaml", f"runs={tmp_path}", "seed=1")
    append_event(plan.place, JOB, begun("7"))
    other.place.path.mkdir(parents=True)
    marker = os.path.relpath(other.place.path / "done" / JOB, plan.place.plans)
    with pytest.raises(CampaignError, match="was ended by Toy: CANCELLED"):
        run(f"echo toy: {marker} was CANCELLED; exit 1", plan, other)


def test_its_queue_is_emptied_where_a_campaign_fails_and_it_says_why(plan):
    with pytest.raises(CampaignError, match="Toy took no job: closed"):
        run("echo toy: closed; exit 1", plan)
    assert Toy.cancelled == [plan.place.name]
