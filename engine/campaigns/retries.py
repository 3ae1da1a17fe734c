"""Attempts at a job: the program around each keeps the job's log and records a failure.

python -P -m engine.campaigns.retries PLAN JOB PROGRAM [WORDS ...]

PLAN is the plan's folder. Exit code 2 means that another attempt would fail in the same way: it
ends at once. Code 0 without the job's marker is recorded as 0 and becomes 1.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.campaigns.events import Ended, append_event
from engine.campaigns.job_states import LOG, LOGS, is_done, read_job
from engine.campaigns.plan_folder import PlanFolder
from engine.machine import limited_log

FINAL = 2  # exit code of an error that another attempt would meet again
FINAL_MIN = 5  # minutes for an attempt that ends at once; Slurm starts short jobs sooner


def main(words: Sequence[str]) -> int:
    place, job = PlanFolder(Path(words[0])), words[1]
    if ends_at_once(place, job):
        return FINAL
    code = limited_log.main([str(place.path / LOGS / f"{job}{LOG}"), *words[2:]])
    if code == 0 and is_done(place, job):
        return 0
    with contextlib.suppress(OSError):  # a full disk: the exit code still says it
        append_event(place, job, Ended(code=code))
    return code or 1


def ends_at_once(place: PlanFolder, job: str) -> bool:
    """Whether the last attempt ended with an error that another would meet again."""
    return read_job(place, job).end.code == FINAL


def minutes(place: PlanFolder, job: str, once: int, attempt: int) -> int:
    """The minutes to ask for. once: those of the first attempt; attempt: from 1."""
    return min(once, FINAL_MIN) if ends_at_once(place, job) else once * attempt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
