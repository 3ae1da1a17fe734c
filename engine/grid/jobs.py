"""The computing jobs of a campaign: what all columns share, and then a column, or parts of it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from engine.data.sets import Sets
from engine.evaluation import cka, features, passes, sample
from engine.evaluation.sample import Sample
from engine.grid import markers, products, progress, tracked
from engine.grid.build import Builder
from engine.grid.campaign import Plan
from engine.grid.columns import Column
from engine.grid.job_graph import COLUMN, EVALUATE, PREPARE, TRAIN, name_of
from engine.grid.snapshots import Followed
from engine.recipe.request import Request
from engine.run import Run
from engine.store.artifacts import Artifact, Store
from engine.store.cells import Entry, Mix
from engine.store.shares import Share

log = logging.getLogger(__name__)


def builder_of(
    plan: Plan,
    device: torch.device,
    column: Column | None = None,
    sets: Sets | None = None,
    *,
    finds_only: bool = False,
) -> Builder:
    """The builder of a column's first method; without a column, of what all columns share.

    sets: those of another column, which are the same. finds_only: it makes nothing.
    """
    request = Request(plan.name, plan.overrides + (column.overrides if column else ()))
    downstream = column.downstream if column else None
    recipe = request.recipe(plan.methods[0], downstream)
    followed = Followed(plan.methods, plan.downstreams)
    store = Store(Path(recipe.runs) / "store", finds_only=finds_only)
    return Builder(request, recipe, device, sets, followed=followed, store=store)


def prepare(plan: Plan, device: torch.device) -> None:
    """What all columns share: packs, the pre-trained model, its features and predictions."""
    builder = builder_of(plan, device)
    names = builder.recipe.dataset.places

    def begin(step: int, what: str = "") -> None:
        progress.advance(plan.path, PREPARE, step, len(names) + 1, what and f"preparing {what}")

    begin(0, builder.recipe.model.name)
    dataset = builder.recipe.dataset
    run = builder.run  # makes the base model
    base = {run.base.name: 1.0}
    for step, name in enumerate(names, start=1):
        begin(step, name)
        if run.recipe.evaluate.cka:
            cka.check(run, name)
        features.stored(run, run.base, run.sets[name])
        for split in (sample.split_of(run.recipe, name), "holdout"):
            passes.evaluate(run, [base], [name], split)
        run.sets.release(name)
    for name in plan.needed(dataset)[len(names) :]:
        begin(len(names), name)
        # Opened, and encoded if need be, before columns share it.
        log.info("%s: %d images, only trained on", name, len(run.sets[name].pack))
    for name, drawn in sample.draw_all(run).items():
        sample.evaluate_on(run, [base], name, drawn.split, drawn)
    predictions = products.predictions(run, [base], [], names)
    markers.leave(plan, PREPARE, [*products.cells_of(run, [base]), *predictions])
    begin(len(names) + 1)


def column(plan: Plan, column: Column, device: torch.device) -> None:
    """Train every method on one set, in a setting, and evaluate the bank of models on all sets."""
    started, name = time.monotonic(), f"{COLUMN}-{column.name}"
    builder = builder_of(plan, device, column)
    rows = _rows(builder, plan.methods)
    # Each column begins at another row, so that few wait for what one makes for all (a Fisher).
    in_turn = deque(rows)
    in_turn.rotate(-plan.columns.index(column))
    for done, row in enumerate(in_turn, start=1):
        row.build()
        progress.advance(plan.path, name, done, len(rows) + 1)
    entries = [entry for row in rows for entry in row.entries()]
    run, samples = builder.run, sample.draw_all(builder.run)
    for place in run.recipe.dataset.places:
        _evaluate(run, entries, place, samples.get(place))
    for row in rows:
        tracked.log(row.run, row.entries(), samples)
        row.remove_snapshots()
    everywhere = products.predictions(run, *_mixes(entries), run.recipe.dataset.places)
    markers.leave(plan, name, [*_cells(run, rows, entries), *everywhere])
    progress.advance(plan.path, name, len(rows) + 1, len(rows) + 1)
    log.info("column %s took %.0f s", column.name, time.monotonic() - started)


def train(plan: Plan, column: Column, device: torch.device, methods: Sequence[str] = ()) -> None:
    """Make the cells of some of a column's rows, or of all, and nothing else."""
    builder = builder_of(plan, device, column)
    rows = _rows(builder, methods or plan.methods)
    name = name_of(TRAIN, column.name, methods)
    entries = []
    for done, row in enumerate(rows):
        doing = f"training {row.recipe.method.title} on {column.name}"
        progress.advance(plan.path, name, done, len(rows), doing)
        entries += row.entries()
    markers.leave(plan, name, _cells(builder.run, rows, entries))
    progress.advance(plan.path, name, len(rows), len(rows))


def evaluate(plan: Plan, name: str, device: torch.device, share: Share | None = None) -> None:
    """Evaluate the models of all columns on a set, in one pass; of a share, only its slices.

    Raises ValueError for a share of a sample, which has no slices to share.
    """
    run = builder_of(plan, device).run
    entries = [entry for row in _all_rows(plan, device, run.sets) for entry in row.entries()]
    job = name_of(EVALUATE, name, share=share)
    progress.advance(plan.path, job, 0, 1, f"evaluating {len(entries)} models on {name}")
    if share is None:
        _evaluate(run, entries, name, sample.draw_all(run).get(name))
        markers.leave(plan, job, products.predictions(run, *_mixes(entries), [name]))
    elif sample.is_drawn(run.recipe):
        raise ValueError(f"--share {share}: evaluate.budget is at work, and a sample has no shares")
    else:
        split = sample.split_of(run.recipe, name)
        passes.evaluate(run, _mixes(entries)[0], [name], split, share)
    progress.advance(plan.path, job, 1, 1)


def remove_snapshots(plan: Plan, device: torch.device) -> None:
    """Remove the weights of all snapshots, which must be evaluated on all sets.

    Raises FileNotFoundError where cells are missing.
    """
    for row in _all_rows(plan, device, finds_only=True):
        row.remove_snapshots()


def _rows(builder: Builder, methods: Sequence[str]) -> list[Builder]:
    return [seeded.row(method) for seeded in builder.seeded() for method in methods]


def _all_rows(
    plan: Plan, device: torch.device, sets: Sets | None = None, *, finds_only: bool = False
) -> Iterator[Builder]:
    for column in plan.columns:
        builder = builder_of(plan, device, column, sets, finds_only=finds_only)
        sets = builder.sets  # opened once
        yield from _rows(builder, plan.methods)


def _mixes(entries: Sequence[Entry]) -> tuple[list[Mix], list[Mix]]:
    """All mixes, and those whose layers are compared."""
    return [entry.mix for entry in entries], [entry.mix for entry in entries if entry.headline]


def _cells(run: Run, rows: Sequence[Builder], entries: Sequence[Entry]) -> list[Artifact]:
    """The cells of rows, and those that their entries mix."""
    mixed = products.cells_of(run, _mixes(entries)[0])
    return [*(row.build().artifact for row in rows), *mixed]


def _evaluate(
    run: Run,
    entries: Sequence[Entry],
    name: str,
    drawn: Sample | None,
) -> None:
    """Evaluate models on a set, or on a sample of it, and free the set's memory."""
    mixes, compared = _mixes(entries)
    sample.evaluate_on(run, mixes, name, sample.split_of(run.recipe, name), drawn)
    if run.recipe.evaluate.cka:
        cka.evaluate(run, compared, name)
    run.sets.release(name)
