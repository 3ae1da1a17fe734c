"""How sure a grid's numbers are: worked out once, then shown in the terminal and in the report.

The order of methods by mRI is a guess as long as nobody says which of them the images can tell
apart. Everything here follows from stored predictions and says which population it is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from engine.measures import comparisons, effective_robustness, intervals, rows
from engine.measures.comparisons import SIGNIFICANT
from engine.measures.effective_robustness import Trend
from engine.measures.metrics import Grid, Summary
from engine.measures.model_rows import ModelRows
from engine.measures.rows import PRE, Agreement, Arm, Behaviour, Comparison, Interval
from engine.measures.standings import Standings, counted, rounded
from engine.report import console, display, table

Ends = tuple[float, float]

POPULATION = (
    "source images like these (all copies of one are drawn together){seeds}; the sets, the classes "
    "and the pre-trained model are taken as they are"
)
MEANS = (*Agreement._fields, intervals.ERROR, intervals.ROBUSTNESS)  # of `behaviour`
FILES = ("intervals.csv", "comparisons.csv", "behaviour.csv")


@dataclass(frozen=True)
class Certainty:
    """Intervals of every number, every two methods compared, and how predictions changed; `trends`:
    by set, what effective robustness is measured against."""

    intervals: tuple[Interval, ...]
    comparisons: tuple[Comparison, ...]
    behaviour: tuple[Behaviour, ...]
    seeds: int
    trends: Mapping[str, Trend]

    @classmethod
    def of(
        cls,
        grid: Grid,
        summary: Summary,
        sets: Sequence[str],
        upstream: str,
        downstreams: Sequence[str] = (),
        models: ModelRows | None = None,
    ) -> Certainty:
        """All of it, with every two arms compared that a table shows.

        downstreams: as in `metrics.summarise`. models: users' rows for the trend lines of effective
        robustness.
        """
        cells = [row.cell for row in grid.accuracy]
        trends = effective_robustness.trends(cells, sets, upstream, models)
        behaviours = effective_robustness.above_trend(
            grid.behaviour, grid.accuracy, trends, upstream
        )
        return cls(
            intervals.intervals(
                grid, summary, behaviours, sets, upstream, downstreams, trends=trends
            ),
            compared(grid, summary, sets, downstreams),
            behaviours,
            len(grid.seeds),
            trends,
        )

    @property
    def population(self) -> str:
        """What the intervals are about."""
        several = f" and training runs like these {self.seeds}"
        return POPULATION.format(seeds=several if self.seeds > 1 else "")

    def interval(self, quantity: str, arm: Arm, downstream: str = "", on: str = "") -> Ends | None:
        """Ends of an interval (`Interval`), or None."""
        return self._ends.get((quantity, arm, downstream, on))

    @cached_property
    def _ends(self) -> dict[tuple[str, Arm, str, str], Ends]:
        return {
            (row.quantity, row.arm, row.downstream, row.evaluated_on): (row.low, row.high)
            for row in self.intervals
        }

    @property
    def family(self) -> int:
        """Over how many comparisons of mRI p is corrected."""
        return sum(not row.evaluated_on for row in self.comparisons)

    def against(self, arm: Arm, on: str = "") -> dict[Arm, Comparison]:
        """By arm, its comparison with this one: in mRI, or on a set."""
        rows = [row.swapped() if row.arm == arm else row for row in self.comparisons]
        return {row.arm: row for row in rows if row.against == arm and row.evaluated_on == on}


def compared(
    grid: Grid, summary: Summary, sets: Sequence[str], downstreams: Sequence[str] = ()
) -> tuple[Comparison, ...]:
    """Comparisons of every two arms that a table shows."""
    arms = [row.arm for row in rows.of_main_table(summary.mri)]
    return comparisons.compare(grid, comparisons.all_pairs(arms), sets, downstreams)


def write_csv(folder: Path, sure: Certainty) -> None:
    """Write `FILES`."""
    kinds = (Interval, Comparison, Behaviour)
    tables = (sure.intervals, sure.comparisons, sure.behaviour)
    for name, kind, lines in zip(FILES, kinds, tables, strict=True):
        rows.write(folder / name, kind, lines)


def interval_table(standing: Standings, sure: Certainty) -> str:
    """RI of every method and set with half the width of its interval (terminal)."""
    columns = standing.downstreams
    pre = Arm(standing.model, PRE, "", None)
    before = [
        ["pre-trained %", *table.accuracies_before(standing), ""],
        ["", *(_half(sure.interval("accuracy", pre, "", name)) for name in columns), ""],
    ]
    lines = []
    for line in standing.lines:
        ends = [sure.interval("RI", line.arm, name) for name in columns]
        lines.append([line.title, *table.improvements(line, columns)])
        lines.append(["", *map(_half, [*ends, sure.interval("mRI", line.arm)])])
    return console.text(
        f"{standing.model}\nRI and mRI in points; below each, half the width of its 95% interval, "
        f"whose ends are in intervals.csv. It is about {sure.population}.",
        ["", *map(table.set_head, columns), "mRI"],
        before,
        lines,
    )


def comparison_table(standing: Standings, sure: Certainty, against: str | None = None) -> str:
    """Every method against one of them, or the best (terminal): paired difference in mRI, its
    corrected p, and the number of sets on which a corrected p proves its mean accuracy higher and
    lower. p is corrected for every two methods, whichever is compared with.
    """
    ranked = standing.ranked()
    reference = standing.line(against) if against else next(iter(ranked), None)
    if reference is None:
        return f"{standing.model}\nThere is no finished method to compare with."
    overall = sure.against(reference.arm)
    on_sets = [sure.against(reference.arm, name) for name in standing.sets]
    lines = []
    for line in ranked:
        if line.arm not in overall:
            continue
        row = overall[line.arm]
        proven = [tests[line.arm].difference for tests in on_sets if _real(tests[line.arm])]
        lines.append(
            [
                line.title,
                table.number(line.mri.mri),
                table.number(row.difference),
                table.span(row.low, row.high),
                display.p_value(row.p),
                display.p_value(row.p_corrected),
                str(sum(difference > 0 for difference in proven)),
                str(sum(difference < 0 for difference in proven)),
            ]
        )
    n = len(standing.sets)
    return console.text(
        f"{standing.model}\nAgainst {reference.title} (mRI {table.number(reference.mri.mri)}), "
        "paired over the same images. Differences in mRI, in points; p by the paired bootstrap, "
        f"corrected (Holm) for {counted('comparison', sure.family)}. Better and worse: on how many "
        f"of the {n} sets, by the same test, corrected for {sure.family * n}. It is about "
        f"{sure.population}.",
        ["", "mRI", "difference", "95% interval", "p", "corrected p", "better on", "worse on"],
        lines,
    )


def behaviour_table(standing: Standings, sure: Certainty) -> str:
    """What fine-tuning did to the predictions, a mean over all pairs of sets (terminal)."""
    means = behaviour_means(sure, standing)

    def rows(title: str, arm: Arm) -> list[list[str]]:
        *shares, above = means[arm].values()
        halves = [_half(sure.interval(name, arm)) for name in MEANS]
        return [[title, *map(_plain, shares), table.number(above)], ["", *halves]]

    return console.text(
        f"{standing.model}\nMeans over every set fine-tuned on and every other set. Percent of "
        "images with the same top-1 class before and after, right both times, lost and gained; "
        "expected calibration error (debiased, without an interval), and accuracy above the trend "
        "line of models that nothing made robust, in points. Below each, half the width of its 95% "
        f"interval, whose ends are in intervals.csv. It is about {sure.population}.",
        [
            "",
            "same top-1",
            "both right",
            "lost",
            "gained",
            "calibration error",
            "effective robustness",
        ],
        rows("pre-trained", Arm(standing.model, PRE, "", None)),
        [row for line in standing.lines if line.arm in means for row in rows(line.title, line.arm)],
    )


def indistinguishable(standing: Standings, sure: Certainty) -> str:
    """The sentence for a headline: which methods the images cannot tell from the best.

    Judged by the corrected p: the best was chosen by looking at the results, and each of the others
    might have been.
    """
    ranked = standing.ranked()
    if len(ranked) < 2:
        return ""
    tests = sure.against(ranked[0].arm)
    others = [(line.title, tests[line.arm]) for line in ranked[1:] if line.arm in tests]
    alike = [title for title, test in others if not _real(test)]
    basis = (
        f"a paired test at {SIGNIFICANT:.0%}, corrected for {counted('comparison', sure.family)}"
    )
    basis += f"; {sure.seeds} training seeds" if sure.seeds > 1 else "; one training seed"
    if not alike:
        return f"Every other method can be told from it ({basis})."
    return f"On these images {_listed(alike)} cannot be told from it ({basis})."


def behaviour_means(sure: Certainty, standing: Standings) -> dict[Arm, dict[str, float | None]]:
    """By arm and name of `MEANS`, the mean over the sets that a model was not trained on; None
    where one of them lacks the number."""
    by_arm: dict[Arm, list[Behaviour]] = {}
    for row in sure.behaviour:
        elsewhere = row.evaluated_on in standing.sets and not row.on_downstream
        if row.model == standing.model and elsewhere:
            by_arm.setdefault(row.arm, []).append(row)
    means = {}
    for arm, rows_of_arm in by_arm.items():
        columns = {name: [getattr(row, name) for row in rows_of_arm] for name in MEANS}
        means[arm] = {
            name: None if None in values else fmean(values) for name, values in columns.items()
        }
    return means


def _real(test: Comparison) -> bool:
    return test.p_corrected < SIGNIFICANT


def _listed(titles: Sequence[str]) -> str:
    *most, last = titles
    return f"{', '.join(most)} and {last}" if most else last


def _half(ends: Ends | None) -> str:
    """Half of an interval's width."""
    return "" if ends is None else f"±{rounded((ends[1] - ends[0]) / 2)}"


def _plain(value: float | None) -> str:
    return table.ABSENT if value is None else f"{value:.1f}"
