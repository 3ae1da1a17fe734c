"""What a campaign's file says of its grid, beside the recipe of a cell: columns and what varies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import RecipeError
from engine.recipe import catalogue
from engine.recipe.catalogue import COMMAND_LINE, DOWNSTREAMS, VARY


@dataclass(frozen=True)
class GridKeys:
    """`downstreams`: sets to fine-tune on, None for the data set's. `vary`: values by recipe key,
    each combination of which is a setting of every column. `file` says them, but those of
    `by_words`, which the command line says."""

    file: str
    downstreams: list[str] | None = None
    vary: Mapping[str, list[Any]] = field(default_factory=dict)
    by_words: Collection[str] = ()

    def source(self, key: str) -> str:
        """What says a key, for errors."""
        return COMMAND_LINE if key in self.by_words else self.file

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
    given = {word.partition("=")[0]: word for word in overrides}
    by_words = [key for key in (DOWNSTREAMS, VARY) if key in given]
    for key in by_words:
        values |= catalogue.parsed(given[key])
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
    return GridKeys(str(file), downstreams, vary, by_words)


def _number(value: Any) -> Any:
    """The number that a text is: PyYAML, which reads files, takes 1e-5 for a text."""
    return catalogue.parsed(f"value={value}")["value"] if isinstance(value, str) else value
