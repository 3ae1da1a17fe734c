"""A campaign of checkpoints that a table lists: `rib campaign NAME --checkpoints TABLE`.

Each method of the table becomes a row whose models are read and not trained
(`engine.methods.beyond.checkpoint`). The campaign's rows that merge such models stay, so WiSE-FT,
soups, the leak, comparisons, distances and the report come without training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from engine.errors import RecipeError
from engine.measures.rows import PRE
from engine.model_files.checkpoint_table import Line, read_table
from engine.recipe import campaigns, overrides
from engine.recipe.campaigns import BASE, DOWNSTREAMS, REPLICATES, SELECTION, TITLE
from engine.recipe.overrides import Override
from engine.recipe.resolve import load_recipe


def overrides_of(campaign: str, table: Path, given: Sequence[Override]) -> list[Override]:
    """The overrides that make a campaign of a table's checkpoints, before the user's own.

    given: the user's. Raises RecipeError, naming the table, if methods lack a checkpoint of a
    dataset or seed that others have, and as `read_table`.
    """
    listed = read_table(table)
    lines = [line for line in listed if line.method != PRE]
    if not lines:
        raise RecipeError(f"{table} lists no fine-tuned checkpoint")
    methods = list(dict.fromkeys(line.method for line in lines))
    downstreams = list(dict.fromkeys(line.downstream for line in lines))
    seeds = sorted({line.seed for line in lines})
    known = {(line.method, line.downstream, line.seed) for line in lines}
    for key in ((m, d, s) for m in methods for d in downstreams for s in seeds):
        if key not in known:
            method, downstream, seed = key
            raise RecipeError(
                f"{table} has no line of {method} on {downstream} with seed {seed}: a campaign "
                "needs each method on each dataset with each seed"
            )
    if seeds != list(range(seeds[0], seeds[-1] + 1)):
        raise RecipeError(f"{table}: number the seeds without gaps, not {seeds}")
    of_campaign = campaigns.read_campaign(campaign)
    titles = {name: of_campaign.title(name) for name in of_campaign.table}
    settings = {"table": str(table.absolute())}
    rows: list[Any] = [
        {m: {BASE: "checkpoint", TITLE: titles.get(m, m), "method": {**settings, "row": m}}}
        for m in methods
    ]
    values: dict[str, Any] = {
        SELECTION: [*rows, *(name for name in of_campaign.table if name not in methods)],
        DOWNSTREAMS: downstreams,
        REPLICATES: 0,
        "seed": seeds[0],
        "seeds": len(seeds),
    }
    values |= _pretrained(line for line in listed if line.method == PRE)
    made = [*overrides.of_mapping(values), *given]
    values[SELECTION] = [*rows, *_merges(campaign, methods, made)]
    return [*overrides.of_mapping(values), *given]


def _pretrained(lines: Iterable[Line]) -> dict[str, Any]:
    """The settings of the pretrained model that a table lists; {} if it lists none."""
    for line in lines:
        weights = {"source": "file", "path": str(line.file.absolute()), "package": "", "sha256": ""}
        return {"model.weights": weights, "model.head.fit": False}
    return {}


def _merges(campaign: str, methods: Sequence[str], given: Sequence[Override]) -> list[str]:
    """The campaign's rows that merge models of these methods."""
    merges = []
    for name in campaigns.read_campaign(campaign).table:
        if name not in methods:
            options = load_recipe(campaign, given, method=name).method
            is_alone = vars(options).get("seeds", 1) == 1  # of each member
            if not options.trains and is_alone and {*options.needs} <= {*methods}:
                merges.append(name)
    return merges
