"""`rib metrics`: a campaign's tables and report again, from its stored predictions."""

from __future__ import annotations

import argparse
import os

from engine import campaign, quiet
from engine.commands.campaign import show
from engine.errors import CampaignError


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("metrics", help="recompute a campaign's tables and report")
    parser.add_argument("name")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    quiet.libraries()
    from engine import grid, ranks

    plan = campaign.plan(arguments.name, arguments.overrides, os.cpu_count() or 1)
    missing = campaign.columns_missing(plan)
    if missing:
        raise CampaignError(f"{plan.name} lacks {', '.join(missing)}; run `rib campaign` with it")
    with campaign.locked(plan.folder):
        grid.finish(plan, ranks.pick_device("auto"))
    show(plan)
