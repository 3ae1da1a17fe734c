"""Find a kind of datasets: a module of `engine.data.kinds`, or a user's file.

It is imported by name, so recipes depend on no kind. The module defines `Recipe` (which extends
`DatasetRecipe` with its options) and `Kind` (built as `Kind(dataset, name)`), as in
`engine.data.kinds.base`. A user's file runs only when images are read; until then its options are
the recipe's, unchecked.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from types import ModuleType
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.recipe import modules, typed
from engine.recipe.modules import is_users
from engine.recipe.schema import DatasetRecipe
from engine.recipe.typed import Layer, Options

LISTS = ("sets", "evaluate_on", "train_sets", "probe_sets")  # keys that list datasets
# Keys that a dataset can have of its own, besides its kind's options.
OF_SET = (
    *("kind", "root", "images", "class_count", "parts", "split"),
    *("outputs", "joined", "mask", "undecodable", "background"),
)


def names() -> Mapping[str, str]:
    """The full name of each module of the engine that defines a kind, by its name in recipes."""
    return modules.names_in("engine/data/kinds")


def options(layers: Sequence[Layer]) -> type[DatasetRecipe]:
    """The options class of the layers' kind. Imports no user's file.

    Raises RecipeError, naming the layer, for an unknown kind.
    """
    source, kind, given = modules.named(layers, "dataset", "kind")
    if is_users(kind):
        modules.check_file(f"{source}: kind", kind)
    return class_of(kind or DatasetRecipe.kind, given, f"{source}: ")


def class_of(kind: str, given: Iterable[str], source: str = "") -> type[DatasetRecipe]:
    """The options class of a kind. given: the keys in the recipe, which name a user's options.

    source: the beginning of errors. Raises RecipeError for an unknown kind.
    """
    if not is_users(kind) and kind not in names():
        raise RecipeError(f"{source}unknown kind {kind!r} of datasets{nearest(kind, names())}")
    return planned_options({**dict.fromkeys(given), "kind": kind})


def find(kind: str) -> ModuleType:
    """The module of a kind of the engine, or a user's file, which runs now (`modules.run`).

    Raises KeyError for an unknown kind.
    """
    if is_users(kind):
        return modules.run(kind, DatasetRecipe, "Kind")
    return importlib.import_module(names()[kind])


def options_of(dataset: DatasetRecipe) -> dict[str, Any]:
    """The values of a kind's own options."""
    shared = {each.name for each in fields(DatasetRecipe)}
    return {name: value for name, value in asdict(dataset).items() if name not in shared}


def complete(dataset: DatasetRecipe) -> DatasetRecipe:
    """A recipe with the options of a user's kind as its file defines them. Runs the file."""
    of_kind, values = find(dataset.kind).Recipe, {}
    typed.add(values, of_kind, Options(), asdict(dataset), dataset.kind, "dataset.")
    return typed.build(values, of_kind, Options(), dataset.kind)


def planned_options(dataset: Mapping[str, Any]) -> type[DatasetRecipe]:
    """The options class of a benchmark in a plan, readable even if a user's file is gone.

    Raises KeyError for an unknown kind.
    """
    kind = dataset["kind"]
    return modules.as_given(DatasetRecipe, dataset) if is_users(kind) else find(kind).Recipe


def with_option(option: str) -> list[str]:
    """The engine's kinds that have an option of their own of this name."""
    return [name for name in names() if option in _keys_of_set(class_of(name, ()))]


def of_set(dataset: DatasetRecipe, name: str) -> DatasetRecipe:
    """A benchmark's recipe with the kind, root and options of one of its datasets.

    A dataset of another kind than the benchmark's has its kind's default options. Raises
    RecipeError, naming the key, for one that a dataset cannot have, and an invalid value.
    """
    if not (own := dataset.own.get(name)):
        return dataset
    key, kind = f"dataset.own.{name}", str(own.get("kind", dataset.kind))
    shared = type(dataset) if kind == dataset.kind else DatasetRecipe
    names_of_shared = [each.name for each in fields(shared)]
    of_kind = class_of(kind, {*names_of_shared, *own}, f"{key}: ")
    keys = _keys_of_set(of_kind)
    if wrong := [each for each in own if each not in keys]:
        raise RecipeError(f"{key} has no key {wrong[0]!r}{nearest(wrong[0], keys)}")
    given = asdict(dataset)
    values = {each: given[each] for each in names_of_shared} | {"own": {}}
    typed.add(values, of_kind, Options(), own, "", f"{key}.")
    return typed.build(values, of_kind, Options(), key)


def keep_own(dataset: dict[str, Any], layers: Sequence[Layer]) -> None:
    """Keep the own keys of a benchmark's datasets, and drop those of datasets that a later layer
    left out.

    dataset: the merged values. Raises RecipeError, naming the layer, for own keys of a dataset that
    no layer names.
    """
    sections = [(source, layer.get("dataset")) for source, layer in layers]
    given = [(source, each) for source, each in sections if isinstance(each, Mapping)]
    named = {name for _, section in given for name in _named(section)} | _named(dataset)
    for source, section in given:
        for name in section["own"] if isinstance(section.get("own"), Mapping) else ():
            if name not in named:
                key = f"dataset.own.{name}"
                raise RecipeError(
                    f"{source}: {key}: no dataset has this name{nearest(name, named)}"
                )
    kept = _named(dataset)
    dataset["own"] = {name: own for name, own in dataset.get("own", {}).items() if name in kept}


def _named(dataset: Mapping[str, Any]) -> set[str]:
    """The datasets of a benchmark's values, as far as they are not words of the command line."""
    lists = (dataset.get(key) for key in LISTS)
    names = {name for each in lists if isinstance(each, list) for name in each}
    upstream = dataset.get("upstream", DatasetRecipe.upstream)
    return set(map(str, [*filter(None, [upstream]), *names]))


def files(dataset: DatasetRecipe) -> set[str]:
    """The users' files among the kinds of a benchmark's datasets."""
    kinds = [dataset.kind, *(str(own.get("kind", "")) for own in dataset.own.values())]
    return set(filter(is_users, kinds))


def _keys_of_set(of_kind: type[DatasetRecipe]) -> list[str]:
    """The keys that a dataset of a kind can have of its own."""
    shared = {each.name for each in fields(DatasetRecipe)}
    return [*OF_SET, *(each.name for each in fields(of_kind) if each.name not in shared)]
