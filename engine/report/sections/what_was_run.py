"""What was run: settings, versions and hardware, and every row's hyper-parameters."""

from __future__ import annotations

from typing import Any

import pandas

from engine.report.section import Section, Table
from engine.report.tables import Results

ROWS = "Rows"  # of a record's settings: every method's own, a mapping by its key


def section(results: Results) -> Section | None:
    settings = dict(results.record.settings)
    rows = {name: settings.pop(name) for name in [*settings] if name.split(",")[0] == ROWS}
    tables = []
    if settings:
        data = pandas.DataFrame(
            {"setting": [*settings], "value": [str(value) for value in settings.values()]}
        )
        caption = "What it takes to get these numbers again."
        tables.append(Table("settings", caption, data))
    listed = [
        {"method": results.record.methods.get(key, key)}
        | {name: _plain(value) for name, value in values.items()}
        for by_method in rows.values()
        for key, values in by_method.items()
    ]
    if listed:
        caption = "Every method's settings as its recipe resolves them."
        tables.append(Table("hyper-parameters", caption, pandas.DataFrame(listed)))
    return Section("settings", "What was run", tables=tables) if tables else None


def _plain(value: Any) -> Any:
    """A value that fits a table's cell."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value
