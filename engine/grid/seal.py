"""Which report a campaign's folder shows, and whether it is whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from engine.grid import record
from engine.grid.campaign import PAGE, REPORT, TABLE, Plan
from engine.grid.job_states import is_done
from engine.grid.place import files, report
from engine.store.artifacts import MARKER
from loaders.files import file_hash
from loaders.root import Root
from loaders.schema import DamagedFile

SHOWN = "report.sha256"  # beside a plan: the files of its report, as sha256sum writes them


@contextlib.contextmanager
def sealed(place: Path) -> Iterator[None]:
    """Note the files of a report that are written now beside its plan, which is in `place`.

    Files that an earlier report left, of this plan or another, go, and a user's own files stay.
    Raises DamagedFile where the report is a link.
    """
    shown, before = report(place), _inodes(report(place))
    yield
    written = {name for name, inode in _inodes(shown).items() if inode != before.get(name)}
    for other in _plans(place):
        hashes = _sealed(other)
        # Only files that were found in the report: a seal's names may be edited to point elsewhere.
        for name in before.keys() & hashes.keys() - written:
            if _is(shown, name, hashes[name]):
                shown.remove(name)
    lines = [f"{file_hash(shown.file(name))}  {name}" for name in sorted(written)]
    files(place).write(SHOWN, "\n".join(lines).encode())


def _plans(place: Path) -> list[Path]:
    """The folders of all plans of a plan's campaign."""
    plans = Root(place.parents[2]).below(place.parent)
    return [place.parent / name for name in plans.folders()]


def _inodes(report: Root) -> dict[str, int]:
    """The files of a report, with numbers that change when they are written anew."""
    return {name: report.file(name).stat().st_ino for name in report.files()}


def _sealed(place: Path) -> dict[str, str]:
    """SHA-256 of the files of a plan's report; empty where no seal can be read."""
    try:
        lines = files(place).read(SHOWN).decode().splitlines()
    except (OSError, ValueError):
        return {}
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}


def _is(report: Root, name: str, sha256: str) -> bool:
    try:
        return report.has(name) and file_hash(report.file(name)) == sha256
    except DamagedFile:
        return False


def is_shown(place: Path) -> bool:
    """Whether the report beside the plans is that of the plan in the folder `place`, and whole."""
    shown = _sealed(place)
    return {PAGE, TABLE} <= shown.keys() and all(
        _is(report(place), name, sha256) for name, sha256 in shown.items()
    )


def finished(plan: Plan) -> bool:
    """Whether all jobs are done, nothing that they left is gone, and the campaign's folder shows
    this plan's report."""
    try:
        campaign = record.read(plan.place)
    except (OSError, DamagedFile):
        return False
    store = Root(campaign.store.parent).below(campaign.store)
    return (
        is_done(plan.place, REPORT)
        and is_shown(plan.place)
        and all(store.has(f"{name}/{MARKER}") for name in campaign.record.artifacts)
        and all(store.has(name) for name in campaign.record.files)
    )
