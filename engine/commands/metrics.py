"""`rib metrics`: a campaign's tables and report again, from its stored predictions."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from engine import campaign
from engine.commands.campaign import show
from engine.errors import CampaignError
from engine.machine import quiet

if TYPE_CHECKING:
    from engine.grid import Results


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("metrics", help="recompute a campaign's tables and report")
    parser.add_argument("name")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--intervals", action="store_true", help="RI with 95%% intervals")
    parser.add_argument("--behaviour", action="store_true", help="answers kept, lost and gained")
    parser.add_argument(
        "--compare",
        nargs="?",
        const="",
        metavar="METHOD",
        help="paired tests of every method against METHOD, by default the best",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    quiet.libraries()
    from engine import grid
    from engine.machine import ranks
    from engine.sampling import half_widths

    if "=" in (arguments.compare or ""):  # an override that stands after a bare --compare
        arguments.overrides.append(arguments.compare)
        arguments.compare = ""
    cores = os.cpu_count() or 1
    plan = half_widths.latest_plan(arguments.name, arguments.overrides, cores)
    if arguments.compare and arguments.compare not in plan.methods:
        raise CampaignError(
            f"{plan.name} has no method {arguments.compare!r}; it has {', '.join(plan.methods)}"
        )
    missing = campaign.columns_missing(plan)
    if missing:
        raise CampaignError(f"{plan.name} lacks {', '.join(missing)}; run `rib campaign` with it")
    device = ranks.pick_device("auto")
    with campaign.locked(plan.folder):
        found = grid.results(plan, device)
        grid.finish(plan, device, found)
    show(plan)
    if arguments.intervals or arguments.behaviour or arguments.compare is not None:
        _show_certainty(arguments, plan, found)


def _show_certainty(arguments: argparse.Namespace, plan: campaign.Plan, found: Results) -> None:
    from engine import grid
    from engine.measures.standings import standings
    from engine.report import certainty

    summary, sure, against = found.summary, found.sure, arguments.compare or None
    if against is not None:
        rows = certainty.compared(found.gathered, summary, plan.sets, against)
        sure = replace(sure, comparisons=rows)
    for one in standings(
        summary.accuracy,
        summary.mri,
        sets=plan.sets,
        upstream=found.context.recipe.dataset.upstream,
        methods=grid.titles(plan),
    ):
        if arguments.intervals:
            print(f"\n{certainty.interval_table(one, sure)}")
        if arguments.compare is not None:
            print(f"\n{certainty.comparison_table(one, sure, against)}")
        if arguments.behaviour:
            print(f"\n{certainty.behaviour_table(one, sure)}")
