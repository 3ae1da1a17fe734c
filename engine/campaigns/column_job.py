"""The jobs of a column: train its cells, evaluate its models, write its part of the record.

Jobs that do shares of the work only leave artefacts in the store. The column's own job finds them.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from engine.campaigns import job_states
from engine.campaigns.parts import Models, write_part
from engine.campaigns.plan import Column, Plan, Share
from engine.cells.build import SNAPSHOTS, Builder, Followed
from engine.errors import DivergedError
from engine.evaluation import passes
from engine.evaluation.bank import Bank
from engine.machine import ranks
from engine.measures import predictions
from engine.measures.rows import (
    PROBE,
    REPLICATE,
    SEEN,
    STEP,
    TEST,
    Arm,
    Diverged,
    Evaluation,
    ModelOnSet,
    Role,
    Setting,
)
from engine.recipe import extras
from engine.recipe.finder import allow_users_files, users_files_allowed
from engine.run import Run
from engine.store import cells
from engine.store.artifacts import Store, hash_once
from engine.store.cells import HISTORY, Cell, Ensemble, Entry, Mix, canonical_mix
from engine.training import trackers

log = logging.getLogger(__name__)


class RowModels(NamedTuple):
    """The models of a row of the table with one seed: those of a cell, or none if its training
    diverged. method: the row's name."""

    method: str
    run: Builder
    cell: Cell | None = None
    entries: Sequence[Entry] = ()

    def evaluation(
        self, column: Column, entry: Entry, name: str, split: str, role: Role
    ) -> Evaluation:
        """One of the models on a dataset, evaluated before."""
        recipe, setting = self.run.recipe, Setting({**column.setting, **entry.setting})
        assert self.cell is not None, "it has models"
        variant = recipe.method.variant
        arm = Arm(recipe.model.name, self.method, variant, entry.alpha, setting)
        path = passes.predicted(self.run, entry.mix, name, split)
        on_set = ModelOnSet(*arm, recipe.downstream, name)
        trains = self.cell.artifact.has(HISTORY)
        return Evaluation(*on_set.key, path, recipe.seed, entry.headline, trains, role)


def builders(plan: Plan, device: torch.device, column: Column) -> list[Builder]:
    """The builder of each cell of a column."""
    first, *rest = cells = list(plan.cells(column))
    # A replicate is evaluated only after training and needs no snapshots.
    followed_cells = [] if column.is_replicate else [cell.recipe for cell in cells]
    builder = Builder(
        first,
        device,
        followed=Followed(followed_cells, plan.downstreams),
        store=Store(plan.place.store, plan.recipe.generation),
    )
    return [builder, *map(builder.builder_of, rest)]


def make_cells(plan: Plan, job: str, device: torch.device, numbers: Collection[int]) -> None:
    """Make cells of a column, given by their numbers in `plan.cells`.

    Without a user's method among them, also what users' methods of the same job need of the
    engine's, so that no process that runs a user's file makes another's cell.
    """
    column = plan.column_of(job)
    rows = builders(plan, device, column)
    chosen = [rows[number] for number in numbers]
    of_job = [rows[number] for number in plan.cells_of(job)]
    if not any(row.plan.runs_users for row in chosen):
        users = [row for row in (of_job if job in plan.shares else rows) if row.plan.runs_users]
        needs = [row.sibling(name) for row in users for name in row.plan.needs]
        chosen += [need for need in needs if not need.plan.runs_users]
    total = len(of_job) + (job not in plan.shares)
    for row in chosen:
        is_trained(row, column)
        job_states.advance(plan.place, job, sum(row.is_stored() for row in of_job), total)


def evaluate_share(plan: Plan, share: Share, device: torch.device) -> None:
    """Evaluate models of a column on all datasets, those of its share among all models.

    Models of users' methods that are not in the store are left to the column's job.
    """
    rows = builders(plan, device, share.column)
    run, makeable = rows[0], [row for row in rows if row.is_stored() or not row.plan.runs_users]
    # What no job has made, jobs make at different rows first.
    for row in _in_turn(makeable, share.turn):
        row.build()
    every = [entry for row in makeable for entry in row.entries()]
    entries = every[share.turn :: plan.jobs_per_column]
    loaded = Bank(run)
    for name in run.recipe.dataset.evaluated_sets:
        _evaluate(run, share.column, entries, name, loaded)
        run.sets.release(name)
    _evaluate_probes(run, share.column, entries, loaded)
    job_states.advance(plan.place, share.job, 1, 1)


