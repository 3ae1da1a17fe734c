"""The job before all columns: makes what they share, and writes its part of the record."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from engine.campaigns import job_states
from engine.campaigns.column_job import builders, is_judged_seen, models_part
from engine.campaigns.parts import Preparation, write_part
from engine.campaigns.plan import PREPARE, Plan
from engine.cells.build import Builder
from engine.cells.users_kinds import encode_apart
from engine.data import imagenet, thumbnails
from engine.data.kinds import kind_of
from engine.evaluation import features, passes
from engine.evaluation.bank import Bank
from engine.machine import ranks
from engine.machine.programs import NoAnswer, answer
from engine.measures.rows import PRE, PROBE, SEEN, TEST, Arm, Evaluation, Role
from engine.recipe import extras
from engine.recipe.schema import DatasetRecipe
from engine.run import Run
from engine.store import cells

log = logging.getLogger(__name__)


def prepare(plan: Plan, device: torch.device) -> None:
    """Make the artefacts that all columns share: packs, the pretrained model, its features and
    predictions, and compiled graphs.

    Graphs contain the number of their GPU, so `prepare` needs as many ranks as columns have.
    """
    run, *_ = rows = builders(plan, device, plan.columns[0])
    names, bases = run.recipe.dataset.evaluated_sets, _bases(plan, rows[0])

    def begin(step: int, what: str = "") -> None:
        job_states.advance(plan.place, PREPARE, step, len(names) + 1, what and f"preparing {what}")

    begin(0, run.recipe.model.name)
    encode_apart(run.plan, dict.fromkeys([*names, *run.recipe.dataset.probe_sets, *plan.needed]))
    base, loaded = {run.base.name: 1.0}, Bank(run)
    for base_run in bases.values():
        assert base_run.base
    for step, name in enumerate(names, start=1):
        begin(step, name)
        if name in plan.downstreams:
            run.sets[name].training(run.recipe)  # raises its errors before columns start
        for _ in extras.ask(run.recipe, "prepare", run, name):
            pass
        features.stored(run, run.base, run.sets[name])
        seen = ["train"] if is_judged_seen(run, name, plan.needed) else []
        for base_run in bases.values():
            for split in (base_run.recipe.split_of(name), "holdout", *seen):
                passes.evaluate(run, [{base_run.base.name: 1.0}], [name], split, loaded)
        run.sets.release(name)
    for name in run.recipe.dataset.probe_sets:
        begin(len(names), name)
        run.sets[name].training(run.recipe)
        passes.evaluate(run, [base], [name], "holdout", loaded)
        run.sets.release(name)
    for name in plan.needed[len(names) :]:
        begin(len(names), name)
        # Accessing it encodes it if necessary, before columns share it.
        log.info("%s: %d images, never evaluated", name, len(run.sets[name].pack))
    for name in plan.downstreams:
        run.sets[name].training(run.recipe)  # unions raise their errors
    begin(len(names), "graphs")
    # What a user's file changes, it changes afterwards.
    for row in sorted(rows, key=lambda row: row.plan.runs_users):
        row.compile()
    if ranks.rank() == 0:
        write_part(plan.place, PREPARE, part_of_preparation(plan, run, bases))
    begin(len(names) + 1)


def _bases(plan: Plan, first: Builder) -> dict[str, Run]:
    """The runs of the pretrained models: one for all columns or, without an upstream dataset, one
    for each downstream dataset or union, whose images fit its head. first: of the first column."""
    if plan.recipe.dataset.upstream:
        return {"": first}
    return {c.downstream: first.builder_of(next(plan.cells(c))) for c in plan.columns}


def part_of_preparation(plan: Plan, run: Run, bases: Mapping[str, Run]) -> Preparation:
    """The part of the preparation. run: that of the first column. bases: `_bases`, whose models
    are evaluated on all datasets."""
    sets, dataset = run.sets, run.recipe.dataset
    names = dataset.evaluated_sets

    def evaluation(base_run: Run, downstream: str, name: str, split: str, role: Role) -> Evaluation:
        arm = Arm(base_run.recipe.model.name, PRE, "", None)
        path = passes.predicted(run, {base_run.base.name: 1.0}, name, split)
        return Evaluation(*arm, downstream, name, path, role=role)

    evaluations = [
        evaluation(base, downstream, name, base.recipe.split_of(name), TEST)
        for downstream, base in bases.items()
        for name in names
    ]
    is_seen = (name for name in names if is_judged_seen(run, name, plan.needed))
    evaluations += [evaluation(run, "", name, "train", SEEN) for name in is_seen]
    evaluations += [evaluation(run, "", name, "holdout", PROBE) for name in dataset.probe_sets]
    folders = {PRE: [base.base.artifact.folder for base in bases.values()]}
    packs = {name: sets[name].pack for name in names}
    credits, runs = _credits(dataset), plan.place.runs
    return Preparation(
        before=models_part(run, evaluations, folders),
        head=_head(run) if run.recipe.head_set else "",
        head_photos=_head_photos(run) if run.recipe.head_set else "",
        classes=imagenet.readable(sets.classes),
        device=run.device.type,
        versions=cells.versions(),
        commit=_commit(),
        packs={name: str(pack.folder.resolve().relative_to(runs)) for name, pack in packs.items()},
        fingerprints={
            name: sets[name].pack.fingerprint for name in (*plan.needed, *dataset.probe_sets)
        },
        credits=credits,
        contact_sheet=thumbnails.contact_sheet(list(packs.values())) if credits else "",
    )


def _credits(dataset: DatasetRecipe) -> list[dict[str, str]]:
    """Authors and licences of all datasets; empty if reports may not show images of some."""
    of_sets = [kind_of(dataset, name).credits() for name in dataset.evaluated_sets]
    every = {json.dumps(credit): credit for credits in of_sets for credit in credits}
    return list(every.values()) if all(of_sets) else []


def _head(run: Run) -> str:
    """The images that fitted the head."""
    if not _is_one_head(run):
        return "fitted on the images that each column trains on"
    return f"fitted on {run.recipe.head_set}"


def _is_one_head(run: Run) -> bool:
    return bool(run.recipe.dataset.upstream or run.recipe.model.head.fit_on)


def _head_photos(run: Run) -> str:
    """The datasets whose evaluated images show photos that fitted the head; empty for none, and
    where each column has a head of its own."""
    if not _is_one_head(run):
        return ""
    seen = []
    for name in run.recipe.dataset.evaluated_sets:
        split = run.recipe.split_of(name)
        if images := run.sets.seen_by_head(name, split):
            seen.append(f"{name} ({images:,} of {len(run.sets[name].split(split)):,} images)")
    return ", ".join(seen)


def _commit() -> str:
    try:
        here = str(Path(__file__).resolve().parent)
        return answer("git", "-C", here, "describe", "--always", "--dirty").strip()
    except NoAnswer:
        return "unknown"
