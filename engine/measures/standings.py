"""The numbers of a report by model: its rows, the order of sets, and every mean that is shown.

The terminal table and the page both show these, so that they never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from engine.measures.metrics import Accuracy, Arm, Mri, improvements
from engine.measures.rows import DEFAULT_ALPHA, decimals


@dataclass(frozen=True)
class Line:
    """An arm. The means are None unless the arm was fine-tuned on every set.

    `after[downstream][evaluated_on]` is accuracy in percent; `ri[downstream]` is in points.
    `downstream`: mean accuracy on the set fine-tuned on; `ood`: on the other sets; `upstream`: mean
    change on the upstream set, in points.
    """

    arm: Arm
    title: str
    ri: Mapping[str, float]
    after: Mapping[str, Mapping[str, float]]
    mri: Mri | None = None
    downstream: float | None = None
    ood: float | None = None
    upstream: float | None = None


@dataclass(frozen=True)
class Standings:
    """A pre-trained model: its accuracy `before` fine-tuning by set, and its arms.

    `sets` run from the easiest to the hardest before fine-tuning. `lines` follow the order of the
    methods, with interpolations at the alpha that their recipe names, never an alpha chosen on OOD
    sets. `curves` hold every alpha of an interpolation, ascending.
    """

    model: str
    sets: tuple[str, ...]
    before: Mapping[str, float]
    lines: tuple[Line, ...]
    curves: tuple[tuple[Line, ...], ...]

    def ranked(self) -> list[tuple[Line, Mri]]:
        """The lines that have an mRI, best first."""
        return sorted(
            ((line, line.mri) for line in self.lines if line.mri), key=lambda pair: -pair[1].mri
        )

    def line(self, method: str) -> Line | None:
        """The first line of a method, or None where it was not run."""
        return next((line for line in self.lines if line.arm.method == method), None)


def standings(
    accuracy: Iterable[Accuracy],
    mri: Iterable[Mri],
    *,
    sets: Sequence[str],
    upstream: str,
    methods: Mapping[str, str],
) -> list[Standings]:
    """Arrange rows by model; `methods` maps a method's key to its title, in table order.

    Methods that `methods` does not name come last, under their key. Raises ValueError when a row
    refers to a pre-trained model that was not evaluated itself.
    """
    rows = list(accuracy)
    ri = improvements(rows, sets)
    headline = {row.arm for row in rows if row.headline}
    after: dict[Arm, dict[str, dict[str, float]]] = {}
    for row in rows:
        cells = after.setdefault(row.arm, {}).setdefault(row.downstream, {})
        cells[row.evaluated_on] = row.accuracy
    intervals = {row.arm: row for row in mri}
    order = list(dict.fromkeys([*methods, *(arm.method for arm in ri)]))
    models = []
    for model, before in [(arm.model, cells[""]) for arm, cells in after.items() if "" in cells]:
        lines = [
            _line(arm, methods, ri[arm], after[arm], before, intervals.get(arm), sets, upstream)
            for arm in sorted(ri, key=lambda a: (order.index(a.method), a.variant, a.alpha or 0))
            if arm.model == model
        ]
        curves: dict[tuple[str, str], list[Line]] = {}
        for line in lines:
            if line.arm.alpha is not None and line.downstream is not None:
                curves.setdefault((line.arm.method, line.arm.variant), []).append(line)
        models.append(
            Standings(
                model=model,
                sets=tuple(sorted(sets, key=lambda name: -before.get(name, 0.0))),
                before=before,
                lines=tuple(_named(line) for line in lines if line.arm in headline),
                curves=tuple(tuple(group) for group in curves.values() if len(group) > 1),
            )
        )
    return models


def counted(noun: str, number: int, written: str = "") -> str:
    """`1 set`, `2 sets`, or with `written` in place of the digits, as in `two sets`."""
    return f"{written or number} {noun}{'s' * (number != 1)}"


def rounded(value: float, error: float = 0.0, digits: int = 1) -> str:
    """With as many decimals as its Monte-Carlo standard error leaves, `digits` at most."""
    known = decimals(error, digits)
    return f"{round(value, known) + 0.0:.{max(known, 0)}f}"


def signed(value: float, digits: int = 1, error: float = 0.0) -> str:
    """`rounded` with its sign: `+1.2`, `−1.2` (a true minus) or `0.0`, never a negative zero."""
    text = rounded(value, error, digits)
    return text.replace("-", "−") if float(text) <= 0 else f"+{text}"


def _named(line: Line) -> Line:
    """The line with its alpha in the title, if that is not the default."""
    if line.arm.alpha in (None, DEFAULT_ALPHA):
        return line
    return replace(line, title=f"{line.title}, alpha {line.arm.alpha:g}")


def _line(
    arm: Arm,
    methods: Mapping[str, str],
    ri: Mapping[str, float],
    after: Mapping[str, Mapping[str, float]],
    before: Mapping[str, float],
    mri: Mri | None,
    sets: Sequence[str],
    upstream: str,
) -> Line:
    title = methods.get(arm.method, arm.method)
    if arm.variant not in ("", "canonical"):
        title += f" ({arm.variant})"
    line = Line(arm, title, ri, after)
    if len(ri) < len(sets):
        return line
    known = upstream in before and all(upstream in after[name] for name in sets)
    return replace(
        line,
        mri=mri,
        downstream=fmean(after[name][name] for name in sets),
        ood=fmean(after[i][j] for i in sets for j in sets if i != j),
        upstream=fmean(after[name][upstream] for name in sets) - before[upstream]
        if known
        else None,
    )
