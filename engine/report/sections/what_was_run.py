"""What was run: settings, versions, hardware and hours, and every row's hyper-parameters."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pandas

from engine.grid.attempts import Attempt
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
        caption = (
            "Every method's settings as its recipe resolves them. A method that takes no steps, "
            "such as a mix of finished cells or a probe that is fitted to its optimum, does not "
            "use those of optimizer and training."
        )
        tables.append(Table("hyper-parameters", caption, pandas.DataFrame(listed)))
    attempts = [attempt for attempt in results.record.attempts if attempt.ended is not None]
    if attempts:
        caption = "Hours of the jobs, by stage and device; a job on several GPUs counts once."
        data = pandas.DataFrame(_hours(attempts))
        tables.insert(1, Table("hours", caption, data, {"job_hours": "plain2"}))
    statements = [
        _span([attempt for attempt in attempts if attempt.campaign == name])
        for name in dict.fromkeys(attempt.campaign for attempt in attempts)
    ]
    return Section("settings", "What was run", "", statements, tables=tables) if tables else None


def _span(attempts: Sequence[Attempt]) -> str:
    """From the first job of a campaign to the last."""
    start = min(attempt.started for attempt in attempts)
    end = max(attempt.ended or start for attempt in attempts)
    name = f"{attempts[0].campaign}: " if attempts[0].campaign else ""
    return (
        f"{name}{(end - start) / 3600:.2f} hours from the start of the first job "
        f"({datetime.fromtimestamp(start, UTC):%Y-%m-%d %H:%M} UTC) to the end of the last, "
        f"{sum(attempt.hours for attempt in attempts):.2f} job-hours in them. Neither the report's "
        "own job nor an attempt that was killed is counted."
    )


def _hours(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """A row a campaign, stage, device and number of GPUs or processes at work."""
    groups: dict[tuple[str, str, str, int], list[Attempt]] = {}
    for each in attempts:
        key = each.campaign, each.stage, each.device, each.processes
        groups.setdefault(key, []).append(each)
    return [
        ({"campaign": campaign} if campaign else {})
        | {
            "stage": stage,
            "device": device,
            "processes": processes,
            "jobs": len({attempt.job for attempt in group}),
            "attempts": len(group),
            "job_hours": sum(attempt.hours for attempt in group),
        }
        for (campaign, stage, device, processes), group in groups.items()
    ]


def _plain(value: Any) -> Any:
    """A value that fits a table's cell."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value
