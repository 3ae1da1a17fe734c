"""`rib verify`: a pre-trained model's accuracy beside what was published for it."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.machine import first_line

if TYPE_CHECKING:
    from engine.grid.verify import Check


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "verify", help="compare a pre-trained model with its published accuracies"
    )
    parser.add_argument("model", help="a model of recipes/models, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    parser.add_argument(
        "--campaign", default="imagenet_rib", help="its data sets are used; default: %(default)s"
    )
    parser.add_argument("--tolerance", type=float, default=0.3, help="points; default: 0.3")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from engine.grid import cell_plan
    from engine.recipe import overrides

    given = [*overrides.of_mapping({"model": arguments.model}), *arguments.overrides]
    cell = cell_plan.resolve(arguments.campaign, given, run_users=False)
    first_line.show(f"reading the model {arguments.model}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from engine.data.kinds import kind_of
    from engine.data.sets import Sets
    from engine.grid import verify
    from engine.grid.build import Builder
    from engine.machine import ranks
    from engine.machine.files import cache_folder

    recipe = cell.recipe
    device = ranks.start(recipe.device)
    # The upstream set need not be encoded. If it is, campaigns find these predictions.
    lacks_upstream = not verify.encoded(recipe, [recipe.dataset.upstream])
    brings_head = lacks_upstream and not recipe.model.head.fit
    classes = kind_of(recipe.dataset).head_classes() if brings_head else ()
    sets = Sets(recipe, device, cache_folder(), given_classes=classes)
    checks = verify.verify(Builder(cell, device, sets), arguments.tolerance)
    print(text(recipe.model.name, checks))
    ranks.stop()
    return int(any(check.differs for check in checks))


def text(model: str, checks: Sequence[Check]) -> str:
    """The checks as a table, and below it what sets lack."""
    from engine.report import console

    rows, lacks = [], []
    for check in checks:
        name = check.name if check.split == "all" else f"{check.name} (hold-out)"
        row = [name, *[""] * 5, check.why_not]
        if check.measured is not None:
            row[1:4] = f"{check.images:,}", f"{check.measured:.1f}", f"±{check.half_width:.1f}"
            if check.published is not None:
                row[4:6] = f"{check.published:.1f}", f"{check.measured - check.published:+.1f}"
            if check.differs:
                row[6] = f"DIFFERS by more than {check.allowed:.1f}"
        rows.append(row)
        if check.lacks:
            lacks.append(f"{check.name} is only a part: {check.lacks}")
    heads = ["set", "images", "measured", "95%", "published", "difference", ""]
    title = f"{model}: top-1 before fine-tuning, in percent"
    return "\n".join([console.text(title, heads, rows), *lacks])
