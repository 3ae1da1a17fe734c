"""`rib verify`: compare a pretrained model's accuracy with its published accuracies."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from engine.campaigns import verify
from engine.campaigns.verify import AccuracyCheck
from engine.cells.build import Builder
from engine.cells.plan_cell import plan_cell
from engine.data.kinds import kind_of
from engine.data.sets import Sets
from engine.machine import ranks
from engine.machine.files import cache_folder
from engine.recipe import overrides
from engine.report import console
from engine.store.use import in_use


def run(arguments: argparse.Namespace) -> int:
    given = [*overrides.of_mapping({"model": arguments.model}), *arguments.overrides]
    cell = plan_cell(arguments.campaign, given)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = cell.recipe
    device = ranks.start(recipe.device)
    # The upstream set need not be encoded. If it is, campaigns find these predictions.
    lacks_upstream = not verify.encoded(recipe, [recipe.dataset.head_classes])
    brings_head = lacks_upstream and not recipe.model.head.fit
    upstream = kind_of(recipe.dataset, recipe.dataset.head_classes)
    classes = upstream.head_classes() if brings_head else ()
    sets = Sets(recipe, device, cache_folder(), given_classes=classes)
    builder = Builder(cell, device, sets)
    with in_use(builder.store):
        checks = verify.verify(builder, arguments.tolerance)
    print(text(recipe.model.name, checks))
    if any(check.timm is not None for check in checks):
        other = verify.differences(recipe.model)
        print(
            f"timm's accuracies are for other preprocessing and not compared: {other}"
            if other
            else "preprocessing is the same as for timm's accuracies"
        )
    ranks.stop()
    return int(any(check.differs for check in checks))


def text(model: str, checks: Sequence[AccuracyCheck]) -> str:
    """The checks as a table, followed by the datasets that are incomplete."""
    rows, lacks = [], []
    has_timm = any(check.timm is not None for check in checks)
    for check in checks:
        name = check.name if check.split == "all" else f"{check.name} (held-out)"
        measured = [""] * 3
        if check.measured is not None:
            measured = [f"{check.images:,}", f"{check.measured:.1f}", f"±{check.half_width:.1f}"]
        row = [name, *measured, *_beside(check.measured, check.published)]
        row += _beside(check.measured, check.timm) if has_timm else []
        rows.append([*row, _remark(check)])
        if check.lacks:
            lacks.append(f"{check.name} is incomplete: {check.lacks}")
    heads = ["set", "images", "measured", "95%", "published", "difference"]
    heads += ["timm's", "difference"] if has_timm else []
    title = f"{model}: top-1 before fine-tuning, in percent"
    return "\n".join([console.text(title, [*heads, ""], rows), *lacks])


def _beside(measured: float | None, published: float | None) -> list[str]:
    """A published accuracy and the difference from it; empty if either is unknown."""
    if measured is None or published is None:
        return ["", ""]
    return [f"{published:.1f}", f"{measured - published:+.1f}"]


def _remark(check: AccuracyCheck) -> str:
    """Which published accuracy a measured one agrees with, if any."""
    if check.differs:
        return f"DIFFERS by more than {check.allowed:.1f}"
    if len(set(check.agrees.values())) > 1:
        return f"as {next(name for name, agrees in check.agrees.items() if agrees)}"
    return "" if check.agrees else check.why_not
