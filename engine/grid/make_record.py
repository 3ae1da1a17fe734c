"""The record of a finished campaign, made from the store, which must hold all of it."""

from __future__ import annotations

import base64
import dataclasses
import io
import logging
import subprocess
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import recipe
from engine.evaluation import passes, sample
from engine.evaluation.sample import Sample
from engine.grid import campaign, half_widths
from engine.grid.campaign import Plan
from engine.grid.jobs import builder_of
from engine.grid.record import Record, StoredSample
from engine.machine.files import cache_folder
from engine.measures.rows import PRE, Arm, Evaluation
from engine.run import Run
from engine.store import cells
from engine.store.cells import Mix
from engine.transport import problems, solve
from loaders.benchmarks import emoji
from loaders.files import file_hash

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DISTANCE = problems.Options(samples=10_000)


def record_of(plan: Plan, device: torch.device) -> Record:
    """The record of a campaign whose jobs are done."""
    run = builder_of(plan, device).run
    dataset, root = run.recipe.dataset, run.store.root
    samples = sample.draw_all(run)
    evaluations = list(_evaluations(plan, device, samples))
    files = dict.fromkeys(row.path for row in evaluations)
    stored = {}
    for name, drawn in samples.items():
        path = passes.predicted(run, {run.base.name: 1.0}, name, drawn.split)
        files[path] = None
        seed = sample.seed_of(run, name, drawn.split)
        stored[name] = StoredSample(str(path.relative_to(root)), drawn.images, seed)
    words = half_widths.users_words(plan, run.recipe)
    is_emoji = dataset.kind == "emoji"
    return Record(
        asked=campaign.identify(plan.name, words)[1],
        name=plan.name,
        sets=list(plan.sets),
        downstreams=plan.downstreams,
        upstream=dataset.upstream,
        methods={
            method: recipe.load(plan.name, plan.overrides, method=method).method.title
            for method in plan.methods
        },
        settings=_settings(run, " ".join(["rib campaign", plan.name, *words])),
        credits=emoji.credits() if is_emoji else [],
        contact_sheet=base64.b64encode(_contact_sheet(run)).decode() if is_emoji else "",
        holdout=dataset.holdout > 0,
        distances=_distances(run),
        samples=stored,
        sequential=run.recipe.evaluate.half_width is not None,
        evaluations=[
            dataclasses.replace(row, path=row.path.relative_to(root)) for row in evaluations
        ],
        files={str(path.relative_to(root)): file_hash(path) for path in files},
    )


def _evaluations(
    plan: Plan, device: torch.device, samples: Mapping[str, Sample]
) -> Iterator[Evaluation]:
    """The pre-trained model on every set, then every model of every column on every set."""
    run = builder_of(plan, device).run
    model, names = run.recipe.model.name, run.recipe.dataset.places
    for name in names:
        path = _predicted(run, {run.base.name: 1.0}, name, samples)
        yield Evaluation(model, PRE, "", None, "", "", name, path)
    for column in plan.columns:
        builder = builder_of(plan, device, column)
        for seeded, method in product(builder.seeded(), plan.methods):
            row = seeded.row(method)
            variant, seed = row.recipe.method.variant, row.recipe.seed
            for entry, name in product(row.build().entries, names):
                setting = ",".join(filter(None, (column.setting, entry.setting)))
                arm = Arm(model, method, variant, entry.alpha, setting)
                path = _predicted(seeded.run, entry.mix, name, samples)
                yield Evaluation(*arm, column.downstream, name, path, seed, entry.headline)


def _predicted(run: Run, mix: Mix, name: str, samples: Mapping[str, Sample]) -> Path:
    split = sample.split_of(run.recipe, name)
    return sample.predicted(run, mix, name, split, samples.get(name))


def _distances(run: Run) -> dict[str, Any] | None:
    """Distances between all sets. A report does without them where they cannot be computed."""
    try:
        return solve.distances(run, run.recipe.dataset.places, DISTANCE).plain()
    except ValueError as error:
        log.warning("no distances between the sets: %s", error)
        return None


def _settings(run: Run, command: str) -> dict[str, Any]:
    """What the page shows of the settings, by heading."""
    resolved = run.recipe
    model, first, last = resolved.model, resolved.seed, resolved.seed + resolved.seeds - 1
    packs = {name: run.sets[name].pack.fingerprint[:12] for name in resolved.dataset.places}
    return {
        "Command": command,
        "Model": f"{model.name} ({model.arch}, {model.image_size} px)",
        "Classes": len(run.sets.classes),
        "Training": (
            f"{resolved.optimizer.name}, lr {resolved.optimizer.lr:g}, {resolved.train.epochs} "
            f"epochs, batch {resolved.train.batch_size} (single methods differ: see their recipes)"
        ),
        "Seed": first if first == last else f"{first} to {last}; numbers are means over them",
        "Device": str(run.device),
        "Versions": ", ".join(f"{k} {v}" for k, v in cells.versions().items()),
        "Commit": _commit(),
        "Data fingerprints": ", ".join(f"{k} {v}" for k, v in packs.items()),
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _contact_sheet(run: Run) -> bytes:
    """A PNG of some concepts in every style."""
    dataset = run.recipe.dataset
    artwork = emoji.fetch(cache_folder(), progress=False)
    concepts = artwork.choose(dataset.classes, dataset.seed)
    picked = [concepts[i] for i in np.linspace(0, len(concepts) - 1, 8).astype(int)]
    sheet = emoji.contact_sheet(artwork, [*emoji.UPSTREAM, *dataset.sets], picked, 72)
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    return png.getvalue()
