"""`results.json` of a report: configuration, versions, fingerprints and numbers for programs.

docs/results.schema.json is the JSON schema of these types.
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import pandas

from engine.report.results import Results

FORMAT = 1
QUANTITIES = ("accuracy", "RI", "mRI", "disjoint_mRI")


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table: its title and what it trains with, by key of its recipe."""

    name: str
    title: str
    settings: dict[str, Any]


class Number(msgspec.Struct, frozen=True, kw_only=True):
    """A number with its 95% interval: accuracy in percent, RI and mRI in points.

    method: `pre` is the pre-trained model. downstream: the set fine-tuned on, empty in a mean over
    these and before fine-tuning. evaluated_on: empty in a mean over sets.
    """

    quantity: str
    model: str
    method: str
    variant: str
    alpha: float | None
    setting: str
    downstream: str
    evaluated_on: str
    value: float
    low: float
    high: float


class CampaignResults(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign's results.

    limit: images of each set in a smoke run, 0 otherwise. holdout: whether images are held out of
    training, on which all models are judged. missing: columns that are not in it. settings: of the
    whole campaign, by heading, with versions and fingerprints of the packs. intervals,
    intervals_of_mri: what the intervals are about.
    """

    format: int
    campaign: str
    models: list[str]
    upstream: str
    sets: list[str]
    downstreams: list[str]
    seeds: list[int]
    limit: int
    holdout: bool
    missing: list[str]
    settings: dict[str, Any]
    methods: list[Method]
    intervals: str
    intervals_of_mri: str
    numbers: list[Number]


def of(results: Results, numbers: pandas.DataFrame) -> CampaignResults:
    """The file's content; numbers: `engine.measures.intervals.intervals` of the grid."""
    record, grid = results.record, results.grid
    rows = numbers[numbers["quantity"].isin(QUANTITIES)]
    rows = rows.astype(object).where(rows.notna(), None)
    return CampaignResults(
        format=FORMAT,
        campaign=record.name,
        models=results.models,
        upstream=record.upstream,
        sets=list(grid.sets),
        downstreams=list(grid.downstreams),
        seeds=[int(seed) for seed in grid.seeds],
        limit=record.limit,
        holdout=record.holdout,
        missing=[column.column for column in record.missing],
        settings=record.settings,
        methods=[
            Method(
                name=row.method,
                title=record.methods.get(row.method, row.method),
                settings=row.settings,
            )
            for row in record.rows
        ],
        intervals=results.population,
        intervals_of_mri=results.population_of_mri,
        numbers=msgspec.convert(rows.to_dict("records"), list[Number]),
    )


def encode(content: CampaignResults) -> bytes:
    """The file's bytes."""
    return msgspec.json.format(msgspec.json.encode(content), indent=1)


def read(content: bytes) -> CampaignResults:
    """The results in such a file. Raises msgspec.ValidationError for other content."""
    return msgspec.json.decode(content, type=CampaignResults)


def schema() -> dict[str, Any]:
    """The file's JSON schema."""
    made = msgspec.json.schema(CampaignResults)
    for of_type in made["$defs"].values():  # docstrings, which Python 3.13 indents by nothing
        if "description" in of_type:
            of_type["description"] = inspect.cleandoc(of_type["description"])
    return made
