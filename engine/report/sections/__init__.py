"""The sections of the report, in the order of the page: what a reader wants first comes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.report.sections import (
    about,
    barrier,
    changes,
    cka,
    curves,
    distances,
    effective_robustness,
    explorer,
    images,
    ranking,
    sure,
    sweep,
    tuning,
    upstream,
)

if TYPE_CHECKING:
    from engine.report.results import Results
    from engine.report.section import Section

SECTIONS: list[Callable[[Results], Section | None]] = [
    ranking.models,
    tuning.section,
    ranking.methods,
    ranking.trade_off,
    sure.section,
    changes.by_set,
    changes.maps,
    barrier.section,
    changes.forgotten,
    upstream.section,
    curves.during_training,
    curves.shots,
    curves.portions,
    effective_robustness.section,
    cka.section,
    distances.section,
    images.section,
    explorer.section,
    about.contact_sheet,
    about.how_to_read,
    about.methods,
    about.coverage,
    about.what_was_run,
    about.credits,
]
# A sweep has one method, and nothing to rank: its variants must not be chosen by these numbers.
OF_SWEEP: list[Callable[[Results], Section | None]] = [
    sweep.section,
    distances.section,
    explorer.section,
    about.contact_sheet,
    about.how_to_read,
    about.coverage,
    about.what_was_run,
    about.credits,
]


def of(results: Results) -> list[Section]:
    """The sections that these results have something to show in, in order."""
    makers = SECTIONS if results.record.sweep is None else OF_SWEEP
    made = (section(results) for section in makers)
    return [section for section in made if section is not None]
