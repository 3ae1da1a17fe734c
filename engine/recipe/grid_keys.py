"""What a campaign says of its grid, beside the recipe of a cell: columns and what varies.

The words of `rib sweep` say the same of a single row:

    imagenet_rib/ewc method.lam=0.1,1 seed=0,1 downstream=imagenet_a,imagenet_r
    imagenet_rib methods=[ewc] vary={method.lam: [0.1, 1], seed: [0, 1]} downstreams=[...]
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import RecipeError
from engine.recipe import campaigns, catalogue, typed, yaml_text
from engine.recipe.campaigns import DOWNSTREAMS, SELECTION, VARY
from engine.recipe.typed import COMMAND_LINE

RECIPE = "recipe="
_REMEDIES = {
    "method": "a sweep varies one row; name it, as in emoji/ewc",
    SELECTION: "a sweep varies one row; name it, as in emoji/ewc",
    VARY: "a sweep varies every key with several values, as in optimizer.lr=1e-4,1e-3",
    "recipe": "name the recipe first, as in rib sweep recipe=emoji/ewc",
}


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


def grid_keys(campaign: str, overrides: Sequence[str]) -> GridKeys:
    """The keys of a campaign's file, or of the words `downstreams=[A,B]` and `vary={KEY: [1, 2]}`.

    Raises RecipeError for values of another form.
    """
    of_campaign = campaigns.read(campaign)
    values, words = of_campaign.values, dict(map(typed.key_and_value, overrides))
    by_words = [key for key in (DOWNSTREAMS, VARY) if key in words]
    for key in by_words:
        values[key] = yaml_text.parse(words[key], f"override {f'{key}={words[key]}'!r:.200}")
    sets, vary = values.get(DOWNSTREAMS), values.get(VARY) or {}
    keys = GridKeys(str(of_campaign.file), sets, vary, by_words)
    is_list = isinstance(sets, list) and all(isinstance(name, str) for name in sets)
    if sets is not None and not (sets and is_list):
        source = keys.source(DOWNSTREAMS)
        raise RecipeError(f"{source}: {DOWNSTREAMS} must list sets, as in {DOWNSTREAMS}: [A, B]")
    if not isinstance(vary, dict):
        raise RecipeError(f"{keys.source(VARY)}: {VARY} must hold `KEY: [1, 2]` lines")
    return keys


def words_of_sweep(name: str, words: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The campaign and its overrides; name: `CAMPAIGN/ROW`, which may follow `recipe=`.

    Raises RecipeError where no row is named or no key has several values, and for a key that is
    given twice, an empty value and several models.
    """
    pairs = [typed.key_and_value(word) for word in words]
    keys = [key for key, _ in pairs]
    for key, value in pairs:
        if key in _REMEDIES:
            raise RecipeError(f"{key}={value}: {_REMEDIES[key]}")
        if keys.count(key) > 1:
            raise RecipeError(f"{key} is given twice; write its values as {key}=A,B")
    campaign, row = _row(name.removeprefix(RECIPE))
    overrides, vary = [f"{SELECTION}=[{row}]"], []
    for key, value in pairs:
        is_one = "," not in value or any(sign in value for sign in "[{(\"'")
        if key in ("downstream", DOWNSTREAMS):
            overrides.append(f"{DOWNSTREAMS}={value if value.startswith('[') else f'[{value}]'}")
        elif key == "model" and (not is_one or value.startswith("[") or value == "all"):
            raise RecipeError(f"model={value}: a sweep is of one model; run a sweep for each")
        elif is_one:
            overrides.append(f"{key}={value}")
        elif all(each.strip() for each in value.split(",")):
            vary.append(f"{key}: [{value}]")
        else:
            raise RecipeError(f"{key}={value}: there is an empty value between commas")
    if not vary:
        raise RecipeError(
            f"nothing varies: give a key several values, as in optimizer.lr=1e-4,1e-3, or train "
            f"one cell by engine/launch.py recipe={campaign}/{row}"
        )
    return campaign, (*overrides, f"{VARY}={{{', '.join(vary)}}}")


def _row(name: str) -> tuple[str, str]:
    """The campaign and the row that a sweep's first word names."""
    campaign, row = name, ""
    if "/" in name and not catalogue.is_path(name):
        campaign, _, row = name.rpartition("/")
    rows = campaigns.methods_of(campaign)
    if not row:
        raise RecipeError(
            f"a sweep varies one row of {campaign}: name it, as in {campaign}/{rows[0]}; there are "
            f"{', '.join(rows)}"
        )
    return campaign, campaigns.methods_of(campaign, [f"{SELECTION}=[{row}]"])[0]
