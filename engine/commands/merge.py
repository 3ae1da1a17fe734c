"""`rib merge`: your own checkpoints as one model, by the methods that campaigns merge with."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from engine.commands import export, refuse_overwriting
from engine.machine import first_line


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("merge", help="your own checkpoints as one model, for timm")
    parser.add_argument(
        "method",
        help="soup, greedy_soup, wise_ft, ties, task_arithmetic, lines, model_stock, mono_soup, or "
        "the YAML file of a merge of yours",
    )
    parser.add_argument(
        "models", nargs="+", metavar="FILE", help="checkpoints, or folders of cells or of timm"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value",
        help="as in a recipe, such as method.alpha=0.3",
    )  # fmt: skip
    parser.add_argument(
        "--base", type=Path, metavar="FILE",
        help="the pre-trained model that all started from; soups average it too",
    )  # fmt: skip
    parser.add_argument(
        "--holdout", type=Path, metavar="FOLDER",
        help="<class>/<image>, or a pack: images on which a greedy soup is chosen",
    )  # fmt: skip
    parser.add_argument(
        "--arch", help="of all models: timm's name; by default what lies beside them says"
    )
    parser.add_argument("--classes", type=Path, help="the head's class names, a line each")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the model")
    parser.add_argument("--force", action="store_true", help="write over the model in DIR")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    refuse_overwriting(arguments.out, arguments.force, is_folder=True)
    base, holdout = arguments.base, arguments.holdout
    models = [Path(model) for model in arguments.models]
    for place in (*models, *filter(None, (base, holdout))):  # before imports that take seconds
        if not place.exists():
            raise ValueError(f"there is no {place}")
    first_line.show(f"reading {', '.join(map(str, models))}")
    from engine.data import descriptions
    from engine.evaluation import user_merges
    from engine.machine import ranks

    merged = user_merges.merged(
        arguments.method,
        models,
        base,
        arguments.overrides,
        holdout=holdout,
        arch=arguments.arch,
        classes=descriptions.listed(arguments.classes) if arguments.classes else None,
    )
    if ranks.rank() == 0:
        export.write(merged, arguments.out)
    ranks.stop()
