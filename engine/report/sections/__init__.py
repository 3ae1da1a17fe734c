"""The sections of the report, a module each, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.report.sections import (
    agreement,
    barrier,
    cka,
    contact_sheet,
    coverage,
    credits,
    distances,
    dynamics,
    effective_robustness,
    how_sure,
    how_to_read,
    images,
    improvements,
    maps,
    methods,
    models,
    portions,
    ranking,
    shots,
    sweep,
    trade_off,
    tuning,
    upstream,
    upstream_change,
    what_was_run,
)

if TYPE_CHECKING:
    from engine.report.section import Section
    from engine.report.tables import Results

SECTIONS: tuple[Callable[[Results], Section | None], ...] = (
    models.section,
    tuning.section,
    ranking.section,
    how_sure.section,
    improvements.section,
    maps.section,
    trade_off.section,
    barrier.section,
    effective_robustness.section,
    upstream_change.section,
    dynamics.section,
    upstream.section,
    shots.section,
    portions.section,
    agreement.section,
    images.section,
    cka.section,
    distances.section,
    contact_sheet.section,
    how_to_read.section,
    methods.section,
    coverage.section,
    what_was_run.section,
    credits.section,
)
# A sweep has one method, and nothing to rank: its variants must not be chosen by these numbers.
OF_SWEEP: tuple[Callable[[Results], Section | None], ...] = (
    sweep.section,
    distances.section,
    contact_sheet.section,
    how_to_read.section,
    coverage.section,
    what_was_run.section,
    credits.section,
)


def of(results: Results) -> list[Section]:
    """The sections that these results have something to show in, in order."""
    modules = SECTIONS if results.record.sweep is None else OF_SWEEP
    made = (section(results) for section in modules)
    return [section for section in made if section is not None]
