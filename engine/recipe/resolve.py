"""Merge YAML files and overrides into one checked, frozen `Recipe`.

A recipe names the files of its campaign, model, dataset and method, or contains their sections. The
layers are merged in this order: model, dataset, method, campaign, the campaign's row for the
method, the recipe's file, and overrides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from engine.did_you_mean import nearest
from engine.errors import RecipeError
from engine.measures.rows import trained_sets
from engine.model_files.model_names import model_section
from engine.recipe import campaigns, catalogue, checks, kinds, overrides, typed
from engine.recipe.campaigns import SELECTION, Campaign
from engine.recipe.catalogue import EXTENDS, GROUPS, is_path, path_of, with_absolute_module
from engine.recipe.grid_keys import grid_keys
from engine.recipe.kinds import KINDS
from engine.recipe.methods import METHODS
from engine.recipe.overrides import COMMAND_LINE, Override, nested
from engine.recipe.schema import VARIANT, MethodRecipe, Recipe
from engine.recipe.typed import NEEDS, OF_METHOD, Layer, Options

DOWNSTREAM = "downstream"
NAMED = "the model's name"  # source of the section of a model without a file, such as timm's


def load_recipe(
    name: str,
    given: Sequence[Override] = (),
    *,
    method: str | None = None,
    downstream: str | None = None,
) -> Recipe:
    """Resolve a recipe (`emoji/ewc`, a campaign's name, or a path) with the overrides given.

    `method` and `downstream` select another cell of the same campaign. Overrides of `method.*`
    apply to the recipe's method, or to the single row of `methods=[ROW]`; for other methods only
    `method.variant` applies. A user's method file does not run, so the options have only the
    recipe's keys (`Modules.complete` adds the rest).

    Raises RecipeError for an unknown recipe, key or name, a wrong type or a missing value.
    """
    file, top = _top(name)
    choices = overrides.by_key(given)
    if method is not None:
        top = _of_method(top, method, str(file))
    in_file = top.get("campaign", "")
    campaign_name = str(choices["campaign"].value if "campaign" in choices else in_file)
    campaign, rows = Campaign("", Path()), []
    if campaign_name:
        campaign, rows = campaigns.selected(campaign_name, given)
    if method is not None and not (SELECTION in choices and rows == [method]):
        given = without_options(given)
        choices = overrides.by_key(given)

    layers: list[Layer] = []
    for key, group in GROUPS.items():
        if key in choices:
            sections = [(choices[key].source, choices[key].value)]
        else:
            said = [(str(file), top)] if key in top else campaign.layers
            sections = [(source, layer[key]) for source, layer in said if key in layer]
        if key == "method":
            section = sections[-1][1] if sections else None
            is_method = isinstance(section, Mapping) and section.get("name") == method
            row = None if is_method else method or section or next(iter(rows), None)
            if isinstance(row, str):
                sections = [(COMMAND_LINE, campaign.base(row))]
        if not sections:
            raise RecipeError(f"recipe {name!r} names no {key}: add `{key}=NAME`")
        layers += _section(key, group, sections)
    layers += [(source, _settings(layer, source)) for source, layer in campaign.layers]
    of_row = campaign.settings(row) if isinstance(row, str) else []
    layers += of_row
    layers.append((str(file), _settings(top, str(file))))
    layers += [
        (override.source, with_absolute_module(nested(override.key, override.value), Path()))
        for override in given
        if override.key not in (*GROUPS, *campaigns.OF_GRID, "campaign")
    ]
    layers.append((COMMAND_LINE, {"campaign": campaign_name}))
    values, options = _merged(layers)
    _check_trains(options.method, of_row)
    sets = values["dataset"].get("sets") or ()
    is_whole = file is None and "method" not in top and DOWNSTREAM not in choices
    is_known = {*trained_sets(values.get(DOWNSTREAM, ""))} <= {*sets}
    if downstream is None and is_whole and sets and not is_known:
        downstream = sets[0]
    if downstream is not None:
        values[DOWNSTREAM] = downstream
    resolved = typed.build(values, Recipe, options, f"recipe {name!r}")
    if (file is None or campaign_name) and not resolved.trained_on:
        # The command line selects columns of a campaign, which are scored as with the others.
        grids = [grid_keys(campaign_name, of_grid) for of_grid in ((), given)]
        columns = chain(*(grid.trained_on(resolved.dataset) for grid in grids))
        trained_on = list(dict.fromkeys(chain.from_iterable(columns)))
        resolved = dataclasses.replace(resolved, trained_on=trained_on)
    checks.check_words(resolved.dataset)
    return checks.checked(resolved)


def recipe_of_sections(
    model: str, dataset: str, given: Sequence[Override] = (), *, method: str = "fine_tune"
) -> Recipe:
    """A recipe with only a model and a dataset, for work outside campaigns.

    Raises RecipeError as `load_recipe` does.
    """
    chosen = {"model": model, "dataset": dataset, "method": method}
    layers = [
        layer for key, name in chosen.items() for layer in _section(key, GROUPS[key], [("", name)])
    ]
    layers += [(override.source, nested(override.key, override.value)) for override in given]
    values, options = _merged(layers)
    of_dataset = values["dataset"]
    values[DOWNSTREAM] = of_dataset.get("upstream", "upstream") or of_dataset["sets"][0]
    resolved = typed.build(values, Recipe, options, f"recipe {dataset!r}")
    checks.check_words(resolved.dataset)
    return checks.checked(resolved)


def varied_recipe(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """A resolved recipe with other values, by dotted key.

    Raises RecipeError for an unknown key, a wrong type or an impossible value.
    """
    values, options = dataclasses.asdict(recipe), Options.of(recipe)
    for key, value in settings.items():
        typed.add(values, Recipe, options, nested(key, value), "")
    return checks.checked(typed.build(values, Recipe, options, "recipe"))


def without_options(given: Sequence[Override]) -> list[Override]:
    """The overrides without a method's own options. Keeps `method.variant`, which every method
    has."""
    return [
        override for override in given if override.section != "method" or override.key == VARIANT
    ]


def _merged(layers: Sequence[Layer]) -> tuple[dict[str, Any], Options]:
    """The merged values of the layers, and the classes of their options."""
    values: dict[str, Any] = {}
    options = Options(METHODS.options(layers), KINDS.options(layers))
    try:
        for source, layer in layers:
            typed.add(values, Recipe, options, layer, source)
    except typed.UnknownKeyError as error:
        section, _, name = error.key.rpartition(".")
        modules = KINDS if section == KINDS.section else METHODS
        owners = modules.with_option(name)
        if not owners:
            raise
        hint = f"{modules.section}.{name} is an option of {', '.join(owners)}"
        raise RecipeError(f"{error}; {hint}") from error
    kinds.keep_own(values["dataset"], layers)
    is_zero_shot = values.get("model", {}).get("weights", {}).get("source") == "open_clip"
    if layers[0][0] == NAMED and not is_zero_shot:  # its head has ImageNet's classes
        is_imagenet = values["dataset"].get("kind") == "imagenet"
        values["model"]["head"].setdefault("fit", not is_imagenet)
    return values, options


def _top(name: str) -> tuple[Path | None, dict[str, Any]]:
    """The recipe's file and content; no file for a campaign or CAMPAIGN/ROW."""
    if name in catalogue.names("campaigns"):
        return None, {"campaign": name}
    campaign, _, row = name.rpartition("/")
    is_made = campaign in catalogue.names("campaigns") and name not in catalogue.names()
    if is_made and row in campaigns.read_campaign(campaign).table:
        return None, {"campaign": campaign, "method": row}
    if not is_path(name) and name not in catalogue.names():
        hint = nearest(name, campaigns.recipe_names())
        if is_made and row in catalogue.names("methods"):
            hint = f"; {campaign} has no row {row}: give recipe={campaign} method={row}"
        raise RecipeError(f"there is no recipe {name!r}{hint}")
    file = path_of("", name)
    top = catalogue.read_recipe(file)
    return (None, {"campaign": name}) if top.keys() & {SELECTION, EXTENDS} else (file, top)


def _of_method(top: dict[str, Any], method: str, file: str) -> dict[str, Any]:
    """A recipe file's values for another method than its own, with the sections listed for it under
    `needs`, if any."""
    section, needs = top.get("method"), top.get(NEEDS, {})
    if not isinstance(section, Mapping) or section.get("name") == method:
        return top
    if not isinstance(needs, Mapping) or not isinstance(needs.get(method, {}), Mapping):
        raise RecipeError(
            f"{file}: {NEEDS} must contain sections by method, as `--print` writes them"
        )
    return {k: v for k, v in top.items() if k not in OF_METHOD} | dict(needs.get(method, {}))


def _section(key: str, group: str, given: Sequence[tuple[str, Any]]) -> list[Layer]:
    """The layers of a model, dataset or method: the file named last, or named by `extends`, after
    the files that it extends, then the sections given after it."""
    layers: list[Layer] = []
    base: str | None = None
    for source, section in given:
        if isinstance(section, Mapping):
            base = section.get(EXTENDS, base if layers else None)
            section = {name: value for name, value in section.items() if name != EXTENDS}
            layers.append((source, section))
        else:
            base, layers = section, []
    while base is not None:
        is_file = key != "model" or is_path(str(base)) or base in catalogue.names(group)
        named = None if is_file else model_section(str(base))
        path = Path(NAMED) if named else path_of(group, str(base))
        if any(source == str(path) for source, _ in layers):
            raise RecipeError(f"{path} extends itself: name another {key} in {EXTENDS}")
        values = dict(named or catalogue.read_recipe(path))
        base = values.pop(EXTENDS, None)
        layers.insert(0, (str(path), values))
    return [
        (source, with_absolute_module({key: section}, Path(source).parent))
        for source, section in layers
    ]


def _check_trains(options: type[MethodRecipe], of_row: Sequence[Layer]) -> None:
    """Raise RecipeError if a row has training settings, but its method does not train."""
    for source, layer in of_row if not options.trains else ():
        for section in ("optimizer", "train"):
            if section in layer:
                raise RecipeError(
                    f"{source}: its method does not train, so `{section}` has no effect: set it in "
                    "the rows that the method combines, or next to `methods:` for all rows"
                )


def _settings(layer: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """A file's settings of a cell, without its campaign, model, dataset and method."""
    elsewhere = ("campaign", "models", NEEDS, *GROUPS, *campaigns.OF_GRID)
    settings = {key: value for key, value in layer.items() if key not in elsewhere}
    return with_absolute_module(settings, Path(source).parent)
