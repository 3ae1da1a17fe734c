"""Trials: values that each method draws from its search ranges."""

import math

import pytest

from engine.campaigns.make_plan import make_plan
from engine.campaigns.plan import Plan, plan_to_json, read_plan
from engine.errors import RecipeError
from engine.recipe.overrides import parsed
from engine.recipe.trials import trials_of

CAMPAIGN = "emoji"
WORDS = ("methods=[linear_probe,lora,ewc,lp_ft,wise_ft]", "downstreams=[twemoji]")


def planned(*words: str) -> Plan:
    return make_plan(CAMPAIGN, parsed([*WORDS, *words]))


def test_each_method_has_its_own_values_and_the_first_trial_is_the_recipe():
    plan, plain = planned("trials=3"), planned()
    assert [str(column.setting) for column in plan.columns] == ["trial=0", "trial=1", "trial=2"]
    of_trials = [[cell.recipe for cell in plan.cells(column)] for column in plan.columns]
    assert of_trials[0] == [cell.recipe for cell in plain.cells(plain.columns[0])]
    assert all(set(column.settings) == {"trial"} for column in plan.columns)
    assert [dict(each.trials[0]) for each in plan.rows.values()] == [{}] * 5
    keys = {name: set(row.trials[2]) for name, row in plan.rows.items()}
    lr = "optimizer.lr"
    assert keys == {
        "linear_probe": {"method.l2"}, "lora": {lr, "method.rank", "method.scale"},
        "ewc": {lr, "method.lam"}, "lp_ft": {lr}, "wise_ft": set(),
    }  # fmt: skip
    for column, cells in zip(plan.columns[1:], of_trials[1:], strict=True):
        trial = column.settings["trial"]
        for row, cell in zip(plan.rows.values(), cells, strict=True):
            for key, value in row.trials[trial].items():
                section, name = key.split(".")
                assert getattr(getattr(cell, section), name) == value


def test_a_needed_cell_is_that_of_its_own_row():
    """WiSE-FT interpolates the FT of its trial, which is trained once for both."""
    plan = planned("methods=[fine_tune,wise_ft]", "trials=2", "seeds=2")
    fine_tune, wise_ft, again, _ = plan.cells(plan.columns[1])
    assert wise_ft.needs["fine_tune"].recipe == fine_tune.recipe
    assert fine_tune.recipe.optimizer.lr == plan.rows["fine_tune"].trials[1]["optimizer.lr"]
    assert again.recipe.optimizer == fine_tune.recipe.optimizer and again.recipe.seed == 1


def test_the_plans_file_has_the_trials(tmp_path):
    plan = planned("trials=3", f"runs={tmp_path}")
    plan.place.root.write(plan.place.plan, plan_to_json(plan))
    again = read_plan(plan.place)
    assert [list(again.cells(c)) for c in again.columns] == [
        list(plan.cells(c)) for c in plan.columns
    ]


def test_draws_are_log_uniform_in_their_range_and_a_larger_budget_keeps_a_smaller_ones():
    cell = planned().rows["ewc"].recipe
    trials = trials_of(cell, 1000)
    assert trials[:4] == trials_of(cell, 4) != trials_of(planned("seed=1").rows["ewc"].recipe, 4)
    for key, value, factor in (("optimizer.lr", 3e-4, 10), ("method.lam", 1.0, 10)):
        drawn = [math.log(trial[key] / value, factor) for trial in trials[1:]]
        logs = sorted(drawn)
        # Kolmogorov and Smirnov: below 1.95 / sqrt(n) with a probability of 99.9%.
        gaps = [abs((k + 0.5) / len(logs) - (x + 1) / 2) for k, x in enumerate(logs)]
        assert max(gaps) < 1.95 / math.sqrt(len(logs))
    pairs = [(math.log(t["optimizer.lr"]), math.log(t["method.lam"])) for t in trials[1:]]
    x, y = ([value - sum(of) / len(of) for value in of] for of in zip(*pairs, strict=True))
    related = sum(a * b for a, b in zip(x, y, strict=True))
    related /= math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    assert abs(related) < 0.11, "keys are drawn independently"
    for first in range(0, 999, 3):  # each third of a range once, so few trials cover both sides
        thirds = {math.floor((x + 1) * 3 / 2) for x in drawn[first : first + 3]}
        assert thirds == {0, 1, 2}
    ranks = {trial["method.rank"] for trial in trials_of(planned().rows["lora"].recipe, 300)[1:]}
    assert ranks <= {*range(2, 33)} and {2, 8, 30} <= ranks


def test_equal_rates_draw_equal_rates_and_varied_keys_win():
    plan = planned("methods=[fine_tune,ewc,lora]", "trials=2", "param_grid={train.epochs: [1, 2]}")
    rates = [cell.recipe.optimizer.lr for cell in plan.cells(plan.columns[1])]
    assert rates[0] == rates[2] and rates[1] == pytest.approx(rates[0] / 3e-4 * 1e-3, rel=0.01)
    assert [str(c.setting) for c in plan.columns][1:3] == [
        "train.epochs=1,trial=1", "train.epochs=2,trial=0"
    ]  # fmt: skip
    of_vary = planned("methods=[ewc]", "trials=2", "param_grid={optimizer.lr: [1.0]}")
    (cell,) = of_vary.cells(of_vary.columns[1])
    assert cell.recipe.optimizer.lr == 1.0 and cell.recipe.method.lam != 1.0


def test_other_ranges_are_another_plan(monkeypatch):
    """The plan's name determines its results, which a change of a range in a program changes."""
    before = planned("trials=2").place.name
    monkeypatch.setattr("engine.recipe.trials.random.Random.random", lambda *_: 0.5)
    assert planned("trials=2").place.name != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trials=-1"],
            "trials=-1 is not a number of trials, up to 1000: trials=4 trains every method",
        ),
        (["trials=1001"], "trials=1001 is not a number of trials"),
        (["trials=2", "replicates=1"], "does not work with param_grid, trials or several seeds"),
        (["methods=[ewc]", "trials=4", "method.lam=1e308"], "method.lam=inf must be a number"),
    ],
)
def test_impossible_trials(words, message):
    with pytest.raises(RecipeError, match=message.replace("+", r"\+")):
        planned(*words)
