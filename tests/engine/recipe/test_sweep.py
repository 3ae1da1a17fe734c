"""The words of `rib sweep`: which combinations they make, and what is refused before any work."""

from pathlib import Path

from engine.campaigns.make_plan import make_plan
from engine.campaigns.plan import Plan
from engine.recipe.grid_keys import overrides_of_sweep
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe


def planned(*words: str, name: str = "emoji/ewc") -> Plan:
    return make_plan(*overrides_of_sweep(name, parsed(words)), 2)


def test_a_variant_is_the_cell_of_these_words_alone():
    """Down to the method's options, which its siblings do not get."""
    plan = planned("method.l2=0.1,0.2", "seed=3,4", name="emoji/linear_probe")
    column = plan.columns[-1]
    assert (
        column.settings == {"method.l2": 0.2, "seed": 4} and str(column.setting) == "method.l2=0.2"
    )
    words = ["method.l2=0.2", "seed=4"]
    alone = load_recipe("emoji/linear_probe", parsed(words), downstream=column.downstream)
    (cell,) = plan.cells(column)
    assert cell.recipe == alone
    tuned = planned("method.variant=paper", "method.alphas=[0.5]", "seed=3,4", name="emoji/wise_ft")
    (cell,) = tuned.cells(tuned.columns[-1])
    needed = cell.needs["fine_tune"].recipe
    expected = load_recipe("emoji/fine_tune", parsed(["method.variant=paper"]))
    assert needed.method == expected.method and needed.seed == 4


def test_the_row_and_its_sets():
    words = ("method.lam=1,2", "downstream=[twemoji]", "model.mean=[0.4,0.5,0.5]")
    plan = planned(*words, name="recipe=emoji/ewc")
    assert plan.methods == ("ewc",) and plan.downstreams == ["twemoji"] and len(plan.columns) == 2
    assert plan.place.runs == Path("runs").resolve()
    assert plan.place.campaign.name.startswith("emoji-ewc-sweep-lam-")
