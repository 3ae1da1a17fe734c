"""The commands of a campaign's jobs, which also run one of them alone."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from engine.grid.campaign import Plan
from engine.grid.job_graph import PREPARE, REPORT, Job
from engine.grid.sites import Site


def commands(plan: Plan, jobs: Sequence[Job], site: Site) -> dict[str, str]:
    """Lines for a shell, by the name of the job. They begin in the folder where the user stands."""
    # -P: the working folder is the user's and may hold packages of our names.
    program = [sys.executable, "-P", "-m", "engine.commands.job"]
    shared = ["--plan", str(plan.path), "--device", site.device]
    folder = shlex.join(["cd", os.getcwd()])
    lines = {}
    for job in jobs:
        on_ranks = site.ranks > 1 and job.stage not in (PREPARE, REPORT)
        ranks = ["--ranks", str(site.ranks)] if on_ranks else []
        lines[job.name] = f"{folder} && {shlex.join([*program, *job.words, *shared, *ranks])}"
    return lines
