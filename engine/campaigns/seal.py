"""Seals of reports: which plan's report a campaign's folder shows, and whether it is complete."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from engine.campaigns import plan_folder, record
from engine.campaigns.events import Sealed, append_event, read_events
from engine.campaigns.job_states import is_done
from engine.campaigns.plan import PAGE, REPORT, TABLE, Plan
from engine.campaigns.plan_folder import PlanFolder
from engine.store.artifacts import MARKER
from loaders.files.durable import file_hash
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile


@contextlib.contextmanager
def sealed(place: PlanFolder) -> Iterator[None]:
    """Record the report files that are written in this context, as an event of the report's job.

    Removes files left by earlier reports of any plan of the campaign, whole or killed while they
    were written. Keeps a user's own files.
    Raises DamagedFile if the report is a link.
    """
    shown, before = place.report_root, _inodes(place.report_root)
    yield
    after = _inodes(shown)
    written = {name for name, inode in after.items() if inode != before.get(name)}
    for name, _ in before.items() & after.items():
        if _target(name) in written:  # left by a killed report; others last for a moment
            shown.remove(name)
    for other in plan_folder.in_campaign(place.campaign):
        hashes = _sealed(other)
        # Remove only files found in the report: somebody may have edited a seal's names.
        for name in before.keys() & hashes.keys() - written:
            if _is(shown, name, hashes[name]):
                shown.remove(name)
    files = {name: file_hash(shown.file(name)) for name in sorted(written)}
    append_event(place, REPORT, Sealed(files=files))


def _inodes(report: Root) -> dict[str, int]:
    """The files of a report, with inode numbers, which change when files are written again."""
    return {name: report.file(name).stat().st_ino for name in report.files()}


def _target(name: str) -> str:
    """The file that `Root.write` replaces from a temporary file of this name; empty for others."""
    match = re.fullmatch(r"(.*/)?\.(.+)\.[0-9a-f]{8}", name)
    return f"{match[1] or ''}{match[2]}" if match else ""


def _sealed(place: PlanFolder) -> dict[str, str]:
    """SHA-256 of the files of a plan's report; empty if there is no readable seal."""
    files: dict[str, str] = {}
    with contextlib.suppress(OSError, DamagedFile):
        for event in read_events(place, REPORT):
            files = event.files if isinstance(event, Sealed) else files
    return files


def _is(report: Root, name: str, sha256: str) -> bool:
    try:
        return report.has(name) and file_hash(report.file(name)) == sha256
    except DamagedFile:
        return False


def is_shown(place: PlanFolder) -> bool:
    """Whether the campaign's report belongs to the plan in `place` and is unchanged."""
    shown = _sealed(place)
    return {PAGE, TABLE} <= shown.keys() and all(
        _is(place.report_root, name, sha256) for name, sha256 in shown.items()
    )


def finished(plan: Plan) -> bool:
    """Whether all jobs are done, their artefacts are in the store, and the campaign's folder shows
    this plan's report."""
    try:
        run = record.read_record(plan.place)
    except (OSError, DamagedFile):
        return False
    listed = [*(f"{name}/{MARKER}" for name in run.record.artifacts), *run.record.files]
    is_whole = is_done(plan.place, REPORT) and is_shown(plan.place)
    return is_whole and all(map(plan.place.store_root.has, listed))
