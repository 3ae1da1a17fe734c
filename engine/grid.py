"""The jobs of a campaign: what columns share, one column, and the report over all of them."""

from __future__ import annotations

import io
import logging
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import campaign, cells, evaluate, metrics, outcome, recipe, report, table
from engine.artifacts import write_atomic
from engine.campaign import Plan
from engine.context import Context, Request, cache_folder
from engine.metrics import PRE, Evaluation, Summary
from engine.schema import Recipe
from loaders import emoji

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def prepare(plan: Plan, device: torch.device) -> None:
    """What all columns share: packs, the pre-trained model, its features and predictions."""
    context = _context(plan, device)
    for name in _places(context.recipe):
        context.features(context.base, context.sets[name])
        _evaluate(context, {context.base.name: 1.0}, name)
        evaluate.evaluate(context, [{context.base.name: 1.0}], [name], "holdout")
        context.sets.release(name)
    campaign.advance(plan.path, "prepare", 1, 1)


def column(plan: Plan, downstream: str, device: torch.device) -> None:
    """Train every method on one set and evaluate the bank of models on all sets."""
    started = time.monotonic()
    context = _context(plan, device, downstream)
    entries = []
    for done, method in enumerate(plan.methods, start=1):
        entries += context.cell(method).entries
        campaign.advance(plan.path, downstream, done, len(plan.methods) + 1)
    for name in _places(context.recipe):
        split = outcome.split_of(context, name)
        evaluate.evaluate(context, [entry.mix for entry in entries], [name], split)
    campaign.advance(plan.path, downstream, len(plan.methods) + 1, len(plan.methods) + 1)
    log.info("column %s took %.0f s", downstream, time.monotonic() - started)


def finish(plan: Plan, device: torch.device) -> Path:
    """Metrics, tables and the report page from the stored predictions."""
    context = _context(plan, device)
    summary = summarise(plan, device)
    resolved = context.recipe
    folder = campaign.report_page(plan).parent
    metrics.write_csv(folder, summary)
    is_emoji = resolved.dataset.kind == "emoji"
    page = report.write(
        folder,
        title=f"{plan.name}: what fine-tuning does to robustness",
        accuracy=summary.accuracy,
        mri=summary.mri,
        sets=plan.sets,
        upstream=resolved.dataset.upstream,
        methods=titles(plan),
        settings=_settings(plan, context),
        credits=emoji.credits() if is_emoji else (),
        contact_sheet=_contact_sheet(context) if is_emoji else None,
        published=recipe.published(),
        holdout=resolved.dataset.holdout > 0,
        notes=summary.missing,
    )
    text = table_of(plan, resolved, summary)
    write_atomic(folder / "table.txt", (text + "\n").encode())
    write_atomic(folder / campaign.STAMP, plan.path.parent.name.encode())
    campaign.advance(plan.path, "report", 1, 1)
    return page


def summarise(plan: Plan, device: torch.device) -> Summary:
    """Accuracies and mRI of everything a plan evaluated."""
    evaluations: list[Evaluation] = []
    for downstream in plan.sets:
        context = _context(plan, device, downstream)
        model = context.recipe.model.name
        if not evaluations:
            for name in _places(context.recipe):
                path = _predicted(context, {context.base.name: 1.0}, name)
                evaluations.append(Evaluation(model, PRE, "", None, "", name, path))
        for method in plan.methods:
            variant = context.sibling(method).method.variant
            for entry in context.cell(method).entries:
                for name in _places(context.recipe):
                    path = _predicted(context, entry.mix, name)
                    evaluations.append(
                        Evaluation(model, method, variant, entry.alpha, downstream, name, path)
                    )
    return metrics.summarise(evaluations, plan.sets)


def titles(plan: Plan) -> dict[str, str]:
    """Method keys and how tables name them."""
    return {m: recipe.load(plan.name, plan.overrides, method=m).method.title for m in plan.methods}


def table_of(plan: Plan, resolved: Recipe, summary: Summary) -> str:
    """The table a campaign ends with."""
    return table.table(
        summary.accuracy,
        summary.mri,
        sets=plan.sets,
        upstream=resolved.dataset.upstream,
        methods=titles(plan),
        notes=summary.missing,
    )


def _context(plan: Plan, device: torch.device, downstream: str | None = None) -> Context:
    request = Request(plan.name, plan.overrides)
    return Context(request, request.recipe(plan.methods[0], downstream), device)


def _places(resolved: Recipe) -> list[str]:
    return [resolved.dataset.upstream, *resolved.dataset.sets]


def _evaluate(context: Context, mix: Mapping[str, float], name: str) -> None:
    evaluate.evaluate(context, [mix], [name], outcome.split_of(context, name))


def _predicted(context: Context, mix: Mapping[str, float], name: str) -> Path:
    return evaluate.predicted(context, mix, name, outcome.split_of(context, name))


def _settings(plan: Plan, context: Context) -> dict[str, Any]:
    resolved = context.recipe
    packs = {name: context.sets[name].pack.fingerprint[:12] for name in _places(resolved)}
    return {
        "Command": " ".join(["rib campaign", plan.name, *plan.overrides]),
        "Model": f"{resolved.model.name} ({resolved.model.arch}, {resolved.model.image_size} px)",
        "Classes": len(context.sets.classes),
        "Training": (
            f"{resolved.optimizer.name}, lr {resolved.optimizer.lr:g}, {resolved.train.epochs} "
            f"epochs, batch {resolved.train.batch_size} (single methods differ: see their recipes)"
        ),
        "Seed": resolved.seed,
        "Device": str(context.device),
        "Versions": ", ".join(f"{k} {v}" for k, v in cells.versions().items()),
        "Commit": _commit(),
        "Data fingerprints": ", ".join(f"{k} {v}" for k, v in packs.items()),
    }


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
