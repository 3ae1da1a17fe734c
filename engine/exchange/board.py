"""A board: one page of folders that several people published, each with its audit."""

from __future__ import annotations

import os
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
COLUMNS = ["method", *with_ends("mRI_pts"), "model", "variant", "seeds", "audit", "images"]
CAPTION = (
    "mRI in points with its 95% interval, computed from the predictions of each folder. The "
    "intervals do not compare folders; rib compare does, on the same images."
)


def write(folder: Path, audits: Sequence[Audit]) -> Path:
    """Write the board's page and its numbers as CSV. Returns the page's path."""
    places = [audit.folder.resolve() for audit in audits]
    common = os.path.commonpath([place.parent for place in places])
    names = [str(place.relative_to(common)) for place in places]  # people name folders alike
    groups: dict[tuple[str, str], list[pandas.DataFrame]] = {}
    for name, audit in zip(names, audits, strict=True):
        if (results := audit.results) is not None:
            images = " and ".join(dict.fromkeys(audit.images.values()))
            record, left_out = results.record, len(results.record.diverged)
            passes = "passes" + (f", {counted('training', left_out)} diverged" if left_out else "")
            rows = results.shown.assign(
                folder=name, audit=passes, images=images, seeds=len(results.grid.seeds)
            )
            mean = f"mRI over {counted('dataset', len(record.downstreams))}"
            measured = (  # what others cannot be compared with
                f"{record.benchmark}, version {record.version}: {mean}",
                f"Fine-tuned on {listed(record.downstreams)}; evaluated on {listed(record.sets)}.",
            )
            groups.setdefault(measured, []).append(rows[["folder", *COLUMNS]])
    sections, numbers = [], []
    for (heading, text), tables in groups.items():
        rows = pandas.concat(tables).sort_values("mRI_pts", ascending=False, kind="stable")
        numbers.append(rows.assign(benchmark=heading))
        table = Table(f"board-{len(sections) + 1}", CAPTION, rows)
        text += f" Pretrained: {listed(list(rows['model'].unique()))}."
        sections.append(Section(table.name, heading, text, tables=[table], is_open=True))
    failed = {name: of.problems for name, of in zip(names, audits, strict=True) if of.problems}
    lines = [f"{name}: {each}" for name, problems in failed.items() for each in problems]
    if failed:
        refused = Section(
            "refused",
            f"{counted('folder', len(failed))} refused by the audit",
            "Their numbers are not shown.",
            code="\n".join(lines),
            is_open=True,
        )
        sections.append(refused)
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
