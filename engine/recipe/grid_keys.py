"""What a campaign's file says of its grid, beside the recipe of a cell: columns and what varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import RecipeError
from engine.recipe import catalogue
from engine.recipe.catalogue import DOWNSTREAMS, VARY


@dataclass(frozen=True)
class GridKeys:
    """`downstreams`: sets to fine-tune on, None for the data set's. `vary`: values by recipe key,
    each combination of which is a setting of every column. `file` says them."""

    file: str
    downstreams: list[str] | None = None
    vary: Mapping[str, list[Any]] = field(default_factory=dict)

    @property
    def given(self) -> dict[str, Any]:
        """The keys that are given, and so not those of a plain grid."""
        values = {DOWNSTREAMS: self.downstreams, VARY: dict(self.vary)}
        return {key: value for key, value in values.items() if value}


def grid_keys(campaign: str, overrides: Sequence[str]) -> GridKeys:
    """The keys of a campaign's file, or of the words `downstreams=[A,B]` and `vary={KEY: [1, 2]}`.

    Raises RecipeError for values of another form.
    """
    file = catalogue.path_of("campaigns", campaign)
    values = catalogue.read_campaign(file)
    for word in overrides:
        if word.partition("=")[0] in (DOWNSTREAMS, VARY):
            values |= catalogue.parsed(word)
    downstreams, vary = values.get(DOWNSTREAMS), values.get(VARY) or {}
    if downstreams is not None and (
        not downstreams
        or not isinstance(downstreams, list)
        or not all(isinstance(name, str) for name in downstreams)
    ):
        raise RecipeError(f"{file}: {DOWNSTREAMS} must list sets, as in {DOWNSTREAMS}: [A, B]")
    if not isinstance(vary, dict):
        raise RecipeError(f"{file}: {VARY} must hold `KEY: [1, 2]` lines")
    vary = {
        key: list(map(_number, values)) if isinstance(values, list) else values
        for key, values in vary.items()
    }
    return GridKeys(str(file), downstreams, vary)


def _number(value: Any) -> Any:
    """The number that a text is: PyYAML, which reads files, takes 1e-5 for a text."""
    return catalogue.parsed(f"value={value}")["value"] if isinstance(value, str) else value
