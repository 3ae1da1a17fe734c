"""The sections of the report, in the order of the page."""

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
    equal_accuracy,
    explorer,
    groups,
    images,
    paired,
    pretraining,
    ranking,
    sweep,
    varied,
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
    pretraining.section,
    varied.section,
    ranking.methods,
    ranking.trade_off,
    changes.map_of_fine_tuning,
    paired.leak,
    paired.related,
    paired.best,
    changes.maps,
    curves.barrier,
    equal_accuracy.section,
    changes.forgotten,
    changes.further,
    groups.section,
    changes.on_probe_sets,
    changes.tuned_outside,
    curves.during_training,
    effective_robustness.section,
    cka.section,
    images.section,
    *ABOUT,
]
# A sweep has one method, and its configurations must not be ranked on the test datasets.
OF_SWEEP = [sweep.section, varied.section, changes.further, groups.section, *ABOUT]


def of(results: Results) -> list[Section]:
    """The non-empty sections of these results, in order."""
    makers = SECTIONS if results.record.sweep is None else OF_SWEEP
    made = (section(results) for section in makers)
    return [section for section in made if section is not None]
