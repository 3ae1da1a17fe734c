"""Make the parts of a campaign's record from what its jobs have just stored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.campaigns.columns import Column
from engine.campaigns.parts import Models, Preparation
from engine.campaigns.plan import Plan
from engine.cells import snapshots
from engine.cells.build import Builder
from engine.data import imagenet, thumbnails
from engine.data.kinds import kind_of
from engine.evaluation import cka, passes
from engine.machine.programs import NoAnswer, answer
from engine.measures.dynamics import STEP
from engine.measures.rows import PRE, Arm, Evaluation, ModelOnSet, Setting
from engine.recipe.schema import DatasetRecipe
from engine.run import Run
from engine.store import cells
from engine.store.artifacts import hash_once
from engine.store.cells import HISTORY, Average, Cell, Ensemble, Entry, canonical_mix


def is_judged_seen(run: Run, name: str, others: Sequence[str]) -> bool:
    """Whether models are also evaluated on a dataset's images that are not held out.

    True if `Recipe.judges_seen` and the dataset shares photos with one of the others.
    """
    return run.recipe.judges_seen and any(run.sets.share_photos(name, each) for each in others)


def _credits(dataset: DatasetRecipe) -> list[dict[str, str]]:
    """Authors and licences of all datasets; empty if reports may not show images of some."""
    of_sets = [kind_of(dataset, name).credits() for name in dataset.evaluated_sets]
    every = {json.dumps(credit): credit for credits in of_sets for credit in credits}
    return list(every.values()) if all(of_sets) else []


def of_preparation(plan: Plan, run: Run) -> Preparation:
    """The part of the preparation. run: that of the pretrained model, evaluated on all datasets."""
    sets, dataset, base = run.sets, run.recipe.dataset, {run.base.name: 1.0}
    arm = Arm(run.recipe.model.name, PRE, "", None)
    evaluations, seen = [], []
    probe_sets = [
        Evaluation(*arm, "", name, passes.predicted(run, base, name, "holdout"))
        for name in dataset.probe_sets
    ]
    for name in dataset.evaluated_sets:
        evaluations.append(Evaluation(*arm, "", name, _predicted(run, base, name)))
        if is_judged_seen(run, name, plan.needed):
            path = passes.predicted(run, base, name, "train")
            seen.append(Evaluation(*arm, "", name, path))
    packs = {name: sets[name].pack for name in dataset.evaluated_sets}
    credits, runs = _credits(dataset), plan.place.runs
    return Preparation(
        before=_models(run, evaluations, seen, probe_sets, {PRE: [run.base.artifact.folder]}),
        head=_head(run) if run.recipe.head_set else "",
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


def of_column(
    plan: Plan,
    column: Column,
    rows: Sequence[Builder],
    models: Sequence[tuple[Cell, Sequence[Entry]]],
) -> Models:
    """The part of a column. models: each row's cell, and its models, which are evaluated."""
    run = rows[0]
    names, probes = run.recipe.dataset.evaluated_sets, run.recipe.dataset.probe_sets
    evaluations, seen, probe_sets, blocks = [], [], [], []
    folders: dict[str, set[Path]] = {method: set() for method in plan.methods}
    for number, (row, (cell, entries)) in enumerate(zip(rows, models, strict=True)):
        recipe, method = row.recipe, plan.methods[number % len(plan.rows)]
        folders[method] |= _folders(run, cell, entries)
        for entry in entries:
            mix, setting = entry.mix, Setting({**column.setting, **entry.setting})
            arm = Arm(recipe.model.name, method, recipe.method.variant, entry.alpha, setting)
            of_row = recipe.seed, entry.headline, cell.artifact.has(HISTORY)
            is_shown = entry.headline and not column.is_replicate
            for name in probes if is_shown and not isinstance(mix, Ensemble) else ():
                on_set = ModelOnSet(*arm, recipe.downstream, name)
                path = passes.predicted(run, mix, name, "holdout")
                probe_sets.append(Evaluation(*on_set.key, path, *of_row))
            for name in names:
                on_set = ModelOnSet(*arm, recipe.downstream, name)
                path = _predicted(run, mix, name)
                evaluations.append(Evaluation(*on_set.key, path, *of_row))
                if is_shown and is_judged_seen(run, name, [recipe.downstream]):
                    path = passes.predicted(run, mix, name, "train")
                    seen.append(Evaluation(*on_set.key, path, *of_row))
                is_compared = recipe.evaluate.cka and (is_shown or STEP in entry.setting)
                if is_compared and not isinstance(mix, Ensemble):  # which has no features
                    values = {"seed": recipe.seed, "blocks": cka.stored(run, mix, name)}
                    blocks.append({**dataclasses.asdict(on_set), **values})
    return _models(run, evaluations, seen, probe_sets, folders, blocks)


def _predicted(run: Run, average: Average, name: str) -> Path:
    return passes.predicted(run, average, name, run.recipe.split_of(name))


def _folders(run: Run, cell: Cell, entries: Sequence[Entry]) -> set[Path]:
    """A cell's folder, and those of the cells that its models average, without snapshots."""
    names = {name for entry in entries for name in canonical_mix(entry.mix)}
    parents = [cells.find(run.store, name) for name in names]
    return {
        each.artifact.folder
        for each in (cell, *parents)
        if each and each.artifact.kind != snapshots.KIND
    }


def _models(
    run: Run,
    evaluations: Sequence[Evaluation],
    seen: Sequence[Evaluation],
    probe_sets: Sequence[Evaluation],
    folders: Mapping[str, Iterable[Path]],
    blocks: Sequence[dict[str, Any]] = (),
) -> Models:
    """A part with paths relative to the store. folders: by method, `Models.cells`."""
    root = run.store.root

    def below(rows: Sequence[Evaluation]) -> list[Evaluation]:
        return [dataclasses.replace(row, path=row.path.relative_to(root)) for row in rows]

    paths = dict.fromkeys(row.path for row in (*evaluations, *seen, *probe_sets))
    return Models(
        evaluations=below(evaluations),
        seen=below(seen),
        probe_sets=below(probe_sets),
        files={path.relative_to(root).as_posix(): hash_once(path) for path in paths},
        cells={
            method: sorted(folder.relative_to(root).as_posix() for folder in of_method)
            for method, of_method in folders.items()
        },
        cka=list(blocks),
    )


def _head(run: Run) -> str:
    """The dataset that fitted the head, and the datasets evaluated on the same photos."""
    seen = {}
    for name in run.recipe.dataset.evaluated_sets:
        split = run.recipe.split_of(name)
        if images := run.sets.seen_by_head(name, split):
            seen[name] = f"{name} ({images:,} of {len(run.sets[name].split(split)):,} images)"
    text = f"fitted on {run.recipe.head_set}"
    if not seen:
        return text
    return (
        f"{text}, and models are judged on the same photos in {', '.join(seen.values())}: accuracy "
        "before fine-tuning is too high there"
    )


def _commit() -> str:
    try:
        here = str(Path(__file__).resolve().parent)
        return answer("git", "-C", here, "describe", "--always", "--dirty").strip()
    except NoAnswer:
        return "unknown"
