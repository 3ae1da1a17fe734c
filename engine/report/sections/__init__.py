"""The sections of the report, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine.report.results import Results
from engine.report.section import Section
from engine.report.sections import (
    about,
    changes,
    curves,
    distances,
    effective_robustness,
    groups,
    paired,
    ranking,
    varied,
)

ABOUT: list[Callable[[Results], Section | None]] = [
    distances.section,
    about.all_numbers,
    about.how_to_read,
    about.what_was_run,
    about.artwork,
    about.to_cite,
]
SECTIONS: list[Callable[[Results], Section | None]] = [
    ranking.models,
    ranking.by_samples_seen,
    varied.section,
    ranking.methods,
    ranking.trade_off,
    about.samples,
    changes.map_of_fine_tuning,
    paired.related,
    paired.best,
    changes.maps,
    curves.barrier,
    curves.equal_accuracy,
    changes.forgotten,
    changes.further,
    groups.section,
    changes.on_probe_sets,
    changes.tuned_outside,
    curves.during_training,
    effective_robustness.section,
]
# A sweep has one method, and its configurations must not be ranked on the test datasets.
OF_SWEEP = [varied.sweep, varied.section, changes.further, groups.section, *ABOUT]


def of(results: Results) -> list[Section]:
    """The non-empty sections of these results, in order. Those of extras come before `ABOUT`; a
    sweep's report has none."""
    every = [*SECTIONS, *results.hooks("section"), *ABOUT]
    makers = every if results.record.sweep is None else OF_SWEEP
    made = (section(results) for section in makers)
    return [_with_files(results, section) for section in made if section is not None]


def _with_files(results: Results, section: Section) -> Section:
    """The section with what the files of its tables contain."""
    tables = [replace(table, file=results.with_keys(table.data)) for table in section.tables]
    return replace(section, tables=tables)
