"""The sections of the report, in the order of the page: what a reader wants first comes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.report.sections import (
    about,
    changes,
    cka,
    curves,
    distances,
    effective_robustness,
    explorer,
    images,
    leak,
    ranking,
    rates,
    related,
    sure,
    sweep,
)

if TYPE_CHECKING:
    from engine.report.results import Results
    from engine.report.section import Section

ABOUT: list[Callable[[Results], Section | None]] = [
    distances.section,
    explorer.section,
    about.how_to_read,
    about.what_was_run,
    about.artwork,
    about.to_cite,
]
SECTIONS: list[Callable[[Results], Section | None]] = [
    ranking.models,
    sweep.tuned,
    rates.section,
    ranking.methods,
    ranking.trade_off,
    leak.section,
    related.section,
    sure.section,
    changes.maps,
    curves.barrier,
    changes.forgotten,
    changes.tuned_upstream,
    curves.during_training,
    curves.shots,
    curves.portions,
    effective_robustness.section,
    cka.section,
    images.section,
    *ABOUT,
]
# A sweep has one method, and nothing to rank: its variants must not be chosen by these numbers.
OF_SWEEP = [sweep.variants, sweep.tuned, rates.section, *ABOUT]


def of(results: Results) -> list[Section]:
    """The sections that these results have something to show in, in order."""
    makers = SECTIONS if results.record.sweep is None else OF_SWEEP
    made = (section(results) for section in makers)
    return [section for section in made if section is not None]
