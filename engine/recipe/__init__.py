"""Recipes: YAML files and `key=value` words become one checked, frozen `Recipe`."""

from engine.recipe.resolve import (
    ROOT,
    SELECTION,
    describe,
    dump,
    each_model,
    load,
    methods_of,
    model_of,
    names,
    of_sections,
    outline,
    published,
)

__all__ = [
    "ROOT",
    "SELECTION",
    "describe",
    "dump",
    "each_model",
    "load",
    "methods_of",
    "model_of",
    "names",
    "of_sections",
    "outline",
    "published",
]
