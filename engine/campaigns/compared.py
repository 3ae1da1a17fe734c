"""Compare campaigns, their rows or their cells on the datasets and columns that they share.

Also the settings in which they differ, and the software that made their cells.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.campaigns.plan import Plan
from engine.campaigns.record import FinishedCampaign
from engine.errors import CampaignError
from engine.measures.rows import PRE, REPLICATE, TEST, Arm, Evaluation, of_role
from engine.model_files.descriptions import VERSIONS
from engine.recipe.effects import values_of
from engine.recipe.overrides import flat
from engine.recipe.schema import Affects
from engine.store.artifacts import Artifact
from loaders.files import typed_json

if TYPE_CHECKING:
    import pandas

    from engine.measures.metrics import Grid


class Side(NamedTuple):
    """A campaign, one of its rows (`method`), or one cell of the row (`downstream`). name: for
    tables."""

    name: str
    run: FinishedCampaign
    method: str = ""
    downstream: str = ""


def compare_sides(sides: Sequence[Side]) -> pandas.DataFrame:
    """Compare each further side with the first: two rows, or each method that two campaigns have.

    Columns: `comparisons.COMPARED`. Raises CampaignError if there is nothing to compare, and
    ValueError as `metrics.gather`, for example for campaigns that evaluated other images.
    """
    from engine.measures import comparisons  # late: it loads pandas

    if len(downstreams := {side.downstream for side in sides}) > 1:
        raise CampaignError("compare cells of one downstream dataset, or rows with rows")
    runs = list({side.run.place.path: side.run for side in sides}.values())
    grid = _joined(runs)
    (downstream,) = downstreams
    if downstream not in ("", *grid.downstreams):
        raise CampaignError(f"not all campaigns fine-tune on {downstream}")
    plain = {arm.model for arm in grid.arms if arm.method != PRE and not arm.setting}
    shown = {
        k: arm
        for k, arm in enumerate(grid.arms)
        if arm.method != PRE and (not arm.setting or arm.model not in plain)
    }
    places = [run.place.path for run in runs]
    found = {}
    for other in sides[1:]:
        of_sides = [
            {
                k: arm
                for k, arm in shown.items()
                if arm.model.startswith(f"{places.index(side.run.place.path)} ")
                and side.method in ("", arm.method)
            }
            for side in (sides[0], other)
        ]
        one_setting = any(len({arm.setting for arm in of.values()}) == 1 for of in of_sides)
        for a, first in of_sides[0].items():
            for b, second in of_sides[1].items():
                same = first.method == second.method or (sides[0].method and other.method)
                if a != b and same and (one_setting or first.setting == second.setting):
                    found[a, b] = _title(sides[0], first), _title(other, second)
    if not found:
        raise CampaignError("there is no method to compare: name rows, such as CAMPAIGN/METHOD")
    table = comparisons.compare_pairs(grid, [*found], [*shown], downstream)
    titles = [found[pair] for pair in zip(table["a"], table["b"], strict=True)]
    return table.assign(a=[a for a, _ in titles], b=[b for _, b in titles])


def _title(side: Side, arm: Arm) -> str:
    setting = f" ({arm.setting.short})" if arm.setting else ""
    return f"{side.name}{'' if side.method else f'/{arm.method}'}{setting}"


def _joined(runs: Sequence[FinishedCampaign]) -> Grid:
    """One grid of the rows that tables show, on what all campaigns have. A model's name begins with
    its campaign's number. Of other numbers of seeds, the least; seeds are numbered."""
    from engine.measures import metrics

    first = runs[0].record
    for run in runs[1:]:
        if run.record.benchmark == first.benchmark and run.record.version != first.version:
            raise CampaignError(
                f"{run.record.name} has version {run.record.version} of {first.benchmark}, and "
                f"{first.name} version {first.version}: their numbers cannot be compared"
            )
    sets, columns = (
        [name for name in lists[0] if all(name in of for of in lists)]
        for lists in zip(*((run.record.sets, run.record.downstreams) for run in runs), strict=True)
    )
    if len(sets) < 2 or not columns:
        raise CampaignError("the campaigns share no downstream dataset, or fewer than two datasets")
    tests = [of_role(run.evaluations, TEST) for run in runs]
    seeds = [sorted({row.seed for row in rows if row.method != PRE}) for rows in tests]
    count = min(map(len, seeds))

    def kept(k: int, rows: Sequence[Evaluation]) -> Iterator[Evaluation]:
        for row in rows:
            on_shared = row.evaluated_on in sets and row.downstream in ("", *columns)
            seed = 0 if row.method == PRE or row.seed not in seeds[k] else seeds[k].index(row.seed)
            if row.headline and on_shared and seed < count:
                yield dataclasses.replace(row, model=f"{k} {row.model}", seed=seed)

    rows = [row for k, of_run in enumerate(tests) for row in kept(k, of_run)]
    repeated = [[*kept(k, of_role(run.evaluations, REPLICATE))] for k, run in enumerate(runs)]
    if count == 1 and all(repeated):
        rows += itertools.chain(*repeated)
    return metrics.gather(rows, sets, "", columns)


class CampaignDifference(NamedTuple):
    """A setting or version that differs. A value is None if its campaign has none."""

    name: str
    first: Any
    second: Any


def differing_settings(first: Plan, second: Plan) -> list[CampaignDifference]:
    """Differences between the rows, columns and recipes of two campaigns, named by dotted key.

    Keys of a row start with the row's name.
    """
    found = [*_differing("", _of_grid(first), _of_grid(second))]
    for row in first.rows:
        if row in second.rows:
            of_row = (flat(values_of(p.rows[row].recipe, {Affects.CELL})) for p in (first, second))
            found += _differing(f"{row}: ", *of_row)
    return found


def differing_versions(
    first: FinishedCampaign, second: FinishedCampaign
) -> list[CampaignDifference]:
    """The versions and processors that differ, compared on one cell of each campaign."""
    return [*_differing("", versions_of(first), versions_of(second))]


def versions_of(campaign: FinishedCampaign) -> dict[str, Any]:
    """What made a cell of a campaign: versions and the processor; {} if nothing says so."""
    cells = [Artifact(campaign.place.store / name) for name in campaign.record.artifacts]
    for root in (campaign.place.root, *(cell.root for cell in cells)):
        if root.has(VERSIONS):
            file = root.path / VERSIONS
            return typed_json.read_json(file, dict[str, Any], f"delete {root.path}", root)
    return {}


def _of_grid(plan: Plan) -> dict[str, Any]:
    values = flat(values_of(plan.recipe, {Affects.CAMPAIGN, Affects.PACK}))
    shared = {key: value for key, value in values.items() if key not in ("seeds", "downstream")}
    columns = ", ".join(column.name for column in plan.columns)
    return {**shared, "rows": ", ".join(plan.rows), "columns": columns, "seeds": plan.seeds}


def _differing(
    prefix: str, first: Mapping[str, Any], second: Mapping[str, Any]
) -> Iterator[CampaignDifference]:
    for key in dict.fromkeys([*first, *second]):
        if first.get(key) != second.get(key):
            yield CampaignDifference(prefix + key, first.get(key), second.get(key))
