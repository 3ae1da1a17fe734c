"""The words of `rib sweep` and those of the campaign that it stands for.

    imagenet_rib/ewc method.lam=0.1,1 seed=0,1 downstream=imagenet_a,imagenet_r
    imagenet_rib methods=[ewc] vary={method.lam: [0.1, 1], seed: [0, 1]} downstreams=[...]

A comma separates values, unless it stands in brackets or quotes.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence

from engine.errors import RecipeError
from engine.recipe import catalogue
from engine.recipe.catalogue import DOWNSTREAMS, SELECTION, VARY
from engine.recipe.grid_keys import grid_keys
from engine.recipe.vary import text

RECIPE = "recipe="
PAIRS = {"[": "]", "{": "}", "(": ")"}
_KEY = re.compile(r"\w+(\.\w+)*")
_REMEDIES = {
    SELECTION: "a sweep varies one row; name it, as in emoji/ewc",
    VARY: "a sweep varies every key with several values, as in optimizer.lr=1e-4,1e-3",
    "recipe": "name the recipe first, as in rib sweep recipe=emoji/ewc",
}


def words_of_sweep(name: str, words: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The campaign and its overrides; name: `CAMPAIGN/ROW`, which may follow `recipe=`.

    Raises RecipeError where no row is named or no key has several values, and for a key that is
    given twice, an empty value and several models.
    """
    pairs = [catalogue.key_and_value(word) for word in words]
    keys = [key for key, _ in pairs]
    for key, value in pairs:
        if key in _REMEDIES:
            raise RecipeError(f"{key}={value}: {_REMEDIES[key]}")
        if keys.count(key) > 1:
            raise RecipeError(f"{key} is given twice; write its values as {key}=A,B")
        if not _KEY.fullmatch(key):
            raise RecipeError(f"{key!r} is no key of a recipe")
    given = dict(pairs)
    campaign, row = _row(name.removeprefix(RECIPE), given.pop("method", None))
    overrides, vary = [f"{SELECTION}=[{row}]"], []
    for key, value in given.items():
        values = split(key, value)
        if key in ("downstream", DOWNSTREAMS):
            is_list = len(values) == 1 and value.startswith("[")
            overrides.append(f"{DOWNSTREAMS}={value if is_list else f'[{value}]'}")
        elif key == "model" and (len(values) > 1 or value.startswith("[") or value == "all"):
            raise RecipeError(f"model={value}: a sweep is of one model; run a sweep for each")
        elif len(values) > 1:
            typed = catalogue.parsed(f"{key}=[{value}]")
            for part in key.split("."):
                typed = typed[part]
            vary.append(f"{key}: {json.dumps(typed)}")
        else:
            overrides.append(f"{key}={value}")
    if not vary:
        raise RecipeError(
            f"nothing varies: give a key several values, as in optimizer.lr=1e-4,1e-3, or train "
            f"one cell by engine/launch.py recipe={campaign}/{row}"
        )
    return campaign, (*overrides, f"{VARY}={{{', '.join(vary)}}}")


def sweep_command(campaign: str, overrides: Sequence[str]) -> str:
    """The `rib sweep` line that `words_of_sweep` reads as these."""
    (row,) = catalogue.methods_of(campaign, overrides)
    grid = grid_keys(campaign, overrides)
    words = [word for word in overrides if word.partition("=")[0] not in catalogue.OF_GRID]
    words += [f"{key}={','.join(map(text, values))}" for key, values in grid.vary.items()]
    if DOWNSTREAMS in grid.by_words:
        words.append(f"downstream={','.join(grid.downstreams or ())}")
    return shlex.join(["rib", "sweep", f"{campaign}/{row}", *words])


def split(key: str, value: str) -> list[str]:
    """The values between commas that stand outside of brackets and quotes.

    Raises RecipeError for an empty value among several, and for brackets or quotes left open.
    """
    values, closing, quote = [""], "", ""
    for sign in value:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in PAIRS:
            closing = PAIRS[sign] + closing
        elif closing and sign == closing[0]:
            closing = closing[1:]
        elif sign == "," and not closing:
            values.append("")
            continue
        values[-1] += sign
    if quote or closing:
        raise RecipeError(f"{key}={value}: {quote or closing[0]} is missing")
    if len(values) > 1 and not all(each.strip() for each in values):
        raise RecipeError(f"{key}={value}: there is an empty value between commas")
    return values


def _row(name: str, method: str | None) -> tuple[str, str]:
    """The campaign and the row that a sweep's first word, or `method=ROW` beside it, names."""
    campaign, row = name, method
    if name not in catalogue.names("campaigns") and not name.endswith(".yaml"):
        campaign, _, row = name.rpartition("/")
        if not campaign:
            catalogue.path_of("campaigns", name)  # raises, naming the nearest
        if method not in (None, row):
            raise RecipeError(f"method={method}: {name} names the row {row}; leave one of them out")
    rows = catalogue.methods_of(campaign)
    if row is None and len(rows) > 1:
        raise RecipeError(
            f"a sweep varies one row of {campaign}: name it, as in {campaign}/{rows[0]}; there are "
            f"{', '.join(rows)}"
        )
    row = row or rows[0]
    return campaign, catalogue.methods_of(campaign, [f"{SELECTION}=[{row}]"])[0]
