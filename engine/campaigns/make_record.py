"""Join the parts that a campaign's jobs wrote into its record. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import Any

from engine.campaigns import job_states
from engine.campaigns.parts import Distances, Models, Preparation, has_part, read_part, select_rows
from engine.campaigns.plan import DISTANCES, PREPARE, REPORT, Column, Plan
from engine.campaigns.record import (
    HEAD_PHOTOS,
    FinishedCampaign,
    MadeBy,
    MethodRow,
    MissingColumn,
    Record,
    checked_file,
)
from engine.cells.cell_plan import CellPlan
from engine.errors import CampaignError
from engine.measures.rows import PRE, REPLICATE, STEP, TEST, Evaluation, Setting, of_role
from engine.store.artifacts import MARKER, read_marker
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile
from loaders.pack import Pack


def record_of(plan: Plan) -> Record:
    """The record of a campaign whose jobs are done.

    Raises FileNotFoundError if a part or an artefact is missing, DamagedFile if one was altered.
    """
    return _joined(plan, plan.columns, read_part(plan.place, DISTANCES, Distances))


def of_finished_columns(plan: Plan) -> Record:
    """The record of the finished part of a campaign.

    It covers the downstream datasets whose columns are done in every setting. `Record.missing`
    names the other columns. Raises CampaignError if there are no such datasets, and as `record_of`.
    """
    place = plan.place
    done = [c for c in plan.columns if job_states.is_done(place, c.job) and has_part(place, c.job)]
    unfinished = {c.downstream for c in plan.columns if c not in done and not c.is_replicate}
    finished = [column for column in done if column.downstream not in unfinished]
    missing = [
        MissingColumn(column.name, _reason(plan, column))
        for column in plan.columns
        if column not in finished
    ]
    if not finished:
        why = "; ".join(dict.fromkeys(f"{row.column}: {row.reason}" for row in missing))
        raise CampaignError(f"no column of {plan.name} is finished ({why}): run the campaign again")
    is_known = has_part(place, DISTANCES)
    distances = read_part(place, DISTANCES, Distances) if is_known else Distances(None)
    return dataclasses.replace(_joined(plan, finished, distances), missing=missing)


def _reason(plan: Plan, column: Column) -> str:
    """Why a column is missing: a job that it needs failed, or has not run."""
    for job in (PREPARE, column.job):
        if failed := job_states.read_job(plan.place, job).failure:
            return f"{job} {failed.text(': ')}"
    return "its jobs have not all run"


def _joined(plan: Plan, columns: Sequence[Column], distances: Distances) -> Record:
    """The record of these columns."""
    place, dataset, model = plan.place, plan.recipe.dataset, plan.recipe.model
    shared = read_part(place, PREPARE, Preparation)
    parts = {column: read_part(place, column.job, Models) for column in columns}
    diverged = list(dict.fromkeys(chain(*(part.diverged for part in parts.values()))))
    # A mean is over all downstream datasets, so a method is left out on all of them in a setting.
    out = {(training.method, training.setting) for training in diverged}
    for column, part in parts.items():
        kept = [name for name in part.cells if (name, column.setting) not in out]
        parts[column] = select_rows(part, kept)
    if not any(part.evaluations for part in parts.values()):
        first = diverged[0]
        raise CampaignError(
            f"every training of {plan.name} diverged, such as {first.method} with {first.setting} "
            f"on {first.downstream}: lower optimizer.lr, or set train.clip=1"
        )
    downstreams = list(dict.fromkeys(c.downstream for c in columns if not c.is_replicate))
    before = [row for row in shared.before.evaluations if row.downstream in ("", *downstreams)]
    evaluations = [*before, *(row for part in parts.values() for row in part.evaluations)]
    cells: set[str] = set()
    sums: dict[str, str] = {}
    for part in (shared.before, *parts.values()):
        cells.update(*part.cells.values())
        for name, sha256 in part.files.items():
            checked_file(place, name, sha256)
            sums[name] = sha256
    artifacts = sorted({*cells, *(row.path.parent.as_posix() for row in evaluations)})
    makers = Counter[tuple[tuple[str, str], ...]]()
    for name in artifacts:
        if not place.store_root.has(f"{name}/{MARKER}"):
            raise FileNotFoundError(
                f"{place.store / name} is missing: run the campaign again to make it"
            )
        marker = read_marker(place.store_root.below(name))
        makers[tuple(sorted(marker.made_by.items()))] += 1
    train_seconds = {
        name: [part.train_seconds[name] for part in parts.values() if name in part.train_seconds]
        for name in plan.rows
    }
    settings = dict.fromkeys(
        row.setting.without(STEP) for row in of_role(evaluations, TEST) if row.downstream
    )
    record = Record(
        name=plan.name,
        benchmark=dataset.name,
        version=dataset.version,
        sets=list(plan.sets),
        downstreams=downstreams,
        upstream=dataset.upstream,
        methods={name: row.recipe.method.title for name, row in plan.rows.items()},
        settings=_settings(plan, shared, evaluations),
        rows=[_row(name, row) for name, row in plan.rows.items()],
        credits=shared.credits,
        contact_sheet=shared.contact_sheet,
        holdout=dataset.holdout > 0,
        distances=distances.matrix,
        evaluations=evaluations,
        files={row.path.as_posix(): sums[row.path.as_posix()] for row in evaluations},
        extras={
            name: [row for part in parts.values() for row in part.extras.get(name, ())]
            for name in plan.recipe.extras
        },
        sweep=list(settings) if plan.is_sweep else None,
        classes=shared.classes,
        attempts=[a for a in job_states.attempts(job_states.read_jobs(plan)) if a.stage != REPORT],
        artifacts=artifacts,
        made_by=[MadeBy(dict(values), count) for values, count in makers.most_common()],
        makers=dataset.makers,
        train_seconds={name: fmean(of) for name, of in train_seconds.items() if any(of)},
        diverged=diverged,
        limit=dataset.limit,
        evaluate_on=dataset.evaluate_on,
        samples_seen={model.name: model.samples_seen} if model.samples_seen else {},
    )
    if not dataset.thumbnails:
        return record
    from engine.data import thumbnails  # late: it imports what draws the emoji

    tests = of_role(FinishedCampaign(record, place).evaluations, TEST)
    shown = thumbnails.of_changes(_packs(plan, shared), tests)
    return dataclasses.replace(record, thumbnails=shown)


def _packs(plan: Plan, shared: Preparation) -> dict[str, Pack]:
    """The packs of the evaluated datasets."""
    packs = {}
    for name, folder in shared.packs.items():
        packs[name] = pack = Pack.open(Root(plan.place.runs).at(folder))
        if pack.fingerprint != shared.fingerprints[name]:
            raise DamagedFile(
                f"{pack.folder} was encoded again since models were evaluated: run `rib campaign` "
                "again with the same arguments"
            )
    return packs


def _settings(plan: Plan, shared: Preparation, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The settings that the report shows, by heading."""
    recipe = plan.recipe
    model, trained = recipe.model, [row for row in evaluations if row.method != PRE]
    seeds = sorted({row.seed for row in of_role(trained, TEST)})
    replicates = of_role(trained, REPLICATE)
    first, last = seeds[0], seeds[-1]
    is_range = seeds == list(range(first, last + 1))
    several = f"{first} to {last}" if is_range else ", ".join(map(str, seeds))
    twice = ", ".join(dict.fromkeys(f"{row.seed} on {row.downstream}" for row in replicates))
    one = f"{first}; as replicates {twice}" if twice else first
    about = (model.arch, f"{model.image_size} px", model.head.title)
    return {
        "Command": plan.command,
        "Benchmark": f"{recipe.dataset.name}, version {recipe.dataset.version}",
        "Model": f"{model.name} ({', '.join(filter(None, about))})",
        **({"Head": shared.head} if shared.head else {}),
        **({HEAD_PHOTOS: shared.head_photos} if shared.head_photos else {}),
        "Classes": len(shared.classes),
        "Training": (
            f"{recipe.optimizer.name}, lr {recipe.optimizer.lr:g}, {recipe.train.epochs} "
            f"epochs, batch {recipe.train.batch_size} (single methods differ: see their recipes)"
        ),
        "Seed": one if first == last else f"{several}; numbers are means over them",
        "Device": shared.device,
        "Versions": shared.versions,
        "Commit": shared.commit,
        "Data fingerprints": shared.fingerprints,
    }


def _row(name: str, row: CellPlan) -> MethodRow:
    """The training settings of a row."""
    cell = row.recipe
    settings = {
        f"{section}.{key}": value
        for section in ("method", "optimizer", "train")
        for key, value in dataclasses.asdict(getattr(cell, section)).items()
    }
    parts = {f"dataset.{key}": getattr(cell.dataset, key) for key in ("shots", "fraction")}
    trials = list(map(Setting, row.trials))
    return MethodRow(name, {**settings, **parts, "seeds": cell.seeds}, trials)
