"""`rib`: campaigns from the command line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from engine import campaign, entry, quiet
from engine.errors import CampaignError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of `rib` with these words."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes no positional words after an option; key=value words may stand anywhere.
    wrong = [word for word in rest if word.startswith("-") or "=" not in word]
    if wrong or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(wrong or rest)}")
    if rest:
        arguments.overrides += rest
    return entry.guarded(lambda: arguments.work(arguments) or 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rib", description="The ImageNet-RIB engine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("campaign", help="run a grid: models x methods x sets, to a report")
    run.add_argument("name", help="a campaign of recipes/campaigns, or a YAML file")
    run.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    run.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="default: all")
    run.add_argument("--dry-run", action="store_true", help="show what would run and stop")
    run.set_defaults(work=_campaign)

    again = commands.add_parser("metrics", help="recompute a campaign's tables and report")
    again.add_argument("name")
    again.add_argument("overrides", nargs="*", metavar="key=value")
    again.set_defaults(work=_metrics)

    listing = commands.add_parser("recipes", help="list campaigns, models, methods and data sets")
    listing.set_defaults(work=_recipes)

    for stage in ("prepare", "column", "report"):
        job = commands.add_parser(stage)  # one job of a campaign; its workflow calls it
        job.add_argument("--plan", type=Path, required=True)
        job.add_argument("--set", default=None)
        job.set_defaults(work=_job, stage=stage)
    return parser


def _campaign(arguments: argparse.Namespace) -> None:
    plan = campaign.plan(arguments.name, arguments.overrides, arguments.cores)
    if campaign.finished(plan) and not arguments.dry_run:
        print(f"{plan.name} is finished; nothing to do.")
    else:
        campaign.run(plan, arguments.cores, arguments.dry_run)
    if not arguments.dry_run:
        _show(plan)


def _metrics(arguments: argparse.Namespace) -> None:
    quiet.libraries()
    from engine import grid, ranks

    plan = campaign.plan(arguments.name, arguments.overrides, os.cpu_count() or 1)
    missing = campaign.columns_missing(plan)
    if missing:
        raise CampaignError(f"{plan.name} lacks {', '.join(missing)}; run `rib campaign` with it")
    with campaign.locked(plan.folder):
        grid.finish(plan, ranks.pick_device("auto"))
    _show(plan)


def _show(plan: campaign.Plan) -> None:
    page = campaign.report_page(plan)
    print(f"\n{(page.parent / 'table.txt').read_text()}\nreport  {page.resolve()}")


def _recipes(arguments: argparse.Namespace) -> None:
    from engine import recipe

    for group in ("campaigns", "models", "datasets", "methods"):
        print(f"{group}: {', '.join(recipe.names(group))}")
    print(f"recipes: {', '.join(recipe.names())}")


def _job(arguments: argparse.Namespace) -> None:
    quiet.libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    import torch

    from engine import grid, ranks

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    plan = campaign.read(arguments.plan)
    campaign.end_with_campaign(plan)
    if arguments.stage == "report":
        grid.finish(plan, ranks.pick_device("auto"))
        return
    device = ranks.start()
    if arguments.stage == "prepare":
        grid.prepare(plan, device)
    else:
        grid.column(plan, arguments.set, device)
    ranks.stop()


if __name__ == "__main__":
    sys.exit(main())
