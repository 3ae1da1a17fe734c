"""Keys: what a changed value makes anew, which keys may vary, and the words of `rib sweep`."""

from pathlib import Path

import pytest

from engine.campaigns.make_plan import make_plan
from engine.campaigns.plan import Plan
from engine.data import packs
from engine.errors import RecipeError
from engine.recipe import overrides
from engine.recipe.effects import effect_of
from engine.recipe.grid_keys import overrides_of_sweep
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import CAMPAIGN, CELL, NOTHING, PACK, RUN

CHANGED = {
    "runs": ("elsewhere", NOTHING),
    "trackers": ("[wandb]", NOTHING),
    "train.checkpoint_minutes": (3, NOTHING),
    "train.zero": (1, NOTHING),
    "model.published.noto": (50, NOTHING),
    "optimizer.lr": (0.5, CELL),
    "train.epochs": (7, CELL),
    "method.lam": (3, CELL),
    "seed": (9, CELL),
    "dataset.shots": (2, CELL),
    "train.snapshots": (4, RUN),
    "evaluate.batch_size": (8, CAMPAIGN),
    "dataset.holdout": (0.5, CAMPAIGN),
    "threads": (2, CAMPAIGN),
    "dataset.pack_format": ("jpeg", PACK),
}


@pytest.mark.parametrize(("key", "value", "effect"), [(k, *of) for k, of in CHANGED.items()])
def test_a_changed_key_changes_what_its_mark_says(key, value, effect):
    given = [overrides.of_word(f"{key}={value}"), overrides.of_word("methods=[ewc]")]
    plans = [make_plan("emoji", words) for words in (given[1:], given)]
    names = [packs.pack_folder(plan.recipe, "noto").name for plan in plans]
    assert effect_of(key) is effect
    assert (plans[0].place.name == plans[1].place.name) == (effect is NOTHING)
    assert (names[0] == names[1]) == (effect is not PACK)


@pytest.mark.parametrize("key", [key for key, (_, effect) in CHANGED.items() if effect is not CELL])
def test_only_keys_of_cells_vary(key):
    value = CHANGED[key][0]
    with pytest.raises(RecipeError, match=f"{key} cannot vary"):
        make_plan(
            "emoji", [*overrides.of_mapping({"param_grid": {key: [value]}, "methods": ["ewc"]})]
        )


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
    tuned = planned(
        "method.variant=released", "method.alphas=[0.5]", "seed=3,4", name="emoji/wise_ft"
    )
    (cell,) = tuned.cells(tuned.columns[-1])
    needed = cell.needs["fine_tune"].recipe
    expected = load_recipe("emoji/fine_tune", parsed(["method.variant=released"]))
    assert needed.method == expected.method and needed.seed == 4


def test_the_row_and_its_sets():
    words = ("method.lam=1,2", "downstream=[twemoji]", "model.mean=[0.4,0.5,0.5]")
    plan = planned(*words, name="recipe=emoji/ewc")
    assert plan.methods == ("ewc",) and plan.downstreams == ["twemoji"] and len(plan.columns) == 2
    assert plan.place.runs == Path("runs").resolve()
    assert plan.place.campaign.name.startswith("emoji-ewc-sweep-lam-")
