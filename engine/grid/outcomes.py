"""What became of a campaign's jobs: done, failed in their own words, or killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engine.errors import CampaignError
from engine.grid import attempts, record, slurm
from engine.grid.campaign import PAGE, REPORT, TABLE, Plan
from engine.machine.files import write_atomic
from engine.store.artifacts import MARKER
from loaders.files import file_hash
from loaders.schema import DamagedFile

DONE, LOGS, LOG, EXIT = "done", "logs", ".log", ".exit"  # beside a plan
SHOWN = "report.sha256"  # beside a plan: the files of its report, as sha256sum writes them
SIGNALLED = 128  # a shell's exit code for a program that a signal ended: this and its number
END = 4096  # bytes of a log that are looked at for its last line


def is_done(place: Path, job: str) -> bool:
    """Whether a job of the plan in the folder `place` is done."""
    return (place / DONE / job).is_file()


def set_done(place: Path, job: str) -> None:
    """Note that a job has its result; the job's own last act."""
    (place / DONE).mkdir(exist_ok=True)
    (place / DONE / job).touch()


def exit_code(place: Path, job: str) -> int | None:
    """The exit code of a job that failed, as far as it has one; 0 where it left no result."""
    with contextlib.suppress(OSError, ValueError):
        return int((place / LOGS / f"{job}{EXIT}").read_text("utf-8"))
    return None


@contextlib.contextmanager
def sealed(place: Path) -> Iterator[None]:
    """Note the files of a report that are written now beside its plan, which is in `place`.

    Files that an earlier report left, of this plan or another, go, and a user's own files stay.
    Raises CampaignError where a folder of the report is a link: its files are somebody else's.
    """
    report = place.parents[1] / REPORT
    for folder in (report, *report.rglob("*")):
        if folder.is_symlink() and folder.is_dir():
            raise CampaignError(
                f"{folder} is a link to another folder, in which nothing is overwritten; remove "
                "the link, or write the report elsewhere by `rib report --out`"
            )
    before = _files(report)
    yield
    written = {name: path for name, path in _files(report).items() if path != before.get(name)}
    for other in place.parent.glob(f"*/{SHOWN}"):
        hashes = _sealed(other.parent)
        # Only files that were found in the report: a seal's names may be edited to point elsewhere.
        for name in before.keys() & hashes.keys() - written.keys():
            if _is(report / name, hashes[name]):
                (report / name).unlink()
    lines = [f"{file_hash(report / name)}  {name}" for name in sorted(written)]
    write_atomic(place / SHOWN, "\n".join(lines).encode())


def _files(report: Path) -> dict[str, int]:
    """The files of a report, with numbers that change when they are written anew."""
    files = [path for path in report.rglob("*") if path.is_file()]
    return {path.relative_to(report).as_posix(): path.stat().st_ino for path in files}


def _sealed(place: Path) -> dict[str, str]:
    """SHA-256 of the files of a plan's report; empty where no seal can be read."""
    try:
        lines = (place / SHOWN).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: sha256 for sha256, _, name in (line.partition("  ") for line in lines)}


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and file_hash(path) == sha256


def is_shown(place: Path) -> bool:
    """Whether the report beside the plans is that of the plan in the folder `place`, and whole."""
    report, files = place.parents[1] / REPORT, _sealed(place)
    return {PAGE, TABLE} <= files.keys() and all(
        _is(report / name, sha256) for name, sha256 in files.items()
    )


def finished(plan: Plan) -> bool:
    """Whether all jobs are done, nothing that they left is gone, and the campaign's folder shows
    this plan's report."""
    try:
        campaign = record.read(plan.place)
    except (OSError, DamagedFile):
        return False
    return (
        is_done(plan.place, REPORT)
        and is_shown(plan.place)
        and all((campaign.store / name / MARKER).is_file() for name in campaign.record.artifacts)
        and all((campaign.store / name).is_file() for name in campaign.record.files)
    )


def begin(plan: Plan) -> None:
    """Forget how jobs ended in earlier runs. If all of them were done, something is gone or
    damaged, so they run again; they find the rest in the store."""
    place = plan.place
    if is_done(place, REPORT) or not (plan.folder.parent / "store").is_dir():
        forget(place)
    for job in plan.jobs:
        of_job = [EXIT] if is_done(place, job) else [EXIT, LOG]
        for suffix in of_job:
            with contextlib.suppress(IsADirectoryError):  # the job's own error names it
                (place / LOGS / f"{job}{suffix}").unlink(missing_ok=True)


def forget(place: Path) -> None:
    """Let the next run visit all jobs of a plan again."""
    shutil.rmtree(place / DONE, ignore_errors=True)


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
            text = failed.text("\n  last words: ")
            yield job, f"{job} {text}" + (f"\n  its log: {log}" if log.is_file() else "")


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
    if last and last.ended is None and last.slurm:
        state = slurm.state(last.slurm)
        if state not in ("", "FAILED", "RUNNING", "COMPLETED", "PENDING"):
            return Failure(f"was ended by Slurm: {state}{slurm.REMEDIES.get(state, '')}")
    if code is None and last and last.ended is None and last.slurm:
        return Failure("was killed, and Slurm does not say by what")
    if code is None:
        return Failure("failed", words) if words else None
    if code > SIGNALLED:
        name = signal.Signals(code - SIGNALLED).name
        hint = ", as the kernel does where memory runs out" if name == "SIGKILL" else ""
        return Failure(f"was killed ({name}){hint}")
    words = words or _last_line(place / LOGS / f"{job}{LOG}")
    if code == 0:
        return Failure("ended without its result (exit code 0)", words)
    return Failure(f"failed (exit code {code})", words)


def _last_line(log: Path) -> str:
    """The last line of a log, as far as a line is short; empty where there is none."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - END))
        lines = file.read().decode(errors="replace").split("\n")
        return next(filter(None, map(str.strip, reversed(lines))), "")[-attempts.LONGEST :]
    return ""
