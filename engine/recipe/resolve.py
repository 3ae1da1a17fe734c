"""Recipes: YAML files and `key=value` words become one checked, frozen `Recipe`.

A recipe names its campaign, model, data set and method by file, or holds such a section itself. The
layers are merged in that order, then the campaign's settings for the method, the recipe file itself
and the command line. What `dump` writes is a recipe again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from engine.errors import RecipeError
from engine.recipe import catalogue, table_rows
from engine.recipe.catalogue import (
    COMMAND_LINE,
    GROUPS,
    SELECTION,
    path_of,
    read,
    with_absolute_module,
)
from engine.recipe.merge import Layer, check_sections, merge, method_options
from engine.recipe.schema import MethodRecipe, Recipe


def load(
    name: str,
    overrides: Sequence[str] = (),
    *,
    method: str | None = None,
    downstream: str | None = None,
) -> Recipe:
    """Resolve a recipe (`emoji/ewc`, a campaign's name, or a path) with `key=value` overrides.

    `method` and `downstream` choose another cell of the same campaign. Overrides of `method.*`
    belong to the recipe's method, or to the row that `methods=[ROW]` alone selects. They are left
    out of another method's cell, but not `method.variant`, which every method has.

    Raises RecipeError for an unknown recipe, key or name, a wrong type or a missing value.
    """
    layers = _layers(name, overrides, method, downstream)
    return merge(name, layers, method_options(layers))


def outline(
    name: str, overrides: Sequence[str], method: str | None = None
) -> tuple[Recipe, dict[str, Any]]:
    """A cell without its method's options, and its method section as it stands.

    It imports no method's module, and so no torch. Raises RecipeError as `load` does, but not for a
    method's options.
    """
    layers = _layers(name, overrides, method, None)
    section = catalogue.merged(name, *(values.get("method", {}) for _, values in layers))
    shared = {field.name for field in dataclasses.fields(MethodRecipe)}
    for _, values in layers:
        if "method" in values:
            values["method"] = {k: v for k, v in values["method"].items() if k in shared}
    return merge(name, layers, MethodRecipe()), section


def of_sections(model: str, dataset: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe of a model and a data set alone, for work that comes before any method.

    Raises RecipeError as `load` does.
    """
    chosen = {"model": model, "dataset": dataset, "method": "fine_tune"}
    paths = {key: path_of(GROUPS[key], name) for key, name in chosen.items()}
    layers = [(str(path), {key: read(path)}) for key, path in paths.items()]
    upstream = dict(layers[1][1]["dataset"]).get("upstream", "upstream")
    for word in overrides:
        catalogue.key_and_value(word)
        layers.append((COMMAND_LINE, catalogue.parsed(word)))
    layers.append((COMMAND_LINE, {"downstream": upstream}))
    check_sections(layers)
    return merge(dataset, layers, MethodRecipe())


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True)


