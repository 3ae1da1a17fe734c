"""What became of a campaign's jobs: done, failed in their own words, or killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engine.grid import attempts, record
from engine.grid.campaign import PAGE, REPORT, TABLE, Plan
from engine.grid.place import files, report
from engine.grid.schedulers import SCHEDULERS
from engine.store.artifacts import MARKER
from loaders.files import file_hash
from loaders.root import Root
from loaders.schema import DamagedFile

DONE, LOGS, LOG, EXIT = "done", "logs", ".log", ".exit"  # beside a plan
SHOWN = "report.sha256"  # beside a plan: the files of its report, as sha256sum writes them
MOST = 100  # bytes of a job's exit code
SIGNALLED = 128  # a shell's exit code for a program that a signal ended: this and its number
END = 4096  # bytes of a log that are looked at for its last line


def is_done(place: Path, job: str) -> bool:
    """Whether a job of the plan in the folder `place` is done."""
    return files(place).has(f"{DONE}/{job}")


def set_done(place: Path, job: str) -> None:
    """Note that a job has its result; the job's own last act."""
    files(place).write(f"{DONE}/{job}", b"")


def exit_code(place: Path, job: str) -> int | None:
    """The exit code of a job that failed, as far as it has one; 0 where it left no result."""
    with contextlib.suppress(OSError, ValueError):
        return int(files(place).read(f"{LOGS}/{job}{EXIT}", MOST))
    return None


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


def begin(plan: Plan) -> None:
    """Forget how jobs ended in earlier runs. If all of them were done, something is gone or
    damaged, so they run again; they find the rest in the store.

    Raises DamagedFile where anything beside the plan is a link: jobs write there by their shell,
    and Snakemake into its own folder, which follow links.
    """
    place = plan.place
    beside = files(place)
    beside.check()
    Root(place.parents[2]).below(place.parent / ".snakemake").check()
    if is_done(place, REPORT) or not (plan.folder.parent / "store").is_dir():
        forget(place)
    for job in plan.jobs:
        of_job = [EXIT] if is_done(place, job) else [EXIT, LOG]
        for suffix in of_job:
            # The job's own error names a folder in its place.
            if beside.has(name := f"{LOGS}/{job}{suffix}"):
                beside.remove(name)


def forget(place: Path) -> None:
    """Let the next run visit all jobs of a plan again."""
    files(place).remove(DONE)


class Failure(NamedTuple):
    """How a job failed, and its own words, if it left any."""

    how: str
    words: str = ""

    def text(self, joint: str) -> str:
        """Both, with a joint between them."""
        return joint.join(filter(None, self))


def failures(plan: Plan) -> Iterator[tuple[str, str]]:
    """Each job that failed, and some lines for people: what happened, its words, its log."""
    for job in plan.jobs:
        log = plan.place / LOGS / f"{job}{LOG}"
        if not is_done(plan.place, job) and (failed := failure(plan.place, job)):
            its_log = f"\n  its log: {log}" if files(plan.place).has(log) else ""
            text = failed.text("\n  last words: ")
            yield job, f"{job} {text}{its_log}"


def failure(place: Path, job: str) -> Failure | None:
    """How a job's last attempt failed; None where it has not. Of an attempt of several ranks, the
    words are those of one that says why."""
    of_job = [attempt for attempt in attempts.read(place) if attempt.job == job]
    last = max(of_job, key=lambda a: (a.started, bool(a.error)), default=None)
    code = exit_code(place, job)
    words = last.error if last else ""
    if code == os.EX_TEMPFAIL:
        return Failure(
            "was ended by a signal in its training, and goes on from its last checkpoint"
        )
    if last and last.ended is None and last.scheduler in SCHEDULERS:
        scheduler = SCHEDULERS[last.scheduler]
        if end := scheduler.end_of(last.queued_as):
            return Failure(f"was ended by {scheduler.title}: {end}")
        if code is None:
            return Failure(f"was killed, and {scheduler.title} does not say by what")
    if code is None:
        return Failure("failed", words) if words else None
    if code > SIGNALLED:
        name = signal.Signals(code - SIGNALLED).name
        hint = ", as the kernel does where memory runs out" if name == "SIGKILL" else ""
        return Failure(f"was killed ({name}){hint}")
    words = words or _last_line(place, job)
    if code == 0:
        return Failure("ended without its result (exit code 0)", words)
    return Failure(f"failed (exit code {code})", words)


def _last_line(place: Path, job: str) -> str:
    """The last line of a job's log, as far as a line is short; empty where there is none."""
    name = f"{LOGS}/{job}{LOG}"
    with contextlib.suppress(OSError, DamagedFile), files(place).open(name) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - END))
        lines = file.read().decode(errors="replace").split("\n")
        return next(filter(None, map(str.strip, reversed(lines))), "")[-attempts.LONGEST :]
    return ""
