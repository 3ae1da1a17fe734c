"""The commands of a campaign's jobs, which also run one of them alone."""

from __future__ import annotations

import os
import shlex
import sys

from engine.grid.campaign import Plan
from engine.grid.resources import COLUMN, PREPARE, REPORT
from engine.grid.sites import Site


def commands(plan: Plan, site: Site) -> dict[str, str]:
    """Lines for a shell, by the name of the job. They begin in the folder where the user stands."""
    shared = ["--plan", str(plan.path), "--device", site.device]
    ranks = ["--ranks", str(site.ranks)] if site.ranks > 1 else []
    jobs = {
        PREPARE: ["prepare", *shared],
        **{
            COLUMN + column.name: ["column", *shared, *ranks, "--column", column.name]
            for column in plan.columns
        },
        REPORT: ["report", *shared],
    }
    # -P: the working folder is the user's and may hold packages of our names.
    program = [sys.executable, "-P", "-m", "engine.commands.job"]
    folder = shlex.join(["cd", os.getcwd()])
    return {name: f"{folder} && {shlex.join([*program, *words])}" for name, words in jobs.items()}
