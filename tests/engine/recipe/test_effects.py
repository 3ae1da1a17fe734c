"""A key's mark decides what a changed value makes anew: nothing, cells, the campaign or packs."""

import pytest

from engine.campaigns.make_plan import make_plan
from engine.data import packs
from engine.errors import RecipeError
from engine.recipe import overrides
from engine.recipe.effects import effect_of
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
        make_plan("emoji", [*overrides.of_mapping({"vary": {key: [value]}, "methods": ["ewc"]})])
