"""The terminal's tables of models on sets: a campaign's rows, or a user's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from engine.evaluation.accuracies import OnSet
from engine.measures.rows import Arm
from engine.report import console
from engine.report.results import title
from engine.report.text import ascii_signed, rounded, set_head
from engine.store import tensors

LONGEST_NAME = 40  # letters of a file's name in the terminal, where its end is shown


def of_files(rows: Sequence[OnSet]) -> str:
    """Accuracy in percent with half the width of its interval, a line a model and a column a set;
    sets that find no room are in further tables below."""
    first = {row.evaluated_on: row for row in rows}
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        name = row.model.removesuffix(f"/{tensors.WEIGHTS}").removesuffix("/model.safetensors")
        cell = rounded(row.accuracy, 2)
        if row.low is not None and row.high is not None:
            cell += f" ±{rounded((row.high - row.low) / 2, 2)}"
        label = name if row.alpha is None else f"{row.alpha:g}"
        lines.setdefault(label, {})[row.evaluated_on] = cell
    margin = min(LONGEST_NAME, max(map(len, ("classes", *lines))))
    width = max(8, *(len(cell) for cells in lines.values() for cell in cells.values()))
    columns, sets = (console.WIDTH - margin) // (width + 2), list(first)
    tables = []
    for names in (sets[start : start + columns] for start in range(0, len(sets), columns)):
        heads = ["model" if rows[0].alpha is None else "alpha", *map(set_head, names)]
        counts = [
            ["images", *(f"{first[name].n:,}" for name in names)],
            ["classes", *(f"{first[name].classes:,}" for name in names)],
        ]
        cells = [
            [label[-LONGEST_NAME:], *map(of_set.__getitem__, names)]
            for label, of_set in lines.items()
        ]
        tables.append(console.text("", heads, counts, cells))
    return "\n\n".join(tables)


def of_campaign(
    rows: Sequence[OnSet], downstreams: Sequence[str], titles: Mapping[str, str]
) -> str:
    """A table a set: accuracy in percent and its change in points, a line a row of the campaign's
    table and a column a set fine-tuned on. titles: of methods, by key, in the order of their rows.
    """
    by_set: dict[str, list[OnSet]] = {}
    for row in rows:
        by_set.setdefault(row.evaluated_on, []).append(row)
    return "\n\n".join(_of_set(of_set, downstreams, titles) for of_set in by_set.values())


def _of_set(rows: Sequence[OnSet], downstreams: Sequence[str], titles: Mapping[str, str]) -> str:
    before, *trained = rows
    order = list(dict.fromkeys([*titles, *(row.method for row in trained)]))
    arms: dict[Arm, dict[str, float]] = {}
    for row in sorted(trained, key=lambda row: (order.index(row.method), row.alpha or 0)):
        arms.setdefault(row.arm, {})[row.downstream] = row.accuracy
    accuracy, change = [], []
    for arm, by_set in arms.items():
        after = [by_set[name] for name in downstreams]
        after.append(fmean(after))
        of_row = title(arm, titles)
        accuracy.append([of_row, *map(rounded, after)])
        change.append([of_row, *(ascii_signed(value - before.accuracy) for value in after)])
    classes = "the set's" if before.mask == "present" else "all the head's"
    return console.text(
        f"{before.model} on {before.evaluated_on}: {before.n:,} images\n"
        f"percent top-1 among {classes} {before.classes:,} classes after fine-tuning on the set "
        "that heads the column; below, the change from the pre-trained model in points.",
        ["", *map(set_head, downstreams), "mean"],
        [["pre-trained", *[""] * len(downstreams), rounded(before.accuracy)]],
        accuracy,
        change,
    )
