"""What a campaign says of its grid, beside the recipe of a cell: columns and what varies.

The words of `rib sweep` say the same of a single row:

    imagenet_rib/ewc method.lam=0.1,1 seed=0,1 downstream=imagenet_a,imagenet_r
    imagenet_rib methods=[ewc] vary={method.lam: [0.1, 1], seed: [0, 1]} downstreams=[...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.errors import RecipeError
from engine.recipe import campaigns, catalogue, overrides, yaml_text
from engine.recipe.campaigns import DOWNSTREAMS, PROBE, SELECTION, VARY
from engine.recipe.overrides import Override

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
    each combination of which is a setting of every column. `probe`: how many columns are trained a
    second time, with the next seed. `file` says them, but for those that the user gave, whose
    source `given` names."""

    file: str
    downstreams: list[str] | None = None
    vary: Mapping[str, list[Any]] = field(default_factory=dict)
    probe: int = 0
    given: Mapping[str, str] = field(default_factory=dict)

    def source(self, key: str) -> str:
        """What says a key, for errors."""
        return self.given.get(key, self.file)


def grid_keys(campaign: str, given: Sequence[Override]) -> GridKeys:
    """The keys of a campaign's file, or of the overrides `downstreams=[A,B]`,
    `vary={KEY: [1, 2]}` and `probe=1`.

    Raises RecipeError for values of another form.
    """
    of_campaign = campaigns.read(campaign)
    of_grid = [each for each in given if each.key in (DOWNSTREAMS, VARY, PROBE)]
    values = of_campaign.values | {each.key: each.plain() for each in of_grid}
    sets, vary = values.get(DOWNSTREAMS), values.get(VARY) or {}
    sources, probe = {each.key: each.source for each in of_grid}, values.get(PROBE, 0)
    keys = GridKeys(str(of_campaign.file), sets, vary, probe, sources)
    is_list = isinstance(sets, list) and all(isinstance(name, str) for name in sets)
    if sets is not None and not (sets and is_list):
        source = keys.source(DOWNSTREAMS)
        raise RecipeError(f"{source}: {DOWNSTREAMS} must list sets, as in {DOWNSTREAMS}: [A, B]")
    if not isinstance(vary, dict):
        raise RecipeError(f"{keys.source(VARY)}: {VARY} must hold `KEY: [1, 2]` lines")
    if not isinstance(probe, int) or isinstance(probe, bool) or probe < 0:
        raise RecipeError(
            f"{keys.source(PROBE)}: {PROBE}={probe} is no number of columns; {PROBE}=1 trains one "
            f"of them a second time, {PROBE}=0 none"
        )
    return keys


def of_sweep(name: str, given: Sequence[Override]) -> tuple[str, list[Override]]:
    """The campaign and its overrides; name: `CAMPAIGN/ROW`, which may follow `recipe=`.

    Raises RecipeError where no row is named or no key has several values, and for a key that is
    given twice, an empty value and several models.
    """
    keys = [each.key for each in given]
    for each in given:
        if each.key in _REMEDIES:
            raise RecipeError(f"{each.text}: {_REMEDIES[each.key]}")
        if keys.count(each.key) > 1:
            raise RecipeError(f"{each.key} is given twice; write its values as {each.key}=A,B")
    campaign, selection = _row(name.removeprefix(RECIPE))
    kept, vary = [selection], {}
    for each in given:
        key, value = each.key, str(each.value)
        is_one = "," not in value or any(sign in value for sign in "[{(\"'")
        if key in ("downstream", DOWNSTREAMS):
            listed = value if value.startswith("[") else f"[{value}]"
            kept.append(overrides.of_word(f"{DOWNSTREAMS}={listed}"))
        elif key == "model" and (not is_one or value.startswith("[") or value == "all"):
            raise RecipeError(f"{each.text}: a sweep is of one model; run a sweep for each")
        elif is_one:
            kept.append(each)
        elif all(part.strip() for part in value.split(",")):
            vary[key] = yaml_text.parse(f"[{value}]", f"override {each.text!r:.200}")
        else:
            raise RecipeError(f"{each.text}: there is an empty value between commas")
    if not vary:
        raise RecipeError(
            f"nothing varies: give a key several values, as in optimizer.lr=1e-4,1e-3, or train "
            f"one cell by engine/launch.py recipe={name.removeprefix(RECIPE)}"
        )
    return campaign, [*kept, *overrides.of_mapping({VARY: vary})]


def _row(name: str) -> tuple[str, Override]:
    """The campaign that a sweep's first word names, and the selection of its row."""
    campaign, row = name, ""
    if "/" in name and not catalogue.is_path(name):
        campaign, _, row = name.rpartition("/")
    rows = campaigns.methods_of(campaign)
    if not row:
        raise RecipeError(
            f"a sweep varies one row of {campaign}: name it, as in {campaign}/{rows[0]}; there are "
            f"{', '.join(rows)}"
        )
    selection = overrides.of_word(f"{SELECTION}=[{row}]")
    campaigns.methods_of(campaign, [selection])  # raises for a row that it has not
    return campaign, selection
