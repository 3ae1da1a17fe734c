"""What a finished campaign leaves for its report: made from the store, which must hold it all."""

from __future__ import annotations

import base64
import dataclasses
import io
import logging
import subprocess
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import recipe
from engine.distances import problems, solve
from engine.evaluation import passes, sample
from engine.evaluation.sample import Sample
from engine.grid import campaign, half_widths, record
from engine.grid.campaign import Plan
from engine.grid.jobs import builder_of
from engine.grid.record import Record, SampleOf
from engine.machine.files import cache_folder
from engine.measures.rows import PRE, Arm, Evaluation
from engine.recipe.schema import Recipe
from engine.run import Run
from engine.store import cells
from engine.store.cells import Mix
from loaders.benchmarks import emoji

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DISTANCE = problems.Options(samples=10_000)


def record_of(plan: Plan, device: torch.device) -> Record:
    """All that a report tells of a campaign whose jobs are done."""
    run = builder_of(plan, device).run
    resolved = run.recipe
    samples = sample.draw_all(run)
    wholes = {
        name: passes.predicted(run, {run.base.name: 1.0}, name, one.split)
        for name, one in samples.items()
    }
    evaluations = _evaluations(plan, device, samples)
    is_emoji = resolved.dataset.kind == "emoji"
    root = run.store.root
    paths = [*(one.path for one in evaluations), *wholes.values()]
    return Record(
        asked=campaign.asked(plan.name, half_widths.as_asked(plan, resolved))[1],
        name=plan.name,
        sets=list(plan.sets),
        upstream=resolved.dataset.upstream,
        methods=_titles(plan),
        settings=_settings(plan, run),
        credits=emoji.credits() if is_emoji else [],
        contact_sheet=base64.b64encode(_contact_sheet(run)).decode() if is_emoji else "",
        holdout=resolved.dataset.holdout > 0,
        distances=_distances(run),
        samples={
            name: SampleOf(
                str(wholes[name].relative_to(root)),
                one.images,
                sample.seed_of(run, name, one.split),
            )
            for name, one in samples.items()
        },
        sequential=resolved.evaluate.half_width is not None,
        evaluations=[
            dataclasses.replace(one, path=one.path.relative_to(root)) for one in evaluations
        ],
        files=record.hashes(paths, root),
    )


def _evaluations(
    plan: Plan, device: torch.device, samples: Mapping[str, Sample]
) -> list[Evaluation]:
    evaluations: list[Evaluation] = []
    for downstream in plan.sets:
        builder = builder_of(plan, device, downstream)
        run, model = builder.run, builder.recipe.model.name
        names = run.recipe.dataset.places
        if not evaluations:
            for name in names:
                path = _predicted(run, {run.base.name: 1.0}, name, samples)
                evaluations.append(Evaluation(model, PRE, "", None, "", name, path))
        for seeded, method in product(builder.seeded(), plan.methods):
            variant, seed = seeded.sibling(method).method.variant, seeded.recipe.seed
            for entry in seeded.cell(method).entries:
                arm = Arm(model, method, variant, entry.alpha)
                for name in names:
                    path = _predicted(seeded.run, entry.mix, name, samples)
                    evaluations.append(
                        Evaluation(*arm, downstream, name, path, seed, entry.headline)
                    )
    return evaluations


def _titles(plan: Plan) -> dict[str, str]:
    """Method keys and how tables name them."""
    return {m: recipe.load(plan.name, plan.overrides, method=m).method.title for m in plan.methods}


def _predicted(run: Run, mix: Mix, name: str, samples: Mapping[str, Sample]) -> Path:
    split = sample.split_of(run.recipe, name)
    return sample.predicted(run, mix, name, split, samples.get(name))


def _distances(run: Run) -> dict[str, Any] | None:
    """Distances between all sets; a grid is reported without if need be."""
    try:
        return solve.distances(run, run.recipe.dataset.places, DISTANCE).plain()
    except ValueError as error:
        log.warning("no distances between the sets: %s", error)
        return None


def _settings(plan: Plan, run: Run) -> dict[str, Any]:
    resolved = run.recipe
    packs = {name: run.sets[name].pack.fingerprint[:12] for name in resolved.dataset.places}
    return {
        "Command": " ".join(["rib campaign", plan.name, *half_widths.as_asked(plan, resolved)]),
        "Model": f"{resolved.model.name} ({resolved.model.arch}, {resolved.model.image_size} px)",
        "Classes": len(run.sets.classes),
        "Training": (
            f"{resolved.optimizer.name}, lr {resolved.optimizer.lr:g}, {resolved.train.epochs} "
            f"epochs, batch {resolved.train.batch_size} (single methods differ: see their recipes)"
        ),
        "Seed": resolved.seed if plan.seeds == 1 else _seeds(resolved),
        "Device": str(run.device),
        "Versions": ", ".join(f"{k} {v}" for k, v in cells.versions().items()),
        "Commit": _commit(),
        "Data fingerprints": ", ".join(f"{k} {v}" for k, v in packs.items()),
    }


def _seeds(resolved: Recipe) -> str:
    return f"{resolved.seed} to {resolved.seed + resolved.seeds - 1}; numbers are means over them"


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _contact_sheet(run: Run) -> bytes:
    dataset = run.recipe.dataset
    artwork = emoji.fetch(cache_folder(), progress=False)
    concepts = artwork.choose(dataset.classes, dataset.seed)
    picked = [concepts[i] for i in np.linspace(0, len(concepts) - 1, 8).astype(int)]
    sheet = emoji.contact_sheet(artwork, [*emoji.UPSTREAM, *dataset.sets], picked, 72)
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    return png.getvalue()
