"""Parts of a new plan's record that a finished campaign of the same runs folder already has.

Selecting some rows or columns of a finished campaign then only writes a report. If it lacks
something, such as predictions that `rib gc` deleted, all jobs run after all (`workflow.run`).
"""

from __future__ import annotations

from engine.campaigns import holdings, seal
from engine.campaigns.holdings import StartedCampaign
from engine.campaigns.make_plan import is_current, settings_of_rows
from engine.campaigns.parts import Distances, Models, Part, Preparation, read_part, select_rows
from engine.campaigns.plan import DISTANCES, PREPARE, Plan
from loaders.files.typed_json import DamagedFile


def parts_of(plan: Plan) -> dict[str, Part]:
    """The parts, by job, of the jobs that need not run. Reads plans, records and parts of other
    campaigns, and no artefact.

    Empty if a row has a tracker, which logs each cell as it is made. With columns come the
    preparation and the distances: Snakemake repeats what depends on a job that runs.
    """
    if any(row.recipe.trackers for row in plan.rows.values()):
        return {}
    columns: dict[str, Part] = {}
    shared: dict[str, Part] = {}
    settings = settings_of_rows(plan)
    for begun in holdings.campaigns(plan.place.runs):
        if (other := _finished(begun)) is None or not _shares_cells(plan, other):
            continue
        settings_there = settings_of_rows(other)
        # The plan's names of rows by the other's.
        names = {b: a for a in settings for b in settings_there if settings[a] == settings_there[b]}
        if len(names) < len(plan.rows):
            continue
        try:
            shared = {
                PREPARE: read_part(other.place, PREPARE, Preparation),
                DISTANCES: read_part(other.place, DISTANCES, Distances),
            }
            for column in plan.columns:
                if column in other.columns:
                    part = read_part(other.place, column.job, Models)
                    columns[column.job] = select_rows(part, names)
        except (OSError, DamagedFile):
            continue
    return {**shared, **columns} if columns else {}


def _shares_cells(plan: Plan, other: Plan) -> bool:
    """Whether equal rows of both plans have equal evaluations in equal columns.

    The preparation depends on all datasets that are read, snapshots on all downstream ones, and
    the images that are scored on all that a campaign trains on.
    """
    follows = any(row.recipe.train.snapshots for row in plan.rows.values())
    return (
        other.device == plan.device
        and other.needed == plan.needed
        and {*other.recipe.trained_on} == {*plan.recipe.trained_on}
        and (not follows or other.downstreams == plan.downstreams)
    )


def _finished(begun: StartedCampaign) -> Plan | None:
    """The plan of a finished campaign of this version, if all its artefacts are in the store."""
    if begun.record is None or not seal.has_artifacts(begun.record):
        return None
    try:
        plan = begun.record.plan
    except (OSError, DamagedFile):
        return None
    return plan if is_current(plan) else None
