"""The sections of the report, a module each, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.report.sections import (
    agreement,
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
    trade_off,
    upstream,
    upstream_change,
    what_was_run,
)

if TYPE_CHECKING:
    from engine.report.section import Section
    from engine.report.tables import Results

SECTIONS: tuple[Callable[[Results], Section | None], ...] = (
    models.section,
    ranking.section,
    how_sure.section,
    improvements.section,
    maps.section,
    trade_off.section,
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


def of(results: Results) -> list[Section]:
    """The sections that these results have something to show in, in order."""
    made = (section(results) for section in SECTIONS)
    return [section for section in made if section is not None]
