"""The layers of a recipe become one checked `Recipe`, or an error that names the wrong layer."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from engine.errors import RecipeError
from engine.recipe import checks, modules
from engine.recipe.catalogue import OTHER_FORM
from engine.recipe.schema import MethodRecipe, Recipe

Layer = tuple[str, dict[str, Any]]  # where it comes from, and what it says


def merge(name: str, layers: Sequence[Layer], method: MethodRecipe) -> Recipe:
    """The recipe that the layers say together; a later layer wins. method: its default options."""
    assert method == type(method)(), method
    merged = copy.deepcopy(_defaults(type(method)))
    for source, values in layers:
        merged = add(merged, source, values)
    try:
        recipe = typing.cast(Recipe, OmegaConf.to_object(merged))
    except MissingMandatoryValue as error:
        key = error.full_key
        raise RecipeError(f"recipe {name!r}: {key} has no value; add `{key}=VALUE`") from error
    except OmegaConfBaseException as error:
        raise RecipeError(f"recipe {name!r}: {error.full_key}: {_first_line(error)}") from error
    checks.check(recipe)
    return recipe


@functools.cache  # made anew it takes five times as long, and a grid resolves many recipes
def _defaults(options: type[MethodRecipe]) -> Any:
    return OmegaConf.structured(Recipe(method=options()))


def add(merged: Any, source: str, values: Any) -> Any:
    """The structured config `merged` (it may be changed) with the values of a layer.

    Raises RecipeError, naming the layer's source, for an unknown key or a wrong type.
    """
    try:
        return OmegaConf.unsafe_merge(merged, values)  # which copies nothing
    except ConfigKeyError as error:
        key = str(error.full_key)
        hint = checks.REMOVED.get(key) or _nearest_key(key, merged)
        raise RecipeError(f"{source}: unknown key {key!r}{hint}") from error
    except OmegaConfBaseException as error:
        where = f"{source}: {error.full_key}" if error.full_key else source
        raise RecipeError(f"{where}: {_first_line(error)}") from error
    except TypeError as error:
        raise RecipeError(f"{source}: {_wrong_form(values, merged)}: {OTHER_FORM}") from error


def method_options(layers: Sequence[Layer]) -> MethodRecipe:
    """The default options of the method's module, which the last layer that has one names."""
    source = next(name for name, values in layers if "method" in values)
    module = ""
    for name, values in layers:
        section = values.get("method")
        if isinstance(section, Mapping) and section.get("module"):
            source, module = name, str(section["module"])
    if not module:
        raise RecipeError(f"{source}: method.module has no value; set it")
    try:
        return modules.options(module)
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from error


def check_sections(layers: Sequence[tuple[str, Any]]) -> None:
    """Raise RecipeError unless each layer, and each of its sections, holds `key: value` lines."""
    sections = {
        f.name for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(f.default_factory)
    }
    for source, values in layers:
        if not isinstance(values, Mapping):
            raise RecipeError(f"{source} must hold `key: value` lines, not {values!r}")
        for key in sections & values.keys():
            if not isinstance(section := values[key], Mapping):
                raise RecipeError(f"{source}: {key} must hold `key: value` lines, not {section!r}")


def _nearest_key(key: str, merged: Any) -> str:
    """`; did you mean 'train.epochs'?`: the keys whose last word is nearest to this key's.

    Keys of the same section come first; where no word is near, the section's keys are listed.
    """
    section, _, word = key.rpartition(".")
    known: dict[str, list[str]] = {}
    for name in _keys(typing.cast(dict, OmegaConf.to_container(merged))):
        known.setdefault(name.rpartition(".")[2], []).append(name)
    siblings = [last for last in known if _in_section(known[last], section)]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.8)
    close = close or difflib.get_close_matches(word, siblings, n=1)
    if not close:
        return f"; valid: {', '.join(sorted(siblings))}"
    near = _in_section(known[close[0]], section) or sorted(
        known[close[0]], key=lambda n: n.count(".")
    )
    return f"; did you mean {' or '.join(map(repr, near))}?"


def _in_section(keys: Sequence[str], section: str) -> list[str]:
    return [key for key in keys if key.rpartition(".")[0] == section]


def _keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of a recipe, those of its sections with the section's name before them."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")


def _wrong_form(values: Mapping[str, Any], merged: Any) -> str:
    """The key of a list where `key: value` lines belong, or of these where a list does."""
    for key, value in values.items():
        known = OmegaConf.select(merged, key) if OmegaConf.is_dict(merged) else None
        if isinstance(value, Mapping) and OmegaConf.is_dict(known):
            if inner := _wrong_form(value, known):
                return f"{key}.{inner}"
        elif isinstance(value, Mapping | list) and known is not None:
            return key
    return ""


def _first_line(error: OmegaConfBaseException) -> str:
    return str(error.msg or error).splitlines()[0]