def make_column(plan: Plan, column: Column, device: torch.device) -> None:
    """Train every method on a column's dataset, and evaluate the models on all datasets.

    Cells of users' methods whose files may not run must be in the store.
    """
    started, name = time.monotonic(), column.job
    rows = builders(plan, device, column)
    own = {rows[number] for number in plan.cells_of(name)}
    trained, done = set(), 0
    # Columns start at different rows, so that few wait for an artefact that one makes for all.
    for row in _in_turn(rows, plan.columns.index(column)):
        if is_trained(row, column):
            trained.add(row)
        done += row in own
        job_states.advance(plan.place, name, done, len(own) + 1)
    # Collective calls: all ranks look cells and entries up.
    models = [
        RowModels(method, row, row.build(), row.entries())
        if row in trained
        else RowModels(method, row)
        for (method, _), row in zip(plan.named_cells(column), rows, strict=True)
    ]
    entries = [entry for of_row in models for entry in of_row.entries]
    of_extras: dict[str, list[dict[str, Any]]] = {}
    run, loaded = rows[0], Bank(rows[0])
    if len(run.recipe.trained_sets) > 1:
        run.sets.release(column.downstream)  # evaluation reads its datasets one by one
    for place in run.recipe.dataset.evaluated_sets:
        _evaluate(run, column, entries, place, loaded)
        if not column.is_replicate:
            with_weights = list(_with_weights(column, models, place))
            with allow_users_files():  # those of methods have processes of their own
                for extra, of_set in extras.ask(run.recipe, "on_set", run, place, with_weights):
                    of_extras.setdefault(extra, []).extend(of_set)
        run.sets.release(place)
    _evaluate_probes(run, column, entries, loaded)
    for _, row, cell, of_row in models:
        if cell is None:
            continue
        if row.recipe.trackers:
            from engine.evaluation import accuracies  # late, as only trackers show them

            headline = next(entry for entry in of_row if entry.headline)
            with ranks.together():
                if ranks.rank() == 0:
                    rows_of_sets = accuracies.compared(row, headline.mix)
                    trackers.log_accuracies(row.recipe, rows_of_sets)
        row.remove_snapshots()
    if ranks.rank() == 0:
        write_part(plan.place, name, part_of_column(plan, column, models, of_extras))
    job_states.advance(plan.place, name, len(own) + 1, len(own) + 1)
    log.info("column %s took %.0f s", column.name, time.monotonic() - started)


def _in_turn(rows: Sequence[Builder], first: int) -> Sequence[Builder]:
    """The rows from number `first` on, then those before it."""
    in_turn = deque(rows)
    in_turn.rotate(-first)
    return in_turn


def _evaluate(run: Run, column: Column, entries: Sequence[Entry], name: str, loaded: Bank) -> None:
    """Evaluate models of a column on a dataset, in all roles that `_judged_on` gives it."""
    mixes = [entry.mix for entry in entries]
    passes.evaluate(run, mixes, [name], run.recipe.split_of(name), loaded)
    if is_judged_seen(run, name, [column.downstream]) and not column.is_replicate:
        headlines = [entry.mix for entry in entries if entry.headline]
        passes.evaluate(run, headlines, [name], "train", loaded)


def _evaluate_probes(run: Run, column: Column, entries: Sequence[Entry], loaded: Bank) -> None:
    """Evaluate the features of a column's headline models on the probe sets."""
    headlines = [entry.mix for entry in entries if entry.headline]
    with_features = [mix for mix in headlines if not isinstance(mix, Ensemble)]
    for name in run.recipe.dataset.probe_sets if not column.is_replicate else ():
        passes.evaluate(run, with_features, [name], "holdout", loaded)
        run.sets.release(name)


def is_trained(row: Builder, column: Column) -> bool:
    """Find or make a row's cell. False if its training diverges in a setting that the campaign
    tries; raises DivergedError if it diverges in another."""
    if column.setting.is_tried and row.plan.runs_users and not users_files_allowed():
        return row.is_stored()  # the method's own process has tried
    try:
        row.build()
    except DivergedError as error:
        if not column.setting.is_tried:
            raise
        log.warning("%s. The report leaves the method out with %s", error, column.setting)
        return False
    return True


