"""A report's `results.json`: configuration, versions, fingerprints and results for programs.

docs/results.schema.json is the JSON schema of these types.
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import pandas

from engine.measures.tables import with_ends
from engine.report.results import Results
from loaders.files import typed_json

FORMAT = 1
QUANTITIES = ("accuracy", "RI", "mRI", "disjoint_mRI", "probe_accuracy", "probe_change")


class Method(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table: its title, and its training settings by recipe key."""

    name: str
    title: str
    settings: dict[str, Any]


class _Interval(msgspec.Struct, frozen=True, kw_only=True):
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


class Number(_Interval, frozen=True, kw_only=True):
    """A result with its 95% interval: accuracy in percent, RI and mRI in percentage points.

    probe_accuracy and probe_change: of heads fitted on a probe set, `evaluated_on`.
    method: as in recipes, or `pretrained`. downstream: the downstream dataset, or empty for a mean
    over them and before fine-tuning. evaluated_on: the evaluated dataset, or empty for a mean.
    """

    quantity: str


class GroupNumber(_Interval, frozen=True, kw_only=True):
    """Accuracy in percent on a group of a dataset's images with its 95% interval, or macro F1.

    column, group: the group's column and value; macro F1 is the column `macro_f1` without groups.
    is_worst: whether the accuracy is the lowest of the column. Other fields: as of
    `Number`.
    """

    column: str
    group: str
    images: int
    is_worst: bool


class CampaignResults(msgspec.Struct, frozen=True, kw_only=True):
    """A campaign's results.

    benchmark, version: the benchmark's name and version; numbers of different versions cannot be
    compared. sets: datasets on which RI is measured. downstreams: datasets and unions `A+B` that
    models were fine-tuned on. evaluate_on: further datasets, outside RI.
    limit: images per dataset in a smoke run, 0 otherwise. holdout: whether models are evaluated on
    images that they were not trained on. missing: columns that an unfinished campaign lacks.
    settings: of the whole campaign, by heading, including versions and the packs' fingerprints.
    intervals, intervals_of_mri: the sources of variation that the intervals cover.
    """

    format: int
    campaign: str
    benchmark: str
    version: int
    models: list[str]
    upstream: str | None
    sets: list[str]
    downstreams: list[str]
    evaluate_on: list[str]
    seeds: list[int]
    limit: int
    holdout: bool
    missing: list[str]
    settings: dict[str, Any]
    methods: list[Method]
    intervals: str
    intervals_of_mri: str
    numbers: list[Number]
    groups: list[GroupNumber]


def campaign_results(results: Results, numbers: pandas.DataFrame) -> CampaignResults:
    """The file's content. numbers: from `engine.measures.all_numbers.all_numbers`."""
    record, grid, titles = results.record, results.grid, results.record.methods
    ends = dict(zip(with_ends("value_pct"), ("value", "low", "high"), strict=True))
    return CampaignResults(
        format=FORMAT,
        campaign=record.name,
        benchmark=record.benchmark,
        version=record.version,
        models=results.models,
        upstream=record.upstream,
        sets=list(grid.sets),
        downstreams=list(grid.downstreams),
        evaluate_on=record.evaluate_on,
        seeds=[int(seed) for seed in grid.seeds],
        limit=record.limit,
        holdout=record.holdout,
        missing=[column.column for column in record.missing],
        settings=record.settings,
        methods=[
            Method(name=row.method, title=titles.get(row.method, row.method), settings=row.settings)
            for row in record.rows
        ],
        intervals=results.population,
        intervals_of_mri=results.population_of_mri,
        numbers=_rows(numbers[numbers["quantity"].isin(QUANTITIES)], Number),
        groups=_rows(grid.named(results.groups).rename(columns=ends), GroupNumber),
    )


def _rows(table: pandas.DataFrame, kind: type) -> list[Any]:
    """A table's rows as objects of a kind, with None for missing values."""
    table = table.astype(object)
    return msgspec.convert(table.where(table.notna(), None).to_dict("records"), list[kind])


def encode(content: CampaignResults) -> bytes:
    """The content as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(content), indent=1)


def read_results(content: bytes) -> CampaignResults:
    """Read a file's content. Raises msgspec.DecodeError (or its ValidationError) if invalid."""
    return typed_json.decode(content, CampaignResults)


def schema() -> dict[str, Any]:
    """The file's JSON schema."""
    made = msgspec.json.schema(CampaignResults)
    for of_type in made["$defs"].values():  # before Python 3.13, docstrings keep their indentation
        if "description" in of_type:
            of_type["description"] = inspect.cleandoc(of_type["description"])
    return made
