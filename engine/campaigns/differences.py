"""Differences between two campaigns: in settings, and in the software that made their cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from engine.campaigns.plan import Plan
from engine.campaigns.record import FinishedCampaign
from engine.model_files.descriptions import VERSIONS
from engine.recipe.effects import values_of
from engine.recipe.overrides import flat
from engine.recipe.schema import Affects
from engine.store.artifacts import Artifact
from loaders.files import typed_json


@dataclasses.dataclass(frozen=True)
class Difference:
    """A setting or version that differs. A value is None if its campaign has none."""

    name: str
    first: Any
    second: Any


def settings(first: Plan, second: Plan) -> list[Difference]:
    """Differences between the rows, columns and recipes of two campaigns, named by dotted key.

    Keys of a row start with the row's name.
    """
    found = list(_differing("", _shared(first), _shared(second)))
    found += _differing("", _names(first), _names(second))
    for row in first.rows:
        if row in second.rows:
            of_row = (_of_row(plan, row) for plan in (first, second))
            found += _differing(f"{row}: ", *of_row)
    return found


def versions(first: FinishedCampaign, second: FinishedCampaign) -> list[Difference]:
    """The versions and processors that differ, compared on one cell of each campaign."""
    return list(_differing("", versions_of(first), versions_of(second)))


def versions_of(campaign: FinishedCampaign) -> dict[str, Any]:
    """What made a cell of a campaign: versions and the processor; {} if nothing says so."""
    cells = [Artifact(campaign.place.store / name) for name in campaign.record.artifacts]
    for root in (campaign.place.root, *(cell.root for cell in cells)):
        if root.has(VERSIONS):
            file = root.path / VERSIONS
            return typed_json.read(file, dict[str, Any], f"delete {root.path}", root)
    return {}


def _names(plan: Plan) -> dict[str, Any]:
    return {
        "rows": ", ".join(plan.rows),
        "columns": ", ".join(column.name for column in plan.columns),
        "seeds": plan.seeds,
    }


def _shared(plan: Plan) -> dict[str, Any]:
    values = flat(values_of(plan.recipe, {Affects.CAMPAIGN, Affects.PACK}))
    return {key: value for key, value in values.items() if key not in ("seeds", "downstream")}


def _of_row(plan: Plan, row: str) -> dict[str, Any]:
    return flat(values_of(plan.rows[row].recipe, {Affects.CELL}))


def _differing(
    prefix: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[Difference]:
    for key in dict.fromkeys([*first, *second]):
        if first.get(key) != second.get(key):
            yield Difference(prefix + key, first.get(key), second.get(key))
