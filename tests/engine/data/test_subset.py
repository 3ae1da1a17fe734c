"""Parts of a training split: nested, balanced, seeded, and what they leave as it was."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.data.sets import LabelledSet
from engine.data.splits import first_of_each_class, fraction_of_each_class
from engine.recipe.schema import DatasetRecipe, Recipe
from helpers.grids import COPIES, FEW, listing, same, weights

LABELS = st.lists(st.integers(0, 6), max_size=80).map(lambda x: np.array(x, dtype=np.int64))
SEEDS = st.integers(0, 4)
FRACTIONS = st.floats(0, 1, exclude_min=True)


@given(LABELS, st.integers(1, 12), st.integers(1, 12), SEEDS)
def test_shots_are_nested_and_a_class_gives_as_many_as_it_has(labels, a, b, seed):
    few, more = (first_of_each_class(labels, shots, seed) for shots in sorted((a, b)))
    assert set(few) <= set(more) and few.dtype == np.int64
    assert np.array_equal(few, np.unique(few))
    for label in np.unique(labels):
        assert np.sum(labels[few] == label) == min(a, b, np.sum(labels == label))


@given(LABELS, FRACTIONS, FRACTIONS, SEEDS)
def test_fractions_are_nested_and_each_class_gives_its_share(labels, a, b, seed):
    few, more = (fraction_of_each_class(labels, fraction, seed) for fraction in sorted((a, b)))
    assert set(few) <= set(more) and np.array_equal(few, np.unique(few))
    for label in np.unique(labels):
        share = min(a, b) * np.sum(labels == label)
        assert abs(np.sum(labels[few] == label) - share) < 1 + 1e-9
    assert len(fraction_of_each_class(labels, 1.0, seed)) == len(labels)
    alike = np.repeat(np.unique(labels), 7)  # classes of one size give the fraction of all images
    assert abs(len(fraction_of_each_class(alike, a, seed)) - a * len(alike)) <= 0.5 + 1e-9


def test_a_large_set_is_thinned_in_balance_and_a_small_one_is_not():
    parts = np.repeat(["fog/1", "fog/2", "snow/1"], 80)
    labels = torch.arange(4).repeat_interleave(20).repeat(3)
    train, holdout = np.arange(0, 240, 2), np.arange(1, 240, 2)
    of = LabelledSet("x", parts, labels, None, train, holdout, group=parts)  # type: ignore[arg-type]

    def recipe(**dataset: Any) -> Recipe:
        return Recipe(dataset=DatasetRecipe(**dataset))

    few = of.training(recipe(train_images=25))
    assert len(few) == 25 and set(few) <= set(train)
    counts = Counter((parts[i], labels[i].item()) for i in few)
    assert len(counts) == 3 * 4 and set(counts.values()) == {2, 3}
    assert not np.array_equal(few, of.training(recipe(train_images=25, seed=1)))
    for enough in (0, 120, 500):
        whole = recipe(train_images=enough)
        assert np.array_equal(of.training(whole), train)
        assert of.part_key(whole) == {}, "no other name for the same images"
    unsplit = replace(of, train=np.arange(240), holdout=np.arange(0))
    assert len(unsplit.training(recipe(holdout=0))) == 240
    with pytest.raises(ValueError, match=r"holdout=0.25 holds out no image of x, which"):
        unsplit.training(recipe(holdout=0.25))
    shots = of.training(recipe(train_images=24, shots=2))
    assert set(shots) <= set(of.training(recipe(train_images=24))) and len(shots) == 4 * 2
    keys = [of.part_key(recipe(train_images=n)) for n in (24, 25)]
    assert keys[0] != keys[1] and all(keys)


def test_a_cell_trains_on_its_part_alone_and_evaluates_as_before(grid):
    whole, few = grid.builder("downstream=few"), grid.builder("downstream=few", "dataset.shots=2")
    positions = few.target.training(few.recipe)
    assert len(positions) == 2 * len(FEW) and set(positions) < set(few.target.split("train"))
    for name in ("all", "train", "holdout"):
        assert np.array_equal(few.target.split(name), whole.target.split(name))
    reseeded = grid.builder("downstream=few", "dataset.shots=2", "seed=1")
    assert not np.array_equal(reseeded.target.training(reseeded.recipe), positions)
    assert few.base.name == reseeded.base.name == whole.base.name, "the head has seen all images"


@pytest.mark.parametrize("method", ["fine_tune", "linear_probe", "wise_ft"])
def test_a_part_stands_in_the_key_and_the_whole_does_not(grid, method):
    def key(*words: str) -> dict[str, Any]:
        return grid.builder(f"method={method}", *words).key()

    whole = key()
    parts = [key(f"dataset.{word}") for word in ("shots=1", "shots=2", "fraction=0.5")]
    assert len({json.dumps(part, sort_keys=True) for part in [whole, *parts]}) == 4
    assert "part" not in whole
    trained_on = COPIES - round(0.25 * COPIES)
    for word in ("shots=0", f"shots={trained_on}", "shots=999", "fraction=1"):
        assert key(f"dataset.{word}") == whole, f"{word}: the same images, so the same cell"


def test_a_part_trains_like_a_folder_that_holds_nothing_else(grid, tmp_path):
    words = ("dataset.holdout=0", "train.batch_size=4")
    builder, cell = grid.build(*words, "dataset.shots=2")
    history = json.loads((cell.artifact.folder / "history.json").read_text())
    assert history[-1]["step"] == 2 * 3, "two epochs over two images of each of five classes"
    shutil.copytree(grid.folder, tmp_path / "images")
    trained_on = set(builder.target.training(builder.recipe))
    for place, (file, _) in enumerate(listing(grid, "outline")):
        if place not in trained_on:
            (tmp_path / "images" / file.relative_to(grid.folder)).unlink()
    _, alone = grid.build(*words, f"dataset.root={tmp_path}/images", f"runs={tmp_path}/runs")
    assert same(weights(alone), weights(cell))


def test_a_fraction_of_no_image_is_refused(grid):
    with pytest.raises(ValueError, match=r"leaves none of the 25 training images of outline"):
        grid.build("dataset.fraction=0.001")