def _is_nan(run: Run, entries: Sequence[Entry]) -> bool:
    """Whether a model of a row predicts NaN: its last step left weights that are finite, but too
    large."""
    try:
        for entry, name in itertools.product(entries, run.recipe.dataset.evaluated_sets):
            predictions.read_predictions(
                passes.predicted(run, entry.mix, name, run.recipe.split_of(name))
            )
    except predictions.NotFiniteError:
        return True
    return False


def is_judged_seen(run: Run, name: str, others: Sequence[str]) -> bool:
    """Whether models are also evaluated on a dataset's images that are not held out.

    True if `Recipe.judges_seen` and the dataset shares photos with one of the others.
    """
    return run.recipe.judges_seen and any(run.sets.share_photos(name, other) for other in others)


def _judged_on(run: Run, column: Column, entry: Entry) -> Iterator[tuple[str, str, Role]]:
    """The datasets that a model of a column is evaluated on, each with its split and the role."""
    dataset, downstream = run.recipe.dataset, run.recipe.downstream
    for name in dataset.evaluated_sets:
        yield name, run.recipe.split_of(name), REPLICATE if column.is_replicate else TEST
    if not entry.headline or column.is_replicate:
        return
    for name in dataset.evaluated_sets:
        if is_judged_seen(run, name, [downstream]):
            yield name, "train", SEEN
    if not isinstance(entry.mix, Ensemble):  # which has no features
        for name in dataset.probe_sets:
            yield name, "holdout", PROBE


def _with_weights(
    column: Column, models: Sequence[RowModels], name: str
) -> Iterator[tuple[Evaluation, Mix]]:
    """The headline models and snapshots with weights of their own, evaluated on a dataset."""
    for of_row in models:
        for entry in of_row.entries:
            is_model = entry.headline or STEP in entry.setting
            if is_model and not isinstance(entry.mix, Ensemble):
                split = of_row.run.recipe.split_of(name)
                yield of_row.evaluation(column, entry, name, split, TEST), entry.mix


def part_of_column(
    plan: Plan,
    column: Column,
    models: Sequence[RowModels],
    of_extras: Mapping[str, list[dict[str, Any]]],
) -> Models:
    """The part of a column, whose models are evaluated. of_extras: as `Record.extras`."""
    run = models[0].run
    evaluations, diverged = [], []
    folders: dict[str, set[Path]] = {method: set() for method in plan.methods}
    train_seconds = dict.fromkeys(plan.methods, 0.0)
    for of_row in models:
        method, row, cell, entries = of_row
        if cell is None or (column.setting.is_tried and _is_nan(run, entries)):
            model = row.recipe.model.name
            diverged.append(Diverged(model, method, column.downstream, column.setting))
            continue
        parents = {name for entry in entries for name in canonical_mix(entry.mix)}
        for made in (cell, *(cells.find(run.store, name) for name in parents)):
            if made and made.artifact.kind != SNAPSHOTS:
                folders[method].add(made.artifact.folder)
                train_seconds[method] += made.train_seconds
        evaluations += [
            of_row.evaluation(column, entry, *judged)
            for entry in entries
            for judged in _judged_on(row, column, entry)
        ]
    return models_part(run, evaluations, folders, train_seconds, of_extras, diverged)


def models_part(
    run: Run,
    evaluations: Sequence[Evaluation],
    folders: Mapping[str, Iterable[Path]],
    train_seconds: Mapping[str, float] = MappingProxyType({}),
    of_extras: Mapping[str, list[dict[str, Any]]] = MappingProxyType({}),
    diverged: Sequence[Diverged] = (),
) -> Models:
    """A part with paths relative to the store. folders: by method, `Models.cells`."""
    root = run.store.root
    paths = dict.fromkeys(row.path for row in evaluations)
    return Models(
        evaluations=[
            dataclasses.replace(row, path=row.path.relative_to(root)) for row in evaluations
        ],
        files={path.relative_to(root).as_posix(): hash_once(path) for path in paths},
        cells={
            method: sorted(folder.relative_to(root).as_posix() for folder in of_method)
            for method, of_method in folders.items()
        },
        train_seconds=dict(train_seconds),
        extras=dict(of_extras),
        diverged=list(diverged),
    )
