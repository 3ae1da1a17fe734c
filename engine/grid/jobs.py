"""The computing jobs of a campaign: what all columns share, and a column."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engine.evaluation import cka, features, passes, sample
from engine.grid import markers, products, workflow
from engine.grid.build import Builder
from engine.grid.campaign import Plan
from engine.grid.columns import Column
from engine.grid.resources import COLUMN, PREPARE
from engine.grid.snapshots import Followed
from engine.recipe.request import Request
from engine.store.artifacts import Store

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def builder_of(
    plan: Plan, device: torch.device, column: Column | None = None, *, finds_only: bool = False
) -> Builder:
    """The builder of a column's first method; without a column, of what all columns share.

    finds_only: it makes nothing.
    """
    request = Request(plan.name, plan.overrides + (column.overrides if column else ()))
    downstream = column.downstream if column else None
    recipe = request.recipe(plan.methods[0], downstream)
    followed = Followed(plan.methods, plan.downstreams)
    store = Store(Path(recipe.runs) / "store", finds_only=finds_only)
    return Builder(request, recipe, device, followed=followed, store=store)


def prepare(plan: Plan, device: torch.device) -> None:
    """What all columns share: packs, the pre-trained model, its features and predictions."""
    builder = builder_of(plan, device)
    names = builder.recipe.dataset.places

    def begin(step: int, what: str = "") -> None:
        workflow.advance(plan.path, "prepare", step, len(names) + 1, what and f"preparing {what}")

    begin(0, builder.recipe.model.name)
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
    for name in plan.needed(run.recipe.dataset)[len(names) :]:
        begin(len(names), name)
        # Opened, and encoded if need be, before columns share it.
        log.info("%s: %d images, only trained on", name, len(run.sets[name].pack))
    for name, drawn in sample.draw_all(run).items():
        sample.evaluate_on(run, [base], name, drawn.split, drawn)
    markers.leave(plan, PREPARE, products.of(run, [base], []))
    begin(len(names) + 1)


def column(plan: Plan, column: Column, device: torch.device) -> None:
    """Train every method on one set, in a setting, and evaluate the bank of models on all sets."""
    started = time.monotonic()
    builder = builder_of(plan, device, column)
    mixes, headlines = [], []
    work = [(seeded, method) for seeded in builder.seeded() for method in plan.methods]
    for done, (seeded, method) in enumerate(work, start=1):
        entries = seeded.row(method).entries()
        mixes += [entry.mix for entry in entries]
        headlines += [entry.mix for entry in entries if entry.headline]
        workflow.advance(plan.path, column.name, done, len(work) + 1)
    run = builder.run
    samples = sample.draw_all(run)
    for name in run.recipe.dataset.places:
        split = sample.split_of(run.recipe, name)
        sample.evaluate_on(run, mixes, name, split, samples.get(name))
        if run.recipe.evaluate.cka:
            cka.evaluate(run, headlines, name)
        run.sets.release(name)
    for seeded, method in work:
        seeded.row(method).remove_snapshots()
    rows = [seeded.row(method).build().artifact for seeded, method in work]
    markers.leave(plan, COLUMN + column.name, [*rows, *products.of(run, mixes, headlines)])
    workflow.advance(plan.path, column.name, len(work) + 1, len(work) + 1)
    log.info("column %s took %.0f s", column.name, time.monotonic() - started)
