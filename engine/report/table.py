"""The result in the terminal: what `make demo` ends with, readable without opening anything."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from engine.measures.metrics import Accuracy, Mri
from engine.measures.standings import Line, Standings, counted, signed, standings
from engine.report import console

ABSENT = "-"


def table(
    accuracy: Iterable[Accuracy],
    mri: Iterable[Mri],
    *,
    sets: Sequence[str],
    upstream: str,
    methods: Mapping[str, str],
    notes: Sequence[str] = (),
) -> str:
    """RI per downstream set and mRI with its interval, a method a row.

    `methods` maps keys to titles in row order; sets stand from the easiest to the hardest. `notes`
    are printed below.
    """
    models = standings(accuracy, mri, sets=sets, upstream=upstream, methods=methods)
    notes = [textwrap.fill(f"note: {note}", console.WIDTH) for note in notes]
    return "\n\n".join([*map(_of_model, models), *notes])


def _of_model(standing: Standings) -> str:
    sets = standing.sets
    return console.text(
        f"{standing.model}\n"
        f"RI: mean change in accuracy on the {counted('other set', len(sets) - 1)}, in points, "
        f"after fine-tuning on the set that heads the column; mRI: its mean over the {len(sets)}.",
        ["", *map(set_head, sets), "mRI", "95% interval"],
        [["pre-trained %", *accuracies_before(standing), "", ""]],
        [[line.title, *improvements(line, sets), _interval(line)] for line in standing.lines],
    )


def set_head(name: str) -> str:
    """A set's name as words of a column's head, ImageNet as the field abbreviates it."""
    return re.sub("[-_]", " ", name.replace("imagenet", "IN"))


def number(value: float | None, error: float = 0.0) -> str:
    """`standings.signed` in ASCII, and `ABSENT` for None."""
    return ABSENT if value is None else signed(value, error=error).replace("−", "-")


def accuracies_before(standing: Standings) -> list[str]:
    """The pre-trained model's accuracy on each set, in percent."""
    return [f"{standing.before[name]:.1f}" for name in standing.sets]


def improvements(line: Line, sets: Sequence[str]) -> list[str]:
    """RI of each set, then mRI."""
    return [number(value) for value in [*map(line.ri.get, sets), line.mri and line.mri.mri]]


def _interval(line: Line) -> str:
    if not (mri := line.mri):
        return ""
    return f"[{number(mri.mri_low, mri.error)}, {number(mri.mri_high, mri.error)}]"
