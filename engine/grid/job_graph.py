"""The jobs of a campaign and what each of them waits for, in one of two shapes.

`columns`: a job trains a column and evaluates its models on all sets. `split`: training and
evaluation are jobs of their own, and a job evaluates the models of all columns on a set, so that
the set is read once. A long column can be trained by several jobs, a row each, and a long set be
evaluated by several, a share of its slices each; the job that follows them finds what they made and
completes it. Both shapes make the same files, because cells and predictions do not depend on the
job that makes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from engine.grid.campaign import Plan
from engine.recipe import modules
from engine.recipe.request import Request
from engine.recipe.schema import Recipe
from engine.store.shares import Share

PREPARE, COLUMN, TRAIN, EVALUATE, REPORT = "prepare", "column", "train", "evaluate", "report"
SHAPES = ("columns", "split")


@dataclass(frozen=True)
class Job:
    """A job: what it does (`stage`) to a column or a set.

    name: of its marker and its log. rows: of the table, those that it trains. is_part: whether a
    later job of its column completes it. share: of the set's slices; None: all that are missing.
    portion: of the set's evaluation, as far as it is left to this job. after: names of the jobs
    that it waits for. steps: of the campaign's progress bar.
    """

    name: str
    stage: str
    column: str = ""
    rows: tuple[str, ...] = ()
    set: str = ""
    share: Share | None = None
    is_part: bool = False
    portion: float = 1.0
    after: tuple[str, ...] = ()
    steps: int = 1

    @property
    def words(self) -> list[str]:
        """The words of `engine.commands.job` that say what to do."""
        given = {"--column": self.column, "--set": self.set, "--share": self.share}
        words = [text for key, value in given.items() if value for text in (key, str(value))]
        return [self.stage, *words, *(["--rows", *self.rows] if self.is_part else [])]


def name_of(stage: str, of: str = "", rows: Sequence[str] = (), share: Share | None = None) -> str:
    """The name of a job on a column or a set (`of`), or on a part of it."""
    name = ".".join([stage + (f"-{of}" if of else ""), *rows])
    return name + (f".{share.number + 1}of{share.of}" if share else "")


def columns(plan: Plan) -> list[Job]:
    """What all columns share, a job a column, the report."""
    prepare, cells = _prepare(plan), len(plan.methods) * plan.seeds
    each = [
        Job(
            f"{COLUMN}-{column.name}", COLUMN, column.name,
            after=(prepare.name,), steps=cells + 1,
        )
        for column in plan.columns
    ]  # fmt: skip
    return [prepare, *each, _report(each)]


def split(
    plan: Plan, by_row: Collection[str] = (), shares: Mapping[str, int] | None = None
) -> list[Job]:
    """What all columns share, training column by column, evaluation set by set, the report.

    by_row: columns that several jobs train. shares: number of jobs that evaluate a set, by set.
    """
    prepare = _prepare(plan)
    training = [job for column in plan.columns for job in _training(plan, column.name, by_row)]
    trained = tuple(f"{TRAIN}-{column.name}" for column in plan.columns)
    evaluation: list[Job] = []
    for name in Request(plan.name, plan.overrides).recipe(plan.methods[0]).dataset.places:
        number = (shares or {}).get(name, 1)
        parts = [
            Job(
                f"{EVALUATE}-{name}.{k + 1}of{number}", EVALUATE, set=name,
                share=Share(k, number), portion=1 / number, after=trained,
            )
            for k in range(number if number > 1 else 0)
        ]  # fmt: skip
        before = tuple(job.name for job in parts) or trained
        portion = 0.0 if parts else 1.0
        whole = Job(f"{EVALUATE}-{name}", EVALUATE, set=name, portion=portion, after=before)
        evaluation += [*parts, whole]
    jobs = [prepare, *training, *evaluation, _report(evaluation)]
    assert len({job.name for job in jobs}) == len(jobs), "names of jobs are names of files"
    return jobs


def rows_alone(plan: Plan) -> dict[str, list[str]]:
    """The rows that train, which can be jobs of their own, and for each the rows that it needs.

    Other rows are made of finished cells and take seconds.
    """
    from engine.methods import base  # imports torch, which a finished campaign does not need

    request = Request(plan.name, plan.overrides)
    cells = {row: request.recipe(row) for row in plan.methods}
    kinds = {row: modules.find(cell.method.module).Method for row, cell in cells.items()}
    alone = [row for row, kind in kinds.items() if issubclass(kind, base.Trained)]

    def needed(row: str) -> list[str]:
        siblings = base.siblings(cells[row].method, request.for_needs(cells[row]).recipe)
        names = [_untitled(sibling) for _, sibling in siblings]
        return [other for other in alone if other != row and _untitled(cells[other]) in names]

    return {row: needed(row) for row in alone}


def _untitled(cell: Recipe) -> Recipe:
    """The recipe as far as it determines a cell: rows may call the same cell by two titles."""
    return dataclasses.replace(cell, method=dataclasses.replace(cell.method, title=""))


def _training(plan: Plan, column: str, by_row: Collection[str]) -> list[Job]:
    name = f"{TRAIN}-{column}"
    alone = rows_alone(plan) if column in by_row else {}
    parts = [
        Job(
            f"{name}.{row}", TRAIN, column, (row,), is_part=True,
            after=(PREPARE, *(f"{name}.{other}" for other in needs)), steps=plan.seeds,
        )
        for row, needs in alone.items()
    ]  # fmt: skip
    rows = tuple(row for row in plan.methods if row not in alone)
    before = tuple(job.name for job in parts) or (PREPARE,)
    return [*parts, Job(name, TRAIN, column, rows, after=before, steps=len(rows) * plan.seeds)]


def _prepare(plan: Plan) -> Job:
    return Job(PREPARE, PREPARE, steps=len(plan.sets) + 2)  # a set each, upstream, the model


def _report(before: Sequence[Job]) -> Job:
    return Job(REPORT, REPORT, after=tuple(job.name for job in before))
