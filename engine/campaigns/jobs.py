"""The computing jobs of a campaign: `prepare` for all columns, then one job per column, and one for
the distances between the datasets. The last act of each is to write its part of the record."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection

import torch

from engine.campaigns import job_states, make_parts
from engine.campaigns.columns import Column
from engine.campaigns.make_parts import is_judged_seen
from engine.campaigns.parts import Distances, write_part
from engine.campaigns.plan import DISTANCES, PREPARE, Plan
from engine.cells.build import Builder
from engine.cells.snapshots import Followed
from engine.cost.work import DISTANCE_SAMPLES
from engine.evaluation import accuracies, cka, features, passes
from engine.evaluation.bank import Bank
from engine.machine import ranks
from engine.measures.dynamics import STEP
from engine.otdd import solve
from engine.otdd.problems import DistanceOptions
from engine.store.artifacts import Store
from engine.store.cells import Ensemble
from engine.training import trackers
from loaders.files.typed_json import DamagedFile

log = logging.getLogger(__name__)
DISTANCE = DistanceOptions(samples=DISTANCE_SAMPLES)


def builders(
    plan: Plan, device: torch.device, column: Column, *, run_users: bool = True
) -> list[Builder]:
    """The builder of each cell of a column.

    run_users: run users' method files; otherwise their cells must be in the store.
    """
    first, *rest = cells = list(plan.cells(column))
    # A replicate is evaluated only after training and needs no snapshots.
    followed_cells = [] if column.is_replicate else [cell.recipe for cell in cells]
    followed = Followed(followed_cells, plan.downstreams)
    store = Store(plan.place.store)
    builder = Builder(first, device, followed=followed, store=store, run_users=run_users)
    return [builder, *map(builder.of, rest)]


def prepare(plan: Plan, device: torch.device) -> None:
    """Make the artefacts that all columns share: packs, the pretrained model, its features and
    predictions, and compiled graphs.

    Graphs contain the number of their GPU, so `prepare` needs as many ranks as columns have.
    """
    run, *_ = rows = builders(plan, device, plan.columns[0])
    names = run.recipe.dataset.evaluated_sets

    def begin(step: int, what: str = "") -> None:
        job_states.advance(plan.place, PREPARE, step, len(names) + 1, what and f"preparing {what}")

    begin(0, run.recipe.model.name)
    base, held = {run.base.name: 1.0}, Bank(run)
    for step, name in enumerate(names, start=1):
        begin(step, name)
        if name in plan.downstreams:
            run.sets[name].training(run.recipe)  # raises its errors before columns start
        if run.recipe.evaluate.cka:
            cka.check(run, name)
        features.stored(run, run.base, run.sets[name])
        seen = ["train"] if is_judged_seen(run, name, plan.needed) else []
        for split in (run.recipe.split_of(name), "holdout", *seen):
            passes.evaluate(run, [base], [name], split, held)
        run.sets.release(name)
    for name in run.recipe.dataset.probe_sets:
        begin(len(names), name)
        run.sets[name].training(run.recipe)
        passes.evaluate(run, [base], [name], "holdout", held)
        run.sets.release(name)
    for name in plan.needed[len(names) :]:
        begin(len(names), name)
        # Accessing it encodes it if necessary, before columns share it.
        log.info("%s: %d images, never evaluated", name, len(run.sets[name].pack))
    for name in plan.downstreams:
        run.sets[name].training(run.recipe)  # unions raise their errors
    begin(len(names), "graphs")
    for row in sorted(rows, key=_is_users):  # what a user's file changes, it changes afterwards
        row.compile()
    if ranks.rank() == 0:
        write_part(plan.place, PREPARE, make_parts.of_preparation(plan, run))
    begin(len(names) + 1)


def distances(plan: Plan, device: torch.device) -> None:
    """Compute the distances between all datasets, from the features of the pretrained model."""
    run, matrix = builders(plan, device, plan.columns[0])[0], None
    try:
        matrix = solve.distances(run, run.recipe.dataset.evaluated_sets, DISTANCE).plain()
    except DamagedFile:
        raise
    except ValueError as error:
        log.warning("no distances between the datasets: %s", error)
    write_part(plan.place, DISTANCES, Distances(matrix))
    job_states.advance(plan.place, DISTANCES, 1, 1)


def make(plan: Plan, column: Column, device: torch.device, numbers: Collection[int]) -> None:
    """Make cells of a column, given by their numbers in `plan.cells`.

    Without a user's method among them, also what users' methods need of the engine's, so that no
    process that runs a user's file makes another's cell.
    """
    rows = builders(plan, device, column)
    asked = [rows[number] for number in numbers]
    if not any(map(_is_users, asked)):
        needs = [row.sibling(name) for row in rows if _is_users(row) for name in row.plan.needs]
        asked += [need for need in needs if not _is_users(need)]
    for row in asked:
        row.build()
        done = sum(row.is_stored() for row in rows)
        job_states.advance(plan.place, column.job, done, len(rows) + 1)


def column(plan: Plan, column: Column, device: torch.device, *, run_users: bool = True) -> None:
    """Train every method on a column's dataset, and evaluate the models on all datasets.

    run_users: as of `builders`.
    """
    started, name = time.monotonic(), column.job
    rows = builders(plan, device, column, run_users=run_users)
    # Columns start at different rows, so that few wait for an artefact that one makes for all.
    in_turn = deque(rows)
    in_turn.rotate(-plan.columns.index(column))
    for done, row in enumerate(in_turn, start=1):
        row.build()
        job_states.advance(plan.place, name, done, len(rows) + 1)
    # Collective calls: all ranks look cells and entries up.
    models = [(row.build(), row.entries()) for row in rows]
    entries = [entry for _, of_row in models for entry in of_row]
    headlines = [entry.mix for entry in entries if entry.headline]
    with_features = [mix for mix in headlines if not isinstance(mix, Ensemble)]
    during = [entry.mix for entry in entries if STEP in entry.setting]
    compared = [*with_features, *(mix for mix in during if not isinstance(mix, Ensemble))]
    run, held = rows[0], Bank(rows[0])
    if len(run.recipe.trained_sets) > 1:
        run.sets.release(column.downstream)  # evaluation reads its datasets one by one
    for place in run.recipe.dataset.evaluated_sets:
        split = run.recipe.split_of(place)
        passes.evaluate(run, [entry.mix for entry in entries], [place], split, held)
        if is_judged_seen(run, place, [column.downstream]) and not column.is_replicate:
            passes.evaluate(run, headlines, [place], "train", held)
        if run.recipe.evaluate.cka and not column.is_replicate:
            cka.evaluate(run, compared, place)
        run.sets.release(place)
    for place in run.recipe.dataset.probe_sets if not column.is_replicate else ():
        passes.evaluate(run, with_features, [place], "holdout", held)
        run.sets.release(place)
    for row, (_, of_row) in zip(rows, models, strict=True):
        if row.recipe.trackers and ranks.rank() == 0:
            headline = next(entry for entry in of_row if entry.headline)
            trackers.log_accuracies(row.recipe, accuracies.compared(row, headline.mix))
        row.remove_snapshots()
    if ranks.rank() == 0:
        write_part(plan.place, name, make_parts.of_column(plan, column, rows, models))
    job_states.advance(plan.place, name, len(rows) + 1, len(rows) + 1)
    log.info("column %s took %.0f s", column.name, time.monotonic() - started)


def _is_users(row: Builder) -> bool:
    return row.plan.runs_users
