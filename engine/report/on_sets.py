"""The terminal's tables of models on sets: a campaign's rows, or a user's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from types import MappingProxyType

from engine.evaluation.accuracies import OnSet
from engine.measures.rows import Arm
from engine.report import console
from engine.report.text import ascii_signed, rounded, set_head
from engine.store import tensors

LONGEST_NAME = 40  # letters of a file's name in the terminal, where its end is shown


def text(
    rows: Sequence[OnSet],
    downstreams: Sequence[str] = (),
    titles: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Accuracy in percent. Of files, a line a model and a column a set; of a campaign's rows, a
    table a set, with a column a set fine-tuned on, in the order of `downstreams`.

    titles: of methods, by key, in the order of their rows.
    """
    sets = list(dict.fromkeys(row.evaluated_on for row in rows))
    if not downstreams:
        return _of_files(rows, sets)
    by_set = [[row for row in rows if row.evaluated_on == name] for name in sets]
    return "\n\n".join(_of_campaign(of_set, downstreams, titles) for of_set in by_set)


def _of_files(rows: Sequence[OnSet], sets: Sequence[str]) -> str:
    """Half the width of its interval is beside an accuracy; further sets are in tables below."""
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
    columns = (console.WIDTH - margin) // (width + 2)
    tables = []
    for start in range(0, len(sets), columns):
        names = sets[start : start + columns]
        counts = [
            ["images", *(f"{first[name].n:,}" for name in names)],
            ["classes", *(f"{first[name].classes:,}" for name in names)],
        ]
        cells = [
            [label[-LONGEST_NAME:], *(of_set[name] for name in names)]
            for label, of_set in lines.items()
        ]
        heads = ["model" if rows[0].alpha is None else "alpha", *map(set_head, names)]
        tables.append(console.text("", heads, counts, cells))
    return "\n\n".join(tables)


def _of_campaign(
    rows: Sequence[OnSet], downstreams: Sequence[str], titles: Mapping[str, str]
) -> str:
    before, *trained = rows
    order = list(dict.fromkeys([*titles, *(row.method for row in trained)]))
    arms: dict[Arm, dict[str, float]] = {}
    for row in sorted(trained, key=lambda row: (order.index(row.method), row.alpha or 0)):
        arms.setdefault(row.arm, {})[row.downstream] = row.accuracy
    accuracy, change = [], []
    for arm, by_set in arms.items():
        title = titles.get(arm.method, arm.method)
        title += "" if arm.alpha is None else f" alpha={arm.alpha:g}"
        title += arm.setting and f" {arm.setting}"
        after = [by_set[name] for name in downstreams]
        after.append(fmean(after))
        accuracy.append([title, *map(rounded, after)])
        change.append([title, *(ascii_signed(value - before.accuracy) for value in after)])
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
