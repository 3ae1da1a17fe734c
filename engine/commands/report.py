"""`rib report`, which `rib metrics` is too: tables and page again, from stored predictions alone.

Of a finished campaign neither torch nor a pack, a weights file or a source image is opened.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.commands import refuse_overwriting
from engine.commands.campaign import show
from engine.errors import CampaignError
from engine.grid import campaign, plan_folder, seal, workflow
from engine.machine import first_line
from loaders import locks

if TYPE_CHECKING:
    from engine.grid.record import FinishedCampaign
    from engine.recipe.overrides import Override
    from engine.report.results import Results

SO_FAR = "report-so-far"  # of a campaign that is at work
REMEDY = "name a campaign, or the folder of one that `rib campaign` ran"


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        aliases=["metrics"],
        help="tables and page again, of one campaign or of several as one",
        description="Tables and page of campaigns, from their stored predictions. `rib report` and "
        "`rib metrics` are one command.",
    )
    parser.add_argument("names", nargs="+", metavar="RUN", help="a campaign's name or its folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument(
        "--compare",
        nargs="?",
        const="",
        metavar="METHOD",
        help="paired tests of every method against METHOD, by default the best",
    )
    parser.add_argument(
        "--models-csv", type=Path, metavar="FILE",
        help="fit the trend lines of effective robustness over these models: columns model, set, "
        "accuracy (percent), with rows for the upstream set",
    )  # fmt: skip
    parser.add_argument("--figures", action="store_true", help="write figures as SVG and PDF too")
    parser.add_argument("--out", type=Path, help="folder of the report (default: the campaign's)")
    parser.add_argument("--force", action="store_true", help="write into --out whatever it holds")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    out, names, csv = arguments.out, arguments.names, arguments.models_csv
    if len(names) > 1 and out is None:
        raise CampaignError("several campaigns need a folder for their common report: --out DIR")
    if out:
        refuse_overwriting(out, arguments.force, is_folder=True)
    first_line.show(f"reading the predictions of {', '.join(names)}")
    runs = [run for name in names for run in finished(name, arguments.overrides)]
    for record in [run.record for run in runs] if arguments.compare else ():
        if arguments.compare not in record.methods:
            raise CampaignError(
                f"{record.name} has no method {arguments.compare!r}; it has "
                f"{', '.join(record.methods)}"
            )
    from engine.report import finish
    from engine.report.merged import merged
    from engine.report.results import of_campaign

    if out:
        results = merged(runs, csv) if len(runs) > 1 else of_campaign(runs[0], csv)
        path = finish.write_into(out, results, figures=arguments.figures)
        _show(path, results, arguments)
        return
    for run in runs:
        if run.record.missing and locks.is_held(run.place.lock):
            # It writes its report itself once it ends.
            results = of_campaign(run, csv)
            so_far = run.place.campaign_root.at(SO_FAR)
            _show(finish.write_into(so_far, results, figures=arguments.figures), results, arguments)
            continue
        with workflow.locked(run.place):
            results = of_campaign(run, csv)
            path = finish.write(run, results, figures=arguments.figures)
        _show(path, results, arguments)


def _show(page: Path, results: Results, arguments: argparse.Namespace) -> None:
    """Print the table of a report, and the tables that were asked for."""
    from engine.report import terminal

    show(page)
    for model in results.models:
        if arguments.compare is not None:
            print(f"\n{terminal.comparisons(results, model, arguments.compare or None)}")


def finished(name: str, overrides: Sequence[Override]) -> list[FinishedCampaign]:
    """The campaign in a folder, as far as it is finished, or those finished ones that a name and
    overrides stand for."""
    from engine import recipe
    from engine.grid import record

    folder = Path(name)
    if name in recipe.names("campaigns") or not folder.is_dir():
        return [record.find(name, grid) for grid in recipe.each_model(name, overrides)]
    if overrides:
        words = " ".join(each.text for each in overrides)
        raise CampaignError(
            f"{folder} is reported as it ran: {words} can follow a campaign's name only"
        )
    plans = plan_folder.in_campaign(folder)
    places = [place for place in plans if place.root.has(place.record)]
    shown = [place for place in places if seal.is_shown(place)]
    if len(places) > 1 and len(shown) != 1:
        raise CampaignError(f"{folder} holds {len(places)} finished campaigns; {REMEDY}")
    places = shown or places
    return [record.read(places[0]) if places else _unfinished(folder)]


def _unfinished(folder: Path) -> FinishedCampaign:
    """What is finished of the campaign in a folder that was begun last."""
    from engine.grid import make_record
    from engine.grid.record import FinishedCampaign
    from engine.machine import ranks

    places = [p for p in plan_folder.in_campaign(folder) if p.root.has(p.plan)]
    if not places:
        raise CampaignError(f"{folder} holds no campaign; {REMEDY}")
    plan = campaign.read(max(places, key=lambda place: place.plan.stat().st_mtime_ns))
    device = ranks.of_plan(plan.device)
    return FinishedCampaign(make_record.of_finished_columns(plan, device), plan.place)
