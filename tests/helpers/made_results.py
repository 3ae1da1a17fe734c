"""Results of a made-up grid, as the report's sections take them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import vl_convert

from engine.campaigns.record import Record
from engine.measures.rows import PRE, Evaluation
from engine.report import charts
from engine.report.results import Results, of_grid, of_record
from engine.report.section import Section
from helpers.stores import SETS, grid, random_hits, synthetic

TITLES = {"fine_tune": "FT", "lwf": "LwF"}


def record(evaluations: Sequence[Evaluation], **values: Any) -> Record:
    """A record of evaluations on the sets `SETS` and the upstream set `up`."""
    defaults: dict[str, Any] = {
        "name": "made-up",
        "benchmark": "drawings",
        "version": 1,
        "sets": list(SETS),
        "downstreams": list(SETS),
        "upstream": "up",
        "methods": TITLES,
        "settings": {},
        "rows": [],
        "credits": [],
        "contact_sheet": "",
        "holdout": False,
        "distances": None,
        "evaluations": list(evaluations),
        "files": {},
    }
    return Record(**defaults | values)


def of_evaluations(
    evaluations: Sequence[Evaluation], models_csv: Path | None = None, **values: Any
) -> Results:
    """Results of evaluations on the sets of `record`; `values`: of it."""
    return of_record(record(evaluations, **values), evaluations, models_csv)


def results(folder: Path, models_csv: Path | None = None, **values: Any) -> Results:
    """The same of two methods with random hits."""
    return of_evaluations(grid(folder, random_hits(), tuple(TITLES)), models_csv, **values)


def of_cells(cells: Sequence[tuple], **values: Any) -> Results:
    """Results of chosen accuracies, as `synthetic` takes them; `values`: of the record."""
    made = record([], **values)
    return of_grid(made, synthetic(cells, made.sets, made.upstream, made.downstreams))


def of_arms(
    arms: Mapping[tuple[str, float | None, str], tuple[float, float]],
    *,
    before: float = 50,
    models: Sequence[str] = ("lite0",),
    more: Sequence[tuple] = (),
    **values: Any,
) -> Results:
    """The same where an arm (method, alpha, setting) has one accuracy on the set fine-tuned on and
    one elsewhere, and the pretrained models have `before`. more: further cells."""
    cells = [(model, PRE, "", None, "", "", on, before) for model in models for on in (*SETS, "up")]
    for model in models:
        for (method, alpha, setting), of in arms.items():
            arm, is_row = (model, method, "original", alpha, setting), alpha in (None, 0.5)
            cells += [(*arm, i, j, of[i != j], is_row) for i in SETS for j in (*SETS, "up")]
    return of_cells([*cells, *more], **values)


def drawn(section: Section) -> dict[str, str]:
    """Every figure of a section as SVG, by its name."""
    return {
        figure.name: vl_convert.vegalite_to_svg(charts.drawn(figure, 600))
        for figure in section.figures
    }


def row(table: pandas.DataFrame, **values: str) -> pandas.Series:
    """The only row of a table with these values."""
    for name, value in values.items():
        table = table[table[name] == value]
    assert len(table) == 1, table
    return table.iloc[0]
