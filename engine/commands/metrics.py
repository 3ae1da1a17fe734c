"""`rib metrics`: a campaign's tables and report again, from its stored predictions alone.

Neither torch nor a pack, a weights file or a source image is opened.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from engine.commands.campaign import show
from engine.errors import CampaignError
from engine.grid import workflow
from engine.machine import first_line


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("metrics", help="recompute a campaign's tables and report")
    parser.add_argument("name")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--intervals", action="store_true", help="RI with 95%% intervals")
    parser.add_argument(
        "--behaviour", action="store_true", help="answers that stayed, were lost or gained"
    )
    parser.add_argument(
        "--compare",
        nargs="?",
        const="",
        metavar="METHOD",
        help="paired tests of every method against METHOD, by default the best",
    )
    add_models_csv(parser)
    parser.set_defaults(run=run)


def add_models_csv(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models-csv", type=Path, metavar="FILE",
        help="fit the trend lines of effective robustness over these models: columns model, set, "
        "accuracy (percent), with rows for the upstream set",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    from engine import recipe

    grids = recipe.each_model(arguments.name, arguments.overrides)
    recipe.methods_of(arguments.name, grids[0])  # a wrong name shows before imports
    first_line.show(f"reading the predictions of {arguments.name}")
    for words in grids:
        _run(arguments, words)


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    from engine.grid import record
    from engine.report import finish, terminal
    from engine.report.results import of_campaign

    campaign = record.find(arguments.name, words)
    methods = campaign.record.methods
    if arguments.compare and arguments.compare not in methods:
        raise CampaignError(
            f"{arguments.name} has no method {arguments.compare!r}; it has {', '.join(methods)}"
        )
    with workflow.locked(campaign.report.parent):
        results = of_campaign(campaign, arguments.models_csv)
        path = finish.write(campaign, results)
    show(path)
    for model in results.models:
        if arguments.intervals:
            print(f"\n{terminal.intervals(results, model)}")
        if arguments.compare is not None:
            print(f"\n{terminal.comparisons(results, model, arguments.compare or None)}")
        if arguments.behaviour:
            print(f"\n{terminal.behaviour(results, model)}")
