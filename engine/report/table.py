"""The result in the terminal: what `make demo` ends with, readable without opening anything."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from engine.measures.standings import Line, Standings, counted, rounded, signed
from engine.report import console

ABSENT = "-"


def table(models: Iterable[Standings], notes: Sequence[str] = ()) -> str:
    """By model, RI per downstream set and mRI with its interval, a method a row; `notes` are
    printed below."""
    notes = [textwrap.fill(f"note: {note}", console.WIDTH) for note in notes]
    return "\n\n".join([*map(_of_model, models), *notes])


def _of_model(standing: Standings) -> str:
    columns = standing.downstreams
    return console.text(
        f"{standing.model}\n"
        f"RI: mean change in accuracy on {measured_on(standing)}, in points, after fine-tuning on "
        f"the set that heads the column; mRI: its mean over {averaged_over(standing)}.",
        ["", *map(set_head, columns), "mRI", "95% interval"],
        [["pre-trained %", *accuracies_before(standing), "", ""]],
        [
            [
                line.title,
                *improvements(line, columns),
                span(line.mri.mri_low, line.mri.mri_high),
            ]
            for line in standing.lines
        ],
    )


def set_head(name: str) -> str:
    """A set's name as words of a column's head, ImageNet as the field abbreviates it."""
    return re.sub("[-_]", " ", name.replace("imagenet", "IN"))


def number(value: float | None) -> str:
    """`standings.signed` in ASCII, and `ABSENT` for None."""
    return ABSENT if value is None else signed(value).replace("−", "-")


def measured_on(standing: Standings) -> str:
    """The sets that RI of a column is the mean over: `the 7 other sets`, or `the 8 sets`."""
    sets, columns = standing.sets, standing.downstreams
    if set(columns) <= set(sets):
        return f"the {counted('other set', len(sets) - 1)}"
    but = " but the column's" if set(columns) & set(sets) else ""
    return f"the {counted('set', len(sets))}{but}"


def averaged_over(standing: Standings) -> str:
    """The sets that mRI is the mean over: `the 8 sets`, or `7 downstream sets` where RI is measured
    on others too."""
    count = len(standing.downstreams)
    return (
        f"the {counted('set', count)}" if standing.is_square else counted("downstream set", count)
    )


def accuracies_before(standing: Standings) -> list[str]:
    """The pre-trained model's accuracy on each set that is fine-tuned on, in percent; `ABSENT`
    where the set is only trained on."""
    accuracies = map(standing.before.get, standing.downstreams)
    return [ABSENT if accuracy is None else rounded(accuracy) for accuracy in accuracies]


def improvements(line: Line, columns: Sequence[str]) -> list[str]:
    """RI of each column, then mRI."""
    return [*(number(line.ri[name]) for name in columns), number(line.mri.mri)]


def span(low: float, high: float) -> str:
    """An interval."""
    return f"[{number(low)}, {number(high)}]"
