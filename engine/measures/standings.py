"""The numbers of a report by model: its rows, the order of sets, and every mean that is shown.

The terminal table and the page both show these, so that they never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from statistics import fmean

from engine.measures.metrics import Accuracy, Arm, Mri, improvements
from engine.measures.rows import DEFAULT_ALPHA, of_main_table


@dataclass(frozen=True)
class Line:
    """An arm, fine-tuned on every downstream set.

    `after[downstream][evaluated_on]` is accuracy in percent; `ri[downstream]` is in points.
    `downstream`: mean accuracy on the set fine-tuned on, None where one of these sets is only
    trained on and not evaluated; `ood`: on the other sets of RI; `upstream`: mean change on the
    upstream set in points, after fine-tuning on other sets, None where that was not evaluated.
    """

    arm: Arm
    title: str
    ri: Mapping[str, float]
    after: Mapping[str, Mapping[str, float]]
    mri: Mri
    downstream: float | None
    ood: float
    upstream: float | None


@dataclass(frozen=True)
class Standings:
    """A pre-trained model: its accuracy `before` fine-tuning by set, and its arms.

    `sets`, those of RI, run from the easiest to the hardest before fine-tuning; so do
    `downstreams`, those fine-tuned on; of these, sets that are not evaluated come last. `lines`
    follow the order of the methods, with interpolations at the alpha that their recipe names, never
    an alpha chosen on OOD sets; where a campaign varies a key, a method has a line for each
    setting. `curves` hold every alpha of an interpolation in a setting, ascending.
    """

    model: str
    sets: tuple[str, ...]
    downstreams: tuple[str, ...]
    before: Mapping[str, float]
    lines: tuple[Line, ...]
    curves: tuple[tuple[Line, ...], ...]

    @property
    def is_square(self) -> bool:
        """Whether the sets that RI is measured on are those that are fine-tuned on."""
        return set(self.sets) == set(self.downstreams)

    def ranked(self) -> list[Line]:
        """The lines by mRI, best first."""
        return sorted(self.lines, key=lambda line: -line.mri.mri)

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
    downstreams: Sequence[str] = (),
) -> list[Standings]:
    """Arrange the rows of a whole grid by model; `methods` maps a method's key to its title, in
    table order. Methods that `methods` does not name come last, under their key. A variant that a
    title does not name is added to it. downstreams: as in `metrics.summarise`.

    Raises ValueError when a row refers to a pre-trained model that was not evaluated itself.
    """
    rows = list(accuracy)
    downstreams = downstreams or sets
    ri = improvements(rows, sets, downstreams)
    after: dict[Arm, dict[str, dict[str, float]]] = {}
    for row in rows:
        columns = after.setdefault(row.arm, {}).setdefault(row.downstream, {})
        columns[row.evaluated_on] = row.accuracy
    intervals = {row.arm: row for row in mri}
    shown = {row.arm for row in of_main_table(list(intervals.values()))}
    order = list(dict.fromkeys([*methods, *(arm.method for arm in ri)]))
    settings = list(dict.fromkeys(arm.setting for arm in ri))
    judged = {row.evaluated_on for row in rows} >= set(downstreams)

    def line(arm: Arm) -> Line:
        title, columns = methods.get(arm.method, arm.method), after[arm]
        if arm.variant != "canonical" and arm.variant not in title:
            title += f" ({arm.variant})"
        if arm.setting:
            title += f", {_without_sections(arm.setting)}"
        before, elsewhere = after[arm.before][""], [i for i in downstreams if i != upstream]
        forgotten = None
        if upstream in before and elsewhere:
            forgotten = fmean(columns[i][upstream] for i in elsewhere) - before[upstream]
        return Line(
            arm,
            title,
            ri[arm],
            columns,
            intervals[arm],
            downstream=fmean(columns[i][i] for i in downstreams) if judged else None,
            ood=fmean(columns[i][j] for i in downstreams for j in sets if i != j),
            upstream=forgotten,
        )

    models = []
    for pre in [arm for arm, columns in after.items() if "" in columns]:
        arms = sorted(
            (arm for arm in ri if arm.model == pre.model),
            key=lambda arm: (
                order.index(arm.method),
                arm.variant,
                settings.index(arm.setting),
                arm.alpha or 0,
            ),
        )
        lines = [line(arm) for arm in arms]
        curves: dict[tuple[str, str, str], list[Line]] = {}
        for point in lines:
            if point.arm.alpha is not None:
                _, method, variant, _, setting = point.arm
                curves.setdefault((method, variant, setting), []).append(point)
        before = after[pre][""]
        models.append(
            Standings(
                model=pre.model,
                sets=tuple(sorted(sets, key=lambda name: -before[name])),
                downstreams=tuple(sorted(downstreams, key=lambda name: -before.get(name, 0.0))),
                before=before,
                lines=tuple(_with_alpha(row) for row in lines if row.arm in shown),
                curves=tuple(tuple(points) for points in curves.values() if len(points) > 1),
            )
        )
    return models


def counted(noun: str, number: int, written: str = "") -> str:
    """`1 set`, `2 sets`, or with `written` in place of the digits, as in `two sets`."""
    return f"{written or number} {noun}{'s' * (number != 1)}"


def rounded(value: float, digits: int = 1) -> str:
    """With so many decimals, halves away from zero as charts round them: -6.25 is -6.3."""
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP) + 0)


def signed(value: float, digits: int = 1) -> str:
    """`rounded` with its sign: `+1.2`, `−1.2` (a true minus) or `0.0`, never a negative zero."""
    text = rounded(value, digits)
    return text.replace("-", "−") if float(text) <= 0 else f"+{text}"


def _without_sections(setting: str) -> str:
    """A setting as a title has it: `shots=4` for `dataset.shots=4`."""
    pairs = (word.partition("=") for word in setting.split(","))
    return ",".join(key.rpartition(".")[2] + sign + value for key, sign, value in pairs)


def _with_alpha(line: Line) -> Line:
    """The line with its alpha in the title, if that is not the default and not there already."""
    if line.arm.alpha in (None, DEFAULT_ALPHA) or f"alpha {line.arm.alpha:g}" in line.title:
        return line
    return replace(line, title=f"{line.title}, alpha {line.arm.alpha:g}")
