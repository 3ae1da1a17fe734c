"""A board: one page of folders that several people published, each with its audit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas

from engine.campaigns.plan import PAGE
from engine.exchange.audit import Audit
from engine.measures.tables import with_ends, write_csv
from engine.report import page
from engine.report.section import Section, Table
from engine.report.text import counted, listed

BOARD = "board.csv"
CAPTION = (
    "mRI in points with its 95% interval, computed from the predictions of each folder. The "
    "intervals do not compare folders; rib compare does, on the same images."
)


def write(folder: Path, audits: Sequence[Audit]) -> Path:
    """Write the board's page and its numbers as CSV. Returns the page's path."""
    passing = [audit for audit in audits if audit.results is not None]
    groups: dict[tuple[str, str], list[pandas.DataFrame]] = {}
    for audit in passing:
        groups.setdefault(_measured(audit), []).append(_rows(audit))
    sections, numbers = [], []
    for (heading, text), tables in groups.items():
        rows = pandas.concat(tables).sort_values("mRI_pts", ascending=False, kind="stable")
        numbers.append(rows.assign(benchmark=heading))
        table = Table(f"board-{len(sections) + 1}", CAPTION, rows)
        text += f" Pretrained: {listed(list(rows['model'].unique()))}."
        sections.append(Section(table.name, heading, text, tables=[table], is_open=True))
    failed = [audit for audit in audits if audit.problems]
    lines = [f"{audit.folder.name}: {each}" for audit in failed for each in audit.problems]
    sections += [
        Section(
            "refused",
            f"{counted('folder', len(failed))} refused by the audit",
            "Their numbers are not shown.",
            code="\n".join(lines),
            is_open=True,
        )
    ] * bool(failed)
    write_csv(folder / BOARD, pandas.concat(numbers) if numbers else pandas.DataFrame())
    title = "Robustness after fine-tuning"
    return page.write(
        folder / PAGE,
        sections,
        title=title,
        heading=title,
        lead=f"{counted('published folder', len(audits))}; {len(failed)} refused.",
        files=[BOARD],
    )


def _measured(audit: Audit) -> tuple[str, str]:
    """What an mRI of a folder is of, as a heading and a sentence; others cannot be compared."""
    assert audit.results is not None
    record = audit.results.record
    return (
        f"{record.benchmark}, version {record.version}: "
        f"mRI over {counted('dataset', len(record.downstreams))}",
        f"Fine-tuned on {listed(record.downstreams)}; evaluated on {listed(record.sets)}.",
    )


def _rows(audit: Audit) -> pandas.DataFrame:
    """The rows of a folder's report."""
    results = audit.results
    assert results is not None
    return results.shown[["model", "method", "variant", *with_ends("mRI_pts")]].assign(
        folder=audit.folder.name,
        audit="passes",
        images=" and ".join(dict.fromkeys(audit.images.values())),
        seeds=len(results.grid.seeds),
    )[["folder", "audit", "images", "model", "method", "variant", *with_ends("mRI_pts"), "seeds"]]
