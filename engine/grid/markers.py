"""Markers of a campaign's jobs: what a finished job left in the store, so that none can mislead.

A job is done when its artefacts are there. Its marker lists those that the campaign's results and
exports are made of; where one is gone, the marker goes too, and the job runs again. Features,
distances and Fishers are not listed: whatever needs them next makes them again. A share of a set's
evaluation lists nothing either, for its slices go as they are joined: it runs again with the job
that joins them. Imports no torch.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from engine.grid import campaign, record, stamp
from engine.grid.campaign import Plan
from engine.grid.job_graph import REPORT
from engine.machine.files import write_atomic
from engine.store.artifacts import MARKER, Artifact
from loaders.schema import DamagedFile

DONE = "done"  # the folder of markers, beside a plan


def leave(plan: Plan, job: str, artifacts: Iterable[Artifact]) -> None:
    """Mark a job as done, which left these artefacts."""
    names = sorted({f"{artifact.kind}/{artifact.name}" for artifact in artifacts})
    write_atomic(plan.path.parent / DONE / job, "\n".join(names).encode())


def forget(plan: Plan) -> None:
    """Let the next run visit all jobs again. It finds what is finished there."""
    shutil.rmtree(plan.path.parent / DONE, ignore_errors=True)


def forget_misleading(plan: Plan) -> None:
    """Remove the markers of jobs whose artefacts are gone, and the report's unless it is whole."""
    is_finished, misleading, files = finished(plan), _misleading(plan), _recorded(plan)
    for marker in misleading:
        for part in (marker, *marker.parent.glob(f"{glob.escape(marker.name)}.*")):
            part.unlink(missing_ok=True)
    lacks_predictions = files is not None and not all(map(os.path.isfile, files))
    if not _store(plan).is_dir() or (lacks_predictions and not misleading):
        forget(plan)  # markers of older versions list nothing
    if not is_finished:
        (plan.path.parent / DONE / REPORT).unlink(missing_ok=True)


def finished(plan: Plan) -> bool:
    """Whether all jobs are done, and the report in the campaign's folder is that of this plan."""
    place, report, files = plan.path.parent, campaign.report_page(plan).parent, _recorded(plan)
    return (
        (place / DONE / REPORT).is_file()
        and files is not None
        and all(map(os.path.isfile, files))
        and stamp.plan_of(report) == place.name
        and stamp.is_whole(report)
        and not _misleading(plan)
    )


def _recorded(plan: Plan) -> list[Path] | None:
    """The predictions that the campaign's record names; None without a sound record."""
    try:
        run = record.read(plan.path.parent)
    except (FileNotFoundError, DamagedFile):
        return None
    return [run.store / name for name in run.record.files]


def _misleading(plan: Plan) -> list[Path]:
    """The markers of jobs that left an artefact which is gone.

    Raises DamagedFile where a folder is in a marker's place.
    """
    store = _store(plan)

    def lists(marker: Path) -> list[str]:
        try:
            return marker.read_bytes().decode(errors="replace").splitlines()
        except IsADirectoryError as error:
            raise DamagedFile(
                f"{marker} is a folder in place of a file; move it away and run the same command "
                "again"
            ) from error

    return [
        marker
        for marker in (plan.path.parent / DONE).glob("*")
        if not all(os.path.isfile(store / name / MARKER) for name in lists(marker))
    ]


def _store(plan: Plan) -> Path:
    return plan.folder.parent / "store"
