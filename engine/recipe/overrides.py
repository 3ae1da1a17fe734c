"""Overrides of a recipe, from the command line or a mapping in Python.

They are parsed here, once, into `Override`s, which keep the user's text for errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import RecipeError
from engine.recipe import yaml_text

COMMAND_LINE = "the command line"


class Word(str):
    """A value from the command line: parsed as YAML unless its key is a string."""


@dataclass(frozen=True)
class Override:
    """One override: `train.epochs=1`, or `{"train.epochs": 1}` in Python.

    key: dotted, or the name of a section or of a key of the grid. value: a `Word`, or a plain value
    from Python. text: the override as written on a command line.
    """

    key: str
    value: Any
    text: str

    @property
    def section(self) -> str:
        """The first part of the key, `train` of `train.epochs`."""
        return self.key.partition(".")[0]

    @property
    def source(self) -> str:
        """Where it comes from, for errors."""
        return COMMAND_LINE if isinstance(self.value, Word) else "the settings"

    def plain(self) -> Any:
        """The value, parsed as YAML. Raises RecipeError, with the user's text, if it is invalid."""
        if isinstance(self.value, Word):
            return yaml_text.parse_yaml(str(self.value), f"override {self.text!r:.200}")
        return self.value


def nested(key: str, value: Any) -> dict[str, Any]:
    """A dotted key and its value as nested sections."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key, such as `train.epochs`; the inverse of `nested`."""
    made: dict[str, Any] = {}
    for name, value in values.items():
        is_section = isinstance(value, Mapping) and value
        made |= flat(value, f"{prefix}{name}.") if is_section else {prefix + name: value}
    return made


def over(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the layers; later ones win."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            before = merged.get(key)
            if isinstance(before, Mapping) and isinstance(value, Mapping):
                value = over((before, value))
            merged[key] = value
    return merged


def of_word(word: str) -> Override:
    """Parse `key=value`. Raises RecipeError for anything else."""
    key, equals, value = word.partition("=")
    if not equals or not key or key.count(".") >= yaml_text.DEEPEST:
        raise RecipeError(
            f"{word!r:.200} is not an override: write key=value, such as train.epochs=1"
        )
    return Override(key, Word(value), word)


def of_mapping(values: Mapping[str, Any]) -> list[Override]:
    """The overrides of a mapping from keys to plain values."""
    made = []
    for key, value in values.items():
        value = _plain(value)
        text = value if isinstance(value, str) else yaml_text.line(value)
        made.append(Override(key, value, f"{key}={text}"))
    return made


def parsed(given: Iterable[str | Mapping[str, Any]]) -> list[Override]:
    """The overrides of words and mappings, in order."""
    made: list[Override] = []
    for item in given:
        made += [of_word(item)] if isinstance(item, str) else of_mapping(item)
    return made


def by_key(overrides: Sequence[Override]) -> dict[str, Override]:
    """The overrides by key; the last one of a key wins."""
    return {override.key: override for override in overrides}


def _plain(value: Any) -> Any:
    """A Python value as YAML types: paths become strings, and tuples lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
