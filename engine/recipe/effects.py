"""What changes with a key of a recipe, as the schema marks it (`schema.marked`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from engine.recipe.schema import Affects, Recipe, TrainRecipe


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
    values, plain = {}, dataclasses.asdict(section)
    for field in dataclasses.fields(section):
        effect, value = field.metadata.get("affects", inherited), getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            if inner := values_of(value, effects, effect):
                values[field.name] = inner
        elif effect in effects:
            values[field.name] = plain[field.name]
    return values


def training_values(train: TrainRecipe) -> dict[str, Any]:
    """The values of a training that determine weights; of augmentation, those in use."""
    values = values_of(train, {Affects.CELL})
    used = {"augment": bool(train.augment), "crop_scale": train.crops}
    return {key: value for key, value in values.items() if used.get(key, True)}
