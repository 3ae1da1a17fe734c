"""What changes with a key of a recipe, as the schema marks it (`schema.marked`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from engine.recipe.schema import Affects, Recipe


def effect_of(key: str) -> Affects:
    """What changes with a dotted key: the mark of the key, else of its section."""
    section: Any = Recipe()
    effect = Affects.CELL
    for name in key.split("."):
        fields = {field.name: field for field in dataclasses.fields(section)}
        if name not in fields:  # an option of a method
            break
        effect = fields[name].metadata.get("affects", effect)
        section = getattr(section, name)
        if not dataclasses.is_dataclass(section):
            break
    return effect


def values_of(
    section: Any, effects: Collection[Affects], inherited: Affects = Affects.CELL
) -> dict[str, Any]:
    """The values of a section's keys that change one of `effects`, as plain nested values.

    inherited: the mark of the section.
    """
    return _values_of(section, dataclasses.asdict(section), effects, inherited)


def _values_of(
    section: Any, plain: Mapping[str, Any], effects: Collection[Affects], inherited: Affects
) -> dict[str, Any]:
    """plain: all values of the section, as plain nested values."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        effect, value = field.metadata.get("affects", inherited), getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            if inner := _values_of(value, plain[field.name], effects, effect):
                values[field.name] = inner
        elif effect in effects:
            values[field.name] = plain[field.name]
    return values
