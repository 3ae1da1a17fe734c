"""Jobs of a new plan whose results a finished campaign of the same runs folder already has.

Selecting some rows or columns of a finished campaign then only writes a report. If it lacks
something, such as features that `rib gc` deleted, all jobs run after all (`workflow.run`).
"""

from __future__ import annotations

from engine.campaigns import holdings, seal
from engine.campaigns.holdings import Begun
from engine.campaigns.plan import PREPARE, Plan, is_current, settings_of_rows
from loaders.files.typed_json import DamagedFile


def jobs(plan: Plan) -> list[str]:
    """The jobs that need not run. Reads plans and records of other campaigns, and no artefact.

    Empty if a row has a tracker, which logs each cell as it is made. If nothing is left but the
    report, that includes the preparation.
    """
    if any(row.recipe.trackers for row in plan.rows.values()):
        return []
    rows, found = settings_of_rows(plan).values(), set[str]()
    for begun in holdings.campaigns(plan.place.runs):
        if (other := _finished(begun)) is None or other.device != plan.device:
            continue
        theirs = settings_of_rows(other).values()
        if all(row in theirs for row in rows):
            found |= {column.job for column in plan.columns if column in other.columns}
    names = [column.job for column in plan.columns if column.job in found]
    return [PREPARE, *names] if len(names) == len(plan.columns) else names


def _finished(begun: Begun) -> Plan | None:
    """The plan of a finished campaign of this version, if all its artefacts are in the store."""
    if begun.record is None or not seal.has_artifacts(begun.record):
        return None
    try:
        plan = begun.record.plan
    except (OSError, DamagedFile):
        return None
    return plan if is_current(plan) else None
