"""`rib merge`: merge your checkpoints into one model, with the methods of campaigns."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from engine.commands import export, refuse_overwriting
from engine.machine import first_line


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("merge", help="merge checkpoints into one model for timm")
    parser.add_argument(
        "method",
        help="soup, greedy_soup, wise_ft, ties, task_arithmetic, lines, model_stock, mono_soup, or "
        "your YAML file",
    )
    parser.add_argument(
        "models", nargs="+", metavar="FILE", help="checkpoints, timm folders or cells"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value",
        help="recipe override, such as method.alpha=0.3",
    )  # fmt: skip
    parser.add_argument(
        "--base", type=Path, metavar="FILE",
        help="pretrained model of all checkpoints; soups also average it (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--holdout", type=Path, metavar="FOLDER",
        help="images that choose a greedy soup: folder of <class>/<image>, or a pack",
    )  # fmt: skip
    parser.add_argument(
        "--arch", help="architecture of all models (default: from files next to them)"
    )
    parser.add_argument(
        "--classes", type=Path, help="class names in the order of the head's outputs, one per line"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the model"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the model in DIR")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    refuse_overwriting(arguments.out, arguments.force, is_folder=True)
    base, holdout = arguments.base, arguments.holdout
    models = [Path(model) for model in arguments.models]
    for place in (*models, *filter(None, (base, holdout))):  # before the slow imports
        if not place.exists():
            raise ValueError(f"{place} does not exist")
    first_line.show(f"reading {', '.join(map(str, models))}")
    from engine.exchange import user_merges
    from engine.exchange.model_card import card_of_merge
    from engine.machine import ranks
    from engine.model_files.descriptions import read_classes

    merged = user_merges.merged(
        arguments.method,
        models,
        base,
        arguments.overrides,
        holdout=holdout,
        arch=arguments.arch,
        classes=read_classes(arguments.classes) if arguments.classes else None,
    )
    if ranks.rank() == 0:
        export.write(merged, arguments.out, card_of_merge(merged))
    ranks.stop()
