"""The folder of a plan, RUNS/CAMPAIGN/plans/ID, and its report: no link below RUNS is followed."""

from __future__ import annotations

from pathlib import Path

from loaders.root import Root

REPORT = "report"  # a job, and the folder of what it writes


def files(place: Path) -> Root:
    """What lies in the folder of a plan."""
    return Root(place.parents[2]).below(place)


def report(place: Path) -> Root:
    """The report of the campaign whose plan lies in the folder `place`."""
    return Root(place.parents[2]).below(place.parents[1] / REPORT)
