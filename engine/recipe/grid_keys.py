"""A campaign's keys for its grid, as opposed to its cells: columns and varied keys.

`rib sweep` sets the same keys for a single row. These two are equal:

    imagenet_rib/ewc method.lam=0.1,1 seed=0,1 downstream=imagenet_a,imagenet_r
    imagenet_rib methods=[ewc] param_grid={method.lam: [0.1, 1], seed: [0, 1]} downstreams=[...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import RecipeError
from engine.measures.rows import trained_sets
from engine.recipe import campaigns, catalogue, overrides, yaml_text
from engine.recipe.campaigns import DOWNSTREAMS, LEAVE_ONE_OUT, REPLICATES, SELECTION, TRIALS, VARY
from engine.recipe.overrides import Override
from engine.recipe.schema import DatasetRecipe

RECIPE = "recipe="
_REMEDIES = {
    "method": "a sweep varies one method: name it, as in emoji/ewc",
    SELECTION: "a sweep varies one method: name it, as in emoji/ewc",
    VARY: "a sweep varies each key that has several values, as in optimizer.lr=1e-4,1e-3",
    "recipe": "name the recipe first, as in rib sweep recipe=emoji/ewc",
}

_COUNTS = {
    REPLICATES: "a number of columns, up to 1000: replicates=1 trains one column a second "
    "time, replicates=0 none",
    TRIALS: "a number of trials, up to 1000: trials=4 trains every method as its recipe says, and "
    "with three draws from its search ranges",
}


@dataclass(frozen=True)
class GridKeys:
    """downstreams: the datasets that each column fine-tunes on, `LEAVE_ONE_OUT` for all but one in
    turn, or None for each of the benchmark's. param_grid: values by recipe key; every column
    is trained in each combination. replicates: number of columns that are trained again with the
    next seed. trials: number of `engine.recipe.trials` of every column; 0: only the recipes'
    values. file: where the keys are set, except those in `given`, which maps the user's keys to
    their source."""

    file: str
    downstreams: list[list[str]] | str | None = None
    param_grid: Mapping[str, list[Any]] = field(default_factory=dict)
    replicates: int = 0
    trials: int = 0
    given: Mapping[str, str] = field(default_factory=dict)

    def source(self, key: str) -> str:
        """Where a key is set, for errors."""
        return self.given.get(key, self.file)

    def trained_on(self, dataset: DatasetRecipe) -> list[list[str]]:
        """The datasets that each column trains on."""
        if isinstance(self.downstreams, list):
            return self.downstreams
        trainable = [name for name in dataset.sets if name in dataset.trainable]
        if self.downstreams is None:
            return [[name] for name in trainable]
        rest = ([name for name in trainable if name != left_out] for left_out in dataset.sets)
        # Those that leave out datasets on which no model may be trained are equal.
        return [[*names] for names in dict.fromkeys(map(tuple, rest)) if names]


def grid_keys(campaign: str, given: Sequence[Override]) -> GridKeys:
    """The keys of a campaign's file, or of the overrides `downstreams=[A,[B,C]]`,
    `param_grid={KEY: [1, 2]}`, `replicates=1` and `trials=4`.

    Raises RecipeError for values of another form.
    """
    of_campaign = campaigns.read_campaign(campaign)
    of_grid = [
        override for override in given if override.key in (DOWNSTREAMS, VARY, REPLICATES, TRIALS)
    ]
    values = of_campaign.values | {override.key: override.plain() for override in of_grid}
    sets, vary = values.get(DOWNSTREAMS), values.get(VARY) or {}
    sources = {override.key: override.source for override in of_grid}
    counts = {key: values.get(key, 0) for key in (REPLICATES, TRIALS)}
    keys = GridKeys(str(of_campaign.file), None, vary, **counts, given=sources)
    if sets is not None:
        keys = replace(keys, downstreams=_downstreams(sets, keys.source(DOWNSTREAMS)))
    if not isinstance(vary, dict):
        raise RecipeError(f"{keys.source(VARY)}: {VARY} must contain `KEY: [1, 2]` lines")
    for key, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= 1000:
            raise RecipeError(f"{keys.source(key)}: {key}={count} is not {_COUNTS[key]}")
    return keys


def _downstreams(value: Any, source: str) -> list[list[str]] | str:
    """The datasets of each column. Raises RecipeError for a value of another form."""
    if value == LEAVE_ONE_OUT:
        return value
    of_columns = value if isinstance(value, list) else []
    unions = [trained_sets(of) if isinstance(of, str) else of for of in of_columns]
    names = [name for of in unions for name in (of if isinstance(of, list) and of else [None])]
    if not (names and all(isinstance(name, str) for name in names)):
        raise RecipeError(
            f"{source}: {DOWNSTREAMS} must list datasets, as in {DOWNSTREAMS}: [A, B], or unions, "
            f"as in {DOWNSTREAMS}: [[A, B], C], or be {LEAVE_ONE_OUT}"
        )
    return unions


def overrides_of_sweep(name: str, given: Sequence[Override]) -> tuple[str, list[Override]]:
    """A sweep's campaign and overrides. name: `CAMPAIGN/ROW` or `recipe=CAMPAIGN/ROW`.

    Raises RecipeError if no row is named, no key has several values, a key is given twice, a value
    is empty, or several models are given.
    """
    keys = [override.key for override in given]
    for override in given:
        if override.key in _REMEDIES:
            raise RecipeError(f"{override.text}: {_REMEDIES[override.key]}")
        if keys.count(override.key) > 1:
            raise RecipeError(
                f"{override.key} is given twice: write its values as {override.key}=A,B"
            )
    campaign, selection = _row(name.removeprefix(RECIPE))
    kept, vary = [selection], {}
    for override in given:
        key, value = override.key, str(override.value)
        is_one = "," not in value or any(sign in value for sign in "[{(\"'")
        if key in ("downstream", DOWNSTREAMS):
            listed = value if value.startswith("[") else f"[{value}]"
            kept.append(overrides.of_word(f"{DOWNSTREAMS}={listed}"))
        elif key == "model" and (not is_one or value.startswith("[") or value == "all"):
            raise RecipeError(f"{override.text}: a sweep has one model: run one sweep per model")
        elif is_one:
            kept.append(override)
        elif all(part.strip() for part in value.split(",")):
            vary[key] = yaml_text.parse_yaml(f"[{value}]", f"override {override.text!r:.200}")
        else:
            raise RecipeError(f"{override.text}: a value between commas is empty")
    if not vary:
        raise RecipeError(
            f"nothing varies: give a key several values, as in optimizer.lr=1e-4,1e-3, or train "
            f"one cell with engine/launch.py recipe={name.removeprefix(RECIPE)}"
        )
    return campaign, [*kept, *overrides.of_mapping({VARY: vary})]


def _row(name: str) -> tuple[str, Override]:
    """The campaign of a sweep, and the override that selects its row."""
    campaign, row = name, ""
    if "/" in name and not catalogue.is_path(name):
        campaign, _, row = name.rpartition("/")
    rows = campaigns.methods_of(campaign)
    if not row:
        raise RecipeError(
            f"a sweep varies one method of {campaign}: name it, as in {campaign}/{rows[0]}. "
            f"Methods: {', '.join(rows)}"
        )
    selection = overrides.of_word(f"{SELECTION}=[{row}]")
    campaigns.methods_of(campaign, [selection])  # raises for an unknown row
    return campaign, selection
