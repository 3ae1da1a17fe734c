"""The rows of a campaign's table: methods, and methods once more under another name.

    ewc: {method: {lam: 1.0}}
    ewc_paper: {base: ewc, method: {variant: paper}}

A row that names a base has the base's settings in this campaign, and over them its settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import RecipeError
from engine.recipe.catalogue import path_of, read
from engine.recipe.merge import Layer

BASE, TITLE = "base", "title"


def method_of(rows: Mapping[str, Any], name: str, file: str) -> str:
    """The method, of `recipes/methods` or a path, that the row of this name trains.

    Raises RecipeError for a base that is not a method itself.
    """
    base = _row(rows, name, file).get(BASE)
    if base is None:
        return name
    if _row(rows, str(base), file).get(BASE) is not None:
        raise RecipeError(f"{file} (methods.{name}): {base} has a base itself: set base to that")
    try:
        path_of("methods", str(base))
    except RecipeError as error:
        raise RecipeError(f"{file} (methods.{name}): base: {error}") from error
    return str(base)


def settings_of(rows: Mapping[str, Any], name: str, file: str) -> list[Layer]:
    """What the campaign sets for the row, a layer for its base and one for itself."""
    method, row = method_of(rows, name, file), _row(rows, name, file)
    layers: list[Layer] = []
    if method != name and rows.get(method):
        layers.append((f"{file} (methods.{method})", dict(_row(rows, method, file))))
    settings = {key: value for key, value in row.items() if key not in (BASE, TITLE)}
    title = row.get(TITLE)
    if title is None and method != name:
        base_title = _row(rows, method, file).get(TITLE) or read(path_of("methods", method))[TITLE]
        title = _title_with_settings(str(base_title), settings)
    if title is not None:
        settings = {**settings, "method": {**(settings.get("method") or {}), TITLE: title}}
    if settings:
        layers.append((f"{file} (methods.{name})", settings))
    return layers


def _row(rows: Mapping[str, Any], name: str, file: str) -> Mapping[str, Any]:
    row = rows.get(name) or {}
    if not isinstance(row, Mapping):
        raise RecipeError(f"{file} (methods.{name}) must hold `key: value` lines, not {row!r}")
    return row


def _title_with_settings(title: str, settings: Mapping[str, Any]) -> str:
    """A base's title with what a row sets: `EWC (paper), lam 10`."""
    values = dict(settings.get("method") or {})
    if variant := values.pop("variant", None):
        title += f" ({variant})"
    for section, keys in settings.items():
        if section != "method":
            values |= {f"{section}.{key}": value for key, value in keys.items()}
    return ", ".join([title, *(f"{key} {value}" for key, value in values.items())])
