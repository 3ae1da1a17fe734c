"""Find a kind of datasets: a module of `engine.data.kinds`, or a user's file.

It is found by name, so recipes depend on no kind. The module defines `Recipe` (which extends
`DatasetRecipe` with its options) and `Kind` (built as `Kind(dataset, name)`), as in
`engine.data.kinds.base`. A user's file runs only when images are read; until then its options are
the recipe's, unchecked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.recipe import typed
from engine.recipe.finder import Modules, is_users
from engine.recipe.schema import DatasetRecipe
from engine.recipe.typed import Layer, Options

LISTS = ("sets", "evaluate_on", "train_sets", "probe_sets")  # keys that list datasets
# Keys that a dataset can have of its own, besides its kind's options.
OF_SET = (
    *("kind", "root", "images", "class_count", "parts", "split"),
    *("class_map", "class_reduction", "mask", "undecodable", "background"),
)


KINDS = Modules(
    section="dataset",
    key="kind",
    packages=("engine.data.kinds",),
    base=DatasetRecipe,
    made="Kind",
    noun="kind",
)


def options_of(dataset: DatasetRecipe) -> dict[str, Any]:
    """The values of a kind's own options."""
    shared = {field.name for field in fields(DatasetRecipe)}
    return {name: value for name, value in asdict(dataset).items() if name not in shared}


def of_set(dataset: DatasetRecipe, name: str) -> DatasetRecipe:
    """A benchmark's recipe with the kind, root and options of one of its datasets.

    A dataset of another kind than the benchmark's has its kind's default options, and its split is
    complete where files by part give it. Raises RecipeError, naming the key, for one that a dataset
    cannot have, and an invalid value.
    """
    return _with_whole_split(_with_own_keys(dataset, name), name)


def _with_own_keys(dataset: DatasetRecipe, name: str) -> DatasetRecipe:
    if not (own := dataset.per_dataset.get(name)):
        return dataset
    key, kind = f"dataset.per_dataset.{name}", str(own.get("kind", dataset.kind))
    shared = type(dataset) if kind == dataset.kind else DatasetRecipe
    names_of_shared = [field.name for field in fields(shared)]
    of_kind = KINDS.class_of(kind, {*names_of_shared, *own}, key)
    keys = _keys_of_set(of_kind)
    if wrong := [name for name in own if name not in keys]:
        raise RecipeError(f"{key} has no key {wrong[0]!r}{nearest(wrong[0], keys)}")
    given = asdict(dataset)
    values = {name: given[name] for name in names_of_shared} | {"per_dataset": {}}
    typed.add(values, of_kind, Options(), own, "", f"{key}.")
    return typed.build(values, of_kind, Options(), key)


def _with_whole_split(dataset: DatasetRecipe, name: str) -> DatasetRecipe:
    """Files by part name the parts; by default all parts but `train` are held out."""
    split = dataset.split
    if not isinstance(split.files, dict):
        return dataset
    train, holdout = split.train, split.holdout
    if not (train or holdout):
        train, holdout = ["train"], [part for part in split.files if part != "train"]
        if not holdout or len(holdout) == len(split.files):
            raise RecipeError(
                f"dataset.split.files of {name} names {', '.join(split.files)}: name `train` and a "
                "part to hold out, or set split.train and split.holdout to names of these files"
            )
    column = split.column or "split"
    return replace(dataset, split=replace(split, column=column, train=train, holdout=holdout))


def keep_own(dataset: dict[str, Any], layers: Sequence[Layer]) -> None:
    """Keep the own keys of a benchmark's datasets, and drop those of datasets that a later layer
    left out.

    dataset: the merged values. Raises RecipeError, naming the layer, for own keys of a dataset that
    no layer names.
    """
    sections = [(source, layer.get("dataset")) for source, layer in layers]
    given = [(source, s) for source, s in sections if isinstance(s, Mapping)]
    named = {name for _, section in given for name in _named(section)} | _named(dataset)
    for source, section in given:
        keys = section.get("per_dataset")
        for name in keys if isinstance(keys, Mapping) else ():
            if name not in named:
                key = f"dataset.per_dataset.{name}"
                raise RecipeError(
                    f"{source}: {key}: no dataset has this name{nearest(name, named)}"
                )
    kept = _named(dataset)
    every = dataset.get("per_dataset", {})
    dataset["per_dataset"] = {name: own for name, own in every.items() if name in kept}


def _named(dataset: Mapping[str, Any]) -> set[str]:
    """The datasets of a benchmark's values, as far as they are not words of the command line."""
    lists = (dataset.get(key) for key in LISTS)
    names = {name for values in lists if isinstance(values, list) for name in values}
    upstream = dataset.get("upstream", DatasetRecipe.upstream)
    return set(map(str, [*filter(None, [upstream]), *names]))


def users_files(dataset: DatasetRecipe) -> set[str]:
    """The users' files among the kinds of a benchmark's datasets."""
    kinds = [dataset.kind, *(str(own.get("kind", "")) for own in dataset.per_dataset.values())]
    return set(filter(is_users, kinds))


def _keys_of_set(of_kind: type[DatasetRecipe]) -> list[str]:
    """The keys that a dataset of a kind can have of its own."""
    shared = {field.name for field in fields(DatasetRecipe)}
    return [*OF_SET, *(field.name for field in fields(of_kind) if field.name not in shared)]