def flat(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe's values by dotted key, such as `train.epochs`."""

    def values(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in section.items():
            inner = values(value, f"{prefix}{key}.") if isinstance(value, dict) else None
            items |= {f"{prefix}{key}": value} if inner is None else inner
        return items

    return values(dataclasses.asdict(recipe), "")


def _layers(
    name: str, overrides: Sequence[str], method: str | None, downstream: str | None
) -> list[Layer]:
    """The layers of a recipe, in the order in which they are merged."""
    file, top = _top(name)
    words = [catalogue.key_and_value(word) for word in overrides]
    choices = dict(words)
    if method is not None:
        top = _without_other_method(top, method)
    campaign_name = choices.get("campaign", top.get("campaign"))
    campaign_file = path_of("campaigns", str(campaign_name)) if campaign_name else None
    campaign = catalogue.read_campaign(campaign_file) if campaign_file else {}
    per_method = campaign.pop("methods", None) or {}
    for key in ("models", catalogue.DOWNSTREAMS, catalogue.VARY):
        campaign.pop(key, None)
    if not isinstance(per_method, dict):
        raise RecipeError(f"{campaign_file}: methods must hold `NAME: {{}}` lines")
    selected = catalogue.select(choices.get(SELECTION), list(per_method), str(campaign_name))
    if method is not None and not (SELECTION in choices and selected == [method]):
        words = list(map(catalogue.key_and_value, catalogue.without_options(overrides)))
        choices = dict(words)

    layers: list[Layer] = []
    row: str | None = None  # of the campaign's table
    for key, group in GROUPS.items():
        chosen = choices.get(key, top.get(key, campaign.get(key)))
        if key == "method":
            is_method = isinstance(chosen, Mapping) and chosen.get("name") == method
            chosen = chosen if is_method else method or chosen or next(iter(selected), None)
        if chosen is None:
            raise RecipeError(f"recipe {name!r} names no {key}; add `{key}=NAME`")
        if isinstance(chosen, Mapping):
            path, section = (file if file and key in top else campaign_file), dict(chosen)
            assert path is not None, "a section stands in a file"
            if base := section.pop("extends", None):
                base_path = path_of(group, str(base))
                layers.append(_section(base_path, key, read(base_path)))
        else:
            if key == "method":
                row = str(chosen)
                chosen = table_rows.method_of(per_method, row, str(campaign_file))
            path = path_of(group, str(chosen))
            section = read(path)
        layers.append(_section(path, key, section))
    if campaign_file:
        layers.append((str(campaign_file), _settings(campaign)))
    if campaign_file and row is not None:
        layers += table_rows.settings_of(per_method, row, str(campaign_file))
    if file is not None:
        layers.append((str(file), _settings(top)))
    rest = [f"{key}={value}" for key, value in words if key not in (*GROUPS, *catalogue.OF_GRID)]
    layers += [
        (COMMAND_LINE, with_absolute_module(catalogue.parsed(word), Path())) for word in rest
    ]
    layers.append((COMMAND_LINE, {"campaign": str(campaign_name or "")}))
    check_sections(layers)
    is_whole = file is None and "method" not in top
    if downstream is None and is_whole and "downstream" not in choices:
        downstream = _first_column(layers)
    if downstream is not None:
        layers.append((COMMAND_LINE, {"downstream": downstream}))
    return layers


def _top(name: str) -> tuple[Path | None, dict[str, Any]]:
    """The recipe's file and what it says; no file for a campaign, or a recipe that it makes."""
    campaigns = catalogue.names("campaigns")
    if name in campaigns:
        return None, {"campaign": name}
    campaign, _, method = name.rpartition("/")
    is_made = campaign in campaigns and not (catalogue.ROOT / f"{name}.yaml").is_file()
    if is_made and method in catalogue.methods_of(campaign):
        return None, {"campaign": campaign, "method": method}
    file = path_of("", name)
    top = read(file)
    return (None, {"campaign": name}) if "methods" in top else (file, top)


def _without_other_method(top: dict[str, Any], method: str) -> dict[str, Any]:
    """A recipe file without its method's sections, unless they are those of `method`."""
    section = top.get("method")
    if not isinstance(section, Mapping) or section.get("name") == method:
        return top
    return {k: v for k, v in top.items() if k not in ("method", "optimizer", "train")}


def _section(path: Path, key: str, section: Any) -> Layer:
    return str(path), with_absolute_module({key: section}, path.parent)


def _settings(layer: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says beside the campaign, model, data set and method that it names."""
    return {k: v for k, v in layer.items() if k != "campaign" and k not in GROUPS}


def _first_column(layers: Sequence[Layer]) -> str | None:
    """The downstream set of a whole campaign's first cell, where its files name no other.

    It is the first of the sets that the command line leaves. None where no layer names sets.
    """
    sets: Any = None
    downstream = None
    for _, values in layers:
        sets = values.get("dataset", {}).get("sets", sets)
        downstream = values.get("downstream", downstream)
    if not isinstance(sets, list) or not sets or downstream in sets:
        return None
    return str(sets[0])
