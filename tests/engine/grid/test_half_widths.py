"""Sequential evaluation: which plans run one after the other, and which of them is shown."""

from __future__ import annotations

import json
from pathlib import Path

import campaigns
import pytest

from engine import recipe
from engine.evaluation import budget
from engine.grid import campaign, half_widths

folder = campaigns.folder


@pytest.fixture
def arguments(folder: Path, tmp_path: Path) -> tuple[str, list[str], int]:
    """A campaign to be as sure as 2 points, of at most 90% of the images."""
    words = [f"runs={tmp_path}", "evaluate.budget=0.9", "evaluate.half_width=2"]
    return str(folder / "shapes.yaml"), words, 2


def leave_half_widths(plan: campaign.Plan, share: float, width: float) -> None:
    """Write the file that a plan's report leaves."""
    plan.path.parent.mkdir(parents=True, exist_ok=True)
    (plan.path.parent / half_widths.FILE).write_text(json.dumps([share, width]))


def budget_of(plan: campaign.Plan) -> float:
    return float(plan.overrides[-1].removeprefix("evaluate.budget="))


def test_without_a_half_width_there_is_one_plan_of_the_words(folder, tmp_path):
    words = [f"runs={tmp_path}", "evaluate.budget=0.3"]
    (plan,) = half_widths.sequential_plans(str(folder / "shapes.yaml"), words, 2)
    assert plan.overrides == tuple(words)


def test_looks_go_on_until_one_is_narrow_and_are_not_run_again(arguments):
    plans = half_widths.sequential_plans(*arguments)
    first = next(plans)
    assert budget_of(first) == budget.FIRST
    leave_half_widths(first, 0.1, 5.0)
    second = next(plans)
    assert budget_of(second) == budget.next_look(2, 0.1, 5.0, 2, 0.9)
    leave_half_widths(second, 0.45, 1.9)
    assert list(plans) == []
    assert list(half_widths.sequential_plans(*arguments)) == [second]  # wide: skipped; narrow: once


@pytest.mark.slow
def test_the_last_look_is_at_the_budget_however_wide(arguments):
    run = []
    for plan in half_widths.sequential_plans(*arguments):
        run.append(plan)
        leave_half_widths(plan, 0.01 * 1.3 ** len(run), 2.01)
    assert len(run) == budget.LOOKS and budget_of(run[-1]) == 0.9
    assert len({budget_of(plan) for plan in run}) == budget.LOOKS
    assert list(half_widths.sequential_plans(*arguments)) == run[-1:]


def test_a_run_that_stopped_before_its_report_ends_there(arguments):
    plans = half_widths.sequential_plans(*arguments)
    first = next(plans)
    assert list(plans) == [] and list(half_widths.sequential_plans(*arguments)) == [first]


def test_the_report_names_the_command_that_was_given(arguments):
    name, words, _ = arguments
    plan = next(half_widths.sequential_plans(*arguments))
    resolved = recipe.load(name, plan.overrides)
    assert plan.overrides[:-1] == half_widths.users_words(plan, resolved) == tuple(words)
    plain = campaign.plan(name, words[:2], 2)
    assert half_widths.users_words(plain, recipe.load(name, words[:2])) == tuple(words[:2])


def test_a_report_without_any_half_width_is_a_mistake(arguments, tmp_path):
    plan = next(half_widths.sequential_plans(*arguments))
    with pytest.raises(AssertionError):
        half_widths.write(tmp_path, plan.path.parent, [], {})
