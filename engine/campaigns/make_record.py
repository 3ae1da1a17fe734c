"""Make the record of a finished campaign from its artefacts in the store."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from engine.campaigns import attempts, job_states, jobs, verify
from engine.campaigns.columns import Column
from engine.campaigns.plan import PREPARE, REPORT, Plan
from engine.campaigns.record import MissingColumn, Record, Row
from engine.cells import snapshots
from engine.data import imagenet, thumbnails
from engine.data.kinds import kind_of
from engine.errors import CampaignError
from engine.evaluation import cka, passes
from engine.machine.programs import NoAnswer, answer
from engine.measures import image_changes, predictions
from engine.measures.rows import PRE, Arm, Evaluation, ModelOnSet
from engine.measures.setting import PLAIN, Setting
from engine.otdd import problems, solve
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store import cells
from engine.store.artifacts import Store, hash_once
from engine.store.cells import Average, Ensemble, Entry
from loaders.files.typed_json import DamagedFile

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DISTANCE = problems.DistanceOptions(samples=10_000)


def record_of(plan: Plan, device: torch.device, columns: Sequence[Column] = ()) -> Record:
    """The record of a campaign, or of the given columns, whose jobs are done.

    Computes only the distances between datasets. Raises FileNotFoundError if an artefact is
    missing, DamagedFile if one was altered.
    """
    all_columns = columns or plan.columns
    twice = [column for column in all_columns if column.is_probe]
    columns = [column for column in all_columns if not column.is_probe]
    downstreams = list(dict.fromkeys(column.downstream for column in columns))
    run, models = _shared(plan, device), list(_models(plan, device, columns))
    of_probe = list(_models(plan, device, twice))
    dataset, root = run.recipe.dataset, run.store.root
    evaluations = [*_before(run), *_evaluations(models)]
    probe, seen = list(_evaluations(of_probe)), list(_seen(run, models, plan.needed))
    files = dict.fromkeys(row.path for row in (*evaluations, *probe, *seen))
    seeds = sorted({row.seed for row in evaluations if row.method != PRE})
    credits, pictures = kind_of(dataset).credits(), {}
    if dataset.thumbnails:
        pictures = thumbnails.of_changes(run.sets, dataset, image_changes.of(evaluations))
    return Record(
        name=plan.name,
        sets=list(plan.sets),
        downstreams=downstreams,
        upstream=dataset.upstream,
        methods={name: row.recipe.method.title for name, row in plan.rows.items()},
        settings=_settings(run, plan, seeds, probe),
        rows=[_row(name, row.recipe) for name, row in plan.rows.items()],
        credits=credits,
        contact_sheet=thumbnails.contact_sheet(run.sets, dataset) if credits else "",
        holdout=dataset.holdout > 0,
        distances=_distances(run),
        evaluations=_below(root, evaluations),
        probe=_below(root, probe),
        files={str(path.relative_to(root)): hash_once(path) for path in files},
        cka=list(_cka(models)) if run.recipe.evaluate.cka else None,
        sweep=list(dict.fromkeys(c.setting for c in columns)) if plan.is_sweep else None,
        classes=imagenet.readable(run.sets.classes),
        thumbnails=pictures,
        attempts=[a for a in attempts.read(plan.place) if a.stage != REPORT],
        artifacts=_artifacts(run, [*models, *of_probe], [*evaluations, *probe, *seen]),
        families=dataset.families,
        seen=_below(root, seen),
        limit=dataset.limit,
    )


def of_finished_columns(plan: Plan, device: torch.device) -> Record:
    """The record of the finished part of a campaign.

    It covers the downstream datasets whose columns are done in every setting. `Record.missing`
    names the other columns. Raises CampaignError if there are no such datasets, and as `record_of`.
    """
    to_do = [column for column in plan.columns if not job_states.is_done(plan.place, column.job)]
    unfinished = {column.downstream for column in to_do if not column.is_probe}
    finished = tuple(c for c in plan.columns if c not in to_do and c.downstream not in unfinished)
    missing = [
        MissingColumn(column.name, _reason(plan, column))
        for column in plan.columns
        if column not in finished
    ]
    if not finished:
        why = "; ".join(dict.fromkeys(f"{row.column}: {row.reason}" for row in missing))
        raise CampaignError(f"no column of {plan.name} is finished ({why}): run the campaign again")
    record = record_of(plan, device, finished)
    return dataclasses.replace(record, missing=missing)


def _reason(plan: Plan, column: Column) -> str:
    """Why a column is missing: a job that it needs failed, or has not run."""
    for job in (PREPARE, column.job):
        if failed := job_states.failure(plan.place, job):
            return f"{job} {failed.text(': ')}"
    return "its jobs have not all run"


def _artifacts(
    run: Run, models: Sequence[GridModel], evaluations: Sequence[Evaluation]
) -> list[str]:
    """Folders of the cells and predictions from which the campaign's results are made.

    Snapshots are left out, since their weights are removed after evaluation.
    """
    # An average is a cell too, although it has no weights.
    folders = {row.path.parent for row in evaluations} | {model.cell for model in models}
    names = {name for row in evaluations for name in predictions.mix_of(row.path)}
    parents = [cells.find(run.store, name) for name in names]
    folders |= {
        cell.artifact.folder for cell in parents if cell and cell.artifact.kind != snapshots.KIND
    }
    return sorted(folder.relative_to(run.store.root).as_posix() for folder in folders)


def _shared(plan: Plan, device: torch.device) -> Run:
    """The run with the artefacts that all columns share. Raises FileNotFoundError without packs."""
    builder = jobs.builders(plan, device, plan.columns[0], finds_only=True)[0]
    encoded = verify.encoded(builder.recipe, builder.recipe.dataset.evaluated_sets)
    if missing := [name for name in builder.recipe.dataset.evaluated_sets if name not in encoded]:
        raise FileNotFoundError(
            f"the packs of {', '.join(missing)} are missing: run the campaign again to encode them"
        )
    return builder.run


def _before(run: Run) -> Iterator[Evaluation]:
    """The pretrained model of a run on every dataset."""
    for name in run.recipe.dataset.evaluated_sets:
        path = _predicted(run, {run.base.name: 1.0}, name)
        yield Evaluation(run.recipe.model.name, PRE, "", None, PLAIN, "", name, path)


def _evaluations(models: Sequence[GridModel]) -> Iterator[Evaluation]:
    """Every model on every dataset."""
    for model in models:
        recipe, entry = model.run.recipe, model.entry
        for name in recipe.dataset.evaluated_sets:
            path = _predicted(model.run, entry.mix, name)
            of_row = recipe.seed, entry.headline, model.trains
            yield Evaluation(*model.arm, recipe.downstream, name, path, *of_row)


def _seen(run: Run, models: Sequence[GridModel], needed: Sequence[str]) -> Iterator[Evaluation]:
    """The evaluations for `Record.seen`: images not held out, of datasets that share photos."""
    for name in run.recipe.dataset.evaluated_sets:
        if jobs.is_judged_seen(run, name, needed):
            path = passes.predicted(run, {run.base.name: 1.0}, name, "train")
            yield Evaluation(run.recipe.model.name, PRE, "", None, PLAIN, "", name, path)
    for model in models:
        recipe = model.run.recipe
        for name in recipe.dataset.evaluated_sets if model.entry.headline else ():
            if jobs.is_judged_seen(run, name, [recipe.downstream]):
                path = passes.predicted(model.run, model.entry.mix, name, "train")
                of_row = recipe.seed, True, model.trains
                yield Evaluation(*model.arm, recipe.downstream, name, path, *of_row)


def _below(root: Path, rows: Sequence[Evaluation]) -> list[Evaluation]:
    return [dataclasses.replace(row, path=row.path.relative_to(root)) for row in rows]


class GridModel(NamedTuple):
    """A model of the grid.

    run: the run that made it. arm: its method configuration in tables. entry: its entry in its
    cell. cell: the cell's folder. trains: True if its method trains, False if it averages or merges
    cells.
    """

    run: Run
    arm: Arm
    entry: Entry
    cell: Path
    trains: bool


def _models(plan: Plan, device: torch.device, columns: Sequence[Column]) -> Iterator[GridModel]:
    """Every model of these columns. All must be in the store."""
    for column, rows in jobs.finished(plan, device, columns):
        for number, row in enumerate(rows):
            place, recipe = number % len(plan.rows), row.recipe
            run, method = rows[number - place].run, plan.methods[place]  # one run per seed
            built = row.build().artifact
            trains = built.has(cells.HISTORY)  # without running a user's method file
            for entry in row.entries():
                setting = Setting({**column.setting, **entry.setting})
                arm = Arm(recipe.model.name, method, recipe.method.variant, entry.alpha, setting)
                yield GridModel(run, arm, entry, built.folder, trains)


def _cka(models: Sequence[GridModel]) -> Iterator[dict[str, Any]]:
    """CKA by block of every headline model on every dataset, except ensembles, which have no
    features."""
    for run, arm, entry, *_ in models:
        mix = entry.mix
        if not entry.headline or isinstance(mix, Ensemble):
            continue
        for name in run.recipe.dataset.evaluated_sets:
            cell = ModelOnSet(*arm, run.recipe.downstream, name)
            blocks = cka.stored(run, mix, name)
            yield {**dataclasses.asdict(cell), "seed": run.recipe.seed, "blocks": blocks}


def _predicted(run: Run, average: Average, name: str) -> Path:
    return passes.predicted(run, average, name, run.recipe.split_of(name))


def _distances(run: Run) -> dict[str, Any] | None:
    """Distances between all datasets, or None if they cannot be computed."""
    try:
        store = Store(run.store.root)
        return solve.distances(run, run.recipe.dataset.evaluated_sets, DISTANCE, store).plain()
    except DamagedFile:
        raise
    except ValueError as error:
        log.warning("no distances between the datasets: %s", error)
        return None


def _settings(
    run: Run, plan: Plan, seeds: Sequence[int], probe: Sequence[Evaluation]
) -> dict[str, Any]:
    """The settings that the report shows, by heading."""
    resolved = run.recipe
    model, first, last = resolved.model, seeds[0], seeds[-1]
    is_range = list(seeds) == list(range(first, last + 1))
    several = f"{first} to {last}" if is_range else ", ".join(map(str, seeds))
    twice = ", ".join(dict.fromkeys(f"{row.seed} on {row.downstream}" for row in probe))
    one = f"{first}; as a probe {twice}" if twice else first
    about = (model.arch, f"{model.image_size} px", model.head.title)
    return {
        "Command": plan.command,
        "Model": f"{model.name} ({', '.join(filter(None, about))})",
        **({"Head": _head(run)} if resolved.head_set else {}),
        "Classes": len(run.sets.classes),
        "Training": (
            f"{resolved.optimizer.name}, lr {resolved.optimizer.lr:g}, {resolved.train.epochs} "
            f"epochs, batch {resolved.train.batch_size} (single methods differ: see their recipes)"
        ),
        "Seed": one if first == last else f"{several}; numbers are means over them",
        "Device": str(run.device),
        "Versions": cells.versions(),
        "Commit": _commit(),
        "Data fingerprints": {name: run.sets[name].pack.fingerprint for name in plan.needed},
    }


def _row(name: str, cell: Recipe) -> Row:
    """The training settings of a row."""
    settings = {
        f"{section}.{key}": value
        for section in ("method", "optimizer", "train")
        for key, value in dataclasses.asdict(getattr(cell, section)).items()
    }
    parts = {f"dataset.{key}": getattr(cell.dataset, key) for key in ("shots", "portion")}
    return Row(name, {**settings, **parts, "seeds": cell.seeds})


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
