"""A recipe with other values of some keys is what resolving with these words gives."""

from __future__ import annotations

import pytest

from engine import recipe
from engine.errors import RecipeError

WORDS = [
    ("optimizer.lr=0.001",),
    ("optimizer.lr=1e-05", "train.epochs=2"),
    ("optimizer.name=sgd", "train.warmup_steps=0", "train.freeze_batchnorm=false"),
    ("method.variant=paper",),
    ("seed=7", "train.epochs=2"),
    (),
]


@pytest.mark.parametrize("words", WORDS, ids=map(str, WORDS))
def test_varied_is_load(words):
    base = recipe.load("emoji", method="ewc")
    assert recipe.varied(base, words) == recipe.load("emoji", words, method="ewc")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optimizer.lrr=1", "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'"),
        ("optimizer.lr=fast", "optimizer.lr: Value 'fast'"),
        ("optimizer.lr=-1", "optimizer.lr=-1.0 must be above 0"),
        ("train.epochs=1.5", "train.epochs: Value '1.5'"),
        ("method.variant=papr", "did you mean 'paper'"),
        ("seeds=1", "'seeds=1' sets no key of a section"),
        ("seed=-1", "seed=-1 must be at least 0"),
    ],
)
def test_mistakes_are_those_of_a_recipe(word, message):
    with pytest.raises(RecipeError, match=message):
        recipe.varied(recipe.load("emoji", method="ewc"), [word])
