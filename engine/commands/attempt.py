"""The program around each job of a campaign: it keeps the job's log and records a failure.

python -P -m engine.commands.attempt PLAN JOB PROGRAM [WORDS ...]

PLAN is the plan's folder. Exit code 2 means that another attempt would fail in the same way: it
ends at once. Code 0 without the job's marker is recorded as 0 and becomes 1.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.campaigns.events import Ended, append_event
from engine.campaigns.job_states import FINAL, LOG, LOGS, is_done, read_job
from engine.campaigns.plan_folder import PlanFolder
from engine.machine import limited_log


def main(words: Sequence[str]) -> int:
    place, job = PlanFolder(Path(words[0])), words[1]
    if read_job(place, job).end.code == FINAL:
        return FINAL
    code = limited_log.main([str(place.path / LOGS / f"{job}{LOG}"), *words[2:]])
    if code == 0 and is_done(place, job):
        return 0
    with contextlib.suppress(OSError):  # a full disk: the exit code still says it
        append_event(place, job, Ended(code=code))
    return code or 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
