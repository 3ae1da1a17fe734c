"""The words of `rib sweep`: which combinations they make, and what is refused before any work."""

from pathlib import Path

import pytest

from engine import recipe
from engine.campaigns.plan import Plan, make_plan
from engine.errors import RecipeError
from engine.recipe import parsed


def planned(*words: str, name: str = "emoji/ewc") -> Plan:
    return make_plan(*recipe.of_sweep(name, parsed(words)), 2)


def test_a_variant_is_the_cell_of_these_words_alone():
    """Down to the method's options, which its siblings do not get."""
    plan = planned("method.l2=0.1,0.2", "seed=3,4", name="emoji/linear_probe")
    column = plan.columns[-1]
    assert (
        column.settings == {"method.l2": 0.2, "seed": 4} and str(column.setting) == "method.l2=0.2"
    )
    words = ["method.l2=0.2", "seed=4"]
    alone = recipe.load("emoji/linear_probe", parsed(words), downstream=column.downstream)
    (cell,) = plan.cells(column)
    assert cell.recipe == alone
    tuned = planned("method.variant=paper", "method.alphas=[0.5]", "seed=3,4", name="emoji/wise_ft")
    (cell,) = tuned.cells(tuned.columns[-1])
    needed = cell.needs["fine_tune"].recipe
    expected = recipe.load("emoji/fine_tune", parsed(["method.variant=paper"]))
    assert needed.method == expected.method and needed.seed == 4


def test_the_row_and_its_sets():
    words = ("method.lam=1,2", "downstream=[twemoji]", "model.mean=[0.4,0.5,0.5]")
    plan = planned(*words, name="recipe=emoji/ewc")
    assert plan.methods == ("ewc",) and plan.downstreams == ["twemoji"] and len(plan.columns) == 2
    assert plan.place.runs == Path("runs").resolve()
    assert plan.place.campaign.name.startswith("emoji-ewc-sweep-lam-")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("emoji/ewc model.crop=0.8,0.9", "model.crop cannot vary; keys of optimizer and train can"),
        ("emoji/ewc method.lam=1,1.0", "method.lam names 1.0 twice, as 1 and 1.0"),
        ("emoji/ewc method.lam=1,2 method.lam=3", r"method.lam is given twice: .* method.lam=A,B"),
        ("emoji/ewc method.lam=1,", "a value between commas is empty"),
        ("emoji/ewc method.lam=1", "nothing varies: .* engine/launch.py recipe=emoji/ewc"),
        ("emoji/ewc seed=0,1 seeds=2", "seed and seeds=2 both set the seeds"),
        ("emoji/ewc model=[a,b] method.lam=1,2", "a sweep has one model"),
        ("emojis method.lam=1,2", "no campaign 'emojis'; did you mean 'emoji'"),
        ("emoji method.lam=1,2", "name it, as in emoji/fine_tune. Rows: fine_tune"),
        ("emoji/ewc method=lwf method.lam=1,2", "method=lwf: a sweep varies one row: name it, as"),
    ],
)
def test_what_cannot_be_is_refused(words, message):
    name, *rest = words.split()
    with pytest.raises(RecipeError, match=message):
        planned(*rest, name=name)


def test_too_many_columns_are_counted_and_not_made():
    numbers = ",".join(map(str, range(1, 101)))
    words = [f"{key}={numbers}" for key in ("method.lam", "train.epochs", "optimizer.lr", "seed")]
    with pytest.raises(RecipeError, match=r"vary makes 800,000,000 columns; 10,000 at most"):
        planned(*words)
