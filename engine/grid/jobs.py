"""The jobs of a campaign: what columns share, one column, and the report over all of them."""

from __future__ import annotations

import base64
import dataclasses
import io
import logging
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import recipe
from engine.distances import problems, solve
from engine.evaluation import passes, sample
from engine.evaluation.sample import Sample
from engine.grid import campaign, half_widths, record, workflow
from engine.grid.build import Context
from engine.grid.campaign import Plan
from engine.grid.record import Record, SampleOf
from engine.machine.files import cache_folder
from engine.measures.rows import PRE, Arm, Evaluation
from engine.recipe.request import Request
from engine.recipe.schema import Recipe
from engine.report import tables
from engine.store import cells
from loaders.benchmarks import emoji

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DISTANCE = problems.Options(samples=10_000)


def prepare(plan: Plan, device: torch.device) -> None:
    """What all columns share: packs, the pre-trained model, its features and predictions."""
    context = _context(plan, device)
    places = _places(context.recipe)

    def begin(step: int, what: str = "") -> None:
        workflow.advance(plan.path, "prepare", step, len(places) + 1, what and f"preparing {what}")

    begin(0, context.recipe.model.name)
    context.base  # noqa: B018  # made here
    for step, name in enumerate(places, start=1):
        begin(step, name)
        context.features(context.base, context.sets[name])
        _evaluate(context, {context.base.name: 1.0}, name)
        passes.evaluate(context, [{context.base.name: 1.0}], [name], "holdout")
        context.sets.release(name)
    for name, one in _samples(context).items():
        sample.evaluate_on(context, [{context.base.name: 1.0}], name, one.split, one)
    begin(len(places) + 1)


def column(plan: Plan, downstream: str, device: torch.device) -> None:
    """Train every method on one set and evaluate the bank of models on all sets."""
    started = time.monotonic()
    context = _context(plan, device, downstream)
    entries = []
    work = [(one, method) for one in context.seeded() for method in plan.methods]
    for done, (one, method) in enumerate(work, start=1):
        entries += one.cell(method).entries
        workflow.advance(plan.path, downstream, done, len(work) + 1)
    samples = _samples(context)
    for name in _places(context.recipe):
        split = sample.split_of(context, name)
        mixes = [entry.mix for entry in entries]
        sample.evaluate_on(context, mixes, name, split, samples.get(name))
        context.sets.release(name)
    workflow.advance(plan.path, downstream, len(work) + 1, len(work) + 1)
    log.info("column %s took %.0f s", downstream, time.monotonic() - started)


def finish(plan: Plan, device: torch.device) -> Path:
    """Metrics, tables and the report page from the stored predictions, which a record names."""
    run = record.write(plan.path.parent, _record(plan, device))
    path = tables.write(run, tables.results(run))
    workflow.advance(plan.path, "report", 1, 1)
    return path


def _record(plan: Plan, device: torch.device) -> Record:
    context = _context(plan, device)
    resolved = context.recipe
    samples = _samples(context)
    wholes = {
        name: passes.predicted(context, {context.base.name: 1.0}, name, one.split)
        for name, one in samples.items()
    }
    evaluations = _evaluations(plan, device, samples)
    is_emoji = resolved.dataset.kind == "emoji"
    root = context.store.root
    paths = [*(one.path for one in evaluations), *wholes.values()]
    return Record(
        asked=campaign.asked(plan.name, half_widths.as_asked(plan, resolved))[1],
        name=plan.name,
        sets=list(plan.sets),
        upstream=resolved.dataset.upstream,
        methods=_titles(plan),
        settings=_settings(plan, context),
        credits=emoji.credits() if is_emoji else [],
        contact_sheet=base64.b64encode(_contact_sheet(context)).decode() if is_emoji else "",
        holdout=resolved.dataset.holdout > 0,
        distances=_distances(context),
        samples={
            name: SampleOf(
                str(wholes[name].relative_to(root)),
                one.images,
                sample.seed_of(context, name, one.split),
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
        context = _context(plan, device, downstream)
        model = context.recipe.model.name
        if not evaluations:
            for name in _places(context.recipe):
                path = _predicted(context, {context.base.name: 1.0}, name, samples)
                evaluations.append(Evaluation(model, PRE, "", None, "", name, path))
        for one, method in [(one, m) for one in context.seeded() for m in plan.methods]:
            variant = one.sibling(method).method.variant
            for entry in one.cell(method).entries:
                cell = Arm(model, method, variant, entry.alpha)
                for name in _places(one.recipe):
                    path = _predicted(one, entry.mix, name, samples)
                    evaluations.append(
                        Evaluation(*cell, downstream, name, path, one.recipe.seed, entry.headline)
                    )
    return evaluations


def _titles(plan: Plan) -> dict[str, str]:
    """Method keys and how tables name them."""
    return {m: recipe.load(plan.name, plan.overrides, method=m).method.title for m in plan.methods}


def _context(plan: Plan, device: torch.device, downstream: str | None = None) -> Context:
    request = Request(plan.name, plan.overrides)
    return Context(request, request.recipe(plan.methods[0], downstream), device)


def _places(resolved: Recipe) -> list[str]:
    return [resolved.dataset.upstream, *resolved.dataset.sets]


def _evaluate(context: Context, mix: Mapping[str, float], name: str) -> None:
    passes.evaluate(context, [mix], [name], sample.split_of(context, name))


def _predicted(
    context: Context, mix: Mapping[str, float], name: str, samples: Mapping[str, Sample]
) -> Path:
    return sample.predicted(context, mix, name, sample.split_of(context, name), samples.get(name))


def _samples(context: Context) -> dict[str, Sample]:
    return sample.draw(
        context, {name: sample.split_of(context, name) for name in _places(context.recipe)}
    )


def _distances(context: Context) -> dict[str, Any] | None:
    """Distances between all sets; a grid is reported without if need be."""
    try:
        return solve.distances(context, _places(context.recipe), DISTANCE).plain()
    except ValueError as error:
        log.warning("no distances between the sets: %s", error)
        return None


def _settings(plan: Plan, context: Context) -> dict[str, Any]:
    resolved = context.recipe
    packs = {name: context.sets[name].pack.fingerprint[:12] for name in _places(resolved)}
    return {
        "Command": " ".join(["rib campaign", plan.name, *half_widths.as_asked(plan, resolved)]),
        "Model": f"{resolved.model.name} ({resolved.model.arch}, {resolved.model.image_size} px)",
        "Classes": len(context.sets.classes),
        "Training": (
            f"{resolved.optimizer.name}, lr {resolved.optimizer.lr:g}, {resolved.train.epochs} "
            f"epochs, batch {resolved.train.batch_size} (single methods differ: see their recipes)"
        ),
        "Seed": resolved.seed if plan.seeds == 1 else _seeds(resolved),
        "Device": str(context.device),
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


def _contact_sheet(context: Context) -> bytes:
    dataset = context.recipe.dataset
    artwork = emoji.fetch(cache_folder(), progress=False)
    concepts = artwork.choose(dataset.classes, dataset.seed)
    picked = [concepts[i] for i in np.linspace(0, len(concepts) - 1, 8).astype(int)]
    sheet = emoji.contact_sheet(artwork, [*emoji.UPSTREAM, *dataset.sets], picked, 72)
    png = io.BytesIO()
    sheet.save(png, format="PNG")
    return png.getvalue()
